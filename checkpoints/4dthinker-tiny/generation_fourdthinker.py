"""Decoding with mental images: what `FourDThinkerForConditionalGeneration` adds to transformers' `generate`.

A mental image is a block of tokens. Its latents are made by transformers' own decoding loops (greedy, sampling,
beams): wherever the chosen token is `<|latent_pad|>`, the last hidden state (after the final norm) of the step that
chose it is fed in place of its embedding.

    token    .. <|latent_start|>  <|latent_pad|>  <|latent_pad|> .. <|latent_end|>  text
    input    ..  its embedding     h(start)        h(1st pad)    ..  its embedding  its embedding

- A latent is fed in [`LatentGenerationMixin.prepare_inputs_for_generation`].
- The end of a block is forced in [`BlockLogitsProcessor`].
- On a CPU a sampled token is drawn in [`DrawLogitsProcessor`], from the same distribution as transformers draws from.
- What cannot be decoded exactly is refused with a `ValueError` before anything is computed: replaced loops, prompts
  without token ids and continuous batching in `generate` and `generate_batch`; prompts whose pads, pictures or videos
  come without their vectors in `_check_prompt`; decoding modes and settings in `_validate_generation_mode`; prompts
  padded on the right in `_prepare_position_ids_for_generation`; what does not go with `forget_video` in
  `_check_two_passes`.
- The state of one call is a [`LatentDecodingState`]. It travels in `model_kwargs`, so the model itself keeps none.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from transformers import LogitsProcessor, StoppingCriteria, StoppingCriteriaList
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_fourdthinker import FourDThinkerConfig

# The name of the cache in arguments and outputs, which transformers 5.24 changed.
CACHE_NAME = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"

# The arguments of `generate` that belong to a prompt's pictures and videos.
VISION_KWARGS = (
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
    """Adds `latents` `(rows, new_tokens, hidden)` in the model's dtype: the vector fed for each `<|latent_pad|>` (for
    a pad that ends the output, the vector that would have been fed), zeros elsewhere."""

    latents: torch.FloatTensor | None = None


@dataclass
class FourDThinkerBeamOutput(GenerateBeamDecoderOnlyOutput):
    """Adds `latents` as in [`FourDThinkerGenerateOutput`], one row for each returned hypothesis."""

    latents: torch.FloatTensor | None = None


@dataclass
class LatentDecodingState:
    """The state of one call of `generate`: `model_kwargs["latent_state"]`, and in beam search `cache.latent_state`."""

    hook: Callable | None
    early_end: bool
    latents_see_video: bool
    prompt_length: int = 0
    max_length: int = 0
    # One (rows, hidden) for each new token: the last hidden state of the step that chose it, fed if it is a pad.
    vectors: list[torch.Tensor] = field(default_factory=list)
    # (rows,) The rows of the newest of `vectors` that the running beams continue; None without beams.
    beam_order: torch.Tensor | None = None


class LatentGenerationMixin:
    """Goes before transformers' `GenerationMixin` among the base classes of the model."""

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
        """[`GenerationMixin.generate`] with mental images, for greedy decoding, sampling and beam search.

        Args (beyond those of `GenerationMixin.generate`):
            latent_early_end: overrides `config.latent_early_end`.
            latent_hook: `f(latents (rows, hidden), rows, block, slot) -> latents`, called once for each latent before
                it is fed; `rows`, `block` (the number of mental images opened before this one in the row) and `slot`
                (the place in the block) are integer tensors `(rows,)`. What it returns is fed, after
                `config.latent_scale`.
            latents_see_video: whether new latents attend to the videos and pictures of the prompt. If not, a latent
                passes on only what the vector fed for it holds, and what text and earlier latents hold.
            forget_video: overrides `config.forget_video`. If true, a row's videos and pictures are removed from the
                prompt after its first mental images (those with no text between them), and the rest is written from
                the mental images alone. The output still holds the whole prompt, followed by the new tokens.
            latent_embeds: `(batch, prompt, hidden)`, the latents of pads in the prompt (earlier turns).
            pixel_values_latent, image_grid_thw_latent: target frames for these pads instead, as `forward` takes them.

        With `return_dict_in_generate=True` returns [`FourDThinkerGenerateOutput`] or [`FourDThinkerBeamOutput`].
        Raises `ValueError`, before anything is computed, for what would not be exact.
        """
        if kwargs.get("custom_generate") is not None:
            raise ValueError("custom_generate replaces the decoding loop and would drop the latents")
        if kwargs.get("inputs_embeds") is not None:
            raise ValueError("Give the prompt as input_ids: inputs_embeds do not say where latents belong")
        if inputs is not None or kwargs.get("input_ids") is not None:
            self._check_prompt(**({"input_ids": inputs} | kwargs))
        early_end = self.config.latent_early_end if latent_early_end is None else latent_early_end
        forget = self.config.forget_video if forget_video is None else forget_video
        state = LatentDecodingState(latent_hook, early_end, latents_see_video)
        run = self._generate_in_two_passes if forget else self._generate_in_one_pass
        return run(state, inputs, *args, **kwargs)

    def _generate_in_one_pass(self, state: LatentDecodingState, inputs, *args, **kwargs):
        output = super().generate(inputs, *args, latent_state=state, **kwargs)
        if isinstance(output, GenerateDecoderOnlyOutput):
            return FourDThinkerGenerateOutput(**output, latents=self._latents_of(output.sequences, state))
        if isinstance(output, GenerateBeamDecoderOnlyOutput):
            latents = self._latents_of(output.sequences, state, output.beam_indices)
            return FourDThinkerBeamOutput(**output, latents=latents)
        return output

    def _generate_in_two_passes(
        self,
        state: LatentDecodingState,
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
        """Decodes with `forget_video`: the first pass, with the videos, stops at the first token of text after a row's
        first mental images; the second pass, without the videos, starts again from before that token. All rows go
        through both passes, so that hooks and logits processors see the same rows."""
        settings, _ = self._prepare_generation_config(**{"generation_config": None} | kwargs)
        _check_two_passes(settings, kwargs)
        prompt = input_ids if inputs is None else inputs
        mask = torch.ones_like(prompt) if attention_mask is None else attention_mask
        if pixel_values_latent is not None:
            targets = self.model.get_latent_targets(pixel_values_latent, image_grid_thw_latent)
            latent_embeds = self.model.place_latents(prompt, targets)
        pad_token_id, criteria = self.generation_config.pad_token_id or 0, list(stopping_criteria or ())
        two_pass_streamer = None if streamer is None else TwoPassStreamer(streamer)
        kwargs |= {"streamer": two_pass_streamer, "return_dict_in_generate": True}

        first = self._generate_in_one_pass(
            state,
            None,
            *args,
            **kwargs,
            input_ids=prompt,
            attention_mask=mask,
            latent_embeds=latent_embeds,
            stopping_criteria=StoppingCriteriaList([*criteria, FirstImagesCriteria(self.config, prompt.shape[1])]),
        )
        new, latents = first.sequences[:, prompt.shape[1] :], first.latents
        num_kept = end_of_first_images(new, self.config)[:, None]  # (rows, 1); 0: the row is finished, all is kept
        keep = (torch.arange(new.shape[1], device=new.device) < num_kept) | (num_kept == 0)
        max_new_tokens, copies = state.max_length - prompt.shape[1], len(new) // len(prompt)

        if num_kept.any():
            if latent_embeds is None:
                latent_embeds = latents.new_zeros(*prompt.shape, latents.shape[-1])
            is_text = mask.bool() & ~self.model.is_vision(prompt)
            expanded = (x.repeat_interleave(copies, 0) for x in (prompt, latent_embeds.to(latents), is_text))
            joined = (torch.cat(pair, 1) for pair in zip(expanded, (new, latents, keep), strict=True))
            ids, embeds, is_token = drop_tokens(*joined, padding_side="left", pad_token_id=pad_token_id)
            if two_pass_streamer is not None:
                two_pass_streamer.start_second_pass()
            kwargs = {name: value for name, value in kwargs.items() if name not in VISION_KWARGS}
            kwargs |= {"max_new_tokens": max_new_tokens - int(num_kept[num_kept > 0].min()), "num_return_sequences": 1}
            second = self._generate_in_one_pass(
                replace(state, vectors=[], beam_order=None),
                None,
                *args,
                **kwargs,
                input_ids=ids,
                attention_mask=is_token.long(),
                latent_embeds=embeds,
                stopping_criteria=StoppingCriteriaList([*criteria, FinishedRowsCriteria(num_kept[:, 0] == 0)]),
            )
            rest = second.sequences[:, ids.shape[1] :]
            steps = torch.arange(rest.shape[1], device=new.device)
            keep_rest = (steps < max_new_tokens - num_kept) & (num_kept > 0)
            pairs = ((new, rest), (latents, second.latents), (keep, keep_rest))
            new, latents, keep = (torch.cat(pair, 1) for pair in pairs)

        if two_pass_streamer is not None:
            two_pass_streamer.finish()
        new, latents, _ = drop_tokens(new, latents, keep, padding_side="right", pad_token_id=pad_token_id)
        output = FourDThinkerGenerateOutput(torch.cat([prompt.repeat_interleave(copies, 0), new], 1), latents=latents)
        if return_dict_in_generate is None:
            return_dict_in_generate = settings.return_dict_in_generate
        return output if return_dict_in_generate else output.sequences

    # What is refused.

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
        """Raises `ValueError` for a prompt whose latents, pictures or videos are missing or do not fit its tokens."""
        cache = past_key_values if cache is None else cache
        num_cached = 0 if cache is None else int(cache.get_seq_length())
        if num_cached >= input_ids.shape[1] or (
            num_cached and attention_mask is not None and attention_mask.shape[1] != input_ids.shape[1]
        ):
            raise ValueError(
                f"input_ids must hold the whole prompt, including the {num_cached} cached tokens and at least one "
                f"token after them, and attention_mask must be as long; input_ids hold {input_ids.shape[1]} tokens"
            )
        if pixel_values_latent is not None:
            if latent_embeds is not None:
                raise ValueError("Give the latents once: either pixel_values_latent or latent_embeds, not both")
            self.model.check_target_frames(input_ids, kwargs["image_grid_thw_latent"])
        if latent_embeds is not None and latent_embeds.shape[:2] != input_ids.shape:
            raise ValueError(
                "latent_embeds must be as long as the prompt, including its cached part: input_ids have the shape "
                f"{tuple(input_ids.shape)}, latent_embeds {tuple(latent_embeds.shape[:2])}"
            )
        uncached = input_ids[:, num_cached:]
        no_latents = pixel_values_latent is None and latent_embeds is None
        if no_latents and (num_pads := int((uncached == self.config.latent_token_id).sum())):
            raise ValueError(
                f"The prompt holds {num_pads} <|latent_pad|> tokens but no latents came with them: give latent_embeds "
                "(vectors, as generate returns them) or pixel_values_latent (target frames)"
            )
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            token, grid = getattr(self.config, f"{kind}_token_id"), f"{kind}_grid_thw"
            no_pixels = kwargs.get(pixels) is None and mm_encoder_outputs is None and bool((uncached == token).any())
            if no_pixels or (kwargs.get(grid) is None and bool((input_ids == token).any())):
                raise ValueError(
                    f"The prompt holds <|{kind}_pad|> tokens: give their {pixels} and {grid} (for cached tokens, "
                    f"{grid} alone)"
                )

    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs):
        exact = ("greedy_search", "sample", "beam_search", "beam_sample")
        refused = (
            (generation_mode.value not in exact, f"{generation_mode.value} feeds several tokens at once"),
            (not generation_config.use_cache, "use_cache=False runs earlier tokens again"),
            (generation_config.cache_implementation == "paged", "cache_implementation='paged' passes token ids only"),
            (generation_config.guidance_scale not in (None, 1), "guidance_scale runs a second prompt"),
            (generation_config.token_healing, "token_healing rewrites the prompt"),
        )
        for applies, reason in refused:
            if applies:
                raise ValueError(f"Mental images cannot be decoded with these settings: {reason}, without the latents")
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        if not model_kwargs["attention_mask"][:, -1].all():
            raise ValueError("The prompt is padded on the right, so new tokens would follow the padding: pad it left")
        if model_kwargs.get("mm_token_type_ids") is None:
            model_kwargs["mm_token_type_ids"] = self.model.get_mm_token_type_ids(inputs_tensor)
        # Without the cache: given one, Qwen2.5-VL uses the rope_deltas of whichever prompt the module saw last.
        return super()._prepare_position_ids_for_generation(inputs_tensor, {**model_kwargs, CACHE_NAME: None})

    # What transformers' decoding loop calls: first once, then at each step.

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        frames, grids = (model_kwargs.pop(name, None) for name in ("pixel_values_latent", "image_grid_thw_latent"))
        if frames is not None:  # as vectors they are repeated with their row, and cut with a prefill in chunks
            targets = self.model.get_latent_targets(frames, grids)
            model_kwargs["latent_embeds"] = self.model.place_latents(input_ids, targets)
        return super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **model_kwargs)

    def _get_logits_processor(self, generation_config, input_ids_seq_length=None, model_kwargs=None, **kwargs):
        """Puts the two rules of a block around all other processors: their order decides what top-k leaves."""
        processors = super()._get_logits_processor(
            generation_config, input_ids_seq_length=input_ids_seq_length, model_kwargs=model_kwargs, **kwargs
        )
        state, uses_beams = model_kwargs["latent_state"], generation_config.num_beams > 1
        state.prompt_length, state.max_length = input_ids_seq_length, generation_config.max_length
        if uses_beams:
            model_kwargs[CACHE_NAME].latent_state = state  # for `_reorder_cache`
        greedy = not generation_config.do_sample and not uses_beams
        processors.insert(0, OutsideBlockLogitsProcessor(self.config))
        processors.append(BlockLogitsProcessor(self.config, state.early_end, greedy))
        draws_here = generation_config.do_sample and not uses_beams and not generation_config.output_scores
        if draws_here and self.device.type == "cpu":
            processors.append(DrawLogitsProcessor())
            generation_config.do_sample = False  # of this call's copy: the loop then takes the token that was drawn
        return processors

    def prepare_inputs_for_generation(
        self, input_ids, is_first_iteration=False, latent_state=None, latent_embeds=None, **kwargs
    ):
        """Qwen2.5-VL's inputs of the next forward, with `latent_embeds`: at the first step the latents of the prompt
        (or of a chunk of it), at each later step the vectors to feed for the tokens just chosen."""
        if not (is_first_iteration or latent_state.latents_see_video):
            mask = kwargs.get("attention_mask")
            is_vision = self.model.get_mm_token_type_ids(input_ids) > 0
            hidden = is_vision & (input_ids[:, -1:] == self.config.latent_token_id)  # from this step's only query
            kwargs["attention_mask"] = (torch.ones_like(input_ids) if mask is None else mask).masked_fill(hidden, 0)
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration:
            inputs["latent_embeds"] = self._next_latents(input_ids, latent_state)[:, None]
        elif latent_embeds is not None:
            length = inputs["input_ids"].shape[1]
            is_chunk = latent_embeds.shape[1] > input_ids.shape[1]  # of a prefill in chunks
            start = kwargs[CACHE_NAME].get_seq_length() if is_chunk else input_ids.shape[1] - length
            inputs["latent_embeds"] = latent_embeds[:, start : start + length]
        return inputs

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, **kwargs):
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)
        # A clone, because a view would keep the hidden states of the whole prompt in memory.
        model_kwargs["latent_state"].vectors.append(outputs.last_hidden_state[:, -1].clone())
        return model_kwargs

    def _reorder_cache(self, cache, beam_idx):
        cache.reorder_cache(beam_idx)
        cache.latent_state.beam_order = beam_idx
        return cache

    # The vectors of latents.

    def _next_latents(self, input_ids: torch.LongTensor, state: LatentDecodingState) -> torch.Tensor:
        """The vector to feed for the last token of each row if it is a pad, `(rows, hidden)`. Calls the hook."""
        vectors, order = state.vectors[-1], state.beam_order
        if order is None:
            order = torch.arange(len(vectors), device=vectors.device)
        rows = (input_ids[:, -1] == self.config.latent_token_id).nonzero()[:, 0] if state.hook is not None else ()
        if len(rows):
            is_start = input_ids[rows] == self.config.latent_start_id
            block = is_start.sum(-1) - 1
            slot = is_start.flip(-1).int().argmax(-1) - 1  # the number of pads since the last start, less this one
            latents = self.model.scale_latents(vectors[order[rows]])
            vectors[order[rows]] = state.hook(latents, rows, block, slot).to(vectors)
        return vectors[order]

    def _latents_of(self, sequences: torch.LongTensor, state: LatentDecodingState, beam_indices=None) -> torch.Tensor:
        """The output's `latents` `(rows, new_tokens, hidden)` for the new tokens of `sequences`."""
        num_new = sequences.shape[1] - state.prompt_length
        if state.hook is not None and len(state.vectors) == num_new:  # the newest token was chosen but never fed
            state.beam_order = None if beam_indices is None else beam_indices[:, -1]
            self._next_latents(sequences, state)
        vectors = torch.stack(state.vectors[:num_new], 1)
        if beam_indices is not None:  # each token's vector is that of the beam it continued (-1 after the end, no pad)
            vectors = vectors[beam_indices, torch.arange(num_new, device=vectors.device)]
        is_pad = sequences[:, state.prompt_length :] == self.config.latent_token_id
        return self.model.scale_latents(vectors).masked_fill(~is_pad[..., None], 0)


