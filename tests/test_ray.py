"""A run scored by actors on a local Ray cluster: the same scores as in one process, whatever is killed meanwhile."""

import ipaddress
import json
import os
import signal
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import QUERY, TEXTS, WORDS
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_lab import CrossEncoder, Passage, Usage, candidates_from, read_run, write_run
from rerank_lab.core import DataError, InputError
from rerank_lab.integrations import ray as lab_ray
from rerank_lab.integrations.ray import read_scores, score_run
from rerank_lab.integrations.ray_inputs import passage_table, text_of, write_requests

pytestmark = pytest.mark.ray

PASSAGES = {f"p{i}": Passage(f"p{i}", text) for i, text in enumerate(TEXTS)}
QUERIES = {f"q{i}": f"{QUERY} {word}" for i, word in enumerate(WORDS[:8])}
RUN = {q: {p: 10.0 - ((j + i) % len(TEXTS)) for j, p in enumerate(PASSAGES)} for i, q in enumerate(QUERIES)}


def rows_of(folder):
    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def in_one_process(reranker):
    """The same run, without Ray."""
    rankings = {}
    for qid, found in RUN.items():
        best = sorted(found.items(), key=lambda pair: -pair[1])
        candidates = candidates_from([PASSAGES[p] for p, _ in best], [s for _, s in best])
        rankings[qid] = reranker.rerank(QUERIES[qid], candidates)
    return rankings


# What goes in


@pytest.fixture
def files(tmp_path):
    """The same queries, run and passages as files: JSONL and parquet, the run in TREC's format too."""
    lines = [{"qid": q, "pid": p, "score": s} for q, found in RUN.items() for p, s in found.items()]
    texts = [{"_id": p, "title": "", "text": passage.text} for p, passage in PASSAGES.items()]
    asked = [{"_id": q, "text": text} for q, text in QUERIES.items()]
    for name, rows in (("run", lines), ("passages", texts), ("queries", asked)):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_run(RUN, tmp_path / "run.trec", "first")
    return tmp_path


@pytest.mark.parametrize(("queries", "run"), [("queries.jsonl", "run.trec"), ("queries.parquet", "run.parquet")])
def test_a_file_gives_the_requests_that_a_mapping_gives(files, queries, run):
    digest, count = write_requests(QUERIES, RUN, files / "a", 3)
    assert write_requests(files / queries, files / run, files / "b", 3) == (digest, count)
    assert count == len(QUERIES)
    rows = rows_of(files / "a")
    assert rows == rows_of(files / "b")
    assert [row["qid"] for row in rows] == list(QUERIES)
    assert rows[1] == {"qid": "q1", "query": QUERIES["q1"], "pid": ["p6", "p0", "p1"], "score": [10.0, 9.0, 8.0]}


def test_another_depth_query_or_run_has_another_digest(tmp_path):
    asked = [
        (QUERIES, RUN, None),
        (QUERIES, RUN, 3),
        ({**QUERIES, "q0": "a bridge"}, RUN, None),
        (QUERIES, {**RUN, "q0": {"p1": 1.0}}, None),
    ]
    digests = {write_requests(q, r, tmp_path / str(i), d)[0] for i, (q, r, d) in enumerate(asked)}
    assert len(digests) == len(asked)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_passages_from_a_file_are_those_of_the_mapping(files, suffix):
    table = passage_table(files / f"passages.{suffix}")
    assert table.column("pid").to_pylist() == sorted(PASSAGES)
    assert {pid: text_of(table, pid) for pid in PASSAGES} == {pid: p.text for pid, p in PASSAGES.items()}


def test_a_title_goes_before_the_text(tmp_path):
    rows = [{"_id": "b", "title": "Ferry", "text": "At nine."}, {"_id": "a", "title": None, "text": "Closed."}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "passages.parquet")
    table = passage_table(tmp_path / "passages.parquet")
    assert [text_of(table, pid) for pid in ("a", "b")] == ["Closed.", "Ferry At nine."]


@settings(max_examples=50)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.text(max_size=5), min_size=1))
def test_every_passage_is_found_whatever_its_pid(texts):
    texts = {pid: text.encode("utf-8", "ignore").decode() for pid, text in texts.items()}
    table = passage_table({pid: Passage(pid, text) for pid, text in texts.items()})
    assert {pid: text_of(table, pid) for pid in texts} == texts
    with pytest.raises(DataError, match="not among the passages"):
        text_of(table, max(texts) + "!")


