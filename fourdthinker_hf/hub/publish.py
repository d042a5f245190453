"""Publishing on the Hub: a checkpoint, a DSR-Sim split, or the demo as a Space.

What is uploaded is an allow-list; the rest stays behind, and the plan says why. Before anything is sent, the
files of the plan are laid out in a folder of their own, as they will lie on the Hub: there they have to load in a
process that cannot import this package. So what was tried is what is sent.

An upload that was cut short goes on when the same command is given again. With `hf_xet` (which huggingface_hub brings
along) chunks that have arrived are not sent twice; without it (HF_HUB_DISABLE_XET=1), whole files are not. Nothing
shows on the Hub before a commit, and up to 250 files are one commit.
"""

import json
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

from huggingface_hub import HfApi, SpaceCardData, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import validate_repo_id
from transformers.dynamic_module_utils import get_relative_import_files

from ..data.records import read_records
from .card import check_card, make_card, read_card
from .dataset_card import check_split_card, split_card
from .files import INDEX, LOADED, SINGLE, read_shards, why_refused

logger = logging.getLogger(__name__)

HERE = "OWNER/NAME"  # in a card, where it is to name its own repository
ROOT = Path(__file__).resolve().parents[2]
SHOWN = ("README.md", "LICENSE*", "NOTICE*", "evaluation/*.json", ".eval_results/*.yaml")
SPACE_FILES = (
    "app.py",
    "LICENSE",
    "model_card.md",
    "examples/*",
    "checkpoints/4dthinker-tiny/*",
    "fourdthinker_hf/**/*.py",
    "fourdthinker_hf/**/*.css",
    "fourdthinker_hf/**/*.js",
)
# The newest that ZeroGPU takes: huggingface.co/docs/hub/spaces-zerogpu, as of September 2026.
SPACE_PYTHON, SPACE_TORCH = "3.12.12", "torch==2.13.0"
SPACE_NEEDS = ("torchvision", "transformers", "safetensors", "decord2", "numpy", "pillow")
SPACE_TITLE, SPACE_TEXT = "4DThinker", "Ask about a moving scene; see what the model pictured"
REASONS = (  # why an entry stays behind, by the first pattern that it matches
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
SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})",
    "an OpenAI or Anthropic key": r"\bsk-[A-Za-z0-9_-]{32,}",
    "a Google key": r"\bAIza[A-Za-z0-9_-]{35}\b",
    "a Slack token": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
}
BINARY = (".safetensors", ".mp4", ".png", ".jpg")
FOLDER_LIMIT = 10_000  # entries: huggingface.co/docs/hub/storage-limits
LOADS = """
import sys
sys.modules["fourdthinker_hf"] = None  # as where it is not installed
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
BUILDS = """
import os, sys
sys.path.insert(0, os.getcwd())
import app, fourdthinker_hf
if not fourdthinker_hf.__file__.startswith(os.getcwd()):
    sys.exit("fourdthinker_hf is not among the files")
"""


@dataclass
class Plan:
    """What is to be uploaded: `files` maps a path in the repository to a file, or to text; `left` maps what stays
    behind to the reason. `kind` is "model", "dataset" or "space"; `program` has to run where the files lie."""

    kind: str
    files: dict[str, Path | str]
    left: dict[str, str]
    program: str | None = None

    def describe(self, repo_id: str) -> str:
        sizes = {
            name: len(source.encode()) if isinstance(source, str) else source.stat().st_size
            for name, source in self.files.items()
        }
        shown = list(sizes.items()) if len(sizes) <= 40 else list(sizes.items())[:12]
        lines = [f"{repo_id} ({self.kind}): {len(sizes)} files, {_size(sum(sizes.values()))}"]
        lines += [f"  {name}  {_size(size)}" for name, size in shown]
        lines += [f"  ... and {len(sizes) - len(shown)} more"] * (len(shown) < len(sizes))
        lines += [f"stays behind: {name}, {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


def publish(
    folder: str | os.PathLike, repo_id: str, kind: str = "model", private: bool = False, token: str | None = None
) -> str:
    """Check FOLDER as [`make_plan`] does, upload it as [`upload`] does, and return its address. The plan is logged."""
    check_repo_id(repo_id)
    plan = make_plan(folder, kind)
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
    """What `--push_to_hub` of a launcher ends in: a card for what was trained, then [`publish`].

    `parent` is [`card.lineage`] of the model that training started from, best asked for before training; `training`
    says what was learnt from what, Markdown.
    """
    make_card(folder, **parent, training=training)
    return publish(folder, repo_id, private=private, token=token)


def check_repo_id(repo_id: str) -> None:
    """Raise a `ValueError` unless it is OWNER/NAME."""
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r}: must be OWNER/NAME")
    validate_repo_id(repo_id)


def make_plan(folder: str | os.PathLike, kind: str = "model") -> Plan:
    """The plan for FOLDER, after every check that can be made here; a `ValueError` says all that is in the way.

    Args:
        folder: of kind "model" a 4DThinker checkpoint, "dataset" what `simulate` wrote, "space" a checkout.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    plan, found = {"model": _plan_model, "dataset": _plan_dataset, "space": _plan_space}[kind](folder)
    found += [
        f"{name}, line {line}: looks like {what}; take it out, and revoke it if it is one"
        for name, line, what in _secrets(plan.files)
    ]
    if found:
        raise ValueError(f"{folder} cannot be published: " + "; ".join(found))
    if plan.program is not None:
        with staged(plan) as stage:
            _run_bare(folder, stage, plan.program)
    return plan


