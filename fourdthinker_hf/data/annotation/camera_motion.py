"""Estimates how the camera moves in a shot: pan, tilt, roll, dolly, truck, pedestal, a pair of them, or not at all.

Between neighbouring frames, optical flow is measured at a grid of strong edges and corners (Lucas and Kanade's, from
OpenCV). At an edge only the component across it counts, since flow along an edge cannot be measured. Over half a
second, each motion and each pair of motions is fitted to these flows, robustly, so that objects that move by
themselves are ignored, and the simplest motion that explains the flows is chosen. For a camera of focal length f that
rotates by W and travels by V per second, a point at (x, y) of inverse depth q has the flow (u, v) below
(Longuet-Higgins and Prazdny, 1980). The axes are x right, y down and z ahead; x, y, u and v are divided by f.

    u = q (x Vz - Vx) + x y Wx - (1 + x^2) Wy + y Wz
    v = q (y Vz - Vy) + (1 + y^2) Wx - x y Wy - x Wz

Rotation moves points of all depths alike. For translation, q is taken as that of a plane, q = a + b x + c y, and not
negative: the ground, a wall, or a far background. What stands out of the plane is ignored like a moving object. The
camera is taken to be held level: it pans about the vertical and a pedestal moves along it, and the vertical is the
camera's own up direction turned by the pitch. Focal length and pitch are unknown. The values are used that explain the
shot best, among a few that are tried.
"""

import itertools
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ..question_vocabulary import STATIC_CAMERA
from .background_motion import BackgroundMotion, NamedMotion, find_plain_span, measure_background
from .shots import Shot

ROTATIONS, TRANSLATIONS = ("pan", "tilt", "roll"), ("truck", "pedestal", "dolly")
DIRECTIONS = {  # of a positive and of a negative rate
    "pan": ("right", "left"),
    "tilt": ("up", "down"),
    "roll": ("right", "left"),
    "truck": ("right", "left"),
    "pedestal": ("up", "down"),
    "dolly": ("in", "out"),
}
FOCAL_LENGTHS = (0.75, 1.0, 1.35)  # in longer sides of the picture: 67, 53 and 41 degrees of view
PITCHES = tuple(range(-10, 55, 5))  # degrees down
TRANSLATION_ANGLES = (30, 60, -30, -60)  # degrees between the two translations of a pair

# Flow. Its unit is the longer side of the picture, per second.
FLOW_SIDE = 448  # pixels of the longer side at which flow is measured
GRID_CELLS = 16  # along the longer side, with one point in each
MIN_EIGENVALUE = 6e-5  # what cornerEigenValsAndVecs gives for a slope of one grey level per pixel
WINDOW_STEPS = 4  # pairs of frames that are fitted together: half a second
MIN_FLOWS = 24  # flow components that a window needs
MAX_FLOWS = 400  # flow components of a window that are used
FLOW_NOISE = 0.02 / FLOW_SIDE * 8  # 0.02 pixels per frame: real flow is no more exact than this
MODEL_ERROR = 0.03  # share of the flow by which measurement and model may differ

# Which motions are possible.
MIN_MOTION_FLOW = 2 * FLOW_NOISE  # mean flow of a motion
MIN_MOTION_SHARE = 0.15  # flow of the lesser motion of a pair, relative to the greater one's
MAX_NEGATIVE_DEPTHS = 0.1  # share of points whose depth is negative

# Penalties, in mean log likelihood of a flow component.
MOTION_PENALTY, SECOND_MOTION_PENALTY, TRANSLATION_PENALTY = 0.05, 0.3, 0.03
SWITCH_PENALTY = 0.6  # for each change of motion between windows
ABSENT_PENALTY = 0.5  # below a static camera, for motions that a window cannot have

