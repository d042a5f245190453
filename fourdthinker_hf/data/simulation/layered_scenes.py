"""Layered scenes: a virtual camera over textured planes and moving cut-outs, made to look like the world.

A scene is a back wall, perhaps a ground, standing layers and cut-outs, each flat and in its place in space, so that a
camera that turns, zooms or travels sees the right parallax, growth and occlusion. Everything is a function of time:
[`render`] gives frames at any times, [`optical_flow`] the exact flow between two of them, and [`truth_of`] what is
true of the camera and of each mover, with margins: what is not clear is `None`. Light, fog, shadows, shake, blur,
compression, letterbox and the source's frame rate are drawn at random. One core makes some 30 clips of 16 frames at
112 x 112 pixels a second.

World: x to the right, y down, z ahead of the camera at its first pose; the unit is the distance of the back wall.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .cutouts import CANVAS, COLOURS, Cutout, make_cutout
from .textures import SIDE, cv2, load_opencv

AHEAD = 1.25  # seconds after the clip for which a scene is still defined: what comes next can be shown
GRID = 128  # moments at which paths are stored; between them they are interpolated
WALL, GROUND, FIRST_LAYER, FIRST_MOVER, BARS = 0, 1, 2, 20, 255  # what a pixel shows

YAW, PITCH, ROLL, X, Y, Z, ZOOM = range(7)  # columns of a camera path: radians, wall distances, log of focal length
CAMERA_AXES = {
    "pan left": (YAW, -1),
    "pan right": (YAW, 1),
    "tilt up": (PITCH, 1),
    "tilt down": (PITCH, -1),
    "roll left": (ROLL, -1),
    "roll right": (ROLL, 1),
    "truck left": (X, -1),
    "truck right": (X, 1),
    "pedestal up": (Y, -1),
    "pedestal down": (Y, 1),
    "dolly in": (Z, 1),
    "dolly out": (Z, -1),
    "zoom in": (ZOOM, 1),
    "zoom out": (ZOOM, -1),
}
OPPOSITE = {
    name: next(o for o, a in CAMERA_AXES.items() if a == (axis, -s)) for name, (axis, s) in CAMERA_AXES.items()
}
PATHS = (  # how a mover can go, as the camera sees it; a pair comes one after the other
    ("left",),
    ("right",),
    ("up",),
    ("down",),
    ("toward",),
    ("away",),
    ("left", "right"),
    ("right", "left"),
    ("toward", "away"),
    ("away", "toward"),
)
PACES = ("steady", "eases", "starts", "stops", "speeds up", "slows down")

# Margins of the truth. Shares are of the picture's width.
CLEAR_MOVE, STILL_MOVE = 0.1, 0.02
CLEAR_SIZE, SAME_SIZE = 1.25, 1.08
CLEAR_PACE, SAME_PACE = 1.8, 1.2


@dataclass(frozen=True)
class Plane:
    """A flat thing: texture pixel (u, v) is at `origin + u * right + v * down`; `mask` cuts it out, if given."""

    texture: np.ndarray
    origin: np.ndarray
    right: np.ndarray
    down: np.ndarray
    mask: np.ndarray | None = None

    @property
    def matrix(self) -> np.ndarray:
        return np.stack([self.right, self.down, self.origin], 1)


@dataclass(frozen=True)
class Mover:
    """A cut-out that faces the camera. `positions` (GRID, 3) of its centre, `roll` (GRID,) radians, `half` of its
    canvas in the world. `path` and `pace` are what was planned; `followed`: the camera keeps it in its place."""

    cutout: Cutout
    positions: np.ndarray
    roll: np.ndarray
    half: float
    mirrored: bool = False
    stride: float = 0.0  # poses a second
    path: tuple[str, ...] = ()
    pace: str = "steady"
    followed: bool = False
    sways: bool = False  # to and fro on its spot: it stays where it is

    @property
    def moves(self) -> bool:
        return bool(self.path)

    @property
    def name(self) -> str:
        return f"{self.cutout.colour} {self.cutout.kind}"


@dataclass(frozen=True)
class Look:
    """How the camera and the file spoil the picture; zeros and ones spoil nothing."""

    gain: float = 1.0
    drift: float = 0.0
    flicker: float = 0.0
    gamma: float = 1.0
    tone: tuple[float, float, float] = (1.0, 1.0, 1.0)
    grey: bool = False
    noise: float = 0.0
    blur: float = 0.0
    shutter: float = 0.0  # seconds
    skew: float = 0.0  # seconds from the first row's exposure to the last one's
    quality: int = 0  # of JPEG, 0: not compressed
    bars: tuple[int, int] = (0, 0)  # pixels at the top and bottom, at the left and right
    label: bool = False
    fps: float = 30.0
    seed: int = 0


@dataclass(frozen=True)
class Scene:
    width: int
    height: int
    focal: float
    centre: tuple[float, float]
    duration: float
    times: np.ndarray  # (GRID,) s
    camera: np.ndarray  # (GRID, 7)
    motions: tuple[str, ...]  # of the camera; empty: it stays
    in_turn: bool  # the motions come one after the other
    shake: float  # pixels
    wall: Plane
    ground: Plane | None
    layers: tuple[Plane, ...]
    movers: tuple[Mover, ...]
    fog: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # density, colour
    look: Look = field(default_factory=Look)

    @property
    def middle(self) -> float:
        return self.duration / 2


# Motion


def speed_profile(rng: np.random.Generator, pace: str, times: np.ndarray, duration: float) -> np.ndarray:
    """How far along a motion is at `times`: 0 at first and 1 after `duration`; it goes on as it ends."""
    share = np.clip(times / duration, 0, 1)
    speed = np.ones_like(times)
    if pace == "eases":
        speed = np.sin(np.pi * (0.15 + 0.7 * share))
    elif pace == "starts":
        speed = (share > rng.uniform(0.3, 0.6)).astype(float)
    elif pace == "stops":
        speed = (share < rng.uniform(0.35, 0.7)).astype(float)
    elif pace == "speeds up":
        speed = 0.2 + 1.8 * share ** rng.uniform(1, 2)
    elif pace == "slows down":
        speed = 0.2 + 1.8 * (1 - share) ** rng.uniform(1, 2)
    progress = np.concatenate([[0], np.cumsum((speed[1:] + speed[:-1]) / 2 * np.diff(times))])
    return progress / np.interp(duration, times, progress)


def there_and_back(rng: np.random.Generator, times: np.ndarray, duration: float) -> np.ndarray:
    """From 0 to 1 at about half the duration, and back."""
    turn = duration * rng.uniform(0.42, 0.58)
    return np.clip(np.where(times < turn, times / turn, 1 - (times - turn) / (duration - turn)), -0.5, 1)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _wander(rng: np.random.Generator, times: np.ndarray, slowest: float, fastest: float) -> np.ndarray:
    """A smooth random function of time of about unit size."""
    rates = np.exp(rng.uniform(np.log(slowest), np.log(fastest), 4))
    waves = np.sin(2 * np.pi * rates * times[:, None] + rng.uniform(0, 2 * np.pi, 4))
    return waves @ rng.normal(size=4) / 1.5


def rotation(camera: np.ndarray) -> np.ndarray:
    """World to camera, (..., 3, 3), of camera rows (..., 7)."""
    zero, one = np.zeros(camera.shape[:-1]), np.ones(camera.shape[:-1])
    (cy, cp, cr), (sy, sp, sr) = ([f(camera[..., k]) for k in (YAW, PITCH, ROLL)] for f in (np.cos, np.sin))
    turn = np.stack([cy, zero, -sy, zero, one, zero, sy, zero, cy], -1).reshape(*zero.shape, 3, 3)
    tilt = np.stack([one, zero, zero, zero, cp, sp, zero, -sp, cp], -1).reshape(*zero.shape, 3, 3)
    roll = np.stack([cr, sr, zero, -sr, cr, zero, zero, zero, one], -1).reshape(*zero.shape, 3, 3)
    return roll @ tilt @ turn


def camera_at(scene: Scene, times: np.ndarray) -> np.ndarray:
    return np.stack([np.interp(times, scene.times, column) for column in scene.camera.T], -1)


def project(scene: Scene, camera: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (..., 2) and depths (...) of world `points` (..., 3) for camera rows (..., 7)."""
    local = np.einsum("...ij,...j->...i", rotation(camera), points - camera[..., X : Z + 1])
    focal = scene.focal * np.exp(camera[..., ZOOM])
    depth = np.maximum(local[..., 2], 1e-3)
    return np.array(scene.centre) + focal[..., None] * local[..., :2] / depth[..., None], local[..., 2]


