"""Tracks the objects of a shot that move by themselves, and one that does not: masks over time and a description.

No network and no labels are needed. An object is first noticed because it does not move with the camera, and is then
tracked by the colours that set it apart from its surroundings, forward and backward from where it was noticed.

1. Neighbouring frames are warped by the camera's homographies. The optical flow that remains (OpenCV's DIS) belongs to
   what moves, or to what stands out of the plane that the homographies describe.
2. Seeds are regions with remaining flow to both neighbours, and regions whose colours occur nowhere else in the frame.
   Each is segmented by its colours. The best seed is tracked, seeds on tracked objects are dropped, and so on.
3. An object moves by itself if both its centre and its foot leave the places where the homographies take them.
   Parallax shifts the centre of what stands on the ground as well, but not its foot.

All of this is done on pictures of `AREA` pixels, so that the cost does not depend on the size of the video. Thresholds
were chosen on simulated clips (`bench/accuracy/tracking.py` measures on others); pixels are those of these pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from .camera_motion import CameraMotion
from .object_description import describe_object, mask_centre
from .shots import Shot

AREA = 224 * 224
MIN_AREA, MAX_AREA = 1 / 800, 0.4  # of an object, as shares of the picture

# Seeds.
SEED_INTERVAL = 4  # frames between those in which seeds are sought
SLOW_MOTION_GAP = 3  # frames over which slow motion is sought
MIN_FLOW, MIN_FLOW_RATIO = 0.7, 5.0  # of what moves: pixels, and times the median of the picture
MAX_COLOUR_DEVIATION = 0.1  # standard deviation of the places of a colour that occurs in one place, in sides
MAX_REGIONS = 6  # the largest ones of a frame that are tried

# Segmentation by colour.
COLOUR_LEVELS = 16  # of red, green and blue, in histograms
MIN_COLOUR_SHARE = 1e-3  # of pixels, which is assumed of colours that were not seen
MIN_CONTRAST = 1.5  # mean log ratio of the shares of a colour in an object and around it
REGROWTH = 1.15  # ratio of areas: an object that grows by more within a frame is segmented again

# Tracking.
MAX_HIDDEN_FRAMES = 6  # frames in a row for which an object may be hidden
MIN_FRAMES = 4  # frames of a track
MOTION_SPAN = 16  # frames over which the displacement of an object is measured
MIN_DISPLACEMENT = 0.15  # of an object that moves by itself, in roots of its area


@dataclass(frozen=True)
class Track:
    """One object through a shot."""

    masks: np.ndarray  # (T, H, W) bool, empty where it is not visible
    description: str  # for example "the large red object on the left"
    confidence: float  # 0 to 1: that it is one object, and that `moving` is right
    moving: bool  # by itself; an object that does not is a landmark


class Segmenter(Protocol):
    """A function that finds objects: [`find_objects`] or [`Sam3Segmenter`]."""

    def __call__(self, shot: Shot, camera: CameraMotion) -> list[Track]:
        """The objects that move, by descending confidence, then at most one landmark."""


def find_objects(shot: Shot, camera: CameraMotion) -> list[Track]:
    """The objects of a shot that move, by descending confidence, then at most one landmark."""
    scaled = ScaledShot(shot.frames, camera.homographies)
    candidates: list[CandidateTrack] = []
    failed: list[np.ndarray] = []
    for frame, mask in _find_seeds(scaled):
        if any(_overlaps(candidate.masks[frame], mask) for candidate in candidates):
            continue
        if any(_is_same_mask(masks[frame], mask) for masks in failed):
            continue
        masks, confidence = _track_seed(scaled, frame, mask)
        if confidence == 0:
            failed.append(masks)
        elif not any(is_same_object(masks, candidate.masks) for candidate in candidates):
            candidates.append(CandidateTrack(masks, scaled.to_full_size(masks), confidence))
    return choose_tracks(scaled, candidates)


@dataclass(frozen=True)
class CandidateTrack:
    """An object that was tracked, before it is known whether it moves by itself."""

    masks: np.ndarray  # (T, h, w) bool, in the size of the scaled shot
    full_masks: np.ndarray  # (T, H, W) bool, in the size of the shot
    confidence: float  # 0 to 1: that it is one object
    noun: str = "thing"


class ScaledShot:
    """A shot scaled to (h, w) of about `AREA` pixels, and the flow that remains without the camera's motion."""

    def __init__(self, frames: np.ndarray, homographies: np.ndarray) -> None:
        self.full_size = frames.shape[1:3]  # H, W
        scale = (AREA / (self.full_size[0] * self.full_size[1])) ** 0.5
        self.height, self.width = (max(16, round(side * scale)) for side in self.full_size)
        interpolation = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
        self.frames = [cv2.resize(frame, (self.width, self.height), interpolation=interpolation) for frame in frames]
        self.grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in self.frames]
        self.colours = [  # (h, w) int32: the index of each pixel's colour in histograms
            (frame // (256 // COLOUR_LEVELS)).astype(np.int32)
            @ np.array([COLOUR_LEVELS**2, COLOUR_LEVELS, 1], np.int32)
            for frame in self.frames
        ]
        x, y = self.width / self.full_size[1], self.height / self.full_size[0]
        to_scaled = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])  # pixel centres are integers
        self.homographies = to_scaled @ homographies @ np.linalg.inv(to_scaled)
        self.num_frames, self.min_area = len(frames), MIN_AREA * self.height * self.width
        self._pixels = np.stack(np.meshgrid(np.arange(self.width), np.arange(self.height)), -1).astype(np.float32)
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._origins: dict[tuple[int, int], np.ndarray] = {}

    def homography(self, s: int, t: int) -> np.ndarray:
        """The homography (3, 3) of the background from frame s to frame t."""
        matrix = np.eye(3)
        for step in self.homographies[min(s, t) : max(s, t)]:
            matrix = step @ matrix
        return matrix if s <= t else np.linalg.inv(matrix)

    def remaining_flow(self, s: int, t: int) -> np.ndarray:
        """The flow (h, w, 2) from frame s to frame t, without the camera's, in pixels of frame s."""
        matrix, size = self.homography(s, t), (self.width, self.height)
        warped = cv2.warpPerspective(
            self.grey[t], matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
        )
        inside = cv2.warpPerspective(
            np.ones_like(self.grey[t]), matrix, size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        )
        return self._flow.calc(self.grey[s], warped, None) * inside[..., None]

    def motion(self, t: int) -> np.ndarray:
        """How far each pixel (h, w) of frame t moves without the camera, in pixels.

        It is the smaller of the flows to the frames before and after, since a background that gets uncovered has no
        match on one side, and the larger of a short and a long step.
        """
        steps = [
            np.minimum.reduce([np.linalg.norm(self.remaining_flow(t, u), axis=-1) for u in neighbours])
            for gap in (1, SLOW_MOTION_GAP)
            if (neighbours := [u for u in (t - gap, t + gap) if 0 <= u < self.num_frames])
        ]
        return np.maximum.reduce(steps)

    def warp_by_flow(self, mask: np.ndarray, s: int, t: int) -> np.ndarray:
        """The mask (h, w) of frame s in the neighbouring frame t, where the flow takes it."""
        if (s, t) not in self._origins:
            points = (self._pixels + self.remaining_flow(t, s)).reshape(1, -1, 2)
            origins = cv2.perspectiveTransform(points, self.homography(t, s))
            self._origins[s, t] = origins.reshape(self.height, self.width, 2)
        return cv2.remap(mask.view(np.uint8), self._origins[s, t], None, cv2.INTER_NEAREST).view(bool)

    def warp_by_camera(self, mask: np.ndarray, s: int, t: int, shift: np.ndarray) -> np.ndarray:
        """The mask (h, w) of frame s in frame t, if it moves with the camera and then by `shift` (x, y) pixels."""
        translation = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]])
        matrix, size = translation @ self.homography(s, t), (self.width, self.height)
        return cv2.warpPerspective(mask.view(np.uint8), matrix, size, flags=cv2.INTER_NEAREST).view(bool)

    def to_full_size(self, masks: np.ndarray) -> np.ndarray:
        """Masks (T, h, w) in the size of the shot, (T, H, W)."""
        if self.full_size == (self.height, self.width):
            return masks
        interpolation = cv2.INTER_AREA if self.full_size[0] < self.height else cv2.INTER_LINEAR
        size = self.full_size[::-1]
        shares = (cv2.resize(mask.astype(np.float32), size, interpolation=interpolation) for mask in masks)
        return np.stack([share >= 0.5 for share in shares])


