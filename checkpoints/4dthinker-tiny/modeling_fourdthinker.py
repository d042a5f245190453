"""4DThinker: Qwen2.5-VL that pictures how a scene evolves, in blocks of latent vectors between the words.

What it adds to Qwen2.5-VL, and nothing else:

- the *base* model replaces the embedding of each `<|latent_pad|>` by a latent: the compressed features of a target
  frame (training) or the vector given (decoding, replay). The head class is the wrong place: trainers with a fused
  head call the base model directly;
- text after a picture or a video continues at (largest position so far) + 1, as Qwen2.5-VL was trained.
  transformers 5 continues at start + max(height, width) / 2, which differs for every video longer than it is wide;
- `generate` decodes the blocks, per row, with stock `_sample`: the last hidden state of each step travels in
  `model_kwargs` and is fed where the chosen token is `<|latent_pad|>`.

    tokens   .. <|latent_start|>  <|latent_pad|>  <|latent_pad|> .. <|latent_end|>  text
    fed      ..  its embedding     h(start)        h(1st pad)    ..  its embedding  its embedding
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat

import torch
import torch.nn.functional as F
from transformers import (
    LogitsProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
    Qwen2_5_VLPreTrainedModel,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.generation import GenerateDecoderOnlyOutput, GenerationMode
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

from .configuration_fourdthinker import FourDThinkerConfig


@dataclass
class FourDThinkerModelOutput(BaseModelOutputWithPast):
    """Adds `latent_targets` (`(num_latents, hidden)`, in the order of the pads; `None` without target frames)."""

    latent_targets: torch.FloatTensor | None = None


@dataclass
class FourDThinkerOutput(CausalLMOutputWithPast):
    """Adds `last_hidden_state` `(batch, seq, hidden)`, after the final norm, and `latent_targets` as above."""

    last_hidden_state: torch.FloatTensor | None = None
    latent_targets: torch.FloatTensor | None = None


@dataclass
class FourDThinkerGenerateOutput(GenerateDecoderOnlyOutput):
    """Adds `latents` `(batch, new_tokens, hidden)`: the vector fed for each `<|latent_pad|>`, zeros elsewhere."""

    latents: torch.FloatTensor | None = None


def compress_features(features: torch.Tensor, grid: tuple[int, int, int], latent_size: int, strategy: str):
    """Compress one frame's merged features `(t * h * w, hidden)`, raster order, to `(latent_size, hidden)`.

    `grid` is `(t, h, w)` after the merger. `"average"` drops the last `len(features) % latent_size` rows and takes
    the means of `latent_size` contiguous groups (the published rule); `"grid"` takes the means over the cells of the
    most nearly square grid of `latent_size` cells. `ValueError` if there are fewer features than latents.
    """
    if len(features) < latent_size:
        raise ValueError(
            f"A target frame has {len(features)} features after the merger but a mental image needs "
            f"latent_size={latent_size}: give larger target frames"
        )
    if strategy == "average":
        return features[: len(features) // latent_size * latent_size].unflatten(0, (latent_size, -1)).mean(1)
    t, h, w = grid
    rows = max(n for n in range(1, int(latent_size**0.5) + 1) if latent_size % n == 0)
    if h < rows or w < latent_size // rows:
        raise ValueError(f"A target frame of {h} x {w} features has no {rows} x {latent_size // rows} grid of cells")
    frame = features.view(t, h, w, -1).mean(0).permute(2, 0, 1)  # (hidden, h, w)
    return F.adaptive_avg_pool2d(frame, (rows, latent_size // rows)).flatten(1).T


class FourDThinkerModel(Qwen2_5_VLModel):
    """Qwen2.5-VL's base model with latents at `<|latent_pad|>` and with the original positions."""

    config: FourDThinkerConfig

    def forward(
        self, input_ids=None, inputs_embeds=None, pixel_values_latent=None, image_grid_thw_latent=None,
        latent_embeds=None, **kwargs,
    ):  # fmt: skip
        r"""
        pixel_values_latent (`torch.Tensor` of shape `(num_patches, channels * patch volume)`, *optional*):
            Target frames, patched by the image processor. Their compressed features fill the pads in order.
        image_grid_thw_latent (`torch.LongTensor` of shape `(num_target_frames, 3)`, *optional*):
            Their grids.
        latent_embeds (`torch.Tensor` of shape `(batch, seq, hidden)`, *optional*):
            The latent of each pad at the pad's own position; other positions are ignored.

        Raises `ValueError` if `input_ids` hold a `<|latent_pad|>` and not exactly one of the two sources is given,
        or if the target frames give another number of latents than there are pads.
        """
        if pixel_values_latent is not None and latent_embeds is not None:
            raise ValueError("Give the latents once: either pixel_values_latent or latent_embeds, not both")
        targets = None
        if input_ids is not None:
            is_pad = input_ids == self.config.latent_token_id
            if inputs_embeds is None:
                inputs_embeds = self.get_input_embeddings()(input_ids)
            if pixel_values_latent is not None:
                targets = self.get_latent_targets(pixel_values_latent, image_grid_thw_latent)
                if len(targets) != is_pad.sum():
                    raise ValueError(
                        f"The target frames give {len(targets)} latents but input_ids hold {int(is_pad.sum())} "
                        "<|latent_pad|> tokens"
                    )
                fed = self.scale_latents(targets).to(inputs_embeds.dtype)
                inputs_embeds = inputs_embeds.masked_scatter(is_pad[..., None], fed)
            elif latent_embeds is not None:
                if latent_embeds.shape != inputs_embeds.shape:
                    raise ValueError(
                        f"latent_embeds must have the shape of the embeddings, {tuple(inputs_embeds.shape)}, "
                        f"got {tuple(latent_embeds.shape)}"
                    )
                fed = self.scale_latents(latent_embeds).to(inputs_embeds.dtype)
                inputs_embeds = torch.where(is_pad[..., None], fed, inputs_embeds)
            elif is_pad.any():
                raise ValueError(
                    f"input_ids hold {int(is_pad.sum())} <|latent_pad|> tokens but no latents came with them: "
                    "give pixel_values_latent (target frames) or latent_embeds (vectors)"
                )
        elif pixel_values_latent is not None or latent_embeds is not None:
            raise ValueError("Latents need input_ids: the positions of <|latent_pad|> are found there")
        outputs = super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)
        return FourDThinkerModelOutput(**outputs, latent_targets=targets)

    def scale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Apply `config.latent_scale` over the last dimension. Idempotent: a recorded latent replays as it was fed."""
        if self.config.latent_scale == "none":
            return latents
        return F.rms_norm(latents, latents.shape[-1:], eps=1e-12)

    @torch.no_grad()
    def get_latent_targets(self, pixel_values_latent, image_grid_thw_latent) -> torch.Tensor:
        """Compressed features of the target frames, `(num_target_frames * latent_size, hidden)`, without gradient."""
        features = self.get_image_features(pixel_values_latent, image_grid_thw_latent, return_dict=True).pooler_output
        merge = self.config.vision_config.spatial_merge_size
        grids = [(t, h // merge, w // merge) for t, h, w in image_grid_thw_latent.tolist()]
        size, strategy = self.config.latent_size, self.config.compress_strategy
        return torch.cat([compress_features(f, g, size, strategy) for f, g in zip(features, grids, strict=True)])

    def get_mm_token_type_ids(self, input_ids: torch.LongTensor) -> torch.LongTensor:
        """0 for text (latents too), 1 for images, 2 for videos; same shape as `input_ids`."""
        is_video = input_ids == self.config.video_token_id
        return (input_ids == self.config.image_token_id).long() + 2 * is_video.long()

    def compute_3d_position_ids(self, input_ids=None, mm_token_type_ids=None, **kwargs):
        if mm_token_type_ids is None and input_ids is not None:
            mm_token_type_ids = self.get_mm_token_type_ids(input_ids)
        return super().compute_3d_position_ids(input_ids=input_ids, mm_token_type_ids=mm_token_type_ids, **kwargs)

    def get_rope_index(
        self, input_ids, mm_token_type_ids=None, image_grid_thw=None, video_grid_thw=None, second_per_grid_ts=None,
        attention_mask=None, **kwargs,
    ):  # fmt: skip
        """Positions as Qwen2.5-VL was trained (transformers 4.50): what follows a picture or video starts at the
        largest t, h or w position so far, plus one. A video's t positions are `(grid * second_per_grid_ts *
        tokens_per_second).long()` past its start.

        Returns `position_ids` `(3, batch, seq)`, 1 where padded, and `rope_deltas` `(batch, 1)`: the next position
        less the number of unpadded tokens.
        """
        if mm_token_type_ids is None:
            mm_token_type_ids = self.get_mm_token_type_ids(input_ids)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        merge = self.config.vision_config.spatial_merge_size
        grids = {1: iter(() if image_grid_thw is None else image_grid_thw.tolist()),
                 2: iter(() if video_grid_thw is None else video_grid_thw.tolist())}  # fmt: skip
        seconds = repeat(1.0) if second_per_grid_ts is None else iter(second_per_grid_ts)
        position_ids = torch.ones(3, *input_ids.shape, dtype=input_ids.dtype, device=input_ids.device)
        deltas = []
        for row, keep in enumerate(attention_mask.bool()):
            runs, start = [], 0
            types, lengths = torch.unique_consecutive(mm_token_type_ids[row, keep], return_counts=True)
            for kind, length in zip(types.tolist(), lengths.tolist(), strict=True):
                if kind == 0:
                    run = torch.arange(length).expand(3, -1)
                else:
                    t, h, w = next(grids[kind])
                    tick = self.config.vision_config.tokens_per_second
                    times = torch.arange(t)
                    if kind == 2:
                        times = (times * torch.as_tensor(next(seconds), dtype=torch.float32).cpu() * tick).long()
                    axes = torch.meshgrid(times, torch.arange(h // merge), torch.arange(w // merge), indexing="ij")
                    run = torch.stack(axes).flatten(1)
                runs.append(run + start)
                start = int(runs[-1].max()) + 1
            positions = torch.cat(runs, 1)
            if positions.shape[1] != int(keep.sum()):
                raise ValueError(
                    f"Row {row}: the vision grids make {positions.shape[1]} tokens, input_ids have {int(keep.sum())}"
                )
            position_ids[:, row, keep] = positions.to(position_ids)
            deltas.append(start - positions.shape[1])
        return position_ids, torch.tensor(deltas, device=input_ids.device)[:, None]


class LatentBlockLogitsProcessor(LogitsProcessor):
    """The block rule, on the fully processed scores `(rows, vocab)`; reads the state of each row from its own tokens.

    Inside a block (the last token is `start` or `pad`) with fewer than `latent_size` pads: `pad`; then `end`. With
    `early_end`, a choice of `end` ends the block before, and any other choice becomes `pad`: the probability of all
    other tokens goes to `pad`. Outside a block neither can be chosen.
    """

    supports_continuous_batching = False

    def __init__(self, config: FourDThinkerConfig, early_end: bool, do_sample: bool):
        self.start, self.pad, self.end = config.latent_start_id, config.latent_token_id, config.latent_end_id
        self.latent_size, self.early_end, self.do_sample = config.latent_size, early_end, do_sample

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        tail = input_ids[:, -self.latent_size :]
        num_pads = (tail == self.pad).flip(-1).cumprod(-1).sum(-1)  # trailing pads, at most latent_size
        in_block = (tail[:, -1] == self.start) | (tail[:, -1] == self.pad)
        full = num_pads >= self.latent_size
        outside = scores.clone()
        outside[:, [self.pad, self.end]] = -torch.inf
        inside = torch.full_like(scores, -torch.inf)
        inside[:, self.end] = torch.where(full, 0.0, scores[:, self.end] if self.early_end else -torch.inf)
        others = scores.clone()
        others[:, self.end] = -torch.inf
        others = others.logsumexp(-1) if self.do_sample else others.amax(-1)
        inside[:, self.pad] = torch.where(full, -torch.inf, others if self.early_end else 0.0)
        return torch.where(in_block[:, None], inside, outside)


@dataclass
class LatentTrace:
    """State of one call of `generate`; rides in `model_kwargs`."""

    hook: Callable | None
    prompt_length: int = 0
    state: torch.Tensor | None = None  # (rows, hidden): last hidden state of the newest forward
    steps: list[torch.Tensor] = field(default_factory=list)  # per new token (rows, hidden), zeros if it is no pad


class FourDThinkerForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL with latent imagery. Every `<|latent_pad|>` needs a latent: see [`FourDThinkerModel.forward`]."""

    config: FourDThinkerConfig
    config_class = FourDThinkerConfig
    # Losses are means over the whole accumulation window, so how a batch is cut into micro-batches never matters.
    accepts_loss_kwargs = True

    def __init__(self, config: FourDThinkerConfig):
        Qwen2_5_VLPreTrainedModel.__init__(self, config)
        self.model = FourDThinkerModel(config)
        text_config = config.text_config
        self.lm_head = torch.nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
        labels=None, use_cache=None, pixel_values=None, pixel_values_videos=None, image_grid_thw=None,
        video_grid_thw=None, mm_token_type_ids=None, second_per_grid_ts=None, logits_to_keep=0,
        mm_encoder_outputs=None, pixel_values_latent=None, image_grid_thw_latent=None, latent_embeds=None, **kwargs,
    ) -> FourDThinkerOutput:  # fmt: skip
        """Qwen2.5-VL's forward with the latent arguments of [`FourDThinkerModel.forward`]."""
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache,
            pixel_values=pixel_values, pixel_values_videos=pixel_values_videos, image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw, mm_token_type_ids=mm_token_type_ids,
            second_per_grid_ts=second_per_grid_ts, mm_encoder_outputs=mm_encoder_outputs,
            pixel_values_latent=pixel_values_latent, image_grid_thw_latent=image_grid_thw_latent,
            latent_embeds=latent_embeds, **{**kwargs, "return_dict": True},
        )  # fmt: skip
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return FourDThinkerOutput(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states,
            attentions=outputs.attentions, last_hidden_state=outputs.last_hidden_state,
            latent_targets=outputs.latent_targets,
        )  # fmt: skip

    @torch.no_grad()
    def generate(self, *args, latent_early_end: bool | None = None, latent_hook=None, **kwargs):
        """[`GenerationMixin.generate`], greedy or sampling, with mental images.

        Args (beyond those of `GenerationMixin.generate`):
            latent_early_end: overrides `config.latent_early_end`.
            latent_hook: `f(latents (rows, hidden), rows, block, slot) -> latents`, called before latents are fed;
                `rows`, `block` (mental images opened in the row before this one) and `slot` (place in the block) are
                `(rows,)` integer tensors.
            latent_embeds: `(batch, prompt, hidden)`, the latents of pads in the prompt (earlier turns).

        With `return_dict_in_generate=True` returns [`FourDThinkerGenerateOutput`]. Raises `ValueError` for what
        cannot be exact: beam search, assisted decoding, `use_cache=False`, paged caches, prompts given as
        `inputs_embeds` alone.
        """
        trace = LatentTrace(latent_hook)
        output = super().generate(*args, latent_early_end=latent_early_end, latent_trace=trace, **kwargs)
        if isinstance(output, GenerateDecoderOnlyOutput):
            num_new = output.sequences.shape[1] - trace.prompt_length
            if len(trace.steps) < num_new:  # the newest token was chosen but never fed
                self._next_latents(output.sequences, trace)
            output = FourDThinkerGenerateOutput(**output, latents=torch.stack(trace.steps[:num_new], 1))
        return output

    def generate_batch(self, *args, **kwargs):
        raise ValueError("Continuous batching passes token ids only and would drop the latents: use generate()")

    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs):
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)
        if generation_mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
            raise ValueError(f"Mental images are decoded greedily or by sampling, not by {generation_mode.value}")
        if not generation_config.use_cache:
            raise ValueError("Mental images are decoded with a cache: set use_cache=True")
        if generation_mode_kwargs.get("custom_generate") is not None:
            raise ValueError("custom_generate replaces the decoding loop and would drop the latents")

    def _get_logits_processor(self, generation_config, input_ids_seq_length=None, model_kwargs=None, **kwargs):
        processors = super()._get_logits_processor(
            generation_config, input_ids_seq_length=input_ids_seq_length, model_kwargs=model_kwargs, **kwargs
        )
        model_kwargs["latent_trace"].prompt_length = input_ids_seq_length
        early_end = model_kwargs["latent_early_end"]
        early_end = self.config.latent_early_end if early_end is None else early_end
        # Last of all, after temperature, top-k and top-p: the choice is made, the block rule decides what it means.
        processors.append(LatentBlockLogitsProcessor(self.config, early_end, generation_config.do_sample))
        return processors

    def _next_latents(self, input_ids: torch.LongTensor, trace: LatentTrace) -> torch.Tensor:
        """Record and return what to feed for the last token of each row, `(rows, hidden)`; zeros if it is no pad."""
        is_pad = input_ids[:, -1] == self.config.latent_token_id
        fed = self.model.scale_latents(trace.state).masked_fill(~is_pad[:, None], 0)
        if trace.hook is not None and is_pad.any():
            rows = is_pad.nonzero()[:, 0]
            is_start = input_ids[rows] == self.config.latent_start_id
            block = is_start.sum(-1) - 1
            slot = is_start.flip(-1).int().argmax(-1) - 1  # pads since the last start, less this one
            fed[rows] = self.model.scale_latents(trace.hook(fed[rows], rows, block, slot)).to(fed)
        trace.steps.append(fed)
        return fed

    def prepare_inputs_for_generation(
        self, input_ids, is_first_iteration=False, latent_trace=None, latent_early_end=None, latent_embeds=None,
        pixel_values_latent=None, image_grid_thw_latent=None, **kwargs,
    ):  # fmt: skip
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration:
            inputs["latent_embeds"] = self._next_latents(input_ids, latent_trace)[:, None]
        elif latent_embeds is not None:
            if latent_embeds.shape[1] != input_ids.shape[1]:
                raise ValueError(
                    f"latent_embeds must be as long as the prompt, {input_ids.shape[1]} tokens, got "
                    f"{latent_embeds.shape[1]}; they cannot be given in chunks (prefill_chunk_size)"
                )
            inputs["latent_embeds"] = latent_embeds[:, -inputs["input_ids"].shape[1] :]
        elif pixel_values_latent is not None:
            inputs["pixel_values_latent"] = pixel_values_latent
            inputs["image_grid_thw_latent"] = image_grid_thw_latent
        return inputs

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, **kwargs):
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)
        # A clone: a view would keep the hidden states of the whole prompt alive.
        model_kwargs["latent_trace"].state = outputs.last_hidden_state[:, -1].clone()
        return model_kwargs

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        if model_kwargs.get("mm_token_type_ids") is None and not inputs_tensor.is_floating_point():
            model_kwargs["mm_token_type_ids"] = self.model.get_mm_token_type_ids(inputs_tensor)
        return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)


# Checkpoints in the layout of the Qwen2.5-VL repositories (`visual.*`, `model.layers.*`) load by this mapping. Custom
# code inherits none, and without one the whole language model would stay random behind a mere log line.
register_checkpoint_conversion_mapping(
    "FourDThinkerForConditionalGeneration",
    get_checkpoint_conversion_mapping("Qwen2VLForConditionalGeneration"),
    overwrite=True,
)
FourDThinkerForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["FourDThinkerModel", "FourDThinkerForConditionalGeneration"]
