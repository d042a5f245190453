"""Finds the files of checkpoints and of the project, and talks to the Hub. No other file does: here the Hub's errors
are put into words.

torch and transformers, which take seconds to import, are imported by the functions that load a checkpoint: what is
wrong with its name or its files is said before that.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, constants, get_token, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    import torch

    from .configuration_fourdthinker import FourDThinkerConfig
    from .imagery_decoder_fourdthinker import FourDThinkerImageryDecoder
    from .modeling_fourdthinker import FourDThinkerForConditionalGeneration
    from .processing_fourdthinker import FourDThinkerProcessor

logger = logging.getLogger(__name__)

# The files from which transformers 5.23 and 5.24 load a checkpoint, apart from its code.
LOADED_FILES = (
    SAFETENSORS_SINGLE_FILE,
    "model-*-of-*.safetensors",
    SAFETENSORS_INDEX_FILE,
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
    "imagery_decoder/config.json",
    "imagery_decoder/model.safetensors",
)
IMAGERY_DECODER = "imagery_decoder"  # folder of the decoder in that of the checkpoint
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's names
DTYPES = ("auto", "float32", "bfloat16", "float16")
MAX_SIZE, MAX_LAYERS = 10_000_000, 1000  # no model has as many rows or channels, or as many layers
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "depth", "num_attention_heads")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how the stand-in for a file begins that Git LFS left out


def shipped(name: str) -> Path:
    """A file or folder that comes with the project, such as `examples`, from the checkout or the installed wheel."""
    package = Path(__file__).resolve().parent
    in_wheel = package / "shipped" / name  # pyproject.toml puts it there
    return in_wheel if in_wheel.exists() else package.parent / name


BUNDLED = shipped("checkpoints/4dthinker-tiny")


# Checkpoints


def find_model(
    model: str | PathLike, revision: str | None = None, subfolder: str | None = None, allow_base: bool = False
) -> Path:
    """The folder of a 4DThinker checkpoint or of a PEFT adapter: `model` or, for a Hub id, the folder in the Hub's
    cache to which its files are downloaded. Without a network, a copy in the cache is taken.

    Args:
        revision: a branch, a tag or a commit of a repository on the Hub.
        subfolder: the folder within `model` that holds the checkpoint.
        allow_base: whether it may be a checkpoint of another model.

    Raises `ValueError` that says why there is no such checkpoint with weights, or which subfolders have one. Weights
    are downloaded only after that.
    """
    subfolder = PurePosixPath(subfolder or ".").as_posix()
    if Path(model).is_dir():
        if revision is not None:
            raise ValueError(f"{model}: this is a folder, which has no revision {revision!r}; leave it out")
        root = Path(model)
    elif Path(model).exists():
        raise ValueError(f"{model}: this is a file; give the folder of a checkpoint")
    else:
        root = _download(str(model), revision, subfolder, allow_base)
    names = [
        path.relative_to(root).as_posix()
        for name in ("config.json", ADAPTER_CONFIG)
        for depth in ("", "*/", "*/*/")
        for path in root.glob(depth + name)
    ]
    _check_subfolder(str(model), names, subfolder)
    folder = root / subfolder
    for path in sorted(folder.iterdir()):
        if _is_loaded(path.name) and _is_pointer(path):
            raise ValueError(
                f"{path}: this is a Git LFS pointer and not the file itself; run `git lfs pull` in its repository, or "
                "download the model with `hf download`"
            )
    if not allow_base:
        _check_kind(str(model), folder)
    read_tensor_shapes(folder)
    _check_token_ids(folder, allow_base)
    return folder


def load_model(
    model: str | PathLike,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    subfolder: str | None = None,
) -> tuple[FourDThinkerForConditionalGeneration, FourDThinkerProcessor]:
    """Load a checkpoint and its processor from a folder or the Hub, in evaluation mode.

    The settings of a published 4DThinker that was not converted are converted in memory. A PEFT adapter is loaded with
    its base and merged into it.

    Args:
        device: by default a GPU if there is one.
        dtype: a dtype or one of `DTYPES`; "auto" is that of the weights.
        revision, subfolder: as in [`find_model`].

    Raises `ValueError` if it is not a 4DThinker checkpoint, has no processor, or cannot be loaded as asked.
    """
    device, dtype = check_device(device), check_dtype(dtype)
    folder = find_model(model, revision, subfolder)
    base = find_base(folder)
    processor = load_processor(folder if base is None or has_processor(folder) else base)
    network = load_network(base or folder, dtype=dtype)
    if base is not None:
        network = _merge_adapter(network, folder)
    return network.to(device).eval(), processor


def load_imagery_decoder(network: FourDThinkerForConditionalGeneration) -> FourDThinkerImageryDecoder | None:
    """The imagery decoder stored with a loaded checkpoint, on the same device, or None if there is none. Raises
    `ValueError` if it is made for other latents."""
    from .imagery_decoder_fourdthinker import FourDThinkerImageryDecoder

    folder = Path(network.name_or_path) / IMAGERY_DECODER
    if not (folder / "config.json").is_file():
        return None
    decoder = FourDThinkerImageryDecoder.from_pretrained(folder)
    expected = (network.config.latent_size, network.config.text_config.hidden_size)
    if (made_for := (decoder.config.latent_size, decoder.config.latent_dim)) != expected:
        raise ValueError(
            f"{folder}: this decoder is for {made_for[0]} latents of width {made_for[1]}, but the checkpoint's mental "
            f"images have {expected[0]} of width {expected[1]}; train it again by train/decoder.py"
        )
    return decoder.to(network.device).eval()


def check_device(device: str | torch.device | None) -> torch.device:
    """The device of that name, or for None a GPU if there is one. Raises `ValueError` if it cannot be used."""
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}); cpu always can") from error
    return device


def check_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """`dtype` itself. Raises `ValueError` if it is a text that is not one of `DTYPES`."""
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return dtype


def load_config(folder: Path) -> FourDThinkerConfig:
    """The config of the checkpoint in `folder`, which [`find_model`] returned. That of a published 4DThinker that was
    not converted is converted in memory."""
    from .auto_classes import FourDThinkerConfig
    from .published import is_published, read_config

    raw = read_json(folder / "config.json")
    if not is_published(raw):
        with _one_reason(folder / "config.json"):
            return FourDThinkerConfig.from_pretrained(folder)
    logger.warning(
        "%s is a published 4DThinker. Its settings are converted in memory, without the instruction that its "
        "questions ended with; `fourdthinker convert` can add that and writes a folder that transformers loads.",
        folder,
    )
    with _one_reason(folder / "config.json"):
        return read_config(raw, folder / "config.json")


def load_network(folder: Path, **kwargs) -> FourDThinkerForConditionalGeneration:
    """The model in `folder`, which [`find_model`] returned. Other arguments go to `from_pretrained`. Raises
    `ValueError` if it cannot be loaded, or its tensors are not all that its config describes."""
    from .auto_classes import FourDThinkerForConditionalGeneration

    config = load_config(folder)
    if getattr(config, "quantization_config", None) is None:  # rounded weights have other shapes
        check_shapes(folder, config, allow_more=True)
    with _one_reason(folder):
        return FourDThinkerForConditionalGeneration.from_pretrained(
            folder, config=config, trust_remote_code=False, **kwargs
        )


@contextmanager
def _one_reason(path: Path) -> Iterator[None]:
    """Turn whatever error a damaged checkpoint ends in into a `ValueError` of one line. Libraries have no common one:
    they raise a KeyError, a TypeError, a RuntimeError and others."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[0] if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {lines[0]}"
        if "trust_remote_code" in str(error):
            reason = "it needs code that lies beside it (auto_map), which is not run"
        raise ValueError(f"{path}: it cannot be loaded: {reason.removeprefix(f'{path}: ')}") from error


