"""Publishes a checkpoint, a data set or the demo on the Hub.

A plan lists the files to upload. It is an allow-list: other files are not uploaded, and the plan says why. Before
anything is sent, the files are laid out in a folder of their own as they will be on the Hub, and must load there in a
process that cannot import this package. What was tried is what is sent.

After an interruption the same command continues. With `hf_xet`, which huggingface_hub installs, chunks that have
arrived are not sent again; without it (HF_HUB_DISABLE_XET=1) whole files are not. Nothing is visible on the Hub before
the commit, and up to 250 files are one commit.
"""

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import SpaceCardData
from huggingface_hub.utils import validate_repo_id
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..checkpoints import ADAPTER_CONFIG, IMAGERY_DECODER, LOADED_FILES, read_json, read_tensor_shapes, upload_folder
from ..data.records import read_records
from .card import check_card, make_card, read_card
from .dataset_card import check_dataset_card, dataset_card

logger = logging.getLogger(__name__)

OWN_NAME = "OWNER/NAME"  # stands in a card for the name of its own repository
CARD_FILES = ("README.md", "LICENSE*", "NOTICE*", "evaluation/*.json", ".eval_results/*.yaml")
SPACE_FILES = (
    "app.py",
    "fourdthinker_command.py",  # which app.py imports
    "LICENSE",
    "model_card.md",
    "examples/*",
    "checkpoints/4dthinker-tiny/**/*",
    "fourdthinker_hf/**/*.py",
    "fourdthinker_hf/**/*.css",
    "fourdthinker_hf/**/*.js",
)
# The newest versions that ZeroGPU supports: huggingface.co/docs/hub/spaces-zerogpu, as of September 2026.
SPACE_PYTHON, SPACE_TORCH = "3.12.12", "torch==2.13.0"
SPACE_PACKAGES = ("torchvision", "transformers", "safetensors", "av", "numpy", "pillow")
SPACE_TITLE, SPACE_TEXT = "4DThinker", "Ask about a video and see what the model pictured"
EXCLUSION_REASONS = (  # why a file is not uploaded: the first reason with a pattern that it matches
    ("a trainer's checkpoint", ("checkpoint-*", "global_step*")),
    (
        "the trainer's state",
        (
            "optimizer*",
            "scheduler*",
            "scaler*",
            "rng_state*",
            "trainer_state.json",
            "training_args.bin",
            "latest",
            "zero_to_fp32.py",
            "trainer_config*",
            "train_results.json",
            "all_results.json",
            "eval_results.json",
        ),
    ),
    ("logs", ("runs", "logs", "events.out.tfevents*", "wandb", "*.log", "completions")),
    ("a pickle, which can run code when it is loaded", ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")),
    ("code that config.json does not name", ("*.py",)),
    ("weights that the index does not name", ("*.safetensors", "*.safetensors.index.json")),
)
SECRET_PATTERNS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})",
    "an OpenAI or Anthropic key": r"\bsk-[A-Za-z0-9_-]{32,}",
    "a Google key": r"\bAIza[A-Za-z0-9_-]{35}\b",
    "a Slack token": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
}
BINARY_ENDINGS = (".safetensors", ".mp4", ".png", ".jpg")
MAX_FILES_IN_FOLDER = 10_000  # huggingface.co/docs/hub/storage-limits
# Programs that must run in the folder of the uploaded files: one loads a checkpoint, the other builds the demo.
MODEL_CHECK = """
import sys
sys.modules["fourdthinker_hf"] = None  # importing it fails, as where it is not installed
import numpy as np
from transformers import AutoModel, AutoProcessor

model, info = AutoModel.from_pretrained(".", trust_remote_code=True, dtype="auto", output_loading_info=True)
if any(info.values()):
    sys.exit(f"weights and config differ: { {key: sorted(map(str, rows))[:2] for key, rows in info.items() if rows} }")
processor = AutoProcessor.from_pretrained(".", trust_remote_code=True)
inputs = processor.apply_chat_template(
    processor.conversation(np.full((4, 112, 112, 3), 128, np.uint8), "What moves?"), tokenize=True, return_dict=True,
    return_tensors="pt", add_generation_prompt=True, processor_kwargs={"video_timestamps": [np.arange(4) / 2]},
)
model.generate(**inputs, max_new_tokens=2)
"""
SPACE_CHECK = """
import os, sys
sys.path.insert(0, os.getcwd())
import app, fourdthinker_hf
if not fourdthinker_hf.__file__.startswith(os.getcwd()):
    sys.exit("fourdthinker_hf is not among the files")
"""