@contextmanager
def staged(plan: Plan) -> Iterator[Path]:
    """A folder with the files of a plan as they will lie on the Hub: copies of texts, links to all else."""
    with TemporaryDirectory(prefix="fourdthinker-publish-") as scratch:
        stage = Path(scratch) / "repository"
        stage.mkdir()
        for name, source in plan.files.items():
            path = stage / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, str):
                path.write_text(source, encoding="utf-8")
            elif name.endswith(BINARY):
                path.symlink_to(source.resolve())
            else:
                shutil.copyfile(source, path)
        yield stage


def upload(plan: Plan, repo_id: str, private: bool = False, token: str | None = None) -> str:
    """Send the files of a plan to the repository, made if it is not there; returns its address.

    Old weights that the plan does not have are deleted: transformers would prefer a lone `model.safetensors` to new
    shards. `private` refuses a repository that is public already. A `ValueError` says what the Hub's answer means.
    """
    if (token := token or get_token()) is None:
        raise ValueError("no token: log in (`hf auth login`) or set HF_TOKEN, with write access")
    check_repo_id(repo_id)
    api = HfApi(token=token)
    texts = {name: text.replace(HERE, repo_id) for name, text in plan.files.items() if isinstance(text, str)}
    sdk = {"space_sdk": "gradio"} if plan.kind == "space" else {}
    try:
        url = api.create_repo(repo_id, repo_type=plan.kind, private=private or None, exist_ok=True, **sdk)
        if private and not api.repo_info(repo_id, repo_type=plan.kind).private:
            raise ValueError(f"{repo_id} is there already and public: make it private on its page, or drop --private")
        with staged(replace(plan, files=plan.files | texts)) as stage:
            api.upload_folder(
                repo_id=repo_id,
                repo_type=plan.kind,
                folder_path=stage,
                commit_message="Publish with fourdthinker",
                delete_patterns=["*.safetensors", "*.safetensors.index.json"] if plan.kind == "model" else None,
            )
    except (HTTPError, RuntimeError) as error:  # RuntimeError: a file's upload failed, its cause says how
        cause = error.__cause__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, HfHubHTTPError):
            raise ValueError(f"{repo_id}: {why_refused(cause)}") from error
        if not isinstance(cause, HTTPError):
            raise
        raise ValueError(
            f"{repo_id}: {api.endpoint} cannot be reached or broke off ({cause}); the same command goes on from there"
        ) from error
    return str(url)


# Plans


def _plan_model(folder: Path) -> tuple[Plan, list[str]]:
    config = folder / "config.json"
    if not config.is_file() or json.loads(config.read_text()).get("model_type") != "fourdthinker":
        raise ValueError(f"{folder}: no 4DThinker checkpoint; `fourdthinker convert` makes one of a Qwen2.5-VL")
    weights = list(read_shards(folder))
    weights += [INDEX] * (weights != [SINGLE])
    beside = [name for name in LOADED if name != INDEX and not name.endswith(".safetensors")]
    files = {name: folder / name for name in [*weights, *_remote_code(folder)]} | _matching(folder, (*beside, *SHOWN))
    return Plan("model", _with_card(folder, files), _left(folder, files), LOADS), check_card(folder)


