"""Judgments: pooled, asked for, kept one by one, agreed upon, and written as qrels that the benchmark reads."""

import io
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_lab import candidates_from, read_collection
from rerank_lab.cli import main
from rerank_lab.collections import read_qrels, write_qrels
from rerank_lab.core import DataError, Passage
from rerank_lab.evaluation.judging import USER, Judgments, cohen_kappa, judge_by_chat, parse_grade, pool
from rerank_lab.llm import Reply


class Grader:
    """A chat that grades a passage by the words that it shares with the query, and breaks off where it is told to."""

    model, concurrency = "grader", 2

    def __init__(self, breaks_at=None, says=None):
        self.asked, self.breaks_at, self.says = [], breaks_at, says

    def ask(self, messages, *, max_tokens):
        if len(self.asked) == self.breaks_at:
            raise ConnectionError("gone")
        text = messages[-1]["content"]
        self.asked.append(text)
        query, passage = text.partition("Query: ")[2].split("\n\nPassage: ")
        shared = {w.strip(".?").lower() for w in query.split()} & {
            w.strip(".?").lower() for w in passage.split("\n")[0].split()
        }
        return Reply(self.says or f"Grade: {min(3, len(shared))}", 10, 2)


@pytest.fixture
def folder(beir_folder):
    """As `beir_folder`, without judgments."""
    (beir_folder / "qrels" / "test.tsv").unlink()
    return beir_folder


