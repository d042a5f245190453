"""How the camera moves, from pixels: pan, tilt, roll, dolly, truck, pedestal, pairs of them, or none, span by span.

Between neighbouring frames, the flow at a grid of strong edges and corners is measured (Lucas and Kanade's, OpenCV).
At an edge only the part across it counts: stripes have nothing else. Over half a second, every motion and pair of
motions is fitted to these flows, robustly, so that what moves by itself does not count, and the simplest one that
explains them is told. For a camera of focal length f that turns by W and travels by V (per second), a point at (x, y)
of inverse depth q flows by (Longuet-Higgins and Prazdny, 1980; x right, y down, z ahead, divided by f)

    u = q (x Vz - Vx) + x y Wx - (1 + x^2) Wy + y Wz
    v = q (y Vz - Vy) + (1 + y^2) Wx - x y Wy - x Wz

Turning moves all depths alike. For travelling, q is taken as a plane's, q = a + b x + c y, not negative: a ground, a
wall, or what is far; what stands out of it counts as something that moves by itself. A camera is taken as held level:
its pan turns and its pedestal travels along the vertical, which is its own up leant by the pitch. Focal length and
pitch are not known: of a few, those are taken that explain the shot best.
"""

import itertools
from dataclasses import dataclass

import cv2
import numpy as np

from ..vocabulary import STATIC_CAMERA
from .shots import Shot

TURNS, TRAVELS = ("pan", "tilt", "roll"), ("truck", "pedestal", "dolly")
WAYS = {
    "pan": ("right", "left"),
    "tilt": ("up", "down"),
    "roll": ("right", "left"),
    "truck": ("right", "left"),
    "pedestal": ("up", "down"),
    "dolly": ("in", "out"),
}
FOCALS = (0.75, 1.0, 1.35)  # over the longer side: 67, 53 and 41 degrees of view
PITCHES = tuple(range(-10, 55, 5))  # degrees down
MIXES = (30, 60, -30, -60)  # degrees between two travels
SIDE = 448  # pixels of the longer side that flow is measured at
CELLS = 16  # along the longer side: a point each
STEPS = 4  # frame pairs fitted together: half a second
ASKED = 2  # windows, those of most motion, that focal length and pitch are taken from
FEWEST = 24  # measured flows below which a window tells nothing
SURE = 0.15  # a lead, in mean log likelihood of a flow, that makes for a confidence of 63%
NOISE = 0.02 / SIDE * 8  # of the longer side a second: 0.02 pixels a frame, which real flow is not better than
STILL = 2 * NOISE  # a motion that gives less than this flow is none
ROWS = 400  # measured flows at most that a window is fitted to
# What a fit must gain for each motion it takes, in mean log likelihood of a flow; and for another span.
PRICE, SECOND, SWITCH = 0.05, 0.3, 0.6
TRAVEL = 0.03  # for the depths that a travel takes
ABSENT = 0.5  # the same, for motions that a window does not have, below being still
FAINT = 6e-5  # what cornerEigenValsAndVecs gives for slopes of one grey level a pixel
MINOR = 0.15  # of two motions, the one with less flow has this share of the other's
ROUGH = 0.03  # of the flow: what measure and model may be off by
BEHIND = 0.1  # share of points that may have a negative depth


@dataclass(frozen=True)
class CameraSpan:
    """One or two motions (sorted names, or "static" alone) from `start` to `end` s; `confidence` is 0 to 1."""

    start: float
    end: float
    motions: tuple[str, ...]
    confidence: float


@dataclass
class Camera:
    """`homographies` (T-1, 3, 3) float64 take pixels of the background in frame t to frame t + 1."""

    spans: list[CameraSpan]
    homographies: np.ndarray


@dataclass(frozen=True)
class Flows:
    """M measured parts of flows: at `points` (M, 2), along unit `across` (M, 2), by `sizes` (M,). Lengths are over
    the picture's longer side, from its centre."""

    points: np.ndarray
    across: np.ndarray
    sizes: np.ndarray


def _grey(frame: np.ndarray) -> np.ndarray:
    scale = SIDE / max(frame.shape[:2])
    size = round(frame.shape[1] * scale), round(frame.shape[0] * scale)
    interpolation = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    return cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size, interpolation=interpolation)