NUM_CALIBRATION_WINDOWS = 2  # those with the most flow, which focal length and pitch are fitted to
SURE_CONFIDENCE, NEARLY_SURE_CONFIDENCE = 0.7, 0.4  # of an estimate that the plain motion of a span contradicts
CONFIDENCE_SCALE = 0.15  # lead over the next best motion, in mean log likelihood, that gives a confidence of 63%


@dataclass(frozen=True)
class CameraMotionSpan:
    """The motions of the camera from `start` to `end` s: one or two sorted names, or "static" alone."""

    start: float
    end: float
    motions: tuple[str, ...]
    confidence: float  # 0 to 1
    is_plain: bool = False  # named by `background_motion.py`, whose confidences are on a scale of their own


@dataclass
class CameraMotion:
    """`homographies` (T - 1, 3, 3) float64 map pixels of the background in frame t to frame t + 1."""

    spans: list[CameraMotionSpan]
    homographies: np.ndarray
    background: BackgroundMotion | None = None  # None if the motion is known without measuring it


@dataclass(frozen=True)
class FlowComponents:
    """M components of optical flow: at a point, how far the picture moves in one direction."""

    points: np.ndarray  # (M, 2) from the picture's centre, in longer sides
    directions: np.ndarray  # (M, 2) unit vectors
    values: np.ndarray  # (M,) in longer sides


def estimate_camera_motion(shot: Shot) -> CameraMotion:
    """The camera's motions in a shot, span by span, and the homographies of its background.

    The confidence of a span grows with how much better its motions explain the flow than the next best ones, and with
    how much of the flow is explained. It is 0 where no flow can be measured. Raises `ValueError` if the shot has fewer
    than two frames.
    """
    if len(shot.frames) < 2:
        raise ValueError(
            f"{shot.video}: the camera's motion cannot be estimated from fewer than two frames, "
            f"and the shot has {len(shot.frames)}."
        )
    flows = [_measure_flow(before, after) for before, after in itertools.pairwise(map(_to_grey, shot.frames))]
    gaps = np.diff(shot.times)
    edges = np.linspace(0, len(flows), max(1, round(len(flows) / WINDOW_STEPS)) + 1).round().astype(int)
    windows = [_merge_flows(flows[a:b], gaps[a:b]) for a, b in itertools.pairwise(edges)]
    usable = [k for k, window in enumerate(windows) if len(window.values) >= MIN_FLOWS]
    scores, explained = [{(STATIC_CAMERA,): 0.0} for _ in windows], np.zeros(len(windows))
    if usable:
        by_flow = sorted(usable, key=lambda k: -np.median(np.abs(windows[k].values)))
        calibration = _fit_focal_length_and_pitch([windows[k] for k in by_flow[:NUM_CALIBRATION_WINDOWS]])
        for k in usable:
            (scores[k],), error = _score_motions(windows[k], *calibration)
            flow = float(np.median(np.abs(windows[k].values)))
            explained[k] = max(0.0, 1 - float(error[0]) / (flow + 10 * FLOW_NOISE))
    spans, begin = [], 0
    for motions, group in itertools.groupby(_best_path(scores)):
        end = begin + len(list(group))
        leads = []
        for table in scores[begin:end]:
            rivals = {*table, ()} - {motions}  # () stands for motions that the window cannot have
            leads.append(_score(table, motions) - max(_score(table, rival) for rival in rivals))
        confidence = float(1 - np.exp(-max(0.0, np.mean(leads)) / CONFIDENCE_SCALE))
        confidence *= float(explained[begin:end].mean())
        start_time = float(shot.times[edges[begin]]) if begin else shot.start
        end_time = float(shot.times[edges[end]]) if end < len(windows) else shot.end
        spans.append(CameraMotionSpan(start_time, end_time, motions, confidence))
        begin = end
    homographies = np.stack([_fit_homography(flow, *shot.frames.shape[1:3]) for flow in flows])
    background = measure_background(shot)
    if plain := find_plain_span(background):
        frames, named = plain
        spans = _put_plain_span(shot, spans, frames, named)
        if named.motions == (STATIC_CAMERA,):
            homographies[frames.start : frames.stop - 1] = np.eye(3)
    return CameraMotion(spans, homographies, background)