@pytest.fixture
def judge(folder, monkeypatch, capsys):
    """Calls `rerank-lab judge` on the folder; gives exit code, standard output and standard error."""

    def call(*options, typed=""):
        words = ["judge", folder, "--first-stages", "bm25", "--rerankers", "identity", *options]
        monkeypatch.setattr(sys, "argv", ["rerank-lab", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code or 0, *capsys.readouterr()

    return call


# parts


def test_the_pool_is_what_any_system_puts_first_each_once_and_always_in_the_same_order():
    a, b = (candidates_from([Passage(p, "x") for p in pids]) for pids in ("abcd", "dcxy"))
    pooled = pool([{"q": a}, {"q": b, "r": a}], 2)
    assert {qid: sorted(pids) for qid, pids in pooled.items()} == {"q": ["a", "b", "c", "d"], "r": ["a", "b"]}
    assert pooled == pool([{"q": a}, {"q": b, "r": a}], 2)


@settings(max_examples=50)
@given(st.text(max_size=40))
def test_any_answer_gives_a_grade_or_none(answer):
    assert parse_grade(answer) in {None, 0, 1, 2, 3}


def test_the_kappas_equal_scikit_learns():
    from sklearn.metrics import cohen_kappa_score

    pairs = [(0, 0), (0, 1), (3, 3), (2, 3), (1, 1), (0, 0), (3, 2), (1, 2), (0, 3), (2, 2)]
    left, right = zip(*pairs, strict=True)
    assert cohen_kappa(pairs) == pytest.approx(cohen_kappa_score(left, right))
    assert cohen_kappa(pairs, squared=True) == pytest.approx(cohen_kappa_score(left, right, weights="quadratic"))
    assert cohen_kappa([(2, 2), (2, 2)]) == 1.0


def test_judgments_are_on_disk_at_once_and_the_last_word_counts(tmp_path):
    judgments = Judgments(tmp_path / "j.jsonl")
    for grade in (1, 3, None, 2):
        judgments.add("q", "p", grade, USER)
        again = Judgments(tmp_path / "j.jsonl")
        assert again.by(USER) == judgments.by(USER) == ({} if grade is None else {("q", "p"): grade})
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 4


def test_half_a_last_line_is_cut_off_and_a_broken_one_refused_by_number(tmp_path):
    path = tmp_path / "j.jsonl"
    Judgments(path).add("q", "p", 2, USER)
    whole = path.read_text()
    path.write_text(whole + '{"qid": "q", "pi')
    assert Judgments(path).by(USER) == {("q", "p"): 2}
    assert path.read_text() == whole
    for broken in (
        "nonsense",
        '{"qid": "q", "pid": "p", "by": "user"}',
        '{"qid": "q", "pid": "p", "grade": 7, "by": "x"}',
    ):
        path.write_text(whole + broken + "\n")
        with pytest.raises(DataError, match=r"j\.jsonl:2: not a judgment; delete the line"):
            Judgments(path)


def test_a_users_grade_goes_before_a_models_and_a_models_before_a_given_one(tmp_path):
    judgments = Judgments(tmp_path / "j.jsonl")
    judgments.add("q", "a", 3, USER)
    judgments.add("q", "a", 1, "model")
    judgments.add("q", "b", 2, "model")
    given_ = {"q": {"b": 0, "c": 1}}
    assert judgments.qrels(given_) == {"q": {"b": 2, "c": 1, "a": 3}}
    assert given_ == {"q": {"b": 0, "c": 1}}


def test_agreement_is_over_the_pairs_that_both_judged(tmp_path):
    judgments = Judgments(tmp_path / "j.jsonl")
    for pid, grade in {"a": 0, "b": 3, "c": 2}.items():
        judgments.add("q", pid, grade, USER)
    assert judgments.agreement(USER, "model") is None
    for pid, grade in {"b": 3, "c": 1, "d": 0}.items():
        judgments.add("q", pid, grade, "model")
    agreed = judgments.agreement(USER, "model")
    assert (agreed["pairs"], agreed["share"], agreed["kappa"]) == (2, 0.5, cohen_kappa([(3, 3), (2, 1)]))


def test_a_model_that_breaks_off_has_what_it_said_kept_and_is_asked_only_for_the_rest(folder, tmp_path):
    data = read_collection(folder, judged=False)
    pairs = [(qid, pid) for qid in data.queries for pid in data.passages]
    judgments = Judgments(tmp_path / "j.jsonl")
    with pytest.raises(ConnectionError):
        judge_by_chat(Grader(breaks_at=4), data, pairs, judgments)
    kept = judgments.by("grader")
    assert len(kept) == 4
    chat = Grader()
    usage, refused = judge_by_chat(chat, data, [p for p in pairs if p not in kept], judgments)
    assert (len(chat.asked), usage.calls, refused) == (4, 4, 0)
    assert judgments.by("grader")["q1", "d1"] == 2  # the, ferry


def test_an_answer_without_a_grade_leaves_the_pair_open(folder, tmp_path):
    data, judgments = read_collection(folder, judged=False), Judgments(tmp_path / "j.jsonl")
    _, refused = judge_by_chat(Grader(says="I cannot say."), data, [("q1", "d1")], judgments)
    assert (refused, judgments.judges) == (1, [])


@pytest.mark.parametrize("name", ["test.tsv", "qrels.trec", "test.tsv.gz"])
def test_qrels_come_back_as_they_were_written(tmp_path, name):
    qrels = {"q1": {"a": 3, "b": 0}, "q2": {"c": -1}}
    write_qrels(qrels, tmp_path / name)
    assert read_qrels(tmp_path / name) == qrels


# the command


def test_a_user_judges_stops_resumes_and_gets_qrels(judge, folder):
    code, out, _ = judge(typed="2\nx\n0\nu\n1\nq\n")
    assert code == 0
    assert "3 of 3 pooled passages are open" in out
    assert "give 0, 1, 2, 3, s, u or q" in out
    assert len((folder / "judgments.jsonl").read_text().splitlines()) == 4
    assert sorted(g for judged in read_collection(folder).qrels.values() for g in judged.values()) == [1, 2]

    code, out, _ = judge(typed="3\n")
    assert "1 of 3 pooled passages are open" in out
    assert code == 0
    assert sorted(g for judged in read_collection(folder).qrels.values() for g in judged.values()) == [1, 2, 3]
    assert (folder / "qrels" / "test.tsv").read_text().startswith("query-id\tcorpus-id\tscore\n")
    assert "0 of 3 pooled passages are open" in judge()[1]


def test_skipped_passages_stay_open_and_nothing_judged_is_no_qrels(judge, folder):
    code, _, err = judge(typed="s\ns\ns\n")
    assert code == 2 and err == f"error: nothing was judged, so {folder} still has no qrels\n"
    assert "3 of 3" in judge(typed="1\n")[1]


def test_judgments_that_the_folder_has_are_kept_and_not_asked_for(judge, folder):
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t3\n")
    _, out, _ = judge(typed="1\n1\n")
    assert "2 of 3 pooled passages are open" in out
    assert read_collection(folder).qrels["q1"]["d1"] == 3


def test_an_endpoint_judges_and_its_agreement_with_the_user_is_told(judge, folder, monkeypatch):
    import rerank_lab.cli_bench

    monkeypatch.setattr(rerank_lab.cli_bench, "_chat", lambda *_: Grader())
    assert judge("--by", "endpoint")[0] == 0
    data = read_collection(folder)
    typed = {(qid, pid): grade for qid, judged in data.qrels.items() for pid, grade in judged.items()}
    asked = pool([{q: candidates_from([data.passages[p] for p in found]) for q, found in data.qrels.items()}], 10)
    answers = [typed[qid, pid] for qid in data.queries for pid in asked.get(qid, ())]
    code, out, _ = judge(typed="".join(f"{grade}\n" for grade in answers))
    assert code == 0
    assert "3 judgments by grader\n3 judgments by user\n" in out
    assert "grader and user agree on 100% of 3 pairs: Cohen's kappa 1.00, with squared weights 1.00" in out


def test_an_endpoint_that_is_not_named_and_places_that_do_not_fit_are_refused(judge, folder, monkeypatch):
    monkeypatch.delenv("RERANK_LAB_LLM_URL", raising=False)
    assert "set RERANK_LAB_LLM_URL" in judge("--by", "endpoint")[2]
    (folder / "qrels.trec").write_text("q1 0 d1 1\n")
    assert "move it there" in judge()[2]


def test_a_folder_without_qrels_is_refused_by_bench_with_the_command_that_makes_them(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rerank-lab", "bench", str(folder)])
    with pytest.raises(SystemExit):
        main()
    assert f"`rerank-lab judge {folder}` makes them" in capsys.readouterr().err


def test_a_line_of_the_file_says_who_judged_what_and_when(judge, folder):
    judge(typed="2\n")
    row = json.loads((folder / "judgments.jsonl").read_text().splitlines()[0])
    assert row.keys() == {"qid", "pid", "grade", "by", "date"}
    assert (row["by"], row["grade"]) == (USER, 2)
