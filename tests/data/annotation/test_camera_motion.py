"""Camera motion: a textured ground is rendered for known motions of the camera, by homographies."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

cv2 = pytest.importorskip("cv2")

from fourdthinker_hf.data.annotation.camera_motion import (  # noqa: E402
    ABSENT_PENALTY,
    SWITCH_PENALTY,
    _best_path,
    estimate_camera_motion,
)
from fourdthinker_hf.data.annotation.shots import FRAME_RATE, Shot  # noqa: E402
from fourdthinker_hf.data.question_vocabulary import CAMERA_MOTIONS, STATIC_CAMERA  # noqa: E402

HEIGHT, WIDTH, FOCAL, PITCH = 180, 240, 230.0, np.radians(22)
INTRINSIC = np.array([[FOCAL, 0, WIDTH / 2 - 0.5], [0, FOCAL, HEIGHT / 2 - 0.5], [0, 0, 1]])
TEXTURE = cv2.resize(np.random.default_rng(0).integers(40, 216, (200, 200, 3)).astype(np.uint8), (1600, 1600))
SCALE = 50.0  # texture pixels a m
UP, RIGHT = np.array([0, -np.cos(PITCH), -np.sin(PITCH)]), np.array([1.0, 0, 0])  # x right, y down, z ahead
AHEAD = np.array([0.0, 0, 1])
MOVES = {  # an axis to rotate about in degrees a second, or a direction to travel in at m/s
    "pan right": ("turn", -UP, 6),
    "pan left": ("turn", -UP, -6),
    "tilt up": ("turn", RIGHT, 4),
    "tilt down": ("turn", RIGHT, -4),
    "roll right": ("turn", AHEAD, 5),
    "roll left": ("turn", AHEAD, -5),
    "truck right": ("go", RIGHT, 0.4),
    "truck left": ("go", -RIGHT, 0.4),
    "pedestal up": ("go", UP, 0.25),
    "pedestal down": ("go", -UP, 0.25),
    "dolly in": ("go", AHEAD, 0.5),
    "dolly out": ("go", -AHEAD, 0.5),
}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up", "in": "out", "out": "in"}


def ground_homography(moves, time):
    """The homography (3, 3) from the texture to the picture, after `time` s of `moves`."""
    rotation, place = np.eye(3), np.zeros(3)
    for name in moves:
        kind, axis, rate = MOVES[name]
        if kind == "turn":
            rotation = cv2.Rodrigues(axis * np.radians(rate) * time)[0]  # of the camera, in its first frame's axes
        else:
            place = place + axis * rate * time
    level = np.cross(UP, RIGHT)  # along the ground, ahead
    corner = -1.6 * UP - 16 * RIGHT + 1.5 * level  # of the texture
    plane = np.stack([RIGHT / SCALE, level / SCALE, corner - place], 1)
    return INTRINSIC @ rotation.T @ plane


def render(moves, times, mover=None):
    """Frames (T, H, W, 3); `mover(time)` gives the place and size (x, y, w, h) of an object that moves by itself."""
    frames = []
    for time in times:
        frame = cv2.warpPerspective(TEXTURE, ground_homography(moves, time), (WIDTH, HEIGHT), flags=cv2.INTER_AREA)
        if mover:
            x, y, w, h = map(int, mover(time))
            frame[y : y + h, x : x + w] = TEXTURE[: 4 * h : 4, : 4 * w : 4] // 2 + 60
        frames.append(frame)
    return np.stack(frames)


def shot(frames, times=None):
    times = np.arange(len(frames)) / FRAME_RATE if times is None else times
    return Shot("clip.mp4", float(times[0]), float(times[-1] + 1 / FRAME_RATE), frames, times)


def estimated_motions(frames, times=None):
    return [span.motions for span in estimate_camera_motion(shot(frames, times)).spans]


TIMES = np.arange(17) / FRAME_RATE


def test_names_are_those_of_the_simulator():
    assert {*MOVES} == {name for name in CAMERA_MOTIONS if not name.startswith("orbit")}


@pytest.mark.parametrize("name", MOVES)
def test_each_motion_backwards_and_mirrored(name):
    frames = render([name], TIMES)
    camera = estimate_camera_motion(shot(frames))
    (span,) = camera.spans
    assert span.motions == (name,) and span.confidence > 0.5
    assert (span.start, span.end) == (0.0, 17 / FRAME_RATE)
    what, way = name.split()
    assert estimated_motions(frames[::-1]) == [(f"{what} {OPPOSITE[way]}",)]
    assert estimated_motions(frames[:, :, ::-1]) == [
        (f"{what} {OPPOSITE[way]}" if way in ("left", "right") else name,)
    ]
    points = np.array([[x, y, 1.0] for x in (20, 120, 220) for y in (100, 170)]).T
    for t in range(16):  # every ground point goes where its homography takes it
        true = ground_homography([name], TIMES[t + 1]) @ np.linalg.inv(ground_homography([name], TIMES[t])) @ points
        found = camera.homographies[t] @ points
        errors = np.abs(true[:2] / true[2] - found[:2] / found[2])
        assert errors.mean() < 0.15 and errors.max() < 0.8  # at the picture's corners


def crossing(time):
    return 10 + 50 * time, 60, 90, 80  # a sixth of the picture, and a third of what has texture


def test_moving_objects_are_ignored():
    assert estimated_motions(render([], TIMES, crossing)) == [(STATIC_CAMERA,)]
    for name in ("pan left", "dolly in", "tilt up"):
        assert estimated_motions(render([name], TIMES, crossing)) == [(name,)]


@pytest.mark.parametrize(
    "pair", [("roll left", "truck right"), ("pan left", "truck right"), ("dolly in", "pan right")]
)
def test_pairs(pair):
    assert estimated_motions(render(pair, TIMES)) == [pair]


def test_spans_and_times_of_the_source():
    """The clip starts at 60 s of its video. A motion that ends is reported with its end."""
    times = 60 + np.arange(32) / FRAME_RATE
    moved = render(["truck left"], np.minimum(times - 60, 2))
    first, second = estimate_camera_motion(shot(moved, times)).spans
    assert (first.start, first.motions) == (60.0, ("truck left",)) and abs(first.end - 62) < 0.3
    assert (second.start, second.end, second.motions) == (first.end, 64.0, (STATIC_CAMERA,))


@pytest.mark.parametrize("level", [0, 128])
def test_frames_without_texture(level):
    camera = estimate_camera_motion(shot(np.full((17, 60, 80, 3), level, np.uint8)))
    assert [(span.motions, span.confidence) for span in camera.spans] == [((STATIC_CAMERA,), 0.0)]
    assert np.allclose(camera.homographies, np.eye(3))


def swarm(rng):
    frames, places, ways = [], rng.uniform(0, 1, (150, 2)) * [220, 160], rng.normal(0, 3, (150, 2))
    for t in range(17):
        frame = np.full((180, 240, 3), 90, np.uint8)
        for i, (x, y) in enumerate(((places + t * ways) % [220, 160]).astype(int).tolist()):
            frame[y : y + 12, x : x + 12] = 37 * i % 256
        frames.append(frame)
    return np.stack(frames)


@pytest.mark.parametrize("kind", ["noise", "swarm"])
def test_confidence_is_low_where_there_is_no_camera_motion(kind):
    rng = np.random.default_rng(1)
    frames = swarm(rng) if kind == "swarm" else rng.integers(0, 256, (17, 90, 120, 3)).astype(np.uint8)
    assert all(span.confidence < 0.15 for span in estimate_camera_motion(shot(frames)).spans)


def test_homographies_of_a_fast_turn():
    """50 degrees a second, 6 a frame. If a flow were placed where it begins, the error would be 0.5 pixels."""
    frames = render(["roll right"], 10 * TIMES[:5])
    points = np.array([[x, y, 1.0] for x in (20, 120, 220) for y in (100, 170)]).T
    for t, homography in enumerate(estimate_camera_motion(shot(frames)).homographies):
        true = (
            ground_homography(["roll right"], 10 * TIMES[t + 1])
            @ np.linalg.inv(ground_homography(["roll right"], 10 * TIMES[t]))
            @ points
        )
        found = homography @ points
        assert np.abs(true[:2] / true[2] - found[:2] / found[2]).mean() < 0.15


def test_one_frame_is_refused():
    with pytest.raises(ValueError, match="clip.mp4: .*fewer than two frames, and the shot has 1"):
        estimate_camera_motion(shot(render([], [0.0])))


names = st.sampled_from([("a",), ("b",), ("a", "b")])
tables = st.lists(
    st.dictionaries(names, st.floats(-3, 0)).map(lambda t: {(STATIC_CAMERA,): -1.0, **t}), min_size=1, max_size=4
)


@settings(deadline=None)
@given(tables)
def test_the_best_path_has_the_highest_score_of_all(tables):
    def total(path):
        scores = [
            table.get(name, table[(STATIC_CAMERA,)] - ABSENT_PENALTY) for table, name in zip(tables, path, strict=True)
        ]
        return sum(scores) - SWITCH_PENALTY * sum(a != b for a, b in itertools.pairwise(path))

    every = itertools.product({name for table in tables for name in table}, repeat=len(tables))
    assert total(_best_path(tables)) == pytest.approx(max(map(total, every)))


@pytest.mark.usefixtures("egl")
@pytest.mark.slow
def test_simulated_clips():
    """Right on ten of twelve clips with one motion; bench/accuracy/camera.py counts on more."""
    simulation = pytest.importorskip("fourdthinker_hf.data.simulation.generate_records")
    right = num = 0
    for index in itertools.count(168, 9):  # among these the camera moves in many
        true = simulation.simulate_question(7, "rel_dis", index, 1).truth.camera_motions[0][2]
        if true != (STATIC_CAMERA,) and not true[0].startswith("orbit"):
            clip = simulation.simulate_clip(7, "rel_dis", index, 1, mask_frames=())  # only these are rendered
            right += estimated_motions(clip.frames) == [true]
            num += 1
        if num == 12:
            break
    assert right >= 10
