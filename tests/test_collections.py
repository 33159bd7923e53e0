"""Reading and writing what the field exchanges; a malformed line is refused with its file and number."""

import gzip
import json
import shutil
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_lab import Collection, Passage, read_collection, read_run, write_run
from rerank_lab.collections import read_qrels, write_qrels
from rerank_lab.core import DataError

identifiers = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=12).filter(
    lambda s: s not in {"qid", "query-id"}  # the header of a BEIR file
)
runs = st.dictionaries(
    identifiers,
    st.dictionaries(identifiers, st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=6),
    min_size=1,
    max_size=4,
)
judgments = st.dictionaries(
    identifiers, st.dictionaries(identifiers, st.integers(-2, 4), min_size=1, max_size=6), min_size=1, max_size=4
)


def zipped(folder):
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        with gzip.open(path.with_name(path.name + ".gz"), "wb") as stream:
            stream.write(path.read_bytes())
        path.unlink()
    return folder


def test_a_beir_folder_is_read_with_title_and_text_joined(beir_folder):
    data = read_collection(beir_folder)
    assert data.name == "small"
    assert list(data.passages) == ["d1", "d2", "d3", "d4"]
    assert data.passages["d1"] == Passage("d1", "Ferry The ferry leaves at nine.")
    assert data.passages["d2"].text == "The tram is late."
    assert data.queries == {"q1": "when does the ferry leave", "q2": "ticket price of the museum"}
    assert data.qrels == {"q1": {"d1": 3, "d4": 1}, "q2": {"d3": 2, "d2": 0}}
    assert data.groups == {"q1": "time", "q2": "price"}
    assert data.runs == {"words": beir_folder / "run.words.top3.trec"}


def test_gzipped_files_read_the_same(beir_folder):
    plain = read_collection(beir_folder)
    packed = read_collection(str(zipped(beir_folder)))
    assert {p.name for p in beir_folder.rglob("*") if p.is_file()} == {
        "corpus.jsonl.gz",
        "queries.jsonl.gz",
        "test.tsv.gz",
        "run.words.top3.trec.gz",
    }
    assert (packed.passages, packed.queries, packed.qrels) == (plain.passages, plain.queries, plain.qrels)
    assert read_run(packed.runs["words"])["q1"] == {"d4": 3.5, "d1": 3.0, "d2": 0.5}


def test_trec_qrels_in_the_folder_are_read_too(beir_folder):
    shutil.rmtree(beir_folder / "qrels")
    (beir_folder / "qrels.trec").write_text("q1 0 d1 2\nq2 0 d3 1\n")
    assert read_collection(beir_folder).qrels == {"q1": {"d1": 2}, "q2": {"d3": 1}}


def test_numbers_as_ids_become_strings_and_blank_lines_count_but_say_nothing(beir_folder):
    (beir_folder / "corpus.jsonl").write_text('\n{"_id": 7, "text": "a"}\n  \n{"_id": "8", "text": ""}\n')
    assert dict(read_collection(beir_folder).passages) == {"7": Passage("7", "a"), "8": Passage("8", "")}


