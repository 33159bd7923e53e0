"""Ray against the plain loop, side by side: two processes of one thread each, the same pairs. Run: make bench.

What the machine does meanwhile slows both, so the ratio is what counts, and CPU seconds beside seconds.
"""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

import pyarrow.parquet as pq
import pytest

from rerank_lab import BM25, read_collection
from rerank_lab.integrations.ray import read_scores, score_run
from rerank_lab.integrations.ray_inputs import write_requests

DEPTH, ACTORS, QUERIES_A_PART = 20, 2, 6


@pytest.fixture(scope="module")
def lab():
    """The lab's collection and BM25's run over it."""
    collection = read_collection("lab")
    bm25 = BM25(list(collection.passages.values()))
    run = {qid: {c.pid: c.score for c in bm25.search(text, DEPTH)} for qid, text in collection.queries.items()}
    return collection, run


def plain(name, start):
    """One process of the plain loop over every second query: pairs, seconds without loading the model, CPU seconds."""
    import torch

    from rerank_lab.catalogue import make

    torch.set_num_threads(1)
    collection = read_collection("lab")
    bm25 = BM25(list(collection.passages.values()))
    asked = list(collection.queries.values())[start::ACTORS]
    found = [bm25.search(text, DEPTH) for text in asked]
    reranker = make(name, dtype="bfloat16", device="cpu")
    reranker.rerank(asked[0], found[0])
    begun, used = time.perf_counter(), time.process_time()
    pairs = sum(reranker.rerank(text, candidates).usage.pairs for text, candidates in zip(asked, found, strict=True))
    return pairs, time.perf_counter() - begun, time.process_time() - used


@pytest.mark.parametrize("name", ["cross-encoder", "colbert"])
def test_ray_against_the_plain_loop(name, lab, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    collection, run = lab
    with ProcessPoolExecutor(ACTORS, multiprocessing.get_context("spawn")) as pool:
        done = list(pool.map(plain, [name] * ACTORS, range(ACTORS)))
    ours = sum(pairs / seconds for pairs, seconds, _ in done)
    core = sum(pairs for pairs, *_ in done) / sum(used for *_, used in done)

    begun = time.perf_counter()
    usage = score_run(
        name,
        collection.queries,
        run,
        collection.passages,
        tmp_path,
        actors=ACTORS,
        dtype="bfloat16",
        queries_a_part=QUERIES_A_PART,
    )
    wall = time.perf_counter() - begun
    parts = sorted((tmp_path / "scores").glob("*.parquet"), key=lambda path: path.stat().st_mtime)
    pairs = [sum(len(row["pid"]) for row in pq.read_table(part).to_pylist()) for part in parts]
    # between the first part written and the last: what a long run costs, without starting up
    steady = sum(pairs[1:]) / (parts[-1].stat().st_mtime - parts[0].stat().st_mtime)
    busy = ACTORS * usage.pairs / usage.seconds
    print(
        f"{name} bf16: {core:.0f} pairs a CPU second; plain loop {ours:.0f} pairs/s, Ray {steady:.0f} "
        f"({steady / ours:.2f} of it), its actors while they score {busy:.0f}, start to end {usage.pairs / wall:.0f}; "
        f"{sum(p.stat().st_size for p in parts) / usage.pairs:.0f} bytes a pair, {len(parts)} parts"
    )
    assert set(read_scores(tmp_path)) == set(run)


def test_preparing_requests(tmp_path):
    queries = {f"q{i}": "when does the night ferry leave the harbour?" for i in range(1000)}
    with open(tmp_path / "run.trec", "w") as stream:
        for qid in queries:
            stream.writelines(f"{qid} Q0 passage-{j:07} {j} {1000 - j} first\n" for j in range(1, 1001))
    begun = time.process_time()
    write_requests(queries, tmp_path / "run.trec", tmp_path / "requests", None)
    seconds = time.process_time() - begun
    size = sum(path.stat().st_size for path in (tmp_path / "requests").iterdir())
    print(f"requests of a TREC run: {1e6 / seconds:,.0f} lines a CPU second, {size / 1e6:.1f} bytes a pair")
