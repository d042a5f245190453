"""Each probe cuts the path that it names and no other."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference_loop import TOLERANCE, blocks, generate, prompts
from transformers import SequenceBiasLogitsProcessor

from fourdthinker_hf import FourDThinkerProcessor, latent_hooks
from fourdthinker_hf.data.records import Record
from fourdthinker_hf.evaluation.probes import PROBES

RECORDS = [Record(name, "where", "left") for name in ("one", "two")]
STARTS = [(0, 2), (1, 5)]  # (row, step) at which a block begins


@pytest.fixture(scope="module")
def inputs(tiny_folder):
    return prompts(FourDThinkerProcessor.from_pretrained(tiny_folder), [4, 9])


def clip(count):
    return np.arange(count, dtype=np.uint8)[:, None, None, None] + np.zeros((count, 2, 3, 3), np.uint8)


def run(model, inputs, name, next_images=None):
    kwargs = PROBES[name].generate_kwargs(model, RECORDS, next_images)
    return generate(model, inputs, blocks(model, *STARTS), **kwargs)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("plain", [0, 1, 2]), ("grey-video", [128] * 3), ("first-frame", [0, 0, 0]), ("reversed", [2, 1, 0])],
)
def test_what_the_model_sees(name, expected):
    frames = clip(3)
    assert PROBES[name].change_video(frames, np.arange(3)).shape == frames.shape
    assert PROBES[name].change_video(frames, np.arange(3))[:, 0, 0, 0].tolist() == expected
    assert PROBES["no-video"].change_video(frames, np.arange(3)) is None


@given(st.integers(1, 64))
def test_shuffling_leaves_no_frame_in_its_place_and_loses_none(count):
    shuffled = PROBES["shuffled"].change_video(clip(count), np.arange(count))[:, 0, 0, 0]
    assert sorted(shuffled.tolist()) == list(range(count))
    assert count == 1 or (shuffled != np.arange(count)).all()


def test_only_probes_of_the_video_touch_it_and_only_those_of_imagery_touch_decoding(model, inputs):
    frames = clip(5)
    seen = {
        name for name, probe in PROBES.items() if not np.array_equal(probe.change_video(frames, np.arange(5)), frames)
    }
    assert seen == {"no-video", "grey-video", "first-frame", "reversed", "shuffled"}
    changed = {name for name, probe in PROBES.items() if probe.generate_kwargs(model, RECORDS, [[], []])}
    assert changed == PROBES.keys() - seen - {"plain"}


def test_suppressed_opens_no_block(model, inputs):
    """The model is made to begin a mental image at every token."""
    likely = SequenceBiasLogitsProcessor([[[model.config.latent_start_id], 99.0]])
    opened = []
    for name in ("plain", "suppressed"):
        kwargs = PROBES[name].generate_kwargs(model, RECORDS, None)
        output = generate(model, inputs, logits_processor=[likely], **kwargs)
        opened.append(int((output.sequences == model.config.latent_start_id).sum()))
    assert opened[0] > 2 and opened[1] == 0


@pytest.mark.parametrize("prefix", ["", "blind-"])
def test_probes_feed_other_vectors(model, inputs, prefix):
    plain = run(model, inputs, "blind" if prefix else "plain")
    zeros = run(model, inputs, f"{prefix}zeros")
    assert not zeros.latents.any()
    assert (zeros.logits[8] - plain.logits[8]).abs().max() > 100 * TOLERANCE
    noise = run(model, inputs, f"{prefix}noise")
    own, other = plain.latents[0, 3], noise.latents[0, 3]  # before this one, no probe has changed anything
    assert abs(other.norm() - own.norm()) < TOLERANCE and torch.cosine_similarity(own, other, dim=0).abs() < 0.5
    row = model.get_input_embeddings().weight[model.config.latent_token_id]
    assert (run(model, inputs, f"{prefix}pad-row").latents[1, 6:10] - model.model.scale_latents(row)).abs().max() == 0


def test_blind_probes_cut_the_latents_attention_too(model, inputs):
    """The same vectors are fed, so the attention to the video is the only difference."""
    seeing, blind = run(model, inputs, "zeros"), run(model, inputs, "blind-zeros")
    assert torch.equal(seeing.logits[3][0], blind.logits[3][0])
    assert (seeing.logits[8][0] - blind.logits[8][0]).abs().max() > 100 * TOLERANCE


def test_swap_feeds_the_next_images_and_a_row_without_any_keeps_its_own(model, inputs):
    plain = run(model, inputs, "plain")
    image = torch.randn(4, 192, generator=torch.Generator().manual_seed(0))
    output = run(model, inputs, "swap", [[], [image]])
    assert (output.latents[0, 3:7] - plain.latents[0, 3:7]).abs().max() < TOLERANCE
    assert (output.latents[1, 6:10] - model.model.scale_latents(image)).abs().max() < TOLERANCE
    assert PROBES["swap"].needs_next_images and PROBES["blind-swap"].needs_next_images
    assert latent_hooks.blocks_of(output.sequences[1, -16:], output.latents[1], model.config)[0].shape == image.shape


def test_each_probe_says_which_path_it_cuts():
    assert all(probe.cuts for probe in PROBES.values())
    assert len({probe.cuts for probe in PROBES.values()}) == len(PROBES) == 16
