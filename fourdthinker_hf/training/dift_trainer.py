"""DIFT: supervised imagery training. The only change w.r.t. `SFTTrainer` is the loss: text and latents, one forward.

    loss = ce_weight * CE(text) + sim_weight * mean(1 - cos(h[p - 1], target[p])),    p over the latent pads

The targets are detached and the tower that makes them is frozen. Both means are taken over the whole accumulation
window and all processes, so how a batch is cut into micro-batches never matters. Only positions that have a label
reach the vocabulary head.

With `forget_video` the words behind a row's first mental images are learnt in a second forward, without the video and
from the latents that the first one predicted: the loss of the words then teaches the latents what to show.
"""

import logging
import math
import re
from dataclasses import fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from peft import LoraConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_callback import TrainerState
from trl import SFTTrainer
from trl.models import unwrap_model_for_generation

from ..answers import judge
from ..data.records import Record
from ..inference import answer_batch, batch_inputs, open_clip
from ..modeling_fourdthinker import FourDThinkerOutput
from .collator import IGNORED
from .dift_config import DIFTConfig
from .feature_store import Encoded
from .latent_metrics import LatentMeasures, Means
from .lora import latent_rows
from .trainer_mixin import Checkpointed

logger = logging.getLogger(__name__)

NUM_SAMPLES = 4  # replies that an evaluation shows as text


