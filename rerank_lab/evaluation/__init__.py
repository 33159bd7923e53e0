"""Measure rankings: metrics, intervals, tests, and experiments over a collection."""

from rerank_lab.evaluation.experiment import Experiment, System, compare
from rerank_lab.evaluation.metrics import measure, oracle
from rerank_lab.evaluation.significance import bootstrap_interval, holm, randomisation_test

__all__ = ["Experiment", "System", "bootstrap_interval", "compare", "holm", "measure", "oracle", "randomisation_test"]