def _plan_dataset(folder: Path) -> tuple[Plan, list[str]]:
    if not (folder / "records.jsonl").is_file():
        raise ValueError(f"{folder}: no records.jsonl; `fourdthinker simulate` writes one")
    records = read_records(folder / "records.jsonl")
    used = [path for record in records for path in (record.video, *record.imagery)]
    files = {"records.jsonl": folder / "records.jsonl"}
    for path in map(Path, used):
        if not path.is_relative_to(folder.absolute()):
            raise ValueError(f"{folder / 'records.jsonl'}: names {path}, which is not in the folder")
        files[path.relative_to(folder.absolute()).as_posix()] = path
    found = check_split_card(folder, records)
    for name in ("videos", "images"):
        if (num := sum(path.startswith(f"{name}/") for path in files)) > FOLDER_LIMIT:
            found.append(f"{name}/ has {num} files, the Hub takes {FOLDER_LIMIT} in a folder; publish smaller splits")
    left = _left(folder, files)
    if (folder / "README.md").is_file():
        files = _with_card(folder, {"README.md": folder / "README.md"} | files)
        left.pop("README.md")
    else:
        files = {"README.md": split_card(folder, records)} | files
    return Plan("dataset", files, left), found


def _plan_space(folder: Path) -> tuple[Plan, list[str]]:
    if not (folder / "app.py").is_file():
        raise ValueError(f"{folder}: no app.py; a Space is made of a checkout of this project")
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
        f"---\n{card.to_yaml()}\n---\n\n# {SPACE_TITLE}\n\n{SPACE_TEXT}. Choose ZeroGPU in the settings, or leave the "
        "CPU: the bundled checkpoint is small. The variable FOURDTHINKER_MODEL names another one.\n"
    )
    lines = (folder / "requirements.txt").read_text().splitlines()
    needs = [line for line in lines if re.split(r"[^\w-]", line)[0] in SPACE_NEEDS]  # the Space brings gradio itself
    files = _matching(folder, SPACE_FILES)
    made = {"README.md": text, "requirements.txt": "\n".join([SPACE_TORCH, *needs]) + "\n"}
    left = {name: reason for name, reason in _left(folder, files).items() if name not in made}
    return Plan("space", made | files, left, BUILDS), []


def _remote_code(folder: Path) -> list[str]:
    """Python files that the `auto_map`s name, and what those import from beside them."""
    configs = [folder / name for name in ("config.json", "processor_config.json") if (folder / name).is_file()]
    named = [name for path in configs for name in json.loads(path.read_text()).get("auto_map", {}).values()]
    files = {folder / f"{name.split('.')[0]}.py" for name in named}
    if missing := sorted(path.name for path in files if not path.is_file()):
        raise ValueError(f"{folder}: {', '.join(missing)} named by a config, not there; copy from fourdthinker_hf/")
    return sorted({Path(file).name for path in files for file in (path, *get_relative_import_files(path))})


def _matching(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path for path in found}


def _with_card(folder: Path, files: dict[str, Path]) -> dict[str, Path | str]:
    """The card as text, so that `upload` can write the repository's name into it."""
    if "README.md" not in files:
        return files
    return files | {"README.md": read_card(folder).content}


def _left(folder: Path, files: dict) -> dict[str, str]:
    """What of the folder is not in `files`, and why: a whole entry of it, or a file beside those that go."""
    going = {name.split("/")[0] for name in files if "/" in name}
    left = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") and path.name not in going:  # of an editor, of git
            continue
        if path.name in going:
            inside = [item for item in sorted(path.rglob("*")) if item.is_file() and item.suffix != ".pyc"]
            names = [item.relative_to(folder).as_posix() for item in inside]
            left |= {name: _reason(name.split("/")[-1]) for name in names if name not in files}
        elif path.name not in files:
            num = sum(item.is_file() for item in path.rglob("*"))
            counted = f"{path.name}/ ({num} files)" if path.is_dir() else path.name
            left[counted] = _reason(path.name)
    return left


def _reason(name: str) -> str:
    for reason, patterns in REASONS:
        if any(fnmatch(name, pattern) for pattern in patterns):
            return reason
    return "not needed to use it"


# Checks


def _secrets(files: dict[str, Path | str]) -> Iterator[tuple[str, int, str]]:
    """`(path, line, what it looks like)` of everything in text files that looks like a token."""
    for name, source in files.items():
        if name.endswith(BINARY):
            continue
        text = source if isinstance(source, str) else source.read_text(encoding="utf-8", errors="replace")
        for what, pattern in SECRETS.items():
            if match := re.search(pattern, text):
                yield name, text[: match.start()].count("\n") + 1, what


def _run_bare(folder: Path, stage: Path, program: str) -> None:
    """Run `program` in `stage`, offline, with its own cache of remote code and without this checkout."""
    modules = stage.parent / "modules"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=stage,
        capture_output=True,
        text=True,
        env=env | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(modules), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ValueError(f"{folder} cannot be published: it fails where fourdthinker_hf is not installed: {last}")


def _size(num: int) -> str:
    for unit in ("B", "kB", "MB"):
        if num < 1000:
            return f"{num:.3g} {unit}"
        num /= 1000
    return f"{num:.3g} GB"