# The rules of a block.


def in_block(input_ids: torch.LongTensor, config: FourDThinkerConfig) -> torch.BoolTensor:
    """Whether the next token of each row belongs to a mental image, `(rows,)`: the last is its start or a pad."""
    return (input_ids[:, -1] == config.latent_start_id) | (input_ids[:, -1] == config.latent_token_id)


class OutsideBlockLogitsProcessor(LogitsProcessor):
    """Forbids `<|latent_pad|>` and `<|latent_end|>` outside a block. It must run before all other processors, so that
    top-k and top-p keep tokens that can be chosen."""

    def __init__(self, config: FourDThinkerConfig):
        self.config = config

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores, outside = scores.clone(), ~in_block(input_ids, self.config)
        for token in (self.config.latent_token_id, self.config.latent_end_id):
            scores[:, token] = scores[:, token].masked_fill(outside, -torch.inf)
        return scores


class BlockLogitsProcessor(LogitsProcessor):
    """Decides what a chosen token means inside a block. It must run after all other processors: after temperature,
    top-k and top-p have decided which tokens can be chosen.

    A block with fewer than `latent_size` pads gets `<|latent_pad|>`, a full one `<|latent_end|>`. With `early_end`,
    the choice of `<|latent_end|>` ends the block at once and any other choice becomes a pad: the pad gets the
    probability of all other tokens or, where the largest score is taken (`greedy`), the largest of their scores. A
    forced token scores 0, so that beams neither gain nor lose by it.
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


class DrawLogitsProcessor(LogitsProcessor):
    """Draws a token for each row from the softmax of its scores, and leaves a score to that token alone. It must run
    last. It takes one random number for each row, where `torch.multinomial`, which transformers uses, takes one for
    each entry of the vocabulary: on a CPU that can cost as much as a row's layers."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        # In float64, so that a sum over the vocabulary keeps even the smallest probabilities.
        sums = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
        draws = torch.rand(len(scores), 1, dtype=torch.float64) * sums[:, -1:]
        tokens = torch.searchsorted(sums, draws, right=True)  # `right`: a token without probability is never drawn
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)


