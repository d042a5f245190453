"""Answers as HTML, on answers that are made up and on one of random weights."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXTS
from init_model import make_config, make_processor, make_tokenizer
from PIL import Image

from fourdthinker_hf import FourDThinkerForConditionalGeneration
from fourdthinker_hf.demo import answer_html
from fourdthinker_hf.demo.answer_video import AnswerVideo
from fourdthinker_hf.demo.checkpoint_facts import describe_checkpoint
from fourdthinker_hf.processing_fourdthinker import OUTPUT_IMAGE
from fourdthinker_hf.qa import Answer, MentalImage, VideoQA
from fourdthinker_hf.question_answer import OUTPUT_IMAGE as SAME
from fourdthinker_hf.video_fourdthinker import load_video


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_each_temporal_step_shows_its_own_frames_and_times(patch, tmp_path, write_video, script):
    """Seven frames, half a second apart: with 2 or 3 frames a step, the last step has only one."""
    tokenizer = make_tokenizer(TEXTS, 400)
    config = make_config(tokenizer)
    config.vision_config.temporal_patch_size = patch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FourDThinkerForConditionalGeneration(config)
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    processor = make_processor(tokenizer)
    processor.video_processor.temporal_patch_size = patch
    qa = VideoQA(model, processor)
    script(qa, "<think>red <|latent_start|> moves</think><answer>left</answer><|im_end|>")
    frames = np.stack([np.full((56, 56, 3), 30 * i, np.uint8) for i in range(7)])
    answer = qa.ask(write_video(tmp_path / "clip.mp4", frames, fps=2), "Where?")

    (image,) = answer.images
    starts = range(0, 7, patch)
    assert [frames.mean((1, 2, 3)).round(-1).tolist() for frames, _ in answer.steps] == [
        [30.0 * i for i in range(start, min(start + patch, 7))] for start in starts
    ]
    assert len(image.maps) == len(starts) and image.time == answer.steps[image.best_step][1].mean()
    timeline = answer_html.timeline_html(answer)
    assert timeline.count("class='moment'") == len(starts)
    assert f"data-time='{starts[image.best_step] / 2}'" in timeline
    assert "data-start='0.0' data-end='3.5'" in timeline  # as the clip does
    spans = re.findall(r"Overlay at ([\d.]+)&ndash;([\d.]+) s", answer_html.reasoning_html(answer, []))
    expected = [(start / 2, min(start + patch - 1, 6) / 2) for start in starts]
    assert [(float(start), float(end)) for start, end in spans] == expected
    panel = answer_html.mental_images_html(answer, [], None)
    assert panel.count("<figcaption>") == 1 + len(starts) and "lit up" not in panel


def map_test(own, low):
    return {"num": 9, "mass": {"own": own, "shuffled": 0.1, "low": low}, "best_step": {"own": 0.7, "shuffled": 0.3}}


@pytest.mark.parametrize("test, holds", [(None, False), (map_test(0.6, 0.1), True), (map_test(0.6, -0.1), False)])
def test_a_map_is_shown_only_if_its_test_holds(test, holds):
    frames = np.zeros((2, 30, 30, 3), np.uint8)
    maps = np.array([[[1.0, 0.0, 0.0]] * 3], np.float32)
    answer = Answer(frames, np.arange(2.0), images=[MentalImage(None, maps, 0, 0.5)])
    assert ("lit up" in answer_html.mental_images_html(answer, [], test)) == holds
    assert not answer_html.map_holds(map_test(0.13, 0.1))


def test_overlay_leaves_the_dissimilar_alone_and_lights_the_similar():
    frame = np.full((8, 8, 3), 100, np.uint8)
    np.testing.assert_array_equal(answer_html.overlay(frame, np.full((2, 2), -0.5)), frame)
    shown = answer_html.overlay(frame, np.full((2, 2), 0.4), high=0.4)
    assert shown.dtype == np.uint8 and shown.shape == frame.shape
    assert (shown == np.round(0.25 * 100 + 0.75 * np.array([252, 255, 164])).astype(np.uint8)).all()
    left = answer_html.overlay(frame, np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert len(np.unique(left[:, :4])) == 3 and (left[:, 4:] == 100).all()  # a cell is drawn as a cell


def test_overlay_of_a_map_without_anything_positive():
    frame = np.full((4, 4, 3), 7, np.uint8)
    np.testing.assert_array_equal(answer_html.overlay(frame, np.zeros((2, 2)), high=0.0), frame)


def test_a_mental_image_stands_where_it_was_pictured_even_if_the_reply_is_odd():
    image = MentalImage(np.zeros((0, 4)))
    answer = Answer(np.zeros((2, 8, 8, 3)), np.arange(2), reasoning="a <output_image> b", images=[image, image])
    shown = answer_html.reasoning_html(answer, [])
    assert shown.count("<figure>") == 2 and shown.index("<figure>") < shown.index("b<figure>")
    answer.reasoning, answer.images = "a <output_image> b <output_image> c", []
    assert answer_html.reasoning_html(answer, []) == "<div class='reasoning'>abc</div>"


def test_text_of_the_model_and_of_the_visitor_is_never_markup():
    hostile = "<img src=x onerror=alert(1)>'\""
    answer = Answer(np.zeros((2, 8, 8, 3), np.uint8), np.arange(2), reasoning=hostile, answer=hostile)
    answer.probabilities = [0.5, 0.5]
    shown = answer_html.reasoning_tiles_html(answer, []) + answer_html.verdict_html(answer, [hostile, "b"])
    shown += answer_html.links_html(answer, hostile, [hostile, "b"], "result/1")
    shown += answer_html.comparison_html(answer, answer, [hostile, "b"], hostile, {})
    assert "<img" not in shown and "'\"" not in shown.replace("&#x27;&quot;", "")


def test_a_video_shows_each_mental_image_beside_all_frames(tmp_path):
    """Four frames of 30 x 41 pixels, half a second apart. The first mental image has a picture; of the second one the
    moment is shown that it is most like, which is the third and fourth frame."""
    frames = np.stack([np.full((30, 41, 3), 50 * i, np.uint8) for i in range(4)])
    maps = np.ones((2, 1, 1), np.float32)
    images = [
        MentalImage(None, maps, 0, 0.25, Image.new("RGB", (41, 30), (220, 0, 0))),
        MentalImage(None, maps, 1, 1.25),
        MentalImage(None),
    ]
    video = AnswerVideo(Answer(frames, np.arange(4) / 2, images=images))
    (tmp_path / "answer.mp4").write_bytes(video.mp4())
    shown, times = load_video(tmp_path / "answer.mp4", fps=2)
    assert times.tolist() == [i / 2 for i in range(8)]
    left, right = (shown[:, 60:180, x - 40 : x + 40].mean((1, 2)) for x in (164, 492))  # pixels inside each picture
    np.testing.assert_allclose(left, [[50 * (i % 4)] * 3 for i in range(8)], atol=4)
    np.testing.assert_allclose(right, [[220, 0, 0]] * 4 + [[150] * 3] * 4, atol=6)
    assert AnswerVideo(Answer(frames, np.arange(4) / 2)).images == [] and video.nbytes < 7 * 240 * 330 * 3


def test_a_checkpoint_is_described_by_its_card_and_its_figures(tiny_folder, tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tiny_folder / "model.safetensors")
    size = size_of(tiny_folder)
    assert describe_checkpoint(tmp_path) == f"{tmp_path.name}: {size} parameters. No test of it is stored."
    (tmp_path / "README.md").write_text("---\ntags: [trained-from-scratch]\ndatasets: [me/scenes]\n---\n")
    (tmp_path / "evaluation").mkdir()
    for name, is_simulated, num in (("a", True, 400), ("b", True, 1200), ("c", False, 50)):
        table = {"camera_motion": {"accuracy": 0.934}, "pooled": {"accuracy": 0.9}, "macro": {"accuracy": 0.9}}
        run = {"benchmark": "Clips", "simulated": is_simulated, "probe": "plain", "num_questions": num, "table": table}
        (tmp_path / f"evaluation/{name}.json").write_text(json.dumps(run))
    told = (
        f"{tmp_path.name}: {size} parameters, trained from scratch on me/scenes. Of 1,200 simulated questions it "
        "answered right: camera motion 93%. Of 50 questions of Clips it answered right: camera motion 93%."
    )
    assert describe_checkpoint(tmp_path) == told
    (tmp_path / "evaluation/c.json").unlink()
    assert describe_checkpoint(tmp_path).endswith("camera motion 93%. On real video nothing was measured.")


def size_of(folder: Path) -> str:
    return f"{(folder / 'model.safetensors').stat().st_size / 4e6:.1f} M"  # float32, and a header of some kB


def test_the_mark_of_a_mental_image_is_the_processors():
    assert SAME == OUTPUT_IMAGE


def answered(option, chosen_by, probabilities, reason=None):
    names = {"option": option, "chosen_by": chosen_by, "probabilities": probabilities, "reason": reason}
    return Answer(None, None, answer=["left", "right"][option], **names)


def test_verdict_and_bars_are_explained_by_one_sentence():
    options, reason = ["left", "right"], "'up' is neither an option's letter nor its text"
    for answer, sentence in (
        (answered(0, "words", [0.9, 0.1]), "Its words say so, and of the 2 options this is the likeliest (90%)."),
        (
            answered(0, "words", [0.4, 0.6]),
            "Its words say so (40%). They overrule its scores, by which B. right was likelier (60%).",
        ),
        (
            answered(1, "likelihood", [0.4, 0.6], reason),
            f"Its words name none of the options ({reason}), so this is the likeliest one (60%).",
        ),
        (Answer(None, None, reason="the reply has no answer"), "There is none: the reply has no answer."),
    ):
        assert answer_html.explain_choice(answer, options) == sentence
    assert answer_html.verdict_text(Answer(None, None), []) == "No answer"


def test_what_if_calls_a_text_that_falls_apart_that():
    options, first = ["left", "right"], answered(0, "words", [0.9, 0.1])
    for changed, sentence in (
        (answered(0, "words", [0.6, 0.4]), "The answer stays the same."),
        (answered(1, "words", [0.4, 0.6]), "The answer changes."),
        (
            answered(0, "likelihood", [0.6, 0.4], "?"),
            "The text falls apart: it gives no answer of its own. The likeliest option is the same.",
        ),
        (
            answered(1, "likelihood", [0.4, 0.6], "?"),
            "The text falls apart: it gives no answer of its own. The likeliest option is now B. right.",
        ),
    ):
        assert answer_html.compare_answers(first, changed, options) == sentence
    rates = {"zeros": {"num": 400, "accuracy": 0.5, "low": 0.4, "high": 0.6}}
    shown = answer_html.comparison_html(first, answered(1, "words", [0.4, 0.6]), options, "zeros", rates)
    assert "<td>-50</td>" in shown and "<td>+50</td>" in shown and "Over 400 simulated questions" in shown
