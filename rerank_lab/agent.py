"""An agent that searches until it has found enough.

    plan          a language model writes search strings for the question
    search        the first stage finds candidates for the question and for each string; all go into one pool
    rerank        the best of the pool are ordered for the question as the user asked it
    judge         enough is found when the best passage answers with a probability of at least the threshold
    reformulate   otherwise the model sees what was searched and writes other strings
    stop          enough, or no round is left, or nothing new was written

The model never reads a passage: that is the reranker's work, and a calibrated score says when to stop.

After Yao et al., ReAct, ICLR 2023 (https://arxiv.org/abs/2210.03629), and Trivedi et al., IRCoT, ACL 2023
(https://arxiv.org/abs/2212.10509), where the model reads what was found and decides by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rerank_lab.core import Candidate, InputError, Ranking, Reranker, Usage, check_request
from rerank_lab.first_stage.fusion import fuse
from rerank_lab.llm import Chat, Message, ask_all, prompts, spoken

__all__ = ["Hunt", "Round", "SearchAgent", "parse_searches"]

MAX_TOKENS = 128  # of an answer: search strings are short


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of the loop.

    Attributes:
        searches: strings that were searched in it.
        ranking: what was reranked after it, best first.
        probability: that the best passage answers; 0 for an empty pool.
    """

    searches: tuple[str, ...]
    ranking: Ranking
    probability: float


@dataclass(frozen=True, slots=True)
class Hunt:
    """What the agent did for a question.

    Attributes:
        rounds: in order; the first searches the question itself.
        stopped: `enough`, `rounds` (none left) or `nothing new` (to search for).
        asked: what the language model took.
        ranked: what the reranker took, over all rounds.
    """

    query: str
    rounds: tuple[Round, ...]
    stopped: str
    asked: Usage
    ranked: Usage

    @property
    def ranking(self) -> Ranking:
        """What was found, as it was ordered last."""
        return self.rounds[-1].ranking

    @property
    def searches(self) -> list[str]:
        return [s for turn in self.rounds for s in turn.searches]


def parse_searches(answer: str, n: int) -> list[str]:
    """The first n search strings of an answer, one a line, without bullets, numbers and quotation marks.

    >>> parse_searches('1. "swim session" women\\n\\n- hoist pool\\n- hoist pool\\nthree', 2)
    ['swim session" women', 'hoist pool']
    """
    lines = (re.sub(r"^\W*(\d+[.)]\s)?\W*|\W+$", "", line) for line in spoken(answer).splitlines())
    return list(dict.fromkeys(line for line in lines if line))[:n]


class SearchAgent:
    """Plans, searches, reranks, judges and reformulates.

    Args:
        chat: writes the search strings.
        search: the first stage, for example `BM25(passages).search`.
        reranker: orders the pool; `Identity()` keeps the fusion of the searches.
        judge: the probability that the first passage of a ranking answers its query.
        threshold: enough from this probability on.
        rounds: at most this many; each asks the model once.
        strings: search strings that the model writes in a round.
        depth: candidates taken from each search.
        pool: passages that are reranked in a round, the best of all searches so far by their fusion.

    Raises:
        InputError: a threshold that is no probability, or another number below 1.
    """

    def __init__(
        self,
        chat: Chat,
        search: Callable[[str, int], Sequence[Candidate]],
        reranker: Reranker,
        judge: Callable[[Ranking], float],
        *,
        threshold: float = 0.5,
        rounds: int = 3,
        strings: int = 2,
        depth: int = 10,
        pool: int = 20,
    ):
        if not 0 <= threshold <= 1:
            raise InputError(f"threshold is {threshold}: give a probability between 0 and 1")
        for name, value in {"rounds": rounds, "strings": strings, "depth": depth, "pool": pool}.items():
            if value < 1:
                raise InputError(f"{name} is {value}: give at least 1")
        self.chat, self.search, self.reranker, self.judge = chat, search, reranker, judge
        self.threshold, self.rounds, self.strings, self.depth, self.pool = threshold, rounds, strings, depth, pool

    def run(self, query: str) -> Hunt:
        """Search until enough is found.

        Raises:
            InputError: a blank query.
        """
        check_request(query, [], None)
        found: dict[str, Sequence[Candidate]] = {}
        rounds: list[Round] = []
        stopped, asked, ranked = "rounds", Usage(), Usage()
        while len(rounds) < self.rounds:
            (answer,) = ask_all(self.chat, [self.prompt(query, list(found))], asked, max_tokens=MAX_TOKENS)
            written = parse_searches(answer, self.strings)
            searches = [s for s in dict.fromkeys([query, *written]) if s not in found]
            if not searches:
                stopped = "nothing new"
                break
            found |= {s: self.search(s, self.depth) for s in searches}
            ranking = self.reranker.rerank(query, fuse(list(found.values()))[: self.pool])
            ranked += ranking.usage
            rounds.append(Round(tuple(searches), ranking, self.judge(ranking) if len(ranking) else 0.0))
            if rounds[-1].probability >= self.threshold:
                stopped = "enough"
                break
        return Hunt(query, tuple(rounds), stopped, asked, ranked)

    def prompt(self, query: str, searched: Sequence[str]) -> list[Message]:
        """What the model is asked: a plan before the first search, other strings after it."""
        wording = prompts("agent")["reformulate" if searched else "plan"]
        tried = "\n".join(f"- {s}" for s in searched)
        return [{"role": "user", "content": wording.format(query=query, searches=tried, n=self.strings)}]