@dataclass
class Plan:
    """What is to be uploaded.

    Args:
        repo_type: "model", "dataset" or "space".
        files: a path in the repository -> the file, or its text.
        excluded: a file that is not uploaded -> the reason.
        check: a program that must run in the folder of the files.
    """

    repo_type: str
    files: dict[str, Path | str]
    excluded: dict[str, str]
    check: str | None = None

    def describe(self, repo_id: str) -> str:
        sizes = {
            name: len(source.encode()) if isinstance(source, str) else source.stat().st_size
            for name, source in self.files.items()
        }
        shown = list(sizes.items()) if len(sizes) <= 40 else list(sizes.items())[:12]
        lines = [f"{repo_id} ({self.repo_type}): {len(sizes)} files, {_format_size(sum(sizes.values()))}"]
        lines += [f"  {name}  {_format_size(size)}" for name, size in shown]
        lines += [f"  ... and {len(sizes) - len(shown)} more"] * (len(shown) < len(sizes))
        lines += [f"not uploaded: {name}, {reason}" for name, reason in self.excluded.items()]
        return "\n".join(lines)


def publish(
    folder: str | os.PathLike, repo_id: str, repo_type: str = "model", private: bool = False, token: str | None = None
) -> str:
    """Check FOLDER with [`make_plan`], log the plan, upload it with [`upload`], and return the address."""
    check_repo_id(repo_id)
    plan = make_plan(folder, repo_type)
    logger.info("%s", plan.describe(repo_id))
    return upload(plan, repo_id, private, token)


def publish_run(
    folder: str | os.PathLike,
    repo_id: str,
    parent: dict,
    training: str,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Write the card of a model that a launcher trained, and [`publish`] it: the end of `--push_to_hub`.

    `parent` is what [`card.lineage`] says of the model from which the training started; ask for it before training.
    `training` says in Markdown how the model was trained.
    """
    make_card(folder, **parent, training=training)
    return publish(folder, repo_id, private=private, token=token)


def check_repo_id(repo_id: str) -> None:
    """Raise a `ValueError` unless it is OWNER/NAME."""
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r}: must be OWNER/NAME")
    validate_repo_id(repo_id)


def make_plan(folder: str | os.PathLike, repo_type: str = "model", trust_remote_code: bool = False) -> Plan:
    """The plan for FOLDER, after every check that needs no network. A `ValueError` names all problems.

    Args:
        folder: for repo_type "model" a 4DThinker checkpoint, for "dataset" a folder that `simulate` wrote, for "space"
            a checkout of this project.
        trust_remote_code: whether code beside a checkpoint may run although it is not this project's.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    plan, problems = {"model": _plan_model, "dataset": _plan_dataset, "space": _plan_space}[repo_type](folder)
    problems += [
        f"{name}: this is a link to {path.resolve()}, outside the folder; put the file itself there if it may be sent"
        for name, path in plan.files.items()
        if isinstance(path, Path) and not path.resolve().is_relative_to(folder.resolve())
    ]
    problems += [
        f"{name}, line {line}: this looks like {kind}; remove it, and revoke it if it is one"
        for name, line, kind in _find_secrets(plan.files)
    ]
    if repo_type == "model" and not trust_remote_code:
        problems += [
            f"{name}: this is not this project's file, and checking the checkpoint would run it; copy it from "
            "fourdthinker_hf/, or give --trust-remote-code"
            for name in plan.files
            if name.endswith(".py") and not _is_own_code(folder / name)
        ]
    if problems:
        raise ValueError(f"{folder} cannot be published: " + "; ".join(problems))
    if plan.check is not None:
        with staged(plan) as staging_folder:
            _run_without_package(folder, staging_folder, plan.check)
    return plan


@contextmanager
def staged(plan: Plan) -> Iterator[Path]:
    """A temporary folder with the files of a plan as they will be on the Hub. Large files are links."""
    with TemporaryDirectory(prefix="fourdthinker-publish-") as scratch:
        folder = Path(scratch) / "repository"
        folder.mkdir()
        for name, source in plan.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, str):
                path.write_text(source, encoding="utf-8")
            elif name.endswith(BINARY_ENDINGS):
                path.symlink_to(source.resolve())
            else:
                shutil.copyfile(source, path)
        yield folder


