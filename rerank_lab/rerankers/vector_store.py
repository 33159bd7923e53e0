"""Token vectors and texts of a collection in a folder, read from the disk as they are needed.

    index.json          format, who made the vectors, bits, the name of the data's folder
    data-.../           arrays of numpy, mapped into memory: vectors or codes and residuals, where those of each
                        passage start, texts, pids, and which passages have a vector near each centroid

A build is written to a folder of its own and becomes the index when `index.json`, which names it, is replaced: a
reader sees the old index or the new one, whole, and a build that stops half-way is never seen. One build at a time.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rerank_lab.batching import progress_bar
from rerank_lab.core import DataError, InputError, Passage
from rerank_lab.rerankers.residual import BITS, ResidualCodec

__all__ = ["VectorStore", "ranges"]

FORMAT = 1
CHUNK = 256  # passages that are encoded at a time
STRIDE = 1 << 16  # vectors that are compressed at a time
ARRAYS = ("starts", "first", "texts", "text_starts", "pids", "pid_starts")  # of every index
COMPRESSED = ("codes", "residuals", "cells", "cell_starts")  # with a codec; without one, "vectors"


def ranges(starts: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every number from starts[i] up to starts[i + 1] for each chosen i, and which of the chosen it belongs to.

    >>> numbers, owner = ranges(np.array([0, 2, 5, 6]), np.array([2, 1]))
    >>> numbers.tolist(), owner.tolist()
    ([5, 2, 3, 4], [0, 1, 1, 1])
    """
    first, lengths = starts[chosen], starts[chosen + 1] - starts[chosen]
    owner = np.repeat(np.arange(len(chosen)), lengths)
    before = np.cumsum(lengths) - lengths
    return np.arange(len(owner)) + (first - before)[owner], owner


