"""Measures how the background moves through the picture, robustly, and names a camera motion only where it is plain.

`camera_motion.py` explains the flow of half a second by one or two motions. A camera that is held in a hand makes
several at once, people and cars fill much of the picture, and no such explanation is sure. Here nothing is explained:
between neighbouring frames a similarity is fitted to the flow of the strongest corners (RANSAC, from OpenCV) and
summed over a span. One motion is named if it is much larger than all others together, goes one way, and is found in
the blocks of the picture alike:

- **static**: corners in many blocks stay where they were in the first frame, together, and hardly drift. They are
  followed in pictures without their local brightness, since a camera that sets its exposure anew changes it;
- **pan, tilt**: all blocks shift alike. While a camera travels sideways, near things shift more than far ones;
- **dolly**: the picture grows or shrinks about a point, which a zoom does as well.

Each condition is a ratio r of what is measured to what is required. The confidence is the least r / (1 + r) of all, so
that it is 0.5 where the last condition is just met. What precision a confidence has on real footage is measured by
`bench/accuracy/real_videos.py`.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..question_vocabulary import STATIC_CAMERA
from .shots import Shot

SIDE = 320  # pixels of the longer side at which corners are followed
CELL = 16  # pixels of a cell of the grid, in which the strongest corner is followed
MIN_EIGENVALUE = 2e-4  # of a corner, from cornerMinEigenVal, for grey levels from 0 to 1 and a window of 5 pixels
BLOCKS = 4  # along each side of the picture
SPANS = ((0, 1), (0, 2 / 3), (1 / 3, 1), (0, 1 / 2), (1 / 2, 1))  # of a shot, in which a plain motion is sought
STILL_STEP, STILL_DISTANCE = 3, 1.0  # frames between those in which corners are sought again; pixels they may differ
DETAIL_RADIUS, MIN_DETAIL_EIGENVALUE = 6.0, 1e-3  # pixels; as MIN_EIGENVALUE, without the local brightness
MEAN_RADIUS = 0.27  # longer sides: the mean distance of a pixel from the picture's centre, at 16:9

PLAIN_CONFIDENCE = 0.5  # of a motion that is plain: every condition is met
MIN_DURATION, MIN_MOVING_DURATION = 1.5, 1.25  # s of a span, and of one from which the rest before and after is cut

# What is required. Motions are in shares of the longer side: what growth and turning shift a pixel at MEAN_RADIUS.
MIN_STILL_CORNERS, MIN_STILL_BLOCKS, MIN_STILL_SHARE, MIN_STILL_TIME = 8, 3, 0.1, 0.7  # corners, of 9, shares
MAX_DRIFT = 0.02  # of a camera that stands still
MIN_SHIFT, MIN_GROWTH = 0.08, 0.025  # of a pan or tilt; of a dolly
MIN_CONSISTENCY = 0.5  # the sum of a motion over the sum of its sizes
MAX_OTHERS = 0.25  # the largest other motion, relative to the one that is named
MAX_UNSTEADY_OTHERS = 0.42  # the same if it goes back and forth, like the shaking of a hand
MIN_SECOND = 0.4  # the lesser motion of a pair, relative to the greater one
PAIR_STRICTNESS = 1.2  # by which every condition of a pair is stricter
MAX_SPREAD = 0.42  # between the quartiles of the corners' flow along a pan or tilt, relative to the whole
MIN_AGREEING_BLOCKS = 0.85  # share of the blocks that move the way that is named
MIN_BLOCKS = 7  # blocks in which corners are followed


@dataclass(frozen=True)
class BackgroundMotion:
    """What the background does between the frames of a shot. Shares are of the picture's longer side."""

    times: np.ndarray  # (T,) s
    steps: np.ndarray  # (T - 1, 4): shift to the right and down, growth and clockwise turn at MEAN_RADIUS, in shares
    inliers: np.ndarray  # (T - 1,) share of the corners that follow the similarity
    spread: np.ndarray  # (T - 1, 2) distance between the quartiles of the corners' shift to the right and down
    blocks: np.ndarray  # (T - 1, BLOCKS, BLOCKS, 2) median shift of each block's corners, NaN if it has fewer than two
    # By the first frame of each of `SPANS`: where its corners are, (N, 2) in shares of the sides, and how far they are
    # from there in one frame of every `STILL_STEP` that follow, (M, N, 2), NaN where they are not found.
    anchors: Mapping[int, tuple[np.ndarray, np.ndarray]]
    shape: tuple[int, int]  # height and width, relative to the longer side

    def between(self, frames: slice) -> tuple[float, float, float]:
        """From the first to the last of some frames: shift to the right, shift down, and log of the growth."""
        right, down, growth, _ = self.steps[frames.start : frames.stop - 1].sum(0).tolist()
        return right, down, growth / MEAN_RADIUS


