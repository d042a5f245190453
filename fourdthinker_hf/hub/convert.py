"""Checkpoints made ready for use: `convert` makes a 4DThinker folder of a Qwen2.5-VL base or of a published 4DThinker.

- A checkpoint whose config.json has `latent_token_id` is a published 4DThinker; any other is a base, which lacks the
  three tokens. transformers loads either as plain Qwen2.5-VL, without latents and without an error.
- Tensors keep their names and bytes: the modeling file reads either layout. Files are copied; only one that holds a
  vocabulary table in need of new rows is written anew, so no more than one file is ever in memory.
- All checks come before the first byte is written. The folder is made beside DEST and takes its name when it is whole.
"""

import json
import shutil
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import Qwen2_5_VLProcessor
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.dynamic_module_utils import custom_object_save
from transformers.image_utils import PILImageResampling, SizeDict

from ..configuration_fourdthinker import FourDThinkerConfig
from ..modeling_fourdthinker import FourDThinkerForConditionalGeneration
from ..processing_fourdthinker import LATENT_END, LATENT_PAD, LATENT_START, FourDThinkerProcessor
from .files import INDEX, SINGLE, _read_json, find_folder, read_shards

TABLES = ("model.language_model.embed_tokens.weight", "lm_head.weight")
# In the order in which a base gets them: on the Qwen2.5 tokenizer they are 151665, 151666, 151667, as published.
LATENT_TOKENS = {"latent_token_id": LATENT_PAD, "latent_start_id": LATENT_START, "latent_end_id": LATENT_END}
TOKENS = {**LATENT_TOKENS, "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
# What the published checkpoints were fed, measured on the public 4DThinker code, commit 647ed39: a frame a second, 50
# at most, positions one second apart from one temporal patch to the next, frames of 1 to 256 patches of 28 x 28
# pixels, scaled by Lanczos. A mental image could end early, and had 8 latents where the config does not say.
PUBLISHED_PROCESSOR = {"fps": 1.0, "max_frames": 50, "second_per_grid": 1.0}
PUBLISHED_SIZE = SizeDict(shortest_edge=28 * 28, longest_edge=256 * 28 * 28)
PUBLISHED_LATENT_SIZE = 8
# Keys of a config.json that belong to the trainer, to who saved it, or are set anew.
DROPPED = ("ce_loss_weight", "sim_loss_weight", "stage", "model_type", "architectures", "auto_map", "_name_or_path")
# By the mean alone the three tokens would have the same logit. A hundredth of the rows' spread leaves them at the
# average token, and survives the rounding of bfloat16.
NOISE = 0.01


def convert(
    source: str | PathLike,
    dest: str | PathLike,
    instruction: str | PathLike | None = None,
    latent_size: int | None = None,
    compress_strategy: str | None = None,
) -> str:
    """Make the folder DEST, which `AutoModel` and `VideoQA` load, of SOURCE.

    Args:
        source: folder or Hub id of a Qwen2.5-VL base or a published 4DThinker checkpoint, in safetensors.
        dest: a folder that does not exist yet, or an empty one.
        instruction: text file with what every question ends with.
        latent_size, compress_strategy: as in `FourDThinkerConfig`; only for a base, a published one has its own.

    Returns a line that says what was made. Raises `ValueError` for what cannot be converted; DEST is then untouched.
    """
    dest = Path(dest).absolute()
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise ValueError(f"{dest}: exists already and is no empty folder; name another")
    text = "" if instruction is None else _read_text(Path(instruction))
    folder = find_folder(source)
    chosen = {"latent_size": latent_size, "compress_strategy": compress_strategy}
    config, published = _read_config(folder, {name: value for name, value in chosen.items() if value is not None})
    processor = _read_processor(folder, config, published, text)
    shards = read_shards(folder)
    _check_tensors(folder, shards, config)
    num_trained = len(processor.tokenizer)
    new = [] if published else _add_tokens(folder, config, processor.tokenizer)
    _check_ids(folder, config, processor.tokenizer)

    dest.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{dest.name}.", dir=dest.parent) as scratch:
        made = Path(scratch) / dest.name
        made.mkdir()
        _write_shards(folder, made, shards, new, config.text_config.vocab_size, num_trained)
        if (folder / "generation_config.json").is_file():
            shutil.copyfile(folder / "generation_config.json", made / "generation_config.json")
        config.save_pretrained(made)
        processor.save_pretrained(made)
        custom_object_save(FourDThinkerForConditionalGeneration, made)  # its code; the two above save their own
        if dest.exists():
            dest.rmdir()
        made.rename(dest)
    return (
        f"{dest}: made of a {'published 4DThinker checkpoint' if published else 'Qwen2.5-VL base'}, latent tokens "
        f"{', '.join(str(getattr(config, name)) for name in LATENT_TOKENS)}, {len(new)} new rows of "
        f"{config.text_config.vocab_size}, {'with an' if text else 'without'} instruction"
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no UTF-8 text") from error


def _read_config(folder: Path, chosen: dict) -> tuple[FourDThinkerConfig, bool]:
    """The config, still with SOURCE's vocabulary size, and whether it is a published 4DThinker's."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{path}: not there; a checkpoint of transformers has one")
    raw = _read_json(path)
    kind, architectures = raw.get("model_type"), raw.get("architectures")
    if kind == FourDThinkerConfig.model_type:
        raise ValueError(f"{folder}: is a 4DThinker folder already, there is nothing to convert")
    if kind != "qwen2_5_vl" or architectures != ["Qwen2_5_VLForConditionalGeneration"]:
        raise ValueError(
            f"{path}: model_type {kind!r} with architectures {architectures!r}; only 'qwen2_5_vl' with "
            "['Qwen2_5_VLForConditionalGeneration'] can be converted"
        )
    published = "latent_token_id" in raw
    if published and chosen:
        raise ValueError(f"{path}: a published 4DThinker checkpoint has its own {', '.join(chosen)}; leave it out")
    if "text_config" in raw:
        raw.pop("vocab_size", None)  # transformers 4.57 writes it twice, and this one would go stale
    if published:
        chosen = {"latent_size": raw.get("latent_size", PUBLISHED_LATENT_SIZE), "latent_early_end": True}
    settings = {name: value for name, value in raw.items() if name not in DROPPED} | chosen
    return FourDThinkerConfig(**settings, architectures=[FourDThinkerForConditionalGeneration.__name__]), published


def _read_processor(folder: Path, config: FourDThinkerConfig, published: bool, instruction: str):
    if not (folder / "tokenizer_config.json").is_file():  # transformers would make an empty tokenizer
        raise ValueError(f"{folder}: no tokenizer_config.json; copy the tokenizer's files from its base")
    try:
        base = Qwen2_5_VLProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no processor with a tokenizer ({error}); copy one from its base") from error
    if base.chat_template is None:
        raise ValueError(f"{folder}: no chat_template.json or chat_template.jinja; copy it from its base")
    if published:
        for part in (base.image_processor, base.video_processor):
            part.size, part.resample = PUBLISHED_SIZE, PILImageResampling.LANCZOS
    return FourDThinkerProcessor(
        base.image_processor,
        base.tokenizer,
        base.video_processor,
        base.chat_template,
        latent_size=config.latent_size,
        instruction=instruction,
        **(PUBLISHED_PROCESSOR if published else {}),
    )


def _new_name(tensor: str) -> str:
    """The parameter that transformers loads a tensor of either layout into."""
    for renaming in get_checkpoint_conversion_mapping(FourDThinkerForConditionalGeneration.__name__):
        tensor, _ = renaming.rename_source_key(tensor)
    return tensor


def _check_tensors(folder: Path, shards: dict, config: FourDThinkerConfig) -> None:
    with torch.device("meta"):
        model = FourDThinkerForConditionalGeneration(config)
    want = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    have = {_new_name(tensor): shape for shapes in shards.values() for tensor, shape in shapes.items()}
    if config.tie_word_embeddings:
        have.setdefault("lm_head.weight", want["lm_head.weight"])
    wrong = {name for name in want.keys() & have.keys() if want[name] != have[name]}
    found = {"missing": want.keys() - have.keys(), "unexpected": have.keys() - want.keys(), "of a wrong shape": wrong}
    if any(found.values()):
        listed = "; ".join(f"{len(names)} {what}, as {min(names)}" for what, names in found.items() if names)
        raise ValueError(f"{folder}: the tensors are not those that config.json describes: {listed}")


def _add_tokens(folder: Path, config: FourDThinkerConfig, tokenizer) -> list[int]:
    """Give a base the three tokens, its config their ids and size; return the rows that are new."""
    if tokenizer.add_tokens(list(LATENT_TOKENS.values()), special_tokens=True) < len(LATENT_TOKENS):
        raise ValueError(
            f"{folder}: the tokenizer has latent tokens but config.json names none; if the checkpoint was trained "
            f"with them, write {', '.join(LATENT_TOKENS)} there"
        )
    ids = tokenizer.convert_tokens_to_ids(list(LATENT_TOKENS.values()))
    config.latent_token_id, config.latent_start_id, config.latent_end_id = ids
    num_rows = config.text_config.vocab_size
    config.text_config.vocab_size = max(num_rows, max(ids) + 1)
    return sorted({*ids, *range(num_rows, max(ids) + 1)})


def _check_ids(folder: Path, config: FourDThinkerConfig, tokenizer) -> None:
    for name, token in TOKENS.items():
        wanted, found = getattr(config, name), tokenizer.convert_tokens_to_ids(token)
        if wanted != found or wanted >= config.text_config.vocab_size:
            raise ValueError(
                f"{folder}: config.json has {name} {wanted} and vocab_size {config.text_config.vocab_size}, but the "
                f"tokenizer has {token} at {found}; take both from the same checkpoint"
            )


def _write_shards(folder: Path, made: Path, shards: dict, new: list[int], num_rows: int, num_trained: int) -> None:
    grown = {"total_size": 0, "total_parameters": 0}  # bytes, numbers
    for shard, shapes in tqdm(shards.items(), unit="file"):
        tables = [tensor for tensor in shapes if new and _new_name(tensor) in TABLES]
        if not tables:
            shutil.copyfile(folder / shard, made / shard)
            continue
        with safe_open(folder / shard, "pt") as file:
            tensors = {tensor: file.get_tensor(tensor) for tensor in shapes}
        for table in tables:
            filled = _fill(tensors[table], new, num_rows, num_trained)
            grown["total_size"] += filled.nbytes - tensors[table].nbytes
            grown["total_parameters"] += filled.numel() - tensors[table].numel()
            tensors[table] = filled
        save_file(tensors, made / shard, metadata={"format": "pt"})
        del tensors, filled
    if SINGLE not in shards:
        index = _read_json(folder / INDEX)
        before = index.get("metadata", {})
        index["metadata"] = {key: before[key] + change for key, change in grown.items() if key in before}
        (made / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _fill(table: torch.Tensor, new: list[int], num_rows: int, num_trained: int) -> torch.Tensor:
    """`table` `(rows, hidden)` with `num_rows` rows, those in `new` the mean of the first `num_trained` plus noise.

    Seeded, so that a head tied to the table and stored beside it gets the same rows.
    """
    trained = table[:num_trained]
    chunks = trained.split(4096)  # there is never a float32 copy of the whole table
    mean = sum(rows.float().sum(0) for rows in chunks) / len(trained)
    spread = (sum((rows.float() - mean).square().sum(0) for rows in chunks) / len(trained)).sqrt()
    noise = torch.randn(len(new), table.shape[1], generator=torch.Generator().manual_seed(0))
    filled = table.new_empty(num_rows, table.shape[1])
    filled[: len(table)] = table
    filled[new] = (mean + NOISE * spread * noise).to(table.dtype)
    return filled
