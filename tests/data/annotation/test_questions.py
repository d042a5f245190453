"""Questions about hand-made and simulated shots: which are asked, which are refused, and their options."""

import itertools
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fourdthinker_hf.data.annotation.answer_options import MAX_ANSWER_RATIO, add_options
from fourdthinker_hf.data.annotation.camera_motion import CameraMotion, CameraMotionSpan
from fourdthinker_hf.data.annotation.question_wordings import WORDINGS
from fourdthinker_hf.data.annotation.questions import ANSWERS, TASKS, make_questions
from fourdthinker_hf.data.annotation.shots import Shot
from fourdthinker_hf.data.annotation.tracking import Track
from fourdthinker_hf.data.ground_truth import clip_to_shot, is_answer_right, match_object, true_annotation
from fourdthinker_hf.data.question_vocabulary import DSR_TASKS
from fourdthinker_hf.data.records import Record
from fourdthinker_hf.data.simulation.generate_records import simulate_clip

T, SIZE, FOCAL = 33, (320, 240), 280  # frames, width and height, pixels
TIME = np.arange(T) / 8
STATIC_SPAN = CameraMotionSpan(0.0, 4.125, ("static",), 0.9)


def disc_masks(x, y, depth, radius=0.6):
    """Masks (T, H, W) of a ball of `radius` m at x, y (right, down) and `depth` m, each a number or (T,)."""
    columns, rows = np.meshgrid(np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5)
    x, y, depth = (np.broadcast_to(value, T)[:, None, None] for value in (x, y, depth))
    u, v = SIZE[0] / 2 + FOCAL * x / depth, SIZE[1] / 2 + FOCAL * y / depth
    return (columns - u) ** 2 + (rows - v) ** 2 < (FOCAL * radius / depth) ** 2


def make_track(masks, name="the red object", confidence=0.9, moving=True):
    return Track(masks, name, confidence, moving)


LANDMARK = make_track(disc_masks(-1.5, 1.0, 6.0), "the grey object", moving=False)


def make_shot(tracks=()):
    frames = np.full((T, SIZE[1], SIZE[0], 3), 90, np.uint8)
    for one in tracks:
        frames[one.masks] = 200
    return Shot("made.mp4", 5.0, 9.125, frames, 5 + TIME)


def make_camera(*spans, homographies=None):
    """Spans in s since the shot's first frame; the shot begins at 5 s of its video."""
    moved = [replace(span, start=span.start + 5, end=span.end + 5) for span in spans or (STATIC_SPAN,)]
    return CameraMotion(moved, np.tile(np.eye(3), (T - 1, 1, 1)) if homographies is None else homographies)


def questions_about(*tracks, camera=None):
    return make_questions(make_shot(tracks), camera or make_camera(), tracks)


def answers_by_task(*tracks, camera=None):
    """The answers to the questions of each task: about objects, or without any about the camera's motion."""
    found, _ = questions_about(*tracks, camera=camera)
    tasks = {one.task for one in found} - {"camera_moves"} - ({"camera_motion"} if tracks else set())
    return {task: [one.answer for one in found if one.task == task] for task in tasks}