def _strongest(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The strongest edge or corner of every cell: points (N, 2) in pixels, directions across the edge (N, 2), and
    whether it is a corner (N,)."""
    cell, margin = SIDE // CELLS, 8
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
    seen = cells.max(1) > FAINT
    x, y = x[seen], y[seen]
    big, small = eigen[y, x, 0], eigen[y, x, 1]
    return np.stack([x, y], -1).astype(np.float32), eigen[y, x, 2:4], small > 0.04 * big


def _measure(before: np.ndarray, after: np.ndarray) -> Flows:
    """Flows from one grey picture to the next; those are left out that do not lead back to where they began."""
    points, across, corner = _strongest(before)
    if len(points) == 0:
        return Flows(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0))
    options = {"winSize": (19, 19), "maxLevel": 3, "criteria": (3, 20, 0.01), "minEigThreshold": 1e-5}
    there, found, _ = cv2.calcOpticalFlowPyrLK(before, after, points[:, None], None, **options)
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(after, before, there, None, **options)
    flow, error = there[:, 0] - points, back[:, 0] - points
    good = (found[:, 0] > 0) & (found_back[:, 0] > 0) & (np.abs((error * across).sum(-1)) < 0.3)
    corner &= good & (np.abs(error).max(-1) < 0.5)
    along = np.stack([-across[:, 1], across[:, 0]], -1)
    points = (points + flow / 2 + 0.5 - np.array(before.shape[::-1]) / 2) / SIDE  # half way: right to second order
    sizes = np.concatenate([(flow * across).sum(-1)[good], (flow * along).sum(-1)[corner]])
    return Flows(
        np.concatenate([points[good], points[corner]]), np.concatenate([across[good], along[corner]]), sizes / SIDE
    )


def _solve(
    design: np.ndarray, sizes: np.ndarray, scales: np.ndarray, start: np.ndarray, ridge: float = 1e-9
) -> tuple[np.ndarray, np.ndarray]:
    """Robust fits (Cauchy's likelihood, reweighted least squares) of `sizes` (M,) by designs (B, M, P), with
    `scales` (S, B) in turn and first weights (M,); returns coefficients (B, P) and residuals (B, M)."""
    weights, ridge = start, ridge * np.eye(design.shape[2])
    for scale in scales:
        weighted = (design * weights[..., None]).swapaxes(1, 2)
        found = np.linalg.solve(weighted @ design + ridge, weighted @ sizes[:, None])
        residuals = sizes - (design @ found)[..., 0]
        weights = 1 / (1 + (residuals / scale[:, None]) ** 2)
    return found[..., 0], residuals


def _columns(flows: Flows, focals: np.ndarray, pitches: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For B focal lengths and pitches: what a unit of each turn (B, M, 3) and each travel at depth 1 (B, M, 3)
    contributes to the measured flows, and the plane's terms (B, M, 3)."""
    x, y = (flows.points[None, :, i] / focals[:, None] for i in range(2))
    zero, one = np.zeros_like(x), np.ones_like(x)
    cos, sin = np.cos(pitches)[:, None, None], np.sin(pitches)[:, None, None]
    tilt, roll = np.stack([x * y, 1 + y * y], -1), np.stack([y, -x], -1)
    pan = cos * np.stack([-1 - x * x, -x * y], -1) + sin * roll
    truck, dolly = np.stack([-one, zero], -1), np.stack([x, y], -1)
    pedestal = -cos * np.stack([zero, -one], -1) - sin * dolly
    parts = np.stack([pan, tilt, roll, truck, pedestal, dolly], -2) * focals[:, None, None, None]
    parts = np.einsum("bmki,mi->bmk", parts, flows.across)
    return parts[..., :3], parts[..., 3:], np.stack([one, x, y], -1)


def _candidates() -> list[tuple[tuple[int, ...], tuple[float, ...] | None]]:
    """Which turns, and which way of travelling, each candidate has; those with fewer motions first."""
    ways = [tuple(way) for way in np.eye(3).tolist()]
    mixed = []
    for i, j in itertools.combinations(range(3), 2):
        for mix in np.radians(MIXES):
            way = [0.0, 0.0, 0.0]
            way[i], way[j] = float(np.cos(mix)), float(np.sin(mix))
            mixed.append(tuple(way))
    single = [((i,), None) for i in range(3)] + [((), way) for way in ways]
    pairs = [(pair, None) for pair in itertools.combinations(range(3), 2)]
    return single + pairs + [((i,), way) for i in range(3) for way in ways] + [((), way) for way in mixed]


CANDIDATES = _candidates()


def _fits(
    flows: Flows, focals: np.ndarray, pitches: np.ndarray
) -> tuple[list[dict[tuple[str, ...], float]], np.ndarray]:
    """For each of B focal lengths and pitches: how well each set of motions explains the flows, as mean log likelihood
    less its price; and the scale (B,) that errors are measured by."""
    turns, travels, plane = _columns(flows, focals, pitches)
    num = len(focals)
    every = np.concatenate([turns, *(travels[..., i : i + 1] * plane for i in range(3))], -1)
    floor = max(NOISE, ROUGH * float(np.median(np.abs(flows.sizes))))
    wide = np.full((4, num), max(50 * NOISE, 5 * floor))
    _, residuals = _solve(every, flows.sizes, wide, np.ones((num, len(flows.sizes))))
    scale = np.maximum(floor, 1.48 * np.median(np.abs(residuals), 1))
    _, residuals = _solve(every, flows.sizes, np.tile(scale, (4, 1)), 1 / (1 + (residuals / scale[:, None]) ** 2))
    scale = np.maximum(floor, 1.48 * np.median(np.abs(residuals), 1))
    still = 1 / (1 + (residuals / scale[:, None]) ** 2)  # what moves by itself fits no motion of the camera

    def score(residuals: np.ndarray) -> np.ndarray:
        return -0.5 * np.log1p((residuals / scale[:, None]) ** 2).mean(1)

    found = [{(STATIC_CAMERA,): value} for value in score(np.tile(flows.sizes, (num, 1))).tolist()]
    scales = np.stack([k * scale for k in (4, 2, 1, 1)])
    for which, way in CANDIDATES:
        design = turns[..., list(which)]
        if way is not None:
            design = np.concatenate([design, (travels @ np.array(way))[..., None] * plane], -1)
        values, residuals = _solve(design, flows.sizes, scales, still)
        names = [
            [f"{TURNS[i]} {WAYS[TURNS[i]][int(v < 0)]}" for i, v in zip(which, row, strict=False)] for row in values
        ]
        parts = [turns[..., i] * values[:, k : k + 1] for k, i in enumerate(which)]
        possible = np.ones(num, bool)
        if way is not None:
            depths = np.einsum("bmp,bp->bm", plane, values[:, len(which) :])
            sign = np.sign(np.median(depths, 1))
            possible = (depths * sign[:, None] < 0).mean(1) < BEHIND
            parts += [travels[..., i] * depths * w for i, w in enumerate(way) if w]
            for row, side in zip(names, sign, strict=True):
                row += [f"{t} {WAYS[t][int(side * w < 0)]}" for t, w in zip(TRAVELS, way, strict=True) if w]
        shares = np.stack([np.abs(part).mean(1) for part in parts])
        possible &= (shares > np.maximum(STILL, MINOR * shares.max(0))).all(0)
        for row, name, value, ok in zip(found, names, score(residuals), possible, strict=True):
            if ok:
                key, price = tuple(sorted(name)), PRICE + SECOND * (len(name) - 1) + TRAVEL * (way is not None)
                row[key] = max(float(value) - price, row.get(key, -np.inf))
    return found, scale


def _window(flows: list[Flows], gaps: np.ndarray) -> Flows:
    """Flows a second of a few pairs of frames, evenly thinned to `ROWS`."""
    sizes = np.concatenate([flow.sizes / gap for flow, gap in zip(flows, gaps, strict=True)])
    kept = np.unique(np.linspace(0, len(sizes) - 1, min(ROWS, len(sizes))).round().astype(int))
    points, across = (np.concatenate([getattr(flow, name) for flow in flows]) for name in ("points", "across"))
    return Flows(points[kept], across[kept], sizes[kept])


def _score(table: dict[tuple[str, ...], float], name: tuple[str, ...]) -> float:
    return table.get(name, table[(STATIC_CAMERA,)] - ABSENT)


def _path(tables: list[dict[tuple[str, ...], float]]) -> list[tuple[str, ...]]:
    """The motions of each window that score best in all, less `SWITCH` for every change (Viterbi)."""
    names = sorted({name for table in tables for name in table})
    scores = np.array([[_score(table, name) for name in names] for table in tables])
    total, back = scores[0], []
    for row in scores[1:]:
        best = total.argmax()
        stay = total >= total[best] - SWITCH
        back.append(np.where(stay, np.arange(len(names)), best))
        total = np.where(stay, total, total[best] - SWITCH) + row
    path = [int(total.argmax())]
    for row in back[::-1]:
        path.append(int(row[path[-1]]))
    return [names[i] for i in path[::-1]]


def _view(windows: list[Flows]) -> tuple[np.ndarray, np.ndarray]:
    """The focal length and the pitch (1,) in rad that explain the windows best, coarsely and then finely."""
    pitches, focals = np.radians(PITCHES), np.array(FOCALS)
    for finer in (True, False):
        each = np.array(list(itertools.product(focals, pitches))).T
        totals = np.sum([[max(table.values()) for table in _fits(window, *each)[0]] for window in windows], 0)
        focal, pitch = each[:, totals.argmax()]
        if finer:
            focals, pitches = focal * np.array([0.87, 1.0, 1.15]), pitch + np.radians([-2.5, 0.0, 2.5])
    return np.array([focal]), np.array([pitch])


def _homography(flows: Flows, height: int, width: int) -> np.ndarray:
    """Where most of a picture's pixels go: (3, 3). The flow of a plane has eight numbers (the docstring's q = a + b x
    + c y put in): those of the matrix whose exponential, here to second order, is the homography."""
    x, y = flows.points.T
    zero, one = np.zeros_like(x), np.ones_like(x)
    u = np.stack([one, x, y, zero, zero, zero, x * x, x * y], -1)
    v = np.stack([zero, zero, zero, one, x, y, x * y, y * y], -1)
    design = u * flows.across[:, :1] + v * flows.across[:, 1:]
    scales = 0.125 * NOISE * np.array([200.0, 100.0, 50.0, 20.0, 10.0, 5.0, 5.0, 5.0])[:, None]
    found, _ = _solve(design[None], flows.sizes, scales, np.ones((1, len(x))), 1e-3)
    a, b, c, d, e, f, g, h = found[0]
    half = np.array([[b, c, a], [e, f, d], [-g, -h, 0.0]]) / 2
    side = max(height, width)
    pixels = np.array([[side, 0, width / 2 - 0.5], [0, side, height / 2 - 0.5], [0, 0, 1]])
    moved = pixels @ np.linalg.solve(np.eye(3) - half, np.eye(3) + half) @ np.linalg.inv(pixels)
    return moved / moved[2, 2]


def estimate_camera(shot: Shot) -> Camera:
    """The camera's motions in a shot of two frames or more, span by span, and the homographies of its background.

    A span's confidence grows with how much better its motions explain the flows than the next best, and with how
    much of the flows is explained; where nothing can be followed, it is 0. ValueError for fewer than two frames.
    """
    if len(shot.frames) < 2:
        raise ValueError(f"{shot.video}: a camera's motion shows in two frames or more, not in {len(shot.frames)}")
    flows = [_measure(before, after) for before, after in itertools.pairwise(map(_grey, shot.frames))]
    gaps = np.diff(shot.times)
    edges = np.linspace(0, len(flows), max(1, round(len(flows) / STEPS)) + 1).round().astype(int)
    windows = [_window(flows[a:b], gaps[a:b]) for a, b in itertools.pairwise(edges)]
    usable = [k for k, window in enumerate(windows) if len(window.sizes) >= FEWEST]
    tables, trust = [{(STATIC_CAMERA,): 0.0} for _ in windows], np.zeros(len(windows))
    if usable:
        moving = sorted(usable, key=lambda k: -np.median(np.abs(windows[k].sizes)))[:ASKED]
        view = _view([windows[k] for k in moving])
        for k in usable:
            (tables[k],), scale = _fits(windows[k], *view)
            flow = float(np.median(np.abs(windows[k].sizes)))
            trust[k] = max(0.0, 1 - float(scale[0]) / (flow + 10 * NOISE))
    path, spans, begin = _path(tables), [], 0
    for name, group in itertools.groupby(path):
        end = begin + len(list(group))
        rivals = [{*table, ()} - {name} for table in tables[begin:end]]  # (): motions that the window does not have
        leads = [
            _score(table, name) - max(_score(table, rival) for rival in some)
            for table, some in zip(tables[begin:end], rivals, strict=True)
        ]
        confidence = float(1 - np.exp(-max(0.0, np.mean(leads)) / SURE)) * float(trust[begin:end].mean())
        start = float(shot.times[edges[begin]]) if begin else shot.start
        stop = float(shot.times[edges[end]]) if end < len(windows) else shot.end
        spans.append(CameraSpan(start, stop, name, confidence))
        begin = end
    return Camera(spans, np.stack([_homography(flow, *shot.frames.shape[1:3]) for flow in flows]))
