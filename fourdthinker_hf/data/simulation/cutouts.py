"""Cut-outs that move in the layered scenes: a thing of one colour and one kind, drawn in a few poses.

A pose is a square picture (CANVAS, CANVAS, 3) and its mask (CANVAS, CANVAS): rigid kinds have one pose, those with
limbs, wings or wheels have several, which follow each other as the thing moves.
"""

from dataclasses import dataclass

import numpy as np

from .textures import cv2, load_opencv

CANVAS = 64
MIDDLE = CANVAS // 2
COLOURS = {  # RGB
    "red": (215, 30, 30),
    "green": (40, 160, 50),
    "blue": (40, 70, 215),
    "yellow": (240, 215, 40),
    "orange": (245, 135, 25),
    "purple": (125, 45, 160),
    "pink": (245, 130, 185),
    "brown": (120, 75, 40),
    "white": (242, 242, 242),
    "black": (18, 18, 18),
    "grey": (128, 128, 128),
    "cyan": (40, 205, 220),
}
NUM_POSES = 6


@dataclass(frozen=True)
class Cutout:
    """What is drawn: `pictures` (poses, CANVAS, CANVAS, 3) uint8, `masks` (poses, CANVAS, CANVAS) uint8 0 or 255.
    `extent` is (half width, half height) of the mask's box as a share of half the canvas."""

    colour: str
    kind: str
    pictures: np.ndarray
    masks: np.ndarray
    extent: tuple[float, float]


def make_cutout(rng: np.random.Generator, texture: np.ndarray, colour: str | None = None, kind: str | None = None):
    """A random [`Cutout`]; `texture` (SIDE, SIDE, 3) roughens its colour, so that nothing is quite plain."""
    load_opencv()
    colour = colour or str(rng.choice(list(COLOURS)))
    kind = kind or str(rng.choice(list(KINDS)))
    shades = _Shades(rng, colour)
    seed = rng.integers(2**31)
    num_poses = NUM_POSES if kind in MOVING_KINDS else 1
    pictures, masks = [], []
    top, left = rng.integers(0, texture.shape[0] - CANVAS, 2)
    rough = texture[top : top + CANVAS, left : left + CANVAS].astype(np.float32)
    strength = rng.choice([0, 0.15, 0.35])
    for pose in range(num_poses):
        picture = np.zeros((CANVAS, CANVAS, 3), np.uint8)
        mask = np.zeros((CANVAS, CANVAS), np.uint8)
        KINDS[kind](_Pen(picture, mask, shades), np.random.default_rng(seed), 2 * np.pi * pose / num_poses)
        if strength:
            picture = np.clip(picture + strength * (rough - rough.mean()), 0, 255).astype(np.uint8)
        pictures.append(picture)
        masks.append(mask)
    box = np.any(masks, 0)
    half = [np.abs(np.flatnonzero(box.any(axis)) + 0.5 - MIDDLE).max() / MIDDLE for axis in (0, 1)]
    return Cutout(colour, kind, np.stack(pictures), np.stack(masks), tuple(map(float, half)))


class _Shades:
    """The thing's colour, lighter and darker, and one for its details."""

    def __init__(self, rng: np.random.Generator, colour: str):
        base = np.array(COLOURS[colour]) + rng.uniform(-14, 14, 3)
        self.base = self._clip(base)
        self.dark = self._clip(base * 0.68)
        self.light = self._clip(base * 0.75 + 60)
        self.detail = self._clip(rng.choice([[25, 25, 25], [225, 225, 225], [200, 165, 130]]))

    @staticmethod
    def _clip(values) -> tuple[int, int, int]:
        return tuple(int(v) for v in np.clip(values, 0, 255))


class _Pen:
    """Draws on picture and mask at once."""

    def __init__(self, picture: np.ndarray, mask: np.ndarray, shades: _Shades):
        self.picture, self.mask, self.shades = picture, mask, shades

    def _colours(self, shade: str):
        return ((self.picture, getattr(self.shades, shade)), (self.mask, 255))

    def ellipse(self, shade: str, centre, axes, angle: float = 0.0) -> None:
        for image, colour in self._colours(shade):
            cv2.ellipse(image, tuple(map(int, centre)), tuple(map(int, axes)), angle, 0, 360, colour, -1)

    def box(self, shade: str, corner, opposite) -> None:
        for image, colour in self._colours(shade):
            cv2.rectangle(image, tuple(map(int, corner)), tuple(map(int, opposite)), colour, -1)

    def polygon(self, shade: str, points) -> None:
        for image, colour in self._colours(shade):
            cv2.fillPoly(image, [np.round(points).astype(np.int32)], colour)

    def limb(self, shade: str, begin, end, thickness: float) -> None:
        for image, colour in self._colours(shade):
            cv2.line(image, tuple(map(int, begin)), tuple(map(int, end)), colour, max(1, int(thickness)))


def _swing(begin, angle: float, length: float) -> tuple[float, float]:
    """The end of a limb that hangs from `begin`, `angle` radians from straight down."""
    return begin[0] + length * np.sin(angle), begin[1] + length * np.cos(angle)


