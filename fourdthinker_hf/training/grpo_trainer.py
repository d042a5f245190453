"""4DRL: GRPO that trains on what it sampled. The change w.r.t. `GRPOTrainer` is what a reply is: words and latents.

The latents of a reply are kept as they were fed and are fed again in every forward that scores it: policy, old policy
and reference. They are constants there; the gradient is that of the words, `<|latent_start|>` and sampled
`<|latent_end|>`s. `<|latent_pad|>` and a forced `<|latent_end|>` were no choice and have none.

A video is decoded and encoded once a rollout (the tower is frozen, so scoring takes the same features) and a prompt is
run once: its cache is repeated for the replies to it, and they are scored behind one copy of it,

    prompt[:-1]   prompt[-1] reply 1[:-1]   prompt[-1] reply 2[:-1]   ..      in one row, where a reply sees the prompt
                  reply 1                   reply 2                           and itself; below, what is predicted
"""

from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.rewards import get_soft_overlong_punishment

from ..inference import as_encoded, start_replies, up_to_end
from ..processing_fourdthinker import OUTPUT_IMAGE
from . import rewards
from .collator import IGNORED
from .grpo_config import FourDRLConfig
from .trainer_mixin import Checkpointed, bare


class Sampled(NamedTuple):
    """What a reply was sampled with, beside its words."""

    prompt: int  # its prompt's number in the rollout
    features: torch.Tensor  # (n, hidden): the video's, shared by all replies about it
    grid: torch.LongTensor  # (3,)
    seconds: torch.Tensor  # () from one temporal patch to the next
    latents: torch.Tensor  # (num_pads, hidden), as they were fed; a pad that ends a reply never was


