"""What hosted rerankers have in common: batches, the cache, the bill, and answers read by index.

- A text that occurs twice is sent once. With a cache, every batch is kept as soon as it is answered, so that nothing
  answered is asked for, or paid for, again after a failure or a stop.
- A passage without a visible character is never sent, because vendors refuse it (Cohere answers 400 to a list of
  nothing but blanks: https://github.com/n8n-io/n8n/issues/20881); it gets the lowest score of the vendor's scale.
- What vendors cut to fit their models they do not report, so `usage.truncated` stays 0.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from time import perf_counter

from rerank_lab.cache import Keep, ScoreCache, cached_scores
from rerank_lab.core import InputError, Passage, PointwiseReranker, Usage
from rerank_lab.prices import cost, price
from rerank_lab.transport import APIError, Vendor, with_retries

__all__ = ["HostedReranker", "scores_by_index"]

LARGEST = sys.float_info.max


class HostedReranker(PointwiseReranker):
    """A vendor's model that gives each passage a score of its own; a context manager that closes the client.

    Args:
        client: holds the vendor's address and key; `from_environment` makes one.
        model: as the vendor calls it.
        batch_size: passages a request; without it, the most that the vendor takes.
        timeout: seconds to wait for each part of an answer; for a connection at most 5.
        attempts: how often a request is sent at most; only failures that may pass are repeated.
        backoff: seconds; before the n-th repetition a random part of backoff * 2^(n-1), at most 60, where the server
            names no pause by Retry-After.
        cache: where scores are kept; None switches it off.

    Attributes:
        retries: requests that had to be sent again since this reranker was made.
        priced: whether `data/prices.toml` knows the model; where it does not, `usage.dollars` stays 0.

    Raises:
        InputError: batch_size or attempts below 1; by `from_environment` also where key or address cannot be used.
        APIError: by `score` and `rerank`, with the usage until then.
    """

    vendor: Vendor
    most: int  # passages a request may have
    lowest = 0.0  # the bottom of the vendor's scale

    def __init__(
        self,
        client,
        model: str,
        *,
        batch_size: int | None = None,
        timeout: float = 30.0,
        attempts: int = 5,
        backoff: float = 0.5,
        cache: ScoreCache | None = None,
    ):
        self.batch_size = self.most if batch_size is None else batch_size
        if self.batch_size < 1 or attempts < 1:
            raise InputError(f"batch_size is {self.batch_size} and attempts {attempts}: give at least 1 of each")
        self.client, self.model, self.name = client, model, model
        self.timeout, self.attempts, self.backoff = timeout, attempts, backoff
        self.cache, self.cache_key = cache, f"{self.vendor.name}|{model}"
        self.retries = 0
        self.priced = _is_priced(model)

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Close the client and its connections."""

    @abstractmethod
    def _send(self, query: str, texts: list[str]):
        """One request and its answer."""

    @abstractmethod
    def _billed(self, answer) -> tuple[float, int]:
        """Searches and tokens that the vendor charges for an answer."""

    @abstractmethod
    def _rows(self, answer) -> list[tuple]:
        """Index and score of each passage of an answer."""

    def _score(self, query: str, passages: Sequence[Passage], usage: Usage) -> list[float]:
        start = perf_counter()
        visible = [p for p in passages if p.text.strip()]
        usage.pairs += len(passages) - len(visible)

        def compute(texts: list[str], keep: Keep) -> list[float]:
            scores: list[float] = []
            for first in range(0, len(texts), self.batch_size):
                batch = texts[first : first + self.batch_size]
                answered = self._ask(query, batch, usage)
                keep(range(first, first + len(batch)), answered)  # now, not at the end: the next batch may fail
                scores += answered
            return scores

        try:
            scores = iter(cached_scores(self.cache, self.cache_key, query, visible, compute, usage))
        except APIError as error:
            usage.seconds = perf_counter() - start
            error.usage = usage
            raise
        return [next(scores) if p.text.strip() else self.lowest for p in passages]

    def _ask(self, query: str, texts: list[str], usage: Usage) -> list[float]:
        wire = [_utf8(text) for text in texts]
        try:
            answer = with_retries(
                lambda: self._send(_utf8(query), wire),
                attempts=self.attempts,
                backoff=self.backoff,
                on_retry=self._count_retry,
            )
        except APIError as error:
            usage.calls += error.status == 200
            raise
        usage.calls += 1
        try:
            searches, tokens = self._billed(answer)
            usage.input_tokens += tokens
            usage.dollars += cost(self.model, searches=searches, input_tokens=tokens) if self.priced else 0.0
            rows = self._rows(answer)
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            problem = f"answered 200 without the fields of its dialect ({type(error).__name__}: {error})"
            raise APIError(self.vendor, problem[:200], status=200) from error
        return scores_by_index(rows, len(texts), self.vendor)

    def _count_retry(self) -> None:
        self.retries += 1


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair cannot be sent: "?" goes instead


def _is_priced(model: str) -> bool:
    try:
        price(model)
    except InputError:
        return False
    return True


def scores_by_index(rows: Iterable[tuple[object, object]], n: int, vendor: Vendor) -> list[float]:
    """The scores of n passages in their order, from (index, score) rows in any order.

    Raises:
        APIError: an index is out of range, occurs twice or is missing, or a score is no finite number; it is named.

    >>> scores_by_index([(2, 0.9), (0, 0.5), (1, 0.25)], 3, Vendor("A", "A_KEY", "A_URL", "http://a"))
    [0.5, 0.25, 0.9]
    """
    scores: dict[int, float] = {}
    for index, score in rows:
        problem = None
        if type(index) is not int or not 0 <= index < n:
            problem = f"index {index!r}, which is none of the {n} passages"
        elif index in scores:
            problem = f"index {index} twice"
        elif type(score) not in {int, float} or not abs(score) <= LARGEST:  # nan is not
            problem = f"the score {score!r} for index {index}, which is no finite number"
        if problem:
            raise APIError(vendor, f"answered {problem[:200]}", status=200)
        scores[index] = float(score)
    if missing := [i for i in range(n) if i not in scores]:
        more = " ..." if len(missing) > 5 else ""
        named = ", ".join(map(str, missing[:5])) + more
        raise APIError(vendor, f"answered without a score for index {named} of {n} passages", status=200)
    return [scores[i] for i in range(n)]
