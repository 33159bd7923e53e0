"""Nothing here answers: when to give no passage at all.

    answer with the first candidate if P(relevant | its score) >= t

t is the lowest threshold from which answers are right as often as asked for. A higher t answers more seldom (coverage)
and more often right (precision); both are reported for queries that neither calibration nor threshold has seen.

El-Yaniv and Wiener, On the Foundations of Noise-free Selective Classification, JMLR 2010.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path

from rerank_lab.core import Candidate, DataError, InputError
from rerank_lab.evaluation.calibration import Calibration, Judged, fit, pairs_of, rounds

__all__ = ["Abstainer", "fit_abstainer", "threshold_for"]


@dataclass(frozen=True)
class Abstainer:
    """Says which candidates answer, or that none does.

    Attributes:
        calibration: from score to probability.
        threshold: the probability from which a candidate counts as an answer; above 1 it never does.
        precision: how often the first candidate was relevant where one was given, on held-out queries; None where none
            was given.
        coverage: the share of held-out queries for which one was given.
        queries: how many were held out.
    """

    calibration: Calibration
    threshold: float
    precision: float | None = None
    coverage: float | None = None
    queries: int = 0

    def probability(self, score: float) -> float:
        """The chance that a passage with this score is relevant."""
        return self.calibration.probability(score)

    def answers(self, ranking: Sequence[Candidate]) -> list[Candidate]:
        """The candidates that answer, best first; an empty list says: nothing here answers."""
        return [c for c in ranking if self.probability(c.score) >= self.threshold]

    def to_json(self) -> dict:
        """It as plain data, for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping) -> Abstainer:
        """What `to_json` gave.

        Raises:
            DataError: it is something else.
        """
        try:
            how, x, y = (row["calibration"][key] for key in ("how", "x", "y"))
            made = cls(**dict(row) | {"calibration": Calibration(how, tuple(map(float, x)), tuple(map(float, y)))})
            corners = {"platt": len(x) == len(y) == 1, "isotonic": len(x) == len(y) > 0}
            if corners.get(how) and isfinite(made.threshold):
                return made
        except (KeyError, TypeError, ValueError):
            pass
        raise DataError(f"not a saved abstainer: {str(row)[:80]}; write one with Abstainer.save")

    def save(self, path: str | Path) -> None:
        """Write it as JSON, for `load`."""
        Path(path).write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Abstainer:
        """Read what `save` wrote; raises DataError as `from_json`."""
        try:
            row = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read as JSON: {error}") from error
        return cls.from_json(row)


def threshold_for(top: Sequence[float], relevant: Sequence[bool], precision: float) -> float:
    """The lowest threshold from which answers are right often enough; 2.0, above every probability, where none is.

    Args:
        top: the probability of the first candidate of each query.
        relevant: whether that candidate is relevant.
        precision: the share of right answers that is asked for.

    >>> threshold_for([0.9, 0.8, 0.4, 0.2], [True, True, False, True], 0.9)
    0.8
    """
    best, right = 2.0, 0
    ordered = sorted(zip(top, relevant, strict=True), reverse=True)
    for given, (chance, true) in enumerate(ordered, start=1):
        right += true
        last_of_its_ties = given == len(ordered) or ordered[given][0] < chance
        if last_of_its_ties and right / given >= precision:
            best = chance
    return best


def fit_abstainer(data: Mapping[str, Judged], how: str = "platt", *, precision: float = 0.9) -> Abstainer:
    """Fit calibration and threshold on all queries; precision and coverage are those of fits on the other folds.

    Args:
        data: by qid; a query whose candidates are all not relevant belongs here too.
        precision: the share of right answers that is asked for, in (0, 1].

    Raises:
        InputError: a precision out of range, too few queries, or what `fit` refuses.
    """
    if not 0 < precision <= 1:
        raise InputError(f"precision is {precision}: give more than 0 and at most 1")
    given = right = judged = 0
    for fitted, fold in rounds(data):
        made = _fit_on(data, fitted, how, precision)
        for qid in fold:
            judged += 1
            if data[qid].scores and made.probability(data[qid].scores[0]) >= made.threshold:
                given += 1
                right += data[qid].relevant[0]
    whole = _fit_on(data, list(data), how, precision)
    return replace(whole, precision=right / given if given else None, coverage=given / judged, queries=judged)


def _fit_on(data: Mapping[str, Judged], qids: Sequence[str], how: str, precision: float) -> Abstainer:
    calibration = fit(*pairs_of(data, qids), how)
    found = [data[q] for q in qids if data[q].scores]
    top = [calibration.probability(j.scores[0]) for j in found]
    return Abstainer(calibration, threshold_for(top, [j.relevant[0] for j in found], precision))
