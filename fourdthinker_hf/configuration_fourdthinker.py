"""Configuration of 4DThinker: that of Qwen2.5-VL, plus the settings of mental images, named as in the published
checkpoints."""

import warnings

from transformers import Qwen2_5_VLConfig
from transformers.utils.versions import require_version

# The versions that this code is tested with, as in requirements.txt. Older versions lack functions that are used here
# or give text after a video other positions, so they are refused. Newer versions may rename something, as transformers
# 5.24 renamed the cache, so they get a warning.
TESTED = ("transformers>=5.23,<5.25", "torch>=2.11,<2.16")
for requirement in TESTED:
    require_version(requirement.partition(",")[0], f"4DThinker is tested with {' and '.join(TESTED)}.")
    try:
        require_version(requirement)
    except ImportError as error:
        warnings.warn(f"4DThinker was not tested with this version: {error}", stacklevel=2)


class FourDThinkerConfig(Qwen2_5_VLConfig):
    r"""
    Args (beyond those of [`Qwen2_5_VLConfig`]):
        latent_size (`int`, defaults to 4): number of latent vectors in one mental image.
        latent_token_id, latent_start_id, latent_end_id (`int`): ids of `<|latent_pad|>`, `<|latent_start|>`,
            `<|latent_end|>`. The defaults are those of the published checkpoints on the Qwen2.5 tokenizer.
        compress_strategy (`str`, defaults to `"average"`): how the features of a target frame become `latent_size`
            vectors. `"average"`: means of contiguous groups in raster order (the published way); `"grid"`: means
            over the cells of a spatial grid, which keeps left and right apart.
        latent_early_end (`bool`, defaults to `False`): whether the model may end a mental image before it has
            `latent_size` vectors. Published checkpoints were decoded with `True`.
        latent_scale (`str`, defaults to `"none"`): rescaling of each latent before it is fed. `"rms"` gives it unit
            root mean square, so that a decoded latent is as long as the target it was trained on.
        forget_video (`bool`, defaults to `False`): whether the video is removed from the prompt after the first mental
            images, so that the rest is written from these alone. For checkpoints that were trained this way.
        latent_mean (`list[float]`, *optional*): mean of the unit-length latents of training, `hidden_size` numbers.
            Decoding never uses it. Maps of what a latent resembles subtract it from the latent.

    Raises `ValueError` for a value that is not allowed.
    """

    model_type = "fourdthinker"

    latent_size: int = 4
    latent_token_id: int = 151665
    latent_start_id: int = 151666
    latent_end_id: int = 151667
    compress_strategy: str = "average"
    latent_early_end: bool = False
    latent_scale: str = "none"
    forget_video: bool = False
    latent_mean: list[float] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.latent_size < 1:
            raise ValueError(f"latent_size must be at least 1, got {self.latent_size}")
        if self.compress_strategy not in ("average", "grid"):
            raise ValueError(f"compress_strategy must be 'average' or 'grid', got {self.compress_strategy!r}")
        if self.latent_scale not in ("none", "rms"):
            raise ValueError(f"latent_scale must be 'none' or 'rms', got {self.latent_scale!r}")
        # `register_for_auto_class` writes only one key, but every checkpoint needs all of them, whoever saves it.
        model_class = "modeling_fourdthinker.FourDThinkerForConditionalGeneration"
        self.auto_map = {
            "AutoConfig": "configuration_fourdthinker.FourDThinkerConfig",
            "AutoModel": model_class,
            "AutoModelForImageTextToText": model_class,
            "AutoModelForMultimodalLM": model_class,
        }

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers. Raises `ValueError` for the config of another model: from that of a published 4DThinker
        or of its base the settings of mental images would be wrong, with no more than a line in the log."""
        settings, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if settings.get("model_type", cls.model_type) != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path}: config.json has model_type {settings['model_type']!r}, and only "
                f"{cls.model_type!r} can be loaded here; `fourdthinker convert {pretrained_model_name_or_path} DEST` "
                "makes it of a published 4DThinker or of a Qwen2.5-VL"
            )
        return settings, kwargs


FourDThinkerConfig.register_for_auto_class()

__all__ = ["FourDThinkerConfig"]
