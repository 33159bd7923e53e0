"""Measure every bundled reading on the development collections, and keep the result. Run: make bench-quality.

$RERANK_LAB_BENCH names the folder that holds trec-dl-2019/ and nfcorpus/. Scores go through the cache, so a stopped run
goes on where it was. NFCorpus is long: a seeded sample of its queries is measured, the same for every system.
"""

import json
import os
import platform
import random
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import BertModel

from rerank_lab import BM25, Reranker, ScoreCache, read_collection, read_run
from rerank_lab.catalogue import make
from rerank_lab.evaluation import compare
from rerank_lab.evaluation.experiment import candidates_of_run
from rerank_lab.notebook import quiet
from rerank_lab.rerankers.gated import GatedCrossEncoder

FOLDER = Path(os.environ.get("RERANK_LAB_BENCH", "../shared/data"))
OUT = Path("rerank_lab/data/measured.json")
SYSTEMS = [
    "bi-encoder",
    "lab-bi-encoder",
    "colbert",
    "cross-encoder",
    "lab-fused",
    "monot5",
    "colbert:100+cross-encoder:20",
]
MEASURED = {  # collection: where it is, depth, queries (None: all)
    "trec-dl-2019": (str(FOLDER / "trec-dl-2019"), 100, None),
    "lab": ("lab", 50, None),
    "nfcorpus": (str(FOLDER / "nfcorpus"), 100, 100),
}
KEPT = ("nDCG@10", "RR@10", "AP")


def measured(name: str, rerankers: list[Reranker]) -> dict:
    """One collection's table: BM25's candidates, reordered by every system."""
    where, depth, count = MEASURED[name]
    collection = read_collection(where)
    if count:
        chosen = random.Random(0).sample(sorted(collection.judged()), count)
        collection = replace(collection, qrels={qid: collection.qrels[qid] for qid in chosen})
    queries = collection.judged()
    if "bm25" in collection.runs:
        run = read_run(collection.runs["bm25"])
        found = candidates_of_run({qid: run[qid] for qid in queries}, collection, depth)
    else:
        bm25 = BM25(list(collection.passages.values()))
        found = {qid: bm25.search(text, depth) for qid, text in queries.items()}
    result = compare(collection, found, rerankers, first_stage="bm25", depth=depth, progress=True).to_json()
    systems = [
        {"name": row["name"], **{m: row["measures"][m] for m in KEPT}, "usage": row["usage"]}
        for row in result["systems"]
    ]
    return {
        "collection": name,
        "command": "make bench-quality",
        "first_stage": "bm25",
        "depth": depth,
        "queries": len(queries),
        "sampled": count is not None,
        "systems": systems,
    }


def main() -> None:
    quiet()
    for part, method in ((BertModel, "forward"), (GatedCrossEncoder, "states")):  # three times as fast on 2 cores
        setattr(part, method, torch.compile(getattr(part, method), dynamic=True))
    cache = ScoreCache()
    rerankers = [make(name, dtype="bfloat16", cache=cache) for name in SYSTEMS]
    present = [name for name, (where, _, _) in MEASURED.items() if where == "lab" or Path(where).is_dir()]
    table = {
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, no GPU",
        "dtype": "bfloat16",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": {name: version(name) for name in ("rerank-lab", "torch", "transformers", "ir-measures")},
        "interval": "95 % bootstrap over queries",
        "collections": [],
    }
    for name in present:
        made = measured(name, rerankers)
        table["collections"].append(made)
        OUT.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        print(f"\n{name}: {made['queries']} queries, BM25 top {made['depth']}, nDCG@10 [95 %]", flush=True)
        for row in made["systems"]:
            value = row["nDCG@10"]
            print(f"  {row['name']:32} {value['value']:.4f} [{value['low']:.3f}, {value['high']:.3f}]", flush=True)


if __name__ == "__main__":
    main()
