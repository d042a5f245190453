"""The 13 kinds of DSR-Sim: answers of hand-made trajectories, what is refused, and that a text tells nothing."""

import collections
import itertools
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourdthinker_hf.data import vocabulary

pytest.importorskip("mujoco")

from bench.accuracy.blind_baselines import classifier, longest_option
from fourdthinker_hf.data.changes import find_changes, find_runs
from fourdthinker_hf.data.simulation import generation, non_template_questions, questions, scene_sampling, scenes
from fourdthinker_hf.data.simulation.questions import Ask, answer, side
from fourdthinker_hf.data.simulation.rendering import Truth

T = 41  # frames: 4 s to ask about, one more to predict
TIME = np.arange(T) / 8
CAMERA = scenes.CAMERA
EYE = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])  # columns right, up, backward: looks along +y


def turn(degrees):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def truth_of(paths, yaws=None, eye=None, pan=None):
    """Trajectories by hand: `paths` (T, 3) of each object, `yaws` (T,) in degrees, the camera's `eye` and `pan`."""
    positions = np.stack([np.broadcast_to(path, (T, 3)) for path in paths], 1).astype(float)
    half = np.radians(np.stack([np.broadcast_to(yaw, T) for yaw in (yaws or [0.0] * len(paths))], 1)) / 2
    quaternions = np.stack([np.cos(half), 0 * half, 0 * half, np.sin(half)], -1)
    eye = np.broadcast_to((0.0, 0.0, 0.0) if eye is None else eye, (T, 3)).astype(float)
    rotations = np.stack([turn(angle) @ EYE for angle in np.broadcast_to(0.0 if pan is None else pan, T)])
    flat = np.zeros((T, len(paths)))
    return Truth(positions, np.gradient(positions, 1 / 8, axis=0), quaternions, eye, rotations, flat, flat)


def along(x=0.0, y=0.0, z=0.0):
    return np.stack(np.broadcast_arrays(x * np.ones(T), y * np.ones(T), z * np.ones(T)), -1)


def ask(task, agent=CAMERA, x=0, y=None, at=0.0, start=0.0, end=4.0):
    return Ask(task, agent, x, y, at, start, end)


def slow_then(fast, when=2.0):
    """0 until `when` s, then `fast` a second."""
    return fast * np.maximum(TIME - when, 0)


# Every template kind, by hand: what is asked, of which trajectories, and the answer

