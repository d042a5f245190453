"""The 13 tasks of DSR-Sim: answers to hand-made trajectories, and questions that do not tell their answer."""

import collections
import itertools
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourdthinker_hf.data import question_vocabulary

pytest.importorskip("mujoco")

from fourdthinker_hf.data.simulation import (
    generate_records,
    non_template_questions,
    scene_sampling,
    scenes,
    template_questions,
)
from fourdthinker_hf.data.simulation.rendering import Truth
from fourdthinker_hf.data.simulation.template_questions import QuestionSpec, direction_words, find_answer
from fourdthinker_hf.data.value_changes import find_changes, find_runs

T = 41  # frames: 4 s that questions are about, and one more for the direction that comes next
TIME = np.arange(T) / 8
CAMERA = scenes.CAMERA
CAMERA_AXES = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])  # of a camera that looks along +y


def turn(degrees):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def truth_of(paths, yaws=None, camera=None, pan=None):
    """Hand-made trajectories: `paths` (T, 3) and `yaws` (T,) in degrees of the objects, `camera` and `pan` of it."""
    positions = np.stack([np.broadcast_to(path, (T, 3)) for path in paths], 1).astype(float)
    half = np.radians(np.stack([np.broadcast_to(yaw, T) for yaw in (yaws or [0.0] * len(paths))], 1)) / 2
    quaternions = np.stack([np.cos(half), 0 * half, 0 * half, np.sin(half)], -1)
    camera = np.broadcast_to((0.0, 0.0, 0.0) if camera is None else camera, (T, 3)).astype(float)
    rotations = np.stack([turn(angle) @ CAMERA_AXES for angle in np.broadcast_to(0.0 if pan is None else pan, T)])
    flat = np.zeros((T, len(paths)))
    return Truth(positions, np.gradient(positions, 1 / 8, axis=0), quaternions, camera, rotations, flat, flat)


def path(x=0.0, y=0.0, z=0.0):
    return np.stack(np.broadcast_arrays(x * np.ones(T), y * np.ones(T), z * np.ones(T)), -1)


def spec_of(task, agent=CAMERA, subject=0, other=None, view_time=0.0, start=0.0, end=4.0):
    return QuestionSpec(task, agent, subject, other, view_time, start, end)


def rest_then(fast, when=2.0):
    """0 until `when` s; from then on it grows by `fast` a second."""
    return fast * np.maximum(TIME - when, 0)


# Every kind of template question, with hand-made trajectories and the answer

