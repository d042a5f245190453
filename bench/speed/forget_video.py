"""What forgetting the video saves: seconds a word and what the cache holds, by the length of the video.

    python bench/speed/forget_video.py            # five minutes on one CPU core, 3 GB

The network is that of bench/speed/dift_step.py, random, of 108 M parameters. A reply is two mental images of four latents and
then 64 words; the features of the video are given, so no tower runs. Both ways in turn, three times each; medians of
CPU seconds count. "forgetting" is the second prefill, of question and images alone; the cache is what the last step
reads: keys and values of so many tokens, 8 layers of 2 x 2 x 64 fp32 numbers each.
"""

import sys
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from dift_step import Shape, make_config
from transformers import LogitsProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fourdthinker_hf import FourDThinkerForConditionalGeneration  # noqa: E402
from fourdthinker_hf.evaluation.outputs import commit  # noqa: E402

WORDS, IMAGES = 64, 2
VIDEOS = {1000: 16, 4000: 64, 16000: 256}  # tokens: frames


class Plan(LogitsProcessor):
    """Two images at once, then words; keeps when each step was reached."""

    def __init__(self, config):
        self.config, self.times, self.lengths = config, [], []
        self.start = config.latent_start_id

    def __call__(self, input_ids, scores):
        self.times.append(time.process_time())
        self.lengths.append(input_ids.shape[1])
        images = int((input_ids[0] == self.start).sum())
        is_open = images < IMAGES and input_ids[0, -1] != self.config.latent_token_id
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.start if is_open else 7] = 0
        return forced


def prompt(config, shape: Shape) -> dict:
    """One question about a video of which the features are given, at random."""
    grid = torch.tensor([[shape.frames // 2, shape.height // 14, shape.width // 14]])
    words = torch.randint(8, 1000, (1, shape.text))
    video = torch.full((1, shape.video_tokens), config.video_token_id)
    features = torch.randn(shape.video_tokens, config.text_config.hidden_size)
    return {
        "input_ids": torch.cat([words[:, :2], video, words[:, 2:]], 1),
        "video_grid_thw": grid,
        "second_per_grid_ts": torch.ones(1),
        "mm_encoder_outputs": {"video": BaseModelOutputWithPooling(pooler_output=[features])},
    }


def measure(model, batch: dict, forget: bool) -> tuple[float, float, int]:
    """Seconds a word, seconds that forgetting takes, tokens in the cache of the last step."""
    plan = Plan(model.config)
    limit = IMAGES * (model.config.latent_size + 2) + WORDS
    model.generate(
        **batch,
        max_new_tokens=limit,
        do_sample=False,
        logits_processor=[plan],
        forget_video=forget,
        eos_token_id=0,
        pad_token_id=0,
    )
    steps = [b - a for a, b in zip(plan.times, plan.times[1:], strict=False)]
    again = next((i for i, (a, b) in enumerate(zip(plan.lengths, plan.lengths[1:], strict=False)) if b != a + 1), None)
    return median(steps[-WORDS // 2 :]), steps[again] if again is not None else 0.0, plan.lengths[-1] - 1


def main(quick: Annotated[bool, typer.Option(help="A smaller network, the shortest video.")] = False) -> None:
    """Both ways, for each length."""
    torch.set_num_threads(1)
    config = make_config(quick)
    torch.manual_seed(0)
    model = FourDThinkerForConditionalGeneration(config).eval()
    typer.echo(f"PyTorch {torch.__version__}, {commit()}, one core\n")
    typer.echo("| video tokens | s a word | forgetting | ratio | forgetting takes | cache, tokens | forgetting |")
    typer.echo("| --- | --- | --- | --- | --- | --- | --- |")
    for tokens, frames in list(VIDEOS.items())[: 1 if quick else None]:
        shape = Shape(frames=frames, text=60)
        batch = prompt(config, shape)
        found = {forget: [measure(model, batch, forget) for _ in range(3)] for forget in (False, True)}
        plain, forgot = ([median(values) for values in zip(*found[forget], strict=True)] for forget in (False, True))
        size = 2 * config.text_config.num_hidden_layers * config.text_config.num_key_value_heads * 64 * 4 / 2**20
        typer.echo(
            f"| {tokens} | {plain[0]:.4f} | {forgot[0]:.4f} | {forgot[0] / plain[0]:.2f} | {forgot[1]:.3f} s "
            f"| {plain[2]} ({plain[2] * size:.1f} MiB) | {forgot[2]} ({forgot[2] * size:.1f} MiB) |"
        )


if __name__ == "__main__":
    typer.run(main)
