"""Groups and a run from a collection of one's own: what is relevant is no negative, what measures is not trained on."""

import gzip
import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
from training_text import write_collection

from rerank_lab import BM25, BiEncoder, CrossEncoder, DenseIndex, Passage, read_collection
from rerank_lab.core import DataError
from rerank_lab.training.data import GroupMaker
from rerank_lab.training.loop import main


@pytest.fixture
def folder(tmp_path):
    return write_collection(tmp_path / "mine")


@pytest.fixture(autouse=True)
def copies_are_copies(monkeypatch):
    """The tiny encoder's weights are random, and it takes most texts for nearly the same; copies have a cosine of 1."""
    monkeypatch.setattr("rerank_lab.training.own.NEAR_COPY", 0.99999)


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return BiEncoder.from_pretrained(tiny_encoder)


def groups_of(folder, encoder, count=100, seed=7, negatives="both"):
    return list(GroupMaker(folder, encoder, seed, negatives).make({"collection": count}))


def by_text(folder):
    """The query of each text and the passages of each text, by their ids."""
    collection = read_collection(folder)
    pids = {}
    for pid, passage in collection.passages.items():
        pids.setdefault(passage.text, []).append(pid)
    return {text: qid for qid, text in collection.queries.items()}, pids


@pytest.mark.parametrize("kind", ["bm25", "bi-encoder", "both", "random"])
def test_a_group_has_up_to_three_relevant_passages_with_their_grades_and_no_false_negative(folder, encoder, kind):
    groups = groups_of(folder, encoder, negatives=kind)
    qids, pids = by_text(folder)
    assert sorted(qids[g.query] for g in groups) == sorted(f"q{i}" for i in range(12))  # none of those that measure
    for group in groups:
        number = qids[group.query][1:]
        assert len(group.passages) == len(set(group.passages)) == len(group.teacher) == 8
        grades = [{"0": 1.0, "5": 0.0}.get(pids[p][0][-1], 0.5) for p in group.passages[:3]]
        assert all(pids[p][0].startswith(f"p{number}.") for p in group.passages[:3])
        assert group.gains == grades + [0.0] * 5
        assert 0.0 not in grades
        for passage in group.passages[3:]:
            owner, _, place = pids[passage][0].removeprefix("p").partition(".")
            assert owner != number or place == "5", "a relevant passage is among the negatives"


def test_an_unjudged_copy_of_a_relevant_passage_is_no_negative(folder, encoder):
    qids, _ = by_text(folder)
    passages = read_collection(folder).passages
    index, covered = DenseIndex(encoder, list(passages.values())), 0
    for group in groups_of(folder, encoder, negatives="bi-encoder"):
        copy = f"copy{qids[group.query][1:]}"
        covered += copy in {c.pid for c in index.search(group.query, 40)}
        assert passages[copy].text not in group.passages[3:]
    assert covered > 3, "the case is not covered"


def test_negatives_stand_high_in_the_ranking_asked_for(folder, encoder):
    passages = [Passage(pid, p.text) for pid, p in read_collection(folder).passages.items()]
    bm25 = BM25(passages)
    high = {kind: 0 for kind in ("bm25", "random")}
    for kind in high:
        for group in groups_of(folder, encoder, negatives=kind):
            found = [c.text for c in bm25.search(group.query, 60)]
            high[kind] += sum(p in found for p in group.passages[3:])
    assert high["bm25"] == 12 * 5 > high["random"]


def test_the_same_seed_draws_the_same_and_a_count_is_an_upper_bound(folder, encoder):
    first, again, other = (groups_of(folder, encoder, 5, seed) for seed in (7, 7, 8))
    assert len(first) == 5
    assert first == again != other


def test_judgments_may_be_gzipped(folder, encoder):
    expected = groups_of(folder, encoder, 3)
    plain = folder / "qrels" / "train.tsv"
    with gzip.open(f"{plain}.gz", "wt", encoding="utf-8") as stream:
        stream.write(plain.read_text())
    plain.unlink()
    assert groups_of(folder, encoder, 3) == expected


def test_a_query_that_is_judged_for_measuring_too_is_not_trained_on(folder, encoder):
    with (folder / "qrels" / "train.tsv").open("a") as stream:
        stream.write("q13\tp13.0\t2\n")
    qids, _ = by_text(folder)
    assert "q13" not in {qids[g.query] for g in groups_of(folder, encoder)}


@pytest.mark.parametrize(
    ("line", "message"),
    [("q1\tp77.0\t1\n", "judges passage 'p77.0', which is not in the coll"), ("q99\tp1.0\t1\n", "judges query 'q99'")],
)
def test_judgments_of_what_the_collection_lacks_are_refused(folder, encoder, line, message):
    with (folder / "qrels" / "train.tsv").open("a") as stream:
        stream.write(line)
    with pytest.raises(DataError, match=message):
        groups_of(folder, encoder)


def test_a_collection_without_judgments_to_train_on_is_refused(folder, encoder):
    (folder / "qrels" / "train.tsv").unlink()
    with pytest.raises(DataError, match=r"has no qrels/train\.tsv: what a model is trained on is kept apart"):
        groups_of(folder, encoder)


# the config for MS MARCO, in small: another backbone, this collection, twenty steps

SMALLER = {
    r'base = ".*"': 'base = "{base}"',
    r"compile = true": "compile = false",
    r"validation_groups = \d+": "validation_groups = 3",
    r"groups_per_step = \d+": "groups_per_step = 4",
    r'data = ".*"': 'data = "{data}"',
}


def test_the_config_for_ms_marco_runs_on_a_folder_of_the_same_layout(folder, backbone, tmp_path, capsys):
    for name in ("msmarco_gpu.toml", "msmarco_pairs.toml"):
        text = (Path(str(files("rerank_lab.training"))) / name).read_text()
        for found, instead in SMALLER.items():
            text = re.sub(found, instead.format(base=backbone, data=folder), text)
        (tmp_path / name).write_text(text)
    run = tmp_path / "runs" / "mine"
    assert main([str(tmp_path / "msmarco_gpu.toml"), "--run", str(run), "--steps", "20"]) == 0
    assert json.loads((run / "log.jsonl").read_text())["step"] == 20
    (pairs,) = run.parent.glob("pairs-*.jsonl")
    assert {json.loads(line)["source"] for line in pairs.read_text().splitlines()} == {"collection"}
    scores = CrossEncoder.from_pretrained(str(run / "export")).score("ferry", [Passage("0", "a ferry")])
    assert len(scores) == 1
