"""Files of checkpoints: where they are, here or on the Hub, what is loaded from them, and what the Hub's refusals mean."""

import hashlib
import json
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path

import torch
from huggingface_hub import get_token, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig

from ..modeling_fourdthinker import FourDThinkerForConditionalGeneration
from ..processing_fourdthinker import FourDThinkerProcessor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

# What transformers 5.23 and 5.24 load a checkpoint from, but for its code.
LOADED = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    INDEX,
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def find_folder(source: str | PathLike) -> Path:
    """The folder of a checkpoint: `source` itself or, if it is a Hub id, its files in the Hub's cache."""
    if Path(source).is_dir():
        return Path(source)
    wanted = ["*.safetensors", "*.json", "*.jinja", "*.txt"]
    try:
        return Path(snapshot_download(str(source), allow_patterns=wanted, ignore_patterns=["*/*"]))
    except HfHubHTTPError as error:
        raise ValueError(f"{source}: no such folder; on the Hub, {why_refused(error)}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: no such folder, and no Hub repository that can be read: {error}") from error


def why_refused(error: HfHubHTTPError) -> str:
    """What the Hub's answer means and what to do, in a line."""
    login = "the token in use may not see it" if get_token() else "log in (`hf auth login`) or set HF_TOKEN"
    if isinstance(error, GatedRepoError):
        return f"access has to be asked for on its page; then {login}"
    if isinstance(error, RepositoryNotFoundError):  # the Hub answers alike for what is private and what is not there
        return f"there is no such repository, or it is private: {login}"
    status = error.response.status_code
    if status == 401:
        return "the token is not valid: log in (`hf auth login`) or set HF_TOKEN"
    if status == 403:
        return "the token may not write there: make one with write access to that account"
    return f"the answer is {status}: {error.server_message or error}"


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: damaged, no JSON ({error}); get it again") from error


def read_shards(folder: Path) -> dict[str, dict[str, list[int]]]:
    """`{file: {tensor: shape}}` of the files that transformers would load."""
    if (folder / SINGLE).is_file():
        names = [SINGLE]
    elif (folder / INDEX).is_file():
        names = sorted(set(_read_json(folder / INDEX)["weight_map"].values()))
    else:
        raise ValueError(f"{folder}: no {SINGLE} or {INDEX}; pickled weights are not read, save them as safetensors")
    if missing := set(names) - {path.name for path in folder.glob("*.safetensors")}:
        raise ValueError(f"{folder / INDEX}: names {', '.join(sorted(missing))}, not there; get it again")
    shards = {}
    for name in names:
        try:
            with safe_open(folder / name, "pt") as file:  # holds the length of the file against its header
                shards[name] = {tensor: file.get_slice(tensor).get_shape() for tensor in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{folder / name}: truncated or damaged ({error}); get it again") from error
    return shards


def find_model(model: str) -> Path:
    """The folder of a checkpoint, from the Hub's cache if it is a Hub id. `ValueError` if there is none."""
    folder = find_folder(model)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{model}: no checkpoint there (a folder or Hub id with a config.json)")
    return folder


def model_hash(folder: Path) -> str:
    """SHA-256 over names and contents of what a checkpoint is loaded from."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in LOADED):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def shipped(name: str) -> Path:
    """A file or folder that comes with the project, such as `examples`: from the checkout or the installed wheel."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "shipped" / name  # where the wheel has it, see pyproject.toml
    return inside if inside.exists() else package.parent / name


BUNDLED = shipped("checkpoints/4dthinker-tiny")


def load_model(
    model: str | PathLike, device: str | torch.device | None = None, dtype: str | torch.dtype = "auto"
) -> tuple[FourDThinkerForConditionalGeneration, FourDThinkerProcessor]:
    """Load a folder or Hub id on `device` (a GPU if there is one), ready to answer. ValueError if it is no 4DThinker
    checkpoint or lacks a processor."""
    try:
        config, _ = PretrainedConfig.get_config_dict(str(model))
    except OSError as error:
        raise ValueError(f"{model}: no checkpoint there (a folder or Hub id with a config.json)") from error
    if "latent_token_id" not in config:
        raise ValueError(
            f"{model}: config.json has no latent_token_id, so this is no 4DThinker checkpoint; "
            "`fourdthinker convert` makes one of a Qwen2.5-VL checkpoint"
        )
    try:
        processor = FourDThinkerProcessor.from_pretrained(str(model))
    except (OSError, ValueError) as error:
        raise ValueError(f"{model}: holds no processor that can be loaded: {error}") from error
    network = FourDThinkerForConditionalGeneration.from_pretrained(str(model), dtype=dtype)
    return network.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), processor
