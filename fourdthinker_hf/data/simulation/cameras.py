"""How a simulated camera moves."""

from collections.abc import Sequence

import numpy as np

from ..vocabulary import CAMERA_MOTIONS, STATIC_CAMERA
from .rendering import FPS
from .scenes import AHEAD, CameraMove, World


def camera_path(world: World) -> tuple[np.ndarray, np.ndarray]:
    """Camera positions (T, 3) and rotations (T, 3, 3), columns right, up, backward, `AHEAD` frames included."""
    count = world.num_frames + AHEAD
    rates = {name: np.zeros(count) for name, _ in CAMERA_MOTIONS.values()}
    middles, begin = (np.arange(count) + 0.5) / FPS, 0.0
    for move in world.moves:
        now = (middles >= begin) & (middles < move.until)
        for name, rate in zip(move.names, move.rates, strict=True):
            if name != STATIC_CAMERA:
                what, sign = CAMERA_MOTIONS[name]
                rates[what][now] += sign * rate
        begin = move.until

    def total(rate: np.ndarray) -> np.ndarray:
        """The integral over time, 0 at the nominal frame; (T,) or (T, 3)."""
        sums = np.concatenate([np.zeros_like(rate[:1]), np.cumsum(rate, 0)[:-1]]) / FPS
        return sums - sums[round(world.phase * (world.num_frames - 1))]

    yaw, roll, orbit = (np.radians(total(rates[name])) for name in ("yaw", "roll", "orbit"))
    down = np.radians(world.pitch - total(rates["pitch"]))
    right = np.stack([np.cos(yaw), np.sin(yaw), 0 * yaw], -1)
    ahead = np.stack([-np.sin(yaw) * np.cos(down), np.cos(yaw) * np.cos(down), -np.sin(down)], -1)
    up = np.cross(right, ahead)
    travel = rates["aside"][:, None] * right + rates["ahead"][:, None] * ahead + rates["lift"][:, None] * [0, 0, 1]
    cos, sin, zero = np.cos(roll)[:, None], np.sin(roll)[:, None], 0 * orbit
    rotation = np.stack([cos * right + sin * up, cos * up - sin * right, -ahead], -1)
    around = np.stack([np.cos(orbit), -np.sin(orbit), zero, np.sin(orbit), np.cos(orbit), zero, zero, zero, zero + 1])
    around = around.T.reshape(-1, 3, 3)
    pivot = np.array([0.0, world.pivot, 0.0])
    base = np.array([0.0, 0.0, world.height]) + total(travel) - pivot
    return pivot + np.einsum("tij,tj->ti", around, base), around @ rotation


def motion_spans(world: World) -> tuple[tuple[float, float, tuple[str, ...]], ...]:
    begins = (0.0, *(move.until for move in world.moves))
    return tuple(
        (begin, min(move.until, world.duration), move.names)
        for begin, move in zip(begins, world.moves, strict=False)
        if begin < world.duration
    )


TOTALS = {
    "yaw": (12, 30),
    "pitch": (7, 14),
    "roll": (8, 16),
    "ahead": (0.8, 2.2),
    "aside": (0.8, 2.2),
    "lift": (0.5, 1.2),
    "orbit": (20, 40),
}  # degrees or m a clip


def camera_moves(
    rng: np.random.Generator, duration: float, parts: int, pair: float, strength: float = 1.0
) -> tuple[CameraMove, ...]:
    """`parts` moves that share the clip; each a pair of motions with probability `pair`, or static now and then."""
    moves = []
    for k in range(parts):
        names = [str(name) for name in rng.permutation(list(CAMERA_MOTIONS))]
        second = next(name for name in names[1:] if CAMERA_MOTIONS[name][0] != CAMERA_MOTIONS[names[0]][0])
        chosen = (names[0], second) if rng.random() < pair else (names[0],)
        if parts > 1 and rng.random() < 0.25:
            chosen = (STATIC_CAMERA,)
        moves.append(
            camera_move(rng, chosen, duration * (k + 1) / parts if k < parts - 1 else 1e3, duration, strength)
        )
    return tuple(moves)


def camera_move(
    rng: np.random.Generator, names: Sequence[str], until: float, duration: float, strength: float = 1.0
) -> CameraMove:
    rates = (
        0.0 if n == STATIC_CAMERA else strength * rng.uniform(*TOTALS[CAMERA_MOTIONS[n][0]]) / duration for n in names
    )
    return CameraMove(until, tuple(names), tuple(map(float, rates)))


STILL = (CameraMove(1e3, (STATIC_CAMERA,), (0.0,)),)
