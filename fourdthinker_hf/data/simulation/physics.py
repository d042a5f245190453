"""Builds MuJoCo's model of a scene and runs it."""

from typing import Any

import numpy as np

from .cameras import camera_path, motion_spans
from .rendering import FPS, Truth, load_mujoco, project
from .scenes import AHEAD, FRONTED, SPLITS, Body, Leg, World

SUBSTEPS = 16  # 128 steps a second

SLOTS = 6  # bodies at most: one texture and one mesh each


def drive(body: Body, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the servo of a driven body is told at each of `count` frames: velocity (count, 2) m/s, yaw rate rad/s; and
    the yaw at each frame in rad."""
    middles, begin = (np.arange(count) + 0.5) / FPS, 0.0
    speed, turn, course = np.zeros(count), np.zeros(count), np.zeros(count)
    for leg in body.legs:
        now = (middles >= begin) & (middles < leg.until)
        since = middles[now] - begin
        speed[now] = leg.begin + (leg.end - leg.begin) * since / (leg.until - begin)
        turn[now], course[now] = leg.turn, leg.course + leg.turn * since
        begin = leg.until
    spin = turn if body.shape in FRONTED else 0 * turn
    yaw = body.yaw + (np.cumsum(spin) - spin) / FPS
    course = np.radians(yaw + spin / 2 / FPS if body.shape in FRONTED else course)
    return speed[:, None] * np.stack([np.cos(course), np.sin(course)], -1), np.radians(spin), np.radians(yaw)


def _truth(world: World, positions: np.ndarray, velocities: np.ndarray, quaternions: np.ndarray) -> Truth:
    eye, rotation = camera_path(world)
    centres, depths = project(positions, eye, rotation, world.size, world.fov)
    return Truth(positions, velocities, quaternions, eye, rotation, centres, depths, motion_spans(world))


def predict(world: World) -> Truth:
    """The truth as if nothing touched anything, and free bodies slid on: cheap, to sift candidates."""
    count = world.num_frames + AHEAD
    positions, velocities = np.empty((2, count, len(world.things), 3))
    quaternions = np.zeros((count, len(world.things), 4))
    for i, body in enumerate(world.things):
        if body.legs:
            velocity, _, yaw = drive(body, count)
            velocity = np.concatenate([velocity, np.zeros((count, 1))], 1)
            moved = (np.cumsum(velocity, 0) - velocity) / FPS
            velocity = np.concatenate([velocity[:1], (velocity[:-1] + velocity[1:]) / 2])
        else:
            since = np.maximum(np.arange(count) / FPS - body.release, 0)[:, None]
            velocity, yaw = (since > 0) * np.array(body.velocity), np.full(count, np.radians(body.yaw))
            moved = since * np.array([*body.velocity[:2], 0.0])
        positions[:, i], velocities[:, i] = body.start + moved, velocity
        quaternions[:, i, 0], quaternions[:, i, 3] = np.cos(yaw / 2), np.sin(yaw / 2)
    return _truth(world, positions, velocities, quaternions)


def run(world: World) -> tuple[Truth, tuple[Any, np.ndarray]]:
    """Simulate; returns the truth and (model, joint positions (T, nq)) to render from."""
    mujoco = load_mujoco()
    model = make_model(world)
    data, count, num = mujoco.MjData(model), world.num_frames + AHEAD, len(world.things)
    joints = [int(model.body_jntadr[i + 2]) for i in range(num)]
    places = [(int(model.jnt_qposadr[j]), int(model.jnt_dofadr[j])) for j in joints]
    driven = [i for i, body in enumerate(world.things) if body.legs]
    free = [i for i, body in enumerate(world.things) if not body.legs]
    orders = np.empty((count, 3 * len(driven)))
    for k, i in enumerate(driven):
        velocity, spin, yaw = drive(world.things[i], count)
        orders[:, 3 * k : 3 * k + 2], orders[:, 3 * k + 2] = velocity, spin
        q, v = places[i]
        data.qpos[q + 3], data.qvel[v : v + 2], data.qvel[v + 3] = yaw[0], velocity[0], spin[0]
    states, speeds = np.empty((count, model.nq)), np.empty((count, model.nv))
    poses = np.empty((count, num, 7))
    held = data.qpos.copy()
    release = {i: round(world.things[i].release * FPS) for i in free}
    for t in range(count):
        for i in free:
            q, v = places[i]
            if t <= release[i]:
                data.qpos[q : q + 7], data.qvel[v : v + 6] = held[q : q + 7], 0
            if t == release[i]:
                data.qvel[v : v + 3] = world.things[i].velocity
        mujoco.mj_kinematics(model, data)
        states[t], speeds[t] = data.qpos, data.qvel
        poses[t, :, :3], poses[t, :, 3:] = data.xpos[2:], data.xquat[2:]
        data.ctrl[:] = orders[t]
        mujoco.mj_step(model, data, SUBSTEPS)
    velocities = np.stack([speeds[:, v : v + 3] for _, v in places], 1)
    return _truth(world, poses[..., :3], velocities, poses[..., 3:]), (model, states)


def _geoms(body: Body, slot: int) -> list[tuple[str, tuple[float, float, float]]]:
    """MJCF of a body's geoms, without appearance, and their colours; the first has the body's texture."""
    h, rgb = body.half, body_rgb(body)
    dark, light = (0.05, 0.05, 0.05), (0.95, 0.95, 0.9)

    def box(x: float, y: float, z: float, *size: float) -> str:
        return f'type="box" pos="{x * h} {y * h} {z * h}" size="{" ".join(str(s * h) for s in size)}"'

    def ball(x: float, y: float, z: float, r: float) -> str:
        return f'type="sphere" pos="{x * h} {y * h} {z * h}" size="{r * h}"'

    mesh = f'type="mesh" mesh="mesh{slot}"'
    if body.shape == "car":
        size, cabin = f'euler="90 0 0" size="{0.35 * h} {0.12 * h}"', tuple(np.multiply(rgb, 0.6))
        corners = [(x, y) for x in (-0.85, 0.85) for y in (-0.75, 0.75)]
        wheels = [f'type="cylinder" pos="{x * h} {y * h} {-0.65 * h}" {size}' for x, y in corners]
        return [
            (box(0, 0, -0.35, 1.4, 0.75, 0.4), rgb),
            (box(-0.35, 0, 0.45, 0.7, 0.62, 0.45), cabin),
            (box(1.42, 0, -0.35, 0.1, 0.6, 0.25), dark),
            (ball(1.3, 0.5, 0.05, 0.2), light),
            (ball(1.3, -0.5, 0.05, 0.2), light),
            *((wheel, dark) for wheel in wheels),
        ]
    if body.shape == "arrow":
        return [(mesh, rgb), (box(-0.7, 0, -0.5, 0.75, 0.35, 0.48), rgb)]
    if body.shape == "duck":
        return [
            (f'type="ellipsoid" pos="0 0 {-0.4 * h}" size="{1.15 * h} {0.75 * h} {0.6 * h}"', rgb),
            (ball(0.7, 0, 0.45, 0.5), rgb),
            (box(1.3, 0, 0.4, 0.25, 0.22, 0.1), (1.0, 0.6, 0.05)),
            (ball(1.0, 0.28, 0.65, 0.12), light),
            (ball(1.0, -0.28, 0.65, 0.12), light),
        ]
    alone = {
        "ball": f'type="sphere" size="{h}"',
        "cube": box(0, 0, 0, 1, 1, 1),
        "cylinder": f'type="cylinder" size="{h} {h}"',
        "pill": f'type="capsule" size="{0.6 * h} {0.4 * h}"',
        "egg": f'type="ellipsoid" size="{0.75 * h} {0.75 * h} {h}"',
    }
    return [(alone.get(body.shape, mesh), rgb)]


def body_rgb(body: Body) -> tuple[float, float, float]:
    return next(kit.colours[body.colour] for kit in SPLITS.values() if body.colour in kit.colours)


def _mesh(body: Body | None, slot: int) -> str:
    h = body.half if body else 0.1
    corners = {
        "arrow": [(x, y, z) for x, y in ((0.0, 1.0), (0.0, -1.0), (1.5, 0.0)) for z in (-1.0, 0.0)],
        "pyramid": [(x, y, -1.0) for x in (-1, 1) for y in (-1, 1)] + [(0.0, 0.0, 1.0)],
    }.get(body.shape if body else "")
    if corners is None:
        return f'<mesh name="mesh{slot}" builtin="cone" params="24 0" scale="{h} {h} {h}"/>'
    return f'<mesh name="mesh{slot}" vertex="{" ".join(str(value * h) for corner in corners for value in corner)}"/>'


def _body(body: Body, slot: int) -> str:
    joints = '<freejoint/><inertial pos="0 0 0" mass="0.5" diaginertia="{0} {0} {0}"/>'.format(0.2 * body.half**2)
    contact = (
        f'condim="6" priority="1" friction="{body.friction} .005 {0.02 * body.half}" '
        f'solref="-3600 {-120 * (1 - body.bounce) - 2}"'
    )
    if body.legs:
        axes = zip("xyz", ("1 0 0", "0 1 0", "0 0 1"), strict=True)
        joints = "".join(f'<joint name="{axis}{slot}" type="slide" axis="{way}"/>' for axis, way in axes)
        joints += f'<joint name="yaw{slot}" type="hinge" axis="0 0 1"/>'
        joints += '<inertial pos="0 0 0" mass="5" diaginertia=".6 .6 .6"/>'
        contact = 'condim="1" friction="0 0 0"'
    skins = [f'material="skin{slot}"', *[""] * 9]
    geoms = "".join(
        f'<geom {geom} {contact} rgba="{" ".join(map(str, rgb))} 1" {skin}/>'
        for (geom, rgb), skin in zip(_geoms(body, slot), skins, strict=False)
    )
    yaw = "" if body.legs else f' euler="0 0 {body.yaw}"'
    return f'<body pos="{" ".join(map(str, body.start))}"{yaw}>{joints}{geoms}</body>'


def make_model(world: World) -> Any:
    """MuJoCo's model: body 1 is the camera's, body i + 2 thing i; always `SLOTS` textures and meshes."""
    rng = np.random.default_rng(world.look)
    x, y, yaw, aim = *rng.uniform(-4, 4, 2), rng.uniform(0, 360), rng.uniform(0, 2 * np.pi)
    plain = world.level == 1  # which looks as plain.py does
    low, high = (
        ((0.35, 0.5, 0.75), (0.75, 0.8, 0.85)) if plain else (rng.uniform(0.1, 0.8, 3), rng.uniform(0.4, 0.95, 3))
    )
    ambient, direct, steep = (
        (0.45, 0.5, 1.6) if plain else (rng.uniform(0.3, 0.5), rng.uniform(0.35, 0.6), rng.uniform(1, 3))
    )
    driven = [i for i, body in enumerate(world.things) if body.legs]
    slots = [*world.things, *[None] * (SLOTS - len(world.things))]
    text = f"""<mujoco><option timestep="{1 / FPS / SUBSTEPS}" integrator="implicitfast"/>
<statistic extent="5" center="0 5 0"/>
<visual><global offwidth="{world.size}" offheight="{world.size}"/><quality shadowsize="0" offsamples="0"/>
<headlight ambient="{ambient} {ambient} {ambient}" diffuse=".15 .15 .15" specular="0 0 0"/></visual>
<asset><texture name="ground" type="2d" builtin="flat" width="128" height="128"/>
<texture name="sky" type="skybox" builtin="gradient" rgb1="{" ".join(map(str, low))}" rgb2="{" ".join(map(str, high))}"
width="32" height="192"/><material name="ground" texture="ground" texrepeat="20 20" specular="0"/>
{"".join(f'<texture name="skin{k}" type="cube" builtin="flat" width="16" height="96"/>' for k in range(SLOTS))}
{"".join(f'<material name="skin{k}" texture="skin{k}" specular="0"/>' for k in range(SLOTS))}
{"".join(_mesh(body, k) for k, body in enumerate(slots))}</asset>
<worldbody><light castshadow="false" diffuse="{direct} {direct} {direct}" specular="0 0 0" directional="true"
dir="{np.cos(aim)} {np.sin(aim)} -{steep}"/>
<geom type="plane" pos="{x} {y} 0" euler="0 0 {yaw}" size="40 40 40" material="ground" friction="0 0 0" condim="1"/>
<body name="eye" mocap="true"><camera name="eye" fovy="{world.fov}"/></body>
{"".join(_body(body, k) for k, body in enumerate(world.things))}</worldbody><actuator>
{"".join(f'<velocity joint="{a}{i}" kv="{kv}"/>' for i in driven for a, kv in (("x", 250), ("y", 250), ("yaw", 40)))}
</actuator></mujoco>"""
    model = load_mujoco().MjModel.from_xml_string(text)
    _paint(model, 0, ground_pixels(rng, plain))
    for slot, body in enumerate(world.things):
        _paint(model, 2 + slot, skin_pixels(body.texture))
    return model


def _paint(model: Any, texture: int, pixels: np.ndarray) -> None:
    start = model.tex_adr[texture]
    model.tex_data[start : start + pixels.size] = pixels.reshape(-1)


def ground_pixels(rng: np.random.Generator, plain: bool) -> np.ndarray:
    """Tiles of two muted tones, 4 m a repeat, (128, 128, 3) uint8; coloured and of more patterns unless `plain`."""
    base = rng.uniform(70, 125) + rng.uniform(-10, 10, 3) * (1 if plain else 3)
    cells = int(rng.choice([8, 16]))
    kinds = [rng.random((cells, cells)), np.indices((cells, cells)).sum(0) % 2, np.indices((cells, cells))[0] % 2]
    tiles = np.kron(kinds[rng.integers(2 if plain else 3)] - 0.5, np.ones((128 // cells, 128 // cells)))
    return np.clip(base + tiles[..., None] * rng.uniform(35, 60), 0, 255).astype(np.uint8)


def skin_pixels(texture: str) -> np.ndarray:
    """The six faces of a body's texture, (96, 16, 3) uint8: its colour is multiplied by them."""
    row, column = np.indices((96, 16)) // 4
    dark = {"plain": 0 * row, "striped": row % 2, "checked": (row + column) % 2}[texture]
    return np.repeat((255 - 120 * dark)[..., None], 3, -1).astype(np.uint8)


def template_model(level: int) -> Any:
    """Any model of a level, to open a studio with."""
    body = Body("red", "ball", 0.4, 0.0, (0.0, 5.0, 0.4), legs=(Leg(1.0, 0.0, 0.0),))
    return make_model(World((body,), (), 2.0, level, 3.6, 35.0, 50.0, 5.0, 0.5, 0))
