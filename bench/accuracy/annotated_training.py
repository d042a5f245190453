"""Measures what training on annotated pixels costs: DIFT on the records that `annotate` makes of simulated clips, and
DIFT on the records that it makes of the same clips from exact camera motion and masks.

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

`clips/` has the clips of the basic tasks. `truth/` has the questions that `annotate` asks of exact camera motion and
masks. There objects are described by colour, size and place like tracked ones, and the same phrases are drawn for a
clip. Spatial descriptions are left out, because their replies are twice as long, and after 600 steps with them little
was learnt.
"""

import argparse
import multiprocessing
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from fourdthinker_hf.data import media
from fourdthinker_hf.data.annotation.answer_options import add_options
from fourdthinker_hf.data.annotation.object_description import describe_object
from fourdthinker_hf.data.annotation.pipeline import AnnotationSettings, StageTimer, VideoJob, make_shot_records
from fourdthinker_hf.data.annotation.tracking import ScaledShot
from fourdthinker_hf.data.ground_truth import clip_to_shot, true_annotation
from fourdthinker_hf.data.records import Record, write_records
from fourdthinker_hf.data.simulation import generate_records
from fourdthinker_hf.data.simulation.basic_scenes import BASIC_TASKS


def make_records(job: tuple[Path, int, int]) -> list[Record]:
    """Write a clip, and return the records of its exact camera motion and masks, which have no options yet."""
    out, seed, index = job
    clip = generate_records.simulate_clip(seed, BASIC_TASKS[index % 4], index // 4)
    path = out / "clips" / f"{index:06d}.mp4"
    media.write_video(path, clip.frames)
    shot, (camera, tracks) = clip_to_shot(clip), true_annotation(clip)
    scaled = ScaledShot(shot.frames, camera.homographies)
    size, described = (scaled.width, scaled.height), []
    for track in tracks:
        masks = [cv2.resize(mask.view(np.uint8), size, interpolation=cv2.INTER_NEAREST) for mask in track.masks]
        masks = np.stack(masks).view(bool)
        if masks.any():
            described.append(replace(track, description=describe_object(scaled.frames, masks, "thing")))
    video = VideoJob(path, path.name, out / "truth", AnnotationSettings())
    return make_shot_records(video, 0, shot, camera, described, StageTimer(video.stage_file), Counter())


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
        by_clip = list(tqdm(pool.imap(make_records, jobs), total=len(jobs), unit="clip"))
    records = add_options([record for records in by_clip for record in records])
    write_records(out / "truth" / "records.jsonl", records)
    num_questions, num_clips = sum(map(len, by_clip)), sum(map(bool, by_clip))
    print(f"{out}: {len(records)} of {num_questions} questions are kept; {num_clips} of {len(jobs)} clips have one")
    print(Counter(record.task for record in records))


if __name__ == "__main__":
    main()
