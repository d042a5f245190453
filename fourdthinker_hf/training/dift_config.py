"""Settings of DIFT: those of `SFTConfig`, the weights of the two losses, and the options that are refused."""

from dataclasses import dataclass, field

from trl import SFTConfig

from .unsupported_options import COMMON, DIFT, refuse_unsupported

UNSUPPORTED_OPTIONS = (*COMMON, *DIFT)


@dataclass
class DIFTConfig(SFTConfig):
    """`SFTConfig` with the weights of the two losses, whose defaults are the published ones, and options of the data.

    Raises `ValueError` for an option that cannot work with latents or would be ignored: see `UNSUPPORTED_OPTIONS`.
    """

    ce_weight: float = field(default=0.1, metadata={"help": "Weight of the cross-entropy on the assistant's text."})
    sim_weight: float = field(default=1.0, metadata={"help": "Weight of the cosine loss on the latents."})
    imagery: bool = field(default=True, metadata={"help": "Train mental images; if false, they are left out."})
    reasoning: bool = field(default=True, metadata={"help": "Train the reasoning; if false, only the answer."})
    options: bool = field(default=True, metadata={"help": "Show the options in the question."})
    freeze_vision: bool = field(default=True, metadata={"help": "Freeze the vision tower and its merger."})
    forget_video: bool = field(
        default=False,
        metadata={"help": "Learn the text after the first mental images without the video, from these images alone."},
    )
    feature_cache: str | None = field(
        default=None, metadata={"help": "Folder for the frozen tower's features; it then runs once, before training."}
    )
    eval_questions: int = field(
        default=0, metadata={"help": "Number of evaluation questions, from the first, that the model answers freely."}
    )
    eval_max_new_tokens: int = field(default=256, metadata={"help": "Maximum number of tokens of such an answer."})

    max_length: int | None = field(
        default=None, metadata={"help": "Must stay unset: a cut would separate latents and frames."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false: the collator reads all columns."}
    )
    prediction_loss_only: bool = field(
        default=True, metadata={"help": "Must stay true: evaluation returns only losses."}
    )
    include_num_input_tokens_seen: str = field(
        default="non_padding",
        metadata={"help": "Tokens counted for train_tokens_per_second.", "choices": ["all", "non_padding", "no"]},
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: every trainable parameter takes part in every batch."}
    )

    def __post_init__(self):
        refuse_unsupported(self, UNSUPPORTED_OPTIONS, "DIFT")
        if self.feature_cache is not None and not self.freeze_vision:
            raise ValueError("feature_cache needs freeze_vision: a trained tower gives other features at each step")
        if (self.metric_for_best_model or "").removeprefix("eval_") == "accuracy" and not self.eval_questions:
            raise ValueError("metric_for_best_model=accuracy needs eval_questions, the number of questions to answer")
        self.dataset_kwargs = {**(self.dataset_kwargs or {}), "skip_prepare_dataset": True}
        super().__post_init__()
        if self.accelerator_config.dispatch_batches:
            raise ValueError("dispatch_batches=True does not work with DIFT: pixels are not split as rows are")
