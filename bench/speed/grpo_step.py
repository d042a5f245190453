"""Measures a 4DRL rollout whose replies share video and prompt, one whose replies repeat them, and the scoring.

    python bench/speed/grpo_step.py            # twenty minutes on one idle CPU core, 8 GB
    python bench/speed/grpo_step.py --quick    # a smaller network, to check that the benchmark runs

The network is that of bench/speed/dift_step.py, with 108 M random parameters and a vocabulary of 151,936. There is one
question with eight replies of 128 tokens, about a video of about 300, 1,000 or 3,000 tokens. All steps are those of
`FourDRLTrainer`. The variants take turns, and medians of CPU seconds (on CUDA: wall seconds) are reported.

- rollout: in `repeated` each reply has its own video file and prompt, so eight videos are decoded and encoded and
  eight prompts prefilled; `shared` is what the trainer does. The bound is the best that sharing could reach: the time
  of `repeated` with one eighth of its time before decoding.
- decoding: time for each token of replies full of latents, of text alone, and of stock Qwen2.5-VL with these weights.
- scoring: forward and backward of the eight replies behind one copy of the prompt, and each behind its own copy.
- memory: the peak of the resident set during scoring, less parameters and gradients, with vocabularies of 32k and
  152k, in separate processes that give freed memory back at once. The second row computes the logits of whole replies.
- finished: with the bundled checkpoint, the share of a rollout's steps that went to replies that had already ended.
"""

import copy
import gc
import importlib.metadata
import multiprocessing
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from dift_step import ROOT, TINY, gigabytes, make_config, status

GROUP, LENGTH = 8, 128
VIDEOS = {300: (12, 196), 1000: (8, 448), 3000: (24, 448)}  # about so many tokens: frames, height and width in pixels
VOCABULARIES = (32_768, 151_936)


def make_network(quick: bool, vocabulary: int | None = None):
    """A model with random weights whose special tokens have the bundled tokenizer's ids."""
    import torch

    from fourdthinker_hf import FourDThinkerConfig, FourDThinkerForConditionalGeneration

    config, tiny = make_config(quick), FourDThinkerConfig.from_pretrained(TINY)
    for name in (
        "video_token_id",
        "image_token_id",
        "vision_start_token_id",
        "vision_end_token_id",
        "latent_token_id",
        "latent_start_id",
        "latent_end_id",
    ):
        setattr(config, name, getattr(tiny, name))
    if vocabulary:
        config.text_config.vocab_size = vocabulary
    torch.manual_seed(0)
    model = FourDThinkerForConditionalGeneration(config)
    model.config._name_or_path = str(TINY)
    model.generation_config.eos_token_id = (
        None  # so that only the tokenizer's end tokens count, which `make_trainer` forbids
    )
    return model


