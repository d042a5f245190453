"""4DThinker: Qwen2.5-VL that pictures how a scene evolves, in blocks of latent vectors within its text.

It adds three things to Qwen2.5-VL:

- The *base* model replaces the embedding of each `<|latent_pad|>` by a latent: by the compressed features of a target
  frame (in training) or by the vector given (in decoding and replay). The class with the language-model head would be
  the wrong place, because trainers with a fused head call the base model directly.
- Text after a picture or a video continues at (largest position so far) + 1, as Qwen2.5-VL was trained.
  transformers 5 continues at start + max(height, width) / 2, which differs for every video longer than it is wide.
- `generate` decodes blocks of latents: see `generation_fourdthinker.py`.
"""

from dataclasses import dataclass
from itertools import repeat

import torch
import torch.nn.functional as F
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel, Qwen2_5_VLPreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

from .configuration_fourdthinker import FourDThinkerConfig
from .generation_fourdthinker import CACHE_NAME, LatentGenerationMixin


@dataclass
class FourDThinkerModelOutput(BaseModelOutputWithPast):
    """Adds `latent_targets` (`(num_latents, hidden)`, in the order of the pads; `None` without target frames)."""

    latent_targets: torch.FloatTensor | None = None


@dataclass
class FourDThinkerOutput(CausalLMOutputWithPast):
    """Adds `last_hidden_state` `(batch, seq, hidden)`, after the final norm, and `latent_targets` as above."""

    last_hidden_state: torch.FloatTensor | None = None
    latent_targets: torch.FloatTensor | None = None


