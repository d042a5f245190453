"""Reads a value measured over time as a sequence of changes: "grows, then stays the same"."""

import itertools
from collections.abc import Sequence

import numpy as np

from .question_vocabulary import CHANGE_WORDS

# By kind of value, how much it changes at least where it is said to change, and at most where it is said to stay the
# same; what lies between is ambiguous. Distance and speed are logarithms, orientation is in degrees.
CHANGE_LIMITS = {"dis": (np.log(1.25), np.log(1.08)), "spd": (np.log(1.5), np.log(1.12)), "ori": (25.0, 8.0)}

FASTER_RATIO = 1.5  # one speed over another, where it is said to be faster

# Shares of a span's frames: a run takes at least `MIN_RUN`; at most `MAX_UNCLEAR` may have no label, and at most
# `MAX_UNCLEAR_END` at each end; where a value turns round, it may stand still for `TURNING_POINT`.
MIN_RUN, MAX_UNCLEAR, MAX_UNCLEAR_END, TURNING_POINT = 0.15, 0.35, 0.15, 0.08


def find_runs(labels: Sequence[str | None], still: str | None = None) -> tuple[str, ...] | None:
    """Merge the labels of a span's frames (None where unclear) into runs; None if the runs are not clear.

    Runs of the label `still` that are no longer than a turning point are left out.
    """
    num, found = len(labels), []
    known = [k for k, label in enumerate(labels) if label is not None]
    if len(known) < (1 - MAX_UNCLEAR) * num:
        return None
    if known[0] > MAX_UNCLEAR_END * num or num - 1 - known[-1] > MAX_UNCLEAR_END * num:
        return None
    for label, frames in itertools.groupby(known, key=lambda k: labels[k]):
        frames = list(frames)
        found.append((label, frames[-1] - frames[0] + 1))
    found = [(label, length) for label, length in found if label != still or length > TURNING_POINT * num]
    if any(length < MIN_RUN * num for _, length in found):
        return None
    return tuple(label for label, _ in itertools.groupby(label for label, _ in found))


def find_changes(values: np.ndarray, kind: str) -> tuple[str, ...] | None:
    """How a value (T,) of a kind of `CHANGE_LIMITS` changes over a span, in `CHANGE_WORDS`; None if that is unclear.

    Each frame is labelled by its rate of change; then the whole change within each run is checked as well.
    """
    (up, down, still), (min_change, max_still) = CHANGE_WORDS[kind], CHANGE_LIMITS[kind]
    rates = np.gradient(values) * (len(values) - 1)  # the change over the whole span at the rate of each frame
    labels = [
        still if abs(rate) <= max_still else (up if rate > 0 else down) if abs(rate) >= min_change else None
        for rate in rates.tolist()
    ]
    found = find_runs(labels, still)
    if found is None:
        return None
    known = [k for k, label in enumerate(labels) if label in found]
    start = 0
    for label, frames in itertools.groupby(known, key=lambda k: labels[k]):
        frames = list(frames)
        if label == still and len(frames) <= TURNING_POINT * len(values):
            continue
        part = values[frames[0] : frames[-1] + 1] if label == still else values[start : frames[-1] + 2]
        start = frames[-1]
        change = part[-1] - part[0]
        if np.ptp(part) > max_still if label == still else abs(change) < min_change or (change > 0) != (label == up):
            return None
    return found
