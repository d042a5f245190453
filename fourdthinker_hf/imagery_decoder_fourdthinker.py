"""Draws what a mental image shows: a decoder from its latents to a picture.

    decoder = AutoModel.from_pretrained(checkpoint, subfolder="imagery_decoder", trust_remote_code=True)
    picture = decoder.draw(latents)[0]

The decoder sees the latents of one mental image and nothing else, so whatever the picture shows is in the latents.
train/decoder.py trains it on target frames, for a frozen vision tower.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


class FourDThinkerImageryDecoderConfig(PreTrainedConfig):
    r"""
    Args:
        latent_size (`int`, defaults to 4): number of latents in a mental image.
        latent_dim (`int`, defaults to 192): their width, the `hidden_size` of the checkpoint's language model.
        picture_size (`int`, defaults to 56): height and width of a picture in pixels.
        patch_size (`int`, defaults to 7): side of the squares that a picture is made of, a divisor of `picture_size`.
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads (`int`): of the decoder's transformer.

    Raises `ValueError` if the patches do not fill the picture.
    """

    model_type = "fourdthinker_imagery_decoder"

    latent_size: int = 4
    latent_dim: int = 192
    picture_size: int = 56
    patch_size: int = 7
    hidden_size: int = 128
    intermediate_size: int = 512
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.picture_size % self.patch_size:
            raise ValueError(
                f"patch_size must divide picture_size, got patch_size={self.patch_size} and "
                f"picture_size={self.picture_size}"
            )
        name = "imagery_decoder_fourdthinker.FourDThinkerImageryDecoder"
        self.auto_map = {"AutoConfig": f"{name}Config", "AutoModel": name}


@dataclass
class ImageryDecoderOutput(ModelOutput):
    """`pictures` `(batch, picture_size, picture_size, 3)` float, RGB, 0 to 1 but not clipped. `loss` is their mean
    squared error, if the true pictures were given."""

    loss: torch.FloatTensor | None = None
    pictures: torch.FloatTensor | None = None


class FourDThinkerImageryDecoder(PreTrainedModel):
    """PyTorch's transformer decoder: one query for each patch of the picture attends to the latents and to the other
    patches. Latents are brought to unit root mean square first, because a latent's length carries nothing: DIFT trains
    its direction alone."""

    config_class = FourDThinkerImageryDecoderConfig
    main_input_name = "latents"

    def __init__(self, config: FourDThinkerImageryDecoderConfig):
        super().__init__(config)
        width, num_patches = config.hidden_size, (config.picture_size // config.patch_size) ** 2
        self.embed = nn.Linear(config.latent_dim, width)
        self.latent_positions = nn.Parameter(torch.zeros(config.latent_size, width))
        self.queries = nn.Parameter(torch.zeros(num_patches, width))
        layer = nn.TransformerDecoderLayer(
            width,
            config.num_attention_heads,
            config.intermediate_size,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerDecoder(layer, config.num_hidden_layers, nn.LayerNorm(width))
        self.patches = nn.Linear(width, 3 * config.patch_size**2)
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, FourDThinkerImageryDecoder):
            nn.init.normal_(module.latent_positions, std=self.config.initializer_range)
            nn.init.normal_(module.queries, std=self.config.initializer_range)

    def forward(self, latents: torch.Tensor, pictures: torch.Tensor | None = None) -> ImageryDecoderOutput:
        """Draws mental images.

        Args:
            latents: `(batch, latent_size, latent_dim)`, of any scale.
            pictures: the true pictures `(batch, picture_size, picture_size, 3)` uint8 RGB, for the loss.
        """
        if latents.shape[1:] != (self.config.latent_size, self.config.latent_dim):
            expected = (self.config.latent_size, self.config.latent_dim)
            raise ValueError(f"latents must be (batch, {expected[0]}, {expected[1]}), got {tuple(latents.shape)}")
        latents = F.rms_norm(latents.to(self.dtype), latents.shape[-1:], eps=1e-12)
        memory = self.embed(latents) + self.latent_positions
        hidden = self.layers(self.queries.expand(len(latents), -1, -1), memory)
        size, patch = self.config.picture_size, self.config.patch_size
        side = size // patch
        patches = self.patches(hidden).view(-1, side, side, patch, patch, 3)
        drawn = patches.permute(0, 1, 3, 2, 4, 5).reshape(-1, size, size, 3) + 0.5
        loss = None if pictures is None else F.mse_loss(drawn.float(), pictures.float() / 255)
        return ImageryDecoderOutput(loss=loss, pictures=drawn)

    @torch.inference_mode()
    def draw(self, latents: torch.Tensor, aspect: float = 1.0) -> list[Image.Image]:
        """The pictures of mental images `(batch, latent_size, latent_dim)`, each scaled to `aspect`, the width by the
        height of the frame that it shows; the longer side has `picture_size` pixels."""
        pictures = self(latents.to(self.device)).pictures.float().clamp(0, 1).mul(255).round().byte().cpu().numpy()
        size = self.config.picture_size
        width, height = (size, max(1, round(size / aspect))) if aspect >= 1 else (max(1, round(size * aspect)), size)
        return [Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC) for picture in pictures]


FourDThinkerImageryDecoderConfig.register_for_auto_class()
FourDThinkerImageryDecoder.register_for_auto_class("AutoModel")

__all__ = ["FourDThinkerImageryDecoder", "FourDThinkerImageryDecoderConfig"]
