"""Decoding of mental images: what `FourDThinkerForConditionalGeneration` adds to transformers' `generate`.

Mental images are decoded per row, or per beam, by the stock loops: the last hidden state of each step travels in
`model_kwargs` and is fed where the chosen token is `<|latent_pad|>`.

    tokens   .. <|latent_start|>  <|latent_pad|>  <|latent_pad|> .. <|latent_end|>  text
    fed      ..  its embedding     h(start)        h(1st pad)    ..  its embedding  its embedding

- Where a latent is fed: [`LatentGenerationMixin.prepare_inputs_for_generation`].
- Where a block's end is forced: [`BlockLogitsProcessor`].
- What cannot be decoded exactly is refused, with a `ValueError` that says why.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from transformers import LogitsProcessor, StoppingCriteria, StoppingCriteriaList
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_fourdthinker import FourDThinkerConfig

# The name of the cache in arguments and outputs: transformers 5.24 changed it.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"

# What a prompt's videos and pictures bring, beyond its ids and mask.
VISION_INPUTS = (
    "pixel_values",
    "pixel_values_videos",
    "image_grid_thw",
    "video_grid_thw",
    "second_per_grid_ts",
    "mm_encoder_outputs",
    "mm_token_type_ids",
)


@dataclass
class FourDThinkerGenerateOutput(GenerateDecoderOnlyOutput):
    """Adds `latents` `(rows, new_tokens, hidden)`, in the model's dtype: for each `<|latent_pad|>` the vector fed for
    it (of one that ends the output: that would have been), zeros elsewhere."""

    latents: torch.FloatTensor | None = None


@dataclass
class FourDThinkerBeamOutput(GenerateBeamDecoderOnlyOutput):
    """Adds `latents`, as [`FourDThinkerGenerateOutput`] does, one row for each returned hypothesis."""

    latents: torch.FloatTensor | None = None


def in_block(input_ids: torch.LongTensor, config: FourDThinkerConfig) -> torch.BoolTensor:
    """Whether the next token of each row `(rows,)` belongs to a mental image: the last is its start or a pad."""
    return (input_ids[:, -1] == config.latent_start_id) | (input_ids[:, -1] == config.latent_token_id)


class OutsideBlockLogitsProcessor(LogitsProcessor):
    """Outside a block neither pad nor end can be chosen. Comes first of all: top-k and top-p must leave others."""

    def __init__(self, config: FourDThinkerConfig):
        self.config = config

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores, outside = scores.clone(), ~in_block(input_ids, self.config)
        for token in (self.config.latent_token_id, self.config.latent_end_id):
            scores[:, token] = scores[:, token].masked_fill(outside, -torch.inf)
        return scores


class BlockLogitsProcessor(LogitsProcessor):
    """What a choice inside a block means. Comes last of all, after temperature, top-k and top-p have made the choice.

    With fewer than `latent_size` pads: `pad`; then `end`. With `early_end`, a choice of `end` ends the block before,
    and any other choice becomes `pad`: `pad` gets the probability of all other tokens, or, where the largest score is
    taken (`greedy`), the largest of theirs. A forced token scores 0, so beams neither gain nor lose by it.
    """

    def __init__(self, config: FourDThinkerConfig, early_end: bool, greedy: bool):
        self.config, self.early_end, self.greedy = config, early_end, greedy

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        pad, end, size = self.config.latent_token_id, self.config.latent_end_id, self.config.latent_size
        inside = in_block(input_ids, self.config)
        full = (input_ids[:, -size:] == pad).sum(-1) == size
        pad_score, end_score = torch.zeros_like(scores[:, 0]), torch.full_like(scores[:, 0], -torch.inf)
        if self.early_end:
            end_score = scores[:, end]
            others = scores.clone()
            others[:, end] = -torch.inf
            pad_score = others.amax(-1) if self.greedy else others.logsumexp(-1)
        ruled = scores.masked_fill(inside[:, None], -torch.inf)
        ruled[:, pad] = pad_score.masked_fill(~inside | full, -torch.inf)
        ruled[:, end] = torch.where(full, 0.0, end_score).masked_fill(~inside, -torch.inf)
        return ruled


@dataclass
class LatentTrace:
    """State of one call of `generate`; rides in `model_kwargs`, and with the cache where beams reorder it."""

    hook: Callable | None
    early_end: bool
    see_video: bool
    prompt_length: int = 0
    max_length: int = 0
    vectors: list[torch.Tensor] = field(default_factory=list)  # per new token (rows, hidden): fed for it if a pad
    order: torch.Tensor | None = None  # (rows,) where each row, if a running beam, stood in the newest forward


def end_of_first_images(tokens: torch.LongTensor, config: FourDThinkerConfig) -> torch.LongTensor:
    """How many of `tokens` `(rows, seq)` reach to the end of a row's first mental images, those with no word between
    them: `(rows,)`, 0 where there are none. That it is the end shows in the token behind it."""
    tokens = F.pad(tokens, (0, 1), value=config.latent_start_id)  # behind the last token another image may come
    is_last = (tokens == config.latent_end_id) & (tokens.roll(-1, 1) != config.latent_start_id)
    return torch.where(is_last.any(1), is_last.int().argmax(1) + 1, 0)


class BehindFirstImages(StoppingCriteria):
    """A row stops with the first word behind its first mental images."""

    def __init__(self, config: FourDThinkerConfig, prompt_length: int):
        self.config, self.prompt_length = config, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        return end_of_first_images(input_ids[:, self.prompt_length :], self.config) > 0


class Ended(StoppingCriteria):
    """Rows that have ended, `is_done` `(rows,)`, take no part."""

    def __init__(self, is_done: torch.BoolTensor):
        self.is_done = is_done

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        return self.is_done


class Relay:
    """One stream of two decodings. A value is passed on when the next one comes, so that the first decoding's last
    can be left out; the second one's prompt is left out too."""

    def __init__(self, streamer):
        self.streamer, self.held, self.skips_prompt = streamer, None, False

    def put(self, value: torch.Tensor) -> None:
        if not self.skips_prompt:
            self.flush()
            self.held = value
        self.skips_prompt = False

    def end(self) -> None:
        """Of one decoding."""

    def drop(self) -> None:
        """The last value, and the next one."""
        self.held, self.skips_prompt = None, True

    def flush(self) -> None:
        if self.held is not None:
            self.streamer.put(self.held)
        self.held = None


