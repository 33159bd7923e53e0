"""`rerank-lab`: search, rerank, compare, bench, judge, serve, mcp, models. Bad input: one line, exit code 2."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from rerank_lab import cli_bench
from rerank_lab.cli_parts import (
    CollectionName,
    Device,
    Dtype,
    NoCache,
    RerankerName,
    RerankerNames,
    Stage,
    cache_unless,
    load_first_stage,
    load_reranker,
    load_rerankers,
    make_folder,
    read_named_run,
    write_text,
)
from rerank_lab.core import DataError, InputError, Passage, RerankLabError, candidates_from

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


def main() -> None:
    """The console command: errors of the lab become one line on standard error and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except RerankLabError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except BrokenPipeError:  # the reader of a stream, `head` for example, went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


@app.command()
def search(
    query: str,
    collection: CollectionName = "lab",
    first_stage: Stage = "bm25",
    reranker: RerankerName = "cross-encoder",
    depth: Annotated[int, typer.Option(help="candidates to rerank", min=1)] = 20,
    k: Annotated[int, typer.Option(help="passages to show", min=1)] = 5,
    dtype: Dtype = "auto",
    device: Device = "auto",
    no_cache: NoCache = False,
) -> None:
    """Search a collection and rerank what was found."""
    from rich.console import Console
    from rich.table import Table

    from rerank_lab.collections import read_collection

    passages = list(read_collection(collection).passages.values())
    found = load_first_stage(first_stage, passages, dtype, device).search(query, depth)
    ranking = load_reranker(reranker, dtype, device, cache_unless(no_cache)).rerank(query, found, top_k=k)
    if not len(ranking):
        typer.echo("nothing found: no passage shares a word with the query; try --first-stage bi-encoder")
        return
    table = Table(title=f"{query}\n{first_stage}, top {depth}, reranked by {reranker}", box=None, pad_edge=False)
    for head, right in (("rank", True), ("was", True), ("score", True), ("pid", False), ("passage", False)):
        table.add_column(head, justify="right" if right else "left", overflow="fold")
    for c in ranking:
        table.add_row(str(c.rank), str(c.first_rank), f"{c.score:.2f}", c.pid, c.text)
    console = Console(markup=False, emoji=False)  # what passages and queries say is shown and not obeyed
    console.print(table)
    usage = ranking.usage
    console.print(
        f"{usage.pairs} pairs, {usage.cached} from the cache, {usage.input_tokens} tokens, {usage.seconds:.2f} s"
    )


@app.command()
def rerank(
    file: Annotated[
        str, typer.Argument(help="JSONL: {query, passages: [text or {pid, text}]}; - reads standard input")
    ] = "-",
    reranker: RerankerName = "cross-encoder",
    top_k: Annotated[int | None, typer.Option(help="passages to keep", min=1)] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    no_cache: NoCache = False,
) -> None:
    """Rerank JSONL: each line in gives a line out, as soon as it is done."""
    model = None
    for number, line in _requests(file):
        try:
            query, passages = _request(line)
            model = model or load_reranker(reranker, dtype, device, cache_unless(no_cache))
            ranking = model.rerank(query, candidates_from(passages), top_k=top_k)
        except (DataError, InputError) as error:
            raise DataError(f"{'standard input' if file == '-' else file}:{number}: {error}") from error
        rows = [{"pid": c.pid, "score": c.score, "rank": c.rank, "first_rank": c.first_rank} for c in ranking]
        print(
            json.dumps({"query": query, "ranking": rows, "usage": asdict(ranking.usage)}, ensure_ascii=False),
            flush=True,
        )


def _requests(file: str):
    """Numbered lines that are not blank, of a file (plain or .gz) or of standard input."""
    from rerank_lab.collections.reading import numbered_lines

    if file != "-":
        yield from numbered_lines(Path(file))
        return
    try:
        yield from ((number, line) for number, line in enumerate(sys.stdin, start=1) if line.strip())
    except UnicodeDecodeError as error:
        raise DataError(f"standard input: not readable as UTF-8 text ({error})") from error


def _request(line: str) -> tuple[str, list[Passage]]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON ({error.msg} at column {error.colno})") from error
    try:
        line.encode()
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError("half of a surrogate pair: the text is not valid Unicode") from error
    if not isinstance(row, dict) or not isinstance(row.get("passages"), list):
        raise DataError('expected {"query": "...", "passages": ["...", ...]}')
    passages = []
    for place, item in enumerate(row["passages"]):
        pid, text = (str(place), item) if isinstance(item, str) else (None, None)
        if isinstance(item, dict):
            pid, text = item.get("pid", str(place)), item.get("text")
        if not isinstance(pid, str) or not isinstance(text, str):
            raise DataError(f"passage {place} is neither a text nor {{pid, text}} with two strings")
        passages.append(Passage(pid, text))
    return row.get("query"), passages


