"""Simulated clips: the same every time, and what the text says is what the pixels show."""

import collections
import re

import numpy as np
import pytest

pytest.importorskip("mujoco")
pytest.importorskip("av")

from fourdthinker_hf.data import simulation as sim
from fourdthinker_hf.data.records import read_records
from fourdthinker_hf.processing_fourdthinker import OUTPUT_IMAGE

SEED = 5
NUMBERS = re.compile(r"-?\d+")


@pytest.fixture(scope="module")
def clips():
    chosen = [("camera_motion", 2), ("camera_motion", 5), ("object_direction", 1), ("faster_object", 2)]
    chosen += [("distance_change", 3), ("grounding", 1), ("grounding", 2)]
    return {pair: sim.simulate_clip(SEED, *pair) for pair in chosen}


@pytest.fixture(scope="module")
def composed():
    """Scenes of every class of every task, simulated but not rendered."""
    made = {}
    for task in sim.TASKS:
        for index in range(28 if task == "camera_motion" else 16):
            made[task, index] = sim._compose(np.random.default_rng([SEED, index]), task, index)[:4]
    return made


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("simulated")
    return sim.simulate(8, SEED, out, workers=1, progress=False)


def test_a_clip_is_the_same_on_every_call(clips):
    again = sim.simulate_clip(SEED, "distance_change", 3, depth=True)
    first = clips["distance_change", 3]
    assert again.scene == first.scene and again.question == first.question and again.options == first.options
    assert (again.frames == first.frames).all() and (again.masks == first.masks).all()
    assert first.frames.shape == (32, 112, 112, 3) and first.timestamps[-1] == 31 / 8
    assert not (sim.simulate_clip(SEED + 1, "distance_change", 3).frames == first.frames).all()


def test_depth_is_metric(clips):
    clip = sim.simulate_clip(SEED, "faster_object", 2, depth=True)
    for i, thing in enumerate(clip.scene.things):
        seen = clip.depth[0][clip.masks[0] == i + 1]
        assert abs(np.median(seen) - (clip.truth.depths[0, i] - 0.7 * thing.half)) < 0.6 * thing.half


def test_masks_lie_where_centres_project(clips):
    checked = 0
    for clip in clips.values():
        for t in range(sim.NUM_FRAMES):
            for i, thing in enumerate(clip.scene.things):
                mask = clip.masks[t] == i + 1
                rows, columns = np.nonzero(mask)
                radius = clip.scene.focal * thing.half / clip.truth.depths[t, i]
                if np.abs(clip.truth.centres[t, i] - 56).max() > 56 - 1.5 * radius:
                    continue
                centroid = np.array([columns.mean(), rows.mean()]) + 0.5
                slack = {"ball": 1.0, "cone": 0.6 * radius}.get(thing.shape, 1.5)
                assert np.linalg.norm(centroid - clip.truth.centres[t, i]) < slack + 0.15 * radius
                assert mask.sum() > 0.6 * np.pi * radius**2 * (0.55 if thing.shape == "cone" else 1.0)
                checked += 1
    assert checked > 300


def test_masks_hold_the_named_colour(clips):
    for clip in clips.values():
        for i, thing in enumerate(clip.scene.things):
            mask = clip.masks[0] == i + 1
            if mask.sum() > 20:
                colour = clip.frames[0][mask].mean(0)
                wanted = np.array(sim.COLOURS[thing.colour])
                assert colour @ wanted / np.linalg.norm(colour) / np.linalg.norm(wanted) > 0.95


def test_motion_is_what_the_scene_orders(composed):
    for scene, truth, _, _ in composed.values():
        ordered = np.array([thing.velocity for thing in scene.things])
        assert np.allclose(truth.velocities[1:, :, :2], ordered, atol=5e-3)
        moved = truth.positions[-1, :, :2] - truth.positions[0, :, :2]
        assert np.allclose(moved, ordered * 31 / 8, atol=0.01)
        assert scene.motion == "static" or not ordered.any()
        assert np.allclose(truth.positions[..., 2], [thing.half for thing in scene.things], atol=0.01)
        assert np.allclose(truth.quaternions, truth.quaternions[:1], atol=1e-2)


def test_classes_and_letters_are_balanced(composed):
    for task in sim.TASKS:
        answers, letters, pairs = collections.Counter(), collections.Counter(), collections.Counter()
        for (kind, _), (scene, _, question, options) in composed.items():
            if kind == task:
                names = [f"the {thing.name}" for thing in scene.things]
                answer = names.index(question.answer) if question.answer in names else question.answer
                letter = options.index(question.answer)
                assert len(set(options)) == 4
                for counter, key in ((answers, answer), (letters, letter), (pairs, (answer, letter))):
                    counter[key] += 1
        assert set(answers.values()) == {4} and len(set(letters.values())) == 1 and set(pairs.values()) == {1}


def test_camera_distractors_do_not_tell_the_answer():
    """Any wrong motion is as likely as any other beside each answer."""
    question = sim.Question("", "static", "", ())
    rng = np.random.default_rng(0)
    seen = collections.Counter(
        o for _ in range(2000) for o in sim._options(rng, "camera_motion", question, ["a", "b"], 1)
    )
    assert seen.pop("static") == 2000 and len(seen) == 6
    assert all(abs(count - 1000) < 120 for count in seen.values())