# What `forget_video` needs.


def _check_two_passes(settings, kwargs: dict) -> None:
    outputs = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    refused = ["num_beams"] if settings.num_beams > 1 else []
    refused += [name for name in outputs if getattr(settings, name)]
    refused += [name for name in ("past_key_values", "cache") if kwargs.get(name) is not None]
    if refused:
        raise ValueError(
            f"forget_video=True decodes in two passes and cannot be combined with {' and '.join(refused)}"
        )


def end_of_first_images(tokens: torch.LongTensor, config: FourDThinkerConfig) -> torch.LongTensor:
    """The number of `tokens` `(rows, seq)` up to the end of each row's first mental images, those with no text between
    them: `(rows,)`, 0 where there are none. The token after an image shows whether another one follows."""
    tokens = F.pad(tokens, (0, 1), value=config.latent_start_id)  # after the last token, another image may follow
    is_last = (tokens == config.latent_end_id) & (tokens.roll(-1, 1) != config.latent_start_id)
    return torch.where(is_last.any(1), is_last.int().argmax(1) + 1, 0)


class FirstImagesCriteria(StoppingCriteria):
    """Stops a row at the first token of text after its first mental images."""

    def __init__(self, config: FourDThinkerConfig, prompt_length: int):
        self.config, self.prompt_length = config, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        return end_of_first_images(input_ids[:, self.prompt_length :], self.config) > 0


