"""Questions about shots made by hand and by the simulator: what is asked, what is refused, and the options."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourdthinker_hf.data.annotation.camera import Camera, CameraSpan
from fourdthinker_hf.data.annotation.options import OFTEN, add_options
from fourdthinker_hf.data.annotation.questions import ANSWERS, TASKS, ask
from fourdthinker_hf.data.annotation.shots import Shot
from fourdthinker_hf.data.annotation.tracking import Track
from fourdthinker_hf.data.records import Record

T, SIZE, FOCAL = 33, (320, 240), 280  # frames, width and height, pixels
TIME = np.arange(T) / 8
STILL = CameraSpan(0.0, 4.125, ("static",), 0.9)


def disc(x, y, depth, radius=0.6):
    """Masks (T, H, W) of a ball of `radius` m at x, y (right, down) and `depth` m, each a number or (T,)."""
    columns, rows = np.meshgrid(np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5)
    x, y, depth = (np.broadcast_to(value, T)[:, None, None] for value in (x, y, depth))
    u, v = SIZE[0] / 2 + FOCAL * x / depth, SIZE[1] / 2 + FOCAL * y / depth
    return (columns - u) ** 2 + (rows - v) ** 2 < (FOCAL * radius / depth) ** 2


def track(masks, name="the red object", confidence=0.9, moving=True):
    return Track(masks, name, confidence, moving)


REST = track(disc(-1.5, 1.0, 6.0), "the grey object", moving=False)


def shot(tracks=()):
    frames = np.full((T, SIZE[1], SIZE[0], 3), 90, np.uint8)
    for one in tracks:
        frames[one.masks] = 200
    return Shot("made.mp4", 5.0, 9.125, frames, 5 + TIME)


def camera(*spans, homographies=None):
    """Spans in s since the shot's first frame; the shot begins at 5 s of its video."""
    moved = [CameraSpan(span.start + 5, span.end + 5, span.motions, span.confidence) for span in spans or (STILL,)]
    return Camera(moved, np.tile(np.eye(3), (T - 1, 1, 1)) if homographies is None else homographies)


def asked(*tracks, cam=None):
    """Task to answers."""
    found, _ = ask(shot(tracks), cam or camera(), tracks)
    return {task: [one.answer for one in found if one.task == task] for task in {one.task for one in found}}


RISING = 1.0 - 0.25 * TIME  # y of what goes away over the ground, seen from above: up in the picture
CASES = {
    "left": (disc(1.5 - 0.7 * TIME, 0.5, 6), "object_direction", "to the left"),
    "right": (disc(-1.5 + 0.7 * TIME, 0.5, 6), "object_direction", "to the right"),
    "away": (disc(0.2, RISING, 4 + TIME), "object_direction", "away from the camera"),
    "toward": (disc(0.2, RISING[::-1], 8 - TIME), "object_direction", "toward the camera"),
    "falls": (disc(0.2, -1.5 + 0.7 * TIME, 6), "object_direction", None),
    "falls away": (disc(0.1, -1.2 + 0.5 * TIME, 5 + 0.5 * TIME), "object_direction", None),
    "diagonal": (disc(-1 + 0.6 * TIME, RISING, 5 + 0.6 * TIME), "object_direction", None),
    "turns back": (disc(0.5 * np.abs(TIME - 2), 0.5, 6), "object_direction", None),
    "farther": (disc(0.2, 0.5, 4 + TIME), "distance_change", "grows"),
    "nearer": (disc(0.2, 0.5, 8 - TIME), "distance_change", "shrinks"),
    "as far": (disc(-0.8 + 0.4 * TIME, 0.5, 8), "distance_change", "stays the same"),
    "passes": (disc(0.2, 0.5, 4 + 1.5 * np.abs(TIME - 2)), "distance_change", "shrinks, then grows"),
    "a little farther": (disc(0.2, 0.5, 6 + 0.2 * TIME), "distance_change", None),
    "even": (disc(-1.5 + 0.7 * TIME, 0.5, 6), "speed_change", "keeps its speed"),
    "faster": (disc(-1.5 + 0.08 * TIME + 0.16 * TIME**2, 0.5, 6), "speed_change", "speeds up"),
    "slower": (disc(1.5 - (0.08 * TIME + 0.16 * TIME**2)[::-1], 0.5, 6), "speed_change", "slows down"),
    "stops at once": (disc(-1.5 + np.minimum(TIME, 2), 0.5, 6), "speed_change", None),
}


