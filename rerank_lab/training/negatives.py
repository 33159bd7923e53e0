"""Where negatives come from: what BM25 and the bi-encoder rank high, as a first stage will put it before the reranker.

Karpukhin et al., Dense Passage Retrieval, EMNLP 2020 (BM25's). https://arxiv.org/abs/2004.04906
Xiong et al., Approximate Nearest Neighbor Negative Contrastive Learning, ICLR 2021 (the encoder's own).
https://arxiv.org/abs/2007.00808
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch import Tensor

from rerank_lab.core import DataError, Passage
from rerank_lab.first_stage.bi_encoder import BiEncoder
from rerank_lab.first_stage.bm25 import BM25
from rerank_lab.training.text import interleave

__all__ = ["NEAR_COPY", "Negatives"]

SIZE = 8  # passages a group
NEAR_COPY = 0.95  # cosine above which a negative may be the positive in other words
DEPTH = 100  # how far down each ranking goes


class Negatives:
    """Ranks texts for queries, and picks negatives from what a source left of a ranking when it took out false ones.

    Args:
        encoder: the bi-encoder.
        random: of every choice.
        kind: bm25, bi-encoder, both, or random.

    Raises:
        DataError: an unknown kind.
    """

    def __init__(self, encoder: BiEncoder, random: random.Random, kind: str = "both"):
        if kind not in {"bm25", "bi-encoder", "both", "random"}:
            raise DataError(f"negatives is {kind!r}: give bm25, bi-encoder, both or random")
        self.encoder, self.random, self.kind = encoder, random, kind

    def ranked(
        self, queries: Sequence[str], texts: Sequence[str], vectors: Tensor | None = None
    ) -> Iterator[list[int]]:
        """For each query the places of texts, hardest first.

        Args:
            vectors: the encoder's of the texts, where they are at hand, shape (N, d).
        """
        if self.kind == "random":
            yield from (self.random.sample(range(len(texts)), min(DEPTH, len(texts))) for _ in queries)
            return
        orders: list[Iterator[list[int]]] = []
        if self.kind in {"bm25", "both"}:
            bm25 = BM25([Passage(str(i), text) for i, text in enumerate(texts)])
            orders.append([int(c.pid) for c in bm25.search(query, DEPTH)] for query in queries)
        if self.kind in {"bi-encoder", "both"}:
            if vectors is None:
                vectors = self.encoder.encode(texts, progress=len(texts) > 1000)
            orders.append(self._by_sense(queries, vectors))
        for found in zip(*orders, strict=True):
            yield interleave(*found)

    def _by_sense(self, queries: Sequence[str], vectors: Tensor) -> Iterator[list[int]]:
        for start in range(0, len(queries), 4096):  # all at once would not fit into memory
            for row in self.encoder.encode(queries[start : start + 4096]) @ vectors.T:
                yield row.argsort(descending=True)[:DEPTH].tolist()

    def pick(self, ranked: Sequence[int]) -> list[int]:
        """Four of the ten hardest and the rest from the next thirty; any, of the kind random."""
        if self.kind == "random":
            return self.random.sample(ranked, min(SIZE - 1, len(ranked)))
        rest = ranked[10:40]
        picked = self.random.sample(ranked[:10], min(4, len(ranked[:10])))
        return picked + self.random.sample(rest, min(SIZE - 1 - len(picked), len(rest)))
