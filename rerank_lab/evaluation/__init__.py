"""Measure rankings: metrics, intervals, tests, experiments over a collection, calibration, and when to abstain."""

from rerank_lab.evaluation.abstaining import Abstainer, fit_abstainer
from rerank_lab.evaluation.calibration import Calibration, Judged, expected_calibration_error, held_out, reliability
from rerank_lab.evaluation.experiment import Experiment, System, compare
from rerank_lab.evaluation.metrics import measure, oracle
from rerank_lab.evaluation.significance import bootstrap_interval, holm, randomisation_test

__all__ = [
    "Abstainer",
    "Calibration",
    "Experiment",
    "Judged",
    "System",
    "bootstrap_interval",
    "compare",
    "expected_calibration_error",
    "fit_abstainer",
    "held_out",
    "holm",
    "measure",
    "oracle",
    "randomisation_test",
    "reliability",
]