def _put_plain_span(
    shot: Shot, spans: list[CameraMotionSpan], frames: slice, named: NamedMotion
) -> list[CameraMotionSpan]:
    """Put the plain motion of some frames in the place of what was estimated there.

    Where the estimate was sure of something else, it is kept: it tells a pan from a truck better. Where it was not,
    but nearly so, neither is believed, and the confidence becomes 0.
    """
    start = float(shot.times[frames.start]) if frames.start else shot.start
    end = float(shot.times[frames.stop]) if frames.stop < len(shot.times) else shot.end
    inside = [span for span in spans if min(span.end, end) - max(span.start, start) > 0.25]
    rival = max((span.confidence for span in inside if span.motions != named.motions), default=0.0)
    if rival >= SURE_CONFIDENCE:
        return spans
    if rival >= NEARLY_SURE_CONFIDENCE:
        return [replace(span, confidence=0.0) if span in inside else span for span in spans]
    if all(span.motions == named.motions and span.confidence >= SURE_CONFIDENCE for span in spans):
        start, end = shot.start, shot.end  # both say the same of the whole shot
    before = [replace(span, end=min(span.end, start)) for span in spans if span.start < start]
    after = [replace(span, start=max(span.start, end)) for span in spans if span.end > end]
    return [*before, CameraMotionSpan(start, end, named.motions, named.confidence, True), *after]


# Flow


def _to_grey(frame: np.ndarray) -> np.ndarray:
    scale = FLOW_SIDE / max(frame.shape[:2])
    size = round(frame.shape[1] * scale), round(frame.shape[0] * scale)
    interpolation = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    return cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size, interpolation=interpolation)


