"""Evaluates a model on a benchmark: deterministic answers, probes that cut one path to the answer, and comparisons."""

from .report import accuracy_table
from .runner import evaluate
from .statistics import wilson_interval

__all__ = ["accuracy_table", "evaluate", "wilson_interval"]
