"""Measures the objects of a shot: where each is and how large, frame by frame, and what the camera does meanwhile.

A trajectory is known up to its scale. The depth of an object is taken to be inversely proportional to its size in the
picture, once the camera's motion is taken out of position and size. What pixels do not tell (the focal length, and
which measure of a mask is the object's size) is tried over a range: see [`MeasuredShot.possible_trajectories`].
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ..question_vocabulary import STATIC_CAMERA
from .background_motion import BackgroundMotion
from .camera_motion import CameraMotion, CameraMotionSpan
from .shots import Shot
from .tracking import Track

MIN_CONFIDENCE = 0.5  # of a track that is measured, and of a camera motion that is taken out
SPAN_MARGIN = 0.125  # s left out at each end of a camera span that does not fill its shot
MIN_PIXELS = 60  # of a mask that is measured
SMOOTHING_RADIUS = 0.5  # s before and after a frame over which a line is fitted to what is measured
TOUCHING_DISTANCE = 2  # pixels between masks that touch
SIZE_JUMP = 0.2  # change of log size between frames at which something covers the object or is merged into its mask
MAX_OBJECT_SIZE = 0.3  # of the picture's longer side; what is larger is the road on which objects are, not an object
FOCAL_LENGTHS = (0.7, 1.1, 1.8)  # tried, in longer sides of the picture: 71 to 31 degrees of view


@dataclass(frozen=True)
class MeasuredTrack:
    """Measurements of one track, smoothed over time. They are NaN where they cannot be measured."""

    name: str  # the description without "the"
    moving: bool
    centres: np.ndarray  # (T, 2) pixels
    log_visible_size: np.ndarray  # (T,) log of the root of the visible area in pixels
    log_sizes: np.ndarray  # (T, 3) the same where the object is whole, and of its spread along x and along y
    visible: np.ndarray  # (T,) bool
    whole: np.ndarray  # (T,) bool: visible, not cut by the picture's edge, and touching no other track
    path: np.ndarray  # (T, 2) the centres, smoothed also where the size jumps: for what needs no size
    segment: np.ndarray  # (T,) int: rises where the size jumps, after which the mask may show another thing


@dataclass(frozen=True)
class MeasuredShot:
    """What questions about a shot are answered from. A span is a slice of its frames."""

    times: np.ndarray  # (T,) s since the first frame
    size: tuple[int, int]  # width and height in pixels
    camera_spans: tuple[CameraMotionSpan, ...]  # s since the first frame
    homographies: np.ndarray  # (T - 1, 3, 3)
    tracks: dict[int, MeasuredTrack]  # by index: those of enough confidence, of a name of their own, and not too large
    touching: np.ndarray  # (tracks, tracks, T) bool, for all tracks
    background: BackgroundMotion | None  # what the background does in the picture

    @classmethod
    def measure(cls, shot: Shot, camera: CameraMotion, tracks: Sequence[Track]) -> "MeasuredShot":
        times, offset = shot.times - shot.times[0], shot.times[0]
        spans = tuple(replace(span, start=span.start - offset, end=span.end - offset) for span in camera.spans)
        num_named = Counter(track.description for track in tracks)
        touching = _find_touching(tracks)
        measured = {
            i: _measure_track(track, touching[i].any(0), times)
            for i, track in enumerate(tracks)
            if track.confidence >= MIN_CONFIDENCE
            # What has no noun is told from others by its place.
            and (num_named[track.description] == 1 or has_no_noun(track.description))
        }
        height, width = shot.frames.shape[1:3]
        max_size = MAX_OBJECT_SIZE * max(width, height)
        measured = {
            i: track
            for i, track in measured.items()
            if track.visible.any() and np.exp(np.nanmedian(track.log_visible_size)) <= max_size
        }
        return cls(times, (width, height), spans, camera.homographies, measured, touching, camera.background)

    def camera_spans_in(self, frames: slice) -> list[CameraMotionSpan]:
        start, end = self.times[[frames.start, frames.stop - 1]]
        return [span for span in self.camera_spans if min(span.end, end) - max(span.start, start) > SPAN_MARGIN]

    def is_camera_static(self, frames: slice) -> bool:
        return all(span.motions == (STATIC_CAMERA,) for span in self.camera_spans_in(frames))

    def is_camera_known(self, frames: slice) -> bool:
        return all(span.confidence >= MIN_CONFIDENCE for span in self.camera_spans_in(frames))

    def compensate_camera(self, track: MeasuredTrack, frames: slice) -> tuple[np.ndarray, np.ndarray]:
        """Centres (T, 2) and log sizes (T, 3) over a span as if the camera had stayed as in its first frame."""
        centres, log_sizes = track.centres[frames], track.log_sizes[frames]
        if self.is_camera_static(frames):
            return centres, log_sizes
        to_first = [np.eye(3)]
        for step in self.homographies[frames.start : frames.stop - 1]:
            to_first.append(to_first[-1] @ np.linalg.inv(step / step[2, 2]))
        to_first = np.stack(to_first)
        points = np.einsum("tij,tj->ti", to_first, np.column_stack([centres, np.ones(len(centres))]))
        scales = np.sqrt(np.abs(np.linalg.det(to_first) / points[:, 2] ** 3))  # the Jacobian determinant scales areas
        return points[:, :2] / points[:, 2:], log_sizes + np.log(scales)[:, None]

    def possible_trajectories(self, centres: np.ndarray, log_sizes: np.ndarray) -> Iterator[np.ndarray]:
        """Trajectories (T, 3) that give these centres (T, 2) and log sizes (T, 3), for each focal length and measure.

        The axes are the camera's right, down and ahead. The first depth is 1.
        """
        middle, longer_side = np.array(self.size) / 2, max(self.size)
        for focal_length, which in itertools.product(FOCAL_LENGTHS, range(log_sizes.shape[1])):
            depths = np.exp(log_sizes[0, which] - log_sizes[:, which])
            rays = np.column_stack([(centres - middle) / (focal_length * longer_side), np.ones(len(depths))])
            yield depths[:, None] * rays


def has_no_noun(name: str) -> bool:
    return re.search(r"\bthing\b", name) is not None


def _find_touching(tracks: Sequence[Track]) -> np.ndarray:
    """For every two tracks, whether their masks are at most `TOUCHING_DISTANCE` apart: (tracks, tracks, T) bool."""
    kernel = np.ones((2 * TOUCHING_DISTANCE + 1, 2 * TOUCHING_DISTANCE + 1), np.uint8)
    touching = np.zeros((len(tracks), len(tracks), len(tracks[0].masks) if tracks else 0), bool)
    for i, track in enumerate(tracks):
        dilated = np.stack([cv2.dilate(mask.astype(np.uint8), kernel) for mask in track.masks]).astype(bool)
        for j, other in enumerate(tracks):
            touching[i, j] = (dilated & other.masks).any((1, 2)) & (i != j)
    return touching


def _measure_track(track: Track, touching: np.ndarray, times: np.ndarray) -> MeasuredTrack:
    masks = track.masks
    areas, rows, columns = masks.sum((1, 2)), masks.sum(2), masks.sum(1)
    cut_by_edge = (rows[:, 0] > 0) | (rows[:, -1] > 0) | (columns[:, 0] > 0) | (columns[:, -1] > 0)
    (x, spread_x), (y, spread_y) = _mean_and_deviation(columns), _mean_and_deviation(rows)
    log_sizes = np.log(np.maximum(np.column_stack([np.sqrt(areas), spread_x, spread_y]), 0.3))
    jumps = (np.abs(np.diff(log_sizes[:, 0])) > SIZE_JUMP) & (np.minimum(areas[1:], areas[:-1]) >= MIN_PIXELS)
    segment = np.append(0, np.cumsum(jumps))
    visible = (areas >= MIN_PIXELS) & ~(np.append(jumps, False) | np.append(False, jumps))
    whole = visible & ~cut_by_edge & ~touching
    smooth = _smooth(np.column_stack([x, y, log_sizes[:, 0]]), visible, segment, times)
    log_sizes = _smooth(log_sizes, whole, segment, times)
    path = _smooth(np.column_stack([x, y]), areas >= MIN_PIXELS, np.zeros_like(segment), times)
    path[areas < MIN_PIXELS] = np.nan
    name = track.description.removeprefix("the ")
    return MeasuredTrack(name, track.moving, smooth[:, :2], smooth[:, 2], log_sizes, visible, whole, path, segment)


def _mean_and_deviation(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and standard deviation (T,) of the positions of pixels, of which `counts` (T, N) are in each column.

    Both are 0 where there are no pixels.
    """
    positions, total = np.arange(counts.shape[1]) + 0.5, np.maximum(counts.sum(1), 1)
    mean = counts @ positions / total
    return mean, np.sqrt(np.maximum(counts @ positions**2 / total - mean**2, 0))


def _smooth(values: np.ndarray, known: np.ndarray, segment: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Smooth values (T, N) by a line through the known ones of the same segment within `SMOOTHING_RADIUS`.

    The result is NaN where these are fewer than three.
    """
    smooth = np.full(values.shape, np.nan)
    for t, time in enumerate(times):
        near = known & (segment == segment[t]) & (np.abs(times - time) <= SMOOTHING_RADIUS + 1e-3)
        if near.sum() >= 3:
            offsets = times[near] - time
            design = np.column_stack([np.ones(len(offsets)), offsets])
            smooth[t] = np.linalg.lstsq(design, values[near], rcond=None)[0][0]
    return smooth
