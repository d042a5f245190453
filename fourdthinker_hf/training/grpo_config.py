"""Settings of 4DRL: those of `GRPOConfig`, the weights of the rewards, and the options that are refused."""

from dataclasses import dataclass, field

from trl import GRPOConfig

from .dift_config import refuse_unsupported

# Options that would silently give wrong results, or would be ignored: name, allowed values, and the reason.
UNSUPPORTED_OPTIONS = (
    ("use_vllm", (False,), "vLLM passes only token ids and would drop the latents"),
    ("use_transformers_continuous_batching", (False,), "continuous batching would drop the latents"),
    ("use_transformers_paged", (False,), "continuous batching would drop the latents"),
    ("cache_implementation", (None,), "the cache of a prompt is filled before its replies are sampled"),
    ("use_liger_kernel", (False,), "its kernels are made for a model without latents"),
    ("cast_lm_head_to_fp32", (False,), "replies would be sampled by one head and scored by another"),
    ("disable_dropout", (True,), "with dropout a reply would not be scored by the network that sampled it"),
    ("fp16", (False,), "its loss scaling expects infinite gradients, at which 4DRL stops; use bf16"),
    ("chat_template_kwargs", (None, {}), "the processor makes the prompt, as in evaluation"),
    ("remove_unused_columns", (False,), "the rollout and the rewards read the records' columns"),
    ("parallelism_config", (None,), "latents follow whole rows; several processes share the batch"),
)


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