@pytest.mark.parametrize("name", CASES)
def test_one_object(name):
    masks, task, answer = CASES[name]
    assert asked(track(masks)).get(task, [None]) == [answer]


def test_two_objects():
    fast, slow = disc(-2.0 + TIME, -0.8, 6), disc(-0.2 + 0.1 * TIME, 1.2, 6)
    both = asked(track(fast), track(slow, "the blue object"))
    assert both["faster_object"] == ["the first is faster"]
    assert both["spatial_description"] == ["left, then right"]
    assert asked(track(slow), track(fast, "the blue object"))["faster_object"] == ["the second is faster"]


def test_which_is_faster_is_refused_where_the_depths_could_undo_it():
    one, other = disc(-2.0 + TIME, -0.8, 6), disc(-1.5 + 0.6 * TIME, 1.0, 6)
    assert "faster_object" not in asked(track(one), track(other, "the blue object"))


def test_what_is_beside_what():
    right = track(disc(1.2, 0.5, 6 + 0.1 * TIME))
    assert asked(right, REST)["spatial_description"] == ["right"]
    rolls = camera(CameraSpan(0, 4.125, ("roll left",), 0.9))
    assert "spatial_description" not in asked(right, REST, cam=rolls)
    above = track(disc(-1.5 + 0.01 * TIME, -0.8, 6))
    assert "spatial_description" not in asked(above, REST)


def test_camera_spans():
    spans = [CameraSpan(0, 2, ("pan left",), 0.9), CameraSpan(2, 4.125, ("pan right", "truck left"), 0.99)]
    found, refused = ask(shot([REST]), camera(*spans), [REST])
    told = [(one.question, one.answer, one.start, one.end) for one in found if one.task == "camera_motion"]
    assert told == [
        ("How does the camera move from 0 s to 1.9 s?", "pan left", 0.0, 1.9),
        ("How does the camera move from 2.1 s to 4 s?", "truck left and pan right", 2.1, 4.0),
    ]
    assert all(one.names == ("grey object",) and len(one.looks) == 2 for one in found)
    for doubtful in (CameraSpan(1, 4.125, ("tilt up",), 0.6), CameraSpan(1, 4.125, ("pan left", "tilt up"), 0.9)):
        brief = camera(CameraSpan(0, 1, ("pan left",), 0.9), doubtful)
        found, refused = ask(shot([REST]), brief, [REST])
        assert [one for one in found if one.task == "camera_motion"] == []
        assert refused["camera_motion: too short"] == refused["camera_motion: unsure"] == 1


def test_the_camera_is_told_by_something_that_rests():
    mover = track(disc(-1.5 + 0.7 * TIME, 0.5, 6))
    found, _ = ask(shot([mover, REST]), camera(), [mover, REST])
    (one,) = (one for one in found if one.task == "camera_motion")
    assert one.tracks == (1,) and one.looks[-1] == (1, T - 1) and one.names == ("grey object",)
    _, refused = ask(shot([mover]), camera(), [mover])  # what moves by itself tells nothing of the camera
    assert refused["camera_motion: no landmark to tell it by"] == 1


def test_the_cameras_motion_is_taken_out():
    """The camera pans right: all goes left by 3 pixels a frame, and the object by as many less or more."""
    step = np.eye(3)
    step[0, 2] = -3
    cam = camera(CameraSpan(0, 4.125, ("pan right",), 0.9), homographies=np.tile(step, (T - 1, 1, 1)))
    frames = np.arange(T)
    for speed, answer in ((2.0, "to the right"), (-2.0, "to the left")):
        x = (speed - 3) * (frames - T / 2) * 6 / FOCAL
        assert asked(track(disc(x, 0.5, 6)), cam=cam)["object_direction"] == [answer]
    rests = disc(-3 * (frames - T / 2) * 6 / FOCAL, 0.5, 6)
    assert "object_direction" not in asked(track(rests), cam=cam)


def test_what_is_not_sure_is_not_asked_about():
    masks = CASES["left"][0]
    everything = asked(track(masks))
    assert set(everything) == {"object_direction", "speed_change"}
    assert asked(track(masks, confidence=0.4)) == {}
    assert asked(track(masks), track(disc(0, -1, 6))) == {}  # two of one name
    cut = np.zeros_like(masks)
    cut[:10] = masks[:10]
    assert asked(track(cut)) == {}  # 1.1 s of it
    edge = disc(2.9 + 0.02 * TIME, 0.5, 6)
    assert asked(track(edge)) == {}  # at the picture's edge throughout
    doubtful = camera(CameraSpan(0, 4.125, ("static",), 0.3))
    assert set(asked(track(CASES["farther"][0]), cam=doubtful)) == {"distance_change"}
    _, refused = ask(shot(), doubtful, [track(masks)])
    assert refused["object_direction: unsure of the camera"] == 1