class VectorStore:
    """The vectors and passages of an index; `write` makes one, `open` reads it.

    Attributes:
        codec: how vectors are compressed; None for half precision.
        starts: where the vectors of each passage begin, shape (passages + 1,).
        first: the first place with the same text, shape (passages,).
        size: bytes on disk, texts included.
    """

    def __init__(self, codec: ResidualCodec | None, arrays: dict[str, np.ndarray], size: int):
        self.codec, self.size, self._arrays = codec, size, arrays
        self.starts, self.first = arrays["starts"], arrays["first"]

    def __len__(self) -> int:
        """How many passages there are."""
        return len(self.starts) - 1

    @property
    def bytes_per_vector(self) -> int:
        """What one vector takes."""
        return self.codec.bytes_per_vector if self.codec else 2 * self._arrays["vectors"].shape[1]

    def rows(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the vectors of passages, shape (T,), and whose they are, as indices of their `places`."""
        return ranges(self.starts, places)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Vectors at some rows, shape (T, d), float32."""
        if self.codec is None:
            return self._arrays["vectors"][rows].astype(np.float32)
        return self.codec.decompress(self.codes(rows), self._arrays["residuals"][rows]).numpy()

    def codes(self, rows: np.ndarray) -> np.ndarray:
        """Centroids of the vectors at some rows, shape (T,)."""
        return self._arrays["codes"][rows]

    def filled(self) -> np.ndarray:
        """Whether any vector is near a centroid, shape (C,)."""
        return np.diff(self._arrays["cell_starts"]) > 0

    def near(self, centroids: np.ndarray) -> np.ndarray:
        """Places of the passages with a vector near any of some centroids, ascending."""
        return np.unique(self._arrays["cells"][ranges(self._arrays["cell_starts"], np.unique(centroids))[0]])

    def passage(self, place: int) -> Passage:
        """The passage at a place of the collection, from 0."""
        return Passage(self._string("pid", place), self._string("text", place))

    def places(self, passages: Sequence[Passage]) -> np.ndarray:
        """Where passages stand in the collection, shape (n,).

        Raises:
            InputError: a passage that is not in the index, or has another text there.
        """
        for p in passages:
            if p.pid not in self._places:
                raise InputError(f"passage {p.pid!r} is not in the index: build it again with this passage")
            if self._string("text", self._places[p.pid]) != p.text:
                raise InputError(f"passage {p.pid!r} has another text in the index: build it again")
        return np.array([self._places[p.pid] for p in passages], dtype=np.int64)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {self._string("pid", i): i for i in range(len(self))}

    def _string(self, kind: str, place: int) -> str:
        start, end = self._arrays[f"{kind}_starts"][place : place + 2]
        return self._arrays[f"{kind}s"][start:end].tobytes().decode("utf-8", "surrogatepass")

    @classmethod
    def open(cls, folder: Path, made_by: str) -> VectorStore:
        """Open what `write` wrote.

        Args:
            made_by: the digest of the encoder that will read the queries.

        Raises:
            DataError: no index, or a damaged one.
            InputError: another encoder made the vectors.
        """
        problem: Exception | None = None
        for _ in range(5):  # an index that is replaced while its files are opened is gone: look again
            told = _told(folder)
            if told["made_by"] != made_by:
                raise InputError(
                    f"the index in {folder} was built by an encoder with the digest {told['made_by']}, this one has "
                    f"{made_by}: open it with the same checkpoint and max_length, or build it again"
                )
            data = folder / told["data"]
            try:
                names = (*ARRAYS, *(COMPRESSED if told["bits"] else ("vectors",)))
                arrays = {n: np.asarray(np.load(data / f"{n}.npy", mmap_mode="r", allow_pickle=False)) for n in names}
                codec = ResidualCodec.load(data / "codec.safetensors") if told["bits"] else None
                return cls(codec, arrays, sum(f.stat().st_size for f in (folder / "index.json", *data.iterdir())))
            except (DataError, ValueError, EOFError, OSError) as error:
                problem = error
        raise DataError(f"the index in {folder} is damaged ({problem}): build it again") from problem

    @classmethod
    def write(
        cls,
        folder: Path,
        passages: Sequence[Passage],
        encode: Callable[[list[str]], list[Tensor]],
        bits: int | None,
        made_by: str,
        progress: bool = False,
    ) -> None:
        """Encode passages and put them in place of the index that is there.

        Args:
            encode: gives unit vectors (tokens, d) for each of some texts.
            bits: 1, 2 or 4 a dimension beside the centroid's code; None keeps vectors in half precision.
            made_by: the digest of what encodes.

        Raises:
            DataError: no passages.
            InputError: other bits, the same pid twice, or a folder with something else in it.
        """
        if not passages:
            raise DataError("an index needs at least one passage, the collection has none")
        if bits not in (*BITS, None):
            raise InputError(f"bits is {bits}: give 1, 2, 4, or None for vectors in half precision")
        seen: set[str] = set()
        for p in passages:
            if p.pid in seen:
                raise InputError(f"pid {p.pid!r} occurs twice in the collection: pids must be unique")
            seen.add(p.pid)
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        made = Path(tempfile.mkdtemp(prefix="building-", dir=folder))
        try:
            _fill(made, passages, encode, bits, progress)
            _put_in_use(folder, made, {"format": FORMAT, "made_by": made_by, "bits": bits})
        finally:
            shutil.rmtree(made, ignore_errors=True)


def _told(folder: Path) -> dict:
    try:
        told = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if told["format"] != FORMAT:
            raise DataError(f"the index in {folder} has format {told['format']}, read is {FORMAT}: build it again")
        return {key: told[key] for key in ("made_by", "bits", "data")}
    except FileNotFoundError as error:
        raise DataError(f"{folder} holds no index: build one with MultiVectorIndex.build") from error
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{folder / 'index.json'} is damaged ({error}): build the index again") from error


def _clear(folder: Path) -> None:
    """Remove what killed builds left; refuse a folder that holds something else."""
    for entry in folder.iterdir():
        if entry.name.startswith("building-"):
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != "index.json" and not entry.name.startswith("data-"):
            raise InputError(f"{folder} holds {entry.name!r}: give a folder that is new, empty, or has only an index")


def _put_in_use(folder: Path, made: Path, told: dict) -> None:
    data = made.rename(folder / made.name.replace("building-", "data-"))
    pointer = data / "index.json"
    pointer.write_text(json.dumps(told | {"data": data.name}), encoding="utf-8")
    os.replace(pointer, folder / "index.json")  # from here on this is the index
    for entry in folder.glob("data-*"):
        if entry != data:
            shutil.rmtree(entry, ignore_errors=True)


def _fill(folder: Path, passages: Sequence[Passage], encode, bits: int | None, progress: bool) -> None:
    raw, lengths, dimensions = folder / "vectors.raw", [], 0
    with raw.open("wb") as stream:
        for start in progress_bar(range(0, len(passages), CHUNK), "encoding", progress):
            for vectors in encode([p.text for p in passages[start : start + CHUNK]]):
                stream.write(vectors.half().numpy().tobytes())
                lengths.append(len(vectors))
                dimensions = vectors.shape[1]
    starts = np.cumsum([0, *lengths])
    np.save(folder / "starts.npy", starts)
    first: dict[str, int] = {}
    np.save(folder / "first.npy", np.array([first.setdefault(p.text, i) for i, p in enumerate(passages)]))
    for kind in ("pid", "text"):
        strings = [getattr(p, kind).encode("utf-8", "surrogatepass") for p in passages]
        np.save(folder / f"{kind}_starts.npy", np.cumsum([0, *map(len, strings)]))
        np.save(folder / f"{kind}s.npy", np.frombuffer(b"".join(strings), dtype=np.uint8))
    vectors = np.memmap(raw, np.float16, "r", shape=(int(starts[-1]), dimensions))
    if bits is None:
        np.save(folder / "vectors.npy", vectors)
    else:
        _compress(vectors, starts, folder, bits)
    raw.unlink()


def _compress(vectors: np.ndarray, starts: np.ndarray, folder: Path, bits: int) -> None:
    codec = ResidualCodec.train(vectors, bits)
    codec.save(folder / "codec.safetensors")
    strides = (vectors[i : i + STRIDE].astype(np.float32) for i in range(0, len(vectors), STRIDE))
    codes, residuals = zip(*(codec.compress(torch.from_numpy(part)) for part in strides), strict=True)
    codes = np.concatenate(codes)
    np.save(folder / "codes.npy", codes)
    np.save(folder / "residuals.npy", np.concatenate(residuals))
    # which passages have a vector near each centroid, each passage once, ascending
    owner = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    cell, place = np.divmod(np.unique(codes.astype(np.int64) * len(starts) + owner), len(starts))
    np.save(folder / "cells.npy", place.astype(np.int32))
    np.save(folder / "cell_starts.npy", np.searchsorted(cell, np.arange(len(codec.centroids) + 1)))