LEFT = path(-3.0, 3.0)
CASES = {
    "farther": (spec_of("abs_dis"), truth_of([path(y=3 + TIME)]), ["grows"]),
    "nearer later": (spec_of("abs_dis"), truth_of([path(y=4.4 + rest_then(-0.7))]), ["stays the same", "shrinks"]),
    "passes": (spec_of("rel_dis"), truth_of([path(1.0, 2.0 - TIME)], camera=path()), ["shrinks", "grows"]),
    "camera comes, object rests": (spec_of("rel_dis"), truth_of([path(y=6)], camera=path(y=TIME)), ["shrinks"]),
    "camera comes, from where it was": (
        spec_of("abs_dis"),
        truth_of([path(y=6)], camera=path(y=TIME)),
        ["stays the same"],
    ),
    "two objects part": (spec_of("abs_dis", other=1), truth_of([path(x=1 + TIME), path()]), ["grows"]),
    "two move together": (spec_of("rel_dis", other=1), truth_of([path(x=1 + TIME), path(x=TIME)]), ["stays the same"]),
    "left of the camera": (spec_of("abs_dir"), truth_of([LEFT]), ["front left"]),
    "crosses": (spec_of("abs_dir"), truth_of([path(2 - TIME, 3)]), ["front right", "front", "front left"]),
    "below": (spec_of("abs_dir"), truth_of([path(y=4, z=-3)]), ["front below"]),
    "seen from a car": (spec_of("abs_dir", agent=1), truth_of([path(y=3), path()], [0.0, 180.0]), ["right"]),
    "camera pans left": (spec_of("rel_dir"), truth_of([path(y=4)], pan=12 * TIME), ["front", "front right"]),
    "camera pans, from where it was": (spec_of("abs_dir"), truth_of([path(y=4)], pan=12 * TIME), ["front"]),
    "car turns left": (spec_of("abs_ori"), truth_of([path(y=4)], [20 * TIME]), ["turns left"]),
    "car turns late": (
        spec_of("abs_ori"),
        truth_of([path(y=4)], [rest_then(-30)]),
        ["keeps its heading", "turns right"],
    ),
    "camera turns about a car": (spec_of("rel_ori"), truth_of([path(y=4)], pan=20 * TIME), ["turns right"]),
    "they turn together": (
        spec_of("rel_ori", agent=1),
        truth_of([path(), path(y=2)], [20 * TIME] * 2),
        ["keeps its heading"],
    ),
    "the camera itself": (
        spec_of("abs_ori", subject=CAMERA),
        truth_of([path(y=4)], pan=rest_then(20)),
        ["keeps its heading", "turns left"],
    ),
    "even speed": (spec_of("abs_spd"), truth_of([path(x=TIME, y=4)]), ["keeps its speed"]),
    "faster": (spec_of("abs_spd"), truth_of([path(x=0.3 * TIME + 0.2 * TIME**2, y=4)]), ["speeds up"]),
    "rest, relative": (
        spec_of("rel_spd"),
        truth_of([path(y=4)], camera=path(x=0.4 * TIME + 0.2 * TIME**2)),
        ["speeds up"],
    ),
    "rest, absolute": (
        spec_of("abs_spd"),
        truth_of([path(y=4)], camera=path(x=0.4 * TIME + 0.2 * TIME**2)),
        ["keeps its speed"],
    ),
    "first leads": (
        spec_of("abs_spd_comp", other=1),
        truth_of([path(x=TIME), path(x=0.4 * TIME, y=2)]),
        ["the first is faster"],
    ),
    "second comes up": (
        spec_of("abs_spd_comp", other=1),
        truth_of([path(), path(x=rest_then(0.8), y=2)]),
        ["both are equally fast", "the second is faster"],
    ),
    "the one that comes along rests": (
        spec_of("rel_spd_comp", other=1),
        truth_of([path(x=TIME, y=3), path(y=5)], camera=path(x=TIME)),
        ["the second is faster"],
    ),
    "moves on to the right": (spec_of("abs_dir_pred"), truth_of([path(x=TIME, y=4)]), ["right"]),
    "comes nearer and left": (spec_of("abs_dir_pred"), truth_of([path(-TIME, 9 - TIME)]), ["backward left"]),
    "ahead of a car that faces it": (spec_of("rel_dir_pred", agent=1), truth_of([path(x=TIME), path()]), ["forward"]),
    "falls": (spec_of("abs_dir_pred"), truth_of([path(y=4, z=9 - TIME)]), ["down"]),
    "sinks for a camera that rises": (
        spec_of("rel_dir_pred"),
        truth_of([path(y=4)], camera=path(z=0.5 * TIME)),
        ["down"],
    ),
    "rests": (spec_of("rel_dir_pred"), truth_of([path(y=4)]), [template_questions.STAYS]),
    "is overtaken": (spec_of("rel_dir_pred"), truth_of([path(y=4 + 0.3 * TIME)], camera=path(y=TIME)), ["backward"]),
}


@pytest.mark.parametrize("case", CASES)
def test_answers_of_trajectories_by_hand(case):
    spec, truth, expected = CASES[case]
    assert find_answer(truth, spec) == tuple(expected)


def test_every_template_task_is_among_them():
    assert {spec.task for spec, _, _ in CASES.values()} == set(question_vocabulary.TEMPLATE_TASKS)