LEFT = along(-3.0, 3.0)
CASES = {
    "farther": (ask("abs_dis"), truth_of([along(y=3 + TIME)]), ["grows"]),
    "nearer later": (ask("abs_dis"), truth_of([along(y=4.4 + slow_then(-0.7))]), ["stays the same", "shrinks"]),
    "passes": (ask("rel_dis"), truth_of([along(1.0, 2.0 - TIME)], eye=along()), ["shrinks", "grows"]),
    "camera comes, object rests": (ask("rel_dis"), truth_of([along(y=6)], eye=along(y=TIME)), ["shrinks"]),
    "camera comes, from where it was": (ask("abs_dis"), truth_of([along(y=6)], eye=along(y=TIME)), ["stays the same"]),
    "two objects part": (ask("abs_dis", y=1), truth_of([along(x=1 + TIME), along()]), ["grows"]),
    "two move together": (ask("rel_dis", y=1), truth_of([along(x=1 + TIME), along(x=TIME)]), ["stays the same"]),
    "left of the camera": (ask("abs_dir"), truth_of([LEFT]), ["front left"]),
    "crosses": (ask("abs_dir"), truth_of([along(2 - TIME, 3)]), ["front right", "front", "front left"]),
    "below": (ask("abs_dir"), truth_of([along(y=4, z=-3)]), ["front below"]),
    "seen from a car": (ask("abs_dir", agent=1), truth_of([along(y=3), along()], [0.0, 180.0]), ["right"]),
    "camera pans left": (ask("rel_dir"), truth_of([along(y=4)], pan=12 * TIME), ["front", "front right"]),
    "camera pans, from where it was": (ask("abs_dir"), truth_of([along(y=4)], pan=12 * TIME), ["front"]),
    "car turns left": (ask("abs_ori"), truth_of([along(y=4)], [20 * TIME]), ["turns left"]),
    "car turns late": (ask("abs_ori"), truth_of([along(y=4)], [slow_then(-30)]), ["keeps its heading", "turns right"]),
    "camera turns about a car": (ask("rel_ori"), truth_of([along(y=4)], pan=20 * TIME), ["turns right"]),
    "they turn together": (
        ask("rel_ori", agent=1),
        truth_of([along(), along(y=2)], [20 * TIME] * 2),
        ["keeps its heading"],
    ),
    "the camera itself": (
        ask("abs_ori", x=CAMERA),
        truth_of([along(y=4)], pan=slow_then(20)),
        ["keeps its heading", "turns left"],
    ),
    "even speed": (ask("abs_spd"), truth_of([along(x=TIME, y=4)]), ["keeps its speed"]),
    "faster": (ask("abs_spd"), truth_of([along(x=0.3 * TIME + 0.2 * TIME**2, y=4)]), ["speeds up"]),
    "rest, relative": (ask("rel_spd"), truth_of([along(y=4)], eye=along(x=0.4 * TIME + 0.2 * TIME**2)), ["speeds up"]),
    "rest, absolute": (
        ask("abs_spd"),
        truth_of([along(y=4)], eye=along(x=0.4 * TIME + 0.2 * TIME**2)),
        ["keeps its speed"],
    ),
    "first leads": (
        ask("abs_spd_comp", y=1),
        truth_of([along(x=TIME), along(x=0.4 * TIME, y=2)]),
        ["the first is faster"],
    ),
    "second comes up": (
        ask("abs_spd_comp", y=1),
        truth_of([along(), along(x=slow_then(0.8), y=2)]),
        ["both are equally fast", "the second is faster"],
    ),
    "the one that comes along rests": (
        ask("rel_spd_comp", y=1),
        truth_of([along(x=TIME, y=3), along(y=5)], eye=along(x=TIME)),
        ["the second is faster"],
    ),
    "moves on to the right": (ask("abs_dir_pred"), truth_of([along(x=TIME, y=4)]), ["right"]),
    "comes nearer and left": (ask("abs_dir_pred"), truth_of([along(-TIME, 9 - TIME)]), ["backward left"]),
    "ahead of a car that faces it": (ask("rel_dir_pred", agent=1), truth_of([along(x=TIME), along()]), ["forward"]),
    "falls": (ask("abs_dir_pred"), truth_of([along(y=4, z=9 - TIME)]), ["down"]),
    "sinks for a camera that rises": (ask("rel_dir_pred"), truth_of([along(y=4)], eye=along(z=0.5 * TIME)), ["down"]),
    "rests": (ask("rel_dir_pred"), truth_of([along(y=4)]), [questions.STAYS]),
    "is overtaken": (ask("rel_dir_pred"), truth_of([along(y=4 + 0.3 * TIME)], eye=along(y=TIME)), ["backward"]),
}


@pytest.mark.parametrize("case", CASES)
def test_answers_of_trajectories_by_hand(case):
    asked, truth, expected = CASES[case]
    assert answer(truth, asked) == tuple(expected)


def test_every_template_task_is_among_them():
    assert {asked.task for asked, _, _ in CASES.values()} == set(vocabulary.TEMPLATE_TASKS)


AMBIGUOUS = {
    "grows by 15%": (ask("abs_dis"), truth_of([along(y=4 + 0.15 * TIME)])),
    "near the edge of left": (ask("abs_dir"), truth_of([along(-0.26, 1)])),
    "turns by 15 degrees": (ask("abs_ori"), truth_of([along(y=4)], [3.75 * TIME])),
    "a third faster": (ask("abs_spd"), truth_of([along(x=0.6 * TIME + 0.025 * TIME**2, y=4)])),
    "1.3 times as fast": (ask("abs_spd_comp", y=1), truth_of([along(x=1.3 * TIME), along(x=TIME)])),
    "both hardly move": (ask("abs_spd_comp", y=1), truth_of([along(x=0.2 * TIME), along(x=0.1 * TIME)])),
    "turns round at the end": (ask("abs_dir_pred"), truth_of([along(x=-np.abs(TIME - 4), y=4)])),
    "creeps": (ask("abs_dir_pred"), truth_of([along(x=0.1 * TIME, y=4)])),
    "comes back at the last moment": (ask("abs_dis"), truth_of([along(y=4 + TIME - 2.4 * np.maximum(TIME - 3.6, 0))])),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_is_ambiguous_has_no_answer(case):
    asked, truth = AMBIGUOUS[case][:2]
    assert answer(truth, asked) is None


@settings(deadline=None, max_examples=60)
@given(st.floats(-180, 180), st.floats(-9, 9), st.floats(-9, 9), st.sampled_from(sorted(CASES)))
def test_answers_do_not_depend_on_where_the_world_is(angle, x, y, case):
    """Turn and shift everything, camera too: nothing is seen to change."""
    asked, truth, expected = CASES[case]
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
    assert answer(moved, asked) == tuple(expected)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(4, 9)), min_size=1, max_size=3))