def _ball(pen: _Pen, rng, phase: float) -> None:
    pen.ellipse("base", (32, 32), (29, 29))
    pen.ellipse("light", (24, 22), (8, 7))
    if rng.random() < 0.5:
        pen.limb("dark", (5, 32), (58, 32), 4)


def _box(pen: _Pen, rng, phase: float) -> None:
    width, height = rng.uniform(20, 29), rng.uniform(18, 29)
    pen.box("base", (32 - width, 32 - height), (32 + width, 32 + height))
    pen.box("light", (32 - width, 32 - height), (32 + width, 36 - height))
    if rng.random() < 0.5:
        pen.limb("dark", (32, 32 - height), (32, 32 + height), 3)


def _cone(pen: _Pen, rng, phase: float) -> None:
    pen.polygon("base", np.array([(32, 3), (60, 58), (4, 58)]))
    pen.polygon("dark", np.array([(32, 3), (60, 58), (40, 58)]))


def _star(pen: _Pen, rng, phase: float) -> None:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2, 13, 30)
    pen.polygon("base", 32 + np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1))


def _person(pen: _Pen, rng, phase: float) -> None:
    stride, width = 0.55 * np.sin(phase), rng.uniform(7, 10)
    for side in (1, -1):
        pen.limb("detail", (32 + side * 3, 40), _swing((32 + side * 3, 40), side * stride, 22), 6)
        pen.limb("dark", (32 + side * width * 0.8, 19), _swing((32 + side * width * 0.8, 19), -side * stride, 18), 5)
    pen.ellipse("base", (32, 29), (width, 14))
    pen.ellipse("detail", (32, 9), (6, 7))


def _car(pen: _Pen, rng, phase: float) -> None:
    roof = rng.uniform(14, 20)
    pen.polygon("base", np.array([(14, 34), (20, 34 - roof + 4), (44, 34 - roof + 4), (52, 34)]))
    pen.polygon("detail", np.array([(19, 33), (23, 38 - roof), (31, 38 - roof), (31, 33)]))
    pen.box("base", (3, 32), (61, 48))
    pen.box("light", (3, 36), (61, 39))
    for x in (16, 48):
        pen.ellipse("dark", (x, 48), (7, 7))
        pen.limb("light", (x, 48), (x + 5 * np.cos(phase), 48 + 5 * np.sin(phase)), 2)


def _dog(pen: _Pen, rng, phase: float) -> None:
    for k, x in enumerate((17, 22, 42, 47)):
        pen.limb("dark", (x, 38), _swing((x, 38), 0.5 * np.sin(phase + k * np.pi), 20), 5)
    pen.ellipse("base", (32, 33), (21, 9))
    pen.ellipse("base", (53, 22), (8, 7))
    pen.limb("base", (12, 30), (4, 20 + 4 * np.sin(2 * phase)), 4)


def _bird(pen: _Pen, rng, phase: float) -> None:
    lift = 22 * np.sin(phase)
    pen.polygon("dark", np.array([(24, 32), (40, 32), (26, 32 - lift)]))
    pen.ellipse("base", (32, 33), (18, 7))
    pen.ellipse("base", (50, 28), (7, 6))
    pen.polygon("base", np.array([(22, 32), (40, 33), (30, 33 - lift)]))
    pen.polygon("detail", np.array([(56, 27), (62, 29), (56, 31)]))


def _boat(pen: _Pen, rng, phase: float) -> None:
    pen.polygon("base", np.array([(4, 42), (60, 42), (50, 57), (14, 57)]))
    pen.limb("detail", (32, 42), (32, 5), 3)
    pen.polygon("light", np.array([(35, 7), (56, 36), (35, 36)]))


def _plane(pen: _Pen, rng, phase: float) -> None:
    pen.ellipse("base", (32, 32), (29, 6))
    pen.polygon("dark", np.array([(26, 32), (40, 32), (22, 56), (14, 56)]))
    pen.polygon("light", np.array([(26, 32), (40, 32), (22, 10), (14, 10)]))
    pen.polygon("base", np.array([(4, 32), (12, 32), (4, 18)]))


def _fish(pen: _Pen, rng, phase: float) -> None:
    pen.ellipse("base", (36, 32), (21, 11))
    tail = 6 * np.sin(phase)
    pen.polygon("dark", np.array([(18, 32), (4, 22 + tail), (4, 42 + tail)]))
    pen.ellipse("detail", (49, 29), (2, 2))


def _cup(pen: _Pen, rng, phase: float) -> None:
    pen.ellipse("dark", (49, 34), (10, 12))
    pen.polygon("base", np.array([(12, 10), (50, 10), (45, 58), (17, 58)]))
    pen.ellipse("light", (31, 11), (19, 5))


def _blob(pen: _Pen, rng, phase: float) -> None:
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radii = rng.uniform(12, 28, 9) * (1 + 0.12 * np.sin(phase + np.arange(9)))
    pen.polygon("base", 32 + np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1))


KINDS = {
    "ball": _ball,
    "box": _box,
    "cone": _cone,
    "star": _star,
    "person": _person,
    "car": _car,
    "dog": _dog,
    "bird": _bird,
    "boat": _boat,
    "plane": _plane,
    "fish": _fish,
    "cup": _cup,
    "blob": _blob,
}
MOVING_KINDS = ("person", "car", "dog", "bird", "fish", "blob")
