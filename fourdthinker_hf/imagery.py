"""Maps of what a mental image resembles: for each place in the video, how much it is like the latents.

A map holds the cosine between a latent and the video's features, after both are scaled to unit length (the training
compares directions only, so lengths mean nothing) and centred. Without centring every cosine is near 1, because most
of a direction is common to all vectors. Features are centred by their mean over the clip, latents by their mean over
the training (`config.latent_mean`), which also removes what all target frames share and videos lack. After centring,
a latent that holds only background is short; in the map of a whole mental image, latents count by squared length.

Whether the maps of a checkpoint point at anything has to be measured: `fourdthinker maps` does it.
"""

import numpy as np
import torch
import torch.nn.functional as F


def video_features(model, inputs) -> list[torch.Tensor]:
    """The vision tower's features of each video in processed `inputs`, `(T, h, w, hidden)`, without gradient. Each of
    the T temporal steps covers `temporal_patch_size` frames."""
    grids = inputs["video_grid_thw"]
    with torch.no_grad():
        output = model.model.get_video_features(inputs["pixel_values_videos"], grids, return_dict=True)
    merge = model.config.vision_config.spatial_merge_size
    sizes = [(t, h // merge, w // merge) for t, h, w in grids.tolist()]
    return [video.view(*size, -1) for video, size in zip(output.pooler_output, sizes, strict=True)]


def slot_maps(
    latents: torch.Tensor, features: torch.Tensor, latent_mean: list[float] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The map of each latent of `(num, hidden)` over `features` `(T, h, w, hidden)`: centred cosines `(num, T, h, w)`
    float32 in [-1, 1]; and the weight of each latent `(num,)`, which sum to 1 unless all are 0.

    `latent_mean` is the checkpoint's `config.latent_mean`. Without it, latents are centred by the features' mean.
    Raises `ValueError` for shapes that do not fit.
    """
    if latents.ndim != 2 or features.ndim != 4 or latents.shape[-1] != features.shape[-1]:
        raise ValueError(
            f"latents must be (num, hidden) and features (T, h, w, hidden), "
            f"got {tuple(latents.shape)} and {tuple(features.shape)}"
        )
    features, latents = _normalize(features.float()), _normalize(latents.to(features.device, torch.float32))
    feature_mean = features.mean((0, 1, 2))
    centred = latents - (feature_mean if latent_mean is None else latents.new_tensor(latent_mean))
    weights = centred.square().sum(-1)
    maps = torch.einsum("nc,thwc->nthw", _normalize(centred), _normalize(features - feature_mean))
    return maps, weights / weights.sum().clamp(min=1e-12)


def _normalize(vectors: torch.Tensor) -> torch.Tensor:
    return F.normalize(vectors, dim=-1, eps=1e-5)


def similarity_maps(
    latents: torch.Tensor, features: torch.Tensor, latent_mean: list[float] | None = None
) -> torch.Tensor:
    """The map of one mental image, `(T, h, w)` float32 in [-1, 1]: the weighted mean of its [`slot_maps`]. Arguments
    and errors as there."""
    if len(latents) == 0:
        raise ValueError("A mental image without latents has no map")
    maps, weights = slot_maps(latents, features, latent_mean)
    return torch.einsum("n,nthw->thw", weights, maps)


def best_step(maps) -> int:
    """The temporal step of `maps` `(T, h, w)` that holds the highest similarity."""
    return int(np.asarray(maps).max((1, 2)).argmax())
