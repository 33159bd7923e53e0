"""Groups for training: no false negative among the negatives, the rankings asked for, the same groups by a seed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_text import article, bundle, write, write_texts

from rerank_lab import BM25, BiEncoder, DenseIndex, Passage
from rerank_lab.core import DataError
from rerank_lab.training.data import Group, GroupMaker, load_groups, save_groups
from rerank_lab.training.teacher import Teacher
from rerank_lab.training.text import crop, interleave, tiles

# cutting texts


@given(words=st.integers(0, 400), size=st.integers(3, 90))
def test_tiles_follow_each_other_from_the_start_and_leave_off_less_than_a_third(words, size):
    found = tiles("w " * words, size)
    assert found[0][0] == 0
    assert [start for start, _ in found[1:]] == [end for _, end in found[:-1]]
    assert all(end - start == size for start, end in found[:-1])
    assert words - found[-1][1] <= size // 3
    assert found[-1][1] <= words


@given(st.lists(st.lists(st.integers(0, 9), unique=True, max_size=8), min_size=1, max_size=3))
def test_interleaved_rankings_take_turns_and_name_each_index_once(orders):
    expected = []
    for place in range(8):
        for order in orders:
            if place < len(order) and order[place] not in expected:
                expected.append(order[place])
    assert interleave(*orders) == expected


@given(words=st.lists(st.sampled_from(["ferry", "tram", "bus"]), max_size=30), data=st.data())
def test_crops_of_the_tiles_give_the_words_back(words, data):
    text = "  ".join(words)
    size = data.draw(st.integers(3, 20))
    assert " ".join(crop(text, s, e) for s, e in tiles(text, size)).split() == words[: tiles(text, size)[-1][1]]


# groups


@pytest.fixture
def folder(tmp_path):
    return write_texts(tmp_path / "text")


@pytest.fixture
def maker(folder, tiny_encoder):
    return GroupMaker(folder, BiEncoder.from_pretrained(tiny_encoder), seed=7)


def check(groups):
    for group in groups:
        assert len(group.passages) == len(group.gains) == len(group.teacher) == 8
        assert all(0 <= gain <= 1 for gain in group.gains)
        assert all(-1.0001 <= score <= 1.0001 for score in group.teacher)
        assert max(group.gains) > 0


def test_a_crop_that_holds_the_answer_is_never_a_negative(maker):
    groups = list(maker.make({"squad": 100}))
    check(groups)
    assert len(groups) >= 20
    for group in groups:
        answer = group.query.split()[3]
        positive, *negatives = group.passages
        assert group.gains == [1.0] + [0.0] * 7
        assert answer in positive
        assert [n for n in negatives if answer in n.lower()] == []
        assert 40 <= len(positive.split()) <= 75


def ranking_of(kind, encoder, crops, query):
    """Places of crops, hardest first, by searches that know nothing of training."""
    passages = [Passage(str(i), text) for i, text in enumerate(crops)]
    by_words = [int(c.pid) for c in BM25(passages).search(query, 100)]
    by_sense = [int(c.pid) for c in DenseIndex(encoder, passages).search(query, 100)]
    return {"bm25": by_words, "bi-encoder": by_sense, "both": interleave(by_words, by_sense)}[kind]


@pytest.mark.parametrize("kind", ["bm25", "bi-encoder", "both", "random"])
def test_negatives_are_four_of_the_ten_hardest_and_three_of_the_next_thirty_of_the_ranking_asked_for(
    folder, tiny_encoder, kind
):
    rows = list(article("Ferries", [f"answer{i}x" for i in range(50)], 5))
    write(folder, "squad-dev", rows)
    crops = [crop(r["context"], s, e) for r in rows for s, e in tiles(r["context"])]
    assert len(set(crops)) == 100
    encoder = BiEncoder.from_pretrained(tiny_encoder)
    groups = list(GroupMaker(folder, encoder, seed=7, negatives=kind).make({"squad": 12}))
    assert len(groups) == 12
    beyond = 0
    for group in groups:
        answer = group.query.split()[3]
        hardest = [
            crops[i]
            for i in ranking_of("both" if kind == "random" else kind, encoder, crops, group.query)
            if answer not in crops[i].lower()
        ]
        first, rest = group.passages[1:5], group.passages[5:]
        if kind == "random":
            beyond += sum(p not in hardest[:40] for p in first + rest)
        else:
            assert set(first) <= set(hardest[:10])
            assert set(rest) <= set(hardest[10:40])
    assert (beyond > 0) == (kind == "random")


def test_an_unknown_kind_of_negatives_is_refused_with_the_known_ones(folder, tiny_encoder):
    with pytest.raises(DataError, match="negatives is 'easy': give bm25, bi-encoder, both or random"):
        GroupMaker(folder, BiEncoder.from_pretrained(tiny_encoder), seed=7, negatives="easy")


def test_sentences_of_the_section_are_the_negatives_and_short_sections_are_left_out(maker):
    groups = list(maker.make({"selqa": 100, "wikiqa": 100}))
    check(groups)
    assert [g.source for g in groups] == ["selqa"] * 4 + ["wikiqa"] * 2
    for group in groups:
        number = group.query.split()[1]
        assert group.passages[0] == f"right {number}"
        assert all(p.startswith(f"wrong {number} ") for p in group.passages[1:])
        assert len(set(group.passages)) == 8


def test_near_copies_of_the_answer_and_answers_to_the_same_question_are_no_negatives(maker):
    groups = list(maker.make({"medquad": 100}))
    check(groups)
    copied = [g for g in groups if "copied" in g.query]
    assert copied, "the case is not covered"
    for group in copied:
        assert group.passages[0].startswith("the same long answer")
        assert [p for p in group.passages[1:] if p.startswith("the same long answer")] == []
    for group in groups:
        if group.query == "what is illness 0":
            assert [p for p in group.passages[1:] if "zeppelin" in p] == []


def test_keywords_are_what_questions_are_about_and_all_their_answers_are_right(maker):
    groups = list(maker.make({"keywords": 100}))
    check(groups)
    subjects = ["blue river fever", "harbour fever", "island fever", "museum fever", "river fever", "tram fever"]
    assert sorted(g.query for g in groups) == subjects  # asked once only: Night Sweat
    for group in groups:
        assert group.gains == [1.0] * 3 + [0.0] * 5
        assert all(p.startswith(group.query) for p in group.passages[:3])
        assert len(set(group.passages)) == 8
        # neither another passage that speaks of it nor one about a subject whose name holds its name
        assert [p for p in group.passages[3:] if group.query in p] == []


def test_graded_candidates_keep_their_grades_and_unjudged_ones_are_left_out(maker):
    groups = list(maker.make({"dl21": 100}))
    check(groups)
    assert len(groups) == 20
    for group in groups:
        numbers = [int(p.split()[1]) for p in group.passages]
        assert group.gains == [number % 4 / 3 for number in numbers]
        assert 1 <= sum(gain > 0.5 for gain in group.gains) <= 3
        assert len(set(numbers)) == 8
        assert all(len(p.split()) <= 100 for p in group.passages)


def test_written_groups_take_their_passages_from_the_sources(maker, tmp_path, monkeypatch):
    keys = ["squad:Trams:3:10:15", "medquad:42:0:4"]
    free = {"query": "a written query", "passages": keys * 4, "grades": [0, 3, 1, 0, 0, 2, 0, 0]}
    mixed = {
        "query": "another",
        "passages": [f"dl21:m{i}" for i in range(6)] + keys,
        "grades": [0, 1, 2, 3, 0, 0, 3, 0],
    }
    bundle(monkeypatch, tmp_path, written=[free, mixed])
    (group,) = maker.make({"written": 5})
    (over_dl21,) = maker.make({"written_dl21": 5})
    check([group, over_dl21])
    tram = next(r for r in article("Trams", [f"answer{i}x" for i in range(14)], 2) if r["paragraph"] == 3)
    texts = [" ".join(tram["context"].split()[10:15]), "the same long answer"]
    assert (group.query, group.passages) == ("a written query", texts * 4)
    assert group.gains == pytest.approx([0, 1, 1 / 3, 0, 0, 2 / 3, 0, 0])
    assert (over_dl21.query, over_dl21.passages[6:]) == ("another", texts)
    assert all(p.startswith(f"passage {i} word") for i, p in enumerate(over_dl21.passages[:6]))
    assert over_dl21.gains == pytest.approx([0, 1 / 3, 2 / 3, 1, 0, 0, 1, 0])


def test_near_misses_are_filled_up_with_passages_of_other_groups_that_are_worth_nothing(maker, tmp_path, monkeypatch):
    rows = [
        {"query": f"q{i}", "passages": [{"text": f"p{i} {j}", "grade": 3 - j if j < 3 else 0} for j in range(6)]}
        for i in range(4)
    ]
    bundle(monkeypatch, tmp_path, near_misses=rows[:2], near_misses_more=rows[2:])
    groups = list(maker.make({"near_misses": 10}))
    check(groups)
    assert sorted(g.query for g in groups) == ["q0", "q1", "q2", "q3"]
    for group in groups:
        own = f"p{group.query[1:]} "
        assert [p.startswith(own) for p in group.passages] == [True] * 6 + [False] * 2
        assert group.gains == pytest.approx([1, 2 / 3, 1 / 3, 0, 0, 0, 0, 0])


def test_the_same_seed_makes_the_same_groups_and_a_count_is_an_upper_bound(folder, tiny_encoder):
    encoder = BiEncoder.from_pretrained(tiny_encoder)
    counts = {"squad": 3, "dl21": 2, "selqa": 1}
    first, again, other = (list(GroupMaker(folder, encoder, seed).make(counts)) for seed in (7, 7, 8))
    assert [g.source for g in first] == ["squad"] * 3 + ["dl21"] * 2 + ["selqa"]
    assert first == again != other


def test_the_teacher_thinks_the_mean_of_cosine_and_maxsim(tiny_encoder):
    """By transformers alone, one text at a time: (cos(mean, mean) + mean over q of max over p of cos) / 2."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(tiny_encoder), AutoModel.from_pretrained(tiny_encoder).eval()

    def states(text):
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]

    def thinks(query, passage):
        q, p = states(query), states(passage)
        mean = torch.cosine_similarity(q.mean(0), p.mean(0), dim=0)
        best = [max(torch.cosine_similarity(a, b, dim=0).item() for b in p) for a in q]
        return (mean.item() + sum(best) / len(best)) / 2

    queries = ["when does the ferry leave", "ticket"]
    passages = [["the ferry leaves at nine", "a dog", "ticket"], ["the ferry leaves at nine"]]
    expected = [[thinks(q, p) for p in found] for q, found in zip(queries, passages, strict=True)]
    scores = Teacher(BiEncoder.from_pretrained(tiny_encoder)).scores(queries, passages)
    assert [len(row) for row in scores] == [3, 1]
    for got, wanted in zip(scores, expected, strict=True):
        assert got == pytest.approx(wanted, abs=2e-3)  # states are kept in half precision
    assert max(expected[0]) - min(expected[0]) > 0.01


def test_groups_carry_the_teachers_scores(maker):
    (group,) = maker.make({"selqa": 1})
    (expected,) = Teacher(maker.encoder).scores([group.query], [group.passages])
    assert group.teacher == pytest.approx(expected, abs=1e-4)


def test_an_unknown_source_and_a_missing_file_are_refused(maker, folder):
    with pytest.raises(DataError, match="unknown training source 'wikipedia': known are squad"):
        list(maker.make({"wikipedia": 1}))
    (folder / "selqa.jsonl.gz").unlink()
    with pytest.raises(DataError, match=r"selqa\.jsonl\.gz is missing: point `data`"):
        list(maker.make({"selqa": 1}))


def test_groups_come_back_as_saved(tmp_path):
    groups = [Group("squad", "夜 🚢?", ["a\nb", "c"], [1.0, 0.0], [0.5, -0.25])]
    save_groups(groups, tmp_path / "groups.jsonl")
    assert load_groups(tmp_path / "groups.jsonl") == groups
    assert [p.name for p in tmp_path.iterdir()] == ["groups.jsonl"]
