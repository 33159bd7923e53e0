"""Comparisons by a language model: two at a time (PRP) and a few at a time (setwise)."""

import re

import pytest
from conftest import QUERY
from hypothesis import given
from hypothesis import strategies as st

from rerank_lab.core import InputError, Repairs, candidates_from
from rerank_lab.llm import Reply, parse_label
from rerank_lab.rerankers.heap import best_first
from rerank_lab.rerankers.pairwise import PairwiseReranker, all_pairs, heapsort, pairwise_prompt, sliding
from rerank_lab.rerankers.pointwise_llm import YesNoReranker, parse_yes_no
from rerank_lab.rerankers.setwise import SetwiseReranker, setwise_prompt


class Numbers:
    """Names the passage with the highest number; `always` makes it answer the same whatever it is shown."""

    model, concurrency = "numbers", 3

    def __init__(self, always=None):
        self.always, self.asked = always, 0

    def ask(self, messages, *, max_tokens):
        self.asked += 1
        if self.always is not None:
            return Reply(self.always, 20, 2)
        shown = re.findall(r"^Passage ([A-Z]): (\d+) boats$", messages[0]["content"], flags=re.MULTILINE)
        return Reply("Passage " + max(shown, key=lambda pair: int(pair[1]))[0], 20, 2)


def numbered(numbers):
    return candidates_from([f"{n} boats" for n in numbers])


def texts(ranking):
    return [int(c.text.split()[0]) for c in ranking]


def by_value(values):
    return lambda i, j: 0.5 if values[i] == values[j] else float(values[i] > values[j])


values = st.lists(st.integers(0, 6), min_size=1, max_size=16)


# ---------------------------------------------------------------- orders from comparisons


@given(values, st.integers(1, 20))
def test_all_three_methods_put_the_best_k_first_and_ties_in_their_order(values, k):
    n = len(values)
    expected = sorted(range(n), key=lambda i: -values[i])
    assert all_pairs(n, by_value(values)) == expected
    assert sliding(n, by_value(values), k)[:k] == expected[:k]
    assert heapsort(n, by_value(values), k)[:k] == expected[:k]


@given(values, st.integers(1, 20), st.integers(1, 5))
def test_a_heap_of_several_children_does_so_too(values, k, children):
    n = len(values)

    def best_of(some):
        return min(range(len(some)), key=lambda p: (-values[some[p]], some[p]))

    assert best_first(n, best_of, k, children)[:k] == sorted(range(n), key=lambda i: -values[i])[:k]


@given(values, st.integers(1, 20), st.randoms())
def test_whatever_the_answers_are_nothing_is_lost(values, k, dice):
    n = len(values)
    for method in (all_pairs, lambda n, c: sliding(n, c, k), lambda n, c: heapsort(n, c, k)):
        assert sorted(method(n, lambda i, j: dice.choice([0.0, 0.5, 1.0]))) == list(range(n))
    assert sorted(best_first(n, lambda some: dice.randrange(len(some)), k, 3)) == list(range(n))


# ---------------------------------------------------------------- parsing


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("Passage A", 0),
        ("passage b.", 1),
        ("**B**", 1),
        ("<think>Passage A seems good</think> Passage B", 1),
        ("<think>Passage A and then the tokens ran out", None),
        ("Passage A is better than Passage B", None),
        ("Neither.", None),
        ("", None),
        ("A ferry leaves at nine", None),
    ],
)
def test_a_choice_is_read_only_where_it_is_plain(answer, choice):
    assert parse_label(answer, 2) == choice


@given(st.text())
def test_any_text_parses_to_a_choice_a_label_an_answer_or_none(text):
    assert parse_label(text, 2) in (0, 1, None)
    assert parse_yes_no(text) in (True, False, None)
    label = parse_label(text, 4)
    assert label is None or 0 <= label < 4


def test_prompts_hold_the_query_and_every_passage_under_its_letter():
    (pair,) = pairwise_prompt("when?", "a {ferry}", "a tram")
    assert "Query: when?" in pair["content"]
    assert "Passage A: a {ferry}" in pair["content"] and "Passage B: a tram" in pair["content"]
    (some,) = setwise_prompt("when?", ["a ferry", "a tram", "a bus"])
    assert [f"Passage {x}" in some["content"] for x in "ABCD"] == [True, True, True, False]


# ---------------------------------------------------------------- rerankers


