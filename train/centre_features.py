"""Centre the features of a base model: subtract their mean over some videos from the merger's last bias.

    python train/centre_features.py runs/tiny_base_a runs/tiny_centred --records data/grounding/records.jsonl

A tower trained from scratch gives all features one large common part (0.8 of their energy here), and then any two have
a cosine near 1: the loss on the latents would have nothing left to teach. Train on after this, the words must get used
to it.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from fourdthinker_hf import FourDThinkerForConditionalGeneration, FourDThinkerProcessor
from fourdthinker_hf.data.records import read_records
from fourdthinker_hf.video_fourdthinker import load_video


@torch.no_grad()
def main(model: Path, out: Path, records: Annotated[Path, typer.Option()], num: int = 128) -> None:
    """Write OUT, MODEL with features centred over the first NUM videos of RECORDS."""
    network = FourDThinkerForConditionalGeneration.from_pretrained(model)
    processor = FourDThinkerProcessor.from_pretrained(model)
    sampling = {"fps": processor.fps, "max_frames": processor.max_frames}
    videos = [load_video(record.video, **sampling)[0] for record in read_records(records)[:num]]
    batch = processor.video_processor(videos, do_sample_frames=False, cap_pixels_per_frame=True, return_tensors="pt")
    output = network.get_video_features(batch["pixel_values_videos"], batch["video_grid_thw"], return_dict=True)
    features = torch.cat(output.pooler_output)
    mean = features.mean(0)
    typer.echo(f"common part: {float(mean.square().sum() / features.square().sum(1).mean()):.2f} of the energy")
    network.model.visual.merger.mlp[-1].bias -= mean
    network.save_pretrained(out)
    processor.save_pretrained(out)


if __name__ == "__main__":
    typer.run(main)