# Scenes


def sample_scene(
    rng: np.random.Generator,
    textures: list[np.ndarray],
    size: tuple[int, int] = (112, 112),
    duration: float = 4.0,
    motions: tuple[str, ...] | None = None,
    path: tuple[str, ...] | None = None,
    num_movers: int | None = None,
    fastest: float = 0.7,
    spoil: float = 1.0,
) -> Scene:
    """A random scene; `size` is (height, width) in pixels.

    `motions` of the camera (`()` for a camera that stays) and the `path` of the first mover are drawn unless given;
    `fastest` bounds speeds, in picture widths a second; `spoil` from 0 to 1 scales how often the look is spoilt.
    """
    load_opencv()
    height, width = size
    span = (height * width) ** 0.5
    times = np.linspace(0, duration + AHEAD, GRID)
    focal = rng.uniform(0.7, 2.0) * span
    centre = (width / 2, height / 2 * rng.uniform(0.85, 1.15))
    has_ground = rng.random() < 0.4
    eye = rng.uniform(0.06, 0.4)  # of the camera over the ground
    chosen, in_turn = (motions, False) if motions is not None else _choose_motions(rng)
    drives = has_ground and chosen[:1] in (("dolly in",), ("dolly out",)) and rng.random() < 0.6
    camera = _camera_path(rng, chosen, in_turn, times, duration, focal, width, eye, has_ground, drives, fastest)
    shake = 0.0
    if spoil and rng.random() < 0.5 * spoil:
        shake = _log_uniform(rng, 0.15, 1.5) * span / 112
        camera[:, YAW] += shake / focal * _wander(rng, times, 0.4, 5)
        camera[:, PITCH] += shake / focal * _wander(rng, times, 0.4, 5)
        camera[:, ROLL] += shake / span * 0.5 * _wander(rng, times, 0.3, 3)

    def texture() -> np.ndarray:
        return textures[rng.integers(len(textures))]

    scale = rng.uniform(0.8, 1.3) / focal
    turn = rng.choice([0, 0, rng.uniform(-0.5, 0.5)])
    slant = rng.choice([0, 0, rng.uniform(-0.4, 0.4)])  # of the wall, one side nearer
    right = scale * np.array([np.cos(turn), np.sin(turn), slant * np.cos(turn)])
    down = scale * np.array([-np.sin(turn), np.cos(turn), -slant * np.sin(turn)])
    origin = np.array([0, 0, 1.0]) - rng.uniform(0.3, 0.7) * SIDE * right - rng.uniform(0.3, 0.7) * SIDE * down
    wall = Plane(texture(), origin, right, down)
    ground = None
    if has_ground:
        step = eye / 0.3 * scale * 1.2
        corner = np.array([-rng.uniform(0, SIDE) * step, eye, 0.5 + rng.uniform(0, SIDE) * step])
        ground = Plane(texture(), corner, np.array([step, 0, 0]), np.array([0, 0, -step]))
    scene = Scene(
        width,
        height,
        focal,
        centre,
        duration,
        times,
        camera,
        chosen,
        in_turn,
        shake,
        wall,
        ground,
        (),
        (),
        _choose_fog(rng, spoil),
        _choose_look(rng, spoil, width, height),
    )
    layers = tuple(_choose_layer(rng, scene, texture) for _ in range(rng.choice([0, 0, 1, 2, 3])))
    movers = _choose_movers(rng, scene, texture, path, num_movers, fastest)
    if movers and movers[0].moves and rng.random() < 0.12:
        layers += (_choose_cover(rng, scene, texture, movers[0]),)
    return Scene(**{**vars(scene), "layers": layers, "movers": movers})


