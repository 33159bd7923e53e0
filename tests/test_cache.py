"""The score cache: kept, told apart, shared by processes, and whole after a kill."""

import gc
import signal
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from rerank_lab.cache import ScoreCache, cached_scores, default_cache_path
from rerank_lab.core import InputError, Passage, Repairs, Usage

KEY = ScoreCache.key("model@1", "query", "text")


@pytest.fixture
def cache(tmp_path):
    made = ScoreCache(tmp_path / "deep" / "scores.sqlite")
    yield made
    made.close()


class Counting:
    """Scores a text by its length and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts, keep):
        self.asked.append(list(texts))
        return [float(len(t)) for t in texts]


def passages(*texts):
    return [Passage(str(i), t) for i, t in enumerate(texts)]


def test_scores_come_back_exactly_from_another_connection(cache):
    scores = {ScoreCache.key("m", "q", str(i)): value for i, value in enumerate([0.1, -1e-300, 3.0, 1e300, -0.0])}
    cache.put(scores)
    other = ScoreCache(cache.path)
    assert other.get(list(scores)) == scores
    other.close()


def test_unknown_keys_are_left_out(cache):
    cache.put({KEY: 0.5})
    assert cache.get([KEY, ScoreCache.key("model@2", "query", "text")]) == {KEY: 0.5}
    assert cache.get([]) == {}


def test_thousands_of_keys_are_found_at_once(cache):
    scores = {ScoreCache.key("m", "q", str(i)): float(i) for i in range(2500)}
    cache.put(scores)
    assert cache.get(list(scores)) == scores


@pytest.mark.parametrize(
    "other",
    [
        ("model@2", "query", "text"),
        ("model@1", "Query", "text"),
        ("model@1", "query", "text "),
        ("model@1", "querytext", ""),
        ("model@1query", "", "text"),
        ("model@1", "quer", "ytext"),
        ("query", "model@1", "text"),
    ],
)
def test_keys_of_other_models_queries_and_texts_differ(other):
    assert ScoreCache.key(*other) != KEY


def test_a_score_written_twice_is_the_last_one(cache):
    cache.put({KEY: 0.5})
    cache.put({KEY: 0.25})
    assert cache.get([KEY]) == {KEY: 0.25}


def test_only_what_is_missing_is_computed_and_each_text_once(cache):
    compute, usage = Counting(), Usage()
    assert cached_scores(cache, "m", "q", passages("a", "bb", "a"), compute, usage) == [1.0, 2.0, 1.0]
    assert cached_scores(cache, "m", "q", passages("bb", "ccc", "a"), compute, usage) == [2.0, 3.0, 1.0]
    assert compute.asked == [["a", "bb"], ["ccc"]]
    assert (usage.pairs, usage.cached) == (6, 2)
    assert cached_scores(cache, "m", "another q", passages("a"), compute, Usage()) == [1.0]
    assert cached_scores(cache, "another m", "q", passages("a"), compute, Usage()) == [1.0]
    assert compute.asked[2:] == [["a"], ["a"]]


def test_nothing_is_computed_for_nothing(cache):
    compute = Counting()
    assert cached_scores(cache, "m", "q", [], compute, Usage()) == []
    assert compute.asked == []


def test_without_a_cache_everything_is_computed_each_time():
    compute, usage = Counting(), Usage()
    for _ in range(2):
        assert cached_scores(None, "m", "q", passages("a", "bb"), compute, usage) == [1.0, 2.0]
    assert compute.asked == [["a", "bb"]] * 2
    assert (usage.pairs, usage.cached) == (4, 0)
    assert not default_cache_path().exists()


def test_the_place_is_the_variables_or_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("RERANK_LAB_CACHE", str(tmp_path / "mine.sqlite"))
    assert default_cache_path() == tmp_path / "mine.sqlite"
    monkeypatch.delenv("RERANK_LAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_path() == tmp_path / "rerank-lab" / "scores.sqlite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_path() == Path.home() / ".cache" / "rerank-lab" / "scores.sqlite"


def test_what_is_kept_on_the_way_is_not_written_twice_and_nan_never(cache):
    written = []
    put = cache.put
    cache.put = lambda scores: (written.append(len(scores)), put(scores))

    def compute(texts, keep):
        keep([1], [2.0])
        keep([3], [float("nan")])
        return [1.0, 2.0, 3.0, float("nan")]

    found = cached_scores(cache, "m", "q", passages("a", "b", "c", "d"), compute, Usage())
    assert found[:3] == [1.0, 2.0, 3.0]
    assert written == [1, 0, 2]
    assert sorted(cache.get([ScoreCache.key("m", "q", text) for text in "abcd"]).values()) == [1.0, 2.0, 3.0]


def test_what_a_ranking_took_is_kept_whole(cache):
    usage = Usage(pairs=3, calls=2, seconds=0.25, repairs=Repairs(missing=1))
    assert cache.usage(KEY) is None
    cache.keep_usage(KEY, Usage())
    cache.keep_usage(KEY, usage)
    other = ScoreCache(cache.path)
    assert other.usage(KEY) == usage
    other.close()


def test_a_failure_while_writing_keeps_nothing_of_the_batch(cache):
    with pytest.raises(sqlite3.Error):
        cache.put({KEY: 1.0, ScoreCache.key("m", "q", "x"): object()})
    assert cache.get([KEY]) == {}
    cache.put({KEY: 2.0})
    assert cache.get([KEY]) == {KEY: 2.0}


WRITER = """
import sys
from rerank_lab.cache import ScoreCache
cache, name = ScoreCache(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for i in range(200):
    cache.put({ScoreCache.key(name, "q", str(i)): float(i), ScoreCache.key("shared", "q", str(i)): float(i)})
cache.close()
"""


def python(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_two_processes_can_write_at_once(tmp_path):
    path = tmp_path / "scores.sqlite"
    with python(WRITER, path, "one") as one, python(WRITER, path, "two") as two:
        for process in (one, two):
            assert process.stdout.readline() == "ready\n"
        for process in (one, two):
            process.stdin.write("go\n")
            process.stdin.flush()
        assert (one.wait(60), two.wait(60)) == (0, 0)
    cache = ScoreCache(path)
    keys = {ScoreCache.key(name, "q", str(i)): float(i) for name in ("one", "two", "shared") for i in range(200)}
    assert cache.get(list(keys)) == keys
    cache.close()


KILLED = """
import sys, time
from rerank_lab.cache import ScoreCache, cached_scores
from rerank_lab.core import Passage, Usage

def compute(texts, keep):
    if "q3" in texts[0]:
        keep([2, 0], [float(len(texts[2])), float(len(texts[0]))])
        print("in the middle", flush=True)
        time.sleep(600)
    return [float(len(t)) for t in texts]

cache = ScoreCache(sys.argv[1])
for q in range(6):
    texts = [f"q{q} {'x' * i}" for i in range(4)]
    cached_scores(cache, "m", f"q{q}", [Passage(t, t) for t in texts], compute, Usage())
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill -9")
def test_after_a_kill_the_next_run_computes_only_the_rest_even_of_a_query(tmp_path):
    path = tmp_path / "scores.sqlite"
    with python(KILLED, path) as process:
        assert process.stdout.readline() == "in the middle\n"
        process.kill()
        assert process.wait(60) == -signal.SIGKILL

    cache, compute, usage = ScoreCache(path), Counting(), Usage()
    for q in range(6):
        texts = [f"q{q} {'x' * i}" for i in range(4)]
        found = cached_scores(cache, "m", f"q{q}", passages(*texts), compute, usage)
        assert found == [float(len(t)) for t in texts]
    cache.close()
    assert [(asked[0][:2], len(asked)) for asked in compute.asked] == [("q3", 2), ("q4", 4), ("q5", 4)]
    assert (usage.pairs, usage.cached) == (24, 14)


def test_a_file_that_is_no_database_is_refused_with_the_mend(tmp_path):
    path = tmp_path / "scores.sqlite"
    path.write_text("these are my holiday notes, all of them\n" * 100)
    with pytest.raises(InputError, match=r"score cache .*scores\.sqlite: .*not a database.*--no-cache"):
        ScoreCache(path)
    assert path.read_text().startswith("these are my holiday notes")


def test_a_database_with_damaged_pages_is_refused_with_the_mend(tmp_path):
    path = tmp_path / "scores.sqlite"
    cache = ScoreCache(path)
    keys = [ScoreCache.key("m", "q", str(i)) for i in range(5000)]
    cache.put(dict.fromkeys(keys, 0.5))
    cache.close()
    raw = bytearray(path.read_bytes())
    raw[4096:] = b"\x5a" * (len(raw) - 4096)
    path.write_bytes(raw)

    def use():
        damaged = ScoreCache(path)
        try:
            return cached_scores(damaged, "m", "q", passages("0"), Counting(), Usage())
        finally:
            damaged.close()

    with pytest.raises(InputError, match=r"score cache .*scores\.sqlite: .*--no-cache"):
        use()


def test_a_place_that_cannot_be_written_is_refused_with_the_mend(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"score cache .*--no-cache"):
        ScoreCache(tmp_path / "file" / "scores.sqlite")


def test_opening_failing_and_closing_leave_no_open_connection(tmp_path):
    (tmp_path / "bad.sqlite").write_text("no database" * 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        cache = ScoreCache(tmp_path / "good.sqlite")
        cache.put({KEY: 1.0})
        cache.close()
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            cache.get([KEY])
        with pytest.raises(InputError):
            ScoreCache(tmp_path / "bad.sqlite")
        del cache
        gc.collect()
    # the last connection that closes a database in WAL mode takes the log away
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.sqlite", "good.sqlite"]
