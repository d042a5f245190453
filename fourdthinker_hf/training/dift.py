"""DIFT: supervised imagery training. The only change w.r.t. `SFTTrainer` is the loss: text and latents, one forward.

    loss = ce_weight * CE(text) + sim_weight * mean(1 - cos(h[p - 1], target[p])),    p over the latent pads

The targets are detached and the tower that makes them is frozen. Both means are taken over the whole accumulation
window and all processes, so how a batch is cut into micro-batches never matters. Only positions that have a label
reach the vocabulary head.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from trl import SFTConfig, SFTTrainer

from .collator import IGNORED


@dataclass
class DIFTConfig(SFTConfig):
    """`SFTConfig` with the weights of the two losses; their defaults are the published ones.

    What latents cannot work with (packing, padding-free batches, truncation, the Liger kernel) is refused by name.
    """

    ce_weight: float = field(default=0.1, metadata={"help": "Weight of the cross-entropy on the assistant's text."})
    sim_weight: float = field(default=1.0, metadata={"help": "Weight of the cosine loss on the latents."})
    imagery: bool = field(default=True, metadata={"help": "Train mental images; if false they are left out."})
    options: bool = field(default=True, metadata={"help": "Show the options in the question."})
    freeze_vision: bool = field(default=True, metadata={"help": "Freeze the vision tower and its merger."})
    max_length: int | None = field(default=None, metadata={"help": "Unused: a cut would separate latents and frames."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator reads the records' columns."})
    prediction_loss_only: bool = field(default=True, metadata={"help": "Evaluation returns losses, never logits."})

    def __post_init__(self):
        for name in ("packing", "padding_free", "use_liger_kernel"):
            if getattr(self, name):
                raise ValueError(f"{name}=True would lose the latents: they follow the tokens of unpacked rows")
        if self.max_length is not None:
            raise ValueError("max_length would cut latents from their frames: leave it unset")
        self.dataset_kwargs = {**(self.dataset_kwargs or {}), "skip_prepare_dataset": True}
        super().__post_init__()


class DIFTTrainer(SFTTrainer):
    """`SFTTrainer` on [`DIFTCollator`]'s batches, with the DIFT loss."""

    def __init__(self, model, args: DIFTConfig, **kwargs):
        if args.freeze_vision:
            model.model.visual.requires_grad_(False)
        super().__init__(model=model, args=args, **kwargs)
        self._num_latents = None
        self._latent_mean = None

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Also counts the latents of the window, over all processes."""
        samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = sum(int((batch["input_ids"] == self._latent_token_id).sum()) for batch in samples)
        self._num_latents = self.accelerator.gather(torch.tensor([count], device=device)).sum()
        return samples, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs:
            raise ValueError("DIFTTrainer computes the logits of labelled positions only: set prediction_loss_only")
        labels = inputs["labels"]
        labelled = F.pad(labels[:, 1:] != IGNORED, (0, 1))  # position p predicts the label of p + 1
        outputs = model(
            **{name: value for name, value in inputs.items() if name != "labels"},
            logits_to_keep=labelled, use_cache=False,
        )  # fmt: skip
        targets = labels[:, 1:][labelled[:, :-1]]
        text_loss = F.cross_entropy(outputs.logits.float(), targets, reduction="none")
        self._log("text_loss", text_loss)
        self._log("mean_token_accuracy", (outputs.logits.argmax(-1) == targets).float())
        loss = self.args.ce_weight * self._window_mean(text_loss, num_items_in_batch)
        if outputs.latent_targets is not None:
            is_pad = inputs["input_ids"] == self._latent_token_id
            predicted = outputs.last_hidden_state[:, :-1][is_pad[:, 1:]].float()  # h[p - 1], in the order of the pads
            latents = outputs.latent_targets.float()
            cosine = F.cosine_similarity(predicted, latents, dim=-1)
            self._track_mean(predicted)
            self._log("latent_cosine", cosine)
            centre = latents.mean(0)  # plain cosine is near 1 for any latents that share the targets' mean
            self._log("latent_centred_cosine", F.cosine_similarity(predicted - centre, latents - centre, dim=-1))
            loss = loss + self.args.sim_weight * self._window_mean(1 - cosine, self._num_latents)
        return loss

    def _track_mean(self, predicted: torch.Tensor) -> None:
        """Running mean of the latents' directions, over about the last hundred batches of this process."""
        if self.model.training and len(predicted):
            mean = F.normalize(predicted.detach(), dim=-1).mean(0)
            self._latent_mean = mean if self._latent_mean is None else self._latent_mean.lerp(mean, 0.01)

    def _save(self, output_dir=None, state_dict=None):
        if self._latent_mean is not None:
            self.accelerator.unwrap_model(self.model).config.latent_mean = self._latent_mean.tolist()
        super()._save(output_dir, state_dict)

    def _window_mean(self, values: torch.Tensor, window: torch.Tensor | None) -> torch.Tensor:
        """The part of this micro-batch in the mean over `window` items; a plain mean in evaluation."""
        if window is None or not self.model.training:
            return values.mean()
        # `window` counts the items of all processes, and the trainer averages gradients over processes.
        return values.sum() / window * self.accelerator.num_processes

    def _log(self, name: str, values: torch.Tensor) -> None:
        mode = "train" if self.model.training else "eval"
        self._metrics[mode][name].append(self.accelerator.gather(values.detach().mean()[None]).mean().item())

    @property
    def _latent_token_id(self) -> int:
        return self.accelerator.unwrap_model(self.model).config.latent_token_id