def _choose_motions(rng: np.random.Generator) -> tuple[tuple[str, ...], bool]:
    """Motions of the camera, and whether they come in turn."""
    kind = rng.random()
    if kind < 0.3:
        return (), False
    first = str(rng.choice(list(CAMERA_AXES)))
    if kind < 0.82:
        return (first,), False
    if kind < 0.9:
        return (first, OPPOSITE[first]), True
    second = str(rng.choice([name for name in CAMERA_AXES if CAMERA_AXES[name][0] != CAMERA_AXES[first][0]]))
    return (first, second), False


def _camera_path(rng, motions, in_turn, times, duration, focal, width, eye, has_ground, drives, fastest) -> np.ndarray:
    camera = np.zeros((len(times), 7))
    pace = str(rng.choice(PACES, p=[0.6, 0.16, 0.06, 0.06, 0.06, 0.06]))
    progress = there_and_back(rng, times, duration) if in_turn else speed_profile(rng, pace, times, duration)
    for name in motions[:1] if in_turn else motions:
        axis, sign = CAMERA_AXES[name]
        shift = np.clip(_log_uniform(rng, 0.025, fastest) * duration, 0.1, 1.3)  # picture widths
        growth = np.clip(_log_uniform(rng, 0.05, 0.6) * duration, 0.15, 1.1)  # log of how much larger
        if axis in (YAW, PITCH):
            amount = np.arctan(min(shift * (1 if axis == YAW else 0.7) * width / focal, 1.2))
        elif axis == ROLL:
            amount = np.radians(np.clip(_log_uniform(rng, 3, 40) * duration, 8, 120))
        elif axis == X:
            amount = shift * width / focal * rng.uniform(0.5, 1)
        elif axis == Y:
            amount = shift * width / focal * rng.uniform(0.4, 0.8)
            if has_ground and sign > 0:
                amount = min(amount, 0.6 * eye)
        elif axis == Z:
            amount = 1 - np.exp(-growth) if sign > 0 else np.exp(growth) - 1
            amount *= min(3 * eye, 1) if drives else 1
        else:
            amount = growth
        camera[:, axis] += sign * amount * progress
    return camera


def _choose_fog(rng: np.random.Generator, spoil: float) -> tuple[float, float, float, float]:
    if rng.random() > 0.15 * spoil:
        return (0.0, 0.0, 0.0, 0.0)
    level = rng.uniform(120, 235)
    return (rng.uniform(0.2, 1.2), *np.clip(level + rng.normal(0, 12, 3), 0, 255).tolist())


def _choose_look(rng: np.random.Generator, spoil: float, width: int, height: int) -> Look:
    def now_and_then(chance: float, low: float, high: float, otherwise: float = 0.0) -> float:
        return float(rng.uniform(low, high)) if rng.random() < chance * spoil else otherwise

    bars = (0, 0)
    if rng.random() < 0.15 * spoil:
        amount = int(rng.uniform(0.05, 0.16) * min(width, height))
        bars = (amount, 0) if rng.random() < 0.5 else (0, amount)
    fps = float(rng.choice([10, 12, 15, 24, 25, 30, 50, 60])) if spoil else 1000.0
    return Look(
        gain=now_and_then(0.8, 0.55, 1.3, 1.0),
        drift=now_and_then(0.3, -0.3, 0.3),
        flicker=now_and_then(0.25, 0.005, 0.06),
        gamma=now_and_then(0.5, 0.7, 1.5, 1.0),
        tone=tuple(now_and_then(0.5, 0.8, 1.2, 1.0) for _ in range(3)),
        grey=rng.random() < 0.08 * spoil,
        noise=now_and_then(0.5, 1, 8),
        blur=now_and_then(0.35, 0.3, 1.2),
        shutter=now_and_then(0.15, 0.01, 0.05),
        skew=now_and_then(0.1, 0.005, 0.03),
        quality=int(now_and_then(0.35, 30, 90)),
        bars=bars,
        label=rng.random() < 0.08 * spoil,
        fps=fps,
        seed=int(rng.integers(2**31)),
    )


