"""Describes a scene with physics: its objects, how each one moves, and how the camera moves.

The world frame is in metres, with z up. At its nominal pose the camera is above the origin and looks along +y and
downward; x is to its right. A body moves in one of two ways:

- A *driven* body has `segments`, which it follows on a velocity servo. It stays upright and pushes what it hits.
- A *free* body has none. It is held in place until its `release_time`; then gravity, friction and collisions move it.

A body whose shape has a front (car, arrow, duck) faces its own +x axis and drives in that direction.
"""

from dataclasses import dataclass

import numpy as np

from .basic_scenes import COLOURS
from .rendering import FPS

CAMERA = -1  # stands for the camera where the index of an object is expected
EXTRA_FRAMES = FPS  # simulated after the clip's end: some questions ask what happens next
FRAME_SIZES = {1: 112, 2: 224, 3: 224}  # pixels along both axes, by level
FOREVER = 1e3  # s: later than the end of any clip


@dataclass(frozen=True)
class ObjectSet:
    """The shapes, colours and speeds that the scenes of a split are drawn from."""

    shapes_without_front: tuple[str, ...]
    shapes_with_front: tuple[str, ...]
    colours: dict[str, tuple[float, float, float]]  # RGB, 0 to 1
    speeds: tuple[float, float]  # lowest and highest, of driven bodies, m/s

    @property
    def shapes(self) -> tuple[str, ...]:
        return self.shapes_without_front + self.shapes_with_front


SPLITS = {
    "train": ObjectSet(("ball", "cube", "cylinder", "cone", "pill"), ("car", "arrow"), COLOURS, (0.4, 1.4)),
    "unseen": ObjectSet(
        ("pyramid", "egg"),
        ("duck",),
        {"pink": (1.0, 0.45, 0.7), "brown": (0.42, 0.22, 0.08), "black": (0.06, 0.06, 0.07), "mint": (0.6, 1.0, 0.75)},
        (1.5, 2.1),
    ),
}
SHAPES_WITH_FRONT = tuple(shape for objects in SPLITS.values() for shape in objects.shapes_with_front)
FOOTPRINT_RATIOS = {
    "ball": 1.0,
    "cube": 1.42,
    "cylinder": 1.1,
    "cone": 1.0,
    "pill": 0.8,
    "car": 1.55,
    "arrow": 1.6,
    "pyramid": 1.42,
    "egg": 1.0,
    "duck": 1.5,
}  # radius of the outline on the ground over half the height
TEXTURES = ("plain", "striped", "checked")


@dataclass(frozen=True)
class MotionSegment:
    """How a driven body moves from the end of the segment before until `until` s."""

    until: float
    start_speed: float  # m/s
    end_speed: float  # m/s; the speed changes linearly
    heading: float = 0.0  # degrees from +x, at the segment's start; ignored for a body with a front, which has a yaw
    turn_rate: float = 0.0  # degrees/s


AT_REST = MotionSegment(FOREVER, 0.0, 0.0)


@dataclass(frozen=True)
class Body:
    """An object. It is driven if it has `segments`, and free otherwise."""

    colour: str
    shape: str
    half_height: float  # m
    yaw: float  # degrees from +x, at the start
    start: tuple[float, float, float]  # m, its centre
    texture: str = "plain"
    segments: tuple[MotionSegment, ...] = ()
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)  # m/s, given to a free body when it is released
    release_time: float = 0.0  # s
    friction: float = 0.3  # sliding friction coefficient of a free body
    bounce: float = 0.5  # of a free body, from 0 (most damped) to 1

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def footprint_radius(self) -> float:
        """Radius in m of the circle on the ground that encloses the body."""
        return self.half_height * FOOTPRINT_RATIOS[self.shape]


@dataclass(frozen=True)
class CameraMove:
    """How the camera moves from the end of the move before until `until` s."""

    until: float
    names: tuple[str, ...]  # one or two motions of `vocabulary.CAMERA_MOTIONS` at the same time, or "static"
    rates: tuple[float, ...]  # of each motion, degrees/s or m/s, positive


@dataclass(frozen=True)
class Scene:
    objects: tuple[Body, ...]
    camera_moves: tuple[CameraMove, ...]
    duration: float  # s
    level: int
    camera_height: float  # m
    pitch: float  # degrees downward
    fov: float  # vertical, degrees
    orbit_distance: float  # m: the camera orbits the point of the ground that lies so far along +y
    phase: float  # share of the clip after which the camera is at its nominal pose
    appearance_seed: int  # of the ground, the sky and the light

    @property
    def size(self) -> int:
        """Of a frame, in pixels along both axes."""
        return FRAME_SIZES[self.level]

    @property
    def focal(self) -> float:
        """The focal length in pixels."""
        return self.size / 2 / np.tan(np.radians(self.fov / 2))

    @property
    def num_frames(self) -> int:
        return round(self.duration * FPS)
