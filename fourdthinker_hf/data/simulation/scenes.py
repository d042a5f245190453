"""Scenes with real physics: what stands where, what drives or pushes it, how the camera travels, and MuJoCo's run.

World frame, metres: at its nominal pose the camera is above the origin and looks along +y and down; x is to its right,
z up. A *driven* body follows `legs` on a servo and keeps upright (it pushes what it hits); a *free* body is held until
its release and then falls, bounces, slides and rolls as gravity, friction and collisions have it. Bodies with a front
(car, arrow, duck) face their own +x and drive where they face. Truth is the simulator's state, frame by frame, and
runs `AHEAD` frames past the clip's end: what happens next is known as well.
"""

from dataclasses import dataclass

import numpy as np

from .basic_scenes import COLOURS
from .rendering import FPS

AHEAD = FPS  # frames simulated after the clip's end
CAMERA = -1  # stands for the camera where the index of an object is expected
SIZES = {1: 112, 2: 224, 3: 224}  # pixels, both axes


@dataclass(frozen=True)
class Kit:
    """What a split is made of; `speeds` m/s of driven bodies."""

    plain: tuple[str, ...]
    fronted: tuple[str, ...]
    colours: dict[str, tuple[float, float, float]]
    speeds: tuple[float, float]


SPLITS = {
    "train": Kit(("ball", "cube", "cylinder", "cone", "pill"), ("car", "arrow"), COLOURS, (0.4, 1.4)),
    "unseen": Kit(
        ("pyramid", "egg"),
        ("duck",),
        {"pink": (1.0, 0.45, 0.7), "brown": (0.42, 0.22, 0.08), "black": (0.06, 0.06, 0.07), "mint": (0.6, 1.0, 0.75)},
        (1.5, 2.1),
    ),
}
FRONTED = tuple(shape for kit in SPLITS.values() for shape in kit.fronted)
REACH = {
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
}  # outline radius on the ground over half height
TEXTURES = ("plain", "striped", "checked")


@dataclass(frozen=True)
class Leg:
    """Until `until` s, speed from `begin` to `end` m/s along `course` (degrees from +x), turning by `turn` deg/s."""

    until: float
    begin: float
    end: float
    course: float = 0.0  # a body with a front has none: it drives where it faces
    turn: float = 0.0


@dataclass(frozen=True)
class Body:
    """`half` its height in m, `start` (x, y, z) of its centre, `yaw` in degrees from +x; driven if it has `legs`."""

    colour: str
    shape: str
    half: float
    yaw: float
    start: tuple[float, float, float]
    texture: str = "plain"
    legs: tuple[Leg, ...] = ()
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of a free body, m/s, given at `release` s
    release: float = 0.0
    friction: float = 0.3
    bounce: float = 0.5  # 0 to 1

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def reach(self) -> float:
        return self.half * REACH[self.shape]


@dataclass(frozen=True)
class CameraMove:
    """Until `until` s, motions `names`, each at its rate of `rates` (degrees/s or m/s, positive)."""

    until: float
    names: tuple[str, ...]
    rates: tuple[float, ...]


@dataclass(frozen=True)
class World:
    things: tuple[Body, ...]
    moves: tuple[CameraMove, ...]
    duration: float  # s
    level: int
    height: float  # m
    pitch: float  # degrees down
    fov: float  # vertical, degrees
    pivot: float  # m along +y: what the camera orbits around
    phase: float  # share of the clip at which the camera is at its nominal pose
    look: int  # seed of ground, sky and light

    @property
    def size(self) -> int:
        return SIZES[self.level]

    @property
    def focal(self) -> float:
        """In pixels."""
        return self.size / 2 / np.tan(np.radians(self.fov / 2))

    @property
    def num_frames(self) -> int:
        return round(self.duration * FPS)
