"""The commands that decide with evidence: `bench` measures, `judge` makes the judgments to measure by."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from rerank_lab.cli_parts import (
    Device,
    Dtype,
    NoCache,
    RerankerNames,
    cache_unless,
    load_first_stages,
    load_reranker,
    load_rerankers,
    make_folder,
    names_in,
    read_named_run,
    write_text,
)
from rerank_lab.core import DataError, InputError

__all__ = ["bench", "judge"]

STAGES = ("bm25", "bi-encoder", "fusion")

FirstStages = Annotated[
    str, typer.Option(help="bm25, bi-encoder, fusion, runs of the collection or run files, separated by commas")
]


def bench(
    collection: Annotated[str, typer.Argument(help="lab, a folder, or ir_datasets:ID")],
    first_stages: FirstStages = "bm25",
    rerankers: RerankerNames = "bi-encoder,cross-encoder,colbert",
    depth: Annotated[int, typer.Option(help="candidates to rerank", min=1)] = 50,
    baseline: Annotated[str | None, typer.Option(help="a system to test all others against too")] = None,
    queries: Annotated[
        int | None, typer.Option(help="draw so many queries, always the same; all without it", min=1)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for report.html and bench.json; bench-COLLECTION without it")
    ] = None,
    prices: Annotated[Path | None, typer.Option(help="TOML file of your own prices")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    no_cache: NoCache = False,
) -> None:
    """Should you rerank, with what, how deep, at what price? Writes one report (HTML) and its figures (JSON)."""
    from rerank_lab.collections import read_collection
    from rerank_lab.evaluation.bench import benchmark
    from rerank_lab.evaluation.report import render
    from rerank_lab.prices import read_prices

    own = read_prices(prices) if prices is not None else {}
    data = read_collection(collection)
    folder = out if out is not None else Path("bench-" + "-".join(data.name.replace("/", "-").split()))
    make_folder(folder)  # a place that cannot be written is found out now and not after the work
    show, scores = sys.stderr.isatty(), cache_unless(no_cache)
    stages = _stages(names_in("--first-stages", first_stages), data, dtype, device, show)
    models = load_rerankers(rerankers, collection, first_stages, depth, dtype, device, scores)
    result = benchmark(
        data,
        stages,
        models,
        depth=depth,
        queries=queries,
        baseline=baseline,
        prices=own,
        cache=scores,
        progress=show,
    )
    result["made"] |= {"dtype": dtype, "device": device, "cache": scores is not None}
    for note in result["notes"]:
        typer.echo(f"note: {note['message']}", err=True)
    for name, why in (result["left_out"]["systems"] | result["left_out"]["queries"]).items():
        typer.echo(f"left out: {name} ({why})", err=True)
    write_text(folder / "bench.json", json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(folder / "report.html", render(result))
    told = result["verdict"]
    typer.echo("\n".join([told["headline"], told["because"], "", *(f"- {p['text']}" for p in told["points"])]))
    typer.echo(f"\n{folder / 'report.html'}\n{folder / 'bench.json'}")


def _stages(names: list[str], data, dtype: str, device: str, show: bool) -> dict[str, object]:
    """First stages and runs by the names that reports call them, in the order given."""
    called = {name: name if name in STAGES or name in data.runs else Path(name).name for name in names}
    if twice := [name for name, label in called.items() if list(called.values()).count(label) > 1]:
        raise InputError(f"reports would call {' and '.join(twice)} both {called[twice[0]]}: rename a file")
    runs = {name: read_named_run(name, data) for name in names if name not in STAGES}
    made = load_first_stages([n for n in names if n in STAGES], list(data.passages.values()), dtype, device, show)
    return {label: (made | runs)[name] for name, label in called.items()}


def judge(
    folder: Annotated[Path, typer.Argument(help="a collection: corpus.jsonl and queries.jsonl; qrels may be missing")],
    by: Annotated[
        str, typer.Option(help="user: you, at this terminal; endpoint: the one of RERANK_LAB_LLM_URL; or a local model")
    ] = "user",
    first_stages: FirstStages = "bm25,bi-encoder",
    rerankers: Annotated[
        str, typer.Option(help="names separated by commas; an empty list adds none")
    ] = "cross-encoder",
    pool_depth: Annotated[int, typer.Option(help="how many of the first of each system are judged", min=1)] = 10,
    queries: Annotated[int | None, typer.Option(help="only the first so many queries; all without it", min=1)] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    no_cache: NoCache = False,
) -> None:
    """Make qrels for a collection that has none: grades 0 to 3 for what several systems put first."""
    from rerank_lab.collections import read_collection, write_qrels
    from rerank_lab.evaluation.judging import USER, Judgments, judge_by_chat, pool

    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give one with corpus.jsonl and queries.jsonl")
    for name in ("qrels.trec", "qrels.trec.gz"):
        if (folder / name).exists():
            raise InputError(f"{folder / name} is read before qrels/test.tsv: move it there, judge adds to it")
    data = read_collection(folder, judged=False)
    judgments = Judgments(folder / "judgments.jsonl")
    chat = None if by == USER else _chat(by, dtype, device)
    show, scores = sys.stderr.isatty(), cache_unless(no_cache)
    texts = dict(list(data.queries.items())[:queries])
    stages = _stages(names_in("--first-stages", first_stages), data, dtype, device, show)
    models = [load_reranker(n.strip(), dtype, device, scores) for n in rerankers.split(",") if n.strip()]
    pooled = pool(_rankings(texts, stages, models, data, max(50, pool_depth)), pool_depth)
    given = {(q, p) for q, judged in data.qrels.items() for p in judged}
    given -= {pair for name in judgments.judges for pair in judgments.by(name)}  # those were written by this command
    done = judgments.by(USER if chat is None else chat.model)
    open_ = [(q, p) for q in texts for p in pooled.get(q, ()) if (q, p) not in done and (q, p) not in given]
    typer.echo(f"{len(open_):,} of {sum(map(len, pooled.values())):,} pooled passages are open")
    try:
        if chat is None:
            _ask_user(open_, data, judgments)
        else:
            usage, refused = judge_by_chat(chat, data, open_, judgments, progress=show)
            typer.echo(f"{usage.calls:,} calls, {usage.input_tokens:,} tokens read, ${usage.dollars:.4f}")
            if refused:
                typer.echo(f"note: {refused:,} answers named no grade from 0 to 3; run again to ask anew", err=True)
    finally:
        if judgments.judges:
            make_folder(folder / "qrels")
            write_qrels(judgments.qrels(data.qrels), folder / "qrels" / "test.tsv")
    _tell(judgments, folder)


def _chat(by: str, dtype: str, device: str):
    from rerank_lab.catalogue import chat_from_environment
    from rerank_lab.llm import LocalModel

    if by != "endpoint":
        return LocalModel.from_pretrained(by, dtype=dtype, device=device)
    if not os.environ.get("RERANK_LAB_LLM_URL"):
        raise InputError("no endpoint is named: set RERANK_LAB_LLM_URL and RERANK_LAB_LLM_MODEL, or give --by user")
    return chat_from_environment()


def _rankings(texts: dict[str, str], stages: dict[str, object], models: list, data, depth: int):
    """What each first stage found, and each reranker's order of it, by qid."""
    from rerank_lab.core import candidates_from

    for stage in stages.values():
        if hasattr(stage, "search"):
            found = {qid: stage.search(text, depth) for qid, text in texts.items()}
        else:
            pids = {qid: [p for p in stage.get(qid, ()) if p in data.passages] for qid in texts}
            found = {qid: candidates_from([data.passages[p] for p in known[:depth]]) for qid, known in pids.items()}
        yield found
        for model in models:
            yield {qid: model.rerank(text, found[qid]) for qid, text in texts.items()}