def test_camera_answers_follow_from_poses(composed):
    for (task, _), (scene, truth, question, _) in composed.items():
        if task != "camera_motion":
            continue
        right, back = truth.camera_rotations[0, :, 0], truth.camera_rotations[0, :, 2]
        step = truth.camera_positions[-1] - truth.camera_positions[0]
        gaze = -truth.camera_rotations[-1, :, 2]
        yaw = np.degrees(np.arcsin(gaze @ right / np.hypot(*gaze[:2])))
        pitch = np.degrees(np.arcsin(gaze[2]) - np.arcsin(-back[2]))
        measured = {"pan right": yaw, "pan left": -yaw, "tilt up": pitch, "tilt down": -pitch,
                    "dolly in": 10 * step @ -back, "dolly out": 10 * step @ back}  # fmt: skip
        assert question.answer == scene.motion
        largest = max(measured, key=measured.get)
        assert (
            measured[largest] > 15 and largest == scene.motion or scene.motion == "static" and measured[largest] < 1e-6
        )


def test_object_answers_follow_from_velocities(composed):
    axes = {
        "to the left": (-1, 0),
        "to the right": (1, 0),
        "toward the camera": (0, -1),
        "away from the camera": (0, 1),
    }
    for (task, _), (scene, truth, question, _) in composed.items():
        velocity, names = truth.velocities[4:, :2, :2], [f"the {thing.name}" for thing in scene.things[:2]]
        speed = np.linalg.norm(velocity, axis=-1).mean(0)
        if task == "object_direction":
            mean = velocity[:, 0].mean(0)
            assert mean @ axes[question.answer] >= np.cos(np.radians(15)) * np.linalg.norm(mean)
        elif task == "faster_object" and question.answer in names:
            fast = names.index(question.answer)
            assert speed[fast] >= 1.79 * speed[1 - fast]
        elif task == "faster_object":
            assert abs(speed[0] - speed[1]) < 0.005 and (speed.max() < 0.005) == (question.answer == "neither moves")
        elif task == "distance_change":
            gap = np.linalg.norm(truth.positions[:, 0] - truth.positions[:, 1], axis=-1)
            if question.answer == "it stays the same":
                assert np.ptp(gap) < 0.05 * gap.mean()
            else:
                ends = {"it grows": (1, 0), "it shrinks": (0, 1), "it shrinks, then grows": (1, 1)}[question.answer]
                grown = gap[[-1, 0]] / gap.min() >= 1.3
                assert tuple(grown.astype(int)) == ends


def test_reasoning_adds_up(composed):
    for (task, _), (scene, truth, question, _) in composed.items():
        text = question.reasoning
        assert text.count(OUTPUT_IMAGE) == len(question.targets) and "None" not in text
        paths = {}
        for i, thing in enumerate(scene.things):
            for t in sim.PATH_FRAMES:
                cell = truth.centres[t, i] * 12 / 112
                paths.setdefault(thing.name, []).append(tuple(np.floor(cell).astype(int)))
        said = re.findall(r"(\w+ (?:ball|cube|cylinder|cone)) ([\d out,]+)\.", text)
        for name, path in said:
            expected = [f"{x} {y}" if 0 <= min(x, y) and max(x, y) < 12 else "out" for x, y in paths[name]]
            assert path == ", ".join(expected)
        if task == "object_direction":
            path = paths[said[0][0]]
            assert (
                f"x changes by {path[3][0] - path[0][0]}, y by {path[3][1] - path[0][1]}. it moves {question.answer}."
                in text
            )
        elif task == "distance_change":
            first, second = (np.array(paths[name]) for name, _ in said)
            assert f"apart {', '.join(map(str, np.abs(first - second).sum(1)))}. {question.answer}." in text
        elif task == "camera_motion":
            assert len(said) == len(scene.things) and text.endswith(f"camera {question.answer}.")


def test_grounding_names_everything(clips):
    for (task, _), clip in clips.items():
        if task == "grounding":
            answer = clip.question.answer
            assert all(f"{thing.name} " in answer for thing in clip.scene.things)
            assert answer.endswith(f"camera {clip.scene.motion}.") and clip.options is None


def test_written_files(written):
    import av
    from PIL import Image

    records = read_records(written)
    assert [record.task for record in records] == list(sim.TASKS) * 2
    record = records[2]
    clip = sim.clip_from_record(record)
    assert (clip.question.question, clip.options, clip.question.answer) == (
        record.question,
        record.options,
        record.answer,
    )
    with av.open(record.video) as container:
        stream = container.streams.video[0]
        assert (
            stream.codec_context.name == "h264"
            and stream.codec_context.pix_fmt == "yuv420p"
            and stream.average_rate == 8
        )
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert np.abs(decoded.astype(int) - clip.frames).mean() < 6
    for path, target in zip(record.imagery, record.source["targets"], strict=True):
        image = np.asarray(Image.open(path)).astype(int)
        names = [thing.name for thing in clip.scene.things]
        mask = clip.masks[sim.TARGET_FRAME] == names.index(target["object"]) + 1
        assert target["time"] == clip.timestamps[sim.TARGET_FRAME] and mask.any()
        assert (image[mask] == clip.frames[sim.TARGET_FRAME][mask]).all()
        assert (np.ptp(image[~mask], axis=-1) == 0).all() and image[~mask].max() <= 0.35 * 255


def test_records_do_not_depend_on_number_or_workers(written, tmp_path):
    fewer = sim.simulate(6, SEED, tmp_path, workers=2, progress=False)
    assert fewer.read_bytes().splitlines() == written.read_bytes().splitlines()[:6]
    assert sorted(path.name for path in fewer.parent.iterdir()) == ["images", "records.jsonl", "videos"]


def test_what_cannot_work_says_so(tmp_path):
    with pytest.raises(ValueError, match="level must be 1"):
        sim.simulate(1, 0, tmp_path, level=2)
    with pytest.raises(ValueError, match="unknown task 'chess'"):
        sim.simulate_clip(0, "chess")
    with pytest.raises(ValueError, match="tasks among"):
        sim.simulate(1, 0, tmp_path, tasks=("chess",))
