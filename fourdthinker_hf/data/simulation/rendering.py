"""What a simulated clip is, and the camera that films it: MuJoCo's renderer, off screen."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FPS = 8


@dataclass(frozen=True)
class Truth:
    """Exact state at each of the T frames, n objects; pixels run from 0 to the frame's size, x right, y down."""

    positions: np.ndarray  # (T, n, 3) m
    velocities: np.ndarray  # (T, n, 3) m/s
    quaternions: np.ndarray  # (T, n, 4) wxyz; an object with a front faces its own +x, its own +z is up
    camera_positions: np.ndarray  # (T, 3) m
    camera_rotations: np.ndarray  # (T, 3, 3), columns right, up, backward in the world
    centres: np.ndarray  # (T, n, 2) projected centres in pixels
    depths: np.ndarray  # (T, n) m along the optical axis
    camera_motions: tuple[tuple[float, float, tuple[str, ...]], ...] = ()  # (start s, end s, names), in order


@dataclass(frozen=True)
class Question:
    question: str
    answer: str
    reasoning: str
    targets: tuple[tuple[int, int], ...]  # (object, frame) highlighted, one per <output_image>


@dataclass(frozen=True)
class Clip:
    """A rendered scene. `masks` holds 0 for the background and i + 1 for object i, at `mask_frames`."""

    scene: Any  # a plain.Scene or a scenes.World: both have `things`, each with a `name`
    truth: Truth
    question: Question
    options: list[str] | None
    frames: np.ndarray  # (T, H, W, 3) uint8
    timestamps: np.ndarray  # (T,) s
    mask_frames: tuple[int, ...]
    masks: np.ndarray  # (len(mask_frames), H, W) uint8
    depth: np.ndarray | None  # (T, H, W) float32, m along the optical axis


def load_mujoco() -> Any:
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        import mujoco
    except ImportError as error:
        raise ImportError('simulated scenes need MuJoCo and PyAV: pip install "fourdthinker-hf[sim]"') from error
    return mujoco


def project(
    positions: np.ndarray, eye: np.ndarray, rotation: np.ndarray, size: int, fov: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (T, n, 2) and depths (T, n) of `positions` (T, n, 3), camera at `eye` (T, 3), `rotation` (T, 3, 3)."""
    focal = size / 2 / np.tan(np.radians(fov / 2))
    local = np.einsum("tij,tni->tnj", rotation, positions - eye[:, None])
    depths = -local[..., 2]
    return size / 2 + focal * local[..., :2] * [1, -1] / np.maximum(depths, 1e-6)[..., None], depths


class Studio:
    """A GL context for scenes that have a given number of textures and meshes: making one takes 160 ms, uploading a
    scene's own textures and meshes next to nothing. A scene's bodies are the world, the camera's, then the things."""

    def __init__(self, model: Any, size: int) -> None:
        self.mujoco, self.size = load_mujoco(), size
        context = self.mujoco.GLContext
        if os.environ.get("MUJOCO_GL") == "egl":  # chosen here too: someone may have imported mujoco before us
            from mujoco.egl import GLContext as context
        self.gl = context(size, size)
        self.gl.make_current()
        self.context = self.mujoco.MjrContext(model, self.mujoco.mjtFontScale.mjFONTSCALE_50.value)
        self.context.readDepthMap = self.mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self.mujoco.mjr_setBuffer(self.mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self.context)

    def shoot(
        self,
        model: Any,
        states: np.ndarray,
        truth: Truth,
        frames: Sequence[int],
        ids: Sequence[int],
        depth: bool = False,
        size: int | None = None,
    ) -> tuple[Any, Any, Any]:
        """Render `frames` in colour (k, H, W, 3), object ids at `ids` (l, H, W), and their depths (k, H, W) if asked.

        `states` (T, nq) are joint positions; `size` in pixels may be smaller than the studio's.
        """
        mujoco, size = self.mujoco, size or self.size
        self.gl.make_current()
        for texture in range(model.ntex):
            mujoco.mjr_uploadTexture(model, self.context, texture)
        for mesh in range(model.nmesh):
            mujoco.mjr_uploadMesh(model, self.context, mesh)
        data, option, still = mujoco.MjData(model), mujoco.MjvOption(), mujoco.MjvCamera()
        scene = mujoco.MjvScene(model, maxgeom=100)
        still.type, still.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED.value, 0
        owner = np.maximum(model.geom_bodyid - 1, 0)
        rect = mujoco.MjrRect(0, 0, size, size)
        frames, ids = list(frames), list(ids)
        pictures = np.empty((len(frames), size, size, 3), np.uint8)
        masks = np.zeros((len(ids), size, size), np.uint8)
        deep = np.empty((len(frames), size, size), np.float32) if depth else None
        labels = np.empty((size, size, 3), np.uint8)
        for t in sorted({*frames, *ids}):
            data.qpos[:] = states[t]
            data.mocap_pos[0] = truth.camera_positions[t]
            mujoco.mju_mat2Quat(data.mocap_quat[0], truth.camera_rotations[t].reshape(-1))
            mujoco.mj_kinematics(model, data)
            mujoco.mj_camlight(model, data)
            mujoco.mjv_updateScene(model, data, option, None, still, mujoco.mjtCatBit.mjCAT_ALL.value, scene)
            if t in frames:
                self._draw(scene, rect, pictures[frames.index(t)], False)
            if t in ids or depth:
                self._draw(scene, rect, labels, True, None if deep is None else deep[frames.index(t)])
            if t in ids:  # a pixel's red is the drawn geom's segment + 1
                table = np.zeros(256, np.uint8)
                for geom in scene.geoms[: scene.ngeom]:
                    table[geom.segid + 1] = owner[geom.objid]
                masks[ids.index(t)] = table[labels[::-1, :, 0]]
        if deep is not None:
            near, far = (model.stat.extent * plane for plane in (model.vis.map.znear, model.vis.map.zfar))
            deep = near * far / (deep[:, ::-1] * (far - near) + near)
        return pictures[:, ::-1], masks, deep

    def _draw(self, scene: Any, rect: Any, pixels: np.ndarray, ids: bool, depth: np.ndarray | None = None) -> None:
        flags = self.mujoco.mjtRndFlag
        scene.flags[flags.mjRND_SEGMENT.value] = scene.flags[flags.mjRND_IDCOLOR.value] = ids
        self.mujoco.mjr_render(rect, scene, self.context)
        self.mujoco.mjr_readPixels(pixels, depth, rect, self.context)