def load_processor(folder: Path) -> FourDThinkerProcessor:
    """The processor in `folder`. That of a published 4DThinker that was not converted gets the settings of its
    training. Raises `ValueError` if it cannot be loaded."""
    from .auto_classes import FourDThinkerProcessor
    from .published import is_published, read_processor

    raw = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if is_published(raw):
        return read_processor(folder, load_config(folder), True)
    with _one_reason(folder / "processor_config.json"):
        processor = FourDThinkerProcessor.from_pretrained(folder, trust_remote_code=False)
        if not (processor.fps > 0 and processor.max_frames > 0):
            raise ValueError(f"fps {processor.fps} and max_frames {processor.max_frames} must be above 0")
        processor.apply_chat_template(processor.conversation("clip", "?"), tokenize=False)  # a template may raise
    return processor


def has_processor(folder: Path) -> bool:
    return (folder / "processor_config.json").is_file()


def find_base(folder: Path) -> Path | None:
    """The folder of the checkpoint that the adapter in `folder` changes, or None if it holds no adapter. Raises
    `ValueError` if that checkpoint is not there."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    settings = read_json(folder / ADAPTER_CONFIG)
    if not (name := settings.get("base_model_name_or_path")):
        raise ValueError(f"{folder / ADAPTER_CONFIG}: it names no base model; write it to base_model_name_or_path")
    try:
        base = find_model(name, settings.get("revision"))
    except ValueError as error:
        raise ValueError(f"{folder}: this is an adapter, whose base model cannot be found: {error}") from error
    if (base / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{folder}: this is an adapter of the adapter {base}; merge that first")
    return base


def _merge_adapter(network: FourDThinkerForConditionalGeneration, folder: Path):
    from peft import PeftModel  # in the extra "train"

    try:
        merged = PeftModel.from_pretrained(network, folder).merge_and_unload()
    except (RuntimeError, KeyError, ValueError) as error:  # other shapes, other layers
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder}: the adapter does not fit its base model: {reason}") from error
    if (folder / "config.json").is_file():  # training measures the mean of the latents
        merged.config.latent_mean = load_config(folder).latent_mean
    return merged


def model_hash(folder: Path) -> str:
    """SHA-256 of the names and contents of the files from which a checkpoint is loaded: of an adapter, its own and
    those of its base."""
    digest, is_adapter = hashlib.sha256(), (folder / ADAPTER_CONFIG).is_file()
    for path in sorted(folder.iterdir()):
        if _is_loaded(path.name) and (is_adapter or path.name != ADAPTER_WEIGHTS):  # else nobody reads it
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    if (base := find_base(folder)) is not None:
        digest.update(model_hash(base).encode())
    return digest.hexdigest()


def _check_kind(model: str, folder: Path) -> None:
    """Raise a `ValueError` if the config.json in `folder` is that of another model."""
    raw = read_json(folder / "config.json") if not (folder / ADAPTER_CONFIG).is_file() else None
    if raw is not None and "latent_token_id" not in raw:
        raise ValueError(
            f"{model}: config.json has no latent_token_id, so this is no 4DThinker checkpoint; `fourdthinker convert` "
            "makes one of a Qwen2.5-VL checkpoint"
        )


def _is_loaded(name: str) -> bool:
    return name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) or any(fnmatch(name, pattern) for pattern in LOADED_FILES)


def _is_pointer(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size > 1024:
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def _check_subfolder(model: str, names: Iterable[str], subfolder: str) -> None:
    """Raise a `ValueError` with the choices unless one of the files `names` makes `subfolder` a checkpoint."""
    paths = [PurePosixPath(name) for name in names]
    found = {path.parent.as_posix() for path in paths if path.name in ("config.json", ADAPTER_CONFIG)}
    if subfolder in found:
        return
    where = f"in its folder {subfolder}" if subfolder != "." else "in its uppermost folder"
    reason = f"{model}: there is no checkpoint {where}, because config.json is missing there"
    if choices := sorted(found - {"."}):
        reason += f"; choose one with subfolder: {', '.join(choices)}"
    elif "." in found:
        reason += "; it has one in its uppermost folder: leave subfolder out"
    raise ValueError(reason)


def read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: this is not JSON ({error}), so the file is damaged; get it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: this is no JSON object but {str(content)[:40]!r}; get it again")
    return content


def read_tensor_shapes(folder: Path) -> dict[str, dict[str, list[int]]]:
    """`{file: {tensor: shape}}` of the weights that transformers would load. Raises `ValueError` if files are missing
    or damaged."""
    shapes = {}
    for name in _weight_files(folder):
        try:
            with safe_open(folder / name, "np") as file:  # compares the length of the file with its header
                shapes[name] = {tensor: file.get_slice(tensor).get_shape() for tensor in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{folder / name}: truncated or damaged ({error}); get it again") from error
    return shapes


def num_parameters(folder: Path) -> str:
    """The number of values in the weights, such as "3.0 M"."""
    shapes = [shape for tensors in read_tensor_shapes(folder).values() for shape in tensors.values()]
    total = sum(map(math.prod, shapes))
    return f"{total / 1e9:.1f} B" if total >= 1e9 else f"{total / 1e6:.1f} M"


def check_shapes(folder: Path, config: FourDThinkerConfig, allow_more: bool = False) -> None:
    """Raise a `ValueError` unless the weights in `folder` have the tensors that `config` describes, in either layout
    of names. With `allow_more` they may have others as well."""
    import torch
    from transformers.modeling_utils import set_zero3_state

    from .auto_classes import FourDThinkerForConditionalGeneration

    # set_zero3_state: under ZeRO-3, transformers would else shard this model, which has no data.
    with _one_reason(folder / "config.json"), torch.device("meta"), set_zero3_state():
        model = FourDThinkerForConditionalGeneration(config)
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes = read_tensor_shapes(folder)
    stored = {new_tensor_name(tensor): shape for tensors in shapes.values() for tensor, shape in tensors.items()}
    if config.tie_word_embeddings:
        stored.setdefault("lm_head.weight", expected["lm_head.weight"])
    problems = {
        "missing": expected.keys() - stored.keys(),
        "unexpected": set() if allow_more else stored.keys() - expected.keys(),
        "of a wrong shape": {name for name in expected.keys() & stored.keys() if expected[name] != stored[name]},
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(names)} {kind}, such as {min(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"{folder}: the tensors are not those that config.json describes: {listed}")


def new_tensor_name(tensor: str) -> str:
    """The name of the parameter into which transformers loads a tensor, in either layout."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from .auto_classes import FourDThinkerForConditionalGeneration

    for renaming in get_checkpoint_conversion_mapping(FourDThinkerForConditionalGeneration.__name__):
        tensor, _ = renaming.rename_source_key(tensor)
    return tensor


