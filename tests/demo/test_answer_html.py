"""Answers as HTML, on answers that are made up and on one of random weights."""

import re

import numpy as np
import pytest
import torch
from conftest import TEXTS
from init_model import make_config, make_processor, make_tokenizer

from fourdthinker_hf import FourDThinkerForConditionalGeneration
from fourdthinker_hf.demo import answer_html
from fourdthinker_hf.qa import Answer, MentalImage, VideoQA


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
    assert f"data-start='0.0' data-end='{len(starts) * patch / 2}'" in timeline
    spans = re.findall(r"Overlay at ([\d.]+)&ndash;([\d.]+) s", answer_html.reasoning_html(answer, []))
    expected = [(start / 2, min(start + patch - 1, 6) / 2) for start in starts]
    assert [(float(start), float(end)) for start, end in spans] == expected
    panel = answer_html.mental_images_html(answer, [])
    assert panel.count("What is alike at") == len(starts)


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
    shown += answer_html.downloads_html(answer, hostile, [hostile, "b"]) + answer_html.comparison_html(
        "", answer, [hostile, "b"], "x", True
    )
    assert "<img" not in shown and "'\"" not in shown.replace("&#x27;&quot;", "")


def test_the_verdict_says_why_no_option_was_chosen():
    nothing = Answer(None, None, answer="up", reason="'up' is neither an option's letter nor its text")
    assert (
        answer_html.verdict_text(nothing, ["left", "right"]) == "up ('up' is neither an option's letter nor its text)"
    )
