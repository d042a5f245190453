"""Builds the MuJoCo model of a scene and simulates it."""

from typing import Any

import numpy as np

from .camera_paths import camera_path, motion_spans
from .rendering import FPS, Truth, load_mujoco, project
from .scenes import EXTRA_FRAMES, SHAPES_WITH_FRONT, SPLITS, Body, MotionSegment, Scene

STEPS_PER_FRAME = 16  # 128 a second
NUM_SLOTS = 6  # most bodies in a scene; every model has a texture and a mesh for each, so that one renderer fits all


def servo_targets(body: Body, num_frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the servo of a driven body has to reach at each frame.

    Returns the velocity (num_frames, 2) in m/s, the yaw rate (num_frames,) in rad/s, and the yaw (num_frames,) in rad.
    """
    middles, begin = (np.arange(num_frames) + 0.5) / FPS, 0.0
    speed, turn_rate, heading = np.zeros(num_frames), np.zeros(num_frames), np.zeros(num_frames)
    for segment in body.segments:
        now = (middles >= begin) & (middles < segment.until)
        elapsed = middles[now] - begin
        gain = segment.end_speed - segment.start_speed
        speed[now] = segment.start_speed + gain * elapsed / (segment.until - begin)
        turn_rate[now], heading[now] = segment.turn_rate, segment.heading + segment.turn_rate * elapsed
        begin = segment.until
    has_front = body.shape in SHAPES_WITH_FRONT
    yaw_rate = turn_rate if has_front else 0 * turn_rate
    yaw = body.yaw + (np.cumsum(yaw_rate) - yaw_rate) / FPS
    heading = np.radians(yaw + yaw_rate / 2 / FPS if has_front else heading)
    return speed[:, None] * np.stack([np.cos(heading), np.sin(heading)], -1), np.radians(yaw_rate), np.radians(yaw)


def _make_truth(scene: Scene, positions: np.ndarray, velocities: np.ndarray, quaternions: np.ndarray) -> Truth:
    camera_positions, camera_rotations = camera_path(scene)
    centres, depths = project(positions, camera_positions, camera_rotations, scene.size, scene.fov)
    spans = motion_spans(scene)
    return Truth(positions, velocities, quaternions, camera_positions, camera_rotations, centres, depths, spans)


def predict_motion(scene: Scene) -> Truth:
    """The truth if nothing touched anything and free bodies slid on at constant velocity: a cheap first check."""
    num_frames = scene.num_frames + EXTRA_FRAMES
    positions, velocities = np.empty((2, num_frames, len(scene.objects), 3))
    quaternions = np.zeros((num_frames, len(scene.objects), 4))
    for i, body in enumerate(scene.objects):
        if body.segments:
            velocity, _, yaw = servo_targets(body, num_frames)
            velocity = np.concatenate([velocity, np.zeros((num_frames, 1))], 1)
            displacement = (np.cumsum(velocity, 0) - velocity) / FPS
            velocity = np.concatenate([velocity[:1], (velocity[:-1] + velocity[1:]) / 2])
        else:
            elapsed = np.maximum(np.arange(num_frames) / FPS - body.release_time, 0)[:, None]
            velocity, yaw = (elapsed > 0) * np.array(body.velocity), np.full(num_frames, np.radians(body.yaw))
            displacement = elapsed * np.array([*body.velocity[:2], 0.0])
        positions[:, i], velocities[:, i] = body.start + displacement, velocity
        quaternions[:, i, 0], quaternions[:, i, 3] = np.cos(yaw / 2), np.sin(yaw / 2)
    return _make_truth(scene, positions, velocities, quaternions)


def run_physics(scene: Scene) -> tuple[Truth, tuple[Any, np.ndarray]]:
    """Simulate a scene, with `EXTRA_FRAMES` after its end; returns the truth, and (model, states) to render from.

    `states` (T, nq) are the model's joint positions.
    """
    mujoco = load_mujoco()
    model = make_model(scene)
    data, num_frames, num_bodies = mujoco.MjData(model), scene.num_frames + EXTRA_FRAMES, len(scene.objects)
    joints = [int(model.body_jntadr[i + 2]) for i in range(num_bodies)]
    addresses = [(int(model.jnt_qposadr[joint]), int(model.jnt_dofadr[joint])) for joint in joints]
    driven = [i for i, body in enumerate(scene.objects) if body.segments]
    free = [i for i, body in enumerate(scene.objects) if not body.segments]
    controls = np.empty((num_frames, 3 * len(driven)))
    for k, i in enumerate(driven):
        velocity, yaw_rate, yaw = servo_targets(scene.objects[i], num_frames)
        controls[:, 3 * k : 3 * k + 2], controls[:, 3 * k + 2] = velocity, yaw_rate
        q, v = addresses[i]
        data.qpos[q + 3], data.qvel[v : v + 2], data.qvel[v + 3] = yaw[0], velocity[0], yaw_rate[0]
    states, speeds = np.empty((num_frames, model.nq)), np.empty((num_frames, model.nv))
    poses = np.empty((num_frames, num_bodies, 7))
    start = data.qpos.copy()
    release_frames = {i: round(scene.objects[i].release_time * FPS) for i in free}
    for t in range(num_frames):
        for i in free:
            q, v = addresses[i]
            if t <= release_frames[i]:
                data.qpos[q : q + 7], data.qvel[v : v + 6] = start[q : q + 7], 0
            if t == release_frames[i]:
                data.qvel[v : v + 3] = scene.objects[i].velocity
        mujoco.mj_kinematics(model, data)
        states[t], speeds[t] = data.qpos, data.qvel
        poses[t, :, :3], poses[t, :, 3:] = data.xpos[2:], data.xquat[2:]
        data.ctrl[:] = controls[t]
        mujoco.mj_step(model, data, STEPS_PER_FRAME)
    velocities = np.stack([speeds[:, v : v + 3] for _, v in addresses], 1)
    return _make_truth(scene, poses[..., :3], velocities, poses[..., 3:]), (model, states)


# MuJoCo's model


def _geoms(body: Body, slot: int) -> list[tuple[str, tuple[float, float, float]]]:
    """MJCF attributes (type, pose and size) and RGB of each geom of a body; the first geom gets the body's texture."""
    h, rgb = body.half_height, _body_rgb(body)
    dark, light = (0.05, 0.05, 0.05), (0.95, 0.95, 0.9)

    def box(x: float, y: float, z: float, *size: float) -> str:
        return f'type="box" pos="{x * h} {y * h} {z * h}" size="{" ".join(str(s * h) for s in size)}"'

    def sphere(x: float, y: float, z: float, radius: float) -> str:
        return f'type="sphere" pos="{x * h} {y * h} {z * h}" size="{radius * h}"'

    mesh = f'type="mesh" mesh="mesh{slot}"'
    if body.shape == "car":
        size, cabin = f'euler="90 0 0" size="{0.35 * h} {0.12 * h}"', tuple(np.multiply(rgb, 0.6))
        corners = [(x, y) for x in (-0.85, 0.85) for y in (-0.75, 0.75)]
        wheels = [f'type="cylinder" pos="{x * h} {y * h} {-0.65 * h}" {size}' for x, y in corners]
        return [
            (box(0, 0, -0.35, 1.4, 0.75, 0.4), rgb),
            (box(-0.35, 0, 0.45, 0.7, 0.62, 0.45), cabin),
            (box(1.42, 0, -0.35, 0.1, 0.6, 0.25), dark),
            (sphere(1.3, 0.5, 0.05, 0.2), light),
            (sphere(1.3, -0.5, 0.05, 0.2), light),
            *((wheel, dark) for wheel in wheels),
        ]
    if body.shape == "arrow":
        return [(mesh, rgb), (box(-0.7, 0, -0.5, 0.75, 0.35, 0.48), rgb)]
    if body.shape == "duck":
        return [
            (f'type="ellipsoid" pos="0 0 {-0.4 * h}" size="{1.15 * h} {0.75 * h} {0.6 * h}"', rgb),
            (sphere(0.7, 0, 0.45, 0.5), rgb),
            (box(1.3, 0, 0.4, 0.25, 0.22, 0.1), (1.0, 0.6, 0.05)),
            (sphere(1.0, 0.28, 0.65, 0.12), light),
            (sphere(1.0, -0.28, 0.65, 0.12), light),
        ]
    single_geoms = {
        "ball": f'type="sphere" size="{h}"',
        "cube": box(0, 0, 0, 1, 1, 1),
        "cylinder": f'type="cylinder" size="{h} {h}"',
        "pill": f'type="capsule" size="{0.6 * h} {0.4 * h}"',
        "egg": f'type="ellipsoid" size="{0.75 * h} {0.75 * h} {h}"',
    }
    return [(single_geoms.get(body.shape, mesh), rgb)]


def _body_rgb(body: Body) -> tuple[float, float, float]:
    return next(objects.colours[body.colour] for objects in SPLITS.values() if body.colour in objects.colours)


def _mesh_mjcf(body: Body | None, slot: int) -> str:
    """The mesh of a slot: an arrow's head or a pyramid where the body has that shape, a cone otherwise."""
    h = body.half_height if body else 0.1
    corners = {
        "arrow": [(x, y, z) for x, y in ((0.0, 1.0), (0.0, -1.0), (1.5, 0.0)) for z in (-1.0, 0.0)],
        "pyramid": [(x, y, -1.0) for x in (-1, 1) for y in (-1, 1)] + [(0.0, 0.0, 1.0)],
    }.get(body.shape if body else "")
    if corners is None:
        return f'<mesh name="mesh{slot}" builtin="cone" params="24 0" scale="{h} {h} {h}"/>'
    return f'<mesh name="mesh{slot}" vertex="{" ".join(str(value * h) for corner in corners for value in corner)}"/>'


def _body_mjcf(body: Body, slot: int) -> str:
    if body.segments:
        axes = zip("xyz", ("1 0 0", "0 1 0", "0 0 1"), strict=True)
        joints = "".join(f'<joint name="{name}{slot}" type="slide" axis="{axis}"/>' for name, axis in axes)
        joints += f'<joint name="yaw{slot}" type="hinge" axis="0 0 1"/>'
        joints += '<inertial pos="0 0 0" mass="5" diaginertia=".6 .6 .6"/>'
        contact, yaw = 'condim="1" friction="0 0 0"', ""
    else:
        inertia = 0.2 * body.half_height**2
        joints = f'<freejoint/><inertial pos="0 0 0" mass="0.5" diaginertia="{inertia} {inertia} {inertia}"/>'
        contact = (
            f'condim="6" priority="1" friction="{body.friction} .005 {0.02 * body.half_height}" '
            f'solref="-3600 {-120 * (1 - body.bounce) - 2}"'
        )
        yaw = f' euler="0 0 {body.yaw}"'
    materials = [f'material="skin{slot}"', *[""] * 9]
    geoms = "".join(
        f'<geom {geom} {contact} rgba="{" ".join(map(str, rgb))} 1" {material}/>'
        for (geom, rgb), material in zip(_geoms(body, slot), materials, strict=False)
    )
    return f'<body pos="{" ".join(map(str, body.start))}"{yaw}>{joints}{geoms}</body>'


def make_model(scene: Scene) -> Any:
    """The MuJoCo model of a scene, with `NUM_SLOTS` skins and meshes. Body 1 is the camera's, body i + 2 object i."""
    rng = np.random.default_rng(scene.appearance_seed)
    x, y, yaw, light_angle = *rng.uniform(-4, 4, 2), rng.uniform(0, 360), rng.uniform(0, 2 * np.pi)
    basic = scene.level == 1  # the sky and the light are those of `basic_scenes`
    if basic:
        sky_top, sky_horizon = (0.35, 0.5, 0.75), (0.75, 0.8, 0.85)
        ambient, diffuse, light_drop = 0.45, 0.5, 1.6
    else:
        sky_top, sky_horizon = rng.uniform(0.1, 0.8, 3), rng.uniform(0.4, 0.95, 3)
        ambient, diffuse, light_drop = rng.uniform(0.3, 0.5), rng.uniform(0.35, 0.6), rng.uniform(1, 3)
    driven = [i for i, body in enumerate(scene.objects) if body.segments]
    slots = [*scene.objects, *[None] * (NUM_SLOTS - len(scene.objects))]
    text = f"""<mujoco><option timestep="{1 / FPS / STEPS_PER_FRAME}" integrator="implicitfast"/>
<statistic extent="5" center="0 5 0"/>
<visual><global offwidth="{scene.size}" offheight="{scene.size}"/><quality shadowsize="0" offsamples="0"/>
<headlight ambient="{ambient} {ambient} {ambient}" diffuse=".15 .15 .15" specular="0 0 0"/></visual>
<asset><texture name="ground" type="2d" builtin="flat" width="128" height="128"/>
<texture name="sky" type="skybox" builtin="gradient" width="32" height="192"
rgb1="{" ".join(map(str, sky_top))}" rgb2="{" ".join(map(str, sky_horizon))}"/>
<material name="ground" texture="ground" texrepeat="20 20" specular="0"/>
{"".join(f'<texture name="skin{k}" type="cube" builtin="flat" width="16" height="96"/>' for k in range(NUM_SLOTS))}
{"".join(f'<material name="skin{k}" texture="skin{k}" specular="0"/>' for k in range(NUM_SLOTS))}
{"".join(_mesh_mjcf(body, k) for k, body in enumerate(slots))}</asset>
<worldbody><light castshadow="false" diffuse="{diffuse} {diffuse} {diffuse}" specular="0 0 0" directional="true"
dir="{np.cos(light_angle)} {np.sin(light_angle)} -{light_drop}"/>
<geom type="plane" pos="{x} {y} 0" euler="0 0 {yaw}" size="40 40 40" material="ground" friction="0 0 0" condim="1"/>
<body name="eye" mocap="true"><camera name="eye" fovy="{scene.fov}"/></body>
{"".join(_body_mjcf(body, k) for k, body in enumerate(scene.objects))}</worldbody><actuator>
{"".join(f'<velocity joint="{a}{i}" kv="{kv}"/>' for i in driven for a, kv in (("x", 250), ("y", 250), ("yaw", 40)))}
</actuator></mujoco>"""
    model = load_mujoco().MjModel.from_xml_string(text)
    _set_texture(model, 0, _ground_pixels(rng, basic))
    for slot, body in enumerate(scene.objects):
        _set_texture(model, 2 + slot, _skin_pixels(body.texture))
    return model


def _set_texture(model: Any, texture: int, pixels: np.ndarray) -> None:
    start = model.tex_adr[texture]
    model.tex_data[start : start + pixels.size] = pixels.reshape(-1)


def _ground_pixels(rng: np.random.Generator, basic: bool) -> np.ndarray:
    """Tiles of two tones, repeated every 4 m, (128, 128, 3) uint8: in muted colours and two patterns if `basic`."""
    base = rng.uniform(70, 125) + rng.uniform(-10, 10, 3) * (1 if basic else 3)
    cells = int(rng.choice([8, 16]))
    patterns = [rng.random((cells, cells)), np.indices((cells, cells)).sum(0) % 2, np.indices((cells, cells))[0] % 2]
    tiles = np.kron(patterns[rng.integers(2 if basic else 3)] - 0.5, np.ones((128 // cells, 128 // cells)))
    return np.clip(base + tiles[..., None] * rng.uniform(35, 60), 0, 255).astype(np.uint8)


def _skin_pixels(texture: str) -> np.ndarray:
    """The six faces of a body's texture, (96, 16, 3) uint8. The body's colour is multiplied by them."""
    row, column = np.indices((96, 16)) // 4
    dark = {"plain": 0 * row, "striped": row % 2, "checked": (row + column) % 2}[texture]
    return np.repeat((255 - 120 * dark)[..., None], 3, -1).astype(np.uint8)


def template_model(level: int) -> Any:
    """Some model of a level, from which a `Renderer` for that level can be made."""
    body = Body("red", "ball", 0.4, 0.0, (0.0, 5.0, 0.4), segments=(MotionSegment(1.0, 0.0, 0.0),))
    return make_model(Scene((body,), (), 2.0, level, 3.6, 35.0, 50.0, 5.0, 0.5, 0))
