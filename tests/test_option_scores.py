"""Scores of options: a reply that is run again has the scores that the model had while it wrote."""

import numpy as np
import pytest
import torch
from conftest import Script

from fourdthinker_hf.batch_inference import answer_batch, batch_inputs, likeliest_option
from fourdthinker_hf.data.records import Record
from fourdthinker_hf.option_scores import _mean_log_likelihoods, encoder_outputs
from fourdthinker_hf.qa import VideoQA

OPTIONS = ["to the left", "to the right", "toward the camera"]


@pytest.mark.parametrize("latents_see_video", [True, False])
def test_the_scores_are_those_of_the_moment_of_writing(model, processor, clip, latents_see_video):
    inputs = batch_inputs(processor, [Record("1", "Where?", "", OPTIONS, video=str(clip))])
    written = "<think>red <|latent_start|> ball</think><answer>to the left</answer><|im_end|>"
    ids = processor.tokenizer(written, add_special_tokens=False)["input_ids"]
    length = inputs["input_ids"].shape[1]
    output = model.generate(
        **inputs,
        max_new_tokens=len(ids) + 5,  # four pads and the end of the block
        do_sample=False,
        logits_processor=[Script(ids, model.config, length)],
        latents_see_video=latents_see_video,
        return_dict_in_generate=True,
        output_logits=True,
    )
    new = output.sequences[0, length:]
    latents = output.latents[0, new == model.config.latent_token_id]
    recorded = torch.stack(output.logits)[:, 0].log_softmax(-1).gather(1, new[:, None])[:, 0]
    grids = inputs["video_grid_thw"]
    features = model.model.get_video_features(inputs["pixel_values_videos"], grids).pooler_output[0].detach()
    video = {"mm_encoder_outputs": encoder_outputs(features, 2)}
    video |= {name: inputs[name].repeat(2, *[1] * (inputs[name].ndim - 1)) for name in ("video_grid_thw",)}
    video["second_per_grid_ts"] = inputs["second_per_grid_ts"].repeat(2)
    head, rest = output.sequences[0, :-4], new[-4:].tolist()
    scores = _mean_log_likelihoods(model, head, [rest, rest[:2]], latents, latents_see_video, video)
    torch.testing.assert_close(scores, torch.stack([recorded[-4:].mean(), recorded[-4:-2].mean()]))
    if not latents_see_video:
        others = _mean_log_likelihoods(model, head, [rest, rest[:2]], latents, True, video)
        assert (scores - others).abs().max() > 1e-5


def test_evaluation_and_a_visitor_get_the_same_option_in_any_batch(tiny_folder, clip):
    qa = VideoQA.from_pretrained(tiny_folder, device="cpu")
    questions = ["Where?", "way it moves it moves", "red"]
    records = [Record(str(i), question, "", OPTIONS, video=str(clip)) for i, question in enumerate(questions)]
    inputs = batch_inputs(qa.processor, records)
    replies = answer_batch(qa.model, qa.processor, inputs, 6)
    for row, (record, reply) in enumerate(zip(records, replies, strict=True)):
        answer = qa.ask(clip, record.question, OPTIONS, max_new_tokens=6)
        assert (answer.text, answer.chosen_by) == (reply.text, "likelihood")
        found = likeliest_option(qa.model, qa.processor, inputs, row, reply, OPTIONS)
        assert found == answer.option == np.argmax(answer.probabilities)
