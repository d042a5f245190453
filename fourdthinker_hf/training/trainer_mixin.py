"""Checkpoints of a trainer of 4DThinker: the Hub's names for weights, whole folders, and no step that is not a number.

Placed before one of TRL's trainers: `class DIFTTrainer(Checkpointed, SFTTrainer)`.
"""

import math

import torch
from peft import PeftModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ..modeling_fourdthinker import FourDThinkerForConditionalGeneration


def bare(model) -> FourDThinkerForConditionalGeneration:
    """The model without its adapters' wrapper."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


class Checkpointed:
    """Mixed into a `Trainer`. Raises `ValueError` for a ZeRO-3 run that would save no weights and, in all processes,
    `FloatingPointError` where the loss of one, or the gradient, is not finite."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if is_deepspeed_zero3_enabled():
            zero = self.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
            if not zero.get("stage3_gather_16bit_weights_on_model_save"):
                raise ValueError("ZeRO-3 without zero3_save_16bit_model: true would save no weights")
            self.network._weight_conversions = None  # those of a sharded load would save other names (5.24)

    @property
    def network(self) -> FourDThinkerForConditionalGeneration:
        """The model itself, whatever wraps it."""
        return bare(self.accelerator.unwrap_model(self.model))

    def _save(self, output_dir=None, state_dict=None):
        if state_dict is not None and self.network.config.tie_word_embeddings:
            state_dict.pop("lm_head.weight", None)  # DeepSpeed's is a copy, no longer seen to be the embedding
        super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if isinstance(self.model, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._load_weights(resume_from_checkpoint)

    def _load_best_model(self):
        if isinstance(self.model, PeftModel) or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_weights(self.state.best_model_checkpoint)

    def _load_weights(self, folder: str) -> None:
        """By `from_pretrained`: files have the Hub's names for weights, and `Trainer`, which takes them for the
        module's, would leave every weight as it is, with no more than a warning."""
        saved = type(self.network).from_pretrained(folder, dtype=self.network.dtype)
        self.network.load_state_dict(saved.state_dict())

    def _save_rng_state(self, output_dir):
        """Then waits for the others, so that trainer_state.json, which the main process writes next, stands for a
        checkpoint that is whole (see [`last_checkpoint`])."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def check_finite(self, loss: torch.Tensor) -> torch.Tensor:
        """`loss`, if it is a number in every process."""
        is_bad = self.accelerator.gather((~torch.isfinite(loss.detach())).reshape(1))
        if is_bad.any():
            where = ", ".join(map(str, is_bad.nonzero()[:, 0].tolist()))
            self._stop(f"the loss of process {where} is not finite")
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        """Of all processes, so that all stop. (With fp16 such a step is skipped, and its scale lowered.)"""
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is not None and not math.isfinite(norm) and not self.args.fp16:
            self._stop("the gradient is not finite")
        return norm

    def _stop(self, what: str):
        raise FloatingPointError(
            f"Step {self.state.global_step + 1}: {what}. All processes stop and nothing of the step is saved: started "
            f"again, the run goes on from its last checkpoint in {self.args.output_dir}. Try a lower learning_rate"
        )
