"""Moves the camera of a scene with physics: draws camera moves, and computes the camera's pose at every frame."""

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from ..question_vocabulary import CAMERA_MOTIONS, STATIC_CAMERA
from .rendering import FPS
from .scenes import EXTRA_FRAMES, FOREVER, CameraMove, Scene

CAMERA_AT_REST = (CameraMove(FOREVER, (STATIC_CAMERA,), (0.0,)),)
MOTION_TOTALS = {
    "yaw": (12, 30),
    "pitch": (7, 14),
    "roll": (8, 16),
    "ahead": (0.8, 2.2),
    "aside": (0.8, 2.2),
    "lift": (0.5, 1.2),
    "orbit": (20, 40),
}  # smallest and largest motion over a whole clip, in degrees or m


def camera_path(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Camera positions (T, 3) and rotations (T, 3, 3) of all frames, `EXTRA_FRAMES` after the clip's end included.

    The columns of a rotation are the camera's right, up and backward.
    """
    num_frames = scene.num_frames + EXTRA_FRAMES
    rates = {quantity: np.zeros(num_frames) for quantity, _ in CAMERA_MOTIONS.values()}
    middles, begin = (np.arange(num_frames) + 0.5) / FPS, 0.0
    for move in scene.camera_moves:
        now = (middles >= begin) & (middles < move.until)
        for name, rate in zip(move.names, move.rates, strict=True):
            if name != STATIC_CAMERA:
                quantity, sign = CAMERA_MOTIONS[name]
                rates[quantity][now] += sign * rate
        begin = move.until

    def integrate(rate: np.ndarray) -> np.ndarray:
        """The integral of a rate (T,) or (T, 3) over time, which is 0 at the frame of the nominal pose."""
        sums = np.concatenate([np.zeros_like(rate[:1]), np.cumsum(rate, 0)[:-1]]) / FPS
        return sums - sums[round(scene.phase * (scene.num_frames - 1))]

    yaw, roll, orbit = (np.radians(integrate(rates[name])) for name in ("yaw", "roll", "orbit"))
    down = np.radians(scene.pitch - integrate(rates["pitch"]))
    right = np.stack([np.cos(yaw), np.sin(yaw), 0 * yaw], -1)
    ahead = np.stack([-np.sin(yaw) * np.cos(down), np.cos(yaw) * np.cos(down), -np.sin(down)], -1)
    up = np.cross(right, ahead)
    velocity = rates["aside"][:, None] * right + rates["ahead"][:, None] * ahead + rates["lift"][:, None] * [0, 0, 1]
    cos, sin, zero = np.cos(roll)[:, None], np.sin(roll)[:, None], 0 * orbit
    rotation = np.stack([cos * right + sin * up, cos * up - sin * right, -ahead], -1)
    around = np.stack([np.cos(orbit), -np.sin(orbit), zero, np.sin(orbit), np.cos(orbit), zero, zero, zero, zero + 1])
    around = around.T.reshape(-1, 3, 3)
    pivot = np.array([0.0, scene.orbit_distance, 0.0])
    offset = np.array([0.0, 0.0, scene.camera_height]) + integrate(velocity) - pivot
    return pivot + np.einsum("tij,tj->ti", around, offset), around @ rotation


def motion_spans(scene: Scene) -> tuple[tuple[float, float, tuple[str, ...]], ...]:
    """(start s, end s, names of the motions) of each camera move within the clip."""
    begins = (0.0, *(move.until for move in scene.camera_moves))
    return tuple(
        (begin, min(move.until, scene.duration), move.names)
        for begin, move in zip(begins, scene.camera_moves, strict=False)
        if begin < scene.duration
    )


def sample_camera_moves(
    rng: Generator, duration: float, num_moves: int, pair_probability: float, strength: float = 1.0
) -> tuple[CameraMove, ...]:
    """Draw `num_moves` moves of equal length: each a pair of motions with `pair_probability`, else a single motion.

    Where there are several moves, a quarter of them are static instead.
    """
    moves = []
    for k in range(num_moves):
        names = [str(name) for name in rng.permutation(list(CAMERA_MOTIONS))]
        second = next(name for name in names[1:] if CAMERA_MOTIONS[name][0] != CAMERA_MOTIONS[names[0]][0])
        chosen = (names[0], second) if rng.random() < pair_probability else (names[0],)
        if num_moves > 1 and rng.random() < 0.25:
            chosen = (STATIC_CAMERA,)
        until = duration * (k + 1) / num_moves if k < num_moves - 1 else FOREVER
        moves.append(sample_camera_move(rng, chosen, until, duration, strength))
    return tuple(moves)


def sample_camera_move(
    rng: Generator, names: Sequence[str], until: float, duration: float, strength: float = 1.0
) -> CameraMove:
    """Draw the rates of the named motions, so that a clip of `duration` s holds `strength` times `MOTION_TOTALS`."""
    rates = [
        0.0 if name == STATIC_CAMERA else strength * rng.uniform(*MOTION_TOTALS[CAMERA_MOTIONS[name][0]]) / duration
        for name in names
    ]
    return CameraMove(until, tuple(names), tuple(map(float, rates)))
