"""The target frames of records with their latents, to train the imagery decoder on."""

import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..configuration_fourdthinker import FourDThinkerConfig
from ..data.records import RecordError, RecordFiles, open_image
from ..modeling_fourdthinker import compress_features
from .feature_store import FeatureStore

logger = logging.getLogger(__name__)


class TargetFrames(torch.utils.data.Dataset):
    """Each target frame of `records` once: `latents` `(latent_size, hidden)` float32, as the frozen vision tower gives
    them, and `pictures` `(size, size, 3)` uint8 RGB, the frame scaled to a square.

    `store` must have been filled with the records. With `skip_bad` a record that cannot be read and a frame without
    features are left out and counted in `num_skipped`. Raises `RecordError` for a bad record without `skip_bad`, and
    if no target frame is left.
    """

    def __init__(
        self, records: RecordFiles, store: FeatureStore, config: FourDThinkerConfig, size: int, skip_bad: bool = False
    ):
        self.store, self.config, self.size = store, config, size
        self.num_skipped, images = 0, {}
        for number in range(len(records)):
            try:
                images |= dict.fromkeys(records[number].imagery or ())
            except (ValueError, OSError) as error:
                if not skip_bad:
                    raise
                self.num_skipped += 1
                logger.warning("This record is left out: %s", error)
        self.images = [image for image in images if not skip_bad or store.has_frame(image)]
        self.num_skipped += len(images) - len(self.images)
        if not self.images:
            raise RecordError(f"no record in {', '.join(map(str, records.paths))} has a target frame in `imagery`")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = self.images[index]
        return {"latents": frame_latents(self.store, self.config, image), "pictures": square(image, self.size)}


def frame_latents(store: FeatureStore, config: FourDThinkerConfig, image: str | Path) -> torch.Tensor:
    """The latents `(latent_size, hidden)` of a target frame whose features are stored."""
    encoded = store.frame(image)
    merge = config.vision_config.spatial_merge_size
    t, h, w = encoded.grid.tolist()
    grid = (t, h // merge, w // merge)
    return compress_features(encoded.features.float(), grid, config.latent_size, config.compress_strategy)


def square(image, size: int) -> torch.Tensor:
    """An image, as a record gives it, scaled to `(size, size, 3)` uint8 RGB."""
    picture = Image.fromarray(open_image(image)).resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(picture).copy())