def _check_token_ids(folder: Path, allow_base: bool) -> None:
    """Raise a `ValueError` if a token's id is no row of the embedding table, or a size in config.json is absurd. The
    tokenizers library would fill all ids up to the largest one, and transformers make as many layers as are named.
    With `allow_base` config.json may name tokens that are still to be added."""
    files = {path.name: read_json(path) for path in sorted(folder.glob("*.json")) if _is_loaded(path.name)}
    config = files.get("config.json", {})
    parts = [
        config,
        *(config[name] for name in ("text_config", "vision_config") if isinstance(config.get(name), dict)),
    ]
    for name, value in ((name, value) for part in parts for name, value in part.items()):
        limit = MAX_LAYERS if name in ("num_hidden_layers", "depth") else MAX_SIZE
        if isinstance(value, int) and name in SIZES and not 0 <= value <= limit:
            raise ValueError(f"{folder / 'config.json'}: {name} is {value}, so the file is damaged; get it again")
    num_rows = next((part["vocab_size"] for part in parts[::-1] if isinstance(part.get("vocab_size"), int)), MAX_SIZE)
    tokenizer, settings = files.get("tokenizer.json", {}), files.get("tokenizer_config.json", {})
    with _one_reason(folder / "tokenizer.json"):
        vocab = (tokenizer.get("model") or {}).get("vocab") or {}
        ids = {
            "tokenizer.json": [
                *(vocab.values() if isinstance(vocab, dict) else range(len(vocab))),
                *(token["id"] for token in tokenizer.get("added_tokens") or ()),
            ],
            "tokenizer_config.json": list(map(int, settings.get("added_tokens_decoder") or ())),
            "added_tokens.json": list(files.get("added_tokens.json", {}).values()),
            "vocab.json": list(files.get("vocab.json", {}).values()),
            "generation_config.json": _token_ids(files.get("generation_config.json", {})),
            "config.json": [] if allow_base else _token_ids(config),
        }
    for name, values in ids.items():
        if wrong := [n for n in values if type(n) is not int or not 0 <= n < num_rows]:
            raise ValueError(
                f"{folder / name}: a token has the id {wrong[0]!r}, but the model has tokens 0 to {num_rows - 1}; "
                "take both from the same checkpoint"
            )


