"""Measures 4DRL beside the public research code of 4DThinker, with the same weights and inputs.

    python bench/speed/reference.py FOLDER --python PYTHON
    python bench/speed/reference.py FOLDER --python PYTHON --quick    # a smaller network, to check that it runs

FOLDER is a checkout of https://github.com/zhangquanchen/4DThinker, which is not part of this repository. PYTHON runs
in an environment that has what its fork of transformers 4.50 needs; the fork is read from 4drl/transformers_rl/src.

The network is that of bench/speed/dift_step.py, with random weights in float32. There is one video, with prompts of
338 and 1,090 tokens, and eight replies of 200 tokens, two fifths of which are forced tokens of mental images. Each
side has its own process with one thread. The sides take turns; each ratio is the public code's CPU seconds over ours,
and the median is reported with the least and the largest.

- policy: forward and backward of the eight replies, with gradient checkpointing. Working memory is the peak of the
  resident set less parameters and gradients.
- reference_pass: the same replies without gradients, as the reference policy scores them.
- rollout: encoding the video, prefill, and 64 sampled tokens of each reply (--group 1 and --group 2: of one and two).
- The log-probabilities of both sides must agree, or the benchmark stops. Ours are computed without replay, as the
  public code does.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from dift_step import ROOT
from grpo_step import make_network

WORKER = Path(__file__).with_name("reference_worker.py")
GROUP, LENGTH, STEPS = 8, 200, 64
PROMPTS = {338: (8, 12, 12), 1090: (8, 20, 26)}  # tokens of the prompt, and the video's patches
PARTS = ("policy", "reference_pass", "rollout")


def make_inputs(config, num_tokens: int, grid: tuple, group: int) -> dict:
    draw = torch.Generator().manual_seed(0)
    video = grid[0] * grid[1] * grid[2] // 4
    first = max(config.video_token_id, config.image_token_id, config.latent_end_id) + 1
    words = lambda *shape: torch.randint(first, config.text_config.vocab_size, shape, generator=draw)  # noqa: E731
    start, end = (torch.tensor([[token]]) for token in (config.vision_start_token_id, config.vision_end_token_id))
    prompt = torch.cat(
        [start, torch.full((1, video), config.video_token_id), end, words(1, num_tokens - video - 2)], 1
    )
    replies, size = words(group, LENGTH), config.latent_size
    block = torch.tensor([config.latent_start_id, *[config.latent_token_id] * size, config.latent_end_id])
    num_blocks = round(0.4 * LENGTH / (size + 1))
    for number in range(num_blocks):
        place = number * (LENGTH // num_blocks)
        replies[:, place : place + size + 2] = block
    return {
        "prompt": prompt,
        "replies": replies,
        "mask": ~torch.isin(replies, block),
        "pixels": torch.randn(video * 4, 1176, generator=draw),
        "grid": torch.tensor([grid]),
        "sampling": {
            "max_new_tokens": STEPS,
            "do_sample": True,
            "top_k": 0,
            "pad_token_id": 0,
            "sequence_bias": [[[config.latent_start_id], 12.0]],
        },
    }


def write_models(folder: Path, quick: bool):
    """Writes the weights with our config, and with the flat config of transformers 4.50. Returns our config."""
    model = make_network(quick)
    model.save_pretrained(folder / "ours")
    config = model.config.to_dict()
    text, vision = config["text_config"], config["vision_config"]
    rope = text.pop("rope_parameters")
    flat = {name: value for name, value in config.items() if "token_id" in name or "latent" in name}
    flat |= {name: value for name, value in text.items() if name not in ("layer_types", "model_type", "dtype")}
    flat |= {
        "model_type": "qwen2_5_vl",
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "vision_config": {name: value for name, value in vision.items() if name != "dtype"},
        "compress_strategy": "average",
        "tie_word_embeddings": True,
    }
    (folder / "reference").mkdir()
    (folder / "reference/config.json").write_text(json.dumps(flat))
    for path in (folder / "ours").glob("*.safetensors"):
        os.link(path, folder / "reference" / path.name)
    return model.config


class Side:
    """A process of reference_worker.py."""

    def __init__(self, python: str, kind: str, *arguments: Path):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT) if kind == "ours" else ""}
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # glibc gives larger blocks back when they are freed
        self.process = subprocess.Popen(
            [python, WORKER, kind, *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, part: str, prompt: int) -> dict:
        self.process.stdin.write(f"{part} {prompt}\n")
        self.process.stdin.flush()
        if not (answer := self.process.stdout.readline()):
            raise typer.Exit(1)  # the worker has printed why
        return json.loads(answer)


def main(
    folder: Annotated[Path, typer.Argument(help="A checkout of the public code.")],
    python: Annotated[str, typer.Option(help="The interpreter of the public code's environment.")],
    rounds: Annotated[int, typer.Option(min=1, help="Number of runs of each side.")] = 3,
    part: Annotated[list[str] | None, typer.Option(help=f"{', '.join(PARTS)}; all by default.")] = None,
    prompt: Annotated[list[int] | None, typer.Option(help="338 or 1090; both by default.")] = None,
    group: Annotated[int, typer.Option(help="Number of replies.")] = GROUP,
    quick: Annotated[bool, typer.Option(help="Use a smaller network, to check that the benchmark runs.")] = False,
) -> None:
    code = folder / "4drl/src/open-r1-multimodal/open_r1/grpo_4dthinker.py"
    if not code.exists():
        raise typer.BadParameter(f"{folder} is no checkout of the public code: {code} is missing")
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    typer.echo(f"commit {commit.stdout.strip()}, torch {torch.__version__}, {rounds} rounds, {group} replies\n")
    with tempfile.TemporaryDirectory() as name:
        models, inputs = Path(name), Path(name) / "inputs.pt"
        config = write_models(models, quick)
        torch.save({n: make_inputs(config, n, grid, group) for n, grid in PROMPTS.items()}, inputs)
        sides = {
            "reference": Side(python, "reference", models / "reference", inputs, folder.resolve()),
            "ours": Side(sys.executable, "ours", models / "ours", inputs),
        }
        typer.echo("| part | prompt | public code, s | ours, s | ratio (least to largest) | memory, GiB |")
        typer.echo("| --- " * 6 + "|")
        for kind in part or PARTS:
            for tokens in prompt or PROMPTS:
                seen = {side: [] for side in sides}
                for _ in range(rounds):
                    for side, process in sides.items():
                        seen[side].append(process.run(kind, tokens))
                report(kind, tokens, seen["reference"], seen["ours"])
        for side in sides.values():
            side.process.stdin.close()
            side.process.wait()


def report(part: str, tokens: int, theirs: list[dict], ours: list[dict]) -> None:
    if theirs[0]["logps"] is not None:
        both = torch.tensor([theirs[0]["logps"], ours[0]["logps"]])
        if (difference := (both[0] - both[1]).abs().max().item()) > 1e-3:
            raise SystemExit(f"{part}: the log-probabilities of the two sides differ by up to {difference:.1e}")
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(theirs, ours, strict=True)]
    seconds, memory = ([median(run[name] for run in runs) for runs in (theirs, ours)] for name in ("seconds", "bytes"))
    typer.echo(
        f"| {part} | {tokens} | {seconds[0]:.1f} | {seconds[1]:.1f} | {median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) | {memory[0] / 2**30:.2f}, {memory[1] / 2**30:.2f} |"
    )


if __name__ == "__main__":
    typer.run(main)
