"""DIFT: supervised training of text and latents. The only change w.r.t. `SFTTrainer` is the loss, computed from one
forward in [`DIFTTrainer.compute_loss`]:

    loss = ce_weight * CE(text) + sim_weight * mean(1 - cos(h[p - 1], target[p])),    p over the <|latent_pad|> tokens

The targets are detached, and the tower that makes them is frozen. Both means are taken over the whole accumulation
window and all processes, so the size of a micro-batch has no effect. Only positions that have a label reach the
vocabulary head.

With `forget_video` the text after a row's first mental images is learnt in a second forward, without the video and
with the latents that the first forward predicted. The loss of that text therefore also trains the latents.
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
from trl import SFTTrainer
from trl.models import unwrap_model_for_generation

from ..answers import judge
from ..batch_inference import answer_batch, batch_inputs, open_clip
from ..data.records import Record
from ..modeling_fourdthinker import FourDThinkerOutput
from .collator import IGNORE_INDEX
from .dift_config import DIFTConfig
from .feature_store import VisionFeatures
from .latent_metrics import LatentMetrics, MetricMeans
from .lora import check_frozen_tower, latent_rows, prepare_peft_config
from .trainer_mixin import FourDThinkerTrainerMixin

logger = logging.getLogger(__name__)

NUM_SAMPLES = 4  # replies that an evaluation shows as text


class DIFTTrainer(FourDThinkerTrainerMixin, SFTTrainer):
    """`SFTTrainer` on batches of [`DIFTCollator`], with the DIFT loss.

    Logs in training and, with the prefix `eval_`, in evaluation: `text_loss` and `mean_token_accuracy`, means over all
    labelled tokens since the last log; `latent_loss` and the metrics of [`LatentMetrics`], means over all latents or
    mental images. In training also `train_tokens_per_second` and, if records were skipped, `skipped_records` so far.
    With `eval_questions` also `eval_accuracy` of freely generated greedy answers, and some of them as text,
    `eval_samples`.

    To change the loss, override `text_loss` or `latent_loss`; to change the model's inputs, override `forward`.
    """

    loss_is_scaled_for_ga = True  # each micro-batch gives its part of the means over the accumulation window

    def __init__(self, model, args: DIFTConfig, peft_config=None, **kwargs):
        for name in ("compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics", "formatting_func"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} would be ignored: override a method of DIFTTrainer or DIFTCollator instead")
        if args.freeze_vision:
            model.model.visual.requires_grad_(False)
        prepare_peft_config(peft_config, model.config)
        if isinstance(peft_config, LoraConfig) and peft_config.trainable_token_indices is None:
            peft_config.trainable_token_indices = latent_rows(model.config, peft_config.modules_to_save) or None
        model.config.forget_video = args.forget_video
        self.metric_means = {"train": MetricMeans(), "eval": MetricMeans()}
        self.latent_metrics = LatentMetrics(model.config.latent_size)
        self._num_latents = None
        super().__init__(model=model, args=args, peft_config=peft_config, **kwargs)
        if args.freeze_vision:
            check_frozen_tower(self.model)

    # The loss

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Also counts, over all processes, the latents of the window and the labels that are learnt without video."""
        samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        token = self.unwrapped_model.config.latent_token_id
        num_latents = sum((batch["input_ids"] == token).sum().item() for batch in samples)
        without_video = [batch["without_video"]["labels"] for batch in samples if "without_video" in batch]
        num_labels = sum((labels != IGNORE_INDEX).sum().item() for labels in without_video)
        counts = self.accelerator.gather(torch.tensor([[num_latents, num_labels]], device=device)).sum(0)
        self._num_latents = counts[0]
        return samples, num_items + counts[1]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The DIFT loss of a micro-batch: its part of the means over the accumulation window."""
        inputs = dict(inputs)
        self._count_skipped(int(inputs.pop("num_skipped", 0)))
        without_video, labels = inputs.pop("without_video", None), inputs.pop("labels")
        is_labelled = _predicts_label(labels)
        outputs = self.forward(model, inputs, is_labelled)
        is_pad = inputs["input_ids"] == self.unwrapped_model.config.latent_token_id
        predicted = outputs.last_hidden_state[:, :-1][is_pad[:, 1:]].float()  # h[p - 1], in the order of the pads
        logits, targets = outputs.logits, labels[:, 1:][is_labelled[:, :-1]]
        if without_video is not None:
            more = self.forward_without_video(model, **without_video, predicted=predicted)
            logits, targets = (torch.cat(pair) for pair in zip((logits, targets), more, strict=True))
        self._update_metric("mean_token_accuracy", logits.argmax(-1) == targets)
        text_loss = self._window_mean("text_loss", self.text_loss(logits, targets), num_items_in_batch)
        latent_targets = predicted[:0] if outputs.latent_targets is None else outputs.latent_targets.float()
        if len(latent_targets):
            metrics = self.latent_metrics(predicted.detach(), latent_targets, self.model.training)
            for name, values in metrics.items():
                self._update_metric(name, values)
        # Also computed without latents: ZeRO-3 needs the same graph in every process.
        latent_losses = self.latent_loss(predicted, latent_targets)
        latent_loss = self._window_mean("latent_loss", latent_losses, self._num_latents)
        return self.args.ce_weight * text_loss + self.args.sim_weight * latent_loss

    def forward(self, model, inputs: dict, is_labelled: torch.BoolTensor) -> FourDThinkerOutput:
        """One forward of a batch; only the positions `is_labelled` `(batch, seq)` have logits."""
        if not is_deepspeed_zero3_enabled() or "mm_encoder_outputs" in inputs:
            return model(**inputs, logits_to_keep=is_labelled, use_cache=False)
        if "pixel_values_videos" not in inputs:
            raise ValueError(
                "under ZeRO-3 every batch needs a video or frames; use ZeRO-2 or feature_cache for text alone"
            )
        # ZeRO-3 gathers the weights of a module when it runs, so every process must run the tower equally often. A
        # process whose batch has no target frames runs it on the first frames of a video.
        base, targets = self.unwrapped_model.model, None
        if "pixel_values_latent" in inputs:
            targets = base.get_latent_targets(inputs.pop("pixel_values_latent"), inputs.pop("image_grid_thw_latent"))
            inputs["latent_embeds"] = base.place_latents(inputs["input_ids"], targets)
        else:
            grid = inputs["video_grid_thw"][:1].clone()
            grid[:, 0] = 1
            with torch.no_grad():
                base.get_image_features(inputs["pixel_values_videos"][: int(grid.prod())], grid)
        outputs = model(**inputs, logits_to_keep=is_labelled, use_cache=False)
        outputs.latent_targets = targets
        return outputs

    def forward_without_video(self, model, input_ids, attention_mask, labels, predicted: torch.Tensor):
        """Logits `(num_labels, vocab)` and labels `(num_labels,)` of rows without their video. Their mental images are
        the latents `predicted` `(num_latents, hidden)`."""
        is_labelled = _predicts_label(labels)
        outputs = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            latent_embeds=self.unwrapped_model.model.place_latents(input_ids, predicted),
            logits_to_keep=is_labelled,
            use_cache=False,
        )
        return outputs.logits, labels[:, 1:][is_labelled[:, :-1]]

    def text_loss(self, logits: torch.Tensor, targets: torch.LongTensor) -> torch.Tensor:
        """Loss of each labelled token, `(num_labels,)`, from `logits` `(num_labels, vocab)`."""
        return F.cross_entropy(logits.float(), targets, reduction="none")

    def latent_loss(self, predicted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Loss of each latent, `(num_latents,)`; both arguments are `(num_latents, hidden)`, float32."""
        return 1 - F.cosine_similarity(predicted, targets, dim=-1)

    def _window_mean(self, name: str, losses: torch.Tensor, num_in_window: torch.Tensor | None) -> torch.Tensor:
        """This micro-batch's part of the mean over the `num_in_window` items of all processes; in evaluation the mean
        of `losses`. Also updates the metric `name`."""
        self._update_metric(name, losses)
        if num_in_window is None or not self.model.training:
            return losses.sum() / max(len(losses), 1)
        # Gradients are averaged over the processes, so each part is multiplied by their number.
        return losses.sum() / num_in_window.clamp(min=1) * self.accelerator.num_processes

    # Logs and evaluation

    def _update_metric(self, name: str, values: torch.Tensor) -> None:
        self.metric_means["train" if self.model.training else "eval"].update(name, values)

    def log(self, logs, start_time=None):
        if self.model.training:
            logs.update(self.metric_means["train"].compute())
            if num_skipped := self.num_skipped("train"):
                logs["skipped_records"] = num_skipped
        super().log(logs, start_time)

    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        """Adds the means over the whole evaluation set, with the loss made from them, and the answers to questions."""
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        means = self.metric_means["eval"].compute()
        means["loss"] = self.args.ce_weight * means["text_loss"] + self.args.sim_weight * means.get("latent_loss", 0.0)
        means |= self.answer_questions(dataloader.dataset) if self.args.eval_questions else {}
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    def answer_questions(self, dataset) -> dict:
        """Accuracy of freely generated greedy answers to the first `eval_questions` rows, and some answers as text."""
        count, batch_size = min(self.args.eval_questions, len(dataset)), self.args.eval_batch_size
        # All processes generate equally often, because weights may be sharded: the last ones repeat first questions.
        share = math.ceil(count / self.accelerator.num_processes)
        first, own = share * self.accelerator.process_index, {}
        with unwrap_model_for_generation(
            self.model_wrapped, self.accelerator, gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs
        ):
            for start in range(first, first + share, batch_size):
                numbers = [i % count for i in range(start, min(start + batch_size, first + share))]
                own |= zip(numbers, self.answer_rows([dataset[i] for i in numbers]), strict=True)
        answered = {number: row for part in gather_object([own]) for number, row in part.items()}
        samples = samples_table([answered[i] for i in range(min(NUM_SAMPLES, count))])
        logger.info("step %d:\n%s", self.state.global_step, samples)
        return {"accuracy": sum(is_right for *_, is_right in answered.values()) / count, "samples": samples}

    def answer_rows(self, rows: list[dict]) -> list[tuple[str, str, str, bool]]:
        """Question, greedy reply, expected answer and whether the reply is right, for each of `rows`: records, opened
        by [`DIFTCollator.open`] or not."""
        names = [field.name for field in fields(Record)]
        records = [Record(**({"id": ""} | {name: row[name] for name in names if name in row})) for row in rows]
        clips = [  # generation needs frames, so a clip that came from a feature store is opened here
            open_clip(self.processing_class, record)
            if isinstance(row.get("clip"), VisionFeatures | None)
            else row["clip"]
            for row, record in zip(rows, records, strict=True)
        ]
        asked = records if self.args.options else [replace(record, options=None) for record in records]
        inputs = batch_inputs(self.processing_class, asked, clips).to(self.unwrapped_model.device)
        replies = answer_batch(self.unwrapped_model, self.processing_class, inputs, self.args.eval_max_new_tokens)
        return [
            (record.question, reply.text, record.answer, judge(reply.text, record.answer, record.options).is_right)
            for record, reply in zip(records, replies, strict=True)
        ]

    # Saving and resuming

    def _save(self, output_dir=None, state_dict=None):
        if self.latent_metrics.mean is not None:
            self.unwrapped_model.config.latent_mean = self.latent_metrics.mean.tolist()
        super()._save(output_dir, state_dict)

    def _save_rng_state(self, output_dir):
        """Also saves the latent metrics and the number of skipped records of this process."""
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # the main process may not have made it yet
        state = {"latent_metrics": self.latent_metrics.state_dict(), "num_skipped": self._num_skipped}
        torch.save(state, self._state_file(output_dir))
        super()._save_rng_state(output_dir)

    def _load_rng_state(self, checkpoint):
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and self._state_file(checkpoint).exists():
            state = torch.load(self._state_file(checkpoint), map_location="cpu")
            self.latent_metrics.load_state_dict(state["latent_metrics"])
            self._num_skipped = state["num_skipped"]

    def _state_file(self, folder: str) -> Path:
        return Path(folder) / f"dift_state_{self.args.process_index}.pth"


def _predicts_label(labels: torch.LongTensor) -> torch.BoolTensor:
    """Mask `(batch, seq)` of the positions that have a label to predict: position p predicts the label of p + 1."""
    return F.pad(labels[:, 1:] != IGNORE_INDEX, (0, 1))


def samples_table(answered: list[tuple[str, str, str, bool]]) -> str:
    """Rows of [`DIFTTrainer.answer_rows`] as a Markdown table."""
    lines = ["| question | reply | expected | |", "| --- | --- | --- | --- |"]
    for *texts, is_right in answered:
        cells = [re.sub(r"\s+", " ", text.replace("|", "/")) for text in texts]
        lines.append("| " + " | ".join([*cells, "right" if is_right else "wrong"]) + " |")
    return "\n".join(lines)