RISING = 1.0 - 0.25 * TIME  # y of an object that moves away over the ground, which is seen from above
CASES = {
    "left": (disc_masks(1.5 - 0.7 * TIME, 0.5, 6), "object_direction", "to the left"),
    "right": (disc_masks(-1.5 + 0.7 * TIME, 0.5, 6), "object_direction", "to the right"),
    "away": (disc_masks(0.2, RISING, 4 + TIME), "object_direction", "away from the camera"),
    "toward": (disc_masks(0.2, RISING[::-1], 8 - TIME), "object_direction", "toward the camera"),
    "falls": (disc_masks(0.2, -1.5 + 0.7 * TIME, 6), "object_direction", None),
    "falls away": (disc_masks(0.1, -1.2 + 0.5 * TIME, 5 + 0.5 * TIME), "object_direction", None),
    "diagonal": (disc_masks(-1 + 0.6 * TIME, RISING, 5 + 0.6 * TIME), "object_direction", None),
    "turns back": (disc_masks(0.5 * np.abs(TIME - 2), 0.5, 6), "object_direction", None),
    "farther": (disc_masks(0.2, 0.5, 4 + TIME), "distance_change", "grows"),
    "nearer": (disc_masks(0.2, 0.5, 8 - TIME), "distance_change", "shrinks"),
    "as far": (disc_masks(-0.8 + 0.4 * TIME, 0.5, 8), "distance_change", "stays the same"),
    "passes": (disc_masks(0.2, 0.5, 4 + 1.5 * np.abs(TIME - 2)), "distance_change", "shrinks, then grows"),
    "a little farther": (disc_masks(0.2, 0.5, 6 + 0.2 * TIME), "distance_change", None),
    "even": (disc_masks(-1.5 + 0.7 * TIME, 0.5, 6), "speed_change", "keeps its speed"),
    "faster": (disc_masks(-1.5 + 0.08 * TIME + 0.16 * TIME**2, 0.5, 6), "speed_change", "speeds up"),
    "slower": (disc_masks(1.5 - (0.08 * TIME + 0.16 * TIME**2)[::-1], 0.5, 6), "speed_change", "slows down"),
    "stops at once": (disc_masks(-1.5 + np.minimum(TIME, 2), 0.5, 6), "speed_change", None),
}


@pytest.mark.parametrize("name", CASES)
def test_one_object(name):
    masks, task, answer = CASES[name]
    assert answers_by_task(make_track(masks)).get(task, [None]) == [answer]


@pytest.mark.parametrize(
    ("x", "y", "answer"),
    [
        (-1.5 + 0.7 * TIME, 0.5, "to the right"),
        (0.2, 1.2 - 0.5 * TIME, "up"),
        (0.2, -1.2 + 0.5 * TIME, "down"),
        (-1 + 0.5 * TIME, -1 + 0.5 * TIME, None),  # diagonal
        (0.5 * np.abs(TIME - 2), 0.5, None),  # there and back
        (0.04 * TIME, 0.5, None),  # hardly
    ],
)
def test_picture_direction(x, y, answer):
    masks = disc_masks(x, y, 6)
    assert answers_by_task(make_track(masks)).get("picture_direction", [None]) == [answer]
    pans = make_camera(CameraMotionSpan(0, 4.125, ("pan left",), 0.9))
    assert "picture_direction" not in answers_by_task(make_track(masks), camera=pans)


def test_a_thing_without_a_noun_is_told_by_its_place_at_a_time():
    masks = disc_masks(1.5 - 0.7 * TIME, 1.2, 6)
    found, _ = questions_about(make_track(masks, "the small red thing on the right"))
    (one,) = (one for one in found if one.task == "picture_direction")
    name = "the moving small red thing that is at the lower right at 0 s"
    assert one.question == f"Which way does {name} move across the picture from 0 s to 4 s?"


def test_two_objects():
    fast, slow = disc_masks(-2.0 + TIME, -0.8, 6), disc_masks(-0.2 + 0.1 * TIME, 1.2, 6)
    both = answers_by_task(make_track(fast), make_track(slow, "the blue object"))
    assert both["faster_object"] == ["the first is faster"]
    assert both["spatial_description"] == ["left, then right"]
    assert answers_by_task(make_track(slow), make_track(fast, "the blue object"))["faster_object"] == [
        "the second is faster"
    ]


def test_faster_object_is_refused_where_other_depths_would_change_the_answer():
    one, other = disc_masks(-2.0 + TIME, -0.8, 6), disc_masks(-1.5 + 0.6 * TIME, 1.0, 6)
    assert "faster_object" not in answers_by_task(make_track(one), make_track(other, "the blue object"))


