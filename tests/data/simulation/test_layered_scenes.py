"""The labels of layered scenes against their pixels."""

import time
from dataclasses import replace

import numpy as np
import pytest

from fourdthinker_hf.data.simulation.layered_scenes import (
    BARS,
    CAMERA_AXES,
    FIRST_MOVER,
    PATHS,
    optical_flow,
    render,
    sample_scene,
    truth_of,
)
from fourdthinker_hf.data.simulation.textures import folder_photos, make_textures

cv2 = pytest.importorskip("cv2")
DURATION = 4.0
TIMES = (np.linspace(0, DURATION - 0.2, 8)[:, None] + [0, 0.2]).ravel()


@pytest.fixture(scope="module")
def textures():
    return make_textures(np.random.default_rng(0), 60)


def grid(scene):
    return np.stack(np.meshgrid(np.arange(scene.width), np.arange(scene.height)), -1).reshape(-1, 2).astype(float)


@pytest.mark.parametrize("seed", range(12))
def test_one_frame_warped_by_the_flow_is_the_other(textures, seed):
    scene = sample_scene(np.random.default_rng(seed), textures, (98, 126), spoil=0.0)
    clip = render(scene, np.array([1.0, 1.2]), spoilt=False)
    points = grid(scene)
    flow = optical_flow(scene, clip.shown[0], *clip.times, points).flow
    target = (points + flow).astype(np.float32)
    warped = cv2.remap(clip.frames[1], target[None], None, cv2.INTER_LINEAR)[0]
    what = cv2.remap(clip.shown[1], target[None], None, cv2.INTER_NEAREST)[0].ravel()
    bodies = [i for i, m in enumerate(scene.movers) if len(m.cutout.masks) > 1]  # their limbs move besides
    same = (what == clip.shown[0].ravel()) & ~np.isin(what, [FIRST_MOVER + i for i in bodies])
    inside = ((target > 1) & (target < np.array([scene.width, scene.height]) - 2)).all(1) & same
    error = np.abs(warped.astype(int) - clip.frames[0].reshape(-1, 3).astype(int)).mean(1)[inside]
    still = np.abs(clip.frames[1].astype(int) - clip.frames[0].astype(int)).reshape(-1, 3).mean(1)[inside]
    assert inside.sum() > 1000
    assert np.median(error) <= 2 and error.mean() < max(4.0, 0.5 * still.mean())


@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [("pan left", 0, 1), ("pan right", 0, -1), ("truck left", 0, 1), ("tilt up", 1, 1), ("pedestal down", 1, -1)],
)
def test_the_picture_goes_against_the_camera(textures, motion, axis, sign):
    for seed in range(4):
        scene = sample_scene(np.random.default_rng(seed), textures, motions=(motion,), num_movers=0, spoil=0.0)
        clip = render(scene, np.array([0.0, DURATION]), spoilt=False)
        flow = optical_flow(scene, clip.shown[0], 0.0, DURATION, grid(scene)).flow
        assert sign * np.median(flow[:, axis]) > 2


@pytest.mark.parametrize(("motion", "sign"), [("zoom in", 1), ("zoom out", -1), ("dolly in", 1), ("dolly out", -1)])
def test_the_picture_spreads_as_the_camera_nears(textures, motion, sign):
    scene = sample_scene(np.random.default_rng(3), textures, motions=(motion,), num_movers=0, spoil=0.0)
    clip = render(scene, np.array([0.0, DURATION]), spoilt=False)
    flow, _, growth = optical_flow(scene, clip.shown[0], 0.0, DURATION, points := grid(scene))
    assert sign * ((points - scene.centre) * flow).sum(1).mean() > 0
    assert sign * np.median(growth) > 0


