"""Scores that were computed once are kept in SQLite, so that a stopped run goes on where it was.

A key is the digest of model + revision + template, query and passage text; a value is one float. SQLite in WAL
mode is safe for several processes and for one that is killed (https://www.sqlite.org/wal.html).
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rerank_lab.core import InputError, Passage, Repairs, Usage

__all__ = ["Keep", "ScoreCache", "cached_scores", "default_cache_path"]

Keep = Callable[[Sequence[int], Sequence[float]], None]  # takes the places of texts in a list, and their scores


def default_cache_path() -> Path:
    """`$RERANK_LAB_CACHE`, or `rerank-lab/scores.sqlite` in the user's cache folder."""
    if path := os.environ.get("RERANK_LAB_CACHE"):
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "rerank-lab" / "scores.sqlite"


class ScoreCache:
    """A persistent map from (model key, query, passage) to a score.

    Args:
        path: the SQLite file, made when missing.

    Raises:
        InputError: the file is not a SQLite database or cannot be written.
    """

    def __init__(self, path: str | Path | None = None):
        self.path = Path(path) if path is not None else default_cache_path()
        with self._refusing_damage():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite itself lets one thread in at a time; the server makes a cache in one thread and uses it in another
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score REAL) WITHOUT ROWID")
            self._db.execute("CREATE TABLE IF NOT EXISTS usages (key BLOB PRIMARY KEY, usage TEXT) WITHOUT ROWID")

    @contextmanager
    def _refusing_damage(self):
        try:
            yield
        except (sqlite3.ProgrammingError, sqlite3.IntegrityError):  # a fault of the caller's, not of the file
            raise
        except (sqlite3.DatabaseError, OSError) as error:
            raise InputError(f"score cache {self.path}: {error}; delete the file, or pass --no-cache") from error

    @staticmethod
    def key(model_key: str, query: str, text: str) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        for part in (model_key, query, text):
            raw = part.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "little") + raw)  # the length keeps ("ab", "c") and ("a", "bc") apart
        return digest.digest()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        """The scores that are known."""
        found: dict[bytes, float] = {}
        with self._refusing_damage():
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                found.update(self._db.execute(f"SELECT key, score FROM scores WHERE key IN ({marks})", part))
        return found

    def put(self, scores: dict[bytes, float]) -> None:
        """Keep scores; one transaction."""
        with self._refusing_damage(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", scores.items())

    def usage(self, key: bytes) -> Usage | None:
        """What a ranking took when it was computed; None where that was never kept."""
        with self._refusing_damage():
            found = self._db.execute("SELECT usage FROM usages WHERE key = ?", (key,)).fetchone()
        if found is None:
            return None
        fields = json.loads(found[0])
        return Usage(**fields | {"repairs": Repairs(**fields["repairs"])})

    def keep_usage(self, key: bytes, usage: Usage) -> None:
        """Keep what a ranking took, for the runs that will find its scores here."""
        with self._refusing_damage():
            self._db.execute("INSERT OR REPLACE INTO usages VALUES (?, ?)", (key, json.dumps(asdict(usage))))

    def close(self) -> None:
        self._db.close()


def cached_scores(
    cache: ScoreCache | None,
    model_key: str,
    query: str,
    passages: Sequence[Passage],
    compute: Callable[[list[str], Keep], list[float]],
    usage: Usage,
) -> list[float]:
    """Scores of passages: from the cache where known, else computed and kept. A text that occurs twice is
    computed once.

    Args:
        compute: gives one score for each text of a list; what it hands to its second argument on the way, batch by
            batch, is kept at once and survives a kill.
        usage: `pairs` and `cached` are added to.
    """
    usage.pairs += len(passages)
    keys = [ScoreCache.key(model_key, query, p.text) for p in passages]
    known = cache.get(list(dict.fromkeys(keys))) if cache else {}
    usage.cached += sum(key in known for key in keys)
    missing = {key: p.text for key, p in zip(keys, passages, strict=True) if key not in known}
    if missing:
        places = list(missing)
        left = set(range(len(places)))

        def keep(computed: Sequence[int], scores: Sequence[float]) -> None:
            left.difference_update(computed)
            if cache and computed:  # nan is refused later, never kept
                cache.put({places[i]: s for i, s in zip(computed, scores, strict=True) if s == s})

        scores = compute(list(missing.values()), keep)
        keep(rest := sorted(left), [scores[i] for i in rest])
        known |= dict(zip(places, scores, strict=True))
    return [known[key] for key in keys]