def compress_features(
    features: torch.Tensor, grid: tuple[int, int, int], latent_size: int, strategy: str
) -> torch.Tensor:
    """Compress a frame's merged features `(t * h * w, hidden)`, raster order, to `(latent_size, hidden)`, same dtype.

    `grid` is `(t, h, w)` after the merger. `"average"` drops the last `len(features) % latent_size` rows and takes
    the means of `latent_size` contiguous groups: the rule of the published training (4DThinker's public code, commit
    647ed39). `"grid"` takes the means, over t too, of spatial cells in raster order: about `sqrt(latent_size)` bands
    of equal height (more, or fewer, where the frame is too narrow, or too low), the cells dealt evenly over them; 4
    are the quadrants. `ValueError`, with both numbers, if there are fewer features than latents.
    """
    t, h, w = grid
    available = len(features) if strategy == "average" else h * w
    if available < latent_size:
        raise ValueError(
            f"A target frame has {available} features after the merger but a mental image needs "
            f"latent_size={latent_size}: give larger target frames"
        )
    if strategy == "average":
        return features[: len(features) // latent_size * latent_size].unflatten(0, (latent_size, -1)).mean(1)
    num_bands = min(max(round(latent_size**0.5), -(-latent_size // w)), h)
    frame = features.view(t, h, w, -1).mean(0).permute(2, 0, 1)  # (hidden, h, w)
    cells = []
    for band in range(num_bands):
        rows = frame[:, band * h // num_bands : -(-(band + 1) * h // num_bands)].mean(1)  # (hidden, w)
        count = (band + 1) * latent_size // num_bands - band * latent_size // num_bands
        cells.append(F.adaptive_avg_pool1d(rows, count))
    return torch.cat(cells, 1).T


class FourDThinkerModel(Qwen2_5_VLModel):
    """Qwen2.5-VL's base model with latents at `<|latent_pad|>` and with the original positions."""

    config: FourDThinkerConfig

    def forward(
        self,
        input_ids=None,
        inputs_embeds=None,
        mm_encoder_outputs=None,
        pixel_values_latent=None,
        image_grid_thw_latent=None,
        latent_embeds=None,
        **kwargs,
    ):
        r"""
        pixel_values_latent (`torch.Tensor` of shape `(num_patches, channels * patch volume)`, *optional*):
            Target frames, as patches from the image processor. Their compressed features fill the pads in order.
        image_grid_thw_latent (`torch.LongTensor` of shape `(num_target_frames, 3)`, *optional*):
            The grids of the target frames.
        latent_embeds (`torch.Tensor` of shape `(batch, seq, hidden)`, *optional*):
            The latent of each pad at the pad's own position; other positions are ignored.
        mm_encoder_outputs (`dict`, *optional*):
            Outputs of the vision tower to use instead of pixels: `"image"` and `"video"` as in Qwen2.5-VL, and
            `"latent"` for the target frames. `pooler_output` holds one `(num_features, hidden)` per frame or video.

        Returns [`FourDThinkerModelOutput`]. Raises `ValueError` if `input_ids` hold a `<|latent_pad|>` and not exactly
        one source of latents is given, if `latent_embeds` have another shape than the embeddings, or if the target
        frames give another number of latents than there are pads.
        """
        encoded = (mm_encoder_outputs or {}).get("latent")
        if sum(source is not None for source in (pixel_values_latent, encoded, latent_embeds)) > 1:
            raise ValueError("Give the latents once: either pixel_values_latent or latent_embeds, not both")
        frames_given = pixel_values_latent is not None or encoded is not None
        targets = None
        if input_ids is None:
            if frames_given or latent_embeds is not None:
                raise ValueError("Latents need input_ids, because the positions of <|latent_pad|> are found there")
        else:
            is_pad = input_ids == self.config.latent_token_id
            if frames_given:
                self.check_target_frames(input_ids, image_grid_thw_latent)
                targets = self.get_latent_targets(pixel_values_latent, image_grid_thw_latent, encoded)
                latent_embeds = self.place_latents(input_ids, targets)
            if inputs_embeds is None:
                inputs_embeds = self.get_input_embeddings()(input_ids)
            if latent_embeds is not None:
                if latent_embeds.shape != inputs_embeds.shape:
                    raise ValueError(
                        f"latent_embeds must have the shape of the embeddings, {tuple(inputs_embeds.shape)}, "
                        f"got {tuple(latent_embeds.shape)}"
                    )
                latents = self.scale_latents(latent_embeds).to(inputs_embeds)
                inputs_embeds = torch.where(is_pad[..., None], latents, inputs_embeds)
            elif is_pad.any():
                raise ValueError(
                    f"input_ids hold {int(is_pad.sum())} <|latent_pad|> tokens but no latents came with them: "
                    "give pixel_values_latent (target frames) or latent_embeds (vectors)"
                )
        outputs = super().forward(
            input_ids=input_ids, inputs_embeds=inputs_embeds, mm_encoder_outputs=mm_encoder_outputs, **kwargs
        )
        names = ("last_hidden_state", CACHE_NAME, "hidden_states", "attentions")
        return FourDThinkerModelOutput(**{name: outputs.get(name) for name in names}, latent_targets=targets)

    def place_latents(self, input_ids: torch.LongTensor, latents: torch.Tensor) -> torch.Tensor:
        """Puts `latents` `(num_latents, hidden)` at the pads of `input_ids` `(batch, seq)`, in order. Returns
        `latent_embeds` `(batch, seq, hidden)`, which are zero elsewhere."""
        is_pad = input_ids == self.config.latent_token_id
        return latents.new_zeros(*input_ids.shape, latents.shape[-1]).masked_scatter(is_pad[..., None], latents)

    def scale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Applies `config.latent_scale` over the last dimension. Applying it twice changes nothing, so a recorded
        latent replays as it was fed. (eps keeps zero vectors at zero and is too small to change any other latent.)"""
        if self.config.latent_scale == "none":
            return latents
        return F.rms_norm(latents, latents.shape[-1:], eps=1e-12)

    @torch.no_grad()
    def get_latent_targets(self, pixel_values_latent, image_grid_thw_latent, encoded=None) -> torch.Tensor:
        """Compressed features of the target frames, `(num_target_frames * latent_size, hidden)`, without gradient.
        `encoded` is the vision tower's output for them, if it is at hand. Raises `ValueError` if a frame is too small,
        see [`compress_features`]."""
        if encoded is None:
            encoded = self.get_image_features(pixel_values_latent, image_grid_thw_latent, return_dict=True)
        features = encoded.pooler_output
        merge = self.config.vision_config.spatial_merge_size
        grids = [(t, h // merge, w // merge) for t, h, w in image_grid_thw_latent.tolist()]
        size, strategy = self.config.latent_size, self.config.compress_strategy
        frames = zip(features, grids, strict=True)
        return torch.cat([compress_features(frame, grid, size, strategy) for frame, grid in frames])

    def check_target_frames(self, input_ids: torch.LongTensor, image_grid_thw_latent: torch.LongTensor) -> None:
        """Raises `ValueError` unless the target frames give one latent for each pad of `input_ids`."""
        num_latents = len(image_grid_thw_latent) * self.config.latent_size
        if num_latents != (num_pads := int((input_ids == self.config.latent_token_id).sum())):
            raise ValueError(
                f"The target frames give {num_latents} latents but input_ids hold {num_pads} <|latent_pad|> tokens"
            )

    def get_mm_token_type_ids(self, input_ids: torch.LongTensor) -> torch.LongTensor:
        """0 for text (latents too), 1 for images, 2 for videos; same shape as `input_ids`."""
        is_video = input_ids == self.config.video_token_id
        return (input_ids == self.config.image_token_id).long() + 2 * is_video.long()

    def is_vision(self, input_ids: torch.LongTensor) -> torch.BoolTensor:
        """Whether a token stands for a picture or video, or begins or ends one; same shape as `input_ids`."""
        delimiters = torch.tensor([self.config.vision_start_token_id, self.config.vision_end_token_id])
        return (self.get_mm_token_type_ids(input_ids) > 0) | torch.isin(input_ids, delimiters.to(input_ids))

    def compute_3d_position_ids(self, input_ids=None, mm_token_type_ids=None, **kwargs):
        """As in Qwen2.5-VL, which without `mm_token_type_ids` would use the positions of plain text."""
        if mm_token_type_ids is None and input_ids is not None:
            mm_token_type_ids = self.get_mm_token_type_ids(input_ids)
        return super().compute_3d_position_ids(input_ids=input_ids, mm_token_type_ids=mm_token_type_ids, **kwargs)

    def get_rope_index(
        self,
        input_ids,
        mm_token_type_ids=None,
        image_grid_thw=None,
        video_grid_thw=None,
        second_per_grid_ts=None,
        attention_mask=None,
        **kwargs,
    ):
        """Positions as Qwen2.5-VL was trained (transformers 4.50): text after a picture or video starts at the largest
        t, h or w position so far, plus one. The t position of a video's grid i is `(i * second_per_grid_ts *
        tokens_per_second).long()` past the video's start.

        Returns `position_ids` `(3, batch, seq)`, 1 where padded, and `rope_deltas` `(batch, 1)`: the next position
        minus the number of unpadded tokens.
        """
        if mm_token_type_ids is None:
            mm_token_type_ids = self.get_mm_token_type_ids(input_ids)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        merge = self.config.vision_config.spatial_merge_size
        tokens_per_second = self.config.vision_config.tokens_per_second
        grids = {
            1: iter(() if image_grid_thw is None else image_grid_thw.tolist()),
            2: iter(() if video_grid_thw is None else video_grid_thw.tolist()),
        }
        seconds = repeat(1.0) if second_per_grid_ts is None else iter(second_per_grid_ts)
        position_ids = torch.ones(3, *input_ids.shape, dtype=input_ids.dtype, device=input_ids.device)
        deltas = []
        for row, is_token in enumerate(attention_mask.bool()):
            parts, start = [], 0  # positions (3, tokens) of each text, picture and video of the row
            types, lengths = torch.unique_consecutive(mm_token_type_ids[row, is_token], return_counts=True)
            for kind, length in zip(types.tolist(), lengths.tolist(), strict=True):
                if kind == 0:
                    part = torch.arange(length).expand(3, -1)
                else:
                    t, h, w = next(grids[kind])
                    times = torch.arange(t)
                    if kind == 2:
                        second_per_grid = torch.as_tensor(next(seconds), dtype=torch.float32).cpu()
                        times = (times * second_per_grid * tokens_per_second).long()
                    axes = torch.meshgrid(times, torch.arange(h // merge), torch.arange(w // merge), indexing="ij")
                    part = torch.stack(axes).flatten(1)
                parts.append(part + start)
                start = int(parts[-1].max()) + 1
            positions, num_tokens = torch.cat(parts, 1), int(is_token.sum())
            if positions.shape[1] != num_tokens:
                raise ValueError(
                    f"Row {row}: the vision grids and the text make {positions.shape[1]} positions, "
                    f"but input_ids hold {num_tokens} tokens"
                )
            position_ids[:, row, is_token] = positions.to(position_ids)
            deltas.append(start - positions.shape[1])
        return position_ids, torch.tensor(deltas, device=input_ids.device)[:, None]


class VocabularyHead(torch.nn.Linear):
    """`Linear` that a CPU computes up to twice as fast for 2 to 16 rows in float32 with weights as large as a language
    model's head (151,936 x 512, PyTorch 2.14, x86 with AVX2), where `F.linear` takes longer than it takes to read the
    weights."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        rows = states.shape[:-1]
        if states.device.type != "cpu" or states.dtype != torch.float32 or not 2 <= rows.numel() <= 16:
            return super().forward(states)
        return (self.weight @ states.flatten(0, -2).T).T.contiguous().unflatten(0, rows)


class FourDThinkerForConditionalGeneration(LatentGenerationMixin, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL with mental images. Every `<|latent_pad|>` needs a latent: see [`FourDThinkerModel.forward`]."""

    config: FourDThinkerConfig
    config_class = FourDThinkerConfig
    # Losses are means over the whole accumulation window, so the result does not depend on the micro-batches.
    accepts_loss_kwargs = True

    def __init__(self, config: FourDThinkerConfig):
        Qwen2_5_VLPreTrainedModel.__init__(self, config)
        self.model = FourDThinkerModel(config)
        text_config = config.text_config
        self.lm_head = VocabularyHead(text_config.hidden_size, text_config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        cache=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        pixel_values=None,
        pixel_values_videos=None,
        image_grid_thw=None,
        video_grid_thw=None,
        mm_token_type_ids=None,
        second_per_grid_ts=None,
        logits_to_keep=0,
        mm_encoder_outputs=None,
        pixel_values_latent=None,
        image_grid_thw_latent=None,
        latent_embeds=None,
        **kwargs,
    ) -> FourDThinkerOutput:
        """Qwen2.5-VL's forward with the latent arguments and errors of [`FourDThinkerModel.forward`].

        `cache` and `past_key_values` are two names for the same thing. `logits_to_keep` is an int (the number of last
        positions, 0 for all), a list of positions, or a mask `(batch, seq)`, which gives logits `(num_kept, vocab)`;
        `labels` need all logits.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            mm_token_type_ids=mm_token_type_ids,
            second_per_grid_ts=second_per_grid_ts,
            mm_encoder_outputs=mm_encoder_outputs,
            pixel_values_latent=pixel_values_latent,
            image_grid_thw_latent=image_grid_thw_latent,
            latent_embeds=latent_embeds,
            **{**kwargs, CACHE_NAME: past_key_values if cache is None else cache, "return_dict": True},
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return FourDThinkerOutput(loss=loss, logits=logits, **outputs)


# This mapping loads checkpoints in the layout of the Qwen2.5-VL repositories (`visual.*`, `model.layers.*`). Custom
# code inherits no mapping, and without one the whole language model would stay random, with only a line in the log.
register_checkpoint_conversion_mapping(
    "FourDThinkerForConditionalGeneration",
    get_checkpoint_conversion_mapping("Qwen2VLForConditionalGeneration"),
    overwrite=True,
)
FourDThinkerForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["FourDThinkerModel", "FourDThinkerForConditionalGeneration"]
