"""Listwise reranking: windows, the parser against any answer, and the way of good passages to the front."""

import itertools
import re

import pytest
from conftest import LONG, QUERY
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_lab.core import InputError, Repairs, candidates_from
from rerank_lab.llm import Reply
from rerank_lab.rerankers.listwise import ListwiseReranker, first_words, listwise_prompt, parse_permutation, windows


class ByNumber:
    """A model that orders passages by the number that each holds, the highest first; it keeps what it was asked."""

    model, concurrency = "by-number", 1

    def __init__(self, say=None):
        self.asked, self.say = [], say

    def ask(self, messages, *, max_tokens):
        self.asked.append(messages)
        if self.say is not None:
            return Reply(self.say, 10, 5)
        found = [re.match(r"\[(\d+)\] (\d+)", m["content"]) for m in messages]
        shown = {int(m[1]): int(m[2]) for m in found if m}
        order = sorted(shown, key=lambda i: -shown[i])
        return Reply(" > ".join(f"[{i}]" for i in order), 10, 5)


# ---------------------------------------------------------------- windows


def test_a_hundred_candidates_take_nine_calls():
    assert windows(100) == [(80, 100), (70, 90), (60, 80), (50, 70), (40, 60), (30, 50), (20, 40), (10, 30), (0, 20)]


def test_fewer_candidates_than_a_window_are_shown_in_one():
    assert windows(8) == [(0, 8)]
    assert windows(20) == [(0, 20)]
    assert windows(0) == []


def test_the_last_window_is_clamped_so_that_the_first_places_are_seen():
    assert windows(25) == [(5, 25), (0, 15)]
    assert windows(21) == [(1, 21), (0, 11)]


@given(n=st.integers(1, 300), size=st.integers(2, 40), data=st.data())
def test_windows_cover_every_place_and_overlap_by_what_the_step_leaves(n, size, data):
    step = data.draw(st.integers(1, size))
    places = windows(n, size, step)
    assert {i for low, high in places for i in range(low, high)} == set(range(n))
    assert places[0][1] == n and places[-1][0] == 0
    assert all(high - low <= size for low, high in places)
    assert all(before[1] - after[1] == step for before, after in itertools.pairwise(places))


# ---------------------------------------------------------------- parsing


def pieces(n):
    """What models write: right, wrong and repeated identifiers, words, thoughts, brackets, huge and foreign numbers."""
    identifier = st.integers(-3, n + 3)
    return st.one_of(
        identifier.map(lambda i: f"[{i}]"),
        identifier.map(str),
        st.sampled_from(
            [" > ", ">", ", ", "\n", "<think>", "</think>", "[]", "[ ", "]", "²", "٣", "[٣]", "None", "1e9"]
        ),
        st.text(max_size=12),
        st.integers(0, 10**40).map(lambda i: f"[{i}]"),
        st.just("9" * 5000),
    )


@settings(max_examples=1000)
@given(n=st.integers(1, 30), data=st.data())
def test_a_thousand_malformed_answers_all_become_a_permutation(n, data):
    answer = "".join(data.draw(st.lists(pieces(n), max_size=40)))
    order, repairs = parse_permutation(answer, n)
    assert sorted(order) == list(range(n))
    assert all(count >= 0 for count in (repairs.duplicate, repairs.out_of_range, repairs.missing, repairs.refused))
    assert (repairs.refused == 1) == (repairs.missing == n)


@given(order=st.permutations(list(range(12))), form=st.sampled_from(["[{}]", "{}", "Passage {}", "[ {} ]"]))
def test_a_sound_answer_is_read_as_it_stands(order, form):
    answer = " > ".join(form.format(i + 1) for i in order)
    assert parse_permutation(answer, 12) == (order, Repairs())


@pytest.mark.parametrize(
    ("answer", "order", "repairs"),
    [
        ("[2] > [1] > [2]", [1, 0, 2], Repairs(duplicate=1, missing=1)),
        ("[3] > [7] > [0]", [2, 0, 1], Repairs(out_of_range=2, missing=2)),
        ("", [0, 1, 2], Repairs(missing=3, refused=1)),
        ("<think>[3] looks best</think>[2] > [1] > [3]", [1, 0, 2], Repairs()),
        ("<think>[3] > [2] > ... and then the tokens ran out", [0, 1, 2], Repairs(missing=3, refused=1)),
        ("Of the 3 passages: [3] > [1] > [2]", [2, 0, 1], Repairs()),  # brackets win over bare numbers
        ("3, 1, 2", [2, 0, 1], Repairs()),
        ("[" + "1" * 5000 + "] > [2]", [1, 0, 2], Repairs(out_of_range=1, missing=2)),
    ],
)
def test_repairs_are_counted_by_kind(answer, order, repairs):
    assert parse_permutation(answer, 3) == (order, repairs)


