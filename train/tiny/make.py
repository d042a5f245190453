"""Makes the next tiny model from nothing in one command, stage by stage.

    python train/tiny/make.py                      # some 6 hours on 2 cores
    python train/tiny/make.py --scale 0.05         # the same with fewer clips and steps, to see that all of it works
    python train/tiny/make.py --until text_only    # stops after a stage

The stages:
- `clips` writes questions about layered scenes, to train and to validate on;
- `tower` pretrains the vision tower (pretrain_motion_tower.py);
- `init` makes the first checkpoint (init_motion_model.py);
- `text_only` and `dift` run train/sft.py with train/recipes/tiny/layered_text_only.yaml and layered_dift.yaml;
- `validate` runs `fourdthinker evaluate`.

A finished stage is skipped, and an interrupted one continues where it was. `--scale` multiplies the numbers of clips
and of steps. Each scale has its own folder, `runs/tiny_SCALE`; other photos need other RUNS.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from fourdthinker_hf.data.simulation.textures import folder_photos
from fourdthinker_hf.output_files import WORK, claim, files_hash, write_whole

STAGES = ("clips", "tower", "init", "text_only", "dift", "validate")
HERE = Path(__file__).resolve().parent
# Numbers at scale 1; those of the steps are also in the recipes.
CLIPS, PER_CLIP, VALIDATION_CLIPS = 20000, 5, 600
TOWER_STEPS, TEXT_STEPS, DIFT_STEPS = 40000, 16000, 6000
SEEDS = {"train": 1, "validation": 900_101, "validation_words": 900_102}


def run(*command: str | Path) -> None:
    typer.echo(f"[{time.strftime('%H:%M:%S')}] {' '.join(map(str, command))}")
    subprocess.run([str(part) for part in command], check=True)


def make_clips(data: Path, scale: float, photos: Path | None) -> None:
    """Writes records to train on, and records to validate on with the wordings of training and with held-out ones."""
    from fourdthinker_hf.data.simulation.layered_questions import write_questions

    for name, seed in SEEDS.items():
        number = CLIPS if name == "train" else VALIDATION_CLIPS
        words = name == "validation_words"
        write_questions(max(300, int(number * scale)), seed, data / name, PER_CLIP, words, photos)


def closed_questions(records: Path) -> Path:
    """Writes the records that have options, which `evaluate` needs, to a file of their own."""
    closed = records.with_name("closed.jsonl")
    lines = [line for line in records.read_text().splitlines() if json.loads(line).get("options")]
    return write_whole(closed, "\n".join(lines) + "\n")


def main(
    scale: float = 1.0,
    runs: Path = Path("runs"),
    photos: Annotated[Path | None, typer.Option(help="Folder of photos; by default those of packages")] = None,
    until: Annotated[str, typer.Option(help=f"Last stage: {', '.join(STAGES)}")] = STAGES[-1],
    workers: int = 1,
) -> None:
    """Run every stage up to UNTIL."""
    if until not in STAGES:
        raise typer.BadParameter(f"{until!r} is not a stage: {', '.join(STAGES)}")
    place = runs / f"tiny_{scale:g}"
    data, init = place / "data", place / "init"
    shown = ["--photos", photos] if photos else []
    train = data / "train" / "records.jsonl"

    def sft(stage: str, parent: Path, steps: int) -> None:
        run(
            sys.executable,
            "train/sft.py",
            "--config",
            f"train/recipes/tiny/layered_{stage}.yaml",
            "--model_name_or_path",
            parent,
            "--records",
            train,
            "--output_dir",
            place / stage,
            "--feature_cache",
            place / "features",
            "--max_steps",
            max(50, int(steps * scale)),
        )

    def validate() -> None:
        for name in SEEDS:
            if name != "train":
                questions = closed_questions(data / name / "records.jsonl")
                run(
                    sys.executable,
                    "-c",
                    "from fourdthinker_hf.cli import app; app()",
                    "evaluate",
                    "--model",
                    place / "dift",
                    "--benchmark",
                    questions,
                    "--out",
                    place / "evaluation" / name,
                )

    stages = {
        "clips": lambda: make_clips(data, scale, photos),
        "tower": lambda: run(
            sys.executable,
            HERE / "pretrain_motion_tower.py",
            place / "tower",
            "--steps",
            int(TOWER_STEPS * scale),
            "--workers",
            workers,
            *shown,
        ),
        "init": lambda: run(
            sys.executable, HERE / "init_motion_model.py", init, "--tower", place / "tower", "--records", train
        ),
        "text_only": lambda: sft("text_only", init, TEXT_STEPS),
        "dift": lambda: sft("dift", place / "text_only", DIFT_STEPS),
        "validate": validate,
    }
    work = {
        "command": "make.py",
        "scale": scale,
        "photos_sha256": files_hash(folder_photos(photos)) if photos else None,
    }
    with claim(place / WORK, work):
        for name in STAGES[: STAGES.index(until) + 1]:
            done = place / f"{name}.done"
            if done.exists():
                continue
            begin = time.time()
            stages[name]()
            write_whole(done, f"{time.time() - begin:.0f} s\n")


if __name__ == "__main__":
    typer.run(main)
