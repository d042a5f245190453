"""Hooks for `generate(latent_hook=...)` that replace the model's latents, and a function to read its own.

A hook `f(latents (rows, hidden), rows, block, slot) -> latents` is called before latents are fed: `rows` are their
rows in the batch (in beam search the running beams), `block` counts the mental images of a row, `slot` the latents of
an image, both from 0. A hook changes only the vectors that are fed: their positions still attend to the video and
pass on what they see there.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

LatentHook = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def zeros(latents, rows, block, slot) -> torch.Tensor:
    """Feeds zero vectors."""
    return torch.zeros_like(latents)


def noise(seeds: Sequence[int]) -> LatentHook:
    """Feeds Gaussian noise of the length of each latent. The noise of a row depends on the row's seed, the block and
    the slot alone, so it is the same in any batch."""

    def hook(latents, rows, block, slot):
        draws = [
            np.random.default_rng([seeds[row], image, place]).standard_normal(latents.shape[1])
            for row, image, place in zip(rows.tolist(), block.tolist(), slot.tolist(), strict=True)
        ]
        directions = F.normalize(torch.from_numpy(np.stack(draws)), dim=-1).to(latents)
        return directions * latents.norm(dim=-1, keepdim=True)

    return hook


def swap(images: Sequence[Sequence[torch.Tensor]]) -> LatentHook:
    """Feeds another sample's latents: block b of row r becomes `images[r][b]` `(latents, hidden)`, as [`blocks_of`]
    returns them. Where the other sample has fewer images or latents, its last one is used again. Raises `ValueError`
    for a row whose other sample has no image."""
    if empty := [row for row, blocks in enumerate(images) if not blocks]:
        raise ValueError(f"Rows {empty} have no other mental image to take: give at least one for each row")

    def hook(latents, rows, block, slot):
        replacements = []
        for row, number, place in zip(rows.tolist(), block.tolist(), slot.tolist(), strict=True):
            image = images[row][min(number, len(images[row]) - 1)]
            replacements.append(image[min(place, len(image) - 1)])
        return torch.stack(replacements).to(latents)

    return hook


def pad_row(model) -> LatentHook:
    """Feeds the embedding of `<|latent_pad|>`, which a model without latents would be fed there."""
    row = model.get_input_embeddings().weight[model.config.latent_token_id]
    return lambda latents, rows, block, slot: row.to(latents).expand_as(latents)


def blocks_of(tokens: torch.LongTensor, latents: torch.Tensor, config) -> list[torch.Tensor]:
    """The mental images of one row, each `(latents, hidden)`, from its `tokens` `(new_tokens,)` and its `latents`
    `(new_tokens, hidden)` as `generate` returns them. An image that ended before its first latent is left out."""
    starts = (tokens == config.latent_start_id).nonzero()[:, 0].tolist()
    is_pad = tokens == config.latent_token_id
    blocks = [latents[i:j][is_pad[i:j]] for i, j in pairwise([*starts, len(tokens)])]
    return [block for block in blocks if len(block)]