# ---------------------------------------------------------------- the conversation


def test_every_passage_has_a_turn_of_its_own_and_the_question_comes_last():
    turns = listwise_prompt("when does it leave?", ["a ferry", "a {tram}"])
    assert [t["role"] for t in turns] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert [t["content"] for t in turns[3:7]] == [
        "[1] a ferry",
        "Received passage [1].",
        "[2] a {tram}",
        "Received passage [2].",
    ]
    assert "when does it leave?" in turns[1]["content"] and "2 passages" in turns[1]["content"]
    assert "when does it leave?" in turns[-1]["content"] and "[2] > [1]" in turns[-1]["content"]


@given(st.text(max_size=60), st.integers(1, 8))
def test_first_words_keep_the_text_as_it_is_up_to_the_cut(text, words):
    kept, cut = first_words(text, words)
    assert text.startswith(kept)
    assert kept.split() == text.split()[:words]
    assert cut == (len(text.split()) > words)


def test_a_passage_of_more_than_three_hundred_words_is_cut_and_counted():
    chat = ByNumber(say="[1]")
    usage = ListwiseReranker(chat).rerank(QUERY, candidates_from([LONG, "tram"])).usage
    assert len(chat.asked[0][3]["content"].split()) == 1 + 300
    assert usage.truncated == 1


# ---------------------------------------------------------------- reranking


def numbered(numbers):
    return candidates_from([f"{n} boats" for n in numbers])


def test_a_window_orders_what_it_shows():
    ranking = ListwiseReranker(ByNumber()).rerank(QUERY, numbered([3, 9, 1, 7]))
    assert [c.text for c in ranking] == ["9 boats", "7 boats", "3 boats", "1 boats"]
    assert [c.score for c in ranking] == [1, 1 / 2, 1 / 3, 1 / 4]
    assert (ranking.usage.calls, ranking.usage.pairs, ranking.usage.input_tokens, ranking.usage.output_tokens) == (
        1,
        4,
        10,
        5,
    )


def test_the_ten_best_of_a_hundred_come_first_even_from_the_very_end():
    ranking = ListwiseReranker(ByNumber()).rerank(QUERY, numbered(range(100)))
    assert [c.text for c in ranking[:10]] == [f"{n} boats" for n in range(99, 89, -1)]
    assert (ranking.usage.calls, ranking.usage.pairs) == (9, 180)


def test_twenty_five_candidates_take_two_calls_and_the_first_five_are_shown():
    chat = ByNumber()
    reranker = ListwiseReranker(chat)
    reranker.rerank(QUERY, numbered(range(25)))
    assert len(chat.asked) == reranker.calls(25) == 2
    shown = {m["content"].partition("] ")[2] for m in chat.asked[1]}
    assert {f"{n} boats" for n in range(5)} <= shown


def test_beyond_the_depth_the_order_stays():
    ranking = ListwiseReranker(ByNumber(), depth=3).rerank(QUERY, numbered([1, 2, 3, 9, 8]))
    assert [c.text for c in ranking] == ["3 boats", "2 boats", "1 boats", "9 boats", "8 boats"]
    assert ranking.usage.pairs == 3


def test_an_answer_without_an_order_leaves_the_first_stages_and_is_counted():
    ranking = ListwiseReranker(ByNumber(say="I would rather not.")).rerank(QUERY, numbered([1, 2]))
    assert [c.first_rank for c in ranking] == [1, 2]
    assert ranking.usage.repairs == Repairs(missing=2, refused=1)


@pytest.mark.parametrize("wrong", [{"window": 1}, {"step": 0}, {"window": 4, "step": 5}, {"depth": 0}])
def test_a_window_that_cannot_slide_is_refused(wrong):
    with pytest.raises(InputError, match=r"window is|depth is"):
        ListwiseReranker(ByNumber(), **wrong)
