"""DIFT: supervised imagery training. The only change w.r.t. `SFTTrainer` is the loss: text and latents, one forward.

    loss = ce_weight * CE(text) + sim_weight * mean(1 - cos(h[p - 1], target[p])),    p over the latent pads

The targets are detached and the tower that makes them is frozen. Both means are taken over the whole accumulation
window and all processes, so how a batch is cut into micro-batches never matters.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from trl import SFTConfig, SFTTrainer


@dataclass
class DIFTConfig(SFTConfig):
    """`SFTConfig` with the weights of the two losses; defaults of the two are the published ones.

    What latents cannot work with (packing, padding-free batches, truncation, the Liger kernel) is refused by name.
    """

    ce_weight: float = field(default=0.1, metadata={"help": "Weight of the cross-entropy on the assistant's text."})
    sim_weight: float = field(default=1.0, metadata={"help": "Weight of the cosine loss on the latents."})
    imagery: bool = field(default=True, metadata={"help": "Train mental images; if false they are left out."})
    options: bool = field(default=True, metadata={"help": "Show the options in the question."})
    freeze_vision: bool = field(default=True, metadata={"help": "Freeze the vision tower and its merger."})
    max_length: int | None = field(default=None, metadata={"help": "Unused: a cut would separate latents and frames."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator reads the records' columns."})

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

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Also counts the latents of the window, over all processes."""
        samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        pad = self._config.latent_token_id
        count = sum(int((batch["input_ids"] == pad).sum()) for batch in samples)
        self._num_latents = self.accelerator.gather(torch.tensor([count], device=device)).sum()
        return samples, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        seen = []  # the fused head of TRL drops the base model's outputs: keep them on their way
        base_model = self._core.base_model
        handle = base_model.register_forward_hook(lambda module, args, output: seen.append(output))
        try:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            handle.remove()
        if return_outputs:
            raise ValueError("DIFTTrainer does not return logits: set prediction_loss_only=True")
        loss = self.args.ce_weight * loss
        targets = seen[0].latent_targets
        if targets is not None:
            is_pad = inputs["input_ids"] == self._config.latent_token_id
            predicted = seen[0].last_hidden_state[:, :-1][is_pad[:, 1:]]  # h[p - 1], in the order of the pads
            loss = loss + self.args.sim_weight * self._imagery_loss(predicted.float(), targets.float())
        return loss

    def _imagery_loss(self, predicted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean of 1 - cosine over the window's latents; both `(num_latents, hidden)` fp32."""
        cosine = F.cosine_similarity(predicted, targets, dim=-1)
        centre = targets.mean(0)  # plain cosine is near 1 for any latents that share the features' mean
        centred = F.cosine_similarity(predicted.detach() - centre, targets - centre, dim=-1)
        mode = "train" if self.model.training else "eval"
        for name, value in (("latent_cosine", cosine.detach()), ("latent_centred_cosine", centred)):
            self._metrics[mode][name].append(self.accelerator.gather(value.mean()[None]).mean().item())
        if mode == "eval":
            return (1 - cosine).mean()
        # The trainer averages gradients over processes; the count is of all of them.
        return (1 - cosine).sum() / self._num_latents * self.accelerator.num_processes

    @property
    def _core(self):
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @property
    def _config(self):
        return self._core.config
