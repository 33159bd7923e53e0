"""Collections: passages, queries and judgments, from the lab, from a folder, or from ir_datasets."""

from rerank_lab.collections.collection import Collection
from rerank_lab.collections.reading import read_collection, read_qrels, read_run, write_qrels, write_run

__all__ = ["Collection", "read_collection", "read_qrels", "read_run", "write_qrels", "write_run"]
