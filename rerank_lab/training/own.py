"""Groups from a collection of your own: a folder in BEIR's layout with judgments to train on.

    corpus.jsonl   queries.jsonl   qrels/train.tsv     and qrels/test.tsv, which measures and is not trained on

Thakur et al., BEIR, NeurIPS 2021 (the layout). https://arxiv.org/abs/2104.08663
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rerank_lab.collections import Collection, read_collection, read_qrels
from rerank_lab.core import DataError
from rerank_lab.training.negatives import NEAR_COPY, SIZE, Negatives

__all__ = ["collection_drafts"]

POOL = 200_000  # passages that negatives are looked for in, beside the judged ones


def collection_drafts(folder: Path, count: int, negatives: Negatives) -> Iterator[tuple[str, list[str], list[float]]]:
    """Query, passages and gains: up to three relevant passages, and what is ranked high and not known to be relevant.

    Args:
        folder: the collection.
        count: queries that are drawn; those of the test judgments never are.
        negatives: ranks and draws.

    Raises:
        DataError: a file is missing or malformed, or judgments name what the collection lacks.
    """
    collection = read_collection(folder)
    qrels = _training_qrels(folder, collection)
    highest = max(grade for judged in qrels.values() for grade in judged.values())
    asked = [qid for qid, judged in qrels.items() if qid not in collection.qrels and max(judged.values()) > 0]
    negatives.random.shuffle(asked)
    asked = asked[:count]
    pids = list(dict.fromkeys(pid for qid in asked for pid in qrels[qid]))
    rest = sorted(collection.passages.keys() - set(pids))
    pids += negatives.random.sample(rest, min(POOL, len(rest)))
    places = {pid: i for i, pid in enumerate(pids)}
    texts, queries = [collection.passages[pid].text for pid in pids], [collection.queries[qid] for qid in asked]
    vectors = negatives.encoder.encode(texts, progress=len(texts) > 1000)  # (N, d)
    for qid, query, ranked in zip(asked, queries, negatives.ranked(queries, texts, vectors), strict=True):
        gains = {places[pid]: grade / highest for pid, grade in qrels[qid].items() if grade > 0}
        good = negatives.random.sample(list(gains), min(3, len(gains)))
        copies = (vectors[ranked] @ vectors[list(gains)].T > NEAR_COPY).any(dim=1).tolist()
        clean = [i for i, copy in zip(ranked, copies, strict=True) if not copy and i not in gains]
        clean = list({texts[i]: i for i in clean}.values())  # of passages with the same text one
        group = (good + negatives.pick(clean))[:SIZE]
        if len(group) == SIZE:
            yield query, [texts[i] for i in group], [gains.get(i, 0.0) for i in group]


def _training_qrels(folder: Path, collection: Collection) -> dict[str, dict[str, int]]:
    for path in (folder / "qrels" / "train.tsv", folder / "qrels" / "train.tsv.gz"):
        if path.is_file():
            break
    else:
        raise DataError(
            f"{folder} has no qrels/train.tsv: what a model is trained on is kept apart from what it is measured by"
        )
    qrels = read_qrels(path)
    for qid, judged in qrels.items():
        unknown = [pid for pid in judged if pid not in collection.passages]
        if qid not in collection.queries or unknown:
            what = f"passage {unknown[0]!r}" if unknown else f"query {qid!r}"
            raise DataError(f"{path} judges {what}, which is not in the collection")
    return qrels
