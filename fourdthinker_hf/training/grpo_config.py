"""Settings of 4DRL: `GRPOConfig`'s, the weights of the rewards, and what is refused."""

from dataclasses import dataclass, field

from trl import GRPOConfig

from .dift_config import refuse

# What would be silently wrong, or ignored: option, the values that are fine, and why no other is.
REFUSED = (
    ("use_vllm", (False,), "vLLM passes token ids only and would drop the latents"),
    ("use_transformers_continuous_batching", (False,), "continuous batching would drop the latents"),
    ("use_transformers_paged", (False,), "continuous batching would drop the latents"),
    ("cache_implementation", (None,), "the cache of a prompt is made before its replies are sampled"),
    ("use_liger_kernel", (False,), "its kernels are chosen for a model without latents"),
    ("cast_lm_head_to_fp32", (False,), "the head that samples would not be the one that scores"),
    ("disable_dropout", (True,), "with dropout a reply would be scored by another network than sampled it"),
    ("fp16", (False,), "its loss scaling meets infinite gradients as a matter of course; use bf16"),
    ("chat_template_kwargs", (None, {}), "the prompt is the processor's own, as in evaluation"),
    ("remove_unused_columns", (False,), "rollouts and rewards read the records' columns"),
    ("parallelism_config", (None,), "latents follow whole rows; several processes share the batch"),
)


@dataclass
class FourDRLConfig(GRPOConfig):
    """`GRPOConfig` with the weights of the rewards (see `rewards.py`); the first two are the published ones.

    Raises `ValueError`, by name, for options that cannot work with latents or would be ignored: see `REFUSED`.
    """

    accuracy_weight: float = field(default=1.0, metadata={"help": "Weight of the right answer."})
    format_weight: float = field(default=0.2, metadata={"help": "Weight of the form: <think>, then <answer>."})
    imagery_weight: float = field(default=0.0, metadata={"help": "Weight of having pictured something."})
    length_weight: float = field(
        default=0.0, metadata={"help": "Weight of the penalty, 0 to -1, in the last fifth of max_completion_length."}
    )

    replay: bool = field(
        default=True,
        metadata={"help": "If false replies are scored with the pad's embedding for their latents: a control."},
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Replies are scored by the network that sampled."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Every trainable parameter takes part in every batch: none to be looked for."}
    )

    def __post_init__(self):
        refuse(self, REFUSED, "4DRL")
        super().__post_init__()
        if self.accelerator_config.dispatch_batches:
            raise ValueError("dispatch_batches=True does not work with 4DRL: rows hold more than tensors")
