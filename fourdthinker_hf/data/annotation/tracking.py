"""Finds what moves in a shot by itself, and one thing that rests: a mask for each frame, and words for it.

No network, no labels. What does not move as the camera's motion would have it seeds an object, and the colours that
set it apart from its surroundings carry its mask through the shot, forward and backward: a track is one thing because
it is one mask that was carried, not because masks of many frames were linked.

1. Neighbouring frames are warped by the camera's homographies; the flow that is left (OpenCV's DIS) belongs to what
   moves, or stands out of the plane that the homographies describe.
2. Seeds are parts of the picture where flow is left both ways, and parts whose colours are found nowhere else. Each is
   cut out by its colours; the best is followed; seeds on what is followed already are dropped; and so on.
3. A thing moves if both its centre and its foot leave where the homographies take them. Parallax displaces the centre
   of what stands on the ground as well, but not its foot.

All is done on pictures of `AREA` pixels, so its cost does not depend on the video's size. Thresholds were chosen on
simulated clips (`bench/accuracy/tracking.py` measures on others); lengths in pixels are of those pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from .camera import Camera
from .description import centre, describe
from .shots import Shot

AREA = 224 * 224
EVERY = 4  # frames between those in which seeds are sought
GAP = 3  # frames over which slow motion is sought
DRIFT = 0.7  # pixels of flow, and times the picture's median, below which nothing moves
NOISE = 5.0
PLACE = 0.1  # standard deviation of where a colour is found, over the picture's side, for it to be in one place
TRIED = 6  # regions of a frame, the largest
SMALLEST, LARGEST = 1 / 800, 0.4  # of the picture
LEVELS = 16  # of red, green and blue, in histograms
RARE = 1e-3  # share of pixels that a colour never seen is taken to have
CONTRAST = (
    1.5  # mean log ratio of a colour's share in a thing and around it; below, it is not told from its background
)
GROWN = 1.15  # times its area: what grows so in a frame is looked at again
HIDDEN = 6  # frames that a thing may be hidden for
FEWEST = 4  # frames of a track
SPAN = 16  # frames over which a thing's way is measured
WAY = 0.15  # of its own size (the root of its area): what gets further, moves


@dataclass(frozen=True)
class Track:
    """One thing through a shot."""

    masks: np.ndarray  # (T, H, W) bool, empty where it is not seen
    description: str  # "the large red object on the left"
    confidence: float  # 0 to 1: that it is one thing, and that `moving` is right
    moving: bool  # of itself; what rests is a landmark


class Segmenter(Protocol):
    """What finds objects: `find_objects`, or `sam3.Sam3Segmenter`."""

    def __call__(self, shot: Shot, camera: Camera) -> list[Track]:
        """What moves, the surest first, then at most one landmark."""


def find_objects(shot: Shot, camera: Camera) -> list[Track]:
    """What moves in a shot, the surest first, then at most one landmark."""
    if cv2 is None:
        raise ImportError('finding objects needs OpenCV: pip install "fourdthinker-hf[annotate]"')
    view = View(shot.frames, camera.homographies)
    paths: list[Path] = []
    failed: list[np.ndarray] = []
    for frame, mask in _seeds(view):
        if any(_covers(path.masks[frame], mask) for path in paths) or any(
            _alike(masks[frame], mask) for masks in failed
        ):
            continue
        masks, sure = _follow(view, frame, mask)
        if sure == 0:
            failed.append(masks)
        elif not any(same_thing(masks, path.masks) for path in paths):
            paths.append(Path(masks, view.returned(masks), sure))
    return choose_tracks(view, paths)


@dataclass(frozen=True)
class Path:
    """A thing followed; `sure` is 0 to 1: that it is one."""

    masks: np.ndarray  # (T, h, w) bool, in the view's size
    given: np.ndarray  # (T, H, W) bool, the same in the shot's size
    sure: float
    name: str = "object"


class View:
    """A shot of T frames as it is worked on, (h, w) of about `AREA` pixels, and what moves beside the camera."""

    def __init__(self, frames: np.ndarray, homographies: np.ndarray) -> None:
        self.given = frames.shape[1:3]
        scale = (AREA / (self.given[0] * self.given[1])) ** 0.5
        self.height, self.width = (max(16, round(side * scale)) for side in self.given)
        way = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
        self.frames = [cv2.resize(frame, (self.width, self.height), interpolation=way) for frame in frames]
        self.grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in self.frames]
        self.codes = [
            (frame // (256 // LEVELS)).astype(np.int32) @ np.array([LEVELS**2, LEVELS, 1], np.int32)
            for frame in self.frames
        ]
        x, y = self.width / self.given[1], self.height / self.given[0]
        grow = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])  # centres of pixels are whole numbers
        self.steps = grow @ homographies @ np.linalg.inv(grow)
        self.length, self.least = len(frames), SMALLEST * self.height * self.width
        self.pixels = np.stack(np.meshgrid(np.arange(self.width), np.arange(self.height)), -1).astype(np.float32)
        self.dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self.places: dict[tuple[int, int], np.ndarray] = {}

    def camera(self, s: int, t: int) -> np.ndarray:
        """Homography (3, 3) from frame s to frame t."""
        matrix = np.eye(3)
        for step in self.steps[min(s, t) : max(s, t)]:
            matrix = step @ matrix
        return matrix if s <= t else np.linalg.inv(matrix)

    def residual(self, s: int, t: int) -> np.ndarray:
        """Motion (h, w, 2) of frame s's pixels until frame t, beside the camera's, in pixels of frame s."""
        matrix, size = self.camera(s, t), (self.width, self.height)
        warped = cv2.warpPerspective(
            self.grey[t], matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
        )
        seen = cv2.warpPerspective(
            np.ones_like(self.grey[t]), matrix, size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        )
        return self.dis.calc(self.grey[s], warped, None) * seen[..., None]

    def motion(self, t: int) -> np.ndarray:
        """Pixels (h, w) that things move beside the camera, the least of both ways: what gets uncovered has no match
        one way; the larger of a short and a long step."""
        steps = [
            np.minimum.reduce([np.linalg.norm(self.residual(t, u), axis=-1) for u in neighbours])
            for gap in (1, GAP)
            if (neighbours := [u for u in (t - gap, t + gap) if 0 <= u < self.length])
        ]
        return np.maximum.reduce(steps)

    def carried(self, mask: np.ndarray, s: int, t: int) -> np.ndarray:
        """Frame s's mask (h, w) in frame t, next to it, by the flow."""
        if (s, t) not in self.places:
            points = (self.pixels + self.residual(t, s)).reshape(1, -1, 2)
            places = cv2.perspectiveTransform(points, self.camera(t, s))
            self.places[s, t] = places.reshape(self.height, self.width, 2)
        return cv2.remap(mask.view(np.uint8), self.places[s, t], None, cv2.INTER_NEAREST).view(bool)

    def moved(self, mask: np.ndarray, s: int, t: int, by: np.ndarray) -> np.ndarray:
        """Frame s's mask (h, w) in frame t, had it moved with the camera and `by` (x, y) pixels."""
        shift = np.array([[1, 0, by[0]], [0, 1, by[1]], [0, 0, 1]])
        size = (self.width, self.height)
        moved = cv2.warpPerspective(mask.view(np.uint8), shift @ self.camera(s, t), size, flags=cv2.INTER_NEAREST)
        return moved.view(bool)

    def returned(self, masks: np.ndarray) -> np.ndarray:
        """Masks (T, h, w) in the shot's size."""
        if self.given == (self.height, self.width):
            return masks
        way = cv2.INTER_AREA if self.given[0] < self.height else cv2.INTER_LINEAR
        shares = (cv2.resize(mask.astype(np.float32), self.given[::-1], interpolation=way) for mask in masks)
        return np.stack([share >= 0.5 for share in shares])


