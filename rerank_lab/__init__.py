"""The Rerank Lab: every family of rerankers from scratch, behind one abstraction.

>>> from rerank_lab import Identity, candidates_from
>>> [c.text for c in Identity().rerank("when does it leave?", candidates_from(["a ferry", "a tram"]))]
['a ferry', 'a tram']
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

# Names are imported when first used, so that `import rerank_lab` and `rerank-lab --help` do not wait for torch.
_WHERE = {
    "core": [
        "Candidate",
        "Identity",
        "Passage",
        "PointwiseReranker",
        "Ranking",
        "RerankLabError",
        "Reranker",
        "Usage",
        "candidates_from",
    ],
    "cache": ["ScoreCache"],
    "checkpoints": ["known_models", "resolve"],
    "first_stage.bm25": ["BM25"],
    "first_stage.bi_encoder": ["BiEncoder", "DenseIndex", "mean_pool"],
    "first_stage.fusion": ["Fusion", "rrf"],
    "rerankers.api": ["CohereReranker", "JinaReranker", "TEIReranker", "VoyageReranker"],
    "rerankers.cascade": ["Cascade", "Stage"],
    "rerankers.colbert": ["ColBERT", "maxsim"],
    "rerankers.cross_encoder": ["CrossEncoder"],
    "rerankers.fused": ["Fused"],
    "rerankers.listwise": ["ListwiseReranker"],
    "rerankers.monot5": ["DuoT5", "MonoT5"],
    "rerankers.multi_vector": ["MultiVectorIndex"],
    "rerankers.pairwise": ["PairwiseReranker"],
    "rerankers.pointwise_llm": ["Qwen3Reranker", "YesNoReranker"],
    "rerankers.setwise": ["SetwiseReranker"],
    "agent": ["SearchAgent"],
    "endpoint": ["Endpoint"],
    "llm": ["LocalModel", "Recorder"],
    "collections": ["Collection", "read_collection", "read_run", "write_run"],
    "evaluation": ["Abstainer", "bootstrap_interval", "compare", "fit_abstainer", "measure", "randomisation_test"],
    "evaluation.bench": ["benchmark"],
    "notebook": ["source"],
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str):
    if name not in _MODULE:
        raise AttributeError(f"module 'rerank_lab' has no attribute {name!r}")
    return getattr(import_module(f"rerank_lab.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