def test_only_frames_without_a_neighbour_close_by_are_measured():
    x = -2.4 + 0.75 * TIME
    mover, other = disc(x, 0.5, 6, 0.5), disc(0.0, 0.5, 6)
    found, _ = ask(shot(), camera(), [track(mover), track(other, "the blue object", moving=False)])
    near = np.flatnonzero(np.abs(x) < 1.1).tolist()
    looks = {frame for one in found if one.task == "object_direction" for _, frame in one.looks}
    assert looks and not looks & set(near)


def test_places_are_shares_of_the_picture():
    masks = CASES["right"][0]
    (one,) = (one for one in ask(shot(), camera(), [track(masks)])[0] if one.task == "object_direction")
    assert (
        one.question == "Seen from where the camera is at 0 s, in which direction does the red object move "
        "from 0 s to 4 s?"
    )
    assert one.looks == ((0, 0), (0, T - 1)) and one.times == (0.0, 4.0) and not one.steadied
    radius = 0.6 * FOCAL / 6
    expected = [(0.5 + FOCAL / 6 * x / SIZE[0], 0.5 + FOCAL / 6 * 0.5 / SIZE[1]) for x in (-1.5, 1.3)]
    np.testing.assert_allclose([place[:2] for place in one.places], expected, atol=0.002)
    np.testing.assert_allclose([place[2] for place in one.places], np.sqrt(np.pi) * radius / SIZE[0], rtol=0.03)


def test_a_landmark_that_goes_elsewhere_tells_nothing():
    """The camera is said to rest, or to pan; this rests in the picture."""
    step = np.eye(3)
    step[0, 2] = -3
    pans = camera(CameraSpan(0, 4.125, ("pan right",), 0.9), homographies=np.tile(step, (T - 1, 1, 1)))
    assert asked(REST) == {"camera_motion": ["static"]}
    _, refused = ask(shot([REST]), pans, [REST])
    assert refused["camera_motion: its landmark says otherwise"] == 1
    drifts = track(disc(-1.5 + 0.2 * TIME, 1, 6), "the grey object", moving=False)
    _, refused = ask(shot(), camera(), [drifts])
    assert refused["camera_motion: its landmark says otherwise"] == 1


def test_after_a_jump_in_size_it_may_be_another_thing():
    smaller, larger = disc(0.2, 0.5, 6), disc(0.2, 0.5, 4)
    masks = np.concatenate([smaller[:18], larger[18:]])
    (one,) = (one for one in ask(shot(), camera(), [track(masks)])[0] if one.task == "distance_change")
    assert one.answer == "stays the same" and one.end <= 2.2


def test_what_is_very_large_is_no_object():
    road = track(disc(0, 0.5, 6, 2.2), moving=False)
    _, refused = ask(shot(), camera(), [road])
    assert refused["camera_motion: no landmark to tell it by"] == 1


def test_a_landmark_may_be_cut_by_the_edge():
    edge = track(disc(-2.9, 0.5, 6), "the grey object", moving=False)
    (one,) = (one for one in ask(shot(), camera(), [edge])[0] if one.task == "camera_motion")
    assert np.isfinite(one.places).all() and one.places[0][0] < 0.1


MIRROR = {
    "to the left": "to the right",
    "to the right": "to the left",
    "left": "right",
    "right": "left",
    "left, then right": "right, then left",
    "right, then left": "left, then right",
}
BACKWARD = {
    "to the left": "to the right",
    "to the right": "to the left",
    "grows": "shrinks",
    "shrinks": "grows",
    "toward the camera": "away from the camera",
    "away from the camera": "toward the camera",
    "speeds up": "slows down",
    "slows down": "speeds up",
}
path = st.tuples(*[st.floats(-1, 1)] * 4)


@settings(max_examples=12, deadline=None)
@given(path, path)
def test_a_mirrored_shot_has_mirrored_answers(one, other):
    tracks = [track(_masks(one)), track(_masks(other), "the blue object")]
    flipped = [track(item.masks[:, :, ::-1], item.description) for item in tracks]
    found, mirrored = asked(*tracks), asked(*flipped)
    assert mirrored == {task: [MIRROR.get(answer, answer) for answer in answers] for task, answers in found.items()}


