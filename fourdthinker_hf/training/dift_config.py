"""Settings of DIFT: `SFTConfig`'s, the weights of the two losses, and what is refused."""

from dataclasses import dataclass, field

from trl import SFTConfig

# What would be silently wrong, or ignored: option, the values that are fine, and why no other is.
REFUSED = (
    ("packing", (False,), "latents follow the tokens of unpacked rows"),
    ("eval_packing", (None, False), "latents follow the tokens of unpacked rows"),
    ("padding_free", (False,), "latents follow the tokens of padded rows"),
    ("max_length", (None,), "a cut would part latents from their frames; videos are bounded by the processor"),
    ("use_liger_kernel", (False,), "its fused loss would never see the latents"),
    ("loss_type", ("nll",), "the loss of the text is the cross-entropy"),
    ("label_smoothing_factor", (0, 0.0), "the loss of the text is the cross-entropy of the labels"),
    ("assistant_only_loss", (False,), "the labels are the assistant's tokens, always"),
    ("completion_only_loss", (None,), "the labels are the assistant's tokens, always"),
    ("chat_template_path", (None,), "the labels are found by the processor's own template"),
    ("pad_to_multiple_of", ("auto", None), "rows are padded to the longest one"),
    ("shuffle_dataset", (False,), "the sampler shuffles, see train_sampling_strategy"),
    ("train_sampling_strategy", ("random", "sequential"), "lengths are not known before the frames are decoded"),
    ("average_tokens_across_devices", (True,), "the losses are means over all processes"),
    ("prediction_loss_only", (True,), "logits are computed where there are labels, not for whole rows"),
    ("remove_unused_columns", (False,), "the collator reads the records' columns"),
    ("parallelism_config", (None,), "latents follow whole rows; several processes share the batch"),
)


def refuse(settings, refused: tuple, stage: str) -> None:
    """Raise `ValueError` for the first of `refused` whose value in `settings` is not one of the fine ones."""
    for name, fine, reason in refused:
        if (value := getattr(settings, name)) not in fine:
            raise ValueError(f"{name}={value!r} does not work with {stage}: {reason}. Use {fine[0]!r}")


@dataclass
class DIFTConfig(SFTConfig):
    """`SFTConfig` with the weights of the two losses; their defaults are the published ones.

    Raises `ValueError`, by name, for options that cannot work with latents or would be ignored: see `REFUSED`.
    """

    ce_weight: float = field(default=0.1, metadata={"help": "Weight of the cross-entropy on the assistant's text."})
    sim_weight: float = field(default=1.0, metadata={"help": "Weight of the cosine loss on the latents."})
    imagery: bool = field(default=True, metadata={"help": "Train mental images; if false they are left out."})
    reasoning: bool = field(default=True, metadata={"help": "Train the reasoning; if false the answer alone."})
    options: bool = field(default=True, metadata={"help": "Show the options in the question."})
    freeze_vision: bool = field(default=True, metadata={"help": "Freeze the vision tower and its merger."})
    forget_video: bool = field(
        default=False,
        metadata={"help": "Learn the words behind the first mental images without the video, from the images alone."},
    )
    feature_cache: str | None = field(
        default=None, metadata={"help": "Folder for what the frozen tower makes; it then runs once, before training."}
    )
    eval_questions: int = field(
        default=0, metadata={"help": "Let the model answer so many questions at each evaluation, the first ones."}
    )
    eval_max_new_tokens: int = field(default=256, metadata={"help": "Tokens that such an answer may have."})

    max_length: int | None = field(default=None, metadata={"help": "Refused: a cut would part latents and frames."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator reads the records' columns."})
    prediction_loss_only: bool = field(default=True, metadata={"help": "Evaluation returns losses, never logits."})
    include_num_input_tokens_seen: str = field(
        default="non_padding",
        metadata={"help": "Tokens counted for train_tokens_per_second.", "choices": ["all", "non_padding", "no"]},
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Every trainable parameter takes part in every batch: none to be looked for."}
    )

    def __post_init__(self):
        refuse(self, REFUSED, "DIFT")
        if self.feature_cache is not None and not self.freeze_vision:
            raise ValueError("feature_cache needs freeze_vision: a tower that learns makes other features each step")
        if (self.metric_for_best_model or "").removeprefix("eval_") == "accuracy" and not self.eval_questions:
            raise ValueError("metric_for_best_model: accuracy needs eval_questions, the number of questions to ask")
        self.dataset_kwargs = {**(self.dataset_kwargs or {}), "skip_prepare_dataset": True}
        super().__post_init__()
        if self.accelerator_config.dispatch_batches:
            raise ValueError("dispatch_batches=True does not work with DIFT: frames are not cut as rows are")