def test_runs_are_what_was_laid_out(parts):
    labels = [label for label, length in parts for _ in range(length)]
    assert find_runs(labels) == tuple(label for label, _ in itertools.groupby(labels))


@given(st.floats(0.3, 1.5), st.floats(-1, 1))
def test_mirrored_changes_swap_the_words(size, start):
    up, down, _ = vocabulary.CHANGE_WORDS["dis"]
    values = start + np.linspace(0, size, 33)
    assert find_changes(values, "dis") == (up,) and find_changes(-values, "dis") == (down,) == find_changes(
        values[::-1], "dis"
    )


@given(st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 0.1))
def test_opposite_vectors_have_opposite_words(vector):
    opposite = {a: b for pair in questions.SIDES for a, b in (pair, pair[::-1])}
    there, back = side(np.array(vector)), side(-np.array(vector))
    assert (there is None) == (back is None)
    if there:
        assert [opposite[word] for word in there.split()] == back.split()


# non_temp


def shown(*moves):
    """A world of balls at rest in a row, and its truth with each displaced by `moves` (T, 3)."""
    colours = ("red", "green", "blue", "yellow")
    things = tuple(scenes.Body(c, "ball", 0.4, 0.0, (2.0 * k, 5.0, 0.4)) for k, c in enumerate(colours[: len(moves)]))
    world = scenes.World(
        things, (scenes.CameraMove(9.0, ("pan left", "dolly in"), (5.0, 0.3)),), 4.0, 2, 3, 30, 50, 5, 0.5, 1
    )
    return world, truth_of([np.array(thing.start) + move for thing, move in zip(things, moves, strict=True)])


REST = along()


@pytest.mark.parametrize(
    "kind, moves, expected",
    [
        ("camera", (REST, REST), "pan left and dolly in"),
        ("colour", (REST, along(y=TIME)), "green"),
        ("mover", (REST, REST, along(x=0.5 * TIME)), "blue ball"),
        ("mover", (along(x=0.05 * TIME), along(x=0.5 * TIME)), None),
        ("mover", (along(y=TIME), along(y=TIME)), None),
        ("count", (along(y=TIME), REST, along(y=-TIME)), "two"),
        ("count", (REST, REST), "none"),
        ("falls", (REST, along(z=-np.minimum(TIME, 1)), along(y=TIME)), "green ball"),
        ("falls", (along(z=-TIME / 4), along(z=-TIME / 4)), None),
        ("bumps", (along(x=np.minimum(TIME, 1.2)), along(x=slow_then(1.0, 1.2))), "green ball"),
        ("bumps", (REST, along(x=slow_then(1.0, 1.2))), None),
        ("nearest", (along(y=-3), REST), "red ball"),
        ("nearest", (REST, along(x=-2, y=0.5)), None),
    ],
)
def test_varied_answers_by_hand(kind, moves, expected):
    world, truth = shown(*moves)
    if kind == "bumps":  # 2 m apart: the first has 1.2 m to go
        assert world.things[0].reach + world.things[1].reach == pytest.approx(0.8)
    assert non_template_questions.judge(kind, world, truth) == expected


# Balance


def test_every_class_comes_as_often_and_with_every_letter():
    for num in (1, 3, 4, 9, 24, 26):
        seen = collections.Counter(generation._turn(turn, num) for turn in range(7, 7 + 4 * num))
        assert set(seen.values()) == {1} and len(seen) == 4 * num


