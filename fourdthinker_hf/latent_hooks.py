"""Ready hooks for `generate(latent_hook=...)`: what becomes of an answer if its imagery is not the model's own.

A hook `f(latents (rows, hidden), rows, block, slot) -> latents` is called before latents are fed: `rows` are their
rows in the batch (of beam search: running beams), `block` counts the mental images of a row, `slot` the latents of an
image, from 0. They cut one path, the vector that is fed: the slots still attend to the video, and pass on what they
see.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

LatentHook = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def zeros(latents, rows, block, slot) -> torch.Tensor:
    """Nothing: zero vectors."""
    return torch.zeros_like(latents)


def noise(seeds: Sequence[int]) -> LatentHook:
    """Gaussian noise as long as each latent. That of row r depends on `seeds[r]`, block and slot alone, so it is the
    same in any batch."""

    def hook(latents, rows, block, slot):
        keys = zip(rows.tolist(), block.tolist(), slot.tolist(), strict=True)
        draws = [np.random.default_rng([seeds[r], b, s]).standard_normal(latents.shape[1]) for r, b, s in keys]
        directions = F.normalize(torch.from_numpy(np.stack(draws)), dim=-1).to(latents)
        return directions * latents.norm(dim=-1, keepdim=True)

    return hook


def swap(images: Sequence[Sequence[torch.Tensor]]) -> LatentHook:
    """Another sample's latents: image b of row r becomes `images[r][b]` `(latents, hidden)`, as [`blocks_of`] gives
    them. Where the other sample pictured less, its last image, or last latent, stands in. `ValueError` for a row
    whose sample has no image."""
    if empty := [row for row, blocks in enumerate(images) if not blocks]:
        raise ValueError(f"Rows {empty} have no other mental image to take: give at least one for each row")

    def hook(latents, rows, block, slot):
        taken = []
        for r, b, s in zip(rows.tolist(), block.tolist(), slot.tolist(), strict=True):
            image = images[r][min(b, len(images[r]) - 1)]
            taken.append(image[min(s, len(image) - 1)])
        return torch.stack(taken).to(latents)

    return hook


def pad_row(model) -> LatentHook:
    """The embedding of `<|latent_pad|>`: what a forward without latents would be fed there."""
    row = model.get_input_embeddings().weight[model.config.latent_token_id]
    return lambda latents, rows, block, slot: row.to(latents).expand_as(latents)


def blocks_of(tokens: torch.LongTensor, latents: torch.Tensor, config) -> list[torch.Tensor]:
    """The mental images of one row, each `(latents, hidden)`: `tokens` `(new,)` and `latents` `(new, hidden)` as
    `generate` returns them. One that ended before its first latent is left out."""
    starts = (tokens == config.latent_start_id).nonzero()[:, 0].tolist()
    ends = [*starts, len(tokens)][1:]
    is_pad = tokens == config.latent_token_id
    blocks = [latents[a:b][is_pad[a:b]] for a, b in zip(starts, ends, strict=True)]
    return [block for block in blocks if len(block)]
