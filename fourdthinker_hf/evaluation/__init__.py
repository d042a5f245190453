"""Evaluation of 4DThinker: deterministic free-running answers on a file of records, with and without the video."""

from .report import accuracy_table, wilson_interval
from .runner import evaluate

__all__ = ["accuracy_table", "evaluate", "wilson_interval"]