def test_text_in_any_script_is_read_as_it_is(beir_folder):
    text = "متى تغادر 🚢 e\u0301 夜"
    (beir_folder / "corpus.jsonl").write_text(
        json.dumps({"_id": "d1", "text": text}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    assert read_collection(beir_folder).passages["d1"].text == text


@settings(max_examples=50)
@given(qrels=judgments)
def test_qrels_come_back_as_written(tmp_path_factory, qrels):
    for name in ("round.qrels", "round.qrels.gz"):
        path = tmp_path_factory.getbasetemp() / name
        write_qrels(qrels, path)
        assert read_qrels(path) == qrels


@settings(max_examples=50)
@given(run=runs, tag=st.sampled_from(["bm25", "my own system", "x"]))
def test_runs_come_back_with_the_same_scores_best_first(tmp_path_factory, run, tag):
    for name in ("round.run", "round.run.gz"):
        path = tmp_path_factory.getbasetemp() / name
        write_run(run, path, tag)
        read = read_run(path)
        assert read == run
        for qid, found in read.items():
            assert list(found) == sorted(run[qid], key=lambda p: -run[qid][p])


def test_a_run_line_is_trecs(tmp_path):
    write_run({"q1": {"a": 0.25, "b": 1.5}}, tmp_path / "run", "two words")
    assert (tmp_path / "run").read_text() == "q1 Q0 b 1 1.5 two-words\nq1 Q0 a 2 0.25 two-words\n"


def test_ties_in_a_run_keep_the_order_of_the_file(tmp_path):
    (tmp_path / "run").write_text("q Q0 z 1 1.0 t\nq Q0 a 2 1.0 t\nq Q0 m 3 2.0 t\n")
    assert list(read_run(tmp_path / "run")["q"]) == ["m", "z", "a"]


def test_qrels_are_read_with_and_without_a_header_in_three_and_four_columns(tmp_path):
    expected = {"q1": {"a": 1}, "q2": {"b": 0}}
    for name, text in {
        "beir.tsv": "query-id\tcorpus-id\tscore\nq1\ta\t1\nq2\tb\t0\n",
        "bare.tsv": "q1\ta\t1\nq2\tb\t0\n",
        "trec": "q1 0 a 1\nq2 Q0 b 0\n",
    }.items():
        (tmp_path / name).write_text(text)
        assert read_qrels(tmp_path / name) == expected


# file, its content, the line that is at fault, what the error says
CORPUS, QUERIES, QRELS, RUN = "corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "run.words.top3.trec"
GOOD = '{"_id": "a", "text": "x"}\n'
MALFORMED = [
    (CORPUS, GOOD + "{not json}\n", 2, "not JSON"),
    (CORPUS, GOOD + '["a", "b"]\n', 2, "expected a JSON object, got list"),
    (CORPUS, '{"text": "x"}\n', 1, "'_id' is None"),
    (CORPUS, '{"_id": "", "text": "x"}\n', 1, "'_id' is ''"),
    (CORPUS, '{"_id": "a"}\n', 1, "'text' is None"),
    (CORPUS, '{"_id": "a", "text": 7}\n', 1, "'text' is 7"),
    (CORPUS, GOOD + "\n" + GOOD, 3, "pid 'a' occurs twice"),
    (QUERIES, GOOD + GOOD, 2, "qid 'a' occurs twice"),
    (QUERIES, '{"_id": "a", "text": "  "}\n', 1, "'text' is '  ', expected a string that is not blank"),
    (QUERIES, GOOD + '{"_id": "b", "text": null}\n', 2, "'text' is None"),
    (QRELS, "q1 d1\n", 1, "expected `qid 0 pid grade`"),
    (QRELS, "query-id\tcorpus-id\tscore\nq1\td1\t1\textra\tcolumns\n", 2, "expected `qid 0 pid grade`"),
    (QRELS, "q1 0 d1 1\nq1 0 d2 high\n", 2, "grade 'high' is not a whole number"),
    (QRELS, "q1 0 d1 0.5\n", 1, "grade '0.5' is not a whole number"),
    (QRELS, "q1 0 d1 1\nq1 0 d1 2\n", 2, "query 'q1' judges passage 'd1' twice"),
    (RUN, "q1 Q0 d1 1 2.0\n", 1, "expected `qid Q0 pid rank score tag`"),
    (RUN, "q1 Q0 d1 1 2.0 t\nq1 Q0 d2 2 best t\n", 2, "score 'best' is not a number"),
    (RUN, "q1 Q0 d1 1 nan t\n", 1, "score 'nan' is not a finite number"),
    (RUN, "q1 Q0 d1 1 inf t\n", 1, "score 'inf' is not a finite number"),
    (RUN, "q1 Q0 d1 1 2.0 t\nq1 Q0 d1 2 1.0 t\n", 2, "query 'q1' lists passage 'd1' twice"),
]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(("file", "content", "line", "message"), MALFORMED)
def test_a_malformed_line_is_refused_with_file_and_number(beir_folder, file, content, line, message, packed):
    (beir_folder / file).write_text(content, encoding="utf-8")
    if packed:
        zipped(beir_folder)
        file += ".gz"
    with pytest.raises(DataError) as raised:
        read_run(beir_folder / file) if "run." in file else read_collection(beir_folder)
    assert f"{beir_folder / file}:{line}: " in str(raised.value)
    assert message in str(raised.value)


@pytest.mark.parametrize("file", [CORPUS, QUERIES, QRELS])
def test_a_missing_file_is_named(beir_folder, file):
    (beir_folder / file).unlink()
    with pytest.raises(DataError, match=rf"small has no .*{file}.*plain or \.gz"):
        read_collection(beir_folder)


@pytest.mark.parametrize(("file", "reader"), [(QRELS, read_qrels), (RUN, read_run)])
def test_a_file_without_a_line_or_that_does_not_exist_is_refused(beir_folder, file, reader):
    (beir_folder / file).write_text("\n")
    with pytest.raises(DataError, match=r"holds no (judgment|run line)"):
        reader(beir_folder / file)
    (beir_folder / file).unlink()
    with pytest.raises(DataError, match="does not exist"):
        reader(str(beir_folder / file))


def test_bytes_that_are_no_utf8_are_refused_by_file(beir_folder):
    (beir_folder / CORPUS).write_bytes(b'{"_id": "a", "text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"corpus\.jsonl: not readable as UTF-8"):
        read_collection(beir_folder)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-9], lambda raw: b"no gzip at all", lambda raw: raw[:20] + b"junk"]
)
def test_a_damaged_gzip_is_refused_by_file(beir_folder, damage):
    path = zipped(beir_folder) / "corpus.jsonl.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"corpus\.jsonl\.gz: not readable"):
        read_collection(beir_folder)