AMBIGUOUS = {
    "grows by 15%": (spec_of("abs_dis"), truth_of([path(y=4 + 0.15 * TIME)])),
    "near the edge of left": (spec_of("abs_dir"), truth_of([path(-0.26, 1)])),
    "turns by 15 degrees": (spec_of("abs_ori"), truth_of([path(y=4)], [3.75 * TIME])),
    "a third faster": (spec_of("abs_spd"), truth_of([path(x=0.6 * TIME + 0.025 * TIME**2, y=4)])),
    "1.3 times as fast": (spec_of("abs_spd_comp", other=1), truth_of([path(x=1.3 * TIME), path(x=TIME)])),
    "both hardly move": (spec_of("abs_spd_comp", other=1), truth_of([path(x=0.2 * TIME), path(x=0.1 * TIME)])),
    "turns round at the end": (spec_of("abs_dir_pred"), truth_of([path(x=-np.abs(TIME - 4), y=4)])),
    "creeps": (spec_of("abs_dir_pred"), truth_of([path(x=0.1 * TIME, y=4)])),
    "comes back at the last moment": (
        spec_of("abs_dis"),
        truth_of([path(y=4 + TIME - 2.4 * np.maximum(TIME - 3.6, 0))]),
    ),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_is_ambiguous_has_no_answer(case):
    spec, truth = AMBIGUOUS[case][:2]
    assert find_answer(truth, spec) is None


@settings(deadline=None, max_examples=60)
@given(st.floats(-180, 180), st.floats(-9, 9), st.floats(-9, 9), st.sampled_from(sorted(CASES)))
def test_answers_do_not_depend_on_where_the_world_is(angle, x, y, case):
    """Everything is turned and shifted, the camera too, so that nothing changes in the picture."""
    spec, truth, expected = CASES[case]
    rotation, shift = turn(angle), np.array([x, y, 0.0])
    half = np.radians(angle) / 2
    w, a, b, z = np.moveaxis(truth.quaternions, -1, 0)
    spun = np.stack([np.cos(half) * w - np.sin(half) * z, a, b, np.cos(half) * z + np.sin(half) * w], -1)
    moved = Truth(
        truth.positions @ rotation.T + shift,
        truth.velocities @ rotation.T,
        spun,
        truth.camera_positions @ rotation.T + shift,
        rotation @ truth.camera_rotations,
        truth.centres,
        truth.depths,
    )
    assert find_answer(moved, spec) == tuple(expected)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(4, 9)), min_size=1, max_size=3))
def test_runs_are_what_was_laid_out(parts):
    labels = [label for label, length in parts for _ in range(length)]
    assert find_runs(labels) == tuple(label for label, _ in itertools.groupby(labels))


@given(st.floats(0.3, 1.5), st.floats(-1, 1))
def test_mirrored_changes_swap_the_words(size, start):
    up, down, _ = question_vocabulary.CHANGE_WORDS["dis"]
    values = start + np.linspace(0, size, 33)
    assert find_changes(values, "dis") == (up,)
    assert find_changes(-values, "dis") == (down,) == find_changes(values[::-1], "dis")


@given(st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 0.1))
def test_opposite_vectors_have_opposite_words(vector):
    opposite = {a: b for pair in template_questions.PLACE_WORDS for a, b in (pair, pair[::-1])}
    there, back = direction_words(np.array(vector)), direction_words(-np.array(vector))
    assert (there is None) == (back is None)
    if there:
        assert [opposite[word] for word in there.split()] == back.split()


# non_temp


def make_scene(*moves):
    """A scene of balls in a row, and its truth with each displaced by `moves` (T, 3)."""
    colours = ("red", "green", "blue", "yellow")
    things = tuple(scenes.Body(c, "ball", 0.4, 0.0, (2.0 * k, 5.0, 0.4)) for k, c in enumerate(colours[: len(moves)]))
    scene = scenes.Scene(
        things, (scenes.CameraMove(9.0, ("pan left", "dolly in"), (5.0, 0.3)),), 4.0, 2, 3, 30, 50, 5, 0.5, 1
    )
    return scene, truth_of([np.array(thing.start) + move for thing, move in zip(things, moves, strict=True)])


REST = path()


@pytest.mark.parametrize(
    "kind, moves, expected",
    [
        ("camera", (REST, REST), "pan left and dolly in"),
        ("colour", (REST, path(y=TIME)), "green"),
        ("mover", (REST, REST, path(x=0.5 * TIME)), "blue ball"),
        ("mover", (path(x=0.05 * TIME), path(x=0.5 * TIME)), None),
        ("mover", (path(y=TIME), path(y=TIME)), None),
        ("count", (path(y=TIME), REST, path(y=-TIME)), "two"),
        ("count", (REST, REST), "none"),
        ("falls", (REST, path(z=-np.minimum(TIME, 1)), path(y=TIME)), "green ball"),
        ("falls", (path(z=-TIME / 4), path(z=-TIME / 4)), None),
        ("bumps", (path(x=np.minimum(TIME, 1.2)), path(x=rest_then(1.0, 1.2))), "green ball"),
        ("bumps", (REST, path(x=rest_then(1.0, 1.2))), None),
        ("nearest", (path(y=-3), REST), "red ball"),
        ("nearest", (REST, path(x=-2, y=0.5)), None),
    ],
)
def test_non_template_answers_by_hand(kind, moves, expected):
    scene, truth = make_scene(*moves)
    if kind == "bumps":  # 2 m apart: the first has 1.2 m to go
        assert scene.objects[0].footprint_radius + scene.objects[1].footprint_radius == pytest.approx(0.8)
    assert non_template_questions.find_answer(kind, scene, truth) == expected