# Seeds


def _find_seeds(shot: ScaledShot) -> list[tuple[int, np.ndarray]]:
    """(frame, mask) of regions that may be objects, the most promising first."""
    found = []
    for t in range(0, shot.num_frames, SEED_INTERVAL):
        motion = shot.motion(t)
        moves = motion > max(MIN_FLOW, MIN_FLOW_RATIO * float(np.median(motion)))
        for evidence in (moves, _has_local_colour(shot.colours[t])):
            opened = cv2.morphologyEx(evidence.view(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
            _, labels, stats, _ = cv2.connectedComponentsWithStats(opened)
            areas = stats[1:, cv2.CC_STAT_AREA]
            for k in np.argsort(-areas)[:MAX_REGIONS]:
                if not shot.min_area <= areas[k] <= MAX_AREA * shot.height * shot.width:
                    continue
                region = labels == k + 1
                mask, contrast = _segment_region(shot, t, region)
                area = np.count_nonzero(mask)
                if area < shot.min_area or contrast < MIN_CONTRAST / 2 or _is_background(mask):
                    continue
                overlap = np.count_nonzero(mask & region) / np.count_nonzero(mask | region)
                score = contrast * solidity(mask) ** 2 * overlap * (area / shot.min_area) ** 0.25
                score *= (0.5 + moves[mask].mean()) * (0.7 if _touches_border(mask) else 1.0)
                found.append((score, t, mask))
    return [(t, mask) for _, t, mask in sorted(found, key=lambda seed: -seed[0])]


def _has_local_colour(colours: np.ndarray) -> np.ndarray:
    """Pixels (h, w) bool whose colour occurs in one place of the picture only."""
    y, x = np.indices(colours.shape) / np.array(colours.shape)[:, None, None]
    weights = (np.ones_like(x), x, y, x * x + y * y)
    count, x, y, square = (
        _blur_histogram(np.bincount(colours.reshape(-1), weight.reshape(-1), COLOUR_LEVELS**3)) for weight in weights
    )
    count = np.maximum(count, 1e-9)
    return (square / count - (x / count) ** 2 - (y / count) ** 2 < MAX_COLOUR_DEVIATION**2)[colours]


def _segment_region(shot: ScaledShot, t: int, region: np.ndarray) -> tuple[np.ndarray, float]:
    """The mask and the contrast of the object that a region of frame t shows: of the colours of the region's core."""
    depth = cv2.distanceTransform(region.view(np.uint8), cv2.DIST_L2, 3)
    mask, contrast = depth > min(3.0, depth.max() / 2), 0.0
    for share in (0.3, 0.2, 0.2):
        size = np.count_nonzero(mask) ** 0.5
        mask, contrast = _segment_near(shot, t, mask, None, share * size + 2, 1.5 * size)
        if not mask.any():
            break
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8))
        mask = labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
    return mask, contrast