class DIFTTrainer(Checkpointed, SFTTrainer):
    """`SFTTrainer` on [`DIFTCollator`]'s batches, with the DIFT loss.

    Logs, in training and (with `eval_` before them) in evaluation, `text_loss` and `mean_token_accuracy`, means over
    all labelled tokens since the last log; `latent_loss` and what [`LatentMeasures`] tells, means over all latents, or
    mental images; in training also `train_tokens_per_second` and, if records were skipped, `skipped_records` so far.
    With `eval_questions`, `eval_accuracy` of free-running greedy answers and some of them as text, `eval_samples`.

    A variant of the loss overrides `text_loss` or `latent_loss`; of what is fed, `forward`.
    """

    loss_is_scaled_for_ga = True  # each micro-batch gives its part of the window's means

    def __init__(self, model, args: DIFTConfig, peft_config=None, **kwargs):
        for name in ("compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics", "formatting_func"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} would be ignored: override a method of DIFTTrainer or DIFTCollator")
        if args.freeze_vision:
            model.model.visual.requires_grad_(False)
        if isinstance(peft_config, LoraConfig) and peft_config.trainable_token_indices is None:
            peft_config.trainable_token_indices = latent_rows(model.config)
        model.config.forget_video = args.forget_video
        self.means = {"train": Means(), "eval": Means()}
        self._num_latents, self._num_skipped = None, 0
        self.measures = LatentMeasures(model.config.latent_size)
        super().__init__(model=model, args=args, peft_config=peft_config, **kwargs)

    # The loss

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Also counts the latents of the window, and the labels learnt without a video, over all processes."""
        samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        token = self.network.config.latent_token_id
        latents = sum((batch["input_ids"] == token).sum().item() for batch in samples)
        again = [batch["forgetting"]["labels"] for batch in samples if "forgetting" in batch]
        words = sum((labels != IGNORED).sum().item() for labels in again)
        counts = self.accelerator.gather(torch.tensor([[latents, words]], device=device)).sum(0)
        self._num_latents = counts[0]
        return samples, num_items + counts[1]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        self._num_skipped += int(inputs.pop("num_skipped", 0)) if self.model.training else 0
        forgetting, labels = inputs.pop("forgetting", None), inputs.pop("labels")
        labelled = F.pad(labels[:, 1:] != IGNORED, (0, 1))  # position p predicts the label of p + 1
        outputs = self.forward(model, inputs, labelled)
        is_pad = inputs["input_ids"] == self.network.config.latent_token_id
        predicted = outputs.last_hidden_state[:, :-1][is_pad[:, 1:]].float()  # h[p - 1], in the order of the pads
        logits, words = outputs.logits, labels[:, 1:][labelled[:, :-1]]
        if forgetting is not None:
            more = self.forget(model, **forgetting, predicted=predicted)
            logits, words = (torch.cat(pair) for pair in zip((logits, words), more, strict=True))
        self._count("mean_token_accuracy", logits.argmax(-1) == words)
        text = self._mean("text_loss", self.text_loss(logits, words), num_items_in_batch)
        latents = predicted[:0] if outputs.latent_targets is None else outputs.latent_targets.float()
        if len(latents):
            for name, values in self.measures(predicted.detach(), latents, self.model.training).items():
                self._count(name, values)
        # Without latents too: sharded weights want the same graph in every process.
        latent = self._mean("latent_loss", self.latent_loss(predicted, latents), self._num_latents)
        return self.args.ce_weight * text + self.args.sim_weight * latent

    def forget(self, model, input_ids, attention_mask, labels, predicted: torch.Tensor):
        """Logits `(num_labels, vocab)` and labels of rows without their video, whose mental images are `predicted`."""
        labelled = F.pad(labels[:, 1:] != IGNORED, (0, 1))
        latents = self.network.model.place_latents(input_ids, predicted)
        outputs = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            latent_embeds=latents,
            logits_to_keep=labelled,
            use_cache=False,
        )
        return outputs.logits, labels[:, 1:][labelled[:, :-1]]

    def forward(self, model, inputs: dict, labelled: torch.BoolTensor) -> FourDThinkerOutput:
        """One forward of a batch, whose logits are those of the `labelled` positions `(batch, seq)` alone."""
        if not is_deepspeed_zero3_enabled() or "mm_encoder_outputs" in inputs:
            return model(**inputs, logits_to_keep=labelled, use_cache=False)
        # Sharded weights are gathered as the modules run, so every process must run the tower equally often. One whose
        # batch pictures nothing runs it on the first frames of a video.
        base, targets = self.network.model, None
        if "pixel_values_latent" in inputs:
            targets = base.get_latent_targets(inputs.pop("pixel_values_latent"), inputs.pop("image_grid_thw_latent"))
            inputs["latent_embeds"] = base.place_latents(inputs["input_ids"], targets)
        else:
            grid = inputs["video_grid_thw"][:1].clone()
            grid[:, 0] = 1
            with torch.no_grad():
                base.get_image_features(inputs["pixel_values_videos"][: int(grid.prod())], grid)
        outputs = model(**inputs, logits_to_keep=labelled, use_cache=False)
        outputs.latent_targets = targets
        return outputs

    def text_loss(self, logits: torch.Tensor, targets: torch.LongTensor) -> torch.Tensor:
        """Loss of each labelled token, `(num_labels,)`, from `logits` `(num_labels, vocab)`."""
        return F.cross_entropy(logits.float(), targets, reduction="none")

    def latent_loss(self, predicted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Loss of each latent, `(num_latents,)`; both arguments `(num_latents, hidden)`, float32."""
        return 1 - F.cosine_similarity(predicted, targets, dim=-1)

    def _mean(self, name: str, values: torch.Tensor, window: torch.Tensor | None) -> torch.Tensor:
        """The part of this micro-batch in the mean over `window` items; a plain mean in evaluation."""
        self._count(name, values)
        if window is None or not self.model.training:
            return values.sum() / max(len(values), 1)
        # `window` counts the items of all processes, and the gradients are averaged over processes.
        return values.sum() / window.clamp(min=1) * self.accelerator.num_processes

    # What is logged

    def _count(self, name: str, values: torch.Tensor) -> None:
        self.means["train" if self.model.training else "eval"].count(name, values)

    def log(self, logs, start_time=None):
        if self.model.training:
            logs.update(self.means["train"].collect())
            if num_skipped := sum(gather_object([self._num_skipped])):
                logs["skipped_records"] = num_skipped
        super().log(logs, start_time)

    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        """Adds the means over the whole set, the loss among them, and how questions are answered."""
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        means = self.means["eval"].collect()
        means["loss"] = self.args.ce_weight * means["text_loss"] + self.args.sim_weight * means.get("latent_loss", 0.0)
        means |= self.answer_questions(dataloader.dataset) if self.args.eval_questions else {}
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    def answer_questions(self, dataset) -> dict:
        """Accuracy of greedy, free-running answers to the first `eval_questions` rows, and a few answers as text."""
        count, size = min(self.args.eval_questions, len(dataset)), self.args.eval_batch_size
        share = math.ceil(count / self.accelerator.num_processes)  # alike in all processes: weights may be sharded
        first, mine = share * self.accelerator.process_index, {}
        with unwrap_model_for_generation(
            self.model_wrapped, self.accelerator, gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs
        ):
            for start in range(first, first + share, size):
                numbers = [i % count for i in range(start, min(start + size, first + share))]
                mine |= zip(numbers, self.answer_rows([dataset[i] for i in numbers]), strict=True)
        answered = {number: row for part in gather_object([mine]) for number, row in part.items()}
        samples = samples_table([answered[i] for i in range(min(NUM_SAMPLES, count))])
        logger.info("step %d:\n%s", self.state.global_step, samples)
        return {"accuracy": sum(is_right for *_, is_right in answered.values()) / count, "samples": samples}

    def answer_rows(self, rows: list[dict]) -> list[tuple[str, str, str, bool]]:
        """Question, greedy reply, expected answer and whether the reply is right, for rows of records, opened by
        [`DIFTCollator.open`] or not."""
        names = [field.name for field in fields(Record)]
        records = [Record(**({"id": ""} | {name: row[name] for name in names if name in row})) for row in rows]
        clips = [
            open_clip(self.processing_class, record) if isinstance(row.get("clip"), Encoded | None) else row["clip"]
            for row, record in zip(rows, records, strict=True)
        ]
        shown = records if self.args.options else [replace(record, options=None) for record in records]
        inputs = batch_inputs(self.processing_class, shown, clips).to(self.network.device)
        replies = answer_batch(self.network, self.processing_class, inputs, self.args.eval_max_new_tokens)
        return [
            (record.question, reply.text, record.answer, judge(reply.text, record.answer, record.options).is_right)
            for record, reply in zip(records, replies, strict=True)
        ]

    # What is saved, and resumed

    def _save(self, output_dir=None, state_dict=None):
        if self.measures.mean is not None:
            self.network.config.latent_mean = self.measures.mean.tolist()
        super()._save(output_dir, state_dict)

    def _save_rng_state(self, output_dir):
        """Also what else a process remembers."""
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # the main process, which makes it, may be late
        state = {"measures": self.measures.state_dict(), "num_skipped": self._num_skipped}
        torch.save(state, self._memory(output_dir))
        super()._save_rng_state(output_dir)

    def _load_rng_state(self, checkpoint):
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and self._memory(checkpoint).exists():
            state = torch.load(self._memory(checkpoint), map_location="cpu")
            self.measures.load_state_dict(state["measures"])
            self._num_skipped = state["num_skipped"]

    def _memory(self, folder: str) -> Path:
        return Path(folder) / f"dift_state_{self.args.process_index}.pth"


def last_checkpoint(output_dir: str) -> str | None:
    """The newest checkpoint that was written to its end, None if there is none."""
    folders = Path(output_dir).glob("checkpoint-*")
    for folder in sorted(folders, key=lambda folder: int(folder.name.removeprefix("checkpoint-")), reverse=True):
        try:
            TrainerState.load_from_json(folder / "trainer_state.json")
            return str(folder)
        except (FileNotFoundError, ValueError):
            logger.warning("%s was not written to its end: an earlier checkpoint is taken", folder)
    return None


def samples_table(answered: list[tuple[str, str, str, bool]]) -> str:
    """Rows of [`DIFTTrainer.answer_rows`] as a Markdown table."""
    lines = ["| question | reply | expected | |", "| --- | --- | --- | --- |"]
    for *texts, is_right in answered:
        cells = [re.sub(r"\s+", " ", text.replace("|", "/")) for text in texts]
        lines.append("| " + " | ".join([*cells, "right" if is_right else "wrong"]) + " |")
    return "\n".join(lines)
