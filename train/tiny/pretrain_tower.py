"""Pretrains the tiny model's vision tower and first layers to locate objects, with dense labels and two linear heads.
train/recipes/tiny/text_only.yaml has this command and those around it.

    python train/tiny/pretrain_tower.py runs/init runs/pretrained_tower --records data/grounding/records.jsonl \
        --records data/questions/records.jsonl

From text alone so small a model learns to locate objects slowly: for a thousand steps its coordinates stay near
chance. The same coordinates as dense labels take minutes. A frame is divided into cells, one for each feature. One
head predicts from a feature which colours are in its cell, and where in the cell. The other predicts the same from the
hidden states after the second layer of the language model, but the place in the whole frame. (A feature does not hold
which cell it is. Only the rotary positions do, and the layers must combine the two before text can use them.) The
labels are read from the texts of records that name every object (`grounding`, `camera_motion`) and, for target frames,
from the highlighted object. At the end the features are centred: a large common part would bring every cosine near 1,
and the loss on the latents would have nothing to teach.
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

NUM_STEPS = 4  # temporal steps of a clip; the text names one position for each
LAYER = 2  # the hidden states of the second head are those after this layer
PATH = re.compile(rf"({'|'.join(COLOURS)}) \w+ ((?:\d+ \d+|out)(?:, (?:\d+ \d+|out)){{{NUM_STEPS - 1}}})\.")


def parse_places(text: str, side: int) -> torch.LongTensor:
    """The places that a text names, `(NUM_STEPS, side, side, colours, 2)`: the x and y bin of a colour in a cell, or
    -1 where the colour is not in the cell."""
    places = torch.full((NUM_STEPS, side, side, len(COLOURS), 2), -1)
    cell = GRID_SIZE // side
    for colour, path in PATH.findall(text):
        for step, place in enumerate(path.split(", ")):
            if place != "out":
                x, y = map(int, place.split())
                places[step, y // cell, x // cell, list(COLOURS).index(colour)] = torch.tensor([x, y])
    return places


class LabelledFrames(torch.utils.data.Dataset):
    """Clips with the places of all their objects, and target frames with the place of the highlighted object."""

    def __init__(self, records: list[Record], processor: FourDThinkerProcessor, side: int):
        self.records, self.processor, self.side = records, processor, side

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        record, processor = self.records[index], self.processor
        places = parse_places(record.reasoning or record.answer, self.side)
        frames = target = None
        if record.task in ("grounding", "camera_motion"):
            frames, _ = processor.open_video(record.video)
        if record.imagery:
            colour = list(COLOURS).index(record.source["targets"][0]["object"].split()[0])
            target = torch.full_like(places[-1:], -1)
            target[..., colour, :] = places[-1:, ..., colour, :]
        return frames, places, record.imagery[0] if record.imagery else None, target

    def collate(self, rows):
        """The model's inputs for the clips, the patches of the target frames, and the places in the order of the
        features."""
        clips = [(frames, places) for frames, places, _, _ in rows if frames is not None]
        images = [(Image.open(path).convert("RGB"), target) for _, _, path, target in rows if path]
        messages = self.processor.conversation("clip", "")
        text = self.processor.apply_chat_template(messages, tokenize=False).split("<|vision_end|>")[0]
        times = [i / self.processor.fps for i in range(2 * NUM_STEPS)]
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
    """Loss, and the share of places that are exactly right. `scores` `(n, colours * 2 * (1 + period))` are those of
    "absent" and of each bin modulo `period`, separately for x and y; `places` is `(n, colours, 2)`. Present and absent
    colours have equal weight."""
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
    """Pretrain MODEL for STEPS, centre its features, and write the result to OUT."""
    torch.manual_seed(seed)
    network = FourDThinkerForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    processor = FourDThinkerProcessor.from_pretrained(model)
    tower, config = network.model.visual, network.config
    pixels = processor.image_processor.size["longest_edge"]
    side = round(pixels**0.5) // (tower.patch_size * tower.spatial_merge_size)
    rows = [record for path in records for record in read_records(path)]
    random.Random(seed).shuffle(rows)
    dataset = LabelledFrames(rows, processor, side)
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=1, collate_fn=dataset.collate, drop_last=True)
    cell_head = torch.nn.Linear(config.text_config.hidden_size, len(COLOURS) * 2 * (1 + GRID_SIZE // side))
    frame_head = torch.nn.Linear(config.text_config.hidden_size, len(COLOURS) * 2 * (1 + GRID_SIZE))
    weights = [*network.parameters(), *cell_head.parameters(), *frame_head.parameters()]
    optimizer = torch.optim.AdamW(weights, learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
    mean = torch.zeros(cell_head.in_features)
    done, bar = 0, tqdm(total=steps, unit="step", mininterval=10)
    while done < steps:
        for inputs, targets, places in loader:
            video = network.get_video_features(inputs.pop("pixel_values_videos"), inputs["video_grid_thw"])
            clips = torch.cat(video.pooler_output)
            frames = torch.cat(network.get_image_features(**targets).pooler_output)
            states = network.model(**inputs, mm_encoder_outputs={"video": video}, output_hidden_states=True)
            hidden = states.hidden_states[LAYER][inputs["input_ids"] == config.video_token_id]
            cell_loss, cell_right = place_loss(cell_head(torch.cat([clips, frames])), places, GRID_SIZE // side)
            frame_loss, frame_right = place_loss(frame_head(hidden), places[: len(hidden)], GRID_SIZE)
            optimizer.zero_grad()
            (cell_loss + frame_loss).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            mean.lerp_(clips.detach().mean(0), 0.05)
            done += 1
            bar.update()
            if done % 50 == 0:
                tqdm.write(
                    f"step {done}: losses {cell_loss.item():.3f} {frame_loss.item():.3f}, "
                    f"share of exact places in the cell {cell_right.item():.2f}, in the frame {frame_right.item():.2f}"
                )
            if done == steps:
                break
    with torch.no_grad():
        tower.merger.mlp[-1].bias -= mean
    network.save_pretrained(out)
    processor.save_pretrained(out)


if __name__ == "__main__":
    typer.run(main)