@pytest.mark.parametrize("method", ["all-pairs", "heapsort", "sliding"])
def test_the_best_come_first(method):
    ranking = PairwiseReranker(Numbers(), method=method, k=3).rerank(QUERY, numbered([4, 1, 9, 6, 2, 7]))
    assert texts(ranking)[:3] == [9, 7, 6]
    assert ranking.usage.calls == ranking.usage.pairs
    assert ranking.usage.input_tokens == 20 * ranking.usage.calls


def test_both_orders_are_asked_and_a_model_that_always_says_a_changes_nothing():
    chat = Numbers(always="Passage A")
    ranking = PairwiseReranker(chat, method="all-pairs").rerank(QUERY, numbered([1, 2, 3]))
    assert texts(ranking) == [1, 2, 3]
    assert chat.asked == 3 * 2
    assert ranking.usage.repairs == Repairs()


def test_an_answer_that_names_neither_counts_half_and_is_counted():
    ranking = PairwiseReranker(Numbers(always="I cannot say."), method="sliding", k=1).rerank(QUERY, numbered([1, 2]))
    assert texts(ranking) == [1, 2]
    assert ranking.usage.repairs == Repairs(refused=2)


@pytest.mark.parametrize(("n", "k"), [(2, 1), (5, 1), (8, 3), (100, 1), (4, 10)])
def test_sliding_takes_at_most_two_k_times_n_minus_one_calls(n, k):
    reranker = PairwiseReranker(Numbers(), k=k)
    usage = reranker.rerank(QUERY, numbered(range(n))).usage
    assert usage.calls <= reranker.most_calls(n) <= 2 * k * (n - 1)


def test_all_pairs_take_every_ordered_pair():
    reranker = PairwiseReranker(Numbers(), method="all-pairs")
    assert reranker.rerank(QUERY, numbered(range(7))).usage.calls == reranker.most_calls(7) == 7 * 6


def test_the_same_comparison_is_asked_once():
    chat = Numbers()
    PairwiseReranker(chat, k=9).rerank(QUERY, numbered([5, 5, 5, 1, 1]))
    assert chat.asked == 2  # 5 boats against 1 boat, in both orders; copies of a text are not compared


def test_setwise_finds_the_best_k_with_fewer_calls_than_pairs():
    numbers = [(7 * i) % 20 for i in range(20)]
    few, many = Numbers(), Numbers()
    ranking = SetwiseReranker(few, k=5).rerank(QUERY, numbered(numbers))
    PairwiseReranker(many, method="heapsort", k=5).rerank(QUERY, numbered(numbers))
    assert texts(ranking)[:5] == [19, 18, 17, 16, 15]
    assert ranking.usage.calls == few.asked < many.asked


def test_setwise_keeps_the_first_stages_order_where_the_answer_is_no_letter():
    ranking = SetwiseReranker(Numbers(always="None of them."), k=3).rerank(QUERY, numbered([1, 2, 3, 4]))
    assert texts(ranking) == [1, 2, 3, 4]
    assert ranking.usage.repairs.refused == ranking.usage.calls > 0


def test_beyond_the_depth_the_order_stays():
    for reranker in (PairwiseReranker(Numbers(), k=9, depth=2), SetwiseReranker(Numbers(), depth=2)):
        assert texts(reranker.rerank(QUERY, numbered([1, 2, 9, 8]))) == [2, 1, 9, 8]


def test_yes_comes_before_no_and_ties_keep_their_order():
    class Even(Numbers):
        def ask(self, messages, *, max_tokens):
            number = int(re.search(r"(\d+) boats", messages[0]["content"])[1])
            return Reply({0: "Yes.", 1: "no", 2: "perhaps"}[number % 3], 20, 1)

    ranking = YesNoReranker(Even()).rerank(QUERY, numbered([1, 3, 2, 6, 4]))
    assert texts(ranking) == [3, 6, 1, 2, 4]
    assert ranking.usage.repairs == Repairs(refused=1)
    assert ranking.usage.calls == 5


@pytest.mark.parametrize(
    "make",
    [
        lambda: PairwiseReranker(Numbers(), method="bubble"),
        lambda: PairwiseReranker(Numbers(), k=0),
        lambda: SetwiseReranker(Numbers(), children=0),
        lambda: SetwiseReranker(Numbers(), depth=0),
        lambda: SetwiseReranker(Numbers(), by_logits=True),
    ],
)
def test_wrong_settings_are_refused(make):
    with pytest.raises(InputError, match=r"give|logits"):
        make()
