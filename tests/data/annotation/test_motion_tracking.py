"""What moves before a camera that stands still: boundaries, shadows, growth, things that meet, and what is refused."""

import cv2
import numpy as np
import pytest

from fourdthinker_hf.data.annotation.motion_tracking import track_movers
from fourdthinker_hf.data.annotation.tracking import ScaledShot

HEIGHT, WIDTH, T = 180, 320, 16
SCENE = cv2.GaussianBlur(np.random.default_rng(5).integers(60, 190, (HEIGHT, WIDTH, 3)).astype(np.uint8), (0, 0), 4)
COAT = np.random.default_rng(6).integers(0, 90, (200, 200, 3)).astype(np.uint8) + np.array([150, 20, 20], np.uint8)


def film(boxes, shadow=False, noise=2.0):
    """A scaled shot, and masks (T, h, w) of the first box; `boxes` are functions of t that give x, y, w, h."""
    frames, truth = [], np.zeros((T, HEIGHT, WIDTH), bool)
    rng = np.random.default_rng(7)
    for t in range(T):
        frame = SCENE.copy()
        for k, box in enumerate(boxes):
            x, y, w, h = (round(value) for value in box(t))
            if shadow:
                part = frame[y + h - 6 : y + h + 8, x + w : x + w + 40]
                part[:] = (0.7 * part).astype(np.uint8)
            frame[y : y + h, x : x + w] = cv2.resize(COAT, (200, 200))[:h, :w] if k == 0 else (30, 60, 200)
            if k == 0:
                truth[t, y : y + h, x : x + w] = True
        frames.append(np.clip(frame + rng.normal(0, noise, frame.shape), 0, 255).astype(np.uint8))
    shot = ScaledShot(np.stack(frames), np.tile(np.eye(3), (T - 1, 1, 1)))
    size = (shot.width, shot.height)
    return shot, np.stack([cv2.resize(mask.view(np.uint8), size, interpolation=0) for mask in truth]).astype(bool)


def overlap(masks, truth):
    shown = masks.any((1, 2))
    return ((masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2)))[shown].mean()


@pytest.mark.parametrize("shadow", [False, True])
def test_a_walker_is_held_without_its_shadow(shadow):
    shot, truth = film([lambda t: (30 + 12 * t, 60, 34, 60)], shadow)
    (track,) = track_movers(shot)
    assert track.masks.any((1, 2)).sum() >= 14 and overlap(track.masks, truth) > 0.85
    assert 0.5 <= track.confidence <= 1


def test_a_walker_is_held_while_the_camera_sets_its_exposure_anew():
    shot, truth = film([lambda t: (30 + 12 * t, 60, 34, 60)])
    light = np.linspace(0.5, 1, T)
    shot.frames = [(frame * factor).astype(np.uint8) for frame, factor in zip(shot.frames, light, strict=True)]
    (track,) = track_movers(shot)
    assert track.masks.any((1, 2)).sum() >= 14 and overlap(track.masks, truth) > 0.85


def test_two_things_have_two_tracks_that_end_where_they_meet():
    shot, truth = film([lambda t: (20 + 11 * t, 40, 40, 50), lambda t: (270 - 11 * t, 50, 36, 60)])
    tracks = track_movers(shot)
    assert len(tracks) >= 2
    for track in tracks:
        shared = (track.masks & truth).sum() / track.masks.sum()
        assert shared > 0.85 or shared < 0.15, "no track holds both"


def test_what_comes_nearer_is_held():
    shot, truth = film([lambda t: (140 - 2 * t, 70 - 2 * t, 30 + 4 * t, 36 + 4.5 * t)])
    tracks = track_movers(shot)
    assert tracks and overlap(tracks[0].masks, truth) > 0.7


@pytest.mark.parametrize("name", ["nothing", "a lamp", "swaying leaves"])
def test_what_does_not_get_anywhere_is_refused(name):
    boxes = {"nothing": [], "a lamp": [], "swaying leaves": [lambda t: (100 + 5 * (t % 2), 60, 40, 40)]}[name]
    shot, _ = film(boxes)
    if name == "a lamp":
        shot.frames = [np.clip(frame + 40.0 * (t > 7), 0, 255).astype(np.uint8) for t, frame in enumerate(shot.frames)]
    assert track_movers(shot) == []