# Seeds


def _seeds(view: View) -> list[tuple[int, np.ndarray]]:
    """(frame, mask) of what may be a thing, the most promising first."""
    found = []
    for t in range(0, view.length, EVERY):
        motion = view.motion(t)
        moved = motion > max(DRIFT, NOISE * float(np.median(motion)))
        for evidence in (moved, _confined(view.codes[t])):
            shown = cv2.morphologyEx(evidence.view(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
            _, labels, stats, _ = cv2.connectedComponentsWithStats(shown)
            areas = stats[1:, cv2.CC_STAT_AREA]
            for k in np.argsort(-areas)[:TRIED]:
                if not view.least <= areas[k] <= LARGEST * view.height * view.width:
                    continue
                region = labels == k + 1
                mask, contrast = _cut_out(view, t, region)
                area = np.count_nonzero(mask)
                if area < view.least or contrast < CONTRAST / 2 or _is_background(mask):
                    continue
                agreed = np.count_nonzero(mask & region) / np.count_nonzero(mask | region)
                promise = contrast * _fill(mask) ** 2 * agreed * (area / view.least) ** 0.25
                promise *= (0.5 + moved[mask].mean()) * (0.7 if _at_border(mask) else 1.0)
                found.append((promise, t, mask))
    return [(t, mask) for _, t, mask in sorted(found, key=lambda seed: -seed[0])]


def _confined(codes: np.ndarray) -> np.ndarray:
    """Pixels (h, w) of colours that are found in one place of the picture only."""
    y, x = np.indices(codes.shape) / np.array(codes.shape)[:, None, None]
    weights = (np.ones_like(x), x, y, x * x + y * y)
    count, x, y, square = (_spread(np.bincount(codes.reshape(-1), w.reshape(-1), LEVELS**3)) for w in weights)
    count = np.maximum(count, 1e-9)
    return (square / count - (x / count) ** 2 - (y / count) ** 2 < PLACE**2)[codes]


def _cut_out(view: View, t: int, region: np.ndarray) -> tuple[np.ndarray, float]:
    """Mask and contrast of what a region of frame t shows: what has the colours of the region's core."""
    depth = cv2.distanceTransform(region.view(np.uint8), cv2.DIST_L2, 3)
    mask, contrast = depth > min(3.0, depth.max() / 2), 0.0
    for share in (0.3, 0.2, 0.2):
        size = np.count_nonzero(mask) ** 0.5
        mask, contrast = _cut(view, t, mask, None, share * size + 2, 1.5 * size)
        if not mask.any():
            break
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8))
        mask = labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
    return mask, contrast