def make_video(path: Path, frames: int, side: int) -> Path:
    import av
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 255, (frames, side // 4, side // 4, 3), dtype=np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        for frame in pixels.repeat(4, 1).repeat(4, 2):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        out.mux(stream.encode(None))
    return path


def now():
    import torch

    if not torch.cuda.is_available():
        return time.process_time

    def clock():
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def make_trainer(model, folder: str, processor, latents: bool = True):
    """A trainer whose replies all reach the full length; about a third of their tokens belong to mental images."""
    import torch
    from datasets import Dataset

    from fourdthinker_hf.training import FourDRLConfig, FourDRLTrainer

    config = model.config
    ends = [[[token], -100.0] for token in (processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id)]
    starts = [[[config.latent_start_id], 12.0 if latents else -100.0]]
    args = FourDRLConfig(
        folder,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=GROUP,
        num_generations=GROUP,
        max_completion_length=LENGTH,
        generation_kwargs={"sequence_bias": ends + starts},
    )
    trainer = FourDRLTrainer(
        model=model, args=args, train_dataset=Dataset.from_list([{"prompt": ""}]), processing_class=processor
    )
    trainer.model.train()
    return trainer


def make_rows(video: Path, repeated: bool) -> list[dict]:
    """Rows of eight replies to one question; with `repeated`, to eight questions about copies of the video."""
    row = {
        "id": "0",
        "question": "Which way does the ball move?",
        "options": ["left", "right"],
        "answer": "left",
        "frames": None,
        "timestamps": None,
        "where": "here",
    }
    rows = []
    for number in range(GROUP):
        copy = video.with_name(f"{video.stem}_{number}.mp4")
        if not copy.exists():
            os.link(video, copy)
        rows.append({**row, "index": number if repeated else 0, "video": str(copy if repeated else video)})
    return rows


def run_rollout(trainer, rows: list[dict]) -> tuple[dict[str, float], dict, dict]:
    """Seconds `before` decoding and of `decoding`, the rollout, and the inputs that decoding started from."""
    clock, marks, inputs = now(), [], {}

    def sample_replies(given: dict):
        marks.append(clock())
        inputs.update(copy.deepcopy(given))  # its cache is about to grow
        marks.append(clock())
        output = type(trainer).sample_replies(trainer, given)
        marks.append(clock())
        return output

    trainer.sample_replies, trainer._rows, start = sample_replies, rows, clock()
    rollout = trainer.rollout([""] * len(rows), trainer)
    assert all(len(ids) == LENGTH for ids in rollout["completion_ids"])
    return {"before": marks[0] - start, "decoding": marks[2] - marks[1]}, rollout, inputs


def bench_rollout(trainer, videos: dict[int, Path], rounds: int) -> None:
    make_score(trainer, videos[300])  # loads libraries
    typer.echo("\nA rollout: one question, eight replies of 128 tokens; CPU seconds\n")
    typer.echo("| video tokens | repeated: before, decoding | shared: before, decoding | gain | bound | reached |")
    typer.echo("| --- " * 6 + "|")
    for tokens, video in videos.items():
        seen = {"repeated": [], "shared": []}
        for _ in range(rounds):
            for name, runs in seen.items():
                runs.append(run_rollout(trainer, make_rows(video, name == "repeated"))[0])
        before, decoding = (
            {name: median(run[part] for run in runs) for name, runs in seen.items()} for part in ("before", "decoding")
        )
        totals = {name: before[name] + decoding[name] for name in seen}
        gain = totals["repeated"] / totals["shared"]
        bound = totals["repeated"] / (before["repeated"] / GROUP + decoding["repeated"])
        cells = [f"{before[name]:.2f}, {decoding[name]:.2f}" for name in seen]
        typer.echo(f"| {tokens} | {cells[0]} | {cells[1]} | {gain:.2f} | {bound:.2f} | {gain / bound:.0%} |")


def bench_decoding(model, processor, video: Path, folder: str, rounds: int) -> None:
    """Measures the time for a token in the three variants; stock Qwen2.5-VL starts from the same cache."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    names = ("text_config", "vision_config", "tie_word_embeddings", "video_token_id", "image_token_id")
    stock = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**{n: model.config.to_dict()[n] for n in names}))
    stock.load_state_dict(model.state_dict(), assign=True)
    stock.config._attn_implementation = model.config._attn_implementation
    trainers = {"latents": make_trainer(model, folder, processor)}
    trainers["text"] = make_trainer(model, folder, processor, latents=False)
    seen = {name: [] for name in ("latents", "text", "stock")}
    share = 0.0
    for _ in range(rounds):
        for name, trainer in trainers.items():
            seconds, rollout, inputs = run_rollout(trainer, make_rows(video, False))
            seen[name].append(seconds["decoding"] / LENGTH)
            if name == "latents":
                ids = torch.tensor(rollout["completion_ids"])
                share = float((ids == model.config.latent_token_id).float().mean())
        clock = now()
        stock.generation_config, start = trainers["text"].generation_config, clock()
        with torch.no_grad():
            stock.generate(**inputs)
        seen["stock"].append((clock() - start) / LENGTH)
    typer.echo(f"\nDecoding, CPU milliseconds a step of eight tokens ({share:.0%} latents), and against stock\n")
    typer.echo("| replies | ms | against stock |\n| --- | --- | --- |")
    base = median(seen["stock"])
    for name, runs in seen.items():
        typer.echo(f"| {name} | {1000 * median(runs):.1f} | {median(runs) / base:.3f} |")


def make_score(trainer, video: Path):
    """Two functions that run forward and backward of replies which begin with a mental image: `score(length,
    separate=False)` as the trainer does, and `score_with_all_logits(length)`."""
    import torch

    from fourdthinker_hf.batch_inference import encoder_outputs, prefill_prompts
    from fourdthinker_hf.training.grpo_trainer import PACKED_ATTENTION, SampledReply

    model, config = trainer.unwrapped_model, trainer.unwrapped_model.config
    rows, reply_to = make_rows(video, False), torch.zeros(GROUP, dtype=torch.long, device=model.device)
    inputs, (features,) = prefill_prompts(model, trainer.processing_class, rows[:1], reply_to)
    special = max(config.video_token_id, config.image_token_id, config.latent_end_id)
    draw = torch.Generator().manual_seed(0)
    replies = torch.randint(special + 1, config.text_config.vocab_size, (GROUP, LENGTH), generator=draw)
    block = [config.latent_start_id, *[config.latent_token_id] * config.latent_size, config.latent_end_id]
    replies[:, : len(block)] = torch.tensor(block)
    ids = torch.cat([inputs["input_ids"], replies.to(reply_to)], 1)
    grids, seconds = inputs["video_grid_thw"], inputs["second_per_grid_ts"]
    latents = torch.randn(config.latent_size, config.text_config.hidden_size).to(features)
    sampled = [SampledReply(0, features, grids[0], seconds[0], latents)] * GROUP

    def score(length: int, separate: bool = False) -> None:
        model.set_attn_implementation({"text_config": "sdpa" if separate else PACKED_ATTENTION})
        row = ids[:, : ids.shape[1] - LENGTH + length]
        logps, _ = trainer.replay_and_score(trainer.model, row, torch.ones_like(row), length, sampled)
        (-logps.mean()).backward()

    def score_with_all_logits(length: int) -> None:
        row = ids[:, : ids.shape[1] - LENGTH + length]
        logits = model(
            input_ids=row[:, :-1],
            logits_to_keep=length,
            use_cache=False,
            video_grid_thw=grids,
            latent_embeds=model.model.place_latents(row[:, :-1], latents.repeat(GROUP, 1)),
            mm_encoder_outputs=encoder_outputs([features] * GROUP),
            second_per_grid_ts=seconds,
        ).logits
        (-logits.log_softmax(-1).gather(-1, row[:, -length:, None]).mean()).backward()

    return score, score_with_all_logits


def bench_scoring(trainer, videos: dict[int, Path], rounds: int) -> None:
    typer.echo("\nScoring eight replies, forward and backward; CPU seconds\n")
    typer.echo("| video tokens | one prompt each | shared prompt | gain |\n| --- | --- | --- | --- |")
    clock = now()
    for tokens, video in videos.items():
        score, _ = make_score(trainer, video)
        seen = {True: [], False: []}
        for _ in range(rounds):
            for separate, runs in seen.items():
                start = clock()
                score(LENGTH, separate)
                runs.append(clock() - start)
                trainer.model.zero_grad()
        own, shared = median(seen[True]), median(seen[False])
        typer.echo(f"| {tokens} | {own:.2f} | {shared:.2f} | {own / shared:.2f} |")


def measure_memory(connection, quick: bool, vocabulary: int, all_logits: bool) -> None:
    """Sends the peak bytes of scoring, less parameters and gradients."""
    from fourdthinker_hf import FourDThinkerProcessor

    with tempfile.TemporaryDirectory() as folder:
        video = make_video(Path(folder) / "video.mp4", *VIDEOS[300])
        trainer = make_trainer(make_network(quick, vocabulary), folder, open_processor(FourDThinkerProcessor))
        step = make_score(trainer, video)[all_logits]
        step(8)  # loads libraries
        trainer.model.zero_grad()
        gc.collect()
        base = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        step(LENGTH)
        gradients = sum(p.grad.nbytes for p in trainer.model.parameters() if p.grad is not None)
        connection.send(status("VmHWM") - base - gradients)


def bench_memory(quick: bool) -> None:
    typer.echo("\nMemory of scoring less parameters and gradients, 300 video tokens, GB\n")
    typer.echo("| scoring | vocabulary 32,768 | vocabulary 151,936 | growth |\n| --- | --- | --- | --- |")
    context = multiprocessing.get_context("spawn")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # glibc gives larger blocks back when they are freed
    for name, all_logits in (("4DRL", False), ("all logits", True)):
        peaks = []
        for vocabulary in VOCABULARIES:
            here, there = context.Pipe()
            process = context.Process(target=measure_memory, args=(there, quick, vocabulary, all_logits))
            process.start()
            there.close()  # so that `recv` fails if the process ends
            peaks.append(here.recv())
            process.join()
        typer.echo(f"| {name} | {gigabytes(peaks[0])} | {gigabytes(peaks[1])} | {peaks[1] / peaks[0] - 1:+.0%} |")
    del os.environ["MALLOC_MMAP_THRESHOLD_"]


def bench_finished(folder: str) -> None:
    """Measures how many steps go to replies that have ended, with the bundled checkpoint on the example video."""
    import torch

    from fourdthinker_hf import FourDThinkerForConditionalGeneration, FourDThinkerProcessor

    processor = FourDThinkerProcessor.from_pretrained(TINY)
    trainer = make_trainer(FourDThinkerForConditionalGeneration.from_pretrained(TINY), folder, processor)
    trainer.generation_config.sequence_bias = None
    row = {
        "id": "0",
        "question": "In which direction does the ball move?",
        "options": ["left", "right"],
        "answer": "left",
        "frames": None,
        "timestamps": None,
        "where": "here",
        "index": 0,
        "video": str(ROOT / "examples/real.mp4"),
    }
    trainer._rows = [row] * GROUP
    torch.manual_seed(0)
    lengths = [len(ids) for ids in trainer.rollout([""] * GROUP, trainer)["completion_ids"]]
    idle = 1 - sum(lengths) / (max(lengths) * GROUP)
    typer.echo(
        f"\nSteps of replies that had ended, bundled checkpoint: {idle:.0%} (lengths {min(lengths)} to {max(lengths)})"
    )


def open_processor(kind):
    processor = kind.from_pretrained(TINY, fps=8.0, max_frames=64)
    processor.video_processor.size = {"shortest_edge": 28 * 28, "longest_edge": 448 * 448}
    return processor


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Number of runs of each variant; their median is reported.")] = 3,
    quick: Annotated[bool, typer.Option(help="Use a smaller network, to check that the benchmark runs.")] = False,
    part: Annotated[
        list[str] | None, typer.Option(help="rollout, decoding, scoring, memory or finished; all by default.")
    ] = None,
) -> None:
    import torch

    from fourdthinker_hf import FourDThinkerProcessor

    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "trl"))
    typer.echo(
        f"commit {commit.stdout.strip()}, {os.cpu_count()} CPU cores ({platform.machine()}), "
        f"{torch.get_num_threads()} thread(s), {versions}; medians of {rounds}"
    )
    processor = open_processor(FourDThinkerProcessor)
    with tempfile.TemporaryDirectory() as folder:
        videos = {n: make_video(Path(folder) / f"{n}.mp4", *shape) for n, shape in VIDEOS.items()}
        model = make_network(quick)
        trainer = make_trainer(model, folder, processor)
        parts = {
            "rollout": lambda: bench_rollout(trainer, videos, rounds),
            "decoding": lambda: bench_decoding(make_network(quick), processor, videos[1000], folder, rounds),
            "scoring": lambda: bench_scoring(trainer, videos, rounds),
            "memory": lambda: bench_memory(quick),
            "finished": lambda: bench_finished(folder),
        }
        for name in part or parts:
            parts[name]()


if __name__ == "__main__":
    typer.run(main)
