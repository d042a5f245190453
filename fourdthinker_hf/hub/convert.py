"""Converts a Qwen2.5-VL base or a published 4DThinker checkpoint into a folder that this project loads.

- What tells the two apart, and the settings of a published one, are in `published.py`.
- Tensors keep their names and bytes, because the modeling file reads both layouts. Files are copied. Only a file with
  an embedding table that needs new rows is written anew, so never more than one file is in memory.
- Everything is checked before the first byte is written. The folder is made beside DEST and renamed when it is
  complete.
"""

import json
import shutil
from os import PathLike
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..checkpoints import check_shapes, find_model, new_tensor_name, read_json, read_tensor_shapes
from ..configuration_fourdthinker import FourDThinkerConfig
from ..modeling_fourdthinker import FourDThinkerForConditionalGeneration
from ..output_files import check_new_folder, new_folder
from ..processing_fourdthinker import LATENT_END, LATENT_PAD, LATENT_START
from ..published import is_published, read_config, read_processor

EMBEDDING_TABLES = ("model.language_model.embed_tokens.weight", "lm_head.weight")
# In this order a base gets them, so that on the Qwen2.5 tokenizer they become 151665, 151666, 151667, as published.
LATENT_TOKENS = {"latent_token_id": LATENT_PAD, "latent_start_id": LATENT_START, "latent_end_id": LATENT_END}
TOKENS = {**LATENT_TOKENS, "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
# New rows are the mean of the trained rows plus noise of this share of their standard deviation. Without noise the
# three tokens would always have the same logit. This much leaves them near the mean and survives the rounding of
# bfloat16.
NOISE = 0.01


def convert(
    source: str | PathLike,
    dest: str | PathLike,
    instruction: str | PathLike | None = None,
    latent_size: int | None = None,
    compress_strategy: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
) -> str:
    """Convert SOURCE into the folder DEST, which `AutoModel` and `VideoQA` load.

    Args:
        source: folder or Hub id of a Qwen2.5-VL base or a published 4DThinker checkpoint, in safetensors.
        dest: a folder that does not exist yet, or an empty one.
        instruction: text file. Every question to the model will end with its text.
        latent_size, compress_strategy: as in `FourDThinkerConfig`. Only for a base; a published one has its own.
        revision, subfolder: of SOURCE, as in [`checkpoints.find_model`].

    Returns a line that says what was made. Raises `ValueError` if SOURCE cannot be converted; DEST is then untouched.
    """
    dest = Path(dest).absolute()
    check_new_folder(dest)
    text = "" if instruction is None else _read_text(Path(instruction))
    folder = find_model(source, revision, subfolder, allow_base=True)
    raw = read_json(folder / "config.json")
    if raw.get("model_type") == FourDThinkerConfig.model_type:
        raise ValueError(f"{folder}: this is a 4DThinker folder already, so there is nothing to convert")
    options = {"latent_size": latent_size, "compress_strategy": compress_strategy}
    options = {name: value for name, value in options.items() if value is not None}
    config, published = read_config(raw, folder / "config.json", **options), is_published(raw)
    processor = read_processor(folder, config, published, text)
    shapes = read_tensor_shapes(folder)
    check_shapes(folder, config)
    num_trained = len(processor.tokenizer)
    new_rows = [] if published else _add_tokens(folder, config, processor.tokenizer)
    _check_ids(folder, config, processor.tokenizer)

    with new_folder(dest) as result:
        _write_weights(folder, result, shapes, new_rows, config.text_config.vocab_size, num_trained)
        if (folder / "generation_config.json").is_file():
            shutil.copyfile(folder / "generation_config.json", result / "generation_config.json")
        config.save_pretrained(result)
        processor.save_pretrained(result)
        custom_object_save(FourDThinkerForConditionalGeneration, result)  # the two lines above save their own code
    return (
        f"{dest}: made of a {'published 4DThinker checkpoint' if published else 'Qwen2.5-VL base'}, latent tokens "
        f"{', '.join(str(getattr(config, name)) for name in LATENT_TOKENS)}, {len(new_rows)} new rows of "
        f"{config.text_config.vocab_size}, {'with an' if text else 'without'} instruction"
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: this is not UTF-8 text") from error


def _add_tokens(folder: Path, config: FourDThinkerConfig, tokenizer) -> list[int]:
    """Add the three latent tokens to the tokenizer of a base, and their ids and the new vocabulary size to its config.
    Returns the numbers of the new rows in the embedding tables."""
    if tokenizer.add_tokens(list(LATENT_TOKENS.values()), special_tokens=True) < len(LATENT_TOKENS):
        raise ValueError(
            f"{folder}: the tokenizer has latent tokens, but config.json names none; if the checkpoint was trained "
            f"with them, add {', '.join(LATENT_TOKENS)} to config.json"
        )
    ids = tokenizer.convert_tokens_to_ids(list(LATENT_TOKENS.values()))
    config.latent_token_id, config.latent_start_id, config.latent_end_id = ids
    num_rows = config.text_config.vocab_size
    config.text_config.vocab_size = max(num_rows, max(ids) + 1)
    return sorted({*ids, *range(num_rows, max(ids) + 1)})


def _check_ids(folder: Path, config: FourDThinkerConfig, tokenizer) -> None:
    for name, token in TOKENS.items():
        in_config, in_tokenizer = getattr(config, name), tokenizer.convert_tokens_to_ids(token)
        if in_config != in_tokenizer or in_config >= config.text_config.vocab_size:
            raise ValueError(
                f"{folder}: config.json has {name} {in_config} and vocab_size {config.text_config.vocab_size}, but "
                f"the tokenizer has {token} at {in_tokenizer}; take both from the same checkpoint"
            )


def _write_weights(
    folder: Path, result: Path, shapes: dict, new_rows: list[int], num_rows: int, num_trained: int
) -> None:
    """Copy the weights from `folder` to `result`, with embedding tables of `num_rows` rows."""
    added = {"total_size": 0, "total_parameters": 0}  # as the index counts them: bytes and values
    for name, tensor_names in tqdm(shapes.items(), unit="file", disable=None):
        tables = [tensor for tensor in tensor_names if new_rows and new_tensor_name(tensor) in EMBEDDING_TABLES]
        if not tables:
            shutil.copyfile(folder / name, result / name)
            continue
        with safe_open(folder / name, "pt") as file:
            tensors = {tensor: file.get_tensor(tensor) for tensor in tensor_names}
        for table in tables:
            extended = _add_rows(tensors[table], new_rows, num_rows, num_trained)
            added["total_size"] += extended.nbytes - tensors[table].nbytes
            added["total_parameters"] += extended.numel() - tensors[table].numel()
            tensors[table] = extended
        save_file(tensors, result / name, metadata={"format": "pt"})
        del tensors, extended
    if SAFE_WEIGHTS_NAME not in shapes:
        index = read_json(folder / SAFE_WEIGHTS_INDEX_NAME)
        before = index.get("metadata", {})
        index["metadata"] = {key: before[key] + change for key, change in added.items() if key in before}
        (result / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def _add_rows(table: torch.Tensor, new_rows: list[int], num_rows: int, num_trained: int) -> torch.Tensor:
    """`table` `(rows, hidden)` with `num_rows` rows, in which `new_rows` are the mean of the first `num_trained` rows
    plus noise. The noise has a fixed seed, so that a head that is stored beside its tied table gets the same rows."""
    trained = table[:num_trained]
    chunks = trained.split(4096)  # so that there is never a float32 copy of the whole table
    mean = sum(rows.float().sum(0) for rows in chunks) / len(trained)
    deviation = (sum((rows.float() - mean).square().sum(0) for rows in chunks) / len(trained)).sqrt()
    noise = torch.randn(len(new_rows), table.shape[1], generator=torch.Generator().manual_seed(0))
    extended = table.new_empty(num_rows, table.shape[1])
    extended[: len(table)] = table
    extended[new_rows] = (mean + NOISE * deviation * noise).to(table.dtype)
    return extended
