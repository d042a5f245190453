"""Makes the next tiny model from nothing in one command, stage by stage.

    python train/tiny/make.py                      # some 6 hours on 2 cores
    python train/tiny/make.py --scale 0.05         # the same with fewer clips and steps, to see that all of it works
    python train/tiny/make.py --until text_only    # stops after a stage

The stages:
- `clips` writes questions about layered scenes, to train and to validate on;
- `init` makes the first checkpoint, with a random vision tower (init_motion_model.py);
- `words` teaches it to read questions and options and to write, without the clips (layered_words.yaml);
- `tower` pretrains the vision tower (pretrain_motion_tower.py), and `start` puts it into the checkpoint;
- `text_only` and `dift` teach it to see and to picture (layered_text_only.yaml, layered_dift.yaml);
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

import numpy as np
import typer
from PIL import Image

from fourdthinker_hf.data.records import LETTERS
from fourdthinker_hf.data.simulation.textures import folder_photos
from fourdthinker_hf.data.simulation.wordings import odd_words, with_odd_words
from fourdthinker_hf.output_files import WORK, claim, files_hash, write_whole
from fourdthinker_hf.processing_fourdthinker import OUTPUT_IMAGE

STAGES = ("clips", "init", "words", "tower", "start", "text_only", "dift", "validate")
HERE = Path(__file__).resolve().parent
# Numbers at scale 1; those of the steps are also in the recipes.
CLIPS, PER_CLIP, VALIDATION_CLIPS = 20000, 5, 600
STEPS = {"words": 4000, "tower": 40000, "text_only": 16000, "dift": 6000}
WAYS = "left right up down forward back in out closer farther larger smaller faster slower still yes no".split()
ODD_COPIES = 2  # of each question for the stage `words`, with odd words in them
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


def reading_question(rng: np.random.Generator) -> tuple[str, list[str], str, str]:
    """A question about the options themselves, with its options, reasoning and answer: which one is B, or which one
    has a certain word. It teaches a model to find an option and to write it as it stands there."""
    words = [*rng.permutation(WAYS).tolist(), *rng.choice(odd_words(), 30, replace=False).tolist()]
    before = [words.pop() for _ in range(rng.integers(3))]
    after = [words.pop() for _ in range(rng.integers(3))]
    pool = words if rng.random() < 0.5 else words[len(WAYS) :]
    told = [str(word) for word in rng.choice(pool[: 2 * len(WAYS)], rng.integers(2, 7), replace=False)]
    options = [" ".join([*before, word, *after]) for word in told]
    if rng.random() < 0.3:
        options = [option.capitalize() for option in options]
    k = int(rng.integers(len(options)))
    if rng.random() < 0.4:
        letter = LETTERS[k]
        return f"Which option is {letter}?", options, f"{letter} says: {options[k]}.", options[k]
    return f"Which option has the word {told[k]}?", options, f"It is the one with {told[k]}.", options[k]


def write_varied(records: Path) -> tuple[Path, Path]:
    """Writes to two files what is trained on: each record and a copy with odd words; and the same and another copy
    about a grey picture and without mental images, for the stage `words`. Both ask about the options too."""
    rng = np.random.default_rng(0)
    grey = records.with_name("grey.png").absolute()
    Image.new("RGB", (112, 112), (128, 128, 128)).save(grey)
    grey_clip, seen, unseen = {"frames": [str(grey)] * 2}, [], []
    for line in records.read_text().splitlines():
        record = json.loads(line)
        copies = [record]
        for number in range(ODD_COPIES):
            question, options = with_odd_words(rng, record["question"], record.get("options"))
            copy = record | {"id": f"{record['id']}-odd{number}", "question": question}
            if options is not None:
                answer = options[record["options"].index(record["answer"])]
                copy |= {"options": options, "answer": answer}
            copies.append(copy)
        seen += copies[:2]
        for copy in copies:
            reasoning = copy["reasoning"].replace(f" {OUTPUT_IMAGE}", "")
            unseen.append(copy | grey_clip | {"video": None, "imagery": [], "source": None, "reasoning": reasoning})
    for number in range(len(seen) // 3):
        question, options, reasoning, answer = reading_question(rng)
        row = {"id": f"reading-{number}", "task": "reading", "question": question, "options": options}
        row |= {"reasoning": reasoning, "answer": answer, **grey_clip}
        seen.append(row)
        unseen.append(row)
    paths = records.with_name("varied.jsonl"), records.with_name("words.jsonl")
    for path, rows in zip(paths, (seen, unseen), strict=True):
        write_whole(path, "".join(f"{json.dumps(row)}\n" for row in rows))
    return paths


def put_tower(model: Path, tower: Path, out: Path) -> None:
    """Writes the checkpoint `model` with the weights of the pretrained `tower` to `out`."""
    from safetensors.torch import load_file

    from fourdthinker_hf import FourDThinkerForConditionalGeneration, FourDThinkerProcessor

    whole = FourDThinkerForConditionalGeneration.from_pretrained(model)
    whole.model.visual.load_state_dict(load_file(tower / "tower.safetensors"))
    whole.save_pretrained(out)
    FourDThinkerProcessor.from_pretrained(model).save_pretrained(out)


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
    varied, words = (train.with_name(f"{name}.jsonl") for name in ("varied", "words"))

    def sft(stage: str, parent: Path, records: Path) -> None:
        run(
            sys.executable,
            "train/sft.py",
            "--config",
            f"train/recipes/tiny/layered_{stage}.yaml",
            "--model_name_or_path",
            parent,
            "--records",
            records,
            "--output_dir",
            place / stage,
            "--feature_cache",
            place / "features",
            "--max_steps",
            max(50, int(STEPS[stage] * scale)),
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

    def make_all_clips() -> None:
        make_clips(data, scale, photos)
        write_varied(train)

    stages = {
        "clips": make_all_clips,
        "init": lambda: run(sys.executable, HERE / "init_motion_model.py", init, "--records", varied),
        "words": lambda: sft("words", init, words),
        "tower": lambda: run(
            sys.executable,
            HERE / "pretrain_motion_tower.py",
            place / "tower",
            "--steps",
            int(STEPS["tower"] * scale),
            "--workers",
            workers,
            *shown,
        ),
        "start": lambda: put_tower(place / "words", place / "tower", place / "start"),
        "text_only": lambda: sft("text_only", place / "start", varied),
        "dift": lambda: sft("dift", place / "text_only", varied),
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
