"""Measures a shot for questions: where each object is and how large, frame by frame, and how the camera moves."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ..vocabulary import STATIC_CAMERA
from .camera import Camera, CameraSpan
from .shots import Shot
from .tracking import Track

SURE = 0.5  # confidence of a track, and of a camera whose motion is taken out, below which nothing is asked
MARGIN = 0.125  # s left out at each end of a camera span that does not fill its shot
PIXELS = 60  # of a mask that is measured
WINDOW = 0.5  # s to each side over which a line is fitted
NEAR = 2  # pixels between masks that touch
JUMP = 0.2  # of log size between frames: something came before it, or became a part of its mask
LARGEST = 0.3  # of the longer side: what is larger is no object but the road that objects are on
FOCALS = (0.7, 1.1, 1.8)  # tried: focal lengths in longer sides, 71 to 31 degrees of view


@dataclass(frozen=True)
class Path:
    """Of one track, smooth; NaN where it is not seen, sizes where it is not whole."""

    name: str
    moving: bool
    centres: np.ndarray  # (T, 2) pixels
    extents: np.ndarray  # (T,) log of pixels: of what is seen of its area, the square root
    sizes: np.ndarray  # (T, 3) the same, and of the spread along x, along y
    seen: np.ndarray  # (T,) bool
    whole: np.ndarray  # (T,) bool: and neither cut by the picture's edge nor near another
    piece: np.ndarray  # (T,) int: counts the jumps of its size, after which it may be another thing


@dataclass(frozen=True)
class Scene:
    times: np.ndarray  # (T,) s since the first frame
    size: tuple[int, int]  # width, height
    spans: tuple[CameraSpan, ...]  # s since the first frame
    homographies: np.ndarray  # (T - 1, 3, 3)
    paths: dict[int, Path]  # by the track's number; those that are sure and have a name of their own
    touching: np.ndarray  # (n, n, T) bool, of all tracks

    @classmethod
    def of(cls, shot: Shot, camera: Camera, tracks: Sequence[Track]) -> "Scene":
        times, zero = shot.times - shot.times[0], shot.times[0]
        spans = tuple(replace(span, start=span.start - zero, end=span.end - zero) for span in camera.spans)
        names = Counter(track.description for track in tracks)
        touching = _touching(tracks)
        paths = {
            i: _measure(track, touching[i].any(0), times)
            for i, track in enumerate(tracks)
            if track.confidence >= SURE and names[track.description] == 1
        }
        height, width = shot.frames.shape[1:3]
        largest = LARGEST * max(width, height)
        paths = {
            i: path for i, path in paths.items() if path.seen.any() and np.exp(np.nanmedian(path.extents)) <= largest
        }
        return cls(times, (width, height), spans, camera.homographies, paths, touching)

    def within(self, frames: slice) -> list[CameraSpan]:
        """What the camera does in a span's frames."""
        start, end = self.times[[frames.start, frames.stop - 1]]
        return [span for span in self.spans if min(span.end, end) - max(span.start, start) > MARGIN]

    def static(self, frames: slice) -> bool:
        return all(span.motions == (STATIC_CAMERA,) for span in self.within(frames))

    def sure(self, frames: slice) -> bool:
        return all(span.confidence >= SURE for span in self.within(frames))

    def steady(self, path: Path, frames: slice) -> tuple[np.ndarray, np.ndarray]:
        """Centres and sizes in a span's frames as if the camera had stayed as it was in the first of them."""
        centres, sizes = path.centres[frames], path.sizes[frames]
        if self.static(frames):
            return centres, sizes
        to_first = [np.eye(3)]
        for step in self.homographies[frames.start : frames.stop - 1]:
            to_first.append(to_first[-1] @ np.linalg.inv(step / step[2, 2]))
        to_first = np.stack(to_first)
        points = np.einsum("tij,tj->ti", to_first, np.column_stack([centres, np.ones(len(centres))]))
        scale = np.sqrt(np.abs(np.linalg.det(to_first) / points[:, 2] ** 3))  # of lengths: the Jacobian is of areas
        return points[:, :2] / points[:, 2:], sizes + np.log(scale)[:, None]

    def trials(self, centres: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
        """Paths (T, 3) that show like this, right, down and ahead of the camera, the first depth being 1."""
        middle, longer = np.array(self.size) / 2, max(self.size)
        for focal, which in itertools.product(FOCALS, range(sizes.shape[1])):
            depth = np.exp(sizes[0, which] - sizes[:, which])
            yield depth[:, None] * np.column_stack([(centres - middle) / (focal * longer), np.ones(len(depth))])


def _touching(tracks: Sequence[Track]) -> np.ndarray:
    """For every two tracks, whether their masks are `NEAR` or nearer in a frame, (n, n, T) bool."""
    kernel = np.ones((2 * NEAR + 1, 2 * NEAR + 1), np.uint8)
    touching = np.zeros((len(tracks), len(tracks), len(tracks[0].masks) if tracks else 0), bool)
    for i, one in enumerate(tracks):
        wide = np.stack([cv2.dilate(mask.astype(np.uint8), kernel) for mask in one.masks]).astype(bool)
        for j, other in enumerate(tracks):
            touching[i, j] = (wide & other.masks).any((1, 2)) & (i != j)
    return touching


def _measure(track: Track, touching: np.ndarray, times: np.ndarray) -> Path:
    masks = track.masks
    areas, rows, columns = masks.sum((1, 2)), masks.sum(2), masks.sum(1)
    edges = (rows[:, 0] > 0) | (rows[:, -1] > 0) | (columns[:, 0] > 0) | (columns[:, -1] > 0)
    (x, spread_x), (y, spread_y) = _moments(columns), _moments(rows)
    sizes = np.log(np.maximum(np.column_stack([np.sqrt(areas), spread_x, spread_y]), 0.3))
    jumps = (np.abs(np.diff(sizes[:, 0])) > JUMP) & (np.minimum(areas[1:], areas[:-1]) >= PIXELS)
    piece = np.append(0, np.cumsum(jumps))
    seen = (areas >= PIXELS) & ~(np.append(jumps, False) | np.append(False, jumps))
    whole = seen & ~edges & ~touching
    places = _smooth(np.column_stack([x, y, sizes[:, 0]]), seen, piece, times)
    name, sizes = track.description.removeprefix("the "), _smooth(sizes, whole, piece, times)
    return Path(name, track.moving, places[:, :2], places[:, 2], sizes, seen, whole, piece)


def _moments(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of pixels of which `counts` (T, n) are in each column, (T,) each; of none, 0."""
    places, total = np.arange(counts.shape[1]) + 0.5, np.maximum(counts.sum(1), 1)
    mean = counts @ places / total
    return mean, np.sqrt(np.maximum(counts @ places**2 / total - mean**2, 0))


def _smooth(values: np.ndarray, known: np.ndarray, piece: np.ndarray, times: np.ndarray) -> np.ndarray:
    """At each time a line through what is known of its piece within `WINDOW` s, (T, n); NaN where fewer than three
    values are."""
    smooth = np.full(values.shape, np.nan)
    for t, now in enumerate(times):
        near = known & (piece == piece[t]) & (np.abs(times - now) <= WINDOW + 1e-3)
        if near.sum() >= 3:
            since = times[near] - now
            design = np.column_stack([np.ones(len(since)), since])
            smooth[t] = np.linalg.lstsq(design, values[near], rcond=None)[0][0]
    return smooth
