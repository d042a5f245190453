"""Reads a value measured over time as a list of changes: 'grows, then stays the same'."""

import itertools
from collections.abc import Sequence

import numpy as np

from .vocabulary import WORDS

LIMITS = {"dis": (np.log(1.25), np.log(1.08)), "spd": (np.log(1.5), np.log(1.12)), "ori": (25.0, 8.0)}

RATIO, SAME_RATIO, SLOWEST = 1.5, 1.15, 0.1

SHORTEST, UNCLEAR, UNCLEAR_ENDS, TURNING = 0.15, 0.35, 0.15, 0.08  # shares of the span


def runs(labels: Sequence[str | None], still: str | None = None) -> tuple[str, ...] | None:
    """Labels of the frames of a span (None where unclear) to its runs, or None if it cannot be told clearly.

    Runs of `still` as short as a turning point takes are no runs."""
    num, found = len(labels), []
    known = [k for k, label in enumerate(labels) if label is not None]
    if len(known) < (1 - UNCLEAR) * num or known[0] > UNCLEAR_ENDS * num or num - 1 - known[-1] > UNCLEAR_ENDS * num:
        return None
    for label, frames in itertools.groupby(known, key=lambda k: labels[k]):
        frames = list(frames)
        found.append((label, frames[-1] - frames[0] + 1))
    found = [(label, length) for label, length in found if label != still or length > TURNING * num]
    if any(length < SHORTEST * num for _, length in found):
        return None
    return tuple(label for label, _ in itertools.groupby(label for label, _ in found))


def changes(values: np.ndarray, kind: str) -> tuple[str, ...] | None:
    """Runs of a scalar over a span: up, down or still, by its rate; then each run's whole change is checked."""
    (up, down, still), (much, little) = WORDS[kind], LIMITS[kind]
    rate = np.gradient(values) * (len(values) - 1)  # a whole span's change at this rate
    labels = [
        still if abs(r) <= little else (up if r > 0 else down) if abs(r) >= much else None for r in rate.tolist()
    ]
    found = runs(labels, still)
    if found is None:
        return None
    known = [k for k, label in enumerate(labels) if label in found]
    start = 0
    for label, frames in itertools.groupby(known, key=lambda k: labels[k]):
        frames = list(frames)
        if label == still and len(frames) <= TURNING * len(values):
            continue
        part = values[frames[0] : frames[-1] + 1] if label == still else values[start : frames[-1] + 2]
        start = frames[-1]
        change = part[-1] - part[0]
        if np.ptp(part) > little if label == still else abs(change) < much or (change > 0) != (label == up):
            return None
    return found
