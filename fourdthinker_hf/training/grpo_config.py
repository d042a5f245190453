"""Settings of 4DRL: those of `GRPOConfig`, the weights of the rewards, and the options that are refused."""

from dataclasses import dataclass, field

from trl import GRPOConfig

from .unsupported_options import COMMON, FOURDRL, refuse_unsupported

UNSUPPORTED_OPTIONS = (*COMMON, *FOURDRL)


@dataclass
class FourDRLConfig(GRPOConfig):
    """`GRPOConfig` with the weights of the rewards (see `rewards.py`).

    Raises `ValueError` for an option that cannot work with latents or would be ignored: see `UNSUPPORTED_OPTIONS`.
    """

    accuracy_weight: float = field(default=1.0, metadata={"help": "Weight of the reward for a right answer."})
    format_weight: float = field(
        default=0.2, metadata={"help": "Weight of the reward for the form <think>, then <answer>."}
    )
    imagery_weight: float = field(default=0.0, metadata={"help": "Weight of the reward for a mental image."})
    length_weight: float = field(
        default=0.0, metadata={"help": "Weight of the penalty (0 to -1) for the last fifth of max_completion_length."}
    )

    replay: bool = field(
        default=True, metadata={"help": "If false, replies are scored with the pad's embedding as latents: a control."}
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Must stay true: replies are scored by the network that sampled them."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: every trainable parameter takes part in every batch."}
    )

    def __post_init__(self):
        refuse_unsupported(self, UNSUPPORTED_OPTIONS, "4DRL")
        super().__post_init__()
        if self.accelerator_config.dispatch_batches:
            raise ValueError("dispatch_batches=True does not work with 4DRL: rows contain more than tensors")
        if self.accelerator_config.split_batches:
            raise ValueError(
                "split_batches=True does not work with 4DRL: each process has per_device_train_batch_size"
            )