def test_spatial_description():
    right = make_track(disc_masks(1.2, 0.5, 6 + 0.1 * TIME))
    assert answers_by_task(right, LANDMARK)["spatial_description"] == ["right"]
    rolls = make_camera(CameraMotionSpan(0, 4.125, ("roll left",), 0.9))
    assert "spatial_description" not in answers_by_task(right, LANDMARK, camera=rolls)
    above = make_track(disc_masks(-1.5 + 0.01 * TIME, -0.8, 6))
    assert "spatial_description" not in answers_by_task(above, LANDMARK)


def test_camera_spans():
    spans = [CameraMotionSpan(0, 2, ("pan left",), 0.9), CameraMotionSpan(2, 4.125, ("pan right", "truck left"), 0.99)]
    found, refused = questions_about(LANDMARK, camera=make_camera(*spans))
    camera_questions = [(one.question, one.answer, one.start, one.end) for one in found if one.task == "camera_motion"]
    assert camera_questions == [
        ("How does the camera move from 0 s to 1.9 s?", "pan left", 0.0, 1.9),
        ("How does the camera move from 2.1 s to 4 s?", "truck left and pan right", 2.1, 4.0),
    ]
    assert all(len(one.targets) == 2 for one in found)
    for doubtful in (
        CameraMotionSpan(1, 4.125, ("tilt up",), 0.6),
        CameraMotionSpan(1, 4.125, ("pan left", "tilt up"), 0.9),
    ):
        brief = make_camera(CameraMotionSpan(0, 1, ("pan left",), 0.9), doubtful)
        found, refused = questions_about(LANDMARK, camera=brief)
        assert [one for one in found if one.task == "camera_motion"] == []
        assert refused["camera_motion: too short"] == refused["camera_motion: unsure"] == 1


def test_camera_motion_is_asked_whatever_else_moves():
    mover = make_track(disc_masks(-1.5 + 0.7 * TIME, 0.5, 6))
    for tracks in ((), (mover,), (mover, LANDMARK)):
        found, _ = questions_about(*tracks)
        camera = {one.task: one for one in found if one.task.startswith("camera")}
        assert {task: one.answer for task, one in camera.items()} == {
            "camera_motion": "static",
            "camera_moves": "it stands still",
        }
        assert all(one.targets == ((None, 0), (None, T - 1)) and one.tracks == () for one in camera.values())


def test_a_plain_motion_is_asked_from_its_own_confidence_on():
    for motions, confidence, answer in (
        (("pan left",), 0.5, "pan left"),
        (("pan right", "tilt up"), 0.5, "pan right and tilt up"),
        (("pan left",), 0.49, None),
    ):
        camera = make_camera(CameraMotionSpan(0, 4.125, motions, confidence, True))
        assert answers_by_task(camera=camera).get("camera_motion", [None]) == [answer]


@pytest.mark.parametrize("task", TASKS)
def test_wordings(task):
    assert len(set(WORDINGS[task])) >= 10
    fields = {tuple(sorted(set(re.findall(r"{(\w+)}", wording)))) for wording in WORDINGS[task]}
    assert len(fields) == 1, "every wording names the same things"
    assert not any(answer in wording for wording in WORDINGS[task] for answer in ANSWERS[task] if len(answer) > 9)


def test_a_question_is_worded_anew():
    found, _ = questions_about(LANDMARK)
    one = next(one for one in found if one.task == "camera_moves")
    texts = {one.reword(np.random.default_rng(seed)).question for seed in range(100)}
    assert one.question in texts and len(texts) == len(WORDINGS["camera_moves"])
    assert all(text[0].isupper() and "from 0 s to 4 s" in text.lower() for text in texts)


def test_camera_motion_is_compensated():
    """The camera pans right, so that the picture moves to the left by 3 pixels a frame; the object moves as well."""
    step = np.eye(3)
    step[0, 2] = -3
    camera = make_camera(CameraMotionSpan(0, 4.125, ("pan right",), 0.9), homographies=np.tile(step, (T - 1, 1, 1)))
    frames = np.arange(T)
    for speed, answer in ((2.0, "to the right"), (-2.0, "to the left")):
        x = (speed - 3) * (frames - T / 2) * 6 / FOCAL
        assert answers_by_task(make_track(disc_masks(x, 0.5, 6)), camera=camera)["object_direction"] == [answer]
    rests = disc_masks(-3 * (frames - T / 2) * 6 / FOCAL, 0.5, 6)
    assert "object_direction" not in answers_by_task(make_track(rests), camera=camera)


