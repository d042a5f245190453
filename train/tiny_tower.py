"""Warm up the tiny model's vision tower: from each feature a linear head tells which colour is in its cell, and where.

    python train/tiny_tower.py runs/tiny_init runs/tiny_tower --records data/grounding/records.jsonl \
        --records data/questions/records.jsonl

Through the words alone a tower learns to see slowly: for a thousand steps the coordinates stay near chance. The same
coordinates as dense labels of the features teach it in minutes. Labels are read from the texts of the records that
name every object (`grounding`, `camera_motion`) and, for target frames, from the object highlighted. At the end the
features are centred: a large common part would put every cosine near 1 and leave the loss on the latents nothing to
teach.
"""

import random
import re
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from fourdthinker_hf import FourDThinkerForConditionalGeneration, FourDThinkerProcessor
from fourdthinker_hf.data.records import Record, read_records
from fourdthinker_hf.data.simulation import BINS, COLOURS
from fourdthinker_hf.video_fourdthinker import load_video

STEPS = 4  # temporal steps of a clip, one per position that the text names
PATH = re.compile(rf"({'|'.join(COLOURS)}) \w+ ((?:\d+ \d+|out)(?:, (?:\d+ \d+|out)){{{STEPS - 1}}})\.")
NUM_COLOURS = len(COLOURS)


def labels_of(text: str, side: int) -> torch.LongTensor:
    """`(STEPS, side, side, colours)`: 0 where a colour is absent, else 1 + its bin within the cell."""
    labels = torch.zeros(STEPS, side, side, NUM_COLOURS, dtype=torch.long)
    cell = BINS // side
    for colour, path in PATH.findall(text):
        for step, place in enumerate(path.split(", ")):
            if place != "out":
                x, y = map(int, place.split())
                labels[step, y // cell, x // cell, list(COLOURS).index(colour)] = 1 + y % cell * cell + x % cell
    return labels


class Examples(torch.utils.data.Dataset):
    """Patches and labels of one clip and, if it has any, of its first target frame."""

    def __init__(self, records: list[Record], processor: FourDThinkerProcessor, side: int):
        self.records, self.processor, self.side = records, processor, side

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        record, processor = self.records[i], self.processor
        text = record.reasoning or record.answer
        labels = labels_of(text, self.side)
        items = []
        if record.task in ("grounding", "camera_motion"):
            frames, _ = load_video(record.video, fps=processor.fps, max_frames=processor.max_frames)
            video = processor.video_processor([frames], do_sample_frames=False, cap_pixels_per_frame=True,
                                              return_tensors="pt")  # fmt: skip
            items.append((video["pixel_values_videos"], video["video_grid_thw"], labels))
        if record.imagery:
            image = processor.image_processor([Image.open(record.imagery[0]).convert("RGB")], return_tensors="pt")
            shown = list(COLOURS).index(record.source["targets"][0]["object"].split()[0])
            target = torch.zeros_like(labels[-1:])
            target[..., shown] = labels[-1:, ..., shown]
            items.append((image["pixel_values"], image["image_grid_thw"], target))
        return items


def collate(batch):
    patches, grids, labels = zip(*(item for items in batch for item in items), strict=True)
    return torch.cat(patches), torch.cat(grids), torch.cat([label.flatten(0, 2) for label in labels])


def main(
    model: Path,
    out: Path,
    records: Annotated[list[Path], typer.Option()],
    steps: int = 1000,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> None:
    """Write OUT: MODEL with its tower trained for STEPS and its features centred."""
    torch.manual_seed(seed)
    network = FourDThinkerForConditionalGeneration.from_pretrained(model)
    processor = FourDThinkerProcessor.from_pretrained(model)
    tower = network.model.visual
    side = processor.image_processor.size["longest_edge"] ** 0.5 / (tower.patch_size * tower.spatial_merge_size)
    side = round(side)
    rows = [record for path in records for record in read_records(path)]
    random.Random(seed).shuffle(rows)
    loader = DataLoader(Examples(rows, processor, side), batch_size, shuffle=True, num_workers=1, collate_fn=collate,
                        drop_last=True)  # fmt: skip
    num_classes = 1 + (BINS // side) ** 2
    head = torch.nn.Linear(network.config.vision_config.out_hidden_size, NUM_COLOURS * num_classes)
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
    done, bar = 0, tqdm(total=steps, unit="step", mininterval=10)
    mean = torch.zeros(head.in_features)
    while done < steps:
        for patches, grids, labels in loader:
            features = tower(patches, grid_thw=grids).pooler_output
            scores = head(features).unflatten(-1, (NUM_COLOURS, num_classes))
            present = labels > 0
            places = F.cross_entropy(scores.flatten(0, -2), labels.flatten(), reduction="none")
            loss = places[present.flatten()].mean() + places[~present.flatten()].mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            mean.lerp_(features.detach().mean(0), 0.05)
            done += 1
            bar.update()
            if done % 50 == 0:
                right = (scores.argmax(-1) == labels)[present].float().mean()
                tqdm.write(f"step {done}: loss {loss.item():.3f}, exact place of present colours {right.item():.2f}")
            if done == steps:
                break
    with torch.no_grad():
        tower.merger.mlp[-1].bias -= mean
    network.save_pretrained(out)
    processor.save_pretrained(out)


if __name__ == "__main__":
    typer.run(main)
