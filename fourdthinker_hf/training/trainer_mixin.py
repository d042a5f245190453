"""What [`DIFTTrainer`] and [`FourDRLTrainer`] have in common: how they write and read checkpoints, and that they stop
when a loss or a gradient is not finite.

The mixin stands before one of TRL's trainers: `class DIFTTrainer(FourDThinkerTrainerMixin, SFTTrainer)`.
"""

import math

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ..modeling_fourdthinker import FourDThinkerForConditionalGeneration


def unwrap_peft(model) -> FourDThinkerForConditionalGeneration:
    """The model inside a `PeftModel`, or `model` itself if it has no adapters."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


class FourDThinkerTrainerMixin:
    """Saves and loads weights under the Hub's names, marks a checkpoint as complete only when every process has
    written its part, counts the records that were skipped, and stops all processes when a number is not finite.

    Raises `ValueError` for a ZeRO-3 run that would save no weights, and `FloatingPointError`, in all processes, when
    the loss of one process or the gradient is not finite.
    """

    def __init__(self, *args, **kwargs):
        self._num_skipped = {"train": 0, "eval": 0}  # in the rows of this process
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled:
            raise ValueError("FSDP does not work with latents: DeepSpeed shards weights, see train/accelerate/")
        if is_deepspeed_zero3_enabled():
            zero = self.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
            if not zero.get("stage3_gather_16bit_weights_on_model_save"):
                raise ValueError("ZeRO-3 without zero3_save_16bit_model: true would save no weights")
            # transformers 5.24 keeps the conversions of a sharded load; saving by them would write other names.
            self.unwrapped_model._weight_conversions = None

    @property
    def unwrapped_model(self) -> FourDThinkerForConditionalGeneration:
        """The model without the wrappers of DDP, DeepSpeed and PEFT."""
        return unwrap_peft(self.accelerator.unwrap_model(self.model))

    def _count_skipped(self, num_skipped: int) -> None:
        self._num_skipped["train" if self.model.training else "eval"] += num_skipped

    def num_skipped(self, *modes: str) -> int:
        """How often a record was skipped, over all processes. `modes` are "train" and "eval", by default both."""
        return sum(gather_object([sum(self._num_skipped[mode] for mode in modes or self._num_skipped)]))

    def create_model_card(self, *args, **kwargs):
        """Writes nothing: TRL's card would stand where `fourdthinker card` writes one with figures."""

    def _save(self, output_dir=None, state_dict=None):
        if state_dict is not None and self.unwrapped_model.config.tie_word_embeddings:
            # DeepSpeed's state dict holds a copy, which `save_pretrained` would not recognise as the tied embedding.
            state_dict.pop("lm_head.weight", None)
        super()._save(output_dir, state_dict)
        if isinstance(self.accelerator.unwrap_model(self.model), PeftModel):  # PEFT saves no config, which has the
            self.unwrapped_model.config.save_pretrained(output_dir or self.args.output_dir)  # mean of the latents

    def _run_epoch(self, *args, **kwargs):
        """A run that was stopped after its last step does not do another one: `Trainer` looks at the number of steps
        only after a step."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

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
        """Loads weights with `from_pretrained`. The files use the Hub's names for weights. `Trainer` would take these
        for the module's names, and would leave every weight as it is with no more than a warning."""
        saved = type(self.unwrapped_model).from_pretrained(folder, dtype=self.unwrapped_model.dtype)
        self.unwrapped_model.load_state_dict(saved.state_dict())

    def _save_rng_state(self, output_dir):
        """Also waits for the other processes. The main process writes trainer_state.json next, so this file shows
        that the checkpoint is complete (see `last_checkpoint` in run.py)."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def check_finite(self, loss: torch.Tensor) -> torch.Tensor:
        """Returns `loss` if it is finite in every process."""
        is_bad = self.accelerator.gather((~torch.isfinite(loss.detach())).reshape(1))
        if is_bad.any():
            processes = ", ".join(map(str, is_bad.nonzero()[:, 0].tolist()))
            self._raise_not_finite(f"the loss of process {processes}")
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        """The norm covers all processes, so all of them stop. With fp16 such a step is skipped and the loss scale
        lowered instead."""
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is not None and not math.isfinite(norm) and not self.args.fp16:
            self._raise_not_finite("the gradient")
        return norm

    def _raise_not_finite(self, what: str):
        raise FloatingPointError(
            f"Step {self.state.global_step + 1}: {what} is not finite. All processes stop and this step is not saved. "
            f"Start the run again: it continues from its last checkpoint in {self.args.output_dir}. "
            "A lower learning_rate may help"
        )