def gather_kept(ids, latents, keep, to_right: bool, fill: int):
    """The kept places of `ids` `(rows, seq)` and `latents` `(rows, seq, hidden)`, moved to the right or left end of as
    many columns as the row with most needs; elsewhere `fill` and zeros. Third the mask `(rows, columns)` of them."""
    order = (keep if to_right else ~keep).long().argsort(dim=1, stable=True)
    most = int(keep.sum(1).max())
    order = order[:, keep.shape[1] - most :] if to_right else order[:, :most]
    keep = keep.gather(1, order)
    latents = latents.gather(1, order[..., None].expand(-1, -1, latents.shape[-1]))
    return ids.gather(1, order).masked_fill(~keep, fill), latents.masked_fill(~keep[..., None], 0), keep


class LatentGenerationMixin:
    """Mixed into the model class before transformers' own `GenerationMixin`."""

    @torch.no_grad()
    def generate(
        self,
        inputs=None,
        *args,
        latent_early_end: bool | None = None,
        latent_hook=None,
        latents_see_video: bool = True,
        forget_video: bool | None = None,
        **kwargs,
    ):
        """[`GenerationMixin.generate`] with mental images: greedy, sampling or beams.

        Args (beyond those of `GenerationMixin.generate`):
            latent_early_end: overrides `config.latent_early_end`.
            latent_hook: `f(latents (rows, hidden), rows, block, slot) -> latents`, called before latents are fed, once
                for each; `rows`, `block` (mental images opened in the row before this one) and `slot` (place in the
                block) are `(rows,)` integer tensors. What it returns is fed, after `config.latent_scale`.
            latents_see_video: whether the new latents attend to the videos and pictures of the prompt. If not, what a
                latent passes on is what the vector fed holds (and what words and earlier latents say).
            forget_video: overrides `config.forget_video`. If true, once a row has its first mental images (with no
                word between them), its videos and pictures are dropped from the prompt, and what stands behind them
                is written by what was pictured alone. The output is as without: the whole prompt, then what is new.
            latent_embeds: `(batch, prompt, hidden)`, the latents of pads in the prompt (earlier turns).
            pixel_values_latent, image_grid_thw_latent: target frames for them instead, as `forward` takes them.

        With `return_dict_in_generate=True` returns [`FourDThinkerGenerateOutput`] or [`FourDThinkerBeamOutput`].
        Raises `ValueError`, before anything is computed, for what would not be exact.
        """
        if kwargs.get("custom_generate") is not None:
            raise ValueError("custom_generate replaces the decoding loop and would drop the latents")
        if kwargs.get("inputs_embeds") is not None:
            raise ValueError("Prompts are input_ids: in inputs_embeds alone the latents have no place")
        if inputs is not None or kwargs.get("input_ids") is not None:
            self._check_prompt(**({"input_ids": inputs} | kwargs))
        early_end = self.config.latent_early_end if latent_early_end is None else latent_early_end
        forget = self.config.forget_video if forget_video is None else forget_video
        trace = LatentTrace(latent_hook, early_end, latents_see_video)
        return (self._decode_forgetting if forget else self._decode)(trace, inputs, *args, **kwargs)

    def _decode(self, trace: LatentTrace, inputs, *args, **kwargs):
        output = super().generate(inputs, *args, latent_trace=trace, **kwargs)
        if isinstance(output, GenerateDecoderOnlyOutput):
            return FourDThinkerGenerateOutput(**output, latents=self._recorded(output.sequences, trace))
        if isinstance(output, GenerateBeamDecoderOnlyOutput):
            latents = self._recorded(output.sequences, trace, output.beam_indices)
            return FourDThinkerBeamOutput(**output, latents=latents)
        return output

    def _decode_forgetting(
        self,
        trace: LatentTrace,
        inputs,
        *args,
        input_ids=None,
        attention_mask=None,
        latent_embeds=None,
        pixel_values_latent=None,
        image_grid_thw_latent=None,
        stopping_criteria=None,
        streamer=None,
        return_dict_in_generate=None,
        **kwargs,
    ):
        """Decodes twice: with the videos, up to the first word behind the first mental images; then, that word
        dropped, without the videos. All rows go along both times: hooks and logits processors see the same rows."""
        settings, _ = self._prepare_generation_config(**{"generation_config": None} | kwargs)
        more = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
        caches = ((kwargs.get(name) is not None, name) for name in ("past_key_values", "cache"))
        refused = (settings.num_beams > 1, "num_beams"), *((getattr(settings, name), name) for name in more), *caches
        for applies, name in refused:
            if applies:
                raise ValueError(f"forget_video decodes in two parts, and {name} does not go with that")
        prompt = input_ids if inputs is None else inputs
        mask = torch.ones_like(prompt) if attention_mask is None else attention_mask
        if pixel_values_latent is not None:
            latents = self.model.get_latent_targets(pixel_values_latent, image_grid_thw_latent)
            latent_embeds = self.model.place_latents(prompt, latents)
        relay, pad = None if streamer is None else Relay(streamer), self.generation_config.pad_token_id or 0
        both, criteria = {"streamer": relay, "return_dict_in_generate": True}, list(stopping_criteria or ())
        first = self._decode(
            trace,
            None,
            *args,
            **both,
            **kwargs,
            input_ids=prompt,
            attention_mask=mask,
            latent_embeds=latent_embeds,
            stopping_criteria=StoppingCriteriaList([*criteria, BehindFirstImages(self.config, prompt.shape[1])]),
        )
        new, latents = first.sequences[:, prompt.shape[1] :], first.latents
        count = end_of_first_images(new, self.config)[:, None]  # (rows, 1); 0: the row has ended
        keep = (torch.arange(new.shape[1], device=new.device) < count) | (count == 0)
        limit, copies = trace.max_length - prompt.shape[1], len(new) // len(prompt)
        if count.any():
            shown = latents.new_zeros(*prompt.shape, latents.shape[-1]) if latent_embeds is None else latent_embeds
            told = mask.bool() & ~self.model.is_vision(prompt)
            rows = (tensor.repeat_interleave(copies, 0) for tensor in (prompt, shown.to(latents), told))
            ids, embeds, kept = (torch.cat(pair, 1) for pair in zip(rows, (new, latents, keep), strict=True))
            ids, embeds, kept = gather_kept(ids, embeds, kept, to_right=True, fill=pad)
            if relay is not None:
                relay.drop()
            kwargs = {name: value for name, value in kwargs.items() if name not in VISION_INPUTS}
            kwargs |= {"max_new_tokens": limit - int(count[count > 0].min()), "num_return_sequences": 1}
            second = self._decode(
                replace(trace, vectors=[], order=None),
                None,
                *args,
                **both,
                **kwargs,
                input_ids=ids,
                attention_mask=kept.long(),
                latent_embeds=embeds,
                stopping_criteria=StoppingCriteriaList([*criteria, Ended(count[:, 0] == 0)]),
            )
            tail = second.sequences[:, ids.shape[1] :]
            keep_tail = (torch.arange(tail.shape[1], device=new.device) < limit - count) & (count > 0)
            pairs = ((new, tail), (latents, second.latents), (keep, keep_tail))
            new, latents, keep = (torch.cat(pair, 1) for pair in pairs)
        if relay is not None:
            relay.flush()
            streamer.end()
        new, latents, _ = gather_kept(new, latents, keep, to_right=False, fill=pad)
        output = FourDThinkerGenerateOutput(torch.cat([prompt.repeat_interleave(copies, 0), new], 1), latents=latents)
        if return_dict_in_generate is None:
            return_dict_in_generate = settings.return_dict_in_generate
        return output if return_dict_in_generate else output.sequences

    def generate_batch(self, *args, **kwargs):
        """Refused, with a `ValueError`."""
        raise ValueError("Continuous batching passes token ids only and would drop the latents: use generate()")

    def _check_prompt(
        self,
        input_ids,
        attention_mask=None,
        past_key_values=None,
        cache=None,
        latent_embeds=None,
        pixel_values_latent=None,
        mm_encoder_outputs=None,
        **kwargs,
    ) -> None:
        """Refuse a prompt that would be read wrongly, or blindly."""
        cache = past_key_values if cache is None else cache
        cached = 0 if cache is None else int(cache.get_seq_length())
        if cached >= input_ids.shape[1] or (
            cached and attention_mask is not None and attention_mask.shape[1] != input_ids.shape[1]
        ):
            raise ValueError(
                f"input_ids must hold the whole prompt, the {cached} cached tokens included, got {input_ids.shape[1]}"
            )
        if pixel_values_latent is not None:
            if latent_embeds is not None:
                raise ValueError("Give the latents once: either pixel_values_latent or latent_embeds, not both")
            self.model.check_target_frames(input_ids, kwargs["image_grid_thw_latent"])
        if latent_embeds is not None and latent_embeds.shape[:2] != input_ids.shape:
            raise ValueError(
                f"latent_embeds must be as long as the prompt, what is cached of it included: input_ids have "
                f"{tuple(input_ids.shape)}, latent_embeds {tuple(latent_embeds.shape[:2])}"
            )
        new = input_ids[:, cached:]
        no_latents = pixel_values_latent is None and latent_embeds is None
        if no_latents and (num_pads := int((new == self.config.latent_token_id).sum())):
            raise ValueError(
                f"The prompt holds {num_pads} <|latent_pad|> tokens but no latents came with them: give latent_embeds "
                "(vectors, as generate returns them) or pixel_values_latent (target frames)"
            )
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            token, grid = getattr(self.config, f"{kind}_token_id"), f"{kind}_grid_thw"
            blind = kwargs.get(pixels) is None and mm_encoder_outputs is None and bool((new == token).any())
            if blind or (kwargs.get(grid) is None and bool((input_ids == token).any())):
                raise ValueError(
                    f"The prompt holds <|{kind}_pad|> tokens: give their {pixels} and {grid} (of what is "
                    f"cached {grid} alone)"
                )

    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs):
        exact = ("greedy_search", "sample", "beam_search", "beam_sample")
        refused = (
            (generation_mode.value not in exact, f"{generation_mode.value} feeds several tokens at once"),
            (not generation_config.use_cache, "use_cache=False computes earlier latents again"),
            (generation_config.cache_implementation == "paged", "cache_implementation='paged' passes token ids only"),
            (generation_config.guidance_scale not in (None, 1), "guidance_scale runs a second prompt"),
            (generation_config.token_healing, "token_healing rewrites the prompt"),
        )
        for applies, reason in refused:
            if applies:
                raise ValueError(f"Mental images cannot be decoded so: {reason}, without their vectors")
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)

    def _get_logits_processor(self, generation_config, input_ids_seq_length=None, model_kwargs=None, **kwargs):
        processors = super()._get_logits_processor(
            generation_config, input_ids_seq_length=input_ids_seq_length, model_kwargs=model_kwargs, **kwargs
        )
        trace, beams = model_kwargs["latent_trace"], generation_config.num_beams > 1
        trace.prompt_length, trace.max_length = input_ids_seq_length, generation_config.max_length
        if beams:
            model_kwargs[CACHE].latent_trace = trace  # what reorders their cache reorders their latents
        processors.insert(0, OutsideBlockLogitsProcessor(self.config))
        greedy = not generation_config.do_sample and not beams
        processors.append(BlockLogitsProcessor(self.config, trace.early_end, greedy))
        return processors

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        frames, grids = (model_kwargs.pop(name, None) for name in ("pixel_values_latent", "image_grid_thw_latent"))
        if frames is not None:  # as vectors they follow their row when rows are repeated, and come in chunks
            model_kwargs["latent_embeds"] = self.model.place_latents(
                input_ids, self.model.get_latent_targets(frames, grids)
            )
        return super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **model_kwargs)

    def prepare_inputs_for_generation(
        self, input_ids, is_first_iteration=False, latent_trace=None, latent_embeds=None, **kwargs
    ):
        """Qwen2.5-VL's, with `latent_embeds`: those of the prompt (a chunk of it) at first, then those just made."""
        if not (is_first_iteration or latent_trace.see_video):
            mask = kwargs.get("attention_mask")
            is_vision = self.model.get_mm_token_type_ids(input_ids) > 0
            hidden = is_vision & (input_ids[:, -1:] == self.config.latent_token_id)  # of this step's only query
            kwargs["attention_mask"] = (torch.ones_like(input_ids) if mask is None else mask).masked_fill(hidden, 0)
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration:
            inputs["latent_embeds"] = self._next_latents(input_ids, latent_trace)[:, None]
        elif latent_embeds is not None:
            length = inputs["input_ids"].shape[1]
            is_chunk = latent_embeds.shape[1] > input_ids.shape[1]  # of a prefill in chunks
            start = kwargs[CACHE].get_seq_length() if is_chunk else input_ids.shape[1] - length
            inputs["latent_embeds"] = latent_embeds[:, start : start + length]
        return inputs

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, **kwargs):
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)
        # A clone: a view would keep the hidden states of the whole prompt alive.
        model_kwargs["latent_trace"].vectors.append(outputs.last_hidden_state[:, -1].clone())
        return model_kwargs

    def _reorder_cache(self, cache, beam_idx):
        cache.reorder_cache(beam_idx)
        cache.latent_trace.order = beam_idx
        return cache

    def _next_latents(self, input_ids: torch.LongTensor, trace: LatentTrace) -> torch.Tensor:
        """What to feed for the last token of each row if it is a pad, `(rows, hidden)`; asks the hook."""
        vectors = trace.vectors[-1]
        order = torch.arange(len(vectors), device=vectors.device) if trace.order is None else trace.order
        rows = (input_ids[:, -1] == self.config.latent_token_id).nonzero()[:, 0] if trace.hook is not None else ()
        if len(rows):
            is_start = input_ids[rows] == self.config.latent_start_id
            block = is_start.sum(-1) - 1
            slot = is_start.flip(-1).int().argmax(-1) - 1  # pads since the last start, less this one
            latents = self.model.scale_latents(vectors[order[rows]])
            vectors[order[rows]] = trace.hook(latents, rows, block, slot).to(vectors)
        return vectors[order]

    def _recorded(self, sequences: torch.LongTensor, trace: LatentTrace, beam_indices=None) -> torch.Tensor:
        """The latents of the new tokens of `sequences`, `(rows, new_tokens, hidden)`."""
        num_new = sequences.shape[1] - trace.prompt_length
        if trace.hook is not None and len(trace.vectors) == num_new:  # the newest token was chosen but never fed
            trace.order = None if beam_indices is None else beam_indices[:, -1]
            self._next_latents(sequences, trace)
        vectors = torch.stack(trace.vectors[:num_new], 1)
        if beam_indices is not None:  # a token's vector is of the beam that it continued; -1 past the end, never a pad
            vectors = vectors[beam_indices, torch.arange(num_new, device=vectors.device)]
        is_pad = sequences[:, trace.prompt_length :] == self.config.latent_token_id
        return self.model.scale_latents(vectors).masked_fill(~is_pad[..., None], 0)

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        if not model_kwargs["attention_mask"][:, -1].all():
            raise ValueError("The prompt is padded on the right and would go on after its padding: pad on the left")
        if model_kwargs.get("mm_token_type_ids") is None:
            model_kwargs["mm_token_type_ids"] = self.model.get_mm_token_type_ids(inputs_tensor)
        # Without the cache: on one, Qwen2.5-VL goes on by the rope_deltas of whatever prompt the module saw last.
        return super()._prepare_position_ids_for_generation(inputs_tensor, {**model_kwargs, CACHE: None})


__all__ = ["BlockLogitsProcessor", "LatentGenerationMixin", "OutsideBlockLogitsProcessor"]