def test_a_spec_that_is_no_folder_is_refused_with_what_would_do(tmp_path):
    with pytest.raises(DataError, match=r"nowhere' is not a folder: give a folder, `lab`, or `ir_datasets:ID`"):
        read_collection(tmp_path / "nowhere")


def test_qrels_for_a_query_that_is_missing_are_refused(beir_folder):
    (beir_folder / QRELS).write_text("q1 0 d1 1\nq9 0 d1 1\n")
    with pytest.raises(DataError, match="qrels of small name query 'q9', which is not among its queries"):
        read_collection(beir_folder).judged()


def test_queries_without_judgments_are_left_out_and_none_at_all_is_refused():
    one = Collection("c", {}, {"a": "first", "b": "second"}, {"b": {"p": 0}})
    assert one.judged() == {"b": "second"}
    with pytest.raises(DataError, match="no query of c has judgments"):
        Collection("c", {}, {"a": "first"}, {}).judged()


@pytest.mark.parametrize(
    ("grades", "expected"), [([0, 1], 1), ([0, 1, 2], 1), ([1, 3], 2), ([4], 2), ([], 1), ([-1], 1)]
)
def test_relevance_starts_at_two_where_grades_reach_three(grades, expected):
    qrels = {"q": {str(i): g for i, g in enumerate(grades)}}
    assert Collection("c", {}, {"q": "?"}, qrels).relevant_from == expected


def test_ir_datasets_that_is_not_installed_is_asked_for_by_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_datasets", None)  # makes `import ir_datasets` fail
    with pytest.raises(DataError, match=r"needs `pip install rerank-lab\[bench\]`"):
        read_collection("ir_datasets:vaswani")


def test_an_id_that_ir_datasets_does_not_know_is_refused():
    pytest.importorskip("ir_datasets")
    with pytest.raises(DataError, match="ir_datasets does not know 'no-such-dataset'"):
        read_collection("ir_datasets:no-such-dataset")


def test_a_part_of_a_collection_counts_from_the_grade_that_the_whole_counts_from():
    passages, queries = {"p": Passage("p", "x")}, {"a": "first", "b": "second"}
    whole = Collection("c", passages, queries, {"a": {"p": 3}, "b": {"p": 1}})
    part = replace(whole, queries={"b": "second"}, qrels={"b": {"p": 1}})
    assert (whole.relevant_from, part.relevant_from) == (2, 2)
    assert Collection("c", passages, part.queries, part.qrels).relevant_from == 1