class FinishedRowsCriteria(StoppingCriteria):
    """Stops rows that are finished already, `is_finished` `(rows,)`."""

    def __init__(self, is_finished: torch.BoolTensor):
        self.is_finished = is_finished

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        return self.is_finished


class TwoPassStreamer(BaseStreamer):
    """Gives two decodings to `streamer` as one. A value is passed on only when the next one comes, so that the last
    value of the first pass, which the second replaces, can be dropped. The second pass's prompt is dropped, too."""

    def __init__(self, streamer: BaseStreamer):
        self.streamer, self.held, self.skips_prompt = streamer, None, False

    def put(self, value: torch.Tensor) -> None:
        if not self.skips_prompt:
            self._pass_on()
            self.held = value
        self.skips_prompt = False

    def end(self) -> None:
        """A pass has ended. The stream ends with `finish`."""

    def start_second_pass(self) -> None:
        self.held, self.skips_prompt = None, True

    def finish(self) -> None:
        self._pass_on()
        self.streamer.end()

    def _pass_on(self) -> None:
        if self.held is not None:
            self.streamer.put(self.held)
        self.held = None


def drop_tokens(ids, latents, keep, padding_side: str, pad_token_id: int):
    """Removes the tokens of `ids` `(rows, seq)` and `latents` `(rows, seq, hidden)` where `keep` `(rows, seq)` is
    false, and pads the rows to the length of the longest. Returns both and the mask of what is not padding."""
    is_left = padding_side == "left"
    order = (keep if is_left else ~keep).long().argsort(dim=1, stable=True)
    longest = int(keep.sum(1).max())
    order = order[:, keep.shape[1] - longest :] if is_left else order[:, :longest]
    keep = keep.gather(1, order)
    latents = latents.gather(1, order[..., None].expand(-1, -1, latents.shape[-1]))
    return ids.gather(1, order).masked_fill(~keep, pad_token_id), latents.masked_fill(~keep[..., None], 0), keep


__all__ = ["BlockLogitsProcessor", "DrawLogitsProcessor", "LatentGenerationMixin", "OutsideBlockLogitsProcessor"]