def _choose_layer(rng: np.random.Generator, scene: Scene, texture) -> Plane:
    """A standing thing that nobody asks about: clutter, or what others pass behind."""
    cutout, depth = make_cutout(rng, texture()), rng.uniform(0.35, 0.85)
    step = depth / scene.focal * rng.uniform(0.4, 1.8)
    spot = rng.uniform(-0.1, 1.1, 2) * [scene.width, scene.height]
    middle = np.array([*((spot - scene.centre) * depth / scene.focal), depth])
    origin = middle - step * np.array([CANVAS / 2, CANVAS / 2, 0])
    top, left = rng.integers(0, SIDE - CANVAS, 2)
    picture = texture()[top : top + CANVAS, left : left + CANVAS] if rng.random() < 0.5 else cutout.pictures[0]
    return Plane(
        np.ascontiguousarray(picture), origin, np.array([step, 0, 0]), np.array([0, step, 0]), cutout.masks[0]
    )


def _choose_cover(rng: np.random.Generator, scene: Scene, texture, mover: Mover) -> Plane:
    """A standing thing that hides a mover at the end of the clip."""
    end = np.array([scene.duration])
    place = _at(scene, mover.positions, end)[0]
    camera = camera_at(scene, end)[0, X : Z + 1]
    nearness = rng.uniform(0.7, 0.9)
    middle = camera + nearness * (place - camera)
    step = 2 * nearness * mover.half * rng.uniform(1.3, 2.2) / CANVAS
    top, left = rng.integers(0, SIDE - CANVAS, 2)
    picture = np.ascontiguousarray(texture()[top : top + CANVAS, left : left + CANVAS])
    origin = middle - step * np.array([CANVAS / 2, CANVAS / 2, 0])
    whole = np.full((CANVAS, CANVAS), 255, np.uint8)
    return Plane(picture, origin, np.array([step, 0, 0]), np.array([0, step, 0]), whole)


def _choose_movers(rng, scene: Scene, texture, path, num_movers, fastest) -> tuple[Mover, ...]:
    """Movers first, then things that stay, each of a name of its own."""
    if num_movers is None:
        num_movers = int(rng.choice([0, 1, 2, 3], p=[0.15, 0.5, 0.27, 0.08]))
        if scene.motions and rng.random() < 0.45:
            num_movers = 0
    num_movers = max(num_movers, path is not None)
    paths = [PATHS[rng.integers(len(PATHS))] for _ in range(num_movers)]
    if path is not None:
        paths[0] = path
    paths += [()] * int(rng.choice([0, 1, 2], p=[0.5, 0.35, 0.15]))
    found, names = [], set()
    for one in paths:
        for _ in range(8):
            mover = _choose_mover(rng, scene, texture, one, fastest)
            middle, _ = project(scene, camera_at(scene, scene.middle), _at(scene, mover.positions, scene.middle))
            apart = [np.linalg.norm(middle - other[1]) > 0.16 * scene.width for other in found]
            if mover.name not in names and all(apart):
                names.add(mover.name)
                found.append((mover, middle))
                break
    return tuple(mover for mover, _ in found)