@dataclass(frozen=True)
class NamedMotion:
    """A camera motion that is plain: one or two sorted names, or "static" alone."""

    motions: tuple[str, ...]
    confidence: float  # 0 to 1, at least 0.5 where every condition is met


def measure_background(shot: Shot) -> BackgroundMotion:
    """Follow the corners of a shot's background. The shot must have two frames or more."""
    greys = [_to_grey(frame) for frame in shot.frames]
    height, width = greys[0].shape
    side, num = max(height, width), len(greys)
    steps, inliers, spread = np.zeros((num - 1, 4)), np.zeros(num - 1), np.zeros((num - 1, 2))
    blocks = np.full((num - 1, BLOCKS, BLOCKS, 2), np.nan)
    corners = [_strongest_corners(grey) for grey in greys]
    for t, (before, after) in enumerate(itertools.pairwise(greys)):
        start, end = _follow(before, after, corners[t])
        if len(start) < 8:
            continue
        flow = (end - start) / side
        spread[t] = np.subtract(*np.quantile(flow, (0.75, 0.25), axis=0))
        x, y = np.minimum(start / (width, height) * BLOCKS, BLOCKS - 1).astype(int).T
        for i, j in itertools.product(range(BLOCKS), range(BLOCKS)):
            here = (y == i) & (x == j)
            if here.sum() >= 2:
                blocks[t, i, j] = np.median(flow[here], axis=0)
        tolerance = max(0.5, 0.1 * float(np.median(np.linalg.norm(end - start, axis=1))))
        cv2.setRNGSeed(0)  # the same frames give the same motion
        matrix, found = cv2.estimateAffinePartial2D(
            start, end, method=cv2.RANSAC, ransacReprojThreshold=tolerance, maxIters=2000, confidence=0.999
        )
        if matrix is None:
            continue
        centre = np.array([width / 2, height / 2])
        shift = (matrix[:, :2] @ centre + matrix[:, 2] - centre) / side
        growth, turn = np.log(np.hypot(*matrix[:, 0])), np.arctan2(matrix[1, 0], matrix[0, 0])
        steps[t] = *shift, MEAN_RADIUS * growth, MEAN_RADIUS * turn
        inliers[t] = found.mean()
    details = [_to_detail(grey) for grey in greys]
    anchors = {start: _follow_anchor(details[start:]) for start in {round(begin * num) for begin, _ in SPANS}}
    return BackgroundMotion(shot.times, steps, inliers, spread, blocks, anchors, (height / side, width / side))


def name_motion(background: BackgroundMotion, frames: slice) -> NamedMotion:
    """The motion of the camera over a span of frames that is the likeliest; it may be of a low confidence."""
    return max(_candidates(background, frames), key=lambda motion: motion.confidence)


def find_plain_span(background: BackgroundMotion) -> tuple[slice, NamedMotion] | None:
    """The longest of a few spans in which the camera's motion is plain: the whole shot, two thirds of it, or half."""
    num = len(background.times)
    for begin, end in SPANS:
        frames = slice(round(begin * num), round(end * num))
        if frames.stop - frames.start < 2 or np.ptp(background.times[frames]) < MIN_DURATION - 1e-6:
            continue
        named = name_motion(background, frames)
        if named.confidence >= PLAIN_CONFIDENCE and named.motions != (STATIC_CAMERA,):
            part = _leave_out_rest(background, frames)
            if (in_part := name_motion(background, part)).confidence >= PLAIN_CONFIDENCE:
                frames, named = part, in_part
        if named.confidence >= PLAIN_CONFIDENCE:
            return frames, named
    return None


