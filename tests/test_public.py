"""The public surface: what is offered, that it is documented, and that asking for it is cheap."""

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys

import pytest

import rerank_lab

MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(rerank_lab.__path__, "rerank_lab.")
    if not m.name.split(".")[-1].startswith("_")
)
EMPTY = {  # packages that only hold modules
    "rerank_lab.first_stage",
    "rerank_lab.integrations",
    "rerank_lab.rerankers",
    "rerank_lab.training",
}


def test_the_package_offers_this_and_nothing_else():
    assert rerank_lab.__all__ == [
        "Abstainer",
        "BM25",
        "BiEncoder",
        "Candidate",
        "Cascade",
        "CohereReranker",
        "ColBERT",
        "Collection",
        "CrossEncoder",
        "DenseIndex",
        "DuoT5",
        "Endpoint",
        "Fused",
        "Fusion",
        "Identity",
        "JinaReranker",
        "ListwiseReranker",
        "LocalModel",
        "MonoT5",
        "MultiVectorIndex",
        "PairwiseReranker",
        "Passage",
        "PointwiseReranker",
        "Qwen3Reranker",
        "Ranking",
        "Recorder",
        "RerankLabError",
        "Reranker",
        "ScoreCache",
        "SearchAgent",
        "SetwiseReranker",
        "Stage",
        "TEIReranker",
        "Usage",
        "VoyageReranker",
        "YesNoReranker",
        "benchmark",
        "bootstrap_interval",
        "candidates_from",
        "compare",
        "fit_abstainer",
        "known_models",
        "maxsim",
        "mean_pool",
        "measure",
        "randomisation_test",
        "read_collection",
        "read_run",
        "resolve",
        "rrf",
        "source",
        "write_run",
    ]


def test_every_name_can_be_had_and_dir_lists_it():
    for name in rerank_lab.__all__:
        assert callable(getattr(rerank_lab, name)), name
    assert set(rerank_lab.__all__) < set(dir(rerank_lab))
    with pytest.raises(AttributeError, match="no attribute 'rerank_everything'"):
        _ = rerank_lab.rerank_everything


def test_the_version_is_the_installed_one():
    from importlib.metadata import version

    assert rerank_lab.__version__ == version("rerank-lab")


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_offers_and_documents_it(name):
    module = importlib.import_module(name)
    if name in EMPTY:
        assert not [n for n in vars(module) if not n.startswith("_") and not inspect.ismodule(getattr(module, n))]
        return
    assert module.__doc__, f"{name} does not say what it is"
    assert module.__all__ == sorted(module.__all__)
    assert module.__all__, f"{name} offers nothing"
    for public in module.__all__:
        thing = getattr(module, public)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            own = thing.__dict__.get("__doc__") if inspect.isclass(thing) else thing.__doc__
            assert own and own.strip(), f"{name}.{public} has no docstring"
            assert not own.startswith(f"{public}("), f"{name}.{public} has only the docstring that dataclass makes"


def test_what_the_package_offers_is_offered_by_its_module():
    for module, names in rerank_lab._WHERE.items():
        assert set(names) <= set(importlib.import_module(f"rerank_lab.{module}").__all__), module


@pytest.mark.parametrize("module", ["rerank_lab", "rerank_lab.cli", "rerank_lab.core", "rerank_lab.checkpoints"])
def test_importing_is_cheap(module):
    code = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(json.loads(output))
    assert module in loaded
    assert loaded & {"torch", "transformers", "sentence_transformers", "ir_measures", "matplotlib", "peft"} == set()


def test_errors_are_one_family():
    from rerank_lab import core

    for error in (core.InputError, core.DataError, core.CheckpointError):
        assert issubclass(error, rerank_lab.RerankLabError)
    assert issubclass(core.InputError, ValueError)
    assert issubclass(core.DataError, ValueError)