@pytest.mark.parametrize(
    ("queries", "run", "message"),
    [
        (QUERIES, {}, "the run is empty"),
        ({}, RUN, "query 'q0', which is not among the queries"),
        ({**QUERIES, "q0": " "}, RUN, "the query is ' '"),
        ({**QUERIES, "q0": "half \ud83d"}, RUN, "query 'q0' holds half of a surrogate pair"),
    ],
)
def test_requests_that_cannot_be_are_refused(tmp_path, queries, run, message):
    with pytest.raises((DataError, InputError), match=message):
        write_requests(queries, run, tmp_path / "requests", None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.trec", "q0 Q0 p1 1 3 x\nq1 Q0 p1 1 3 x\nq0 Q0 p2 2 1 x\n", "lines of query 'q0' are not together"),
        ("run.trec", "q0 Q0 p1 1 three x\n", "run.trec:1: score 'three' is not a number"),
        ("run.jsonl", '{"qid": "q0", "pid": "p1"}\n', "has no column 'score'; it has qid, pid"),
        ("run.jsonl", "{not json}\n", "cannot be read as json"),
        ("run.parquet", "no parquet", "cannot be read as parquet"),
    ],
)
def test_a_malformed_run_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        write_requests(QUERIES, tmp_path / name, tmp_path / "requests", None)


def test_a_pid_that_occurs_twice_and_files_that_are_missing_are_refused(tmp_path):
    rows = [{"pid": "b", "text": "x"}, {"pid": "a", "text": "y"}, {"pid": "b", "text": "z"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "passages.parquet")
    with pytest.raises(DataError, match="pid 'b' occurs twice"):
        passage_table(tmp_path / "passages.parquet")
    with pytest.raises(DataError, match=r"nowhere\.parquet cannot be read as parquet"):
        passage_table(tmp_path / "nowhere.parquet")
    with pytest.raises(DataError, match="a passage holds half of a surrogate pair"):
        passage_table({"a": Passage("a", "half \ud83d")})
    with pytest.raises(DataError, match="holds no scores"):
        read_scores(tmp_path)


# On the cluster


@pytest.fixture(scope="module")
def cluster():
    """A cluster as `score_run` starts it for two actors; gives its address."""
    import ray

    lab_ray._connect(2, "cpu")
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def test_a_killed_actor_loses_nothing_and_the_scores_are_those_of_one_process(cluster, tiny_bert, tmp_path):
    killed = tmp_path / "killed"

    def deadly(device):
        """A cross-encoder whose process dies at its third forward pass, once."""
        from rerank_lab import CrossEncoder

        model = CrossEncoder.from_pretrained(tiny_bert, device=device)
        calls, forward = [], model.forward

        def forward_or_die(rows):
            calls.append(len(rows))
            if len(calls) == 3 and not killed.exists():
                killed.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return forward(rows)

        model.forward = forward_or_die
        return model

    usage = score_run(deadly, QUERIES, RUN, PASSAGES, tmp_path / "scored", queries_a_part=2)
    assert int(killed.read_text()) != os.getpid()
    expected = in_one_process(CrossEncoder.from_pretrained(tiny_bert))
    scores = read_scores(tmp_path / "scored")
    assert list(scores) == sorted(QUERIES)
    for qid, ranking in expected.items():
        assert list(scores[qid]) == [c.pid for c in ranking]
        assert scores[qid] == pytest.approx(ranking.to_run(), abs=1e-5)
    ours, theirs = asdict(usage), asdict(sum((r.usage for r in expected.values()), Usage()))
    assert ours.pop("seconds") > 0 and theirs.pop("seconds") > 0
    assert ours == theirs
    assert [pq.read_table(part).num_rows for part in (tmp_path / "scored" / "scores").iterdir()] == [2, 2, 2, 2]

    write_run(scores, tmp_path / "run.trec", "cross-encoder")
    assert read_run(tmp_path / "run.trec") == scores


DRIVER = """
import os, sys, time
from pathlib import Path

import ray

from rerank_lab.core import Passage, PointwiseReranker
from rerank_lab.integrations.ray import score_run

folder = Path(sys.argv[1])


def held(device):
    class Held(PointwiseReranker):
        name = "held"

        def _score(self, query, passages, usage):
            if (folder / "let go").exists() or query in ("first", "second"):
                with open(folder / "scored", "a") as stream:
                    stream.write(query + "\\n")
                usage.pairs += len(passages)
                return [float(len(p.text)) for p in passages]
            time.sleep(600)

    return Held()


queries = {q: q for q in ("first", "second", "third", "fourth", "fifth", "sixth")}
run = {q: {"a": 2.0, "b": 1.0} for q in queries}
passages = {"a": Passage("a", "short"), "b": Passage("b", "rather long")}
if __name__ == "__main__":
    ray.init(address=sys.argv[2], log_to_driver=False)
    print(score_run(held, queries, run, passages, folder / "out", queries_a_part=1))
"""


def test_a_killed_driver_is_taken_up_where_it_stopped(cluster, tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    (tmp_path / "scored").touch()
    command = [sys.executable, str(script), str(tmp_path), cluster]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
        finished = tmp_path / "out" / "finished"
        while not finished.is_dir() or len(committed(finished)) < 2:
            assert driver.poll() is None, driver.stdout.read()
            time.sleep(0.05)
        os.kill(driver.pid, signal.SIGKILL)
    before = {path: path.read_bytes() for path in (tmp_path / "out" / "scores").iterdir()}
    assert len(before) == 2

    (tmp_path / "let go").touch()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage(pairs=12,"), done.stdout
    names = ["first", "second", "third", "fourth", "fifth", "sixth"]
    assert sorted((tmp_path / "scored").read_text().split()) == sorted(names)
    assert read_scores(tmp_path / "out") == {qid: {"b": 11.0, "a": 5.0} for qid in sorted(names)}
    assert {path: path.read_bytes() for path in before} == before


def committed(finished):
    return [path for path in finished.iterdir() if not path.name.endswith(".pending.parquet")]


def test_what_is_finished_is_not_scored_again_and_a_folder_keeps_to_one_run(cluster, tmp_path):
    usage = score_run("identity", QUERIES, RUN, PASSAGES, tmp_path, actors=1)
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "scores").iterdir()}
    assert score_run("identity", QUERIES, RUN, PASSAGES, tmp_path, actors=1) == usage
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "scores").iterdir()} == parts
    assert read_scores(tmp_path) == RUN
    with pytest.raises(InputError, match=r"something else \(reranker was 'identity' and is 'cross-encoder'\)"):
        score_run("cross-encoder", QUERIES, RUN, PASSAGES, tmp_path)
    with pytest.raises(InputError, match=r"something else \(requests was"):
        score_run("identity", QUERIES, RUN, PASSAGES, tmp_path, depth=2)


