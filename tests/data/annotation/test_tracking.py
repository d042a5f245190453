"""Tracking: objects that move are told from landmarks, segmented, kept apart from each other, and described."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourdthinker_hf.data.annotation.camera_motion import CameraMotion
from fourdthinker_hf.data.annotation.object_description import colour_name, describe_object
from fourdthinker_hf.data.annotation.shots import Shot
from fourdthinker_hf.data.annotation.tracking import (
    CandidateTrack,
    ScaledShot,
    choose_tracks,
    find_objects,
    is_same_object,
)
from fourdthinker_hf.data.simulation.generate_records import simulate_clip

HEIGHT, WIDTH, LENGTH = 112, 160, 16
RED, BLUE, GREEN = (200, 30, 30), (30, 40, 200), (20, 160, 40)


def make_shot(objects, pan=0.0, length=LENGTH):
    """A shot, its camera motion and the objects' masks (N, T, H, W), before a grey wall that the camera pans along.

    An object is (colour, path), where path(t) is the (x, y, w, h) of its box in pixels of the first frame. Later
    objects cover earlier ones.
    """
    rng = np.random.default_rng(0)
    wall = cv2.GaussianBlur(rng.uniform(0, 255, (HEIGHT, WIDTH + 200)).astype(np.float32), (0, 0), 2)
    wall = 90 + 5 * (wall - wall.mean()) / wall.std()
    frames = np.empty((length, HEIGHT, WIDTH, 3), np.uint8)
    masks = np.zeros((len(objects), length, HEIGHT, WIDTH), bool)
    for t in range(length):
        left = round(pan * t)
        frames[t] = wall[:, left : left + WIDTH, None]
        for k, (colour, path) in enumerate(objects):
            x, y, w, h = (round(value) for value in path(t))
            box = (slice(max(y, 0), max(y + h, 0)), slice(max(x - left, 0), max(x - left + w, 0)))
            frames[t][box] = colour
            masks[:, t][(slice(None), *box)] = False
            masks[(k, t, *box)] = True
    step = np.array([[1, 0, -round(pan)], [0, 1, 0], [0, 0, 1.0]])
    shot = Shot("wall.mp4", 0.0, length / 8, frames, np.arange(length) / 8)
    return shot, CameraMotion([], np.tile(step, (length - 1, 1, 1))), masks


def overlap(track, masks):
    """Mean over frames of the intersection over the union."""
    shown = masks.any((1, 2))
    both, either = (track.masks & masks).sum((1, 2)), (track.masks | masks).sum((1, 2))
    return (both[shown] / either[shown]).mean()


def test_movers_are_told_from_landmarks_while_the_camera_pans():
    walker = (RED, lambda t: (20 + 4 * t, 60, 20, 24))
    post = (BLUE, lambda t: (110, 40, 18, 30))
    shot, camera, masks = make_shot([walker, post], pan=2.0)
    mover, landmark = find_objects(shot, camera)
    assert (mover.moving, landmark.moving) == (True, False)
    assert overlap(mover, masks[0]) > 0.9 and overlap(landmark, masks[1]) > 0.9
    assert mover.masks.dtype == bool and mover.masks.shape == shot.frames.shape[:3]
    assert mover.confidence > 0.9 and landmark.confidence > 0.9
    assert "red thing" in mover.description and "blue thing" in landmark.description


def test_an_object_that_the_camera_follows_still_moves():
    shot, camera, masks = make_shot([(RED, lambda t: (60 + 3 * t, 50, 24, 24))], pan=3.0)
    (track,) = find_objects(shot, camera)
    assert track.moving and overlap(track, masks[0]) > 0.9
    assert track.description == "the red thing in the middle"


def test_an_object_that_gets_hidden_keeps_its_track():
    walker = (RED, lambda t: (10 + 6 * t, 50, 18, 22))
    pillar = (GREEN, lambda t: (64, 10, 26, 90))
    shot, camera, masks = make_shot([walker, pillar], length=20)
    assert not masks[0].any((1, 2)).all(), "it is hidden for a while"
    movers = [track for track in find_objects(shot, camera) if track.moving]
    (mover,) = movers
    hidden = np.nonzero(~masks[0].any((1, 2)))[0]
    before, after = np.arange(20) < hidden[0], np.arange(20) > hidden[-1] + 4  # half a second later it is whole again
    for part in (before, after):
        assert (mover.masks & masks[0])[part].sum() > 0.85 * (mover.masks | masks[0])[part].sum()


def test_two_objects_of_one_colour_have_two_tracks():
    first = (RED, lambda t: (10 + 4 * t, 20, 20, 20))
    second = (RED, lambda t: (120 - 4 * t, 74, 20, 20))
    shot, camera, masks = make_shot([first, second])
    movers = [track for track in find_objects(shot, camera) if track.moving]
    assert sorted(int(np.argmax([overlap(track, mask) for mask in masks])) for track in movers) == [0, 1]
    assert min(max(overlap(track, mask) for track in movers) for mask in masks) > 0.9


def test_nothing_moves_before_an_empty_wall():
    shot, camera, _ = make_shot([], pan=2.0)
    assert not any(track.moving for track in find_objects(shot, camera))


@pytest.mark.parametrize("shape", [(16, 56, 80), (9, 270, 480), (8, 480, 270), (10, 20, 300)])
def test_any_size_and_length(shape):
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (*shape, 3), np.uint8)
    shot = Shot("noise.mp4", 0.0, 2.0, frames, np.linspace(0, 2, shape[0]))
    for track in find_objects(shot, CameraMotion([], np.tile(np.eye(3), (shape[0] - 1, 1, 1)))):
        assert track.masks.shape == shape and 0 <= track.confidence <= 1


@pytest.mark.usefixtures("egl")
def test_a_real_ground_and_moving_camera():
    """A simulated clip: on a checked ground, before a camera that rises and tilts, a ball rolls. (Its other clips, and
    how many of their objects are found, are measured by bench/accuracy/tracking.py.)"""
    clip = simulate_clip(7101, "abs_dir", 0, level=2)
    truth, size = clip.truth, clip.frames.shape[1]
    focal = size / 2 / np.tan(np.radians(clip.scene.fov / 2))
    lens = np.array([[focal, 0, size / 2 - 0.5], [0, focal, size / 2 - 0.5], [0, 0, 1]]) @ np.diag([1, -1, -1])
    poses = list(zip(truth.camera_rotations, truth.camera_positions, strict=True))[:24]
    ground = [lens @ np.column_stack([turn.T[:, :2], -turn.T @ eye]) for turn, eye in poses]
    steps = np.stack([after @ np.linalg.inv(before) for before, after in zip(ground[:-1], ground[1:], strict=True)])
    shot = Shot("clip.mp4", 0.0, 3.0, clip.frames[:24], clip.timestamps[:24])
    ball = clip.masks[:24] == 1 + [thing.name for thing in clip.scene.objects].index("yellow ball")
    track = max(find_objects(shot, CameraMotion([], steps)), key=lambda track: overlap(track, ball))
    assert track.moving and overlap(track, ball) > 0.9
    assert "yellow thing" in track.description


# Parts


def make_scaled_shot(length=LENGTH, steps=None, height=HEIGHT, width=WIDTH):
    frames = np.full((length, height, width, 3), 90, np.uint8)
    return ScaledShot(frames, np.tile(np.eye(3), (length - 1, 1, 1)) if steps is None else steps)


def boxes(scaled, places):
    """Masks (T, h, w) of boxes (x, y, w, h)."""
    masks = np.zeros((scaled.num_frames, scaled.height, scaled.width), bool)
    for mask, (x, y, w, h) in zip(masks, places, strict=True):
        mask[y : y + h, x : x + w] = True
    return masks


def chosen(scaled, *paths):
    return choose_tracks(scaled, [CandidateTrack(masks, scaled.to_full_size(masks), 1.0) for masks in paths])


@settings(max_examples=25, deadline=None)
@given(st.integers(-3, 3), st.integers(-2, 2), st.integers(12, 40))
def test_an_object_moves_if_it_does_not_move_with_the_camera(x, y, side):
    step = np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])
    scaled = make_scaled_shot(steps=np.tile(step, (LENGTH - 1, 1, 1)))
    grown = scaled.homography(0, 1)[:2, 2]
    places = [(110 + t * grown[0], 80 + t * grown[1], side, side) for t in range(LENGTH)]
    with_camera = boxes(scaled, np.round(places).astype(int))
    still = boxes(scaled, [(110, 80, side, side)] * LENGTH)
    far = np.hypot(*grown) * (LENGTH - 1) / side
    assert not chosen(scaled, with_camera)[0].moving
    (track,) = chosen(scaled, still)
    assert track.moving == (far > 0.15) or abs(far - 0.15) < 0.05


def test_parallax_of_an_object_on_the_ground_is_no_motion():
    scaled = make_scaled_shot()
    leaning = np.zeros((LENGTH, scaled.height, scaled.width), bool)
    for t, mask in enumerate(leaning):  # its top goes 30 pixels, its foot none
        corners = np.array([[100, 120], [130, 120], [130 + 2 * t, 60], [100 + 2 * t, 60]], np.int32)
        mask[:] = cv2.fillConvexPoly(np.zeros(mask.shape, np.uint8), corners, 1) > 0
    assert not chosen(scaled, leaning)[0].moving


def test_an_object_that_another_one_hides_has_not_moved():
    scaled = make_scaled_shot()
    cover = boxes(scaled, [(40 + 8 * t, 40, 40, 120) for t in range(LENGTH)])
    post = boxes(scaled, [(100, 60, 30, 60)] * LENGTH) & ~cover
    cover_track, post_track = chosen(scaled, cover, post)
    assert (cover_track.moving, post_track.moving) == (True, False)


def test_the_landmark_is_textured_and_visible_for_long():
    frames = np.full((LENGTH, HEIGHT, WIDTH, 3), 90, np.uint8)
    frames[:, 20:50, 20:50] = np.indices((30, 30)).sum(0)[..., None] % 2 * 200
    scaled = ScaledShot(frames, np.tile(np.eye(3), (LENGTH - 1, 1, 1)))
    factor = scaled.width / WIDTH
    textured, plain = (
        boxes(scaled, [tuple(round(value * factor) for value in box)] * LENGTH)
        for box in ((20, 20, 30, 30), (100, 20, 30, 30))
    )
    brief = textured.copy()
    brief[LENGTH // 4 :] = False
    tracks = chosen(scaled, plain, brief, textured)
    assert len(tracks) == 1 and np.array_equal(tracks[0].masks, scaled.to_full_size(textured))


def test_is_same_object():
    scaled = make_scaled_shot(4)
    left, right = boxes(scaled, [(10, 10, 20, 20)] * 4), boxes(scaled, [(60, 10, 20, 20)] * 4)
    part = boxes(scaled, [(10, 10, 10, 20)] * 4)
    assert is_same_object(left, part) and is_same_object(part, left)
    assert not is_same_object(left, right) and not is_same_object(left, np.zeros_like(left))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, LENGTH - 1), st.integers(0, LENGTH - 1), st.integers(0, LENGTH - 1), st.integers(0, 9))
def test_homographies_compose(s, t, u, seed):
    steps = np.eye(3) + np.random.default_rng(seed).uniform(-1, 1, (LENGTH - 1, 3, 3)) * [
        [0.02, 0.02, 2],
        [0.02, 0.02, 2],
        [1e-5, 1e-5, 0],
    ]
    scaled = make_scaled_shot(steps=steps)
    assert np.allclose(scaled.homography(t, u) @ scaled.homography(s, t), scaled.homography(s, u))


def test_homographies_are_of_the_centres_of_pixels():
    step = np.array([[1.1, 0.05, 3], [-0.05, 0.9, -2], [1e-4, 2e-4, 1]])
    scaled = make_scaled_shot(2, steps=step[None])
    points = np.float32([[[0, 0], [159, 111], [40, 70]]])
    moved = cv2.perspectiveTransform(points, step)
    grow = [scaled.width / WIDTH, scaled.height / HEIGHT]
    at, to = ((there + 0.5) * grow - 0.5 for there in (points, moved))
    assert np.allclose(cv2.perspectiveTransform(at, scaled.homography(0, 1)), to, atol=1e-3)


@pytest.mark.parametrize("height, width", [(112, 112), (224, 224), (270, 480), (480, 270)])
def test_masks_are_returned_in_the_size_of_the_shot(height, width):
    scaled = make_scaled_shot(2, height=height, width=width)
    mask = np.zeros((scaled.height, scaled.width), bool)
    mask[: scaled.height // 2, : scaled.width // 4] = True
    (back, _) = scaled.to_full_size(np.stack([mask, ~mask]))
    assert back.shape == (height, width)
    assert back.mean() == pytest.approx(1 / 8, abs=0.01)


@pytest.mark.parametrize(
    "rgb, word",
    [
        ((230, 20, 20), "red"),
        ((255, 128, 0), "orange"),
        ((240, 230, 20), "yellow"),
        ((20, 190, 30), "green"),
        ((0, 215, 230), "cyan"),
        ((20, 40, 240), "blue"),
        ((140, 20, 190), "purple"),
        ((255, 100, 190), "pink"),
        ((90, 60, 35), "brown"),
        ((250, 250, 250), "white"),
        ((110, 110, 112), "grey"),
        ((12, 12, 12), "black"),
        ((60, 4, 4), "red"),
    ],
)
def test_colour_names(rgb, word):
    assert colour_name(np.full((50, 3), rgb, np.uint8)) == word


@pytest.mark.parametrize(
    "places, words",
    [
        ([(0, 0, 20, 20)] * 4, "the small grey object on the left"),
        ([(90, 60, 80, 80)] * 4, "the large grey object in the middle"),
        ([(200, 60, 40, 40)] * 4, "the grey object on the right"),
        ([(0, 60, 40, 40), (60, 60, 40, 40), (120, 60, 40, 40), (200, 60, 40, 40)], "the grey object"),
    ],
)
def test_descriptions(places, words):
    scaled = make_scaled_shot(4)
    assert (scaled.height, scaled.width) == (187, 268)
    assert describe_object(scaled.frames, boxes(scaled, places), "object") == words
