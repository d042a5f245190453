"""Measures what `forget_video` saves: seconds for each new token and the size of the cache, by the length of the
video.

    python bench/speed/forget_video.py            # five minutes on one CPU core, 3 GB

The network is that of bench/speed/dift_step.py, with 108 M random parameters. A reply is two mental images of four
latents and then 64 tokens of text. The features of the video are given, so the vision tower does not run. Decoding
with and without `forget_video` takes turns, three times each, and medians of CPU seconds are reported. The second
prefill runs the question and the images again, without the video. The cache is that of the last step: keys and values
of the given number of tokens, in 8 layers of 2 x 2 x 64 fp32 numbers.
"""

import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from dift_step import BatchShape, make_config
from transformers import LogitsProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fourdthinker_hf import FourDThinkerForConditionalGeneration  # noqa: E402
from fourdthinker_hf.evaluation.prediction_files import commit  # noqa: E402

NUM_TOKENS, NUM_IMAGES = 64, 2
VIDEOS = {1000: 16, 4000: 64, 16000: 256}  # video tokens: frames


class FixedReply(LogitsProcessor):
    """Makes the model write two mental images and then text. Keeps the time and the length at each step."""

    def __init__(self, config):
        self.config, self.times, self.lengths = config, [], []
        self.start = config.latent_start_id

    def __call__(self, input_ids, scores):
        self.times.append(time.process_time())
        self.lengths.append(input_ids.shape[1])
        num_images = int((input_ids[0] == self.start).sum())
        starts_image = num_images < NUM_IMAGES and input_ids[0, -1] != self.config.latent_token_id
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.start if starts_image else 7] = 0
        return forced


def make_prompt(config, shape: BatchShape) -> dict:
    """The inputs for one question about a video with random features."""
    grid = torch.tensor([[shape.num_frames // 2, shape.height // 14, shape.width // 14]])
    text = torch.randint(8, 1000, (1, shape.text_tokens))
    video = torch.full((1, shape.video_tokens), config.video_token_id)
    features = torch.randn(shape.video_tokens, config.text_config.hidden_size)
    return {
        "input_ids": torch.cat([text[:, :2], video, text[:, 2:]], 1),
        "video_grid_thw": grid,
        "second_per_grid_ts": torch.ones(1),
        "mm_encoder_outputs": {"video": BaseModelOutputWithPooling(pooler_output=[features])},
    }


def measure(model, inputs: dict, forget_video: bool) -> tuple[float, float, int]:
    """Seconds for each new token, seconds of the second prefill, and tokens in the cache of the last step."""
    fixed_reply = FixedReply(model.config)
    model.generate(
        **inputs,
        max_new_tokens=NUM_IMAGES * (model.config.latent_size + 2) + NUM_TOKENS,
        do_sample=False,
        logits_processor=[fixed_reply],
        forget_video=forget_video,
        eos_token_id=0,
        pad_token_id=0,
    )
    steps = [after - before for before, after in pairwise(fixed_reply.times)]
    prefills = [i for i, (before, after) in enumerate(pairwise(fixed_reply.lengths)) if after != before + 1]
    return median(steps[-NUM_TOKENS // 2 :]), steps[prefills[0]] if prefills else 0.0, fixed_reply.lengths[-1] - 1


def main(
    quick: Annotated[bool, typer.Option(help="Use a smaller network and only the shortest video.")] = False,
) -> None:
    """Measures decoding with and without `forget_video` for each length of video."""
    torch.set_num_threads(1)
    config = make_config(quick)
    torch.manual_seed(0)
    model = FourDThinkerForConditionalGeneration(config).eval()
    typer.echo(f"PyTorch {torch.__version__}, {commit()}, one core\n")
    typer.echo(
        "| video tokens | s a token | with forget_video | ratio | second prefill | cache, tokens | with forget_video |"
    )
    typer.echo("| --- | --- | --- | --- | --- | --- | --- |")
    for tokens, frames in list(VIDEOS.items())[: 1 if quick else None]:
        inputs = make_prompt(config, BatchShape(num_frames=frames, text_tokens=60))
        runs = {forget: [measure(model, inputs, forget) for _ in range(3)] for forget in (False, True)}
        usual, forgets = ([median(values) for values in zip(*runs[forget], strict=True)] for forget in (False, True))
        size = 2 * config.text_config.num_hidden_layers * config.text_config.num_key_value_heads * 64 * 4 / 2**20
        typer.echo(
            f"| {tokens} | {usual[0]:.4f} | {forgets[0]:.4f} | {forgets[0] / usual[0]:.2f} | {forgets[1]:.3f} s "
            f"| {usual[2]} ({usual[2] * size:.1f} MiB) | {forgets[2]} ({forgets[2] * size:.1f} MiB) |"
        )


if __name__ == "__main__":
    typer.run(main)
