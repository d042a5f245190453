"""Tracks what moves by itself before a camera that stands still, by its difference from the empty scene.

1. The empty scene is, pixel by pixel, the median over the frames in which nothing moves there (OpenCV's DIS flow).
2. What differs from it is foreground. A pixel that is only darker, in the same colour, lies in a shadow.
3. GrabCut (OpenCV) draws the boundary. What certainly does not differ is background to it.
4. Regions of neighbouring frames are linked if each is the best match of the other, forward and backward, and if the
   flow inside agrees. A track ends where its size jumps, because something joins it or leaves it.

Where an object never leaves its place the empty scene is unknown; water, leaves and light move to and fro. Neither
gets far, and what does not get far is refused.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ..question_vocabulary import STATIC_CAMERA
from .camera_motion import SURE_CONFIDENCE, CameraMotion
from .object_description import describe_object, mask_centre
from .shots import Shot
from .tracking import ScaledShot, Track, find_objects, is_same_object, solidity

MIN_FLOW = 0.5  # pixels in a frame, of what moves
MIN_CHANGE = 16.0  # sum of the changes of the three Lab colours between neighbouring frames
MIN_EMPTY_FRAMES = 3  # in which nothing moves at a pixel whose empty scene is known
MIN_DIFFERENCE, NOISE_FACTOR = 18.0, 6.0  # of foreground, in the Lab colours of OpenCV; times the noise
SHADOW_DARKNESS, SHADOW_COLOUR = (0.45, 0.97), 7.0  # lightness over that of the empty scene; distance of a and b
MIN_AREA, MAX_AREA = 1 / 500, 0.3  # of a region, as shares of the picture
MIN_FRAMES = 6  # of a track
MAX_AREA_RATIO = 2.5  # of the areas of a region in neighbouring frames
MAX_JUMP = 1.8  # between the centres of a region in neighbouring frames, in roots of its area
MIN_DISTANCE, MIN_DISTANCE_IN_SIZES = 0.06, 0.3  # that a track gets: longer sides of the picture, roots of its area
MIN_GROWTH = 0.35  # log of the root of the area, of a track that gets nearer or farther
MIN_SAME_MASK = 0.7  # mean intersection over union at which the mask by colour is kept
MIN_PLANE_SHARE = 0.9  # of the corners that follow one similarity, while the camera moves, for tracks to be believed
MIN_SOLIDITY = 0.5  # share of its convex hull that a region fills, in the median


@dataclass
class RegionTrack:
    """Masks (T, h, w) bool of one thing, and how sure it is that they show one thing that moves by itself."""

    masks: np.ndarray
    confidence: float


def find_moving_objects(shot: Shot, camera: CameraMotion) -> list[Track]:
    """The objects of a shot that move, by descending confidence, then at most one landmark.

    The tracks by colour (`tracking.py`) are believed where they are confirmed: before a camera that stands still, by
    the difference from the empty scene, whose own tracks are added; otherwise only if one plane explains the
    background so well that `camera_motion.py` is sure, since what stands out of it seems to move.
    """
    tracks = find_objects(shot, camera)
    if camera.background is None:
        return tracks
    if all(span.is_plain and span.motions == (STATIC_CAMERA,) for span in camera.spans):
        return _confirm(shot, camera, tracks)
    is_sure = all(span.confidence >= SURE_CONFIDENCE and not span.is_plain for span in camera.spans)
    if is_sure or float(camera.background.inliers.mean()) >= MIN_PLANE_SHARE:
        return tracks
    return [track for track in tracks if not track.moving]


def _confirm(shot: Shot, camera: CameraMotion, tracks: Sequence[Track]) -> list[Track]:
    scaled = ScaledShot(shot.frames, camera.homographies)
    found, confirmed = track_movers(scaled), []
    for region in found:
        masks = scaled.to_full_size(region.masks)
        same = [track for track in tracks if track.moving and is_same_object(track.masks, masks)]
        best = max(same, key=lambda track: _mean_overlap(track.masks, masks), default=None)
        if best is not None and _mean_overlap(best.masks, masks) >= MIN_SAME_MASK:
            confirmed.append(replace(best, confidence=max(best.confidence, region.confidence)))
        else:
            description = describe_object(scaled.frames, region.masks, "thing")
            confirmed.append(Track(masks, description, region.confidence, True))
    confirmed.sort(key=lambda track: -track.confidence)
    landmarks = [
        track
        for track in tracks
        if not track.moving and not any(is_same_object(track.masks, one.masks) for one in confirmed)
    ]
    return confirmed + landmarks


def _mean_overlap(masks: np.ndarray, others: np.ndarray) -> float:
    """The mean intersection over union over the frames of `others` that have a mask."""
    shown = others.any((1, 2))
    both, either = (masks & others).sum((1, 2))[shown], (masks | others).sum((1, 2))[shown]
    return float((both / np.maximum(either, 1)).mean())


def track_movers(shot: ScaledShot) -> list[RegionTrack]:
    """What moves by itself, the surest first. The camera must stand still throughout the shot."""
    regions = [_regions(shot, t, foreground) for t, foreground in enumerate(_foreground(shot))]
    tracks = []
    for chain in _link(regions):
        chain = _agreeing_part(shot, chain)
        if len(chain) >= MIN_FRAMES and (confidence := _confidence(shot, chain)) > 0:
            masks = np.zeros((shot.num_frames, shot.height, shot.width), bool)
            for t, region in chain:
                masks[t] = region
            tracks.append(RegionTrack(masks, confidence))
    return sorted(tracks, key=lambda track: -track.confidence)


def _foreground(shot: ScaledShot) -> list[np.ndarray]:
    """Pixels (h, w) uint8 of each frame: 2 where they differ from the empty scene, 1 where they may, else 0."""
    lab = np.stack([cv2.cvtColor(cv2.GaussianBlur(frame, (3, 3), 0), cv2.COLOR_RGB2LAB) for frame in shot.frames])
    lab = lab.astype(np.float32)
    light = np.maximum(lab[..., 0], 1)
    exposure = np.median(light / np.median(light, axis=0), axis=(1, 2))  # a camera may set it anew at any time
    lab[..., 0] /= exposure[:, None, None]
    moves = np.stack([_moves(shot, lab, t) for t in range(shot.num_frames)])
    known = (~moves).sum(0) >= MIN_EMPTY_FRAMES
    still = np.where((~moves | ~known)[..., None], lab, np.nan)
    empty = np.nanmedian(still, axis=0)
    noise = float(np.nanmedian(np.abs(lab - empty)))
    limit = max(MIN_DIFFERENCE, NOISE_FACTOR * noise)
    result = []
    for t in range(shot.num_frames):
        offset = lab[t] - empty
        difference = np.sqrt(0.5 * offset[..., 0] ** 2 + 2 * (offset[..., 1] ** 2 + offset[..., 2] ** 2))
        lightness = lab[t, ..., 0] / np.maximum(empty[..., 0], 1)
        shadow = (lightness > SHADOW_DARKNESS[0]) & (lightness < SHADOW_DARKNESS[1])
        shadow &= np.hypot(offset[..., 1], offset[..., 2]) < SHADOW_COLOUR
        shadow &= difference < 2.5 * limit
        level = (difference > limit / 2).astype(np.uint8) + (difference > limit)
        level[~known] = 1 + moves[t][~known]
        result.append(np.where(shadow, np.minimum(level, 1), level).astype(np.uint8))
    return result


def _moves(shot: ScaledShot, lab: np.ndarray, t: int) -> np.ndarray:
    """Pixels (h, w) bool of frame t that change from frame to frame or lie between such pixels, and have flow.

    Flow alone spreads over what has no texture, beyond the object that moves.
    """
    neighbours = [u for u in (t - 1, t + 1) if 0 <= u < shot.num_frames]
    change = np.maximum.reduce([np.abs(lab[t] - lab[u]).sum(-1) for u in neighbours])
    changed = cv2.morphologyEx((change > MIN_CHANGE).view(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    filled = cv2.morphologyEx(changed, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (15, 15)))
    return (cv2.dilate(filled, np.ones((3, 3), np.uint8)) > 0) & (shot.motion(t) > MIN_FLOW)


def _regions(shot: ScaledShot, t: int, foreground: np.ndarray) -> list[np.ndarray]:
    """The regions (h, w) bool of foreground in frame t, bounded by GrabCut."""
    core = cv2.morphologyEx((foreground == 2).view(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    core = cv2.morphologyEx(core, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
    count, parts, stats, _ = cv2.connectedComponentsWithStats(core)
    regions = []
    for k in range(1, count):
        area = stats[k, cv2.CC_STAT_AREA]
        if MIN_AREA * core.size <= area <= MAX_AREA * core.size:
            bounded = _bound(shot.frames[t], parts == k, foreground)
            if MIN_AREA * core.size <= np.count_nonzero(bounded) <= MAX_AREA * core.size:
                regions.append(bounded)
    return regions


def _bound(frame: np.ndarray, region: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    x, y, width, height = cv2.boundingRect(region.view(np.uint8))
    margin = 12
    box = (slice(max(0, y - margin), y + height + margin), slice(max(0, x - margin), x + width + margin))
    near, level = region[box].view(np.uint8), foreground[box]
    around = cv2.dilate(near, np.ones((7, 7), np.uint8)) > 0
    labels = np.full(near.shape, cv2.GC_BGD, np.uint8)
    labels[around & (level > 0)] = cv2.GC_PR_BGD
    labels[near > 0] = cv2.GC_PR_FGD
    labels[(cv2.erode(near, np.ones((5, 5), np.uint8)) > 0) & (level == 2)] = cv2.GC_FGD
    if not (labels == cv2.GC_FGD).any() or not (labels == cv2.GC_BGD).any():
        return region
    cv2.setRNGSeed(0)
    picture = np.ascontiguousarray(frame[box])
    cv2.grabCut(picture, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), 1, cv2.GC_INIT_WITH_MASK)
    segment = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    segment = cv2.morphologyEx(segment, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    _, parts, stats, _ = cv2.connectedComponentsWithStats(segment)
    if len(stats) > 1:
        segment = (parts == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    contours, _ = cv2.findContours(segment, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(segment, contours, -1, 1, cv2.FILLED)  # what is inside and looks like the scene belongs to it
    mask = np.zeros_like(region)
    mask[box] = segment > 0
    return mask


def _link(regions: list[list[np.ndarray]]) -> list[list[tuple[int, np.ndarray]]]:
    """Chains of (frame, region): each region is the best match of the one before it, and that one of it."""
    chains: list[list[tuple[int, np.ndarray]]] = []
    open_chains: list[list[tuple[int, np.ndarray]]] = []
    for t, found in enumerate(regions):
        scores = np.array([[_match(chain, region) for region in found] for chain in open_chains])
        scores = scores.reshape(len(open_chains), len(found))
        taken, still_open = set(), []
        for i, chain in enumerate(open_chains):
            j = int(scores[i].argmax()) if len(found) else -1
            if j >= 0 and scores[i, j] > 0 and scores[:, j].argmax() == i:
                chain.append((t, found[j]))
                taken.add(j)
                still_open.append(chain)
        new = [[(t, region)] for j, region in enumerate(found) if j not in taken]
        chains += new
        open_chains = still_open + new
    return chains


def _match(chain: list[tuple[int, np.ndarray]], region: np.ndarray) -> float:
    """How well a region continues a chain; 0 if its size jumps, or if it is too far from where it should be."""
    last = chain[-1][1]
    areas = sorted((np.count_nonzero(last), np.count_nonzero(region)))
    if areas[1] > MAX_AREA_RATIO * areas[0]:
        return 0.0
    expected = mask_centre(last)
    if len(chain) > 1:
        expected = 2 * expected - mask_centre(chain[-2][1])
    distance = float(np.linalg.norm(mask_centre(region) - expected)) / areas[1] ** 0.5
    return max(0.0, 1 - distance / MAX_JUMP) * areas[0] / areas[1]


def _agreeing_part(shot: ScaledShot, chain: list[tuple[int, np.ndarray]]) -> list[tuple[int, np.ndarray]]:
    """The longest part of a chain in which the centre goes where the flow inside goes; one step may differ."""
    agrees = []
    for (s, before), (t, after) in itertools.pairwise(chain):
        step = mask_centre(after) - mask_centre(before)
        flow = np.median(shot.remaining_flow(s, t)[before], axis=0)
        agrees.append(float(np.linalg.norm(step - flow)) <= max(3.0, 0.75 * float(np.linalg.norm(step))))
    best, begin = (0, 1), 0
    for k, agree in enumerate(agrees):
        if not agree and k and not agrees[k - 1]:
            begin = k + 1
        elif agree and k + 2 - begin > best[1] - best[0]:
            best = (begin, k + 2)
    return chain[best[0] : best[1]]


def _confidence(shot: ScaledShot, chain: list[tuple[int, np.ndarray]]) -> float:
    """That a chain shows one thing that moves by itself: 0 if a requirement is not met, else 0.5 to 1."""
    centres = np.stack([mask_centre(region) for _, region in chain])
    areas = np.array([np.count_nonzero(region) for _, region in chain])
    size = float(np.median(areas)) ** 0.5
    distance = float(np.linalg.norm(centres - centres[0], axis=1).max())
    growth = float(np.ptp(np.log(areas))) / 2
    reach = min(distance / (MIN_DISTANCE * max(shot.width, shot.height)), distance / (MIN_DISTANCE_IN_SIZES * size))
    least = min(max(reach, growth / MIN_GROWTH), float(np.median([solidity(r) for _, r in chain])) / MIN_SOLIDITY)
    return 0.0 if least < 1 else least / (1 + least)