def _choose_mover(rng, scene: Scene, texture, path: tuple[str, ...], fastest: float) -> Mover:
    times, duration, width = scene.times, scene.duration, scene.width
    span = (scene.width * scene.height) ** 0.5
    pace = str(rng.choice(PACES, p=[0.36, 0.04, 0.15, 0.15, 0.15, 0.15]))
    in_turn = len(path) == 2
    along = there_and_back(rng, times, duration) if in_turn else speed_profile(rng, pace, times, duration)
    along = along - np.interp(scene.middle, times, along)
    spot = rng.uniform(0.18, 0.82, 2) * [scene.width, scene.height]
    depth, pixels = rng.uniform(0.3, 0.85), _log_uniform(rng, 0.045, 0.3) * span
    way = path[0] if path else ""
    shift = np.clip(_log_uniform(rng, 0.04, fastest) * duration, 0.14, 0.9)
    screen = np.tile(spot, (len(times), 1))
    log_depth = np.zeros(len(times))
    followed = False
    if way in ("left", "right"):
        screen[:, 0] += along * shift * width * (1 if way == "right" else -1)
        screen[:, 1] += along * shift * width * rng.uniform(-0.3, 0.3)
        log_depth = along * rng.choice([0, 0, rng.uniform(-0.15, 0.15)])
    elif way in ("up", "down"):
        screen[:, 1] += along * shift * 0.8 * scene.height * (1 if way == "down" else -1)
        screen[:, 0] += along * shift * 0.8 * scene.height * rng.uniform(-0.3, 0.3)
    elif way:
        growth = np.clip(_log_uniform(rng, 0.06, 0.5) * duration, 0.32, 1.4)
        log_depth = along * growth * (-1 if way == "toward" else 1)
        pixels = np.clip(pixels, 0.07 * span, 0.22 * span)
        screen += along[:, None] * rng.uniform(-0.25, 0.25, 2) * growth * pixels
    sways = not path and rng.random() < 0.2
    if sways or (path and rng.random() < 0.15):
        screen += _wander(rng, times, 0.4, 2)[:, None] * rng.normal(size=2) * pixels * (0.25 if sways else 0.06)
    turning = {YAW, PITCH, X, Y} & {CAMERA_AXES[name][0] for name in scene.motions}
    camera = camera_at(scene, np.full(len(times), scene.middle))
    if path and turning and not in_turn and rng.random() < 0.35:  # the camera follows it: it hardly leaves its spot
        followed, camera = True, scene.camera
        screen = spot + 0.15 * (screen - spot)
    depths = depth * np.exp(log_depth)
    focal = scene.focal * np.exp(camera[:, ZOOM])
    local = np.concatenate([(screen - scene.centre) / focal[:, None], np.ones((len(times), 1))], 1) * depths[:, None]
    positions = camera[:, X : Z + 1] + np.einsum("tji,tj->ti", rotation(camera), local)
    rocking = rng.choice([0, 0, 0.08]) if path or sways else 0.0
    roll = rng.uniform(-0.15, 0.15) + rocking * _wander(rng, times, 0.4, 2)
    cutout = make_cutout(rng, texture())
    if cutout.kind in ("ball", "blob", "star") and path and rng.random() < 0.5:
        roll = roll + along * shift * width / pixels * (1 if way == "right" else -1)
    mirrored = (way == "left") != (rng.random() < 0.2)
    stride = rng.uniform(4, 12) if path or sways else 0.0
    half = float(pixels * depth / focal[len(times) // 2])
    return Mover(
        cutout, positions, roll, half, mirrored, stride, path, "in turn" if in_turn else pace, followed, sways
    )


def _at(scene: Scene, path: np.ndarray, times) -> np.ndarray:
    """A path (GRID, n) at `times`."""
    return np.stack([np.interp(times, scene.times, column) for column in path.T], -1)


# Pictures


@dataclass(frozen=True)
class Rendering:
    """`frames` (T, H, W, 3) uint8 RGB; `shown` (T, H, W) uint8: what each pixel shows, see `WALL` to `BARS`;
    `times` (T,) s: when the source's frames that are on screen at the asked times were taken."""

    frames: np.ndarray
    shown: np.ndarray
    times: np.ndarray


def source_times(scene: Scene, times: np.ndarray) -> np.ndarray:
    """When the frames on screen at `times` were taken: the source has a frame rate of its own."""
    return np.floor(np.asarray(times) * scene.look.fps + 1e-6) / scene.look.fps


def render(scene: Scene, times: np.ndarray, spoilt: bool = True, hidden: tuple[str, ...] = ()) -> Rendering:
    """The scene at `times` (T,) in seconds, up to `AHEAD` after its end. `spoilt=False` leaves the look out, and
    `hidden` names what is not drawn: `"layers"`, or a mover by its name."""
    load_opencv()
    times = source_times(scene, times) if spoilt else np.asarray(times, np.float64)
    camera = camera_at(scene, times)
    painter = _Painter(scene, hidden)
    frames, shown = zip(*(painter.paint(moment, row) for moment, row in zip(times, camera, strict=True)), strict=True)
    frames, shown = np.stack(frames), np.stack(shown)
    if spoilt and scene.look.shutter:
        later = times + scene.look.shutter
        ends = [painter.paint(t, row)[0] for t, row in zip(later, camera_at(scene, later), strict=True)]
        frames = np.stack([cv2.addWeighted(a, 0.5, b, 0.5, 0) for a, b in zip(frames, ends, strict=True)])
    if spoilt:
        frames = _spoil(scene, frames, times)
    vertical, horizontal = scene.look.bars if spoilt else (0, 0)
    if vertical:
        frames[:, :vertical] = frames[:, -vertical:] = 0
        shown[:, :vertical] = shown[:, -vertical:] = BARS
    if horizontal:
        frames[:, :, :horizontal] = frames[:, :, -horizontal:] = 0
        shown[:, :, :horizontal] = shown[:, :, -horizontal:] = BARS
    return Rendering(frames, shown, times)


def view_from_above(scene: Scene, moment: float) -> np.ndarray:
    """A map of the scene `moment` seconds in, seen from above, (H, W, 3) uint8: the camera is the white triangle at
    the bottom in the middle and looks up, the light wedge is what it sees, and each mover is a disc of its colour.
    The upper edge is as far away as the wall was at first."""
    load_opencv()
    picture = np.full((scene.height, scene.width, 3), 40, np.uint8)
    camera = camera_at(scene, np.array([moment]))
    foot, scale = np.array([scene.width / 2, 0.92 * scene.height]), 0.9 * scene.height
    half_angle = np.arctan(scene.width / 2 / (scene.focal * np.exp(camera[0, ZOOM])))
    far = (
        2
        * scene.height
        * np.array([[-np.sin(half_angle), -np.cos(half_angle)], [np.sin(half_angle), -np.cos(half_angle)]])
    )
    cv2.fillPoly(picture, [np.array([foot, *(foot + far)]).astype(np.int32)], (85, 85, 85))
    size = max(3, scene.height // 20)
    triangle = foot + size * np.array([[0, -1], [0.8, 0.8], [-0.8, 0.8]])
    cv2.fillPoly(picture, [triangle.astype(np.int32)], (255, 255, 255))
    for mover in scene.movers:
        local = (
            rotation(camera) @ (_at(scene, mover.positions, np.array([moment])) - camera[:, X : Z + 1])[..., None]
        )[0, :, 0]
        spot = foot + scale * np.array([local[0], -local[2]])
        cv2.circle(picture, tuple(spot.astype(int).tolist()), 2 * size, COLOURS[mover.cutout.colour], -1)
    return picture


def _intrinsics(scene: Scene, row: np.ndarray) -> np.ndarray:
    focal = scene.focal * np.exp(row[ZOOM])
    return np.array([[focal, 0, scene.centre[0]], [0, focal, scene.centre[1]], [0, 0, 1]])


def _homography(scene: Scene, row: np.ndarray, plane: Plane) -> np.ndarray:
    """Texture pixels to picture pixels, (3, 3)."""
    matrix = plane.matrix.copy()
    matrix[:, 2] -= row[X : Z + 1]
    return _intrinsics(scene, row) @ rotation(row) @ matrix


def _placement(scene: Scene, row: np.ndarray, mover: Mover, moment: float):
    """A mover's canvas in the picture: an affine (2, 3) from canvas pixels, or `None` if it is behind the camera."""
    centre, depth = project(scene, row, _at(scene, mover.positions, moment))
    if depth < 0.04:
        return None
    scale = scene.focal * np.exp(row[ZOOM]) * mover.half / depth / (CANVAS / 2)
    angle = np.interp(moment, scene.times, mover.roll) - row[ROLL]
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]])
    return np.concatenate([linear, (centre - linear @ [CANVAS / 2, CANVAS / 2])[:, None]], 1)