@pytest.mark.parametrize("path", PATHS)
def test_a_mover_goes_where_its_truth_says(textures, path):
    """With a camera that stays, the drawn pixels themselves go that way, or grow and shrink."""
    told = 0
    for seed in range(12):
        scene = sample_scene(np.random.default_rng(seed), textures, motions=(), path=path, num_movers=1, spoil=0.0)
        clip = render(scene, TIMES, spoilt=False, hidden=("layers",))
        truth = truth_of(scene, clip, 0)
        assert truth.direction in (None, ", then ".join(path))
        first, last = clip.shown[0] == FIRST_MOVER, clip.shown[-1] == FIRST_MOVER
        if truth.direction is None or min(truth.visible[0], truth.visible[-1]) < 0.95 or len(path) > 1:
            continue
        told += 1
        (y0, x0), (y1, x1) = (np.argwhere(mask).mean(0) for mask in (first, last))
        wanted = {"left": x0 - x1, "right": x1 - x0, "up": y0 - y1, "down": y1 - y0}
        wanted |= {"toward": last.sum() - first.sum(), "away": first.sum() - last.sum()}
        assert wanted[path[0]] > 0
    assert told >= 2 or len(path) > 1


@pytest.mark.parametrize("seed", range(4))
def test_growth_is_how_much_an_area_of_the_picture_grows(textures, seed):
    """Against the areas of small triangles moved by the flow."""
    scene = sample_scene(np.random.default_rng(seed), textures, motions=("dolly in",), spoil=0.0)
    clip = render(scene, np.array([1.0, 1.2]), spoilt=False)
    corners = grid(scene)[:, None] + np.array([[0, 0], [0.01, 0], [0, 0.01]])
    moved = [corners[:, k] + optical_flow(scene, clip.shown[0], *clip.times, corners[:, k]).flow for k in range(3)]
    (ax, ay), (bx, by) = (moved[1] - moved[0]).T, (moved[2] - moved[0]).T
    growth = optical_flow(scene, clip.shown[0], *clip.times, corners[:, 0]).growth
    np.testing.assert_allclose(growth, np.log(np.abs(ax * by - ay * bx) / 1e-4) / 2, atol=1e-3)


def test_places_are_where_the_pixels_are(textures):
    for seed in range(20):
        scene = sample_scene(np.random.default_rng(seed), textures, path=("left",), spoil=0.0)
        clip = render(scene, TIMES, spoilt=False)
        truth = truth_of(scene, clip, 0)
        for shown, place, seen, size in zip(clip.shown, truth.places, truth.visible, truth.sizes, strict=True):
            if seen > 0.97:
                middle = np.argwhere(shown == FIRST_MOVER).mean(0)[::-1] / [scene.width, scene.height]
                assert np.abs(middle - place).max() < 0.3 * size * scene.width / min(scene.width, scene.height) + 0.02


def test_a_still_scene_does_not_flow(textures):
    scene = sample_scene(np.random.default_rng(1), textures, motions=(), num_movers=0, spoil=0.0)
    scene = replace(scene, movers=tuple(mover for mover in scene.movers if not mover.sways))
    clip = render(scene, np.array([0.0, 2.0]), spoilt=False)
    flow, moves, _ = optical_flow(scene, clip.shown[0], 0.0, 2.0, grid(scene))
    assert np.abs(flow).max() < 1e-6 and not moves.any() and (clip.frames[0] == clip.frames[1]).all()


def test_every_camera_motion_has_its_opposite():
    assert sorted(CAMERA_AXES.values()) == sorted((axis, -sign) for axis, sign in CAMERA_AXES.values())


def test_bars_do_not_move_and_the_same_seed_gives_the_same_clip(textures):
    clips = []
    for _ in range(2):
        rng = np.random.default_rng(7)
        scenes = [sample_scene(rng, textures) for _ in range(30)]
        clips.append([render(scene, TIMES) for scene in scenes])
    for one, other in zip(*clips, strict=True):
        assert (one.frames == other.frames).all() and (one.shown == other.shown).all()
    barred = [clip for clip in clips[0] if (clip.shown == BARS).any()]
    assert barred and all((clip.frames[clip.shown == BARS] == 0).all() for clip in barred)


def test_a_folder_without_photos_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no JPEG or PNG file"):
        folder_photos(tmp_path)


def test_clips_are_made_fast_enough(textures):
    rng, begin = np.random.default_rng(0), time.process_time()
    for _ in range(30):
        scene = sample_scene(rng, textures)
        render(scene, TIMES)
    assert 30 / (time.process_time() - begin) > 10  # some 45 on the machine this was written on
