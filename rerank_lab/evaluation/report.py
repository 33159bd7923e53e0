"""One page of a benchmark's facts: no request leaves it, and it reads on paper, in the dark and on a phone.

The page is `data/report/report.html` with its style sheet; all text of collections is escaped by the template engine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from markupsafe import Markup, escape

from rerank_lab.checkpoints import known_models
from rerank_lab.evaluation import charts, wording
from rerank_lab.evaluation.facts import quality
from rerank_lab.evaluation.metrics import QUALITY

__all__ = ["family_of", "render"]

KINDS = {  # how the page calls the kinds of sentences of a verdict
    "as_good": "cheaper",
    "no_better": "dearer",
    "harmful": "harm",
    "open": "open",
    "types": "queries",
    "depth": "depth",
    "ceiling": "ceiling",
    "cut": "cut",
    "unjudged": "judgments",
    "few": "sample",
    "untimed": "time",
}


def family_of(reranker: str | None) -> str:
    """The family whose colour a system has in figures; `other` where the name does not tell.

    >>> family_of("duot5"), family_of("listwise"), family_of("bge-reranker-v2-m3"), family_of("./mine"), family_of(None)
    ('monot5', 'llm', 'cross-encoder', 'other', 'bm25')
    """
    if reranker is None:
        return "bm25"
    own = {"duot5": "monot5", "monot5": "monot5", "listwise": "llm", "pairwise": "llm", "setwise": "llm"}
    own |= {"pointwise-llm": "llm", "cohere": "hosted", "jina": "hosted", "voyage": "hosted", "tei": "hosted"}
    own |= {name: name for name in ("bi-encoder", "cross-encoder", "colbert")}
    known = known_models().get(reranker, {}).get("family", "other")
    return own.get(reranker) or {"late-interaction": "colbert", "sequence-to-sequence": "monot5"}.get(known, known)


def _prose(text: str) -> Markup:
    """A sentence with its commands, which stand between backticks, set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


@cache
def _page():
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("rerank_lab", "data/report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters |= {name: getattr(wording, name) for name in wording.__all__}
    made.filters["prose"] = _prose
    made.globals |= {"family_of": family_of, "QUALITY": QUALITY, "KINDS": KINDS}
    return made.get_template("report.html")


def render(result: Mapping) -> str:
    """The page, as text of one HTML file.

    Args:
        result: as `bench.benchmark` gives it.
    """
    rows = {row["name"]: row for row in result["systems"]}
    best = rows[result["recommended"]]
    reranked = [row for row in result["systems"] if row["reranker"]]
    over_best = [row for row in reranked if row["first_stage"] == best["name"]]
    told = best if best["reranker"] else max(over_best or reranked, key=quality)  # whose details stand open
    return _page().render(
        r=result,
        best=best,
        told=told,
        reranked=reranked,
        drawn={
            "quality": _quality(result),
            "seconds": _against(result, best, "seconds", "seconds a query, logarithmic", wording.seconds),
            "dollars": _against(result, best, "dollars", "dollars for 1,000 queries, logarithmic", wording.money),
            "depths": {name: _depths(name, found, rows) for name, found in result["depths"].items()},
            "queries": {row["name"]: _bars(row, rows) for row in reranked},
            "types": {row["name"]: _types(row) for row in reranked},
            "reliability": _reliability(told),
        },
    )


def _quality(result: Mapping) -> dict:
    """A strip for each system, its first stage as the dashed mark, its oracle as the ceiling."""
    first = {row["name"]: quality(row) for row in result["systems"] if not row["reranker"]}
    ceilings = {name: measures[QUALITY]["value"] for name, measures in result["oracles"].items()}
    rows = [(row, row["measures"][QUALITY]) for row in result["systems"]]
    marks = charts.ticks(min(m["low"] for _, m in rows), max([*ceilings.values(), *(m["high"] for _, m in rows)]))
    domain = (marks[0], marks[-1])
    strips = {
        row["name"]: charts.strip(
            m["low"],
            m["value"],
            m["high"],
            domain,
            family=family_of(row["reranker"]),
            says=f"{row['name']}: {m['value']:.3f}, 95 % from {m['low']:.3f} to {m['high']:.3f}",
            reference=first[row["first_stage"]],
            ceiling=ceilings[row["first_stage"]],
        )
        for row, m in rows
    }
    return {"strips": strips, "low": domain[0], "high": domain[1]}


def _against(result: Mapping, best: Mapping, unit: str, x_name: str, spell):
    """Quality against a cost; None where no cost is known or nothing costs anything."""
    known = [row for row in result["systems"] if row["cost"][unit] is not None]
    if not any(row["cost"][unit] > 0 for row in known) or len(known) < 2:
        return None
    points = [
        {
            "name": row["name"],
            "x": row["cost"][unit],
            "y": quality(row),
            "family": family_of(row["reranker"]),
            "front": row["name"] in result["fronts"][unit],
            "chosen": row is best,
        }
        for row in known
    ]
    front = ", ".join(result["fronts"][unit])
    return charts.scatter(points, x_name=x_name, spell=spell, says=f"{QUALITY} against {x_name}; the front: {front}")


def _depths(name: str, found: Mapping, rows: Mapping):
    grey = [
        {"name": "recall", "values": found["recall"], "family": "ceiling", "style": "dotted"},
        {"name": "oracle", "values": found["oracle"], "family": "ceiling", "style": "dashed"},
    ]
    own = [
        {"name": rows[s]["reranker"], "values": values, "family": family_of(rows[s]["reranker"]), "style": ""}
        for s, values in found["systems"].items()
    ]
    says = f"{QUALITY} over the number of candidates of {name} that are reranked"
    return charts.curves(found["grid"], [*grey, *own], x_name="candidates reranked", says=says)


def _bars(row: Mapping, rows: Mapping):
    first, gain = rows[row["first_stage"]]["values"], row["against_first"]
    says = f"{row['name']}: {gain['wins']} queries gain, {gain['losses']} lose, {gain['ties']} stay the same"
    return charts.bars([value - first[qid] for qid, value in row["values"].items()], says=says)


def _types(row: Mapping) -> list[tuple[Mapping, object]]:
    """A strip for each type of query, around 0."""
    most = max(0.05, *(max(abs(t["low"]), abs(t["high"])) for t in row["types"]))
    return [
        (
            t,
            charts.strip(
                t["low"],
                t["difference"],
                t["high"],
                (-most, most),
                family=t["proven"] or "open",
                says=f"{t['type']}: {t['difference']:+.3f}, from {t['low']:+.3f} to {t['high']:+.3f}",
                reference=0.0,
            ),
        )
        for t in sorted(row["types"], key=lambda t: -t["difference"])
    ]


def _reliability(row: Mapping):
    if not row["calibration"]:
        return None
    says = f"what calibrated scores of {row['name']} promise against what came true"
    return charts.reliability(row["calibration"]["bins"], family_of(row["reranker"]), says=says)
