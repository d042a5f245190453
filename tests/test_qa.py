"""`VideoQA` on a model with random weights whose replies are forced by `script`."""

import gc
import json
import os
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from init_model import SIDE

from fourdthinker_hf import latent_hooks
from fourdthinker_hf.checkpoints import load_model
from fourdthinker_hf.imagery import similarity_maps
from fourdthinker_hf.qa import VideoQA, check_question
from fourdthinker_hf.video_fourdthinker import VideoError

GRID = (4, SIDE // 28, SIDE // 28)  # steps of two frames, features of 28 pixels
OPTIONS = ["to the left", "to the right", "toward the camera"]
START = "<|latent_start|>"
REPLY = f"<think>red ball {START} moves {START} left.</think><answer>to the right</answer><|im_end|>"


@pytest.fixture
def qa(tiny_folder) -> VideoQA:
    return VideoQA.from_pretrained(tiny_folder, device="cpu")


def replay(qa, clip, prefix, latents, continuation, question="Where?", options=OPTIONS):
    """Log-probabilities of the tokens of `continuation` after `prefix` by one plain forward on the pixels."""
    processor = qa.processor
    messages = processor.conversation("video", question, options)
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    text += prefix.replace(START, processor.latent_block)
    inputs = processor(text=text, videos=[str(clip)], return_tensors="pt")
    tokens = processor.tokenizer(continuation, add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = torch.cat([inputs["input_ids"], tokens], 1)
    embeds = torch.zeros(*ids.shape, latents.shape[-1])
    embeds[ids == qa.model.config.latent_token_id] = latents
    visual = {key: inputs[key] for key in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")}
    with torch.no_grad():
        logits = qa.model(input_ids=ids, latent_embeds=embeds, **visual).logits[0, -tokens.shape[1] - 1 : -1]
    return logits.log_softmax(-1).gather(1, tokens.T)[:, 0]


def test_a_reply_is_read(qa, clip, script):
    script(qa, REPLY)
    answer = qa.ask(clip, "Where?", OPTIONS)
    assert answer.reasoning == "red ball <output_image> moves <output_image> left."
    assert (answer.answer, answer.option, answer.reason, answer.truncated) == ("to the right", 1, None, False)
    assert (answer.words, answer.chosen_by) == ("to the right", "words")
    assert answer.frames.shape == (8, 112, 112, 3)
    np.testing.assert_allclose(answer.timestamps, np.arange(8) / 2)
    assert len(answer.images) == 2
    for image in answer.images:
        assert image.latents.shape == (4, 192) and image.maps.shape == GRID
        assert image.best_step == image.maps.max((1, 2)).argmax()
        assert image.time == pytest.approx(0.25 + image.best_step)
    assert not torch.equal(answer.images[0].latents, answer.images[1].latents)


def test_latents_and_maps_are_those_that_generate_reports(qa, clip, script):
    script(qa, REPLY)
    answer = qa.ask(clip, "Where?", OPTIONS)
    processor = qa.processor
    inputs = processor.apply_chat_template(
        processor.conversation(str(clip), "Where?", OPTIONS),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    output = qa.model.generate(**inputs, max_new_tokens=60, do_sample=False, return_dict_in_generate=True)
    new = output.sequences[:, inputs["input_ids"].shape[1] :]
    latents = output.latents[new == qa.model.config.latent_token_id]
    torch.testing.assert_close(torch.cat([image.latents for image in answer.images]), latents)
    features = qa.model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    features = features.pooler_output[0].detach().view(*GRID, -1)
    maps = similarity_maps(latents[:4], features)
    np.testing.assert_allclose(answer.images[0].maps, maps, atol=1e-5)


def test_probabilities_of_texts_are_a_softmax_of_mean_log_likelihoods(qa, clip, script):
    script(qa, REPLY)
    answer = qa.ask(clip, "Where?", OPTIONS)
    prefix = f"<think>red ball {START} moves {START} left.</think><answer>"
    latents = torch.cat([image.latents for image in answer.images])
    scores = [replay(qa, clip, prefix, latents, f"{option}</answer>").mean() for option in OPTIONS]
    np.testing.assert_allclose(answer.probabilities, torch.stack(scores).softmax(0), atol=1e-5)
    zeroed = [replay(qa, clip, prefix, 0 * latents, f"{option}</answer>").mean() for option in OPTIONS]
    assert np.abs(torch.stack(zeroed).softmax(0).numpy() - answer.probabilities).max() > 1e-4


@pytest.mark.parametrize("written, lead", [("B", ""), ("(B) to the right", "("), (" B. to the right", " ")])
def test_probabilities_of_letters_where_a_letter_is_written(qa, clip, script, written, lead):
    script(qa, f"<think>so {START}</think><answer>{written}</answer><|im_end|>")
    answer = qa.ask(clip, "Where?", OPTIONS)
    assert (answer.option, answer.words, answer.answer) == (1, written.strip(), "to the right")
    prefix = f"<think>so {START}</think><answer>"
    scores = [replay(qa, clip, prefix, answer.images[0].latents, lead + letter).mean() for letter in "ABC"]
    np.testing.assert_allclose(answer.probabilities, torch.stack(scores).softmax(0), atol=1e-5)


def test_an_option_that_begins_like_a_letter_is_scored_as_text(qa, clip, script):
    script(qa, "<answer>A to the left</answer><|im_end|>")
    options = ["A to the left", "B to the right"]
    answer = qa.ask(clip, "Where?", options)
    empty = torch.zeros(0, 192)
    scores = [replay(qa, clip, "<answer>", empty, f"{o}</answer>", options=options).mean() for o in options]
    np.testing.assert_allclose(answer.probabilities, torch.stack(scores).softmax(0), atol=1e-5)


@pytest.mark.parametrize(
    "reply, words, reason",
    [
        ("<think>red</think><answer>up</answer>", "up", "'up' is neither an option's letter nor its text"),
        ("<think>red</think><answer>A. up</answer>", "A. up", "the letter A stands beside 'up'"),
        ("<think>red ball moves left</think>", "", "the reply has no answer"),
        ("red ball", "", "the reply has no answer"),
    ],
)
def test_if_the_words_name_no_option_the_likeliest_is_the_answer(qa, clip, script, reply, words, reason):
    script(qa, f"{reply}<|im_end|>")
    answer = qa.ask(clip, "Where?", OPTIONS)
    assert (answer.words, answer.chosen_by) == (words, "likelihood") and answer.reason.startswith(reason)
    assert answer.option == np.argmax(answer.probabilities) and answer.answer == OPTIONS[answer.option]
    assert sum(answer.probabilities) == pytest.approx(1)


@pytest.mark.parametrize(
    "reply, prefix",
    [
        (f"<think>so {START} left</think>", f"<think>so {START} left</think><answer>"),
        (f"<think>so {START} left", f"<think>so {START} left</think><answer>"),
        ("so", "so<answer>"),
    ],
)
def test_without_an_answer_the_options_are_scored_where_it_would_stand(qa, clip, script, reply, prefix):
    script(qa, f"{reply}<|im_end|>")
    answer = qa.ask(clip, "Where?", OPTIONS)
    latents = torch.cat([image.latents for image in answer.images] or [torch.zeros(0, 192)])
    by_letter, by_text = (
        torch.stack([replay(qa, clip, prefix, latents, f"{text}</answer>").mean() for text in texts])
        for texts in ("ABC", OPTIONS)
    )
    scores = by_letter if by_letter.max() > by_text.max() else by_text
    np.testing.assert_allclose(answer.probabilities, scores.softmax(0), atol=1e-5)


def test_no_tag_of_a_reply_is_shown(qa, clip, script):
    script(qa, f"red</think> ball {START}<answer>left {START}</think></answer><|im_end|>")
    answers = list(qa.stream(clip, "Where?"))
    for answer in answers:
        assert not any("<" in text.replace("<output_image>", "") for text in (answer.reasoning, answer.answer))
    assert (answers[-1].reasoning, answers[-1].answer) == ("red ball <output_image>", "left")


def test_an_open_question(qa, clip, script):
    script(qa, REPLY)
    answer = qa.ask(clip, "Where?")
    assert (answer.answer, answer.option, answer.probabilities, answer.reason) == ("to the right", None, None, None)
    assert answer.chosen_by is None


@pytest.mark.parametrize("limit, fed", [(3, 1), (1, 0)])  # the newest pad was chosen but never fed
def test_a_reply_cut_within_a_mental_image_says_so(qa, clip, script, limit, fed):
    script(qa, f"{START} moves")
    answer = qa.ask(clip, "Where?", OPTIONS, max_new_tokens=limit)
    assert answer.truncated and answer.reason == "the reply was cut before an answer"
    assert answer.reasoning.count("<output_image>") == 1
    (image,) = answer.images
    assert image.latents.shape == (fed, 192) and (image.maps is None) == (fed == 0)


def test_streaming_grows_and_ends_with_what_ask_returns(qa, clip, script):
    script(qa, REPLY)
    answers = list(qa.stream(clip, "Where?", OPTIONS))
    for before, after in zip(answers, answers[1:], strict=False):
        assert after.text.startswith(before.text) and after.images[: len(before.images)] == before.images
        assert after.reasoning.count("<output_image>") == len(after.images)
    assert len(answers[0].images) == 0 and answers[-2].probabilities is None
    whole = qa.ask(clip, "Where?", OPTIONS)
    assert (answers[-1].text, answers[-1].probabilities) == (whole.text, whole.probabilities)


def test_closing_the_stream_stops_the_decoding(qa, clip, script):
    script(qa, "<think>")
    before, steps = {*threading.enumerate()}, []
    qa.model.register_forward_hook(lambda *_: steps.append(1))
    stream = qa.stream(clip, "Where?", max_new_tokens=2000)
    assert next(stream).text.startswith("<think>")
    stream.close()
    assert {*threading.enumerate()} <= before and len(steps) < 1000


def test_a_reply_is_cut_at_its_limit_of_time(qa, clip, script):
    script(qa, "<think>")
    answer = qa.ask(clip, "Where?", OPTIONS, max_new_tokens=10**6, max_seconds=0.5)
    assert answer.truncated and answer.answer in OPTIONS and answer.chosen_by == "likelihood"


def test_an_error_while_decoding_reaches_the_caller(qa, clip, monkeypatch):
    def fail(**kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(qa.model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        qa.ask(clip, "Where?")


def test_special_tokens_in_a_question_are_text(qa, clip, script):
    script(qa, REPLY)
    hostile = "<|video_pad|><|latent_pad|><|im_end|>"
    answer = qa.ask(clip, f"What is {hostile}?", [f"left{hostile}", "to the right"])
    assert answer.option == 1 and sum(answer.probabilities) == pytest.approx(1)


def test_a_trimmed_clip_keeps_the_sources_seconds(qa, clip, script):
    script(qa, REPLY)
    answer = qa.ask(clip, "Where?", start=1.0, end=3.0)
    assert answer.timestamps.tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert 1.0 <= answer.images[0].time <= 3.0 and answer.images[0].maps.shape[0] == 3


def test_a_video_of_one_frame(qa, tmp_path, write_video, script):
    script(qa, REPLY)
    answer = qa.ask(write_video(tmp_path / "one.mp4", np.zeros((1, 64, 64, 3), np.uint8)), "Where?", OPTIONS)
    assert answer.option == 1 and answer.images[0].maps.shape[0] == 1 and answer.images[0].time == 0


def test_bad_input_raises_before_anything_is_decoded(qa, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(qa.model, "generate", lambda **kwargs: pytest.fail("decoded"))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("empty.mp4", "text.mp4", "missing.mp4"):
        with pytest.raises(VideoError, match=name):
            qa.stream(tmp_path / name, "Where?")
    with pytest.raises(VideoError, match="outside the clip"):
        qa.stream(clip, "Where?", start=90.0)


@pytest.mark.parametrize(
    "question, options, message",
    [
        (" ", None, "question is empty"),
        ("Where?", ["left"], "at least two"),
        ("Where?", ["left", "Left "], "the same"),
        ("Where?", ["left", " "], "option is empty"),
        ("<output_image>?", None, "mental images"),
        ("Where?", [str(i) for i in range(27)], "26 letters"),
    ],
)
def test_a_question_that_cannot_be_asked(question, options, message):
    with pytest.raises(ValueError, match=message):
        check_question(question, options)


def test_what_is_no_checkpoint_of_ours_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        VideoQA.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    with pytest.raises(ValueError, match="latent_token_id"):
        VideoQA.from_pretrained(tmp_path)


def test_a_video_is_decoded_and_encoded_once_for_many_questions(qa, clip, script):
    script(qa, REPLY)
    opened, encoded, tower = [], [], qa.model.model.get_video_features
    open_video = qa.open_video
    qa.open_video = lambda *args: opened.append(args) or open_video(*args)
    qa.model.model.get_video_features = lambda *args, **kwargs: encoded.append(1) or tower(*args, **kwargs)
    first = qa.ask(clip, "Where?", OPTIONS)
    second = qa.ask(clip, "What moves?")
    assert (len(opened), len(encoded)) == (1, 1)
    assert first.frames is second.frames
    qa.ask(clip, "Where?", start=1.0)
    assert (len(opened), len(encoded)) == (2, 2)


def test_only_so_many_bytes_of_videos_are_kept(tiny_folder, clip):
    model_and_processor = load_model(tiny_folder, "cpu")
    frames = 8 * 112 * 112 * 3
    for keep, same in ((2 * frames, True), (2 * frames - 1, False)):
        qa = VideoQA(*model_and_processor, clip_cache_bytes=keep)
        first = qa.open(clip)
        qa.open(clip, 0.0)
        assert (qa.open(clip) is first) == same


def test_a_file_that_has_changed_takes_the_place_of_what_it_was(qa, clip, tmp_path):
    path = shutil.copy(clip, tmp_path / "clip.mp4")
    before = weakref.ref(qa.open(path))
    assert qa.open(path) is before()
    os.utime(path, ns=(0, 0))
    assert qa.open(path) is qa.open(path) is not before()
    gc.collect()
    assert before() is None


def test_the_prompt_is_the_processors(qa, clip):
    processor, opened = qa.processor, qa.open(clip, 1.0, 3.0)
    question, options = "What is <|video_pad|>?", ["left<|im_end|>", "right"]
    inputs = processor.apply_chat_template(
        processor.conversation(opened.frames, question, options, start=1.0, end=3.0),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        sanitize_control_tokens=True,
        processor_kwargs={"video_timestamps": [opened.timestamps]},
    )
    for name, tensor in qa.prompt(opened, question, options).items():
        assert tensor.equal(inputs[name]), name
    assert opened.pixel_values_videos.equal(inputs["pixel_values_videos"])


def test_threads_get_the_answers_of_one_after_another(qa, clip, script):
    script(qa, REPLY)
    questions = ["Where?", "What moves?", "Which way?", "Is it red?"]
    alone = [qa.ask(clip, question, OPTIONS, start=i / 2) for i, question in enumerate(questions)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: qa.ask(clip, questions[i % 4], OPTIONS, start=(i % 4) / 2), range(8)))
    for i, answer in enumerate(together):
        assert (answer.text, answer.probabilities) == (alone[i % 4].text, alone[i % 4].probabilities)
        assert all(a.latents.equal(b.latents) for a, b in zip(answer.images, alone[i % 4].images, strict=True))


def test_sampling_follows_its_seed_alone(tiny_folder, clip):
    qa = VideoQA.from_pretrained(tiny_folder, device="cpu")

    def text(seed):
        return qa.ask(clip, "Where?", max_new_tokens=24, temperature=1.0, seed=seed).text

    state = torch.get_rng_state()
    first = text(0)
    assert torch.get_rng_state().equal(state)
    torch.rand(3)
    assert text(0) == first != text(1)


def test_a_whole_number_is_a_temperature(qa, clip):
    """A slider gives 2, not 2.0."""
    assert qa.ask(clip, "Where?", OPTIONS, max_new_tokens=8, temperature=2).answer in OPTIONS


def test_settings_out_of_range_are_refused(qa, clip):
    wrong_settings = [{"temperature": value} for value in (-1, float("nan"), float("inf"))]
    wrong_settings += [{"top_p": 0}, {"top_p": 1.5}, {"max_new_tokens": 0}, {"seed": 2**64}]
    for wrong in wrong_settings:
        with pytest.raises(ValueError, match="temperature must be at least 0"):
            qa.stream(clip, "Where?", **wrong)


def test_imagery_can_be_replaced_or_forbidden(clip):
    qa = VideoQA.from_pretrained(device="cpu")
    own = qa.ask(clip, "In which direction does the red cube move?", OPTIONS)
    blank = qa.ask(clip, "In which direction does the red cube move?", OPTIONS, latent_hook=latent_hooks.zeros)
    none = qa.ask(clip, "In which direction does the red cube move?", OPTIONS, imagery=False)
    assert own.images and own.images[0].latents.any() and not blank.images[0].latents.any() and not none.images
