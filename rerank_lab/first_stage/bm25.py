"""BM25: the first stage that counts words. rank-bm25 does the arithmetic; the tokens are ours.

    score(q, p) = sum over words w of q:  idf(w) * tf (k1 + 1) / (tf + k1 (1 - b + b |p| / average |p|))

Robertson and Zaragoza, 2009. https://doi.org/10.1561/1500000019. Note: `BM25Okapi` floors the idf of very
common words, so its scores differ from Lucene's; its order seldom does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from rank_bm25 import BM25Okapi

from rerank_lab.core import Candidate, DataError, Passage, candidates_from

__all__ = ["BM25", "tokenize"]

# Lucene's English stop words (org.apache.lucene.analysis.en.EnglishAnalyzer)
STOPWORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "but",
        "by",
        "for",
        "if",
        "in",
        "into",
        "is",
        "it",
        "no",
        "not",
        "of",
        "on",
        "or",
        "such",
        "that",
        "the",
        "their",
        "then",
        "there",
        "these",
        "they",
        "this",
        "to",
        "was",
        "will",
        "with",
    ]
)


@cache
def _stemmer():
    import Stemmer

    return Stemmer.Stemmer("porter")


def tokenize(text: str) -> list[str]:
    """Lower-case words without stop words, stemmed by Porter's rules.

    >>> tokenize("The ferries are leaving at 09:30")
    ['ferri', 'leav', '09', '30']
    """
    words = re.findall(r"\w+", text.lower())
    return _stemmer().stemWords([w for w in words if w not in STOPWORDS])


class BM25:
    """An index over passages.

    Args:
        passages: the collection; at least one.
        k1: how soon repeating a word stops to count (Anserini's default for passages).
        b: how much long passages are held back.
    """

    name = "bm25"

    def __init__(self, passages: Sequence[Passage], k1: float = 0.9, b: float = 0.4):
        if not passages:
            raise DataError("BM25 needs at least one passage, the collection has none")
        self.passages = list(passages)
        words = [tokenize(p.text) for p in self.passages]
        if not any(words):
            raise DataError("BM25 needs at least one passage with a word that is not a stop word")
        self._index = BM25Okapi(words, k1=k1, b=b)

    def search(self, query: str, k: int = 100) -> list[Candidate]:
        """The k best passages that share a word with the query, best first; ties by place in the collection."""
        words = tokenize(query)
        scores = self._index.get_scores(words)  # (N,)
        shares = [i for i, bag in enumerate(self._index.doc_freqs) if any(w in bag for w in words)]
        best = sorted(shares, key=lambda i: -scores[i])[:k]
        return candidates_from([self.passages[i] for i in best], [float(scores[i]) for i in best])