def test_what_an_actor_refuses_comes_back_as_the_labs_own_error(cluster, tmp_path):
    with pytest.raises(DataError, match="the run lists passage 'p9', which is not among the passages"):
        score_run("identity", QUERIES, {"q0": {"p9": 1.0}}, PASSAGES, tmp_path, actors=1)


def test_more_actors_than_the_cluster_has_cpus_are_refused_at_once(cluster, tmp_path):
    with pytest.raises(InputError, match=r"9 actors need 11 CPUs .* the cluster has 4"):
        score_run("identity", QUERIES, RUN, PASSAGES, tmp_path / "a", actors=9)
    with pytest.raises(InputError, match="2 GPUs, the cluster has 4 and 0"):
        score_run("identity", QUERIES, RUN, PASSAGES, tmp_path / "b", device="cuda")
    with pytest.raises(InputError, match="actors is 0"):
        score_run("identity", QUERIES, RUN, PASSAGES, tmp_path / "c", actors=0)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's table of sockets")
def test_nothing_of_the_cluster_listens_beyond_loopback(cluster):
    from ray._common.usage.usage_lib import usage_stats_enabled

    assert not usage_stats_enabled()
    listening = [address for address, inode in listeners() if inode in sockets_of_family(os.getpid())]
    assert len(listening) > 3
    assert [address for address in listening if not address.is_loopback] == []


def listeners():
    """Addresses that something listens on, with the socket's inode."""
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            words = bytes.fromhex(fields[1].split(":")[0])
            address = ipaddress.ip_address(
                struct.pack(f">{len(words) // 4}I", *struct.unpack(f"<{len(words) // 4}I", words))
            )
            if fields[3] == "0A":
                yield getattr(address, "ipv4_mapped", None) or address, fields[9]


def sockets_of_family(pid):
    """Inodes of the sockets that a process and its descendants hold."""
    family, parents = {str(pid)}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        parents[stat.parent.name] = stat.read_text().rsplit(")", 1)[1].split()[1]
    while grown := {child for child, parent in parents.items() if parent in family} - family:
        family |= grown
    links = []
    for member in family:
        with suppress(FileNotFoundError):  # it ended meanwhile
            for link in Path(f"/proc/{member}/fd").iterdir():
                with suppress(FileNotFoundError):  # it closed this one
                    links.append(os.readlink(link))
    return {link[8:-1] for link in links if link.startswith("socket:[")}