class _Painter:
    """Paints a scene, the farthest first."""

    def __init__(self, scene: Scene, hidden: tuple[str, ...]):
        self.scene, self.hidden = scene, hidden
        self.columns, self.rows = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in (scene.width, scene.height)))
        self.wall = self.in_fog(scene.wall.texture, 1.0)
        self.ground = scene.ground and self.in_fog(scene.ground.texture, 0.5)
        self.layers = [self.in_fog(layer.texture, layer.origin[2]) for layer in scene.layers]
        self.pictures, self.masks = [], []
        for mover in scene.movers:
            turn = (lambda a: np.ascontiguousarray(a[:, :, ::-1])) if mover.mirrored else (lambda a: a)
            distance = mover.positions[:, 2].mean()
            self.pictures.append([self.in_fog(picture, distance) for picture in turn(mover.cutout.pictures)])
            self.masks.append(turn(mover.cutout.masks))

    def in_fog(self, texture: np.ndarray, distance: float) -> np.ndarray:
        density, *colour = self.scene.fog
        if not density:
            return texture
        clear = float(np.exp(-density * max(distance, 0)))
        return cv2.addWeighted(texture, clear, np.full_like(texture, colour), 1 - clear, 0)

    def paint(self, moment: float, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frame (H, W, 3) and what it shows (H, W)."""
        scene = self.scene
        size = (scene.width, scene.height)
        frame = cv2.warpPerspective(
            self.wall, _homography(scene, row, scene.wall), size, borderMode=cv2.BORDER_REFLECT_101
        )
        shown = np.zeros(frame.shape[:2], np.uint8)
        if scene.ground is not None:
            self.paint_ground(frame, shown, row, moment)
        order = []
        if "layers" not in self.hidden:
            order += [(layer.origin[2], FIRST_LAYER + i, layer) for i, layer in enumerate(scene.layers)]
        for i, mover in enumerate(scene.movers):
            if mover.name not in self.hidden:
                order.append((_at(scene, mover.positions, moment)[2], FIRST_MOVER + i, mover))
        for depth, number, thing in sorted(order, key=lambda entry: -entry[0]):
            if isinstance(thing, Plane):
                if depth - row[Z] > 0.03:
                    place = _homography(scene, row, thing)
                    mask = cv2.warpPerspective(thing.mask, place, size, flags=cv2.INTER_NEAREST)
                    picture = cv2.warpPerspective(self.layers[number - FIRST_LAYER], place, size)
                    cv2.copyTo(picture, mask, frame)
                    shown[mask > 0] = number
            else:
                self.paint_mover(frame, shown, row, number, thing, moment)
        return frame, shown

    def paint_ground(self, frame: np.ndarray, shown: np.ndarray, row: np.ndarray, moment: float) -> None:
        """The ground is seen where a ray meets it before the wall."""
        scene = self.scene
        rays = np.linalg.inv(_intrinsics(scene, row) @ rotation(row))
        fall = rays[1, 0] * self.columns + rays[1, 1] * self.rows + rays[1, 2]
        ahead = rays[2, 0] * self.columns + rays[2, 1] * self.rows + rays[2, 2]
        over, to_wall = scene.ground.origin[1] - row[Y], 1 - row[Z]
        seen = ((fall > 1e-6) & (over * ahead < to_wall * fall)).view(np.uint8)
        if seen.any():
            place = _homography(scene, row, scene.ground)
            picture = cv2.warpPerspective(self.ground, place, frame.shape[1::-1], borderMode=cv2.BORDER_REFLECT_101)
            cv2.copyTo(picture, seen, frame)
            shown[seen > 0] = GROUND
            self.paint_shadows(frame, seen, row, moment)

    def paint_shadows(self, frame: np.ndarray, seen: np.ndarray, row: np.ndarray, moment: float) -> None:
        """A darker ellipse on the ground under each mover, if the sun shines."""
        scene = self.scene
        if scene.look.seed % 2:
            return
        shade = np.zeros_like(seen)
        for mover in scene.movers:
            foot = _at(scene, mover.positions, moment)
            foot[1] = scene.ground.origin[1]
            (x, y), depth = project(scene, row, foot)
            if depth > 0.05 and abs(x) < 1e3 and abs(y) < 1e3:
                wide = scene.focal * np.exp(row[ZOOM]) * mover.half / depth * mover.cutout.extent[0]
                cv2.ellipse(shade, (int(x), int(y)), (int(wide), max(1, int(wide / 4))), 0, 0, 360, 1, -1)
        dark = (shade & seen).astype(bool)
        frame[dark] = (frame[dark] * 0.6).astype(np.uint8)

    def paint_mover(self, frame, shown, row, number, mover: Mover, moment: float) -> None:
        place = _placement(self.scene, row, mover, moment)
        if place is None:
            return
        corners = place @ np.array([[0, CANVAS, CANVAS, 0], [0, 0, CANVAS, CANVAS], [1, 1, 1, 1]], np.float64)
        low = np.maximum(np.floor(corners.min(1)), 0).astype(int)
        high = np.minimum(np.ceil(corners.max(1)), [self.scene.width, self.scene.height]).astype(int)
        if (high - low < 1).any():
            return
        i = number - FIRST_MOVER
        pose = int(moment * mover.stride) % len(self.pictures[i])
        place = place - np.array([[0, 0, low[0]], [0, 0, low[1]]])
        size = tuple((high - low).tolist())
        mask = cv2.warpAffine(self.masks[i][pose], place, size, flags=cv2.INTER_NEAREST)
        picture = cv2.warpAffine(self.pictures[i][pose], place, size, borderMode=cv2.BORDER_REPLICATE)
        part = frame[low[1] : high[1], low[0] : high[0]]
        cv2.copyTo(picture, mask, part)
        shown[low[1] : high[1], low[0] : high[0]][mask > 0] = number


def _spoil(scene: Scene, frames: np.ndarray, times: np.ndarray) -> np.ndarray:
    look, rng = scene.look, np.random.default_rng(scene.look.seed)
    gains = look.gain * (1 + look.drift * (times / scene.duration - 0.5) + look.flicker * rng.normal(size=len(times)))
    ramp = 255 * (np.arange(256) / 255) ** look.gamma
    noise = rng.normal(size=frames.shape[1:]).astype(np.float32) * look.noise if look.noise else None
    left, top = rng.integers(2, scene.width - 30), rng.integers(8, scene.height - 4)
    columns = camera_at(scene, times)[:, YAW]
    later = camera_at(scene, times + 0.05)[:, YAW]
    rates = (later - columns) / 0.05 * scene.focal  # pixels a second
    spoilt = np.empty_like(frames)
    for k, frame in enumerate(frames):
        if look.skew and abs(rates[k]) > 1:
            lean = -rates[k] * look.skew / scene.height
            shear = np.array([[1, lean, -lean * scene.height / 2], [0, 1, 0]])
            frame = cv2.warpAffine(frame, shear, frame.shape[1::-1], borderMode=cv2.BORDER_REFLECT_101)
        if look.blur:
            frame = cv2.GaussianBlur(frame, (0, 0), look.blur)
        table = np.clip(ramp[:, None] * look.tone * gains[k], 0, 255).astype(np.uint8)
        frame = cv2.LUT(frame, table[None])
        if look.grey:
            frame = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if noise is not None:
            moved = np.roll(noise, tuple(rng.integers(0, scene.height, 2)), (0, 1))
            frame = cv2.add(frame, moved, dtype=cv2.CV_8U)
        if look.label:
            cv2.putText(frame, "REC 12", (int(left), int(top)), 0, 0.25, (255, 255, 255), 1)
        if look.quality:
            coded = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, look.quality])[1]
            frame = cv2.imdecode(coded, cv2.IMREAD_COLOR)
        spoilt[k] = frame
    return spoilt


# Truth


class DenseMotion(NamedTuple):
    """Motion at `n` points of a picture: `flow` (n, 2) in pixels; `moves` (n,) bool, whether what is seen there moves
    by itself; `growth` (n,), the logarithm of how much larger it gets on screen."""

    flow: np.ndarray
    moves: np.ndarray
    growth: np.ndarray


def optical_flow(
    scene: Scene, shown: np.ndarray, start: float, end: float, points: np.ndarray, camera_stays: bool = False
) -> DenseMotion:
    """Exact motion from `start` to `end` at picture `points` (n, 2). `shown` (H, W) is the rendering's at `start`. The
    flow of a cut-out is its body's: its limbs move besides. With `camera_stays` it is the motion for a camera that
    stays as it is at `start`."""
    first, last = camera_at(scene, np.array([start, start if camera_stays else end]))
    columns, rows = np.clip(points.astype(int), 0, [scene.width - 1, scene.height - 1]).T
    what = shown[rows, columns]
    flow, moves, growth = np.zeros((len(points), 2)), np.zeros(len(points), bool), np.zeros(len(points))
    ones = np.concatenate([points, np.ones((len(points), 1))], 1)
    for number in np.unique(what):
        here = what == number
        if number == BARS:
            continue
        if number >= FIRST_MOVER:
            mover = scene.movers[number - FIRST_MOVER]
            places = [_placement(scene, row, mover, t) for row, t in ((first, start), (last, end))]
            if places[1] is None:
                continue
            matrices = [np.concatenate([place, [[0, 0, 1]]]) for place in places]
            travel = np.linalg.norm(_at(scene, mover.positions, end) - _at(scene, mover.positions, start))
            moves[here] = travel > 0.05 * mover.half * (end - start)
        else:
            planes = {WALL: scene.wall, GROUND: scene.ground}
            plane = planes[number] if number < FIRST_LAYER else scene.layers[number - FIRST_LAYER]
            matrices = [_homography(scene, row, plane) for row in (first, last)]
        motion = matrices[1] @ np.linalg.inv(matrices[0])
        moved = ones[here] @ motion.T
        flow[here] = moved[:, :2] / moved[:, 2:] - points[here]
        # The area grows by det(H) / w^3 under a homography, the size by the root of that.
        area = np.abs(np.linalg.det(motion)) / np.maximum(np.abs(moved[:, 2]) ** 3, 1e-9)
        growth[here] = np.log(np.maximum(area, 1e-9)) / 2
    return DenseMotion(flow, moves, growth)


@dataclass(frozen=True)
class MoverTruth:
    """What is true of one cut-out during the clip; `None` where it is not clear.

    `direction` as one of `PATHS[:6]`'s words, `"still"`, or a turn ("left, then right"); `distance`: "closer",
    "farther", "same", "closer, then farther", "farther, then closer" (its own and the camera's motion together);
    `size` on screen: "larger", "smaller", "same"; `pace`: "speeds up", "slows down", "steady"; `start` and `stop` in
    seconds, if it starts or stops within the clip; `speed` in picture widths a second; `places` (T, 2) and
    `sizes` (T,) as shares of the picture's width and height, and of its width; `visible` (T,) share of its own area.
    """

    direction: str | None
    distance: str | None
    size: str | None
    pace: str | None
    start: float | None
    stop: float | None
    speed: float
    places: np.ndarray
    sizes: np.ndarray
    visible: np.ndarray


def truth_of(scene: Scene, rendering: Rendering, index: int) -> MoverTruth:
    """The truth about mover `index` at the rendering's times."""
    mover, times = scene.movers[index], rendering.times
    camera = camera_at(scene, times)
    points = _at(scene, mover.positions, times)
    pixels, depths = project(scene, camera, points)
    sizes = 2 * scene.focal * np.exp(camera[:, ZOOM]) * mover.half / np.maximum(depths, 0.04) / scene.width
    frozen = np.repeat(camera_at(scene, np.array([scene.middle])), len(times), 0)
    own, own_depths = project(scene, frozen, points)
    own = own / scene.width
    distance = _change(1 / np.linalg.norm(points - camera[:, X : Z + 1], axis=-1), "closer", "farther")
    if distance != _change(1 / np.maximum(depths, 0.04), "closer", "farther"):  # it would not look so
        distance = None
    area = [np.count_nonzero(mask) for mask in mover.cutout.masks]
    drawn = np.array([(shown == FIRST_MOVER + index).sum() for shown in rendering.shown])
    full = np.mean(area) * (sizes * scene.width / CANVAS) ** 2
    step = np.linalg.norm(np.diff(points, axis=0), axis=1) / np.maximum(np.diff(times), 1e-6)
    speed = np.linalg.norm(np.diff(own, axis=0), axis=1).sum() / max(times[-1] - times[0], 1e-6)
    start = stop = None
    if mover.path and mover.pace in ("starts", "stops"):
        fine = np.linalg.norm(np.diff(mover.positions, axis=0), axis=1)
        within = scene.times[1:] <= scene.duration
        going = np.flatnonzero((fine > 0.2 * fine[within].max()) & within)
        start = float(scene.times[going[0]]) if mover.pace == "starts" else None
        stop = float(scene.times[going[-1] + 1]) if mover.pace == "stops" else None
    return MoverTruth(
        direction=_direction(mover, own, own_depths),
        distance=distance,
        size=_change(sizes, "larger", "smaller", in_turn=False),
        pace=_pace(mover, step, times),
        start=start,
        stop=stop,
        speed=float(speed),
        places=pixels / [scene.width, scene.height],
        sizes=sizes,
        visible=np.clip(drawn / np.maximum(full, 1), 0, 1),
    )


def _direction(mover: Mover, own: np.ndarray, depths: np.ndarray) -> str | None:
    """By how its picture goes for a camera that stands still: sideways in shares of the width, ahead by its size."""
    if not mover.path:
        return "still" if not mover.sways else None
    if len(mover.path) == 2:
        turn = (
            int(np.abs(own - own[0]).sum(1).argmax())
            if mover.path[0] in ("left", "right")
            else int(np.abs(np.log(np.maximum(depths / depths[0], 1e-3))).argmax())
        )
        parts = [_direction_of(own[: turn + 1], depths[: turn + 1]), _direction_of(own[turn:], depths[turn:])]
        return ", then ".join(parts) if tuple(parts) == mover.path else None
    found = _direction_of(own, depths)
    return found if found == mover.path[0] else None


def _direction_of(own: np.ndarray, depths: np.ndarray) -> str | None:
    (x, y), growth = own[-1] - own[0], np.log(np.maximum(depths[0], 1e-3) / np.maximum(depths[-1], 1e-3))
    if abs(x) >= CLEAR_MOVE and abs(x) > 2 * abs(y) and abs(growth) < np.log(CLEAR_SIZE):
        return "right" if x > 0 else "left"
    if abs(y) >= CLEAR_MOVE and abs(y) > 2 * abs(x) and abs(growth) < np.log(CLEAR_SIZE):
        return "down" if y > 0 else "up"
    if abs(growth) >= np.log(CLEAR_SIZE) and np.hypot(x, y) < 0.35 * abs(growth):
        return "toward" if growth > 0 else "away"
    return None


def _change(values: np.ndarray, up: str, down: str, in_turn: bool = True) -> str | None:
    """How a positive value changes, by ratios."""
    logs = np.log(np.maximum(values, 1e-6))
    clear, same = np.log(CLEAR_SIZE), np.log(SAME_SIZE)
    net = logs[-1] - logs[0]
    if np.ptp(logs) <= same:
        return "same"
    rise, fall = logs.max() - max(logs[0], logs[-1]), min(logs[0], logs[-1]) - logs.min()
    if in_turn and rise >= clear and abs(net) < rise:
        return f"{up}, then {down}"
    if in_turn and fall >= clear and abs(net) < fall:
        return f"{down}, then {up}"
    if abs(net) >= clear and max(rise, fall) < 0.3 * abs(net):
        return up if net > 0 else down
    return None


def _pace(mover: Mover, step: np.ndarray, times: np.ndarray) -> str | None:
    if len(mover.path) != 1 or mover.pace in ("starts", "stops") or len(step) < 6:
        return None
    third = len(step) // 3
    ratio = (step[-third:].mean() + 1e-9) / (step[:third].mean() + 1e-9)
    if ratio > CLEAR_PACE:
        return "speeds up"
    if ratio < 1 / CLEAR_PACE:
        return "slows down"
    return "steady" if 1 / SAME_PACE < ratio < SAME_PACE else None
