"""Reads the settings of a checkpoint that is not in this project's format: a Qwen2.5-VL base, or a 4DThinker that its
authors published. transformers loads both as plain Qwen2.5-VL, without latents and without an error.

A checkpoint whose config.json has `latent_token_id` is a published 4DThinker. Any other is a base, which lacks the
three latent tokens. The tensors of both keep their names, because the modeling file reads both layouts.
"""

from pathlib import Path

from transformers import Qwen2_5_VLProcessor
from transformers.image_utils import PILImageResampling, SizeDict

from .configuration_fourdthinker import FourDThinkerConfig
from .processing_fourdthinker import FourDThinkerProcessor

# The settings with which the published checkpoints were trained, measured on the public 4DThinker code, commit
# 647ed39: one frame a second, at most 50 frames, one second between temporal patches in the positions, frames of 1 to
# 256 patches of 28 x 28 pixels, resized with Lanczos. A mental image could end early, and had 8 latents if the config
# does not say.
PUBLISHED_PROCESSOR = {"fps": 1.0, "max_frames": 50, "second_per_grid": 1.0}
PUBLISHED_SIZE = SizeDict(shortest_edge=28 * 28, longest_edge=256 * 28 * 28)
PUBLISHED_LATENT_SIZE = 8
# Keys of config.json that belong to the trainer or to the machine that saved it, or that are set anew.
DROPPED_KEYS = (
    "ce_loss_weight",
    "sim_loss_weight",
    "stage",
    "model_type",
    "architectures",
    "auto_map",
    "_name_or_path",
)


def is_published(raw: dict) -> bool:
    """Whether this config.json is that of a published 4DThinker that was not converted."""
    return "latent_token_id" in raw and raw.get("model_type") != FourDThinkerConfig.model_type


def read_config(raw: dict, path: Path, **options) -> FourDThinkerConfig:
    """The config that `raw`, the content of the config.json at `path`, becomes, with its vocabulary size. `options`
    are settings for a base. Raises `ValueError` if it is the config of another model, or a published one is given
    options."""
    model_type, architectures = raw.get("model_type"), raw.get("architectures")
    if model_type != "qwen2_5_vl" or architectures != ["Qwen2_5_VLForConditionalGeneration"]:
        raise ValueError(
            f"{path}: it has model_type {model_type!r} and architectures {architectures!r}; only 'qwen2_5_vl' with "
            "['Qwen2_5_VLForConditionalGeneration'] can be converted"
        )
    if is_published(raw):
        if options:
            raise ValueError(
                f"{path}: a published 4DThinker checkpoint has its own {', '.join(options)}; leave it out"
            )
        options = {"latent_size": raw.get("latent_size", PUBLISHED_LATENT_SIZE), "latent_early_end": True}
    settings = {name: value for name, value in raw.items() if name not in DROPPED_KEYS} | options
    if "text_config" in raw:
        settings.pop("vocab_size", None)  # transformers 4.57 writes it twice, and this copy would become wrong
    return FourDThinkerConfig(**settings, architectures=["FourDThinkerForConditionalGeneration"])


def read_processor(
    folder: Path, config: FourDThinkerConfig, published: bool, instruction: str = ""
) -> FourDThinkerProcessor:
    """The processor that the one in `folder` becomes: of a published checkpoint with the settings of its training,
    which its files do not hold. Raises `ValueError` if it cannot be loaded."""
    if not (folder / "tokenizer_config.json").is_file():  # without it transformers would make an empty tokenizer
        raise ValueError(f"{folder}: there is no tokenizer_config.json; copy the tokenizer's files from its base")
    try:
        base = Qwen2_5_VLProcessor.from_pretrained(folder, trust_remote_code=False)
        if base.chat_template is None:
            raise ValueError("there is no chat_template.json or chat_template.jinja")
        if published:
            for part in (base.image_processor, base.video_processor):
                part.size, part.resample = PUBLISHED_SIZE, PILImageResampling.LANCZOS
        processor = FourDThinkerProcessor(
            base.image_processor,
            base.tokenizer,
            base.video_processor,
            base.chat_template,
            latent_size=config.latent_size,
            instruction=instruction,
            **(PUBLISHED_PROCESSOR if published else {}),
        )
        processor.apply_chat_template(processor.conversation("clip", "?"), tokenize=False)  # a template may raise
    except Exception as error:  # libraries have no common one for damaged files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{folder}: its processor and tokenizer cannot be loaded ({reason}); copy both from its base"
        ) from error
    return processor