def test_nothing_uncertain_is_asked():
    masks = CASES["left"][0]
    answers = answers_by_task(make_track(masks))
    assert set(answers) == {"picture_direction", "object_direction", "speed_change"}
    assert answers_by_task(make_track(masks, confidence=0.4)) == {}
    assert answers_by_task(make_track(masks), make_track(disc_masks(0, -1, 6))) == {}  # two tracks have the same name
    cut = np.zeros_like(masks)
    cut[:5] = masks[:5]
    assert answers_by_task(make_track(cut)) == {}  # visible for 0.5 s
    edge = disc_masks(2.9 + 0.02 * TIME, 0.5, 6)
    assert answers_by_task(make_track(edge)) == {}  # at the picture's edge throughout
    doubtful = make_camera(CameraMotionSpan(0, 4.125, ("static",), 0.3))
    assert set(answers_by_task(make_track(CASES["farther"][0]), camera=doubtful)) == {"distance_change"}
    _, refused = questions_about(make_track(masks), camera=doubtful)
    assert refused["object_direction: unsure of the camera"] == 1


def test_frames_in_which_objects_touch_are_not_measured():
    x = -2.4 + 0.75 * TIME
    mover, other = disc_masks(x, 0.5, 6, 0.5), disc_masks(0.0, 0.5, 6)
    found, _ = questions_about(make_track(mover), make_track(other, "the blue object", moving=False))
    near = np.flatnonzero(np.abs(x) < 1.1).tolist()
    target_frames = {frame for one in found if one.task == "object_direction" for _, frame in one.targets}
    assert target_frames and not target_frames & set(near)


def test_measurements_are_shares_of_the_picture():
    masks = CASES["right"][0]
    (one,) = (one for one in questions_about(make_track(masks))[0] if one.task == "object_direction")
    assert (
        one.question == "Seen from where the camera is at 0 s, in which direction does the red object move "
        "from 0 s to 4 s?"
    )
    assert one.targets == ((0, 0), (0, T - 1)) and one.target_times == (0.0, 4.0) and not one.camera_compensated
    radius = 0.6 * FOCAL / 6
    expected = [(0.5 + FOCAL / 6 * x / SIZE[0], 0.5 + FOCAL / 6 * 0.5 / SIZE[1]) for x in (-1.5, 1.3)]
    np.testing.assert_allclose([place[:2] for place in one.measurements], expected, atol=0.002)
    np.testing.assert_allclose([place[2] for place in one.measurements], np.sqrt(np.pi) * radius / SIZE[0], rtol=0.03)


def test_a_question_ends_before_a_jump_in_size():
    smaller, larger = disc_masks(0.2, 0.5, 6), disc_masks(0.2, 0.5, 4)
    masks = np.concatenate([smaller[:18], larger[18:]])
    (one,) = (one for one in questions_about(make_track(masks))[0] if one.task == "distance_change")
    assert one.answer == "stays the same" and one.end <= 2.2


def test_a_very_large_track_is_no_object():
    road = make_track(disc_masks(-0.4 + 0.2 * TIME, 0.5, 6, 2.2))
    assert answers_by_task(road) == {}


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


def path_masks(numbers):
    x, speed, ahead, depth = numbers
    return disc_masks(1.5 * x + speed * (TIME - 2), 0.4, np.maximum(6 + 2 * depth + ahead * (TIME - 2), 2.5), 0.5)


# `assume` makes the two tests below fail if there is hardly a path about which a question is asked.