def _token_ids(settings: dict) -> list:
    """What the settings of a model or of its generation name as ids of tokens."""
    values = [
        value for name, value in settings.items() if name.endswith(("_token_id", "latent_start_id", "latent_end_id"))
    ]
    return [n for value in values if value is not None for n in (value if isinstance(value, list) else [value])]


def _weight_files(folder: Path) -> list[str]:
    """The names of the weights that transformers, or PEFT for an adapter, would load. Raises `ValueError` if there are
    none, or if one is missing."""
    if (folder / ADAPTER_CONFIG).is_file():
        if not (folder / ADAPTER_WEIGHTS).is_file():
            raise ValueError(f"{folder}: there is no {ADAPTER_WEIGHTS} beside {ADAPTER_CONFIG}; get it again")
        return [ADAPTER_WEIGHTS]
    if (folder / SAFETENSORS_SINGLE_FILE).is_file():
        return [SAFETENSORS_SINGLE_FILE]
    if not (folder / SAFETENSORS_INDEX_FILE).is_file():
        raise ValueError(
            f"{folder}: it has no weights, because there is no {SAFETENSORS_SINGLE_FILE} or {SAFETENSORS_INDEX_FILE}; "
            "pickled weights are not read; save them as safetensors"
        )
    files = read_json(folder / SAFETENSORS_INDEX_FILE).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()) or not files:
        raise ValueError(f"{folder / SAFETENSORS_INDEX_FILE}: it has no weight_map of tensors to files; get it again")
    names = sorted(set(files.values()))
    if missing := set(names) - {path.name for path in folder.glob("*.safetensors")}:
        raise ValueError(
            f"{folder / SAFETENSORS_INDEX_FILE}: it names {', '.join(sorted(missing))}, which is not there; get that "
            "again"
        )
    return names