def solidity(mask: np.ndarray) -> float:
    """The share of its convex hull that a mask fills."""
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = cv2.convexHull(np.concatenate(contours))
    # The hull runs through the centres of pixels. By Pick's theorem this is the number of pixels that it holds.
    hull_area = cv2.contourArea(hull) + cv2.arcLength(hull, True) / 2 + 1
    return np.count_nonzero(mask) / hull_area


def _sides(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return mask[0], mask[-1], mask[:, 0], mask[:, -1]


def _touches_border(mask: np.ndarray) -> bool:
    return any(side.any() for side in _sides(mask))


def _is_background(mask: np.ndarray) -> bool:
    """Whether a mask reaches from side to side or lies along the sides, like a sky, a wall or a floor."""
    top, bottom, left, right = (np.count_nonzero(side) for side in _sides(mask))
    max_on_sides = max(1.8 * np.count_nonzero(mask) ** 0.5, 0.4 * min(mask.shape))
    return bool(top and bottom or left and right) or top + bottom + left + right > max_on_sides


def _overlaps(mask: np.ndarray, other: np.ndarray) -> bool:
    """Whether two masks share 30% of the smaller one."""
    smaller = min(np.count_nonzero(mask), np.count_nonzero(other))
    return np.count_nonzero(mask & other) > 0.3 * max(smaller, 1)


def _is_same_mask(mask: np.ndarray, other: np.ndarray) -> bool:
    """Whether the intersection of two masks is more than half of their union."""
    return np.count_nonzero(mask & other) > 0.5 * np.count_nonzero(mask | other)


def is_same_object(masks: np.ndarray, others: np.ndarray) -> bool:
    """Whether masks (T, h, w) share half of the smaller one in more than a third of the frames that have both."""
    both = np.nonzero(masks.any((1, 2)) & others.any((1, 2)))[0]
    shared = [
        np.count_nonzero(masks[t] & others[t]) > 0.5 * min(np.count_nonzero(masks[t]), np.count_nonzero(others[t]))
        for t in both
    ]
    return bool(shared) and bool(np.mean(shared) > 1 / 3)


# Segmentation and tracking


def _blur_histogram(values: np.ndarray) -> np.ndarray:
    """Values (COLOUR_LEVELS ** 3,) of colours, blurred by (1, 2, 1) / 4 along red, green and blue."""
    cube = values.reshape((COLOUR_LEVELS,) * 3).astype(np.float64)
    for axis in range(3):
        lines = np.moveaxis(cube, axis, 0)
        blurred = 0.5 * lines
        blurred[1:] += 0.25 * lines[:-1]
        blurred[:-1] += 0.25 * lines[1:]
        blurred[0] += 0.25 * lines[0]
        blurred[-1] += 0.25 * lines[-1]
        cube = np.moveaxis(blurred, 0, axis)
    return cube.reshape(-1)


def _histogram(colours: np.ndarray) -> np.ndarray:
    """The shares (COLOUR_LEVELS ** 3,) of the colours (N,) of some pixels, blurred."""
    return _blur_histogram(np.bincount(colours, minlength=COLOUR_LEVELS**3)) / max(len(colours), 1)


def _segment_near(
    shot: ScaledShot, t: int, guess: np.ndarray, histogram: np.ndarray | None, band: float, surroundings: float
) -> tuple[np.ndarray, float]:
    """The mask (h, w) in frame t near `guess`, by colour, and its contrast.

    Pixels are compared with `histogram`, by default that of the guess, and with the histogram of the pixels up to
    `surroundings` pixels around it. Colour decides within `band` pixels of the guess's outline, distance beyond it.
    """
    x, y, width, height = cv2.boundingRect(guess.view(np.uint8))
    margin = int(3 * band + surroundings) + 4
    box = (slice(max(0, y - margin), y + height + margin), slice(max(0, x - margin), x + width + margin))
    near, colours = guess[box].astype(np.uint8), shot.colours[t][box]
    inside = cv2.distanceTransform(near, cv2.DIST_L2, 3)
    outside = cv2.distanceTransform(1 - near, cv2.DIST_L2, 3)
    own = _histogram(colours[near > 0]) if histogram is None else histogram
    around = _histogram(colours[outside > band / 2])
    ratio = np.log((own + MIN_COLOUR_SHARE) / (around + MIN_COLOUR_SHARE))
    votes = np.clip(ratio, -4, 4)[colours].astype(np.float32)
    votes += np.clip(2 * (inside - outside) / band, -8, 1.5)
    segment = (cv2.GaussianBlur(votes, (0, 0), 1.0) > 0).astype(np.uint8)
    segment = cv2.morphologyEx(segment, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    count, labels = cv2.connectedComponents(segment)
    if count > 2:  # keep the parts of an object that is hidden in its middle, but not what lies beside the guess
        shared = np.bincount(labels[near > 0], minlength=count)
        shared[0] = 0
        segment = (shared > 0.25 * shared.max())[labels]
    mask = np.zeros((shot.height, shot.width), bool)
    mask[box] = segment
    pixels = colours[segment > 0]
    return mask, float(ratio[pixels].mean()) if len(pixels) else -np.inf


def _track_seed(shot: ScaledShot, start: int, seed: np.ndarray) -> tuple[np.ndarray, float]:
    """Track the seed of frame `start` to both ends of the shot.

    Returns masks (T, h, w) and the confidence that they show one object, 0 if tracking failed.
    """
    seed_histogram, contrasts = _histogram(shot.colours[start][seed]), []
    masks = np.zeros((shot.num_frames, shot.height, shot.width), bool)
    masks[start] = seed
    for step in (1, -1):
        mask, histogram, last, velocity = seed, seed_histogram, start, np.zeros(2)  # velocity in pixels a frame
        t = start + step
        while 0 <= t < shot.num_frames and abs(t - last) <= MAX_HIDDEN_FRAMES:
            if found := _find_in_frame(shot, mask, histogram, last, t, velocity):
                new_mask, contrast = found
                moved = mask_centre(new_mask) - mask_centre(shot.warp_by_camera(mask, last, t, np.zeros(2)))
                velocity = (velocity + moved / abs(t - last)) / 2
                masks[t] = mask = new_mask
                last = t
                histogram = 0.9 * histogram + 0.05 * seed_histogram + 0.05 * _histogram(shot.colours[t][new_mask])
                contrasts.append(contrast)
                if len(contrasts) >= MOTION_SPAN and np.mean(contrasts) < MIN_CONTRAST:
                    return masks, 0.0
            t += step
    contrast = float(np.mean(contrasts)) if len(contrasts) >= MIN_FRAMES - 1 else 0.0
    visible = masks[masks.any((1, 2))]
    if contrast < MIN_CONTRAST or np.mean([_is_background(mask) for mask in visible]) > 0.3:
        return masks, 0.0
    return masks, min(1.0, contrast / (2 * MIN_CONTRAST))


def _find_in_frame(
    shot: ScaledShot, mask: np.ndarray, histogram: np.ndarray, s: int, t: int, velocity: np.ndarray
) -> tuple[np.ndarray, float] | None:
    """Find the object of frame s in frame t, near where its recent velocity or the flow takes it.

    Returns its mask and contrast, or None if it is not there.
    """
    gap, area = abs(t - s), np.count_nonzero(mask)
    guesses = [shot.warp_by_camera(mask, s, t, gap * velocity)]
    if gap == 1:
        guesses.append(shot.warp_by_flow(mask, s, t))
    found = []
    for guess in guesses:
        size = np.count_nonzero(guess) ** 0.5
        if size**2 < shot.min_area / 2:
            continue
        band = (0.02 + 0.1 * gap) * size + 2
        new_mask, contrast = _segment_near(shot, t, guess, histogram, band, 0.7 * size)
        new_area = np.count_nonzero(new_mask)
        old_area = size**2
        for _ in range(3):  # it may come out from behind another object, by more than the band
            if new_area < REGROWTH * old_area:
                break
            old_area = new_area
            new_mask, contrast = _segment_near(shot, t, new_mask, histogram, band, 0.7 * old_area**0.5)
            new_area = np.count_nonzero(new_mask)
        is_plausible = max(shot.min_area / 2, 0.4 * area) <= new_area <= 3 * area + shot.min_area
        if is_plausible and contrast > MIN_CONTRAST / 3:
            found.append((contrast * min(new_area, area) / max(new_area, area), new_mask, contrast))
    return max(found, key=lambda one: one[0])[1:] if found else None


# What moves, and the landmark


def choose_tracks(shot: ScaledShot, candidates: Sequence[CandidateTrack]) -> list[Track]:
    """The tracks of objects that move, by descending confidence, then of the best landmark among the others."""
    moving, landmarks = [], []
    for k, candidate in enumerate(candidates):
        others = [other.masks for j, other in enumerate(candidates) if j != k]
        displacement = _own_displacement(shot, candidate.masks, others)
        certainty = min(1.0, abs(np.log(max(displacement, 1e-3) / MIN_DISPLACEMENT)) / np.log(3))
        description = describe_object(shot.frames, candidate.masks, candidate.noun)
        confidence = round(float(candidate.confidence * certainty), 3)
        track = Track(candidate.full_masks, description, confidence, displacement > MIN_DISPLACEMENT)
        if track.moving:
            moving.append(track)
        else:
            landmarks.append((_landmark_quality(shot, candidate.masks) * track.confidence, track))
    moving.sort(key=lambda track: -track.confidence)
    return moving + [max(landmarks, key=lambda one: one[0])[1]] if landmarks else moving


def _own_displacement(shot: ScaledShot, masks: np.ndarray, others: Sequence[np.ndarray]) -> float:
    """How far an object gets from where the camera's motion takes it, in roots of its area.

    It is measured over `MOTION_SPAN` frames, or as long as the object is visible, as the lesser displacement of its
    centre and its foot, and the quantile of 0.9 is taken. Frames in which the object is cut off by the border or by
    another one are left out. If too few are left, all frames are used, and a third of the result is returned.
    """
    areas = np.array([np.count_nonzero(mask) for mask in masks])
    visible = np.nonzero(areas)[0]
    whole = [
        t for t in visible.tolist() if not _touches_border(masks[t]) and not _is_occluded(masks, areas, others, t)
    ]
    trust = 1.0 if len(whole) >= MIN_FRAMES else 1 / 3
    times = np.array(whole if len(whole) >= MIN_FRAMES else visible)
    displacements = []
    for s in times.tolist():
        t = int(times[(times <= s + MOTION_SPAN)][-1])
        if t - s < 0.6 * min(MOTION_SPAN, times[-1] - times[0]):
            continue
        before, after = _centre_and_foot(masks[s]), _centre_and_foot(masks[t])
        expected = cv2.perspectiveTransform(before[None], shot.homography(s, t))[0]
        displacements.append(np.linalg.norm(after - expected, axis=-1).min() / max(areas[s], areas[t]) ** 0.5)
    return trust * float(np.quantile(displacements, 0.9)) if displacements else 0.0


def _is_occluded(masks: np.ndarray, areas: np.ndarray, others: Sequence[np.ndarray], t: int) -> bool:
    """Whether an object touches another one in frame t, and is smaller than it was or will be within a second."""
    if areas[t] > 0.9 * areas[max(0, t - MOTION_SPAN // 2) : t + MOTION_SPAN // 2 + 1].max():
        return False
    dilated = cv2.dilate(masks[t].view(np.uint8), np.ones((5, 5), np.uint8)).view(bool)
    return any((dilated & other[t]).any() for other in others)


def _centre_and_foot(mask: np.ndarray) -> np.ndarray:
    """The (x, y) of a mask's centre, and of the middle of its lowest twentieth, (2, 2) float32."""
    y, x = np.nonzero(mask)
    return np.float32([[x.mean(), y.mean()], [x[y >= np.quantile(y, 0.95)].mean(), y.max()]])


def _landmark_quality(shot: ScaledShot, masks: np.ndarray) -> float:
    """The share of the frames in which a landmark is visible, times its texture: the mean slope of its grey levels."""
    visible = np.nonzero(masks.any((1, 2)))[0]
    slopes = []
    for t in visible[:: max(1, len(visible) // 8)]:
        x, y = (cv2.Sobel(shot.grey[t], cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1)))
        slopes.append(np.hypot(x, y)[masks[t]].mean())
    return len(visible) / shot.num_frames * float(np.mean(slopes))