def _fill(mask: np.ndarray) -> float:
    """Share of its convex hull that a mask fills."""
    edges, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = cv2.convexHull(np.concatenate(edges))
    around = cv2.contourArea(hull) + cv2.arcLength(hull, True) / 2 + 1  # through the pixels' centres; Pick's theorem
    return np.count_nonzero(mask) / around


def _sides(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return mask[0], mask[-1], mask[:, 0], mask[:, -1]


def _at_border(mask: np.ndarray) -> bool:
    return any(side.any() for side in _sides(mask))


def _is_background(mask: np.ndarray) -> bool:
    """Whether it reaches from side to side, or lies along them: a sky, a wall, a floor."""
    top, bottom, left, right = (np.count_nonzero(side) for side in _sides(mask))
    along = top + bottom + left + right
    return bool(top and bottom or left and right) or along > max(
        1.8 * np.count_nonzero(mask) ** 0.5, 0.4 * min(mask.shape)
    )


def _covers(mask: np.ndarray, other: np.ndarray) -> bool:
    least = min(np.count_nonzero(mask), np.count_nonzero(other))
    return np.count_nonzero(mask & other) > 0.3 * max(least, 1)


def _alike(mask: np.ndarray, other: np.ndarray) -> bool:
    return np.count_nonzero(mask & other) > 0.5 * np.count_nonzero(mask | other)


def same_thing(masks: np.ndarray, others: np.ndarray) -> bool:
    """Whether one covers half of the other in a third of the frames that show both."""
    both = np.nonzero(masks.any((1, 2)) & others.any((1, 2)))[0]
    shared = [
        np.count_nonzero(masks[t] & others[t]) > 0.5 * min(np.count_nonzero(masks[t]), np.count_nonzero(others[t]))
        for t in both
    ]
    return bool(shared) and bool(np.mean(shared) > 1 / 3)


# Cutting out, and following


def _spread(values: np.ndarray) -> np.ndarray:
    """Values (LEVELS ** 3,) by colour, each spread a little to the neighbouring colours: by (1, 2, 1) / 4 each way."""
    cube = values.reshape((LEVELS,) * 3).astype(np.float64)
    for axis in range(3):
        lines = np.moveaxis(cube, axis, 0)
        spread = 0.5 * lines
        spread[1:] += 0.25 * lines[:-1]
        spread[:-1] += 0.25 * lines[1:]
        spread[0] += 0.25 * lines[0]
        spread[-1] += 0.25 * lines[-1]
        cube = np.moveaxis(spread, 0, axis)
    return cube.reshape(-1)


def _histogram(codes: np.ndarray) -> np.ndarray:
    """Shares (LEVELS ** 3,) of the colours of some pixels."""
    return _spread(np.bincount(codes, minlength=LEVELS**3)) / max(len(codes), 1)


def _cut(
    view: View, t: int, guess: np.ndarray, colours: np.ndarray | None, band: float, wide: float
) -> tuple[np.ndarray, float]:
    """The mask (h, w) near `guess` of what has its `colours`, by default those in the guess, rather than those up to
    `wide` pixels around; and the contrast of the two. Within `band` pixels of the guess's outline colour decides."""
    x, y, w, h = cv2.boundingRect(guess.view(np.uint8))
    margin = int(3 * band + wide) + 4
    box = (slice(max(0, y - margin), y + h + margin), slice(max(0, x - margin), x + w + margin))
    near, codes = guess[box].astype(np.uint8), view.codes[t][box]
    inside = cv2.distanceTransform(near, cv2.DIST_L2, 3)
    outside = cv2.distanceTransform(1 - near, cv2.DIST_L2, 3)
    own = _histogram(codes[near > 0]) if colours is None else colours
    around = _histogram(codes[outside > band / 2])
    ratio = np.log((own + RARE) / (around + RARE))
    votes = np.clip(ratio, -4, 4)[codes].astype(np.float32)
    votes += np.clip(2 * (inside - outside) / band, -8, 1.5)
    cut = (cv2.GaussianBlur(votes, (0, 0), 1.0) > 0).astype(np.uint8)
    cut = cv2.morphologyEx(cut, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    count, labels = cv2.connectedComponents(cut)
    if count > 2:  # what is hidden in the middle has parts; what lies beside the guess is something else
        shared = np.bincount(labels[near > 0], minlength=count)
        shared[0] = 0
        cut = (shared > 0.25 * shared.max())[labels]
    mask = np.zeros((view.height, view.width), bool)
    mask[box] = cut
    pixels = codes[cut > 0]
    return mask, float(ratio[pixels].mean()) if len(pixels) else -np.inf


def _follow(view: View, start: int, seed: np.ndarray) -> tuple[np.ndarray, float]:
    """Carry the seed of frame `start` to both ends of the shot: masks (T, h, w), and how sure they show one thing."""
    colours, contrasts = _histogram(view.codes[start][seed]), []
    masks = np.zeros((view.length, view.height, view.width), bool)
    masks[start] = seed
    for way in (1, -1):
        mask, model, seen, pace = seed, colours, start, np.zeros(2)
        t = start + way
        while 0 <= t < view.length and abs(t - seen) <= HIDDEN:
            if found := _find(view, mask, model, seen, t, pace):
                now, contrast = found
                moved = centre(now) - centre(view.moved(mask, seen, t, np.zeros(2)))
                pace = (pace + moved / abs(t - seen)) / 2
                masks[t] = mask = now
                seen = t
                model = 0.9 * model + 0.05 * colours + 0.05 * _histogram(view.codes[t][now])
                contrasts.append(contrast)
                if len(contrasts) >= SPAN and np.mean(contrasts) < CONTRAST:
                    return masks, 0.0
            t += way
    contrast = float(np.mean(contrasts)) if len(contrasts) >= FEWEST - 1 else 0.0
    shown = masks[masks.any((1, 2))]
    if contrast < CONTRAST or np.mean([_is_background(mask) for mask in shown]) > 0.3:
        return masks, 0.0
    return masks, min(1.0, contrast / (2 * CONTRAST))


def _find(
    view: View, mask: np.ndarray, colours: np.ndarray, s: int, t: int, pace: np.ndarray
) -> tuple[np.ndarray, float] | None:
    """Frame s's thing in frame t, and its contrast: where the flow, or its pace of late, has it; None if not there."""
    lag, area = abs(t - s), np.count_nonzero(mask)
    guesses = [view.moved(mask, s, t, lag * pace)]
    if lag == 1:
        guesses.append(view.carried(mask, s, t))
    found = []
    for guess in guesses:
        size = np.count_nonzero(guess) ** 0.5
        if size**2 < view.least / 2:
            continue
        band = (0.02 + 0.1 * lag) * size + 2
        now, contrast = _cut(view, t, guess, colours, band, 0.7 * size)
        grown = np.count_nonzero(now)
        before = size**2
        for _ in range(3):  # it comes out from behind something, by more than the band
            if grown < GROWN * before:
                break
            before = grown
            now, contrast = _cut(view, t, now, colours, band, 0.7 * before**0.5)
            grown = np.count_nonzero(now)
        if max(view.least / 2, 0.4 * area) <= grown <= 3 * area + view.least and contrast > CONTRAST / 3:
            found.append((contrast * min(grown, area) / max(grown, area), now, contrast))
    return max(found, key=lambda one: one[0])[1:] if found else None


# What moves, and what to call it


def choose_tracks(view: View, paths: Sequence[Path]) -> list[Track]:
    """Tracks of what moves, the surest first, then of one thing that rests: well told apart, textured, long seen."""
    moving, resting = [], []
    for k, path in enumerate(paths):
        way = _way(view, path.masks, [other.masks for j, other in enumerate(paths) if j != k])
        clear = min(1.0, abs(np.log(max(way, 1e-3) / WAY)) / np.log(3))
        words = describe(view.frames, path.masks, path.name)
        track = Track(path.given, words, round(float(path.sure * clear), 3), way > WAY)
        if track.moving:
            moving.append(track)
        else:
            resting.append((_worth(view, path) * track.confidence, track))
    moving.sort(key=lambda track: -track.confidence)
    return moving + [max(resting, key=lambda one: one[0])[1]] if resting else moving


def _way(view: View, masks: np.ndarray, others: Sequence[np.ndarray]) -> float:
    """How far a thing gets in `SPAN` frames, or as long as it is seen, from where the camera's motion takes it: in its
    own size, the lesser of its centre's and its foot's way, 90% of the time. Frames in which the border or another
    thing cuts it off do not count, unless there are no others: then two thirds of the way do not."""
    areas = np.array([np.count_nonzero(mask) for mask in masks])
    seen = np.nonzero(areas)[0]
    clear = [t for t in seen.tolist() if not _at_border(masks[t]) and not _is_hidden(masks, areas, others, t)]
    trust = 1.0 if len(clear) >= FEWEST else 1 / 3
    times = np.array(clear if len(clear) >= FEWEST else seen)
    ways = []
    for s in times.tolist():
        t = int(times[(times <= s + SPAN)][-1])
        if t - s < 0.6 * min(SPAN, times[-1] - times[0]):
            continue
        before, after = _marks(masks[s]), _marks(masks[t])
        taken = cv2.perspectiveTransform(before[None], view.camera(s, t))[0]
        ways.append(np.linalg.norm(after - taken, axis=-1).min() / max(areas[s], areas[t]) ** 0.5)
    return trust * float(np.quantile(ways, 0.9)) if ways else 0.0


def _is_hidden(masks: np.ndarray, areas: np.ndarray, others: Sequence[np.ndarray], t: int) -> bool:
    """Whether a thing touches another in frame t, and is smaller than it was or will be within a second."""
    if areas[t] > 0.9 * areas[max(0, t - SPAN // 2) : t + SPAN // 2 + 1].max():
        return False
    wide = cv2.dilate(masks[t].view(np.uint8), np.ones((5, 5), np.uint8)).view(bool)
    return any((wide & other[t]).any() for other in others)


def _marks(mask: np.ndarray) -> np.ndarray:
    """Centre and foot (2, 2) float32 of a mask: (x, y) of its middle, and of the middle of its lowest twentieth."""
    y, x = np.nonzero(mask)
    return np.float32([[x.mean(), y.mean()], [x[y >= np.quantile(y, 0.95)].mean(), y.max()]])


def _worth(view: View, path: Path) -> float:
    """Of a landmark: the share of the frames that show it, times its texture, the slope of grey levels in a mask."""
    seen = np.nonzero(path.masks.any((1, 2)))[0]
    slopes = []
    for t in seen[:: max(1, len(seen) // 8)]:
        x, y = (cv2.Sobel(view.grey[t], cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1)))
        slopes.append(np.hypot(x, y)[path.masks[t]].mean())
    return len(seen) / view.length * float(np.mean(slopes))