# The Hub


def _download(repo_id: str, revision: str | None, subfolder: str, allow_base: bool) -> Path:
    """Download the files of the checkpoint in `subfolder`, and return the folder of the repository's copy."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id}: there is no such folder, and a name on the Hub is OWNER/NAME") from error
    try:
        info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
    except (HTTPError, OSError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 503
        if status < 500 and status != 429:
            raise ValueError(
                f"{repo_id}: there is no such folder, and on the Hub: {explain(error, repo_id, revision)}"
            ) from error
        return _find_in_cache(repo_id, revision, subfolder, error)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings}
    _check_subfolder(repo_id, sizes, subfolder)
    paths = {name: PurePosixPath(name) for name in sizes}
    wanted = [name for name, path in paths.items() if path.parent.as_posix() == subfolder and _is_loaded(path.name)]
    configs = [name for name in wanted if paths[name].name in ("config.json", ADAPTER_CONFIG)]
    missing = [name for name in wanted if not try_to_load_from_cache(repo_id, name, revision=info.sha)]
    _check_space(repo_id, sum(sizes[name] for name in missing))
    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=configs))
        if not allow_base:
            _check_kind(repo_id, folder / subfolder)
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=wanted))
    except (HTTPError, OSError) as error:
        raise ValueError(f"{repo_id}: the download failed: {explain(error, repo_id, revision)}") from error


def _find_in_cache(repo_id: str, revision: str | None, subfolder: str, error: Exception) -> Path:
    """The copy of a repository that was downloaded before. `error` is why the Hub cannot be asked."""
    prefix = "" if subfolder == "." else f"{subfolder}/"
    patterns = [f"{prefix}{name}" for name in (*LOADED_FILES, ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns, local_files_only=True))
    except LocalEntryNotFoundError:
        folders = sorted(Path(constants.HF_HUB_CACHE).glob("models--*"))
        cached = ", ".join(folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders[:10])
        version = f" in revision {revision}" if revision else ""
        raise ValueError(
            f"{repo_id}: there is no such folder. {explain(error)}. The local cache {constants.HF_HUB_CACHE} has no "
            f"complete copy of it{version}; it has {cached or 'no model'}"
        ) from error


def _check_space(repo_id: str, num_bytes: int) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.is_dir())).free
    if num_bytes > free:
        raise ValueError(
            f"{repo_id}: {num_bytes / 1e9:.1f} GB are to be downloaded, but the disk of {cache} has {free / 1e9:.1f} "
            "GB free; make room, or set HF_HOME to a folder on another disk"
        )


def explain_missing_data(name: str) -> str:
    """Why there are no records at `name`, where there is neither a file nor a folder, and what to do. If it can be the
    name of a data set on the Hub, the Hub is asked."""
    if Path(name).suffix in (".json", ".jsonl", ".parquet"):
        return f"{name}: there is no such file"
    reason = f"{name}: there is neither a file nor a folder of this name"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return reason
    try:
        HfApi().auth_check(name, repo_type="dataset")
    except (HTTPError, OSError, HFValidationError) as error:
        return f"{reason}, and on the Hub: {explain(error, name)}"
    command = f"hf download {name} --repo-type dataset --local-dir data/{name.partition('/')[2]}"
    return f"{reason}; the data set on the Hub is downloaded first: `{command}`"


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


def explain(error: Exception, repo_id: str | None = None, revision: str | None = None) -> str:
    """What an error of huggingface_hub means and what to do, in one line. `repo_id` and `revision` are those of what
    was asked for."""
    if isinstance(error, OfflineModeIsEnabled):
        return "the Hub is not asked, because HF_HUB_OFFLINE is set"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {constants.HF_HUB_CACHE} is full; make room, or set HF_HOME to a folder on another disk"
    if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{constants.HF_HUB_CACHE} cannot be written ({error}); set HF_HOME to a folder that can"
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
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision!r}; it has {_list_revisions(repo_id)}, and the commits on its page"
    status = error.response.status_code
    if status == 401:
        return "the token is not valid: log in (`hf auth login`) or set HF_TOKEN"
    if status == 403:
        return "the token may not write there: make one with write access to that account"
    return f"the answer is {status}: {error.server_message or error}"


def _list_revisions(repo_id: str) -> str:
    try:
        refs = HfApi().list_repo_refs(repo_id)
    except (HTTPError, OSError):
        return "those on its page"
    return ", ".join(ref.name for ref in (*refs.branches, *refs.tags))