def _leave_out_rest(background: BackgroundMotion, frames: slice) -> slice:
    """The part of a span in which its greatest motion goes from 5% to 95%, and `MIN_MOVING_DURATION` or more."""
    steps = background.steps[frames.start : frames.stop - 1]
    net = steps.sum(0)
    greatest = int(np.abs(net).argmax())
    done = np.concatenate([[0.0], np.cumsum(steps[:, greatest]) / net[greatest]])
    first, last = int(np.flatnonzero(done <= 0.05)[-1]), int(np.flatnonzero(done >= 0.95)[0])
    if last <= first:
        return frames
    times = background.times[frames]
    missing = MIN_MOVING_DURATION - (times[last] - times[first])
    if missing > 0:
        first = int(np.searchsorted(times, times[first] - missing))
        last = min(len(times) - 1, int(np.searchsorted(times, times[first] + MIN_MOVING_DURATION - 1e-6)))
    return slice(frames.start + first, frames.start + last + 1)


# Corners


def _to_grey(frame: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    scale = SIDE / max(grey.shape)
    size = max(CELL, round(grey.shape[1] * scale)), max(CELL, round(grey.shape[0] * scale))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _strongest_corners(grey: np.ndarray, min_eigenvalue: float = MIN_EIGENVALUE) -> np.ndarray:
    """The strongest corner of each cell, (N, 1, 2) float32 pixels."""
    strength = cv2.cornerMinEigenVal(grey, 5)
    rows, columns = -(-grey.shape[0] // CELL), -(-grey.shape[1] // CELL)
    padded = np.zeros((rows * CELL, columns * CELL), np.float32)
    padded[: grey.shape[0], : grey.shape[1]] = strength
    cells = padded.reshape(rows, CELL, columns, CELL).swapaxes(1, 2).reshape(rows * columns, -1)
    best = cells.argmax(1)
    y = np.repeat(np.arange(rows), columns) * CELL + best // CELL
    x = np.tile(np.arange(columns), rows) * CELL + best % CELL
    return np.float32(np.stack([x, y], -1)[cells.max(1) > min_eigenvalue]).reshape(-1, 1, 2)


def _follow(before: np.ndarray, after: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where corners (N, 1, 2) begin and end, (M, 2) each; those whose way back ends elsewhere are left out."""
    if not len(corners):
        return np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)
    options = {"winSize": (17, 17), "maxLevel": 4, "criteria": (3, 20, 0.01)}
    there, found, _ = cv2.calcOpticalFlowPyrLK(before, after, corners, None, **options)
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(after, before, there, None, **options)
    good = (found[:, 0] > 0) & (found_back[:, 0] > 0) & (np.linalg.norm(back - corners, axis=-1)[:, 0] < 0.5)
    return corners[good, 0], there[good, 0]


def _to_detail(grey: np.ndarray) -> np.ndarray:
    """A grey picture without its local brightness."""
    grey = grey.astype(np.float32)
    return np.clip(grey - cv2.GaussianBlur(grey, (0, 0), DETAIL_RADIUS) + 128, 0, 255).astype(np.uint8)


def _follow_anchor(details: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Places (N, 2) of the first picture's corners, and how far they have got (M, N, 2) in some later ones.

    They are sought near where they were: what follows a moving camera is of no use here.
    """
    corners = _strongest_corners(details[0], MIN_DETAIL_EIGENVALUE)
    height, width = details[0].shape
    shifts = np.full((len(range(STILL_STEP - 1, len(details), STILL_STEP)), len(corners), 2), np.nan)
    options = {"winSize": (17, 17), "maxLevel": 2, "flags": cv2.OPTFLOW_USE_INITIAL_FLOW}
    for shift, later in zip(shifts, details[STILL_STEP - 1 :: STILL_STEP], strict=True):
        if len(corners):
            there, found, _ = cv2.calcOpticalFlowPyrLK(details[0], later, corners, corners.copy(), **options)
            back, found_back, _ = cv2.calcOpticalFlowPyrLK(later, details[0], there, there.copy(), **options)
            good = (found[:, 0] > 0) & (found_back[:, 0] > 0)
            good &= np.linalg.norm(back - corners, axis=-1)[:, 0] < 0.5
            shift[good] = (there - corners)[good, 0]
    return corners[:, 0] / (width, height), shifts / max(height, width)


# Conditions


def _confidence(*ratios: float) -> float:
    least = max(0.0, min(ratios))
    return 1.0 if np.isinf(least) else float(least / (1 + least))


def _candidates(background: BackgroundMotion, frames: slice) -> Iterator[NamedMotion]:
    steps = background.steps[frames.start : frames.stop - 1]
    net, path = steps.sum(0), np.maximum(np.abs(steps).sum(0), 1e-9)
    net[np.abs(net) < 1e-9] = 1e-9  # a shot in which nothing stirs: its ratios below are 0, not undefined
    yield NamedMotion((STATIC_CAMERA,), _static_confidence(background, frames))
    consistency = np.abs(net) / np.maximum(path, 1e-6)
    greatest = int(np.abs(net).argmax())
    allowed = np.where(consistency > 0.5, MAX_OTHERS, MAX_UNSTEADY_OTHERS)
    others = [(np.abs(net[k]) / allowed[k], k) for k in range(4) if k != greatest]
    size = abs(float(net[greatest]))
    dominance = size / max(max(others)[0], 1e-6)
    steadiness = consistency[greatest] / MIN_CONSISTENCY
    if greatest < 2:
        agreement = _block_agreement(background, frames, [greatest], net)
        yield NamedMotion(
            (_shift_name(greatest, net),), _confidence(size / MIN_SHIFT, dominance, steadiness, *agreement)
        )
        second = 1 - greatest
        pair = tuple(sorted((_shift_name(0, net), _shift_name(1, net))))
        rest = max(abs(net[2]), abs(net[3])) / MAX_OTHERS
        both = (consistency[second] / 0.7, abs(net[second]) / (MIN_SECOND * size), _overlap(steps, net))
        both += (size / MIN_SHIFT, size / max(rest, 1e-6), steadiness)
        both += _block_agreement(background, frames, [0, 1], net)
        yield NamedMotion(pair, _confidence(*(ratio / PAIR_STRICTNESS for ratio in both)))
    growth = float(net[2])
    ratios = _growth_ratios(background, frames, net, path)
    if ratios:
        yield NamedMotion((f"dolly {'in' if growth > 0 else 'out'}",), _confidence(*ratios))


def _shift_name(axis: int, net: np.ndarray) -> str:
    """The background shifts the other way than the camera turns: to the right in a pan to the left."""
    return (("pan left", "pan right"), ("tilt up", "tilt down"))[axis][int(net[axis] < 0)]


def _static_confidence(background: BackgroundMotion, frames: slice) -> float:
    """That the camera stands still: corners all over the picture stay together, and where they were."""
    if frames.start not in background.anchors:
        return 0.0
    places, shifts = background.anchors[frames.start]
    shifts = shifts[: (frames.stop - frames.start) // STILL_STEP]
    found = ~np.isnan(shifts[..., 0])
    if not len(shifts) or not found.any(1).all():
        return 0.0
    drift = np.stack([np.median(shift[here], axis=0) for shift, here in zip(shifts, found, strict=True)])
    together = found & (np.linalg.norm(np.nan_to_num(shifts) - drift[:, None], axis=-1) < STILL_DISTANCE / SIDE)
    still = together.mean(0) >= MIN_STILL_TIME
    num_blocks = len({tuple(block) for block in np.minimum(places[still] * 3, 2).astype(int).tolist()})
    return _confidence(
        np.count_nonzero(still) / MIN_STILL_CORNERS,
        num_blocks / MIN_STILL_BLOCKS,
        float(still.mean()) / MIN_STILL_SHARE,
        MAX_DRIFT / max(float(np.linalg.norm(drift, axis=1).max()), 1e-6),
    )


def _overlap(steps: np.ndarray, net: np.ndarray) -> float:
    """How far the two shifts of a pair come at the same time: 1 or more if each is at work in both halves."""
    halves = np.stack([part[:, :2].sum(0) for part in np.array_split(steps, 2)]) / net[:2]
    return float(halves.min()) / 0.25


def _block_sums(background: BackgroundMotion, frames: slice) -> np.ndarray:
    """(N, 4): the place of each block (x, y) from the centre and its shift, for blocks followed most of the time."""
    shifts = background.blocks[frames.start : frames.stop - 1]
    followed = (~np.isnan(shifts[..., 0])).mean(0) > 0.5
    y, x = np.nonzero(followed)
    place = (np.column_stack([x, y]) + 0.5) / BLOCKS - 0.5
    return np.column_stack([place * background.shape[::-1], np.nansum(shifts, 0)[followed]])


def _outward_shifts(blocks: np.ndarray, sign: float) -> np.ndarray:
    """How far each block (x, y and shift, (N, 4)) moves away from the picture's middle, times `sign`, (N,)."""
    if not len(blocks):
        return np.zeros(0)
    from_centre = blocks[:, :2] / np.linalg.norm(blocks[:, :2], axis=1, keepdims=True)
    return (from_centre * (blocks[:, 2:] - np.median(blocks[:, 2:], 0))).sum(1) * sign


def _block_agreement(
    background: BackgroundMotion, frames: slice, axes: list[int], net: np.ndarray
) -> tuple[float, ...]:
    """Ratios for a pan or tilt: blocks that are followed, that go the same way, and that go as far."""
    blocks = _block_sums(background, frames)
    if not len(blocks):
        return (0.0,)
    weights = np.abs(background.steps[frames.start : frames.stop - 1, axes])
    spread = (background.spread[frames.start : frames.stop - 1, axes] * (weights > 0)).sum(0) / np.abs(net[axes])
    agree = np.mean([np.sign(blocks[:, 2 + axis]) == np.sign(net[axis]) for axis in axes])
    median = np.abs(np.median(blocks[:, 2:], 0)[axes] / net[axes])
    return (
        len(blocks) / MIN_BLOCKS,
        max(0.0, 1 - (1 - agree) / (2 * (1 - MIN_AGREEING_BLOCKS))) * 2,
        MAX_SPREAD / max(float(spread[0] if len(axes) == 1 else spread.min()), 1e-6),
        float(np.minimum(median, 1 / np.maximum(median, 1e-6)).min()) / 0.5,
    )


def _growth_ratios(
    background: BackgroundMotion, frames: slice, net: np.ndarray, path: np.ndarray
) -> tuple[float, ...]:
    """Ratios for a dolly: by the similarity alone, or by the blocks, which move away from the middle or toward it."""
    growth, blocks = float(net[2]), _block_sums(background, frames)
    if growth == 0 or not len(blocks):
        return ()
    shake = max(path[0], path[1])
    required = (abs(growth) / MIN_GROWTH, abs(growth) / path[2] / 0.7, abs(growth) / max(shake, 1e-6))
    sideways = np.delete(np.abs(net), 2).max()
    by_similarity = (abs(growth) / max(3 * sideways, 1e-6), len(blocks) / MIN_BLOCKS)
    outward = _outward_shifts(blocks, np.sign(growth))
    agree, against = np.mean(outward > 0.005), np.mean(outward < -0.005)
    by_blocks = (agree / MIN_AGREEING_BLOCKS, 0.1 / max(against, 1e-6), len(blocks) / 10)
    return (*required, *max(by_similarity, by_blocks, key=min))