@settings(max_examples=12, deadline=None)
@given(path, path)
def test_a_mirrored_shot_has_mirrored_answers(first, second):
    tracks = [make_track(path_masks(first)), make_track(path_masks(second), "the blue object")]
    flipped = [make_track(track.masks[:, :, ::-1], track.description) for track in tracks]
    found, mirrored = answers_by_task(*tracks), answers_by_task(*flipped)
    assume(found)
    assert mirrored == {task: [MIRROR.get(answer, answer) for answer in answers] for task, answers in found.items()}


@settings(max_examples=12, deadline=None)
@given(path)
def test_a_reversed_shot_has_reversed_answers(numbers):
    masks = path_masks(numbers)
    found, reverse = answers_by_task(make_track(masks)), answers_by_task(make_track(masks[::-1]))
    tasks = {"object_direction", "distance_change", "speed_change"} & {*found} & {*reverse}
    assume(tasks)
    for task in tasks:
        (answer,), (reverse_answer,) = found[task], reverse[task]
        parts = [BACKWARD.get(part, part) for part in answer.split(", then ")][::-1]
        assert reverse_answer == ", then ".join(parts)


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
    assert kept["grows"] <= MAX_ANSWER_RATIO * np.mean(list(kept.values())) < kept["grows"] + 1


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(0, 5), st.randoms())
@settings(max_examples=50, deadline=None)
def test_options_depend_on_the_records_and_not_on_their_order(counts, seed, random):
    given_records = records(dict(zip(ANSWERS["distance_change"], counts, strict=False)))
    found = add_options(given_records, seed)
    shuffled = random.sample(given_records, len(given_records))
    assert {one.id: one.options for one in add_options(shuffled, seed)} == {one.id: one.options for one in found}
    kept = Counter(one.answer for one in found)
    assert max(kept.values()) <= max(1, MAX_ANSWER_RATIO * np.mean(list(kept.values())))
    assert set(kept) == {one.answer for one in given_records}


def test_distractors_are_answers_that_the_data_has_where_it_has_enough():
    counts = {"grows": 9, "shrinks": 9, "stays the same": 9, "shrinks, then grows": 9}
    assert {option for one in add_options(records(counts)) for option in one.options} == set(counts)
    few = add_options(records({"grows": 3, "shrinks": 3}))
    assert all(len(one.options) == 4 for one in few)
    (moves,) = add_options(records({"it moves": 1}, "camera_moves"))
    assert sorted(moves.options) == sorted(ANSWERS["camera_moves"])
    (speed,) = add_options(records({"speeds up": 1}, "speed_change"))
    assert sorted(speed.options) == sorted(ANSWERS["speed_change"])


def test_of_two_answers_none_is_more_frequent():
    found = add_options(records({"it stands still": 30, "it moves": 8}, "camera_moves"))
    assert Counter(one.answer for one in found) == {"it stands still": 8, "it moves": 8}
    letters = Counter(one.options.index(one.answer) for one in found)
    assert letters == {0: 8, 1: 8}


def test_no_camera_answer_can_be_two_names_of_one_motion():
    assert not any("orbit" in answer for answer in ANSWERS["camera_motion"])
    assert len(ANSWERS["camera_motion"]) == len(set(ANSWERS["camera_motion"])) == 25


# Simulated clips


@pytest.mark.usefixtures("egl")
@pytest.mark.parametrize(("level", "num_clips"), [(1, 6), (2, 4)])
def test_questions_about_exact_motion_and_masks_have_right_answers(level, num_clips):
    tasks, by_clip = set(), []
    for k in range(num_clips):
        clip = simulate_clip(40, DSR_TASKS[k % 13], k // 13, level)
        camera, tracks = true_annotation(clip)
        objects = [match_object(track, clip.masks) for track in tracks]
        found, _ = make_questions(clip_to_shot(clip), camera, tracks)
        tasks |= {question.task for question in found}
        by_clip.append(
            [is_answer_right(clip.truth, question, [objects[i] for i in question.tracks]) for question in found]
        )
    is_right = [right for clip in by_clip for right in clip]
    assert tasks <= set(TASKS)
    assert len(is_right) >= num_clips and sum(map(bool, by_clip)) >= 0.6 * num_clips
    assert np.mean(is_right) >= 0.95