@settings(max_examples=12, deadline=None)
@given(path)
def test_a_reversed_shot_has_reversed_answers(one):
    masks = _masks(one)
    found, back = asked(track(masks)), asked(track(masks[::-1]))
    for task in ("object_direction", "distance_change", "speed_change"):
        for answer, reverse in zip(found.get(task, ()), back.get(task, ()), strict=False):
            parts = [BACKWARD.get(part, part) for part in answer.split(", then ")][::-1]
            assert reverse == ", then ".join(parts)


def _masks(numbers):
    x, speed, ahead, depth = numbers
    return disc(1.5 * x + speed * (TIME - 2), 0.4, np.maximum(6 + 2 * depth + ahead * (TIME - 2), 2.5), 0.5)


# Options


def records(counts, task="distance_change"):
    answers = list(itertools.chain(*([answer] * num for answer, num in counts.items())))
    return [Record(f"r{k:03d}", "How?", answer, task=task) for k, answer in enumerate(answers)]


def test_options_hold_the_answer_once_at_every_letter_as_often():
    counts = dict.fromkeys(ANSWERS["distance_change"], 8)
    found = add_options(records(counts))
    assert len(found) == 72
    assert all(len(set(one.options)) == 4 and one.answer in one.options for one in found)
    for answer in counts:
        letters = Counter(one.options.index(one.answer) for one in found if one.answer == answer)
        assert set(letters.values()) == {2}
    shown = Counter(option for one in found for option in one.options)
    assert min(shown.values()) > 0.5 * max(shown.values())


def test_an_answer_that_is_too_frequent_is_cut():
    counts = {"grows": 100, "shrinks": 10, "stays the same": 10, "grows, then shrinks": 10}
    kept = Counter(one.answer for one in add_options(records(counts)))
    assert kept == {"grows": 18, "shrinks": 10, "stays the same": 10, "grows, then shrinks": 10}
    assert kept["grows"] <= OFTEN * np.mean(list(kept.values())) < kept["grows"] + 1


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(0, 5), st.randoms())
@settings(max_examples=50, deadline=None)
def test_options_depend_on_the_records_and_not_on_their_order(counts, seed, random):
    given_records = records(dict(zip(ANSWERS["distance_change"], counts, strict=False)))
    found = add_options(given_records, seed)
    shuffled = random.sample(given_records, len(given_records))
    assert {one.id: one.options for one in add_options(shuffled, seed)} == {one.id: one.options for one in found}
    kept = Counter(one.answer for one in found)
    assert max(kept.values()) <= max(1, OFTEN * np.mean(list(kept.values())))
    assert set(kept) == {one.answer for one in given_records}


def test_distractors_are_answers_that_the_data_has_where_it_has_enough():
    counts = {"grows": 9, "shrinks": 9, "stays the same": 9, "shrinks, then grows": 9}
    assert {option for one in add_options(records(counts)) for option in one.options} == set(counts)
    few = add_options(records({"grows": 3, "shrinks": 3}))
    assert all(len(one.options) == 4 for one in few)
    (speed,) = add_options(records({"speeds up": 1}, "speed_change"))
    assert sorted(speed.options) == sorted(ANSWERS["speed_change"])


def test_no_camera_answer_can_be_two_names_of_one_motion():
    assert not any("orbit" in answer for answer in ANSWERS["camera_motion"])
    assert len(ANSWERS["camera_motion"]) == len(set(ANSWERS["camera_motion"])) == 23


# Against the simulator


@pytest.mark.parametrize(("level", "num"), [(1, 6), (2, 4)])
def test_exact_motion_and_masks_give_right_questions(level, num):
    pytest.importorskip("mujoco")
    from bench.accuracy.annotated_questions import look
    from fourdthinker_hf.data.vocabulary import DSR_TASKS

    found = [look((40, DSR_TASKS[k % 13], k // 13, level, "train", "truth")) for k in range(num)]
    judged = [item for _, items, _, _ in found for item in items]
    assert {task for task, *_ in judged} <= set(TASKS)
    assert len(judged) >= num and sum(bool(items) for _, items, _, _ in found) >= 0.6 * num
    assert np.mean([ok for _, _, ok, _ in judged]) >= 0.95