@pytest.mark.parametrize("level", [1, 3])
def test_classes_are_distinct_texts_and_enough(level):
    for task, agent in itertools.product(vocabulary.TEMPLATE_TASKS, (CAMERA, 1)):
        for end in (3.0, 12.0):
            known = [vocabulary.sequence_text(path) for path in questions.classes(ask(task, agent, end=end), level)]
            assert len(known) == len(set(known)) >= 7
    for kind in non_template_questions.VARIED[level]:
        known = non_template_questions.classes(kind, level, "unseen")
        assert len(known) == len(set(known)) and (len(known) >= 4 or not known)


def test_an_answer_that_is_hard_to_stage_comes_as_often(monkeypatch):
    """Worded again, a question keeps its class: with one try for a wording, every class still comes in turn."""
    monkeypatch.setattr(generation, "TRIES", 1)
    for index in range(8):
        made = generation.compose(3, "abs_dir", index)
        text = made.question.question
        known = questions.classes(ask("abs_dir", agent=CAMERA if "the camera" in text else 1), 1)
        key = zlib.crc32(b"abs_dir 1 train")
        assert made.question.answer == vocabulary.sequence_text(known[(index + (3 + key) % 997) % len(known)])


def test_any_wrong_answer_is_as_likely_as_any_other():
    known = [vocabulary.sequence_text(path) for path in questions.classes(ask("abs_dis"), 1)]
    rng = np.random.default_rng(0)
    seen = collections.Counter(
        option for _ in range(2400) for option in vocabulary.with_distractors(rng, known[0], known, 2)
    )
    assert seen.pop(known[0]) == 2400 and len(seen) == len(known) - 1 == 8
    assert all(abs(count - 900) < 110 for count in seen.values())


def test_wording_is_drawn_without_the_answer():
    """The same plan, whatever is wanted: `plan` is not told."""
    for task in vocabulary.TEMPLATE_TASKS:
        asked, cast = scene_sampling.plan(np.random.default_rng(4), task, 2, "train")
        assert (asked, cast) == scene_sampling.plan(np.random.default_rng(4), task, 2, "train")
        assert all(index < len(cast.names) for index in asked.asked) and asked.agent < len(cast.names)
        assert len(set(cast.names)) == len(cast.names)
        if asked.agent != CAMERA:
            assert cast.names[asked.agent][1] in scenes.FRONTED
        if asked.kind == "ori" and asked.x != CAMERA:
            assert cast.names[asked.x][1] in scenes.FRONTED


@pytest.fixture(scope="module")
def made():
    return [(task, generation.compose(9, task, index)) for task in generation.DSR_TASKS for index in range(4)]


def test_letters_are_balanced_and_options_four(made):
    for _, each in made:
        assert len(set(each.options)) == 4 and each.options.count(each.question.answer) == 1
    for task in generation.DSR_TASKS:
        letters = [each.options.index(each.question.answer) for name, each in made if name == task]
        assert task == vocabulary.NON_TEMPLATE_TASK or sorted(letters) == [0, 1, 2, 3] or len(set(letters)) >= 3


def test_questions_say_the_span_and_the_agent(made):
    for task, each in made:
        text = each.question.question
        assert text.endswith("?") and len(text) < 130
        if task == vocabulary.NON_TEMPLATE_TASK:
            assert each.question.reasoning == "" and not each.question.targets
        else:
            assert ("after the clip ends" in text) or (" from " in text and " s to " in text)
            assert ("as it moves" in text) == (task.startswith("rel") and "between" not in text)
            assert each.question.answer in each.question.reasoning


def test_the_blind_classifier_sees_a_bias_where_there_is_one():
    rng = np.random.default_rng(0)
    words = ["grows", "shrinks", "stays", "turns", "falls", "rolls"]

    def row(k, biased):
        options = rng.permutation(words)[:4].tolist()
        right = options.index("grows") if biased and "grows" in options else k % 4
        return {"question": f"How does {k % 7} move?", "options": options, "right": right}

    def share(rows):
        training, rows = rows[::2], rows[1::2]
        return np.mean([a == row["right"] for a, row in zip(classifier(rows, training), rows, strict=True)])

    assert share([row(k, True) for k in range(600)]) > 0.6
    assert share([row(k, False) for k in range(600)]) < 0.35
    assert longest_option([{"options": ["a", "abc", "ab", "a"]}]) == [1]
