"""Warm up the tiny model's sight: from each feature a linear head tells which colours are in its cell, and where.

    python train/tiny/pretrain_tower.py runs/tiny_init runs/tiny_tower --records data/grounding/records.jsonl \
        --records data/questions/records.jsonl

Through the words alone a model this small learns to see slowly: for a thousand steps its coordinates stay near chance.
The same coordinates as dense labels teach it in minutes. Two heads ask the same thing: one of the tower's features,
where in its own cell a colour is; one of the hidden states after the second layer of the language model, where in the
picture it is. (A feature does not say which cell it is: only the rotary positions do, and the layers must work it out
before a word can read it.) Labels are read from the texts of the records that name every object (`grounding`,
`camera_motion`) and, for target frames, from the object highlighted. At the end the features are centred: a large
common part would put every cosine near 1 and leave the loss on the latents nothing to teach.
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
from fourdthinker_hf.data.simulation.basic_scenes import COLOURS, GRID_SIZE

STEPS = 4  # temporal steps of a clip, one per position that the text names
LAYER = 2
PATH = re.compile(rf"({'|'.join(COLOURS)}) \w+ ((?:\d+ \d+|out)(?:, (?:\d+ \d+|out)){{{STEPS - 1}}})\.")


def places_of(text: str, side: int) -> torch.LongTensor:
    """`(STEPS, side, side, colours, 2)`: -1 where a colour is absent from a cell, else its x and y bin there."""
    places = torch.full((STEPS, side, side, len(COLOURS), 2), -1)
    cell = GRID_SIZE // side
    for colour, path in PATH.findall(text):
        for step, place in enumerate(path.split(", ")):
            if place != "out":
                x, y = map(int, place.split())
                places[step, y // cell, x // cell, list(COLOURS).index(colour)] = torch.tensor([x, y])
    return places


class Examples(torch.utils.data.Dataset):
    """Clips with the places of all their objects, and target frames with that of the object highlighted."""

    def __init__(self, records: list[Record], processor: FourDThinkerProcessor, side: int):
        self.records, self.processor, self.side = records, processor, side

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        record, processor = self.records[i], self.processor
        places = places_of(record.reasoning or record.answer, self.side)
        frames = target = None
        if record.task in ("grounding", "camera_motion"):
            frames, _ = processor.open_video(record.video)
        if record.imagery:
            shown = list(COLOURS).index(record.source["targets"][0]["object"].split()[0])
            target = torch.full_like(places[-1:], -1)
            target[..., shown, :] = places[-1:, ..., shown, :]
        return frames, places, record.imagery[0] if record.imagery else None, target

    def collate(self, rows):
        """Inputs of the model for the clips, patches of the target frames, places in the order of the features."""
        clips = [(frames, places) for frames, places, _, _ in rows if frames is not None]
        images = [(Image.open(path).convert("RGB"), target) for _, _, path, target in rows if path]
        messages = self.processor.conversation("clip", "")
        text = self.processor.apply_chat_template(messages, tokenize=False).split("<|vision_end|>")[0]
        times = [i / self.processor.fps for i in range(2 * STEPS)]
        inputs = self.processor(
            text=[text] * len(clips),
            videos=[frames for frames, _ in clips],
            video_timestamps=[times] * len(clips),
            return_tensors="pt",
        )
        targets = self.processor.image_processor([image for image, _ in images], return_tensors="pt")
        flat = [places.flatten(0, 2) for _, places in [*clips, *images]]
        return inputs, targets, torch.cat(flat)


def place_loss(scores: torch.Tensor, places: torch.Tensor, period: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and share of exactly right places. `scores` `(n, colours * 2 * (1 + period))` say absent or a bin modulo
    `period`, for x and y apart; `places` `(n, colours, 2)`. Present and absent count equally."""
    scores = scores.unflatten(-1, (len(COLOURS), 2, 1 + period))
    labels = torch.where(places < 0, 0, 1 + places % period)
    losses = F.cross_entropy(scores.flatten(0, -2), labels.flatten(), reduction="none").view_as(labels)
    present = labels > 0
    right = (scores.argmax(-1) == labels).all(-1)[present.all(-1)].float().mean()
    return losses[present].mean() + losses[~present].mean(), right


def main(
    model: Path,
    out: Path,
    records: Annotated[list[Path], typer.Option()],
    steps: int = 1000,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> None:
    """Write OUT: MODEL warmed up for STEPS, its features centred."""
    torch.manual_seed(seed)
    network = FourDThinkerForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    processor = FourDThinkerProcessor.from_pretrained(model)
    tower, config = network.model.visual, network.config
    pixels = processor.image_processor.size["longest_edge"]
    side = round(pixels**0.5) // (tower.patch_size * tower.spatial_merge_size)
    rows = [record for path in records for record in read_records(path)]
    random.Random(seed).shuffle(rows)
    data = Examples(rows, processor, side)
    loader = DataLoader(data, batch_size, shuffle=True, num_workers=1, collate_fn=data.collate, drop_last=True)
    near = torch.nn.Linear(config.text_config.hidden_size, len(COLOURS) * 2 * (1 + GRID_SIZE // side))
    far = torch.nn.Linear(config.text_config.hidden_size, len(COLOURS) * 2 * (1 + GRID_SIZE))
    weights = [*network.parameters(), *near.parameters(), *far.parameters()]
    optimizer = torch.optim.AdamW(weights, learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
    mean = torch.zeros(near.in_features)
    done, bar = 0, tqdm(total=steps, unit="step", mininterval=10)
    while done < steps:
        for inputs, targets, places in loader:
            video = network.get_video_features(inputs.pop("pixel_values_videos"), inputs["video_grid_thw"])
            clips = torch.cat(video.pooler_output)
            frames = torch.cat(network.get_image_features(**targets).pooler_output)
            states = network.model(**inputs, mm_encoder_outputs={"video": video}, output_hidden_states=True)
            seen = states.hidden_states[LAYER][inputs["input_ids"] == config.video_token_id]
            near_loss, near_right = place_loss(near(torch.cat([clips, frames])), places, GRID_SIZE // side)
            far_loss, far_right = place_loss(far(seen), places[: len(seen)], GRID_SIZE)
            optimizer.zero_grad()
            (near_loss + far_loss).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            mean.lerp_(clips.detach().mean(0), 0.05)
            done += 1
            bar.update()
            if done % 50 == 0:
                tqdm.write(
                    f"step {done}: losses {near_loss.item():.3f} {far_loss.item():.3f}, "
                    f"places exact in the cell {near_right.item():.2f}, in the picture {far_right.item():.2f}"
                )
            if done == steps:
                break
    with torch.no_grad():
        tower.merger.mlp[-1].bias -= mean
    network.save_pretrained(out)
    processor.save_pretrained(out)


if __name__ == "__main__":
    typer.run(main)