def _strongest_features(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The strongest edge or corner of each grid cell.

    Returns points (N, 2) in pixels, directions across the edge (N, 2), and whether it is a corner (N,).
    """
    cell, margin = FLOW_SIDE // GRID_CELLS, 8
    eigen = cv2.cornerEigenValsAndVecs(grey, 9, 3)
    strength = np.zeros(grey.shape, np.float32)
    strength[margin:-margin, margin:-margin] = eigen[margin:-margin, margin:-margin, 0]
    rows, columns = -(-grey.shape[0] // cell), -(-grey.shape[1] // cell)
    padded = np.zeros((rows * cell, columns * cell), np.float32)
    padded[: grey.shape[0], : grey.shape[1]] = strength
    cells = padded.reshape(rows, cell, columns, cell).swapaxes(1, 2).reshape(rows * columns, -1)
    best = cells.argmax(1)
    y = np.repeat(np.arange(rows), columns) * cell + best // cell
    x = np.tile(np.arange(columns), rows) * cell + best % cell
    strong = cells.max(1) > MIN_EIGENVALUE
    x, y = x[strong], y[strong]
    larger, smaller = eigen[y, x, 0], eigen[y, x, 1]
    return np.stack([x, y], -1).astype(np.float32), eigen[y, x, 2:4], smaller > 0.04 * larger


def _measure_flow(before: np.ndarray, after: np.ndarray) -> FlowComponents:
    """The flow from one grey picture to the next. Flows whose way back does not end where they began are left out."""
    points, across, is_corner = _strongest_features(before)
    if len(points) == 0:
        return FlowComponents(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0))
    options = {"winSize": (19, 19), "maxLevel": 3, "criteria": (3, 20, 0.01), "minEigThreshold": 1e-5}
    there, found, _ = cv2.calcOpticalFlowPyrLK(before, after, points[:, None], None, **options)
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(after, before, there, None, **options)
    flow, error = there[:, 0] - points, back[:, 0] - points
    good = (found[:, 0] > 0) & (found_back[:, 0] > 0) & (np.abs((error * across).sum(-1)) < 0.3)
    is_corner &= good & (np.abs(error).max(-1) < 0.5)
    along = np.stack([-across[:, 1], across[:, 0]], -1)
    # A flow is placed half way along, where the model is right to second order in its length.
    points = (points + flow / 2 + 0.5 - np.array(before.shape[::-1]) / 2) / FLOW_SIDE
    values = np.concatenate([(flow * across).sum(-1)[good], (flow * along).sum(-1)[is_corner]])
    return FlowComponents(
        np.concatenate([points[good], points[is_corner]]),
        np.concatenate([across[good], along[is_corner]]),
        values / FLOW_SIDE,
    )


def _merge_flows(flows: list[FlowComponents], gaps: np.ndarray) -> FlowComponents:
    """The flows per second of a few pairs of frames, `gaps` s apart, evenly thinned to `MAX_FLOWS`."""
    values = np.concatenate([flow.values / gap for flow, gap in zip(flows, gaps, strict=True)])
    kept = np.unique(np.linspace(0, len(values) - 1, min(MAX_FLOWS, len(values))).round().astype(int))
    points = np.concatenate([flow.points for flow in flows])
    directions = np.concatenate([flow.directions for flow in flows])
    return FlowComponents(points[kept], directions[kept], values[kept])


# Fitting


def _robust_fit(
    design: np.ndarray, values: np.ndarray, scales: np.ndarray, weights: np.ndarray, ridge: float = 1e-9
) -> tuple[np.ndarray, np.ndarray]:
    """Fit `values` (M,) by B designs (B, M, P), by iteratively reweighted least squares with Cauchy's likelihood.

    The iterations begin with `weights` (B, M) and use the rows of `scales` (S, B) in turn. Returns coefficients (B, P)
    and residuals (B, M).
    """
    ridge = ridge * np.eye(design.shape[2])
    for scale in scales:
        weighted = (design * weights[..., None]).swapaxes(1, 2)
        coefficients = np.linalg.solve(weighted @ design + ridge, weighted @ values[:, None])
        residuals = values - (design @ coefficients)[..., 0]
        weights = 1 / (1 + (residuals / scale[:, None]) ** 2)
    return coefficients[..., 0], residuals


def _flow_columns(
    flows: FlowComponents, focal_lengths: np.ndarray, pitches: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns of the model in the module's docstring, for B focal lengths and pitches.

    Returns what a unit of each rotation (B, M, 3), and of each translation at depth 1 (B, M, 3), contributes to the
    measured flow components, and the terms 1, x, y of the plane's inverse depth (B, M, 3).
    """
    x, y = (flows.points[None, :, i] / focal_lengths[:, None] for i in range(2))
    zero, one = np.zeros_like(x), np.ones_like(x)
    cos, sin = np.cos(pitches)[:, None, None], np.sin(pitches)[:, None, None]
    tilt, roll = np.stack([x * y, 1 + y * y], -1), np.stack([y, -x], -1)
    pan = cos * np.stack([-1 - x * x, -x * y], -1) + sin * roll
    truck, dolly = np.stack([-one, zero], -1), np.stack([x, y], -1)
    pedestal = -cos * np.stack([zero, -one], -1) - sin * dolly
    columns = np.stack([pan, tilt, roll, truck, pedestal, dolly], -2) * focal_lengths[:, None, None, None]
    columns = np.einsum("bmki,mi->bmk", columns, flows.directions)
    return columns[..., :3], columns[..., 3:], np.stack([one, x, y], -1)


def _candidate_motions() -> list[tuple[tuple[int, ...], tuple[float, ...] | None]]:
    """(rotations, translation) of every candidate, those with fewer motions first.

    Rotations are indices into `ROTATIONS`. A translation is a direction in the axes of `TRANSLATIONS`, or None.
    """
    axes = [tuple(axis) for axis in np.eye(3).tolist()]
    diagonals = []
    for i, j in itertools.combinations(range(3), 2):
        for angle in np.radians(TRANSLATION_ANGLES):
            direction = [0.0, 0.0, 0.0]
            direction[i], direction[j] = float(np.cos(angle)), float(np.sin(angle))
            diagonals.append(tuple(direction))
    single = [((i,), None) for i in range(3)] + [((), axis) for axis in axes]
    rotation_pairs = [(pair, None) for pair in itertools.combinations(range(3), 2)]
    mixed_pairs = [((i,), axis) for i in range(3) for axis in axes]
    return single + rotation_pairs + mixed_pairs + [((), direction) for direction in diagonals]


CANDIDATE_MOTIONS = _candidate_motions()


def _score_motions(
    flows: FlowComponents, focal_lengths: np.ndarray, pitches: np.ndarray
) -> tuple[list[dict[tuple[str, ...], float]], np.ndarray]:
    """How well each set of motions explains the flows, for each of B focal lengths and pitches.

    A score is the mean log likelihood less the penalties. Also returns the scale (B,) of the errors.
    """
    rotations, translations, plane = _flow_columns(flows, focal_lengths, pitches)
    num = len(focal_lengths)
    all_columns = np.concatenate([rotations, *(translations[..., i : i + 1] * plane for i in range(3))], -1)
    min_scale = max(FLOW_NOISE, MODEL_ERROR * float(np.median(np.abs(flows.values))))
    wide = np.full((4, num), max(50 * FLOW_NOISE, 5 * min_scale))
    _, residuals = _robust_fit(all_columns, flows.values, wide, np.ones((num, len(flows.values))))
    scale = np.maximum(min_scale, 1.48 * np.median(np.abs(residuals), 1))
    weights = 1 / (1 + (residuals / scale[:, None]) ** 2)
    _, residuals = _robust_fit(all_columns, flows.values, np.tile(scale, (4, 1)), weights)
    scale = np.maximum(min_scale, 1.48 * np.median(np.abs(residuals), 1))
    weights = 1 / (1 + (residuals / scale[:, None]) ** 2)  # low for objects that move, which no camera motion fits

    def log_likelihood(residuals: np.ndarray) -> np.ndarray:
        return -0.5 * np.log1p((residuals / scale[:, None]) ** 2).mean(1)

    tables = [{(STATIC_CAMERA,): value} for value in log_likelihood(np.tile(flows.values, (num, 1))).tolist()]
    scales = np.stack([k * scale for k in (4, 2, 1, 1)])
    for which, direction in CANDIDATE_MOTIONS:
        design = rotations[..., list(which)]
        if direction is not None:
            design = np.concatenate([design, (translations @ np.array(direction))[..., None] * plane], -1)
        rates, residuals = _robust_fit(design, flows.values, scales, weights)
        names = [
            [f"{ROTATIONS[i]} {DIRECTIONS[ROTATIONS[i]][int(rate < 0)]}" for i, rate in zip(which, row, strict=False)]
            for row in rates
        ]
        parts = [rotations[..., i] * rates[:, k : k + 1] for k, i in enumerate(which)]  # the flow of each motion
        possible = np.ones(num, bool)
        if direction is not None:
            depths = np.einsum("bmp,bp->bm", plane, rates[:, len(which) :])  # inverse depths times the speed
            signs = np.sign(np.median(depths, 1))
            possible = (depths * signs[:, None] < 0).mean(1) < MAX_NEGATIVE_DEPTHS
            parts += [translations[..., i] * depths * part for i, part in enumerate(direction) if part]
            for row, sign in zip(names, signs, strict=True):
                row += [
                    f"{name} {DIRECTIONS[name][int(sign * part < 0)]}"
                    for name, part in zip(TRANSLATIONS, direction, strict=True)
                    if part
                ]
        sizes = np.stack([np.abs(part).mean(1) for part in parts])
        possible &= (sizes > np.maximum(MIN_MOTION_FLOW, MIN_MOTION_SHARE * sizes.max(0))).all(0)
        for table, name, value, ok in zip(tables, names, log_likelihood(residuals), possible, strict=True):
            if ok:
                penalty = MOTION_PENALTY + SECOND_MOTION_PENALTY * (len(name) - 1)
                penalty += TRANSLATION_PENALTY * (direction is not None)
                motions = tuple(sorted(name))
                table[motions] = max(float(value) - penalty, table.get(motions, -np.inf))
    return tables, scale


def _score(table: dict[tuple[str, ...], float], motions: tuple[str, ...]) -> float:
    return table.get(motions, table[(STATIC_CAMERA,)] - ABSENT_PENALTY)


def _best_path(tables: list[dict[tuple[str, ...], float]]) -> list[tuple[str, ...]]:
    """The motions of each window whose scores less `SWITCH_PENALTY` for every change are best in sum (Viterbi)."""
    names = sorted({name for table in tables for name in table})
    scores = np.array([[_score(table, name) for name in names] for table in tables])
    total, back = scores[0], []
    for row in scores[1:]:
        best = total.argmax()
        stay = total >= total[best] - SWITCH_PENALTY
        back.append(np.where(stay, np.arange(len(names)), best))
        total = np.where(stay, total, total[best] - SWITCH_PENALTY) + row
    path = [int(total.argmax())]
    for row in back[::-1]:
        path.append(int(row[path[-1]]))
    return [names[i] for i in path[::-1]]


def _fit_focal_length_and_pitch(windows: list[FlowComponents]) -> tuple[np.ndarray, np.ndarray]:
    """The focal length (1,) and the pitch (1,) in rad that explain the windows best, by a coarse and a fine search."""
    pitches, focal_lengths = np.radians(PITCHES), np.array(FOCAL_LENGTHS)
    for is_coarse in (True, False):
        grid = np.array(list(itertools.product(focal_lengths, pitches))).T
        totals = np.sum([[max(table.values()) for table in _score_motions(window, *grid)[0]] for window in windows], 0)
        focal_length, pitch = grid[:, totals.argmax()]
        if is_coarse:
            focal_lengths = focal_length * np.array([0.87, 1.0, 1.15])
            pitches = pitch + np.radians([-2.5, 0.0, 2.5])
    return np.array([focal_length]), np.array([pitch])


def _fit_homography(flows: FlowComponents, height: int, width: int) -> np.ndarray:
    """The homography (3, 3) that most pixels of a picture follow.

    The flow of a plane has eight coefficients (put q = a + b x + c y into the formula of the module's docstring). They
    form the matrix whose exponential, here to second order, is the homography.
    """
    x, y = flows.points.T
    zero, one = np.zeros_like(x), np.ones_like(x)
    u = np.stack([one, x, y, zero, zero, zero, x * x, x * y], -1)
    v = np.stack([zero, zero, zero, one, x, y, x * y, y * y], -1)
    design = u * flows.directions[:, :1] + v * flows.directions[:, 1:]
    scales = 0.125 * FLOW_NOISE * np.array([200.0, 100.0, 50.0, 20.0, 10.0, 5.0, 5.0, 5.0])[:, None]
    coefficients, _ = _robust_fit(design[None], flows.values, scales, np.ones((1, len(x))), 1e-3)
    a, b, c, d, e, f, g, h = coefficients[0]
    half = np.array([[b, c, a], [e, f, d], [-g, -h, 0.0]]) / 2
    side = max(height, width)
    to_pixels = np.array([[side, 0, width / 2 - 0.5], [0, side, height / 2 - 0.5], [0, 0, 1]])
    homography = to_pixels @ np.linalg.solve(np.eye(3) - half, np.eye(3) + half) @ np.linalg.inv(to_pixels)
    return homography / homography[2, 2]