@app.command()
def compare(
    collection: CollectionName = "lab",
    first_stage: Stage = "bm25",
    run: Annotated[
        str | None, typer.Option(help="a run of the collection by name, or a TREC run file, as first stage")
    ] = None,
    rerankers: RerankerNames = "bi-encoder,cross-encoder",
    depth: Annotated[int, typer.Option(help="candidates to rerank", min=1)] = 50,
    baseline: Annotated[
        str | None, typer.Option(help="system to test the others against; the first stage without it")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the result here")] = None,
    runs: Annotated[Path | None, typer.Option(help="folder for the systems' runs, as TREC files")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    no_cache: NoCache = False,
) -> None:
    """Measure rerankers over the same candidates: quality with intervals and tests, and what each cost."""
    from rerank_lab.collections import read_collection
    from rerank_lab.evaluation.experiment import candidates_of_run
    from rerank_lab.evaluation.experiment import compare as measure_all

    data = read_collection(collection)
    models = load_rerankers(rerankers, collection, run or first_stage, depth, dtype, device, cache_unless(no_cache))
    show = sys.stderr.isatty()
    if run is not None:
        name = run if run in data.runs else Path(run).name
        found = candidates_of_run(read_named_run(run, data), data, depth)
    else:
        name = first_stage
        stage = load_first_stage(first_stage, list(data.passages.values()), dtype, device, progress=show)
        found = {qid: stage.search(text, depth) for qid, text in data.judged().items()}
    for model in models:  # `--first-stage bi-encoder --rerankers bi-encoder` names two different systems
        if model.name == name:
            model.name = f"{name} reranker"
    experiment = measure_all(data, found, models, first_stage=name, depth=depth, baseline=baseline, progress=show)
    result = experiment.to_json()
    if runs is not None:
        _save_runs(experiment, runs)
    if json_file is not None:
        write_text(json_file, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    _print_comparison(result)


def _save_runs(experiment, folder: Path) -> None:
    from rerank_lab.collections import write_run

    make_folder(folder)
    for system in experiment.systems:
        name = system.name.replace("/", "--").replace(" ", "-")
        write_run(system.places(), folder / f"run.{name}.trec", name)


def _print_comparison(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    systems = result["systems"]
    table = Table(
        title=f"{result['collection']}: {result['queries']} queries, {result['first_stage']} top {result['depth']}; "
        f"RR, AP and R count grades from {result['relevant_from']}",
        box=None,
        pad_edge=False,
        title_justify="left",
    )
    table.add_column("system")
    names = list(systems[0]["measures"])
    for name in names:
        table.add_column(f"{name} [95 %]" if name == names[0] else name, justify="right")
    repaired = any(any(row["usage"]["repairs"].values()) for row in systems)
    counted = ("pairs", "cached", "calls", "tokens", "cut") + (("mended",) if repaired else ())
    for head in (f"p vs {result['baseline']}", *counted, "seconds"):
        table.add_column(head, justify="right")
    for row in systems:
        cells = [f"{m['value']:.4f}" for m in row["measures"].values()]
        first = row["measures"][names[0]]
        cells[0] += f" [{first['low']:.3f}, {first['high']:.3f}]"
        usage = row["usage"]
        p = f"{row['test']['p_holm']:.4f}" if "test" in row else ""
        values = [usage[key] for key in ("pairs", "cached", "calls", "input_tokens", "truncated")]
        values += [sum(usage["repairs"].values())] if repaired else []
        costs = [f"{value}" if usage["pairs"] else "" for value in values]
        table.add_row(row["name"], *cells, p, *costs, f"{usage['seconds']:.1f}" if usage["pairs"] else "")
    console = Console(width=None if sys.stdout.isatty() else 150, markup=False, emoji=False)
    console.print(table)
    if "groups" in systems[0]:
        groups = Table(title="\nnDCG@10 by phenomenon", box=None, pad_edge=False, title_justify="left")
        groups.add_column("phenomenon")
        for row in systems:
            groups.add_column(row["name"], justify="right")
        for label in systems[0]["groups"]:
            groups.add_row(label, *(f"{row['groups'][label]:.3f}" for row in systems))
        console.print(groups)


app.command()(cli_bench.bench)
app.command()(cli_bench.judge)


@app.command()
def serve(
    reranker: RerankerName = "cross-encoder",
    host: Annotated[str, typer.Option(help="another than loopback needs a key in RERANK_LAB_API_KEY")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    dtype: Dtype = "auto",
    device: Device = "auto",
    no_cache: NoCache = False,
) -> None:
    """Serve a reranker behind the wire formats of Cohere (/v2/rerank), Jina (/v1/rerank) and TEI (/rerank)."""
    from rerank_lab.server import create_app
    from rerank_lab.server import serve as run_server

    model = load_reranker(reranker, dtype, device, cache_unless(no_cache))
    key = os.environ.get("RERANK_LAB_API_KEY") or None
    run_server(create_app({reranker: model}, api_key=key), host=host, port=port)


@app.command()
def mcp(
    collection: CollectionName = "lab",
    first_stage: Stage = "bm25",
    reranker: RerankerName = "cross-encoder",
    dtype: Dtype = "auto",
    device: Device = "auto",
    no_cache: NoCache = False,
) -> None:
    """Offer search and rerank as tools of the Model Context Protocol, over standard input and output."""
    from rerank_lab.collections import read_collection

    try:
        from rerank_lab.integrations.mcp import create_server
    except ModuleNotFoundError as error:
        raise InputError("`rerank-lab mcp` needs the official SDK: pip install rerank-lab[mcp]") from error
    passages = list(read_collection(collection).passages.values())
    stage = load_first_stage(first_stage, passages, dtype, device)
    model = load_reranker(reranker, dtype, device, cache_unless(no_cache))
    create_server(stage, model, about=f"the collection {collection!r}").run()


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False) -> None:
    """List the known models of all families."""
    from rich.console import Console
    from rich.table import Table

    from rerank_lab.checkpoints import known_models

    if as_json:
        typer.echo(json.dumps(known_models(), indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for head in ("name", "family", "parameters", "max length", "licence", "hub id"):
        table.add_column(head)
    for name, model in known_models().items():
        cells = (model["family"], model["parameters"], str(model["max_length"]), model["licence"], model["hub"])
        table.add_row(name, *cells)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    main()