class FourDRLTrainer(Checkpointed, GRPOTrainer):
    """`GRPOTrainer` on rows of [`question_dataset`], with latents replayed.

    Rewards are those of `args` (see [`FourDRLConfig`]) unless `reward_funcs` are given. Logs, beside TRL's measures,
    `completions/images`: mental images in a reply, on average. What sees the video is frozen.
    """

    def __init__(self, model, args: FourDRLConfig, reward_funcs=None, peft_config=None, **kwargs):
        for name in ("tools", "environment_factory", "rollout_func", "quantization_config"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} does not work with 4DRL: a reply is one turn, sampled with its latents")
        if isinstance(peft_config, LoraConfig) and peft_config.trainable_token_indices is not None:
            raise ValueError("trainable_token_indices do not work with 4DRL: TRL scores by the head without them")
        if model.config.forget_video:
            raise ValueError("a model that forgets its video cannot learn by 4DRL yet: its replies have two contexts")
        model.model.visual.requires_grad_(False)
        config = self._config = model.config
        sampling = {"suppress_tokens": [config.image_token_id, config.video_token_id]}  # they would want a picture
        sampling["return_dict_in_generate"] = True  # with the latents
        args.generation_kwargs = sampling | (args.generation_kwargs or {})
        if reward_funcs is None:
            if args.reward_weights is not None:
                raise ValueError(
                    "reward_weights are for reward_funcs of your own: give accuracy_weight, format_weight, .."
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
        self._replay: list[Sampled] = []  # one for each reply that is about to be scored
        self._scored: torch.BoolTensor | None = None  # (rows, seq): whose states the head gets
        super().__init__(model=model, args=args, reward_funcs=reward_funcs, peft_config=peft_config, **kwargs)
        self.rollout_func = self.roll_out
        for scorer in (self.model, self.ref_model):
            if scorer is not None:
                bare(self.accelerator.unwrap_model(scorer)).model.register_forward_hook(self._keep_scored)

    # The rollout

    def _generate_and_score_completions(self, inputs):
        """Keeps the rows for `roll_out`; adds to TRL's batch what its replies were sampled with."""
        self._rows = inputs
        output = super()._generate_and_score_completions(inputs)
        return output | {"sampled": self._replay}

    def _generate(self, prompts):
        """Replies are read as in evaluation: with `<output_image>` where something was pictured."""
        output = list(super()._generate(prompts))
        output[3] = replies = [self.processing_class.decode_with_images(ids) for ids in output[1]]
        images = torch.tensor([float(reply.count(OUTPUT_IMAGE)) for reply in replies], device=self.accelerator.device)
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["completions/images"].append(self.accelerator.gather(images).mean().item())
        return tuple(output)

    @torch.no_grad()
    def roll_out(self, prompts, trainer) -> dict[str, list]:
        """Sample a reply for each row. TRL's form: `prompt_ids`, `completion_ids`, and `env_mask`, 1 where a token was
        sampled, 0 where it was forced."""
        numbers = list(dict.fromkeys(row["index"] for row in self._rows))
        number = [numbers.index(row["index"]) for row in self._rows]
        which = torch.tensor(number, device=self.accelerator.device)
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ),
            self.accelerator.autocast(),
        ):
            asked = [self._rows[number.index(i)] for i in range(len(numbers))]
            inputs, features = start_replies(self.network, self.processing_class, asked, which)
            output = self.sample(inputs)
        grids, seconds, length = inputs["video_grid_thw"], inputs["second_per_grid_ts"], inputs["input_ids"].shape[1]
        ids, masks, self._replay = [], [], []
        for row, (new, latents) in enumerate(zip(output.sequences[:, length:], output.latents, strict=True)):
            new = up_to_end(new, self.eos_token_ids)
            is_pad = new == self._config.latent_token_id
            is_pad[-1] = False  # the last token is never fed
            fed = latents[: len(new)][is_pad]
            self._replay.append(Sampled(number[row], features[number[row]], grids[row], seconds[row], fed))
            ids.append(new.tolist())
            masks.append(self.chosen(new).int().tolist())
        prompts = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
        prompt_ids = [row[mask].tolist() for row, mask in prompts]
        return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": None, "env_mask": masks}

    def sample(self, inputs: dict):
        """Generate by the trainer's settings alone: what they leave open is not filled in from the checkpoint's."""
        network = self.network
        kept, network.generation_config = network.generation_config, self.generation_config
        try:
            return network.generate(**inputs)
        finally:
            network.generation_config = kept

    def chosen(self, ids: torch.LongTensor) -> torch.BoolTensor:
        """Which tokens of a reply `(length,)` the model chose; the others, inside mental images, were forced."""
        is_pad, is_end = (ids == token for token in (self._config.latent_token_id, self._config.latent_end_id))
        if not self._config.latent_early_end:
            return ~(is_pad | is_end)
        run = torch.zeros_like(ids)  # pads in a row, up to here
        for place in is_pad.nonzero()[:, 0].tolist():
            run[place] = 1 + (run[place - 1] if place else 0)
        is_full = run.roll(1) == self._config.latent_size
        return ~(is_pad | (is_end & is_full))

    # The score

    def _prepare_inputs(self, generation_batch):
        """TRL's, without its shuffle: the replies to a prompt stay together, so that it is scored once."""
        if not self.model.training:
            return self._generate_and_score_completions(generation_batch)
        parts = self.args.steps_per_generation
        if self._step % (parts * self.num_iterations) == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            size = len(batch["prompt_ids"]) // parts
            self._buffered_inputs = [
                {k: v if getattr(v, "ndim", 1) == 0 else v[i * size : (i + 1) * size] for k, v in batch.items()}
                for i in range(parts)
            ]
        return self._buffered_inputs[self._step % parts]

    def _compute_loss(self, model, inputs):
        """TRL's, with what the replies were sampled with at hand; stops all processes if it is no number."""
        self._replay = inputs["sampled"]
        return self.check_finite(super()._compute_loss(model, inputs))

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **unused
    ):
        """TRL's log-probabilities and entropies `(rows, logits_to_keep)`, of replies with their latents and videos."""
        scores = []
        for start in range(0, len(input_ids), batch_size or len(input_ids)):
            part = slice(start, start + (batch_size or len(input_ids)))
            scores.append(self.score(model, input_ids[part], attention_mask[part], logits_to_keep, self._replay[part]))
        logps, entropies = (None if parts[0] is None else torch.cat(parts) for parts in zip(*scores, strict=True))
        return logps, entropies if compute_entropy else None, None

    def score(self, model, input_ids, attention_mask, length: int, sampled: list[Sampled]):
        """Log-probabilities and entropies `(rows, length)` of the last `length` tokens of each row, 0 where padded."""
        prompts, replies = input_ids[:, :-length], input_ids[:, -length:]
        seen, said = attention_mask[:, :-length].bool(), attention_mask[:, -length:].bool()
        lengths = said.sum(-1).tolist()
        groups = self.groups(sampled, seen.sum(-1).tolist(), lengths)
        order = [row for group in groups for row in group]

        first = [group[0] for group in groups]
        grids, seconds = (torch.stack([getattr(sampled[i], name) for i in first]) for name in ("grid", "seconds"))
        positions, _ = self.network.model.get_rope_index(
            prompts[first], video_grid_thw=grids, second_per_grid_ts=seconds, attention_mask=seen[first]
        )
        rows = [
            self._row(
                prompts[group[0]][seen[group[0]]],
                positions[:, n, seen[group[0]]],
                [replies[i, : lengths[i]] for i in group],
            )
            for n, group in enumerate(groups)
        ]
        fills = (self._tokenizer.pad_token_id, IGNORED, -1, 1)
        ids, targets, segments, places = (
            pad_sequence(column, batch_first=True, padding_value=fill)
            for column, fill in zip(zip(*rows, strict=True), fills, strict=True)
        )
        latents = torch.cat([sampled[i].latents if lengths[i] else sampled[i].latents[:0] for i in order])
        if not self.args.replay:  # what public implementations of the method do
            with torch.no_grad():
                pad = self.network.get_input_embeddings()(ids.new_tensor([self._config.latent_token_id]))
            latents = pad.expand_as(latents)
        self._scored = targets != IGNORED
        with self.accelerator.autocast():
            output = model(
                input_ids=ids,
                attention_mask=_who_sees_whom(segments, groups),
                position_ids=places.movedim(-1, 0),
                latent_embeds=self.network.model.place_latents(ids, latents),
                mm_encoder_outputs=as_encoded([sampled[i].features for i in first]),
                shift_labels=targets[self._scored][None],
                fused_lm_head=True,
            )
        self._scored = None
        row, place = said[order].nonzero(as_tuple=True)
        where = (torch.tensor(order, device=row.device)[row], place)
        return tuple(
            None if values is None else values.new_zeros(said.shape).index_put(where, values[0])
            for values in (output.log_probs, output.entropy)
        )

    def groups(self, sampled: list[Sampled], prompt_lengths: list[int], lengths: list[int]) -> list[list[int]]:
        """Which replies share a row: those to a prompt, unless each its own row is less work."""
        together = {}
        for i, reply in enumerate(sampled):
            together.setdefault(reply.prompt, []).append(i)
        whole, apart = list(together.values()), [[i] for i in range(len(sampled))]
        text = self._config.text_config
        # In a layer a token's products with the weights cost what attention to so many tokens does: 2 operations for
        # each weight, of which there are (2 + 2 kv / heads) hidden^2 + 3 hidden intermediate, against 4 hidden.
        share = text.num_key_value_heads / text.num_attention_heads
        weights = (1 + share) * text.hidden_size + 1.5 * text.intermediate_size

        def work(groups: list[list[int]]) -> float:
            length = max(prompt_lengths[group[0]] + sum(lengths[i] for i in group) for group in groups)
            return len(groups) * length * (weights + length)

        can_mask = text._attn_implementation == "sdpa"
        return whole if can_mask and work(whole) < work(apart) else apart

    @staticmethod
    def _row(prompt, positions, replies):
        """One row: ids, targets, segments (0 the prompt, then 1, 2, ..) `(seq,)`, and positions `(seq, 3)`."""
        ids, targets = [prompt[:-1]], [torch.full_like(prompt[:-1], IGNORED)]
        segments, places = [torch.zeros_like(prompt[:-1])], [positions[:, :-1]]
        for number, reply in enumerate(replies, start=1):
            said = torch.cat([prompt[-1:], reply[:-1]])
            ids.append(said)
            targets.append(reply if len(reply) else torch.full_like(said, IGNORED))
            segments.append(torch.full_like(said, number))
            places.append(positions[:, -1:] + torch.arange(len(said), device=said.device))
        return torch.cat(ids), torch.cat(targets), torch.cat(segments), torch.cat(places, 1).T

    def _keep_scored(self, module, inputs, output) -> None:
        """Of a forward that scores, the head gets what predicts a reply's tokens, `(1, num_tokens, hidden)`."""
        if self._scored is not None:
            output.last_hidden_state = output.last_hidden_state[self._scored][None]

    # What is resumed

    def _save_rng_state(self, output_dir):
        """Also where the run is between two rollouts, and the replies that later steps are to learn from."""
        is_over = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # the main process, which makes it, may be late
        torch.save((self._step, None if is_over else self._buffered_inputs), self._memory(output_dir))
        super()._save_rng_state(output_dir)

    def _load_rng_state(self, checkpoint):
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and self._memory(checkpoint).exists():
            state = torch.load(self._memory(checkpoint), map_location=self.accelerator.device.type, weights_only=False)
            self._step, self._buffered_inputs = state

    def _memory(self, folder: str) -> Path:
        return Path(folder) / f"rollout_{self.args.process_index}.pth"


def _who_sees_whom(segments: torch.LongTensor, groups: list[list[int]]) -> torch.BoolTensor:
    """The attention mask of rows with `segments` `(rows, seq)`, -1 where padded: `(rows, seq)` or, where replies share
    a row, `(rows, 1, seq, seq)`: what stands before, in the prompt or the same reply."""
    if all(len(group) == 1 for group in groups):
        return (segments >= 0).long()
    keys, queries = segments[:, None, None, :], segments[:, None, :, None]
    before = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()
    return before & ((keys == 0) | (keys == queries))
