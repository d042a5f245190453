"""What a latent pictures: where, and when, the video resembles it.

A map is the cosine of a latent and the video's features after taking from both what says nothing about the place. The
loss compares directions only, so lengths mean nothing and both are brought to unit length. Much of a direction is
common to all (uncentred, every cosine is near 1), so features are centred by their mean over the clip and latents by
theirs over the training (`config.latent_mean`), which also takes away what tells any target frame from any video. A
slot that holds nothing but background is left near zero by this, so slots count by their squared length.
Whether such maps point at anything is a property of the checkpoint: `fourdthinker maps` tests it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

# Dark violet, magenta, orange, pale yellow: brightness rises with similarity, so the map also reads without colour.
HEAT = np.array([[20, 11, 52], [120, 28, 109], [207, 68, 70], [251, 155, 6], [252, 255, 164]], dtype=np.float32)
OPACITY = 0.75


def video_features(model, inputs) -> list[torch.Tensor]:
    """Merged features of each video in processed `inputs`, `(T, h, w, hidden)`; a step of T covers
    `temporal_patch_size` (2) frames. Without gradient."""
    grids = inputs["video_grid_thw"]
    with torch.no_grad():
        output = model.model.get_video_features(inputs["pixel_values_videos"], grids, return_dict=True)
    merge = model.config.vision_config.spatial_merge_size
    sizes = [(t, h // merge, w // merge) for t, h, w in grids.tolist()]
    return [video.view(*size, -1) for video, size in zip(output.pooler_output, sizes, strict=True)]


def slot_maps(
    latents: torch.Tensor, features: torch.Tensor, latent_mean: list[float] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Centred cosine of each latent `(num, hidden)` with each feature `(T, h, w, hidden)`: `(num, T, h, w)` float32 in
    [-1, 1], and how much each slot counts, `(num,)`, of sum 1 unless all are 0.

    `latent_mean` is the checkpoint's `config.latent_mean`; one that has none gets the clip's centre for its latents.
    Raises ValueError for sizes that do not fit.
    """
    if latents.ndim != 2 or features.ndim != 4 or latents.shape[-1] != features.shape[-1]:
        raise ValueError(
            f"latents must be (num, hidden) and features (T, h, w, hidden), "
            f"got {tuple(latents.shape)} and {tuple(features.shape)}"
        )
    features, latents = _unit(features.float()), _unit(latents.to(features.device, torch.float32))
    centre = features.mean((0, 1, 2))
    rest = latents - (centre if latent_mean is None else latents.new_tensor(latent_mean))
    weights = rest.square().sum(-1)
    maps = torch.einsum("nc,thwc->nthw", _unit(rest), _unit(features - centre))
    return maps, weights / weights.sum().clamp(min=1e-12)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return F.normalize(vectors, dim=-1, eps=1e-5)


def similarity_maps(
    latents: torch.Tensor, features: torch.Tensor, latent_mean: list[float] | None = None
) -> torch.Tensor:
    """The map of one mental image, `(T, h, w)` float32 in [-1, 1]: the weighted mean of [`slot_maps`]."""
    if len(latents) == 0:
        raise ValueError("A mental image without latents has no map")
    maps, weights = slot_maps(latents, features, latent_mean)
    return torch.einsum("n,nthw->thw", weights, maps)


def best_frame(maps) -> int:
    """The temporal step of `maps` `(T, h, w)` that holds the highest similarity."""
    return int(np.asarray(maps).max((1, 2)).argmax())


def overlay(frame: np.ndarray, similarity: np.ndarray, high: float = 1.0) -> np.ndarray:
    """Lay a map `(h, w)` as heat over a frame `(H, W, 3)` uint8: clear at 0 and below, opaque and bright at `high`."""
    height, width = frame.shape[:2]
    grid = Image.fromarray(np.asarray(similarity, dtype=np.float32))
    heat = np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC)) / max(high, 1e-6)
    heat = heat.clip(0, 1)
    colour = np.stack([np.interp(heat * (len(HEAT) - 1), range(len(HEAT)), channel) for channel in HEAT.T], -1)
    opacity = OPACITY * heat[..., None]
    return ((1 - opacity) * frame + opacity * colour).round().astype(np.uint8)
