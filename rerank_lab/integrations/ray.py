"""Ray Data: a run of any size, scored by the lab's rerankers as actors on many processes or machines.

    read requests  ->  leave out what is finished  ->  parts of 100 queries  ->  actors with the model  ->  parquet

The engine is Ray Data (https://docs.ray.io/en/latest/data/data.html): it streams the parts to the actors no faster than
they are scored, starts an actor that died anew, gives its part to it again, and keeps a checkpoint. What that means
here, exactly: a part's file and the list of its queries are written in two phases, so that a query is either in
`scores/` once and listed in `finished/`, or in neither. A part is lost only with the whole driver, and then scored
again by the next call, which takes up what is left and removes half-written files.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rerank_lab.core import DataError, InputError, Passage, Repairs, Reranker, RerankLabError, Usage, candidates_from
from rerank_lab.integrations.ray_inputs import passage_table, prepare, text_of

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_scores", "score_run"]

OTHERS = 2  # CPUs that Ray's own work takes beside the actors: reading and writing, and the checkpoint's filter


def score_run(
    reranker: str | Callable[[str], Reranker],
    queries: Mapping[str, str] | str | Path,
    run: Mapping[str, Mapping[str, float]] | str | Path,
    passages: Mapping[str, Passage] | str | Path,
    folder: str | Path,
    *,
    depth: int | None = None,
    actors: int = 2,
    device: str = "cpu",
    dtype: str = "auto",
    queries_a_part: int = 100,
    progress: bool = False,
) -> Usage:
    """Rerank every query of a run; the same call again goes on where it was stopped.

    It runs on the Ray cluster that this process is connected to, else on the one that RAY_ADDRESS names, else on one
    that it starts on this machine, bound to loopback and without usage statistics.

    Args:
        reranker: a name as `catalogue.make` takes it, or a function that makes a reranker from a device, called once
            in each actor. A call that goes on has to name the same one.
        queries: text by qid, or a file: parquet or JSONL with qid (or _id) and text.
        run: the first stage's scores by qid and pid, or a file: TREC, or parquet or JSONL with qid, pid and score.
        passages: by pid, or a file: parquet or JSONL with pid (or _id), text and perhaps title. Every machine keeps
            one copy in its object store.
        folder: where everything is kept; all machines must see it under this path.
        depth: candidates to rerank for each query; None for all.
        actors: processes that hold a model, each on one CPU or, with `device="cuda"`, one GPU.
        device: cpu or cuda.
        dtype: as in `checkpoints.load_model`, for a reranker by name.
        queries_a_part: queries in a part, which is what an actor is given and a file holds.
        progress: show Ray's own.

    Returns:
        What all scores in the folder cost, summed over actors and calls; `seconds` are the actors' own.

    Raises:
        InputError: the cluster is too small for the actors, or the folder holds scores of something else.
        DataError: a file cannot be read, or the run names a query or passage that is missing.
    """
    if actors < 1 or queries_a_part < 1:
        raise InputError(f"actors is {actors} and queries_a_part is {queries_a_part}: give at least 1 of each")
    folder = Path(folder).resolve()
    inputs = [Path(i).resolve() if isinstance(i, str | Path) else i for i in (queries, run, passages)]
    name = reranker if isinstance(reranker, str) else getattr(reranker, "__name__", type(reranker).__name__)
    table = passage_table(inputs[2])
    prepare(folder, inputs[0], inputs[1], depth, {"reranker": name, "dtype": dtype, "passages": _size(table)})
    _connect(actors, device)

    import ray
    from ray.data.checkpoint import CheckpointConfig

    make = partial(_make, reranker, dtype) if isinstance(reranker, str) else reranker
    shared = ray.put(table)
    with _quietly(progress), _our_own_errors():
        data = ray.data.read_parquet(str(folder / "requests"))
        data.context.enable_progress_bars = progress
        data.context.raise_original_map_exception = True
        data.context.checkpoint_config = CheckpointConfig(
            "qid", str(folder / "finished"), delete_checkpoint_on_success=False
        )
        data.repartition(target_num_rows_per_block=queries_a_part, strict=True).map_batches(
            _Scorer,
            fn_constructor_args=(make, device, shared),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=1,
            num_gpus=int(device.startswith("cuda")),
        ).write_parquet(str(folder / "scores"))
    return _usage(folder)


class _Scorer:
    """What an actor does: it makes the reranker once, then turns requests into scores.

    Args:
        make: gives the reranker for a device.
        device: cpu or cuda.
        passages: Ray's reference to the table of passages; on one machine all actors read the same memory.
    """

    def __init__(self, make: Callable[[str], Reranker], device: str, passages):
        import ray

        self.reranker, self.passages = make(device), ray.get(passages)

    def __call__(self, requests: pa.Table) -> pa.Table:
        import pyarrow as pa

        return pa.Table.from_pylist([self._scored(row) for row in requests.to_pylist()])

    def _scored(self, row: dict) -> dict:
        passages = [Passage(pid, text_of(self.passages, pid)) for pid in row["pid"]]
        ranking = self.reranker.rerank(row["query"], candidates_from(passages, row["score"]))
        return {
            "qid": row["qid"],
            "pid": [c.pid for c in ranking],
            "score": [c.score for c in ranking],
            "first_rank": [c.first_rank for c in ranking],
            "usage": asdict(ranking.usage),
        }


def read_scores(path: str | Path) -> dict[str, dict[str, float]]:
    """The scores that `score_run` wrote, as a run that `write_run` takes: by qid and pid, best first.

    Args:
        path: the folder of a finished call, or one of the files in its `scores/`, where all would be too much.

    Raises:
        DataError: there are no scores, or a query has two rows.
    """
    scores: dict[str, dict[str, float]] = {}
    for row in _written(Path(path), "qid", "pid", "score"):
        if row["qid"] in scores:
            raise DataError(f"{path} has query {row['qid']!r} twice: call score_run again to mend it")
        scores[row["qid"]] = dict(zip(row["pid"], row["score"], strict=True))
    return dict(sorted(scores.items()))


def _usage(folder: Path) -> Usage:
    total = Usage()
    for row in _written(folder, "usage"):
        total += Usage(**{**row["usage"], "repairs": Repairs(**row["usage"]["repairs"])})
    return total


def _written(path: Path, *columns: str) -> list[dict]:
    import pyarrow.parquet as pq

    files = sorted((path / "scores").glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise DataError(f"{path} holds no scores: give the folder of a score_run")
    return [row for file in files for row in pq.read_table(file, columns=list(columns)).to_pylist()]


def _size(table: pa.Table) -> str:
    import pyarrow.compute as pc

    return f"{len(table)} of {pc.sum(pc.binary_length(table['text'])).as_py()} bytes"


def _make(name: str, dtype: str, device: str) -> Reranker:
    from rerank_lab.catalogue import make
    from rerank_lab.notebook import quiet

    quiet()
    return make(name, dtype=dtype, device=device)


def _connect(actors: int, device: str) -> None:
    """Connect to a cluster or start one, and refuse one on which the actors would wait for ever."""
    cluster = os.environ.get("RAY_ADDRESS")
    if not cluster:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on Linux too: every port on 127.0.0.1
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("RAY_worker_niceness", "0")  # scoring is what the machine is asked for
    import ray
    from ray._private import ray_constants

    cpus = actors + OTHERS
    if not ray.is_initialized():
        local = {}
        if not cluster:
            ray_constants.ENABLE_RAY_CLUSTER = False  # where ray was imported before, it has read the variable
            local = {"address": "local", "num_cpus": cpus, "include_dashboard": False, "log_to_driver": False}
        ray.init(logging_level=logging.ERROR, **local)
    there, gpus = ray.cluster_resources(), actors * device.startswith("cuda")
    if there.get("CPU", 0) < cpus or there.get("GPU", 0) < gpus:
        raise InputError(
            f"{actors} actors need {cpus} CPUs ({OTHERS} for Ray's own work) and {gpus} GPUs, the cluster "
            f"has {there.get('CPU', 0):.0f} and {there.get('GPU', 0):.0f}: give fewer actors or connect to a larger one"
        )


@contextmanager
def _quietly(progress: bool):
    """Keep back what Ray Data says of itself: its progress, and warnings that it gives about its own settings."""
    logger = logging.getLogger("ray.data")
    before = logger.level
    logger.setLevel(before if progress else logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"ray\.data\b")
            yield
    finally:
        logger.setLevel(before)


@contextmanager
def _our_own_errors():
    """What the lab refused inside an actor is raised as it would be without Ray."""
    from ray.exceptions import RayTaskError

    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, RerankLabError):
            raise error.cause from error
        raise
