"""Evaluation of 4DThinker: deterministic answers to a benchmark, with any path to the answer cut, and compared."""

from .report import accuracy_table
from .runner import evaluate
from .statistics import wilson_interval

__all__ = ["accuracy_table", "evaluate", "wilson_interval"]
