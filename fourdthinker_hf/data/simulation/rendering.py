"""Renders simulated clips with MuJoCo off screen, and defines what a clip consists of: `Truth`, `Question`, `Clip`."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FPS = 8


@dataclass(frozen=True)
class Truth:
    """The simulator's exact state at each of T frames, for n objects.

    Pixel coordinates run from 0 to the frame's size, x to the right and y down.
    """

    positions: np.ndarray  # (T, n, 3) m
    velocities: np.ndarray  # (T, n, 3) m/s
    quaternions: np.ndarray  # (T, n, 4) wxyz; an object's own +z is up, and its front, if it has one, faces its own +x
    camera_positions: np.ndarray  # (T, 3) m
    camera_rotations: np.ndarray  # (T, 3, 3), columns: the camera's right, up and backward in the world frame
    centres: np.ndarray  # (T, n, 2) projected centres of the objects in pixels
    depths: np.ndarray  # (T, n) m along the optical axis
    camera_motions: tuple[tuple[float, float, tuple[str, ...]], ...] = ()  # (start s, end s, names), in order


@dataclass(frozen=True)
class Question:
    question: str
    answer: str
    reasoning: str
    targets: tuple[tuple[int, int], ...]  # (object, frame) of the target image of each <output_image>


@dataclass(frozen=True)
class Clip:
    """A rendered scene with its question."""

    scene: Any  # a `basic_scenes.BasicScene` or a `scenes.Scene`: both have `objects`, and each object has a `name`
    truth: Truth
    question: Question
    options: list[str] | None
    frames: np.ndarray  # (T, H, W, 3) uint8
    timestamps: np.ndarray  # (T,) s
    mask_frames: tuple[int, ...]
    masks: np.ndarray  # (len(mask_frames), H, W) uint8: 0 for the background, i + 1 for object i
    depth: np.ndarray | None  # (T, H, W) float32, m along the optical axis


def load_mujoco() -> Any:
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        import mujoco
    except ImportError as error:
        raise ImportError('Simulated scenes need MuJoCo: pip install "fourdthinker-hf[sim]"') from error
    return mujoco


def project(
    positions: np.ndarray, camera_positions: np.ndarray, camera_rotations: np.ndarray, size: int, fov: float
) -> tuple[np.ndarray, np.ndarray]:
    """Project `positions` (T, n, 3) to pixels (T, n, 2) and depths (T, n) in m.

    The camera has `camera_positions` (T, 3), `camera_rotations` (T, 3, 3), square frames of `size` pixels, and a
    field of view of `fov` degrees.
    """
    focal = size / 2 / np.tan(np.radians(fov / 2))
    local = np.einsum("tij,tni->tnj", camera_rotations, positions - camera_positions[:, None])
    depths = -local[..., 2]
    return size / 2 + focal * local[..., :2] * [1, -1] / np.maximum(depths, 1e-6)[..., None], depths


class Renderer:
    """An OpenGL context that renders every model with as many textures and meshes as `model` has.

    Making a context takes 160 ms, and uploading another model's textures and meshes almost nothing, so one renderer
    serves many scenes. In each model body 0 must be the world, body 1 the camera's, and body i + 2 object i.
    """

    def __init__(self, model: Any, size: int) -> None:
        self.mujoco, self.size = load_mujoco(), size
        gl_context = self.mujoco.GLContext
        if os.environ.get("MUJOCO_GL") == "egl":  # mujoco may have been imported before `load_mujoco` chose EGL
            from mujoco.egl import GLContext as gl_context
        self.gl = gl_context(size, size)
        self.gl.make_current()
        self.context = self.mujoco.MjrContext(model, self.mujoco.mjtFontScale.mjFONTSCALE_50.value)
        self.context.readDepthMap = self.mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self.mujoco.mjr_setBuffer(self.mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self.context)

    def render(
        self,
        model: Any,
        states: np.ndarray,
        truth: Truth,
        frames: Sequence[int],
        mask_frames: Sequence[int],
        depth: bool = False,
        size: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Render a simulated scene.

        `states` (T, nq) are the joint positions of `model`; the camera's pose is taken from `truth`. `size` in pixels
        may be smaller than the renderer's. Returns the colours of `frames` (k, H, W, 3) uint8, the masks of
        `mask_frames` (l, H, W) uint8 (0 for the background, i + 1 for object i), and, if `depth`, the depths of
        `frames` (k, H, W) float32 in m.
        """
        mujoco, size = self.mujoco, size or self.size
        self.gl.make_current()
        for texture in range(model.ntex):
            mujoco.mjr_uploadTexture(model, self.context, texture)
        for mesh in range(model.nmesh):
            mujoco.mjr_uploadMesh(model, self.context, mesh)
        data, option, camera = mujoco.MjData(model), mujoco.MjvOption(), mujoco.MjvCamera()
        scene = mujoco.MjvScene(model, maxgeom=100)
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED.value, 0
        mask_values = np.maximum(model.geom_bodyid - 1, 0)  # of each geom
        rect = mujoco.MjrRect(0, 0, size, size)
        frames, mask_frames = list(frames), list(mask_frames)
        images = np.empty((len(frames), size, size, 3), np.uint8)
        masks = np.zeros((len(mask_frames), size, size), np.uint8)
        depths = np.empty((len(frames), size, size), np.float32) if depth else None
        segments = np.empty((size, size, 3), np.uint8)
        for t in sorted({*frames, *mask_frames}):
            data.qpos[:] = states[t]
            data.mocap_pos[0] = truth.camera_positions[t]
            mujoco.mju_mat2Quat(data.mocap_quat[0], truth.camera_rotations[t].reshape(-1))
            mujoco.mj_kinematics(model, data)
            mujoco.mj_camlight(model, data)
            mujoco.mjv_updateScene(model, data, option, None, camera, mujoco.mjtCatBit.mjCAT_ALL.value, scene)
            if t in frames:
                self._draw(scene, rect, images[frames.index(t)], False)
            if t in mask_frames or depth:
                self._draw(scene, rect, segments, True, None if depths is None else depths[frames.index(t)])
            if t in mask_frames:  # the red of a pixel is the segment id of the geom drawn there, plus 1
                values = np.zeros(256, np.uint8)
                for geom in scene.geoms[: scene.ngeom]:
                    values[geom.segid + 1] = mask_values[geom.objid]
                masks[mask_frames.index(t)] = values[segments[::-1, :, 0]]
        if depths is not None:
            near, far = (model.stat.extent * plane for plane in (model.vis.map.znear, model.vis.map.zfar))
            depths = near * far / (depths[:, ::-1] * (far - near) + near)
        return images[:, ::-1], masks, depths

    def _draw(
        self, scene: Any, rect: Any, pixels: np.ndarray, segment_ids: bool, depth: np.ndarray | None = None
    ) -> None:
        flags = self.mujoco.mjtRndFlag
        scene.flags[flags.mjRND_SEGMENT.value] = scene.flags[flags.mjRND_IDCOLOR.value] = segment_ids
        self.mujoco.mjr_render(rect, scene, self.context)
        self.mujoco.mjr_readPixels(pixels, depth, rect, self.context)
