"""Questions about layered scenes: one can train on them, words are held out, and text alone tells nothing."""

import re
from collections import Counter

import numpy as np
import pytest

from fourdthinker_hf.data.records import read_records
from fourdthinker_hf.data.simulation.layered_questions import Asker, pair_times, sample_clip, write_questions
from fourdthinker_hf.data.simulation.textures import make_textures
from fourdthinker_hf.data.simulation.wordings import CONCLUSIONS, HELD_OUT_OPTIONS, OPTIONS, QUESTIONS, expand
from fourdthinker_hf.video_fourdthinker import load_video

pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def asked():
    rng = np.random.default_rng(0)
    textures, asker = make_textures(rng, 30), Asker(rng)
    return [question for _ in range(250) for question in asker.ask(*sample_clip(rng, textures), 5)]


def test_a_pattern_stands_for_all_its_texts():
    assert expand("Is it [a|b] [c|]?") == ("Is it a c?", "Is it a?", "Is it b c?", "Is it b?")


def test_held_out_wordings_use_words_that_training_does_not():
    def words(texts):
        return {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}

    known = words(text for wordings in QUESTIONS.values() for text in wordings.texts(False))
    for name, wordings in QUESTIONS.items():
        for pattern in wordings.held_out:
            assert words(expand(pattern)) - known, (name, pattern)
        assert len(wordings.held_out) >= len(wordings.train) / 4


def test_every_key_has_its_words_in_every_style():
    for kind, table in OPTIONS.items():
        assert set(table) == set(HELD_OUT_OPTIONS[kind]) == set(CONCLUSIONS[kind])
        assert len({len(styles) for styles in table.values()}) == 1


def test_the_answer_is_one_of_the_options_and_images_have_their_targets(asked):
    assert len({question.task for question in asked}) >= 14
    for question in asked:
        assert question.options is None or question.options.count(question.answer) == 1
        assert question.options is None or len(set(question.options)) == len(question.options) >= 2
        assert question.reasoning.count("<output_image>") == len(question.targets)
        assert not re.search(r"[{}\[\]|!]", question.question + question.answer + question.reasoning)


def test_the_place_and_the_kind_of_the_answer_tell_nothing(asked):
    """The right letter is even, and of a task's answers none is much more frequent than its share."""
    closed = [question for question in asked if question.options and len(question.options) == 4]
    letters = Counter(question.options.index(question.answer) for question in closed)
    assert max(letters.values()) < 0.36 * len(closed)
    for task, keys in (("camera_motion", 15), ("object_direction", 11), ("camera_moves", 2), ("size_change", 3)):
        counts = Counter(question.key for question in asked if question.task == task)
        assert max(counts.values()) <= 1.25 * sum(counts.values()) / keys + 4


def test_a_description_tells_what_the_camera_does_and_of_each_thing():
    rng = np.random.default_rng(1)
    textures, asker, told = make_textures(rng, 30), Asker(rng), Counter()
    for _ in range(60):
        scene, clip = sample_clip(rng, textures)
        for question in asker.ask(scene, clip, 0):
            assert question.task == "description" and question.options is None
            assert question.answer.startswith("The camera stays still.") == (not scene.motions)
            seen = [truth for truth, clear in zip(asker.truths, asker.clear, strict=True) if clear]
            things = [truth for truth in seen if truth.direction or truth.distance in ("closer", "farther")]
            assert question.answer.count(".") == len(things) + question.answer.startswith("The camera")
            told[len(things)] += 1
    assert min(told[0], told[1], told[2]) >= 5


def test_records_can_be_read_and_their_clips_are_what_the_model_is_shown(tmp_path):
    path = write_questions(6, 5, tmp_path, per_clip=3, workers=1)
    records = read_records(path)
    assert len(records) >= 6
    frames, times = load_video(records[0].video, fps=8, max_frames=16, pair_seconds=0.2)
    assert len(frames) == 16
    assert np.allclose(times, pair_times(times[-1]), atol=2e-3)
    again = write_questions(6, 5, tmp_path / "again", per_clip=3, workers=1)
    assert again.read_text() == path.read_text()
