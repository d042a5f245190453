"""4DRL: GRPO on replies of text and latents. The changes w.r.t. `GRPOTrainer` are the rollout and the scoring.

- [`FourDRLTrainer.rollout`] samples replies and keeps, for each, the latents that were fed ([`SampledReply`]).
- [`FourDRLTrainer.replay_and_score`] feeds the same latents again in every forward that scores a reply: policy, old
  policy and reference. There they are constants.
- [`FourDRLTrainer.sampled_token_mask`] says which tokens carry gradient: text, `<|latent_start|>` and a sampled
  `<|latent_end|>`. `<|latent_pad|>` and a forced `<|latent_end|>` were not sampled and carry none.

In a rollout each video is decoded and encoded once (the vision tower is frozen, so scoring uses the same features) and
each prompt is run once: its cache is repeated for the replies to it. For scoring, the replies to a prompt are packed
behind one copy of it, and all prompts in one row, in which a reply attends to its prompt and to itself:

    input     prompt[:-1]   prompt[-1] reply 1[:-1]   prompt[-1] reply 2[:-1]   ..
    predicts  nothing       reply 1                   reply 2                   ..

Forced tokens are fed, but no head predicts them: their log-probabilities have no use.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.rewards import get_soft_overlong_punishment
from trl.trainer.utils import maybe_gather_lm_head_ctx

from ..batch_inference import encoder_outputs, generate_with, prefill_prompts, trim_reply
from ..processing_fourdthinker import OUTPUT_IMAGE
from . import rewards
from .collator import IGNORE_INDEX
from .grpo_config import FourDRLConfig
from .log_probs import TiledLogProbs
from .lora import check_frozen_tower, prepare_peft_config
from .trainer_mixin import FourDThinkerTrainerMixin, unwrap_peft


class SampledReply(NamedTuple):
    """What is needed to score a reply, beside its tokens."""

    prompt: int  # number of its prompt in the rollout
    features: torch.Tensor  # (n, hidden): of the video, shared by all replies about it
    grid: torch.LongTensor  # (3,): patches of the video in time, height and width
    seconds: torch.Tensor  # (): seconds from one temporal patch to the next
    latents: torch.Tensor  # (num_pads, hidden), as they were fed; a pad that ends a reply was not fed


class FourDRLTrainer(FourDThinkerTrainerMixin, GRPOTrainer):
    """`GRPOTrainer` on rows of [`question_dataset`], in which sampled latents are replayed when a reply is scored.

    The rewards are those of `args` (see [`FourDRLConfig`]) unless `reward_funcs` are given. Logs, beside TRL's
    metrics, `completions/images`: the mean number of mental images in a reply, and `skipped_records`: how often a bad
    record was skipped. The vision tower is frozen.
    """

    def __init__(self, model, args: FourDRLConfig, reward_funcs=None, peft_config=None, **kwargs):
        for name in ("tools", "environment_factory", "rollout_func", "quantization_config"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} does not work with 4DRL: a reply is one turn, sampled with its latents")
        if isinstance(peft_config, LoraConfig) and peft_config.trainable_token_indices is not None:
            raise ValueError(
                "trainable_token_indices do not work with 4DRL: TRL would score with the head that lacks them"
            )
        prepare_peft_config(peft_config, model.config)
        if model.config.forget_video:
            raise ValueError("a model with forget_video cannot be trained by 4DRL yet: its replies have two contexts")
        model.model.visual.requires_grad_(False)
        config = self._config = model.config
        args.generation_kwargs = {
            "suppress_tokens": [config.image_token_id, config.video_token_id],  # each would require a picture
            "return_dict_in_generate": True,  # with the latents
        } | (args.generation_kwargs or {})
        if reward_funcs is None:
            if args.reward_weights is not None:
                raise ValueError(
                    "reward_weights belong to your own reward_funcs: give accuracy_weight, format_weight, .. instead"
                )
            weighted = {
                rewards.accuracy: args.accuracy_weight,
                rewards.format: args.format_weight,
                rewards.imagery: args.imagery_weight,
                get_soft_overlong_punishment(
                    args.max_completion_length, max(args.max_completion_length // 5, 1)
                ): args.length_weight,
            }
            reward_funcs = [function for function, weight in weighted.items() if weight]
            args.reward_weights = [weight for weight in weighted.values() if weight]
        self._rows: list[dict] = []  # of the rollout
        self._sampled_replies: list[SampledReply] = []  # one for each reply that is about to be scored
        self._scored_positions: torch.BoolTensor | None = None  # (rows, seq): the positions that reach the head
        super().__init__(model=model, args=args, reward_funcs=reward_funcs, peft_config=peft_config, **kwargs)
        check_frozen_tower(self.model)
        self.rollout_func = self.rollout
        for scorer in (self.model, self.ref_model):
            if scorer is not None:
                network = unwrap_peft(self.accelerator.unwrap_model(scorer))
                network.model.register_forward_hook(self._keep_scored_positions)
                if network.config.text_config._attn_implementation == "sdpa":
                    network.set_attn_implementation({"text_config": PACKED_ATTENTION})

    # The rollout

    def _generate_and_score_completions(self, inputs):
        """Keeps the rows for [`rollout`] and adds the sampled replies to TRL's batch."""
        self._rows = inputs
        self._count_skipped(sum(row.get("num_skipped", 0) for row in inputs))
        output = super()._generate_and_score_completions(inputs)
        return output | {"sampled_replies": self._sampled_replies}

    def _generate(self, prompts):
        """Replies are decoded as in evaluation: with `<output_image>` for each mental image."""
        output = list(super()._generate(prompts))
        output[3] = replies = [self.processing_class.decode_with_images(ids) for ids in output[1]]
        images = torch.tensor([float(reply.count(OUTPUT_IMAGE)) for reply in replies], device=self.accelerator.device)
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["completions/images"].append(self.accelerator.gather(images).mean().item())
        return tuple(output)

    def num_skipped(self, *modes: str) -> int:
        """A question is in as many rows as it has replies."""
        replies = {"train": self.num_generations, "eval": self.num_generations_eval}
        return sum(super(FourDRLTrainer, self).num_skipped(mode) // replies[mode] for mode in modes or replies)

    def log(self, logs, start_time=None):
        if self.model.training and (num_skipped := self.num_skipped("train")):
            logs["skipped_records"] = num_skipped
        super().log(logs, start_time)

    @torch.no_grad()
    def rollout(self, prompts, trainer) -> dict[str, list]:
        """Samples a reply for each row and keeps its latents. Returns what TRL's `rollout_func` returns: `prompt_ids`,
        `completion_ids`, and `env_mask`, 1 where a token was sampled and 0 where it was forced."""
        indices = list(dict.fromkeys(row["index"] for row in self._rows))
        prompt_numbers = [indices.index(row["index"]) for row in self._rows]  # of each reply
        questions = [self._rows[prompt_numbers.index(number)] for number in range(len(indices))]
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ),
            self.accelerator.autocast(),
        ):
            reply_to = torch.tensor(prompt_numbers, device=self.accelerator.device)
            inputs, features = prefill_prompts(self.unwrapped_model, self.processing_class, questions, reply_to)
            output = self.sample_replies(inputs)
        grids, seconds, length = inputs["video_grid_thw"], inputs["second_per_grid_ts"], inputs["input_ids"].shape[1]
        completion_ids, masks, self._sampled_replies = [], [], []
        for row, (ids, latents) in enumerate(zip(output.sequences[:, length:], output.latents, strict=True)):
            ids = trim_reply(ids, self.eos_token_ids)
            is_fed = ids == self._config.latent_token_id
            is_fed[-1] = False  # the last token is never fed
            number = prompt_numbers[row]
            self._sampled_replies.append(
                SampledReply(number, features[number], grids[row], seconds[row], latents[: len(ids)][is_fed])
            )
            completion_ids.append(ids.tolist())
            masks.append(self.sampled_token_mask(ids).int().tolist())
        padded = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
        prompt_ids = [row[mask].tolist() for row, mask in padded]
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None, "env_mask": masks}

    def sample_replies(self, inputs: dict):
        """Generates with the trainer's sampling settings alone."""
        return generate_with(self.unwrapped_model, self.generation_config, inputs)

    def sampled_token_mask(self, ids: torch.LongTensor) -> torch.BoolTensor:
        """Mask of the tokens of replies `(.., length)` that the model sampled, which carry gradient. The other tokens,
        inside mental images, were forced."""
        is_pad, is_end = (ids == token for token in (self._config.latent_token_id, self._config.latent_end_id))
        if not self._config.latent_early_end:
            return ~(is_pad | is_end)
        size = self._config.latent_size
        follows_full_block = F.pad(is_pad, (size, 0))[..., :-1].unfold(-1, size, 1).all(-1)
        return ~(is_pad | (is_end & follows_full_block))

    # The scoring

    def _prepare_inputs(self, generation_batch):
        """TRL's method without its shuffle: the replies to a prompt stay together, so the prompt is scored once."""
        if not self.model.training:
            return self._generate_and_score_completions(generation_batch)
        num_parts = self.args.steps_per_generation
        if self._step % (num_parts * self.num_iterations) == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            size = len(batch["prompt_ids"]) // num_parts
            self._buffered_inputs = [
                {k: v if getattr(v, "ndim", 1) == 0 else v[i * size : (i + 1) * size] for k, v in batch.items()}
                for i in range(num_parts)
            ]
        return self._buffered_inputs[self._step % num_parts]

    def _compute_loss(self, model, inputs):
        """TRL's loss of replies whose latents are replayed. Stops all processes if it is not finite."""
        self._sampled_replies = inputs["sampled_replies"]
        return self.check_finite(super()._compute_loss(model, inputs))

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **unused
    ):
        """TRL's log-probabilities and entropies `(rows, logits_to_keep)`, of replies with their latents and videos."""
        size = batch_size or len(input_ids)
        scores = []
        for start in range(0, len(input_ids), size):
            part = slice(start, start + size)
            scores.append(
                self.replay_and_score(
                    model, input_ids[part], attention_mask[part], logits_to_keep, self._sampled_replies[part]
                )
            )
        logps, entropies = (None if parts[0] is None else torch.cat(parts) for parts in zip(*scores, strict=True))
        return logps, entropies if compute_entropy else None, None

    def replay_and_score(self, model, input_ids, attention_mask, length: int, sampled: list[SampledReply]):
        """Log-probabilities and entropies `(rows, length)` of the last `length` tokens of each row, 0 where a token is
        padding or was forced. The latents of `sampled`, one reply a row, are fed as they were fed when the reply was
        sampled."""
        prompts, replies = input_ids[:, :-length], input_ids[:, -length:]
        prompt_mask, reply_mask = attention_mask[:, :-length].bool(), attention_mask[:, -length:].bool()
        is_scored = reply_mask & self.sampled_token_mask(replies)
        lengths = reply_mask.sum(-1).tolist()
        groups = self.group_replies(sampled)
        order = [row for group in groups for row in group]

        first = [group[0] for group in groups]  # the prompt and video of a group are those of its first reply
        grids, seconds = (torch.stack([getattr(sampled[i], name) for i in first]) for name in ("grid", "seconds"))
        prompt_positions, _ = self.unwrapped_model.model.get_rope_index(
            prompts[first], video_grid_thw=grids, second_per_grid_ts=seconds, attention_mask=prompt_mask[first]
        )
        packed = [
            self._pack(
                prompts[group[0]][prompt_mask[group[0]]],
                prompt_positions[:, n, prompt_mask[group[0]]],
                [replies[i, : lengths[i]] for i in group],
                [is_scored[i, : lengths[i]] for i in group],
            )
            for n, group in enumerate(groups)
        ]
        columns, segments = list(zip(*packed, strict=True))[:3], [segments for *_, segments in packed]
        if self._shares_prompts:
            ids, targets, positions = (torch.cat(column)[None] for column in columns)
            attention = {"segments": segments}
        else:
            fills = (self._tokenizer.pad_token_id, IGNORE_INDEX, 1)
            ids, targets, positions = (pad_sequence(c, True, fill) for c, fill in zip(columns, fills, strict=True))
            ends = torch.tensor([sum(row) for row in segments], device=ids.device)
            attention = {"attention_mask": (torch.arange(ids.shape[1], device=ids.device) < ends[:, None]).long()}
        latents = torch.cat([sampled[i].latents if lengths[i] else sampled[i].latents[:0] for i in order])
        if not self.args.replay:  # what public implementations of the method do
            with torch.no_grad():
                pad = self.unwrapped_model.get_input_embeddings()(ids.new_tensor([self._config.latent_token_id]))
            latents = pad.expand_as(latents)
        self._scored_positions = targets != IGNORE_INDEX
        targets = targets[self._scored_positions]
        inputs = {
            "input_ids": ids,
            "position_ids": positions.movedim(-1, 0),
            "latent_embeds": self.unwrapped_model.model.place_latents(ids, latents),
            "mm_encoder_outputs": encoder_outputs([sampled[i].features for i in first]),
            **attention,
        }
        with self.accelerator.autocast():
            if ids.device.type == "cpu":
                states = model(**inputs, use_cache=False, logits_to_keep=[]).last_hidden_state[0]
                scorer = unwrap_peft(self.accelerator.unwrap_model(model))  # the policy or the reference
                weight = scorer.get_output_embeddings().weight
                with maybe_gather_lm_head_ctx(weight, None):  # with ZeRO-3 it is whole within the model alone
                    values = TiledLogProbs.apply(states, weight, targets, self.temperature)
            else:
                output = model(**inputs, shift_labels=targets[None], fused_lm_head=True)
                values = [None if x is None else x[0] for x in (output.log_probs, output.entropy)]
        self._scored_positions = None
        row, column = is_scored[order].nonzero(as_tuple=True)
        unpacked = (torch.tensor(order, device=row.device)[row], column)
        return tuple(None if x is None else x.new_zeros(reply_mask.shape).index_put(unpacked, x) for x in values)

    @property
    def _shares_prompts(self) -> bool:
        """Whether the text model's attention can be that of packed rows."""
        return self._config.text_config._attn_implementation == PACKED_ATTENTION

    def group_replies(self, sampled: list[SampledReply]) -> list[list[int]]:
        """The replies that are packed behind one copy of their prompt."""
        groups = {}
        for i, reply in enumerate(sampled):
            groups.setdefault(reply.prompt if self._shares_prompts else i, []).append(i)
        return list(groups.values())

    @staticmethod
    def _pack(prompt, prompt_positions, replies, are_scored):
        """Packs a prompt `(length,)`, its positions `(3, length)` and the replies to it: ids and targets `(seq,)`,
        positions `(seq, 3)`, and the lengths of the segments, prompt first."""
        ids, targets, positions = (
            [prompt[:-1]],
            [torch.full_like(prompt[:-1], IGNORE_INDEX)],
            [prompt_positions[:, :-1]],
        )
        for reply, is_scored in zip(replies, are_scored, strict=True):
            inputs = torch.cat([prompt[-1:], reply[:-1]])
            ids.append(inputs)
            ignored = torch.full_like(inputs, IGNORE_INDEX)
            targets.append(torch.where(is_scored, reply, ignored) if len(reply) else ignored)
            positions.append(prompt_positions[:, -1:] + torch.arange(len(inputs), device=inputs.device))
        segments = [len(part) for part in ids]
        return torch.cat(ids), torch.cat(targets), torch.cat(positions, 1).T, segments

    def _keep_scored_positions(self, module, inputs, output) -> None:
        """Forward hook of the base model. While a batch is scored, the head gets only the states that predict a
        reply's tokens, `(1, num_tokens, hidden)`."""
        if self._scored_positions is not None:
            output.last_hidden_state = output.last_hidden_state[self._scored_positions][None]

    # Resuming

    def _save_rng_state(self, output_dir):
        """Also saves the number of the step, the number of skipped records and, if later steps still learn from this
        rollout, its replies."""
        is_used_up = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # the main process may not have made it yet
        state = (self._step, self._num_skipped, None if is_used_up else self._buffered_inputs)
        torch.save(state, self._state_file(output_dir))
        super()._save_rng_state(output_dir)

    def _load_rng_state(self, checkpoint):
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and self._state_file(checkpoint).exists():
            path, device = self._state_file(checkpoint), self.accelerator.device.type
            state = torch.load(path, map_location=device, weights_only=False)
            self._step, self._num_skipped, self._buffered_inputs = state

    def _state_file(self, folder: str) -> Path:
        return Path(folder) / f"rollout_{self.args.process_index}.pth"


# The attention of packed rows

PACKED_ATTENTION = "packed_sdpa"


def packed_attention(module, query, key, value, attention_mask, segments: list[list[int]] | None = None, **kwargs):
    """transformers' SDPA, whose arguments it takes. `segments` says how a row is packed: for each prompt its length
    and those of the replies to it. A token then attends to what precedes it in its prompt and in its own reply, so
    that the work grows with the number of replies, not with its square."""
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    outputs, start = [], 0
    for prompt, *replies in segments:
        shared = slice(start, start + prompt)
        outputs.append(
            sdpa_attention_forward(
                module, query[:, :, shared], key[:, :, shared], value[:, :, shared], None, **kwargs
            )[0]
        )
        start += prompt
        for length in replies:
            own = slice(start, start + length)
            keys, values = (torch.cat([x[:, :, shared], x[:, :, own]], 2) for x in (key, value))
            mask = torch.ones(1, 1, length, prompt + length, dtype=torch.bool, device=query.device).tril(prompt)
            outputs.append(sdpa_attention_forward(module, query[:, :, own], keys, values, mask, **kwargs)[0])
            start += length
    return torch.cat(outputs, 1), None


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