# Balance


def test_every_class_comes_as_often_and_with_every_letter():
    for num in (1, 3, 4, 9, 24, 26):
        seen = collections.Counter(generate_records._answer_and_position(turn, num) for turn in range(7, 7 + 4 * num))
        assert set(seen.values()) == {1} and len(seen) == 4 * num


@pytest.mark.parametrize("level", [1, 3])
def test_classes_are_distinct_texts_and_enough(level):
    for task, agent in itertools.product(question_vocabulary.TEMPLATE_TASKS, (CAMERA, 1)):
        for end in (3.0, 12.0):
            answers = [
                question_vocabulary.sequence_text(answer)
                for answer in template_questions.possible_answers(spec_of(task, agent, end=end), level)
            ]
            assert len(answers) == len(set(answers)) >= 7
    for kind in non_template_questions.KINDS[level]:
        answers = non_template_questions.possible_answers(kind, level, "unseen")
        assert len(answers) == len(set(answers)) and (len(answers) >= 4 or not answers)


@pytest.mark.usefixtures("egl")
def test_an_answer_that_is_hard_to_show_comes_as_often(monkeypatch):
    """A new wording keeps the wanted answer: with one scene for a wording, all answers still take turns."""
    monkeypatch.setattr(generate_records, "SCENES_PER_WORDING", 1)
    for index in range(8):
        simulated = generate_records.simulate_question(3, "abs_dir", index)
        text = simulated.question.question
        answers = template_questions.possible_answers(
            spec_of("abs_dir", agent=CAMERA if "the camera" in text else 1), 1
        )
        key = zlib.crc32(b"abs_dir 1 train")
        assert simulated.question.answer == question_vocabulary.sequence_text(
            answers[(index + (3 + key) % 997) % len(answers)]
        )


def test_any_wrong_answer_is_as_likely_as_any_other():
    answers = [
        question_vocabulary.sequence_text(answer)
        for answer in template_questions.possible_answers(spec_of("abs_dis"), 1)
    ]
    rng = np.random.default_rng(0)
    seen = collections.Counter(
        option for _ in range(2400) for option in question_vocabulary.with_distractors(rng, answers[0], answers, 2)
    )
    assert seen.pop(answers[0]) == 2400 and len(seen) == len(answers) - 1 == 8
    assert all(abs(count - 900) < 110 for count in seen.values())


def test_wording_is_drawn_without_the_answer():
    """`sample_specs` does not know the wanted answer, and always draws the same."""
    for task in question_vocabulary.TEMPLATE_TASKS:
        spec, scene_spec = scene_sampling.sample_specs(np.random.default_rng(4), task, 2, "train")
        assert (spec, scene_spec) == scene_sampling.sample_specs(np.random.default_rng(4), task, 2, "train")
        assert all(index < len(scene_spec.objects) for index in spec.asked_objects) and spec.agent < len(
            scene_spec.objects
        )
        assert len(set(scene_spec.objects)) == len(scene_spec.objects)
        if spec.agent != CAMERA:
            assert scene_spec.objects[spec.agent][1] in scenes.SHAPES_WITH_FRONT
        if spec.kind == "ori" and spec.subject != CAMERA:
            assert scene_spec.objects[spec.subject][1] in scenes.SHAPES_WITH_FRONT


@pytest.fixture(scope="module")
def simulated(egl):
    return [
        (task, generate_records.simulate_question(9, task, index))
        for task in question_vocabulary.DSR_TASKS
        for index in range(4)
    ]


def test_letters_are_balanced_and_options_four(simulated):
    for _, each in simulated:
        assert len(set(each.options)) == 4 and each.options.count(each.question.answer) == 1
    for task in question_vocabulary.DSR_TASKS:
        letters = [each.options.index(each.question.answer) for name, each in simulated if name == task]
        assert (
            task == question_vocabulary.NON_TEMPLATE_TASK or sorted(letters) == [0, 1, 2, 3] or len(set(letters)) >= 3
        )


def test_questions_say_the_span_and_the_agent(simulated):
    for task, each in simulated:
        text = each.question.question
        assert text.endswith("?") and len(text) < 130
        if task == question_vocabulary.NON_TEMPLATE_TASK:
            assert each.question.reasoning == "" and not each.question.targets
        else:
            assert ("after the clip ends" in text) or (" from " in text and " s to " in text)
            assert ("as it moves" in text) == (task.startswith("rel") and "between" not in text)
            assert each.question.answer in each.question.reasoning
