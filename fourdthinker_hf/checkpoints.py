"""Finds the files of checkpoints and of the project, and talks to the Hub. No other file does: here the Hub's errors
are put into words."""

import hashlib
import json
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path

import torch
from huggingface_hub import HfApi, get_token, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .modeling_fourdthinker import FourDThinkerForConditionalGeneration
from .processing_fourdthinker import FourDThinkerProcessor

# The files from which transformers 5.23 and 5.24 load a checkpoint, apart from its code.
LOADED_FILES = (
    SAFE_WEIGHTS_NAME,
    "model-*-of-*.safetensors",
    SAFE_WEIGHTS_INDEX_NAME,
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


def shipped(name: str) -> Path:
    """A file or folder that comes with the project, such as `examples`, from the checkout or the installed wheel."""
    package = Path(__file__).resolve().parent
    in_wheel = package / "shipped" / name  # pyproject.toml puts it there
    return in_wheel if in_wheel.exists() else package.parent / name


BUNDLED = shipped("checkpoints/4dthinker-tiny")


# Checkpoints


def find_model(model: str | PathLike) -> Path:
    """The folder of a checkpoint: `model` itself or, for a Hub id, the folder in the Hub's cache to which its files
    are downloaded. Raises `ValueError` if there is no checkpoint."""
    folder = Path(model)
    if not folder.is_dir():
        patterns = ["*.safetensors", "*.json", "*.jinja", "*.txt"]
        try:
            folder = Path(snapshot_download(str(model), allow_patterns=patterns, ignore_patterns=["*/*"]))
        except (HTTPError, OSError, ValueError) as error:
            raise ValueError(
                f"{model}: no checkpoint there. It is no folder, and it cannot be read from the Hub: {explain(error)}"
            ) from error
    if not (folder / "config.json").is_file():
        raise ValueError(f"{model}: no checkpoint there, because config.json is missing")
    return folder


def load_model(
    model: str | PathLike, device: str | torch.device | None = None, dtype: str | torch.dtype = "auto"
) -> tuple[FourDThinkerForConditionalGeneration, FourDThinkerProcessor]:
    """Load a checkpoint and its processor from a folder or the Hub, in evaluation mode on `device` (by default a GPU
    if there is one). Raises `ValueError` if it is not a 4DThinker checkpoint or has no processor."""
    folder = find_model(model)
    if "latent_token_id" not in read_json(folder / "config.json"):
        raise ValueError(
            f"{model}: config.json has no latent_token_id, so this is no 4DThinker checkpoint; "
            "`fourdthinker convert` makes one of a Qwen2.5-VL checkpoint"
        )
    try:
        processor = FourDThinkerProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{model}: its processor cannot be loaded: {error}") from error
    network = FourDThinkerForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    return network.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), processor


def model_hash(folder: Path) -> str:
    """SHA-256 of the names and contents of the files from which a checkpoint is loaded."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in LOADED_FILES):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: this is not JSON ({error}), so the file is damaged; get it again") from error


def read_tensor_shapes(folder: Path) -> dict[str, dict[str, list[int]]]:
    """`{file: {tensor: shape}}` of the weights that transformers would load. Raises `ValueError` if files are missing
    or damaged."""
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        names = [SAFE_WEIGHTS_NAME]
    elif (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        names = sorted(set(read_json(folder / SAFE_WEIGHTS_INDEX_NAME)["weight_map"].values()))
    else:
        raise ValueError(
            f"{folder}: there is no {SAFE_WEIGHTS_NAME} or {SAFE_WEIGHTS_INDEX_NAME}; pickled weights are not read; "
            "save them as safetensors"
        )
    if missing := set(names) - {path.name for path in folder.glob("*.safetensors")}:
        raise ValueError(
            f"{folder / SAFE_WEIGHTS_INDEX_NAME}: it names {', '.join(sorted(missing))}, which is not there; get that "
            "again"
        )
    shapes = {}
    for name in names:
        try:
            with safe_open(folder / name, "pt") as file:  # compares the length of the file with its header
                shapes[name] = {tensor: file.get_slice(tensor).get_shape() for tensor in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{folder / name}: truncated or damaged ({error}); get it again") from error
    return shapes


# The Hub


def read_card_text(repo_id: str) -> str:
    """README.md of a model on the Hub. Raises `ValueError` if it cannot be read."""
    try:
        return Path(hf_hub_download(repo_id, "README.md")).read_text(encoding="utf-8")
    except (HTTPError, OSError, ValueError) as error:
        raise ValueError(f"{repo_id}: its card (README.md) cannot be read from the Hub: {explain(error)}") from error


def upload_folder(
    folder: Path,
    repo_id: str,
    repo_type: str,
    private: bool = False,
    token: str | None = None,
    delete_patterns: list[str] | None = None,
) -> str:
    """Upload a folder to a repository, in one commit if it has at most 250 files. Returns the address.

    The repository is created if it is not there. `private` refuses one that is public already. Files of the repository
    that match `delete_patterns` and are not in the folder are deleted. Raises `ValueError` if the Hub refuses or
    cannot be reached.
    """
    if (token := token or get_token()) is None:
        raise ValueError("there is no token: log in (`hf auth login`) or set HF_TOKEN, with write access")
    api = HfApi(token=token)
    sdk = {"space_sdk": "gradio"} if repo_type == "space" else {}
    try:
        url = api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True, **sdk)
        if private and not api.repo_info(repo_id, repo_type=repo_type).private:
            raise ValueError(f"{repo_id} exists and is public: make it private on its page, or leave out --private")
        api.upload_folder(
            repo_id=repo_id,
            repo_type=repo_type,
            folder_path=folder,
            commit_message="Publish with fourdthinker",
            delete_patterns=delete_patterns,
        )
    except (HTTPError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) else error  # RuntimeError: a file was not uploaded
        if not isinstance(cause, HTTPError):
            raise
        raise ValueError(f"{repo_id}: {explain(cause)}") from error
    return str(url)


def explain(error: Exception) -> str:
    """What an error of huggingface_hub means and what to do, in one line."""
    if not isinstance(error, HfHubHTTPError):
        if isinstance(error, HTTPError):
            return f"the Hub cannot be reached, or the connection broke ({error}); repeat the command to continue"
        return str(error)
    login = "the token in use has no access" if get_token() else "log in (`hf auth login`) or set HF_TOKEN"
    if isinstance(error, GatedRepoError):
        return f"access must be requested on its page; then {login}"
    if isinstance(
        error, RepositoryNotFoundError
    ):  # the Hub's answer is the same for a private repository and for none
        return f"there is no such repository, or it is private: {login}"
    status = error.response.status_code
    if status == 401:
        return "the token is not valid: log in (`hf auth login`) or set HF_TOKEN"
    if status == 403:
        return "the token may not write there: make one with write access to that account"
    return f"the answer is {status}: {error.server_message or error}"