def upload(plan: Plan, repo_id: str, private: bool = False, token: str | None = None) -> str:
    """Upload the files of a plan with [`checkpoints.upload_folder`], and return the address.

    The repository's name is written into its card. Weights in the repository that the plan does not have are deleted,
    because transformers would load an old `model.safetensors` instead of new shards.
    """
    check_repo_id(repo_id)
    texts = {name: text.replace(OWN_NAME, repo_id) for name, text in plan.files.items() if isinstance(text, str)}
    weights = ["*.safetensors", "*.safetensors.index.json"] if plan.repo_type == "model" else None
    with staged(replace(plan, files=plan.files | texts)) as folder:
        return upload_folder(folder, repo_id, plan.repo_type, private, token, delete_patterns=weights)


# Plans


def _plan_model(folder: Path) -> tuple[Plan, list[str]]:
    if (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{folder}: this is an adapter; publish what `fourdthinker merge {folder} DEST` writes")
    config = folder / "config.json"
    if not config.is_file() or read_json(config).get("model_type") != "fourdthinker":
        raise ValueError(
            f"{folder}: this is no 4DThinker checkpoint; `fourdthinker convert` makes one of a Qwen2.5-VL checkpoint"
        )
    weights = list(read_tensor_shapes(folder))
    weights += [SAFE_WEIGHTS_INDEX_NAME] * (weights != [SAFE_WEIGHTS_NAME])
    main_weights = [name for name in LOADED_FILES if name.startswith("model")]
    others = [name for name in LOADED_FILES if name not in main_weights]
    files = {name: folder / name for name in [*weights, *_remote_code(folder)]}
    files |= _find_files(folder, (*others, *CARD_FILES))
    return Plan("model", _with_card_text(folder, files), _excluded(folder, files), MODEL_CHECK), check_card(folder)


def _plan_dataset(folder: Path) -> tuple[Plan, list[str]]:
    if not (folder / "records.jsonl").is_file():
        raise ValueError(f"{folder}: there is no records.jsonl; `fourdthinker simulate` writes one")
    records = read_records(folder / "records.jsonl")
    files = {"records.jsonl": folder / "records.jsonl"}
    for path in (Path(path) for record in records for path in (record.video, *record.imagery)):
        if not path.is_relative_to(folder.absolute()):
            raise ValueError(f"{folder / 'records.jsonl'}: it names {path}, which is not in the folder")
        files[path.relative_to(folder.absolute()).as_posix()] = path
    problems = check_dataset_card(folder, records)
    for name in ("videos", "images"):
        if (num := sum(path.startswith(f"{name}/") for path in files)) > MAX_FILES_IN_FOLDER:
            problems.append(
                f"{name}/ has {num} files, but the Hub allows {MAX_FILES_IN_FOLDER} in a folder; publish "
                "smaller splits"
            )
    excluded = _excluded(folder, files)
    if (folder / "README.md").is_file():
        files = _with_card_text(folder, {"README.md": folder / "README.md"} | files)
        excluded.pop("README.md")
    else:
        files = {"README.md": dataset_card(folder, records)} | files
    return Plan("dataset", files, excluded), problems


def _plan_space(folder: Path) -> tuple[Plan, list[str]]:
    if not (folder / "app.py").is_file():
        raise ValueError(f"{folder}: there is no app.py; a Space is made of a checkout of this project")
    card = SpaceCardData(
        title=SPACE_TITLE,
        sdk="gradio",
        sdk_version=version("gradio"),
        app_file="app.py",
        license="apache-2.0",
        emoji="🎬",
        colorFrom="indigo",
        colorTo="blue",
        short_description=SPACE_TEXT,
        suggested_hardware="zero-a10g",
        python_version=SPACE_PYTHON,
        tags=["video-text-to-text", "latent-reasoning"],
    )
    text = (
        f"---\n{card.to_yaml()}\n---\n\n# {SPACE_TITLE}\n\n{SPACE_TEXT}. A CPU is enough for the bundled checkpoint, "
        "which is small; for another one, set the variable FOURDTHINKER_MODEL and choose ZeroGPU in the settings.\n"
    )
    lines = (folder / "requirements.txt").read_text().splitlines()
    requirements = [line for line in lines if re.split(r"[^\w-]", line)[0] in SPACE_PACKAGES]  # a Space has gradio
    files = _find_files(folder, SPACE_FILES)
    texts = {"README.md": text, "requirements.txt": "\n".join([SPACE_TORCH, *requirements]) + "\n"}
    excluded = {name: reason for name, reason in _excluded(folder, files).items() if name not in texts}
    return Plan("space", texts | files, excluded, SPACE_CHECK), []


def _remote_code(folder: Path) -> list[str]:
    """The Python files that the `auto_map` of a config names, and those that they import."""
    names = ("config.json", "processor_config.json", f"{IMAGERY_DECODER}/config.json")
    configs = [folder / name for name in names if (folder / name).is_file()]
    classes = [name for path in configs for name in read_json(path).get("auto_map", {}).values()]
    files = {folder / f"{name.split('.')[0]}.py" for name in classes}
    if missing := sorted(path.name for path in files if not path.is_file()):
        raise ValueError(
            f"{folder}: a config names {', '.join(missing)}, which is not there; copy it from fourdthinker_hf/"
        )
    return sorted({Path(file).name for path in files for file in (path, *get_relative_import_files(path))})


def _is_own_code(path: Path) -> bool:
    own = Path(__file__).resolve().parents[1] / path.name
    return own.is_file() and own.read_bytes() == path.read_bytes()


def _find_files(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    paths = [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _with_card_text(folder: Path, files: dict[str, Path]) -> dict[str, Path | str]:
    """`files` with the card as text, so that [`upload`] can write the repository's name into it."""
    if "README.md" not in files:
        return files
    return files | {"README.md": read_card(folder).content}


def _excluded(folder: Path, files: dict) -> dict[str, str]:
    """The files of the folder that are not in `files`, each with the reason. A folder of which nothing is uploaded is
    one entry. Hidden files are not listed."""
    used_folders = {name.split("/")[0] for name in files if "/" in name}
    excluded = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") and path.name not in used_folders:
            continue
        if path.name in used_folders:
            inside = [item for item in sorted(path.rglob("*")) if item.is_file() and item.suffix != ".pyc"]
            names = [item.relative_to(folder).as_posix() for item in inside]
            excluded |= {name: _exclusion_reason(name.split("/")[-1]) for name in names if name not in files}
        elif path.name not in files:
            num = sum(item.is_file() for item in path.rglob("*"))
            entry = f"{path.name}/ ({num} files)" if path.is_dir() else path.name
            excluded[entry] = _exclusion_reason(path.name)
    return excluded


def _exclusion_reason(name: str) -> str:
    for reason, patterns in EXCLUSION_REASONS:
        if any(fnmatch(name, pattern) for pattern in patterns):
            return reason
    return "not needed to use it"


# Checks


def _find_secrets(files: dict[str, Path | str]) -> Iterator[tuple[str, int, str]]:
    """`(file, line, kind)` of what looks like a token or a key in any file: the first of each kind. Of weights only
    the header is text; that the rest are tensors was checked when their shapes were read."""
    for name, source in files.items():
        content = source.encode() if isinstance(source, str) else _readable_part(source)
        for kind, pattern in SECRET_PATTERNS.items():
            if match := re.search(pattern.encode(), content):
                yield name, content[: match.start()].count(b"\n") + 1, kind


def _readable_part(path: Path) -> bytes:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little") if path.suffix == ".safetensors" else None
        file.seek(0)
        return file.read(size if size is None else 8 + size)


def _run_without_package(folder: Path, staging_folder: Path, program: str) -> None:
    """Run `program` in `staging_folder`, offline, with a cache of remote code of its own and without this checkout."""
    modules = staging_folder.parent / "modules"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=staging_folder,
        capture_output=True,
        text=True,
        env=env | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(modules), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ValueError(f"{folder} cannot be published: it fails where fourdthinker_hf is not installed: {last}")


def _format_size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB"
