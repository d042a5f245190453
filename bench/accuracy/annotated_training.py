"""What it costs to learn from raw pixels: DIFT on what `annotate` makes of simulated clips, beside DIFT on what its
last stages make of the same clips when they are told the truth.

    python bench/accuracy/annotated_training.py data/labels --clips 1600 --seed 61
    fourdthinker annotate data/labels/clips --out data/labels/pixels
    python bench/accuracy/annotated_training.py data/labels-heldout --clips 600 --seed 910061
    for made in labels/pixels labels/truth labels-heldout/truth; do
        grep -v spatial_description data/$made/records.jsonl > data/$made/short.jsonl
    done
    for labels in pixels truth; do
        accelerate launch train/sft.py --config train/recipes/tiny/dift.yaml \\
            --model_name_or_path checkpoints/4dthinker-tiny-dift --records data/labels/$labels/short.jsonl \\
            --max_steps 1600 --output_dir runs/$labels
        fourdthinker evaluate --model runs/$labels --benchmark data/labels-heldout/truth/short.jsonl \\
            --out outputs/$labels
    done
    fourdthinker report outputs/truth outputs/pixels --out outputs/labels.html

`clips/` are those of the basic tasks; `truth/` has the questions that `annotate` asks of exact camera motion and
masks, each mask described by colour, size and place as an estimated one is, with the same phrases drawn for a clip.
Spatial descriptions, whose replies are twice as long, are left out; after 600 steps with them little was learnt.
"""

import argparse
import multiprocessing
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from annotated_questions import exact
from tqdm import tqdm

from fourdthinker_hf.data import media
from fourdthinker_hf.data.annotation.description import describe
from fourdthinker_hf.data.annotation.options import add_options
from fourdthinker_hf.data.annotation.pipeline import Job, Settings, Stages, tell
from fourdthinker_hf.data.annotation.tracking import View
from fourdthinker_hf.data.records import Record, write_records
from fourdthinker_hf.data.simulation import generation
from fourdthinker_hf.data.simulation.basic_scenes import BASIC_TASKS


def make(job: tuple[Path, int, int]) -> list[Record]:
    """Write a clip; its records, without options, of what is true of it."""
    out, seed, index = job
    clip = generation.simulate_clip(seed, BASIC_TASKS[index % 4], index // 4)
    path = out / "clips" / f"{index:06d}.mp4"
    media.write_video(path, clip.frames)
    shot, camera, tracks = exact(clip)
    view = View(shot.frames, camera.homographies)
    size, named = (view.width, view.height), []
    for track in tracks:
        masks = np.stack([cv2.resize(m.view(np.uint8), size, interpolation=cv2.INTER_NEAREST) for m in track.masks])
        if masks.any():
            named.append(replace(track, description=describe(view.frames, masks.view(bool), "object")))
    work = Job(path, path.name, out / "truth", Settings())
    return tell(work, 0, shot, camera, named, Stages(work.now), Counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=61)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    out = args.out.absolute()
    for folder in ("clips", "truth/parts", "truth/videos", "truth/images"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    jobs = [(out, args.seed, index) for index in range(args.clips)]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        made = list(tqdm(pool.imap(make, jobs), total=len(jobs), unit="clip"))
    records = add_options([record for some in made for record in some])
    write_records(out / "truth" / "records.jsonl", records)
    asked, some = sum(map(len, made)), sum(map(bool, made))
    print(f"{out}: {len(records)} of {asked} questions kept; {some} of {len(jobs)} clips have one")
    print(Counter(record.task for record in records))


if __name__ == "__main__":
    main()
