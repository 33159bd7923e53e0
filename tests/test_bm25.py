"""BM25 against its formula, written as loops."""

from collections import Counter
from math import log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_lab import BM25, Passage
from rerank_lab.core import DataError
from rerank_lab.first_stage.bm25 import tokenize

WORDS = ["ferry", "tram", "bus", "harbour", "ticket", "museum", "dog"]
texts = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join), min_size=1, max_size=8)


def by_formula(query, passages, k1=0.9, b=0.4, epsilon=0.25):
    """idf = ln((N - df + .5) / (df + .5)); where that is negative, epsilon times the mean idf (rank-bm25)."""
    bags = [tokenize(p) for p in passages]
    vocabulary = {w for bag in bags for w in bag}
    df = {w: sum(w in bag for bag in bags) for w in vocabulary}
    raw = {w: log(len(bags) - df[w] + 0.5) - log(df[w] + 0.5) for w in vocabulary}
    floor = epsilon * sum(raw.values()) / len(raw)
    idf = {w: value if value >= 0 else floor for w, value in raw.items()}
    average = sum(map(len, bags)) / len(bags)
    scores = []
    for bag in bags:
        tf = Counter(bag)
        norm = k1 * (1 - b + b * len(bag) / average)
        scores.append(sum(idf.get(w, 0) * tf[w] * (k1 + 1) / (tf[w] + norm) for w in tokenize(query)))
    return scores


@settings(max_examples=60)
@given(texts=texts, query=st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join))
def test_scores_equal_the_formula_and_all_that_share_a_word_are_found(texts, query):
    found = BM25([Passage(str(i), t) for i, t in enumerate(texts)]).search(query, len(texts))
    expected = by_formula(query, texts)
    assert {c.pid for c in found} == {str(i) for i, t in enumerate(texts) if set(t.split()) & set(query.split())}
    assert {c.pid: c.score for c in found} == pytest.approx({c.pid: expected[int(c.pid)] for c in found})
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)


@settings(max_examples=60)
@given(texts=texts, k=st.integers(1, 8), query=st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join))
def test_the_k_best_are_the_head_of_the_whole_list(texts, query, k):
    index = BM25([Passage(str(i), t) for i, t in enumerate(texts)])
    assert [c.pid for c in index.search(query, k)] == [c.pid for c in index.search(query, len(texts))][:k]


def test_k1_and_b_are_used():
    texts = ["ferry ferry tram", "ferry bus bus dog museum", "ticket", "dog", "museum", "harbour"]
    index = BM25([Passage(str(i), t) for i, t in enumerate(texts)], k1=1.2, b=0.75)
    found = {c.pid: c.score for c in index.search("ferry")}
    expected = by_formula("ferry", texts, k1=1.2, b=0.75)
    assert found == pytest.approx({"0": expected[0], "1": expected[1]})


def test_equal_scores_keep_the_order_of_the_collection():
    index = BM25([Passage(pid, "the ferry") for pid in "cab"] + [Passage(str(i), "a tram") for i in range(9)])
    assert [c.pid for c in index.search("ferry")] == ["c", "a", "b"]


def test_words_are_matched_by_stem_and_without_regard_to_case():
    index = BM25([Passage("a", "Ferries LEAVING"), Passage("b", "trams"), Passage("c", "bus")])
    assert [c.pid for c in index.search("ferry leaves")] == ["a"]


@pytest.mark.parametrize("query", ["the of", "zeppelin", "", "?!"])
def test_a_query_that_shares_no_word_finds_nothing(query):
    assert BM25([Passage("a", "the ferry"), Passage("b", "of a tram")]).search(query) == []


def test_a_word_in_exactly_half_of_the_passages_is_found_though_its_idf_is_zero():
    index = BM25([Passage(p, t) for p, t in zip("abcd", ["tram", "bus", "ferry", "ferry dog"], strict=True)])
    assert [c.pid for c in index.search("ferry", 2)] == ["c", "d"]


def test_an_empty_collection_is_refused():
    with pytest.raises(DataError, match="at least one passage"):
        BM25([])


def test_a_collection_without_a_single_word_is_refused():
    with pytest.raises(DataError, match="with a word that is not a stop word"):
        BM25([Passage("a", "the"), Passage("b", "?")])
    assert BM25([Passage("a", "the"), Passage("b", "tram")]).search("ferry") == []


def test_words_of_other_scripts_count_too():
    index = BM25([Passage("ar", "متى تغادر العبارة"), Passage("ru", "паром уходит"), Passage("en", "the ferry leaves")])
    assert [c.pid for c in index.search("паром")] == ["ru"]
    assert [c.pid for c in index.search("العبارة")] == ["ar"]
