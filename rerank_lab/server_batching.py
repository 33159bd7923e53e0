"""One worker for many requests: the oldest goes first, and those that share its query ride along.

A model is not thread-safe, and a forward pass uses every core by itself, so requests are ranked one after the
other. While one is, others gather; a pointwise reranker then scores all passages for the same query in one call,
and a text that several requests ask for is scored once: that is what sharing saves, for a call with more different
passages is no cheaper on a CPU. (Dynamic batching, as in the queue of Hugging Face's
text-embeddings-inference, `core/src/queue.rs`.)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rerank_lab.core import PointwiseReranker, Ranking, Reranker, Usage, candidates_from, order

__all__ = ["Asked", "Batcher", "OverloadedError", "rank_together"]


class OverloadedError(Exception):
    """The queue is full."""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What one request wants ranked.

    Attributes:
        texts: the passages; the pids of the ranking are their places, from "0".
        top_k: how many to return; None for all.
    """

    reranker: Reranker
    query: str
    texts: Sequence[str]
    top_k: int | None = None

    def goes_with(self, other: Asked) -> bool:
        """Whether one call can score both: the query is the same and no score depends on the other passages."""
        same = self.reranker is other.reranker and self.query == other.query
        return same and isinstance(self.reranker, PointwiseReranker)


def rank_together(batch: Sequence[Asked]) -> list[Ranking | Exception]:
    """One ranking, or the error that stands in its place, for each of several requests that go with each other.

    Args:
        batch: of one reranker and query. Where the call fails for all, each is ranked alone, so that none pays for
            another's passages. Tokens read for several are shared out by their numbers of different passages.

    >>> from rerank_lab.core import Identity
    >>> (ranking,) = rank_together([Asked(Identity(), "ferry", ["tram", "ferry"])])
    >>> [(c.pid, c.score) for c in ranking]
    [('0', 1.0), ('1', 0.5)]
    """
    try:
        if len(batch) > 1:
            return _shared(batch)
        (asked,) = batch
        return [asked.reranker.rerank(asked.query, candidates_from(asked.texts), top_k=asked.top_k)]
    except Exception as error:
        return [error] if len(batch) == 1 else [outcome for asked in batch for outcome in rank_together([asked])]


def _shared(batch: Sequence[Asked]) -> list[Ranking]:
    """Score every text once, then order each request's own."""
    texts = _texts(batch)
    ranking = batch[0].reranker.rerank(batch[0].query, candidates_from(texts))
    scores = {c.text: c.score for c in ranking}
    tokens = ranking.usage.input_tokens / len(texts)
    return [
        order(
            asked.query,
            candidates_from(asked.texts),
            [scores[text] for text in asked.texts],
            asked.top_k,
            Usage(pairs=len(asked.texts), input_tokens=round(tokens * len(set(asked.texts)))),
        )
        for asked in batch
    ]


def _texts(batch: Sequence[Asked]) -> list[str]:
    return list(dict.fromkeys(text for asked in batch for text in asked.texts))


class Batcher:
    """A bounded queue in front of one worker thread; an async context manager that runs while it is entered.

    Args:
        queue: requests that may wait.
        pairs: query-passage pairs that a call may hold; a request that alone has more is a call of its own.
        wait: seconds that an idle worker waits for company of the first request.
        observe: told the number of different passages of every call.
    """

    def __init__(self, queue: int, pairs: int, wait: float, observe: Callable[[int], None]):
        self.queue, self.pairs, self.wait, self.observe = queue, pairs, wait, observe
        self._waiting: deque[tuple[Asked, asyncio.Future[Ranking]]] = deque()
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        """Requests that wait; those being ranked are not among them."""
        return len(self._waiting)

    async def __aenter__(self) -> Batcher:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rerank-lab")
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        self._thread.shutdown()

    async def rank(self, asked: Asked) -> Ranking:
        """Wait for the ranking; cancelled before its turn, a request is never ranked.

        Raises:
            OverloadedError: as many requests wait as may.
            Exception: whatever the reranker raised.
        """
        if len(self._waiting) >= self.queue:
            raise OverloadedError
        entry = asked, asyncio.get_running_loop().create_future()
        self._waiting.append(entry)
        self._wake.set()
        try:
            return await entry[1]
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            raise

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(self.wait)
            while self._waiting:
                batch = self._next()
                askeds = [asked for asked, _ in batch]
                self.observe(len(_texts(askeds)))
                outcomes = await asyncio.get_running_loop().run_in_executor(self._thread, rank_together, askeds)
                for (_, future), outcome in zip(batch, outcomes, strict=True):
                    if future.done():  # cancelled while it was ranked
                        continue
                    if isinstance(outcome, Exception):
                        future.set_exception(outcome)
                    else:
                        future.set_result(outcome)
            self._wake.clear()

    def _next(self) -> list[tuple[Asked, asyncio.Future[Ranking]]]:
        """Take the oldest request and, while they fit, those that go with it."""
        oldest = self._waiting[0][0]
        batch, room = [], self.pairs
        for entry in list(self._waiting):
            asked = entry[0]
            if asked is oldest or (asked.goes_with(oldest) and len(asked.texts) <= room):
                batch.append(entry)
                room -= len(asked.texts)
                self._waiting.remove(entry)
        return batch
