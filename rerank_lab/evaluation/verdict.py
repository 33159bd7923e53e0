"""What to do, in plain words: from the facts of a benchmark to sentences.

Only what is proven is claimed. A reranker is recommended where the interval of its gain over the first stage excludes 0
and the corrected p is below .05; a type of query is named where its own, wider interval excludes 0; everything else is
said to be open, with the queries that it would take to decide at the observed spread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rerank_lab.evaluation.facts import FEWEST, cheaper, is_proven, quality
from rerank_lab.evaluation.metrics import QUALITY
from rerank_lab.evaluation.wording import counted, interval, money, points, seconds, share, signed

__all__ = ["verdict"]


def verdict(result: Mapping) -> dict:
    """The decision and what speaks for and against it.

    Args:
        result: as `bench.benchmark` gives it.

    Returns:
        `headline` and `because`, a sentence each, and `points`: `kind` and `text` of further sentences.
    """
    best = next(row for row in result["systems"] if row["name"] == result["recommended"])
    headline, because = _rerank(result, best) if best["reranker"] else _do_not(result, best)
    makers = (_as_good, _no_better, _harmful, _open, _types, _depth, _ceiling, _cut, _unjudged, _few, _untimed)
    told = [{"kind": maker.__name__[1:], "text": text} for maker in makers for text in maker(result, best)]
    return {"headline": headline, "because": because, "points": told}


def _reranked(result: Mapping) -> list[Mapping]:
    return [row for row in result["systems"] if row["reranker"]]


def _difference(row: Mapping) -> str:
    return f"{signed(row['difference'])} {interval(row)}"


def _would_take(row: Mapping, of: str = "queries") -> str:
    if not row["needed"]:
        return ""
    return f"; about {float(format(row['needed'], '.2g')):,.0f} {of} would decide at this spread"


def _rerank(result: Mapping, best: Mapping) -> tuple[str, str]:
    gain, cost = best["against_first"], best["cost"]
    paid = [seconds(cost["rerank"]["p50"]) + " a query"] if cost["rerank"] else []
    paid += [f"{money(cost['dollars'])} for 1,000 queries"] if cost["dollars"] else []
    price = ", for " + " and ".join(paid) if paid else "; what it takes was not measured here"
    headline = f"Rerank the top {result['depth']} of {best['first_stage']} with {best['reranker']}."
    return headline, f"{signed(gain['difference'])} {QUALITY} {interval(gain)} over {best['first_stage']} alone{price}."


def _do_not(result: Mapping, best: Mapping) -> tuple[str, str]:
    closest = _closest(result, best)
    others = [row for row in result["systems"] if row["name"] != best["name"] and not row["reranker"]]
    headline = f"Use {best['name']} alone, without a reranker." if others else "Do not rerank."
    if closest is None:
        return headline, f"No reranker over {best['name']} could be measured, and nothing else is proven better."
    gain = closest["against_first"]
    queries = counted(result["queries"], "query", "queries")
    undecided = "" if gain["high"] < 0 else _would_take(gain)
    return headline, (
        f"Nothing is proven better than {best['name']} on {queries}. The closest is {closest['reranker']}: "
        f"{signed(gain['difference'])} {QUALITY} {interval(gain)}{undecided}."
    )


def _closest(result: Mapping, best: Mapping) -> Mapping | None:
    """The best reranker over a first stage that does without."""
    return max((row for row in _reranked(result) if row["first_stage"] == best["name"]), key=quality, default=None)


def _as_good(result: Mapping, best: Mapping) -> Iterator[str]:
    """Cheaper systems within the noise of the best."""
    able = [
        row
        for row in result["systems"]
        if row is not best
        and cheaper(row["cost"], best["cost"])
        and row["against_best"]["low"] <= 0 <= row["against_best"]["high"]
    ]
    for row in sorted(able, key=quality, reverse=True)[:2]:
        part = []
        if row["cost"]["seconds"] is not None and best["cost"]["seconds"]:
            part.append(f"{share(row['cost']['seconds'] / best['cost']['seconds'])} of its time")
        if row["cost"]["dollars"] is not None and best["cost"]["dollars"]:
            part.append(f"{share(row['cost']['dollars'] / best['cost']['dollars'])} of its price")
        yield f"{row['name']} is within the noise of it, {_difference(row['against_best'])}, at {' and '.join(part)}."


def _hurts(row: Mapping) -> bool:
    return row["against_first"]["high"] < 0 and row["against_first"]["p_holm"] < 0.05


def _no_better(result: Mapping, best: Mapping) -> Iterator[str]:
    """Rerankers that help too, but cost more than the recommended one and bring no more."""
    for row in _reranked(result) if best["reranker"] else []:
        dearer = row is not best and cheaper(best["cost"], row["cost"])
        if dearer and is_proven(row["against_first"]) and row["against_best"]["low"] <= 0:
            yield f"{row['name']} costs more and is not proven better: {_difference(row['against_best'])}."


def _harmful(result: Mapping, best: Mapping) -> Iterator[str]:
    for row in filter(_hurts, _reranked(result)):
        yield f"{row['name']} hurts: {_difference(row['against_first'])} against {row['first_stage']} alone."


def _open(result: Mapping, best: Mapping) -> Iterator[str]:
    """Rerankers that are proven neither better nor worse."""
    told = None if best["reranker"] else _closest(result, best)  # stands in `because` already
    for row in _reranked(result):
        gain, first = row["against_first"], row["first_stage"]
        if row is not told and not _hurts(row) and not is_proven(gain):
            yield f"{row['name']} is not proven better than {first}: {_difference(gain)}{_would_take(gain)}."


def _types(result: Mapping, best: Mapping) -> Iterator[str]:
    """Types of query that lose by the recommended reranker."""
    rows = best.get("types") or []
    losing = [row for row in rows if row["proven"] == "loses"]
    for row in losing:
        queries = counted(row["queries"], "query", "queries")
        yield f"Do not rerank queries of type “{row['type']}”: {_difference(row)} over {queries}."
    large = [row for row in rows if row["queries"] >= FEWEST]
    if rows and not large:
        yield f"No type of query has the {FEWEST} queries that a claim about it takes."
    elif large and not losing:
        worst, gaining = min(large, key=lambda row: row["difference"]), sum(row["proven"] == "gains" for row in large)
        text = f"No type of query is proven to lose; {gaining} of {len(rows)} are proven to gain."
        if worst["proven"] is None:
            queries = counted(worst["queries"], "query", "queries")
            text += f" Weakest is “{worst['type']}”, {_difference(worst)} over {queries}"
            text += f"{_would_take(worst, 'of its kind')}."
        yield text


def _depth(result: Mapping, best: Mapping) -> Iterator[str]:
    curves = result["depths"][best["first_stage"]]
    curve = curves["systems"].get(best["name"])
    if curve is None:
        return
    start = next(quality(r) for r in result["systems"] if r["name"] == best["first_stage"])
    gain = curve[-1] - start
    peak = max(range(len(curve)), key=lambda i: curve[i])
    enough = next(i for i, value in enumerate(curve) if value - start >= 0.95 * gain)
    if curve[peak] - curve[-1] > 0.005:
        yield (
            f"Fewer candidates do as well: {points(curve[peak])} at {curves['grid'][peak]}, {points(curve[-1])} at "
            f"{curves['grid'][-1]}."
        )
    elif enough < len(curve) - 1:
        part = share(min(1.0, (curve[enough] - start) / gain))
        yield f"The first {curves['grid'][enough]} candidates give {part} of that gain already."
    else:
        (*_, near, end), (*_, before, last) = curves["grid"], curve
        yield f"Depth pays up to the end: {points(before)} at {near}, {points(last)} at {end}."


def _ceiling(result: Mapping, best: Mapping) -> Iterator[str]:
    oracle = result["oracles"][best["first_stage"]]
    first = next(quality(r) for r in result["systems"] if r["name"] == best["first_stage"])
    room, recall = oracle[QUALITY]["value"] - first, oracle[f"R@{result['depth']}"]["value"]
    text = f"The best order of the same candidates would reach {points(oracle[QUALITY]['value'])}"
    if best["reranker"] and room > 1e-9:
        text += f"; {best['reranker']} takes {share((quality(best) - first) / room)} of what there is to gain"
    yield f"{text}. The candidates hold {share(recall)} of the relevant passages; the rest is beyond any reranker."


def _cut(result: Mapping, best: Mapping) -> Iterator[str]:
    cut = best.get("truncation")
    if cut and cut["relevant_cut"]:
        yield (
            f"{cut['relevant_cut']} of {counted(cut['relevant'], 'relevant candidate')} were cut to fit "
            f"{best['reranker']}: what stood behind the cut it has not read."
        )


def _unjudged(result: Mapping, best: Mapping) -> Iterator[str]:
    if best["unjudged"] > 0.2:
        yield (
            f"{share(best['unjudged'])} of the ten best were never judged and count as not relevant, so its figure may "
            "be too low: `rerank-lab judge` asks for them."
        )


def _few(result: Mapping, best: Mapping) -> Iterator[str]:
    if result["queries"] < 50:
        yield f"Only {counted(result['queries'], 'query', 'queries')}: take the intervals seriously, not the means."


def _untimed(result: Mapping, best: Mapping) -> Iterator[str]:
    untimed = [row for row in _reranked(result) if row["cost"]["rerank"] is None]
    replayed = [row["name"] for row in untimed if row["cost"]["replayed"]]
    cached = [row["name"] for row in untimed if not row["cost"]["replayed"]]
    if replayed:
        yield f"Not timed, for the answers came from a record: {', '.join(replayed)}."
    if cached:
        yield f"Not timed, for the scores came from the cache: {', '.join(cached)}; `--no-cache` times them."
