"""Hooks feed what they promise, in batches and beams, compared with the loop without a cache."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference_loop import STEPS, TOLERANCE, assert_exact, blocks, generate, prompts

from fourdthinker_hf import FourDThinkerConfig, FourDThinkerForConditionalGeneration, latent_hooks

PLACES = [(0, 0), (0, 8), (1, 2)]


@pytest.fixture(scope="module", params=["none", "rms"])
def model(tiny_folder, request):
    return FourDThinkerForConditionalGeneration.from_pretrained(tiny_folder, latent_scale=request.param).eval()


def test_a_hook_sees_each_latent_once_and_decides_what_is_fed(model, processor):
    inputs, schedule, seen = prompts(processor, [4, 9, 6]), blocks(model, *PLACES), []

    def hook(latents, rows, block, slot):
        seen.extend(zip(rows.tolist(), block.tolist(), slot.tolist(), strict=True))
        return latents * 0.5 + 1 + block[:, None]

    output = generate(model, inputs, schedule, latent_hook=hook)
    assert sorted(seen) == [(row, block, slot) for row, block in ((0, 0), (0, 1), (1, 0)) for slot in range(4)]
    loop = [lambda latent, block, slot: latent * 0.5 + 1 + block] * 3
    assert_exact(model, inputs, output, schedule, hooks=loop)


def test_zeros(model, processor):
    inputs, schedule = prompts(processor, [4, 9]), blocks(model, *PLACES)
    output = generate(model, inputs, schedule, latent_hook=latent_hooks.zeros)
    assert not output.latents.any()
    assert_exact(model, inputs, output, schedule, hooks=[lambda latent, block, slot: torch.zeros_like(latent)] * 2)
    assert (output.logits[9] - generate(model, inputs, schedule).logits[9]).abs().max() > 100 * TOLERANCE


def test_noise_is_as_long_as_the_latent_and_the_same_in_any_batch(model, processor):
    inputs, schedule = prompts(processor, [4, 9]), blocks(model, *PLACES)

    def loop(seed):
        def hook(latent, block, slot):
            draw = torch.from_numpy(np.random.default_rng([seed, block, slot]).standard_normal(len(latent))).float()
            return draw * latent.norm() / draw.norm()

        return hook

    output = generate(model, inputs, schedule, latent_hook=latent_hooks.noise([7, 8]))
    assert_exact(model, inputs, output, schedule, hooks=[loop(7), loop(8)])
    inputs, schedule = prompts(processor, [9], questions=[1]), blocks(model, (0, 2))
    alone = generate(model, inputs, schedule, latent_hook=latent_hooks.noise([8]))
    assert (alone.latents[0] - output.latents[1]).abs().max() < TOLERANCE


def test_swap_feeds_the_other_sample(model, processor):
    """Row 0 has two mental images and its donor one, which replaces both."""
    inputs, schedule = prompts(processor, [4, 9]), blocks(model, *PLACES)
    plain = generate(model, inputs, schedule)
    new = plain.sequences[:, inputs["input_ids"].shape[1] :]
    images = [latent_hooks.blocks_of(t, v, model.config) for t, v in zip(new, plain.latents, strict=True)]
    assert [len(image) for image in images] == [2, 1]
    output = generate(model, inputs, schedule, latent_hook=latent_hooks.swap(images[::-1]))
    for (row, step), (donor, place) in {(0, 1): (1, 3), (0, 9): (1, 3), (1, 3): (0, 1)}.items():
        fed, other = output.latents[row, step : step + 4], plain.latents[donor, place : place + 4]
        assert (fed - other).abs().max() < TOLERANCE
    own = generate(model, inputs, schedule, latent_hook=latent_hooks.swap(images))
    assert (torch.stack(own.logits) - torch.stack(plain.logits)).abs().max() < TOLERANCE
    with pytest.raises(ValueError, match=r"Rows \[1\]"):
        latent_hooks.swap([images[0], []])


def test_pad_row(model, processor):
    inputs, schedule = prompts(processor, [4, 9]), blocks(model, *PLACES)
    output = generate(model, inputs, schedule, latent_hook=latent_hooks.pad_row(model))
    row = model.get_input_embeddings().weight[model.config.latent_token_id].detach()
    assert (output.latents[0, 1:5] - model.model.scale_latents(row)).abs().max() < TOLERANCE
    assert_exact(model, inputs, output, schedule, hooks=[lambda latent, block, slot: row] * 2)


def test_a_hook_on_a_block_that_the_limit_cuts(model, processor):
    inputs = prompts(processor, [4])
    output = generate(model, inputs, blocks(model, (0, 0)), 3, latent_hook=lambda latents, *_: latents * 0 + 1)
    assert torch.equal(output.latents, torch.tensor([0.0, 1, 1])[None, :, None].expand(1, 3, 192))


def test_beams_ask_the_hook_too(model, processor):
    """The prompts end in a block, so one beam and three must feed the same latents with the same hook."""
    inputs = prompts(processor, [4, 9])
    inputs["input_ids"][:, -1] = model.config.latent_start_id

    def hook(latents, rows, block, slot):
        return F.normalize(latents.roll(1, -1) + slot[:, None], dim=-1)

    one, three = (generate(model, inputs, latent_hook=hook, num_beams=n, num_return_sequences=n) for n in (1, 3))
    for row in range(2):
        for beam in range(3):
            assert (three.latents[3 * row + beam, :4] - one.latents[row, :4]).abs().max() < TOLERANCE
    assert one.latents.shape == (2, STEPS, 192) and three.latents[:, :4].norm(dim=-1).min() > 0
    cut = generate(model, inputs, None, 2, latent_hook=hook, num_beams=3)
    assert (cut.latents - one.latents[:, :2]).abs().max() < TOLERANCE


def test_blocks_of_a_row():
    config = FourDThinkerConfig(latent_token_id=0, latent_start_id=1, latent_end_id=2)
    tokens = torch.tensor([5, 1, 0, 0, 2, 6, 1, 2, 1, 0])
    latents = torch.arange(10.0)[:, None]
    assert [block.flatten().tolist() for block in latent_hooks.blocks_of(tokens, latents, config)] == [[2, 3], [9]]
    assert latent_hooks.blocks_of(tokens[:1], latents[:1], config) == []