def _ask_user(pairs: list[tuple[str, str]], data, judgments) -> None:
    """Show each pair and keep the grade that is typed; an end of input is a wish to stop."""
    from rich.console import Console
    from rich.text import Text

    from rerank_lab.evaluation.judging import USER
    from rerank_lab.llm import prompts

    console, place = Console(), 0
    console.print(Text(prompts("judge")["grades"] + "\ns: skip   u: undo the last one   q: stop, all is kept"))
    while place < len(pairs):
        qid, pid = pairs[place]
        console.rule(f"{place + 1} of {len(pairs)}")
        console.print(Text(data.queries[qid], style="bold"))
        console.print(Text(data.passages[pid].text))
        try:
            said = input("grade: ").strip().lower()
        except (EOFError, KeyboardInterrupt):
            said = "q"
        if said == "q":
            return
        if said in {"0", "1", "2", "3"}:
            judgments.add(qid, pid, int(said), USER)
        elif said == "u" and place:
            place -= 1
            judgments.add(*pairs[place], None, USER)
            continue
        elif said != "s":
            console.print(Text("give 0, 1, 2, 3, s, u or q"))
            continue
        place += 1


def _tell(judgments, folder: Path) -> None:
    if not judgments.judges:
        raise DataError(f"nothing was judged, so {folder} still has no qrels")
    for name in judgments.judges:
        typer.echo(f"{len(judgments.by(name)):,} judgments by {name}")
    first, *others = judgments.judges
    for other in others:
        if (agreed := judgments.agreement(first, other)) is not None:
            typer.echo(
                f"{first} and {other} agree on {agreed['share']:.0%} of {agreed['pairs']:,} pairs: Cohen's kappa "
                f"{agreed['kappa']:.2f}, with squared weights {agreed['squared_kappa']:.2f}"
            )
    typer.echo(f"{folder / 'qrels' / 'test.tsv'}")
