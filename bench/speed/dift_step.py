"""Measures the time and memory of a DIFT step, with and without cached features, and of a step of stock Qwen2.5-VL
under TRL's SFTTrainer.

    python bench/speed/dift_step.py                # half an hour on one CPU core, 8 GB
    python bench/speed/dift_step.py --quick        # a smaller network and few steps, to check that the benchmark runs

The network has 108 M random parameters (hidden size 512, 8 layers, vocabulary 151,936, vision tower of 8 blocks). By
default a row holds 1,000 video tokens of 16 frames and 200 tokens of text. DIFT also encodes 2 target frames, whose 8
latents and 4 start and end tokens count among the 200. The tower is frozen in all variants. A step is forward,
backward, clipping and AdamW, as the trainers run them. Without CUDA, TRL scores every position; the variant `labelled`
is stock Qwen2.5-VL with only the labelled positions scored, as TRL does on CUDA. Each variant has its own process. The
variants take turns, step by step, and the medians of CPU seconds (on CUDA: wall seconds) are reported, because a
machine is rarely idle. Memory is the peak of the resident set in a step, less what the imports take, in processes that
give freed memory back at once; the estimate of `fourdthinker memory` is shown beside it.

With CUDA the benchmark instead runs a random network of Qwen2.5-VL-3B's shape in bf16. It reports tokens a second,
peak memory, and the share of the device's peak (MFU), from TRL's count of operations plus the frozen tower's forward.
"""

import gc
import importlib.metadata
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
TINY = ROOT / "checkpoints/4dthinker-tiny"
STOCK = ("stock", "labelled")
VARIANTS = (*STOCK, "dift", "cached")


@dataclass(frozen=True)
class BatchShape:
    """The size of a batch. Frames of the video and target frames have `height` x `width` pixels; the last
    `labelled_tokens` of the text are the assistant's. All numbers but `batch_size` are for one row."""

    batch_size: int = 1
    num_frames: int = 16
    height: int = 140
    width: int = 700
    num_targets: int = 2
    text_tokens: int = 200
    labelled_tokens: int = 100

    @property
    def frame_tokens(self) -> int:
        return self.height // 28 * (self.width // 28)

    @property
    def video_tokens(self) -> int:
        return self.num_frames // 2 * self.frame_tokens


def make_config(quick: bool):
    """The config of a Qwen2.5-VL of 108 M parameters; with `quick`, of 6 M."""
    from fourdthinker_hf import FourDThinkerConfig

    text = {
        "vocab_size": 151_936,
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
    }
    vision = {
        "depth": 8,
        "hidden_size": 256,
        "intermediate_size": 684,
        "num_heads": 8,
        "out_hidden_size": 512,
        "window_size": 112,
        "fullatt_block_indexes": [3, 7],
    }
    if quick:
        text |= {"vocab_size": 151_936 // 8, "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4}
        vision |= {
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 172,
            "out_hidden_size": 128,
            "fullatt_block_indexes": [1],
        }
    section = text["hidden_size"] // text["num_attention_heads"] // 8
    last = text["vocab_size"] - 1
    return FourDThinkerConfig(
        text_config={
            **text,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [section, section * 3 // 2, section * 3 // 2],
            },
        },
        vision_config={**vision, "tokens_per_second": 2},
        tie_word_embeddings=True,
        video_token_id=last,
        image_token_id=last - 1,
        vision_start_token_id=last - 2,
        vision_end_token_id=last - 3,
        latent_token_id=last - 4,
        latent_start_id=last - 5,
        latent_end_id=last - 6,
        dtype="float32",
    )


def make_batch(config, shape: BatchShape, variant: str, visual) -> dict:
    """Random pixels and text. The variants `stock` and `labelled` have no target frames, `cached` has features in
    place of pixels."""
    import torch
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    draw = torch.Generator().manual_seed(0)
    text = torch.randint(0, 1000, (shape.batch_size, shape.text_tokens - 2), generator=draw)
    video = torch.full((shape.batch_size, shape.video_tokens), config.video_token_id)
    start, end = (
        torch.full((shape.batch_size, 1), token)
        for token in (config.vision_start_token_id, config.vision_end_token_id)
    )
    input_ids = torch.cat([start, video, end, text], 1)
    if variant not in STOCK:
        size = config.latent_size
        block = [config.latent_start_id, *[config.latent_token_id] * size, config.latent_end_id]
        for number in range(shape.num_targets):
            first = input_ids.shape[1] - shape.labelled_tokens + number * (size + 2)
            input_ids[:, first : first + size + 2] = torch.tensor(block)
    labels = input_ids.masked_fill(input_ids == config.latent_token_id, -100)
    labels[:, : -shape.labelled_tokens] = -100
    kinds = 2 * (input_ids == config.video_token_id).long()
    batch = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": labels,
        "mm_token_type_ids": kinds,
        "second_per_grid_ts": torch.ones(shape.batch_size),
    }

    def pixels(frames: int, rows: int):
        grid = torch.tensor([frames, shape.height // 14, shape.width // 14]).repeat(rows, 1)
        return torch.rand(int(grid.prod(1).sum()), 3 * 2 * 14 * 14, generator=draw), grid

    clips, clip_grids = pixels(shape.num_frames // 2, shape.batch_size)
    frames, frame_grids = pixels(1, shape.batch_size * shape.num_targets)
    batch["video_grid_thw"] = clip_grids
    with_targets = variant not in STOCK and shape.num_targets > 0
    if with_targets:
        batch["image_grid_thw_latent"] = frame_grids
    if variant == "cached":

        def encode(values, grids):
            with torch.no_grad():
                features = visual(values.to(visual.device, visual.dtype), grid_thw=grids.to(visual.device))
            sizes = (grids.prod(1) // 4).tolist()
            return BaseModelOutputWithPooling(pooler_output=list(features.pooler_output.split(sizes)))

        batch["mm_encoder_outputs"] = {"video": encode(clips, clip_grids)}
        if with_targets:
            batch["mm_encoder_outputs"]["latent"] = encode(frames, frame_grids)
    else:
        batch["pixel_values_videos"] = clips
        if with_targets:
            batch["pixel_values_latent"] = frames
    return batch


def make_trainer(config, variant: str, folder: str, **settings):
    """DIFTTrainer, or TRL's SFTTrainer: for `stock` and `labelled` on stock Qwen2.5-VL, for `trl` on 4DThinker."""
    import torch
    import torch.nn.functional as F
    from datasets import Dataset
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from trl import SFTConfig, SFTTrainer

    from fourdthinker_hf import FourDThinkerForConditionalGeneration, FourDThinkerProcessor
    from fourdthinker_hf.training import DIFTConfig, DIFTTrainer

    class LabelledSFTTrainer(SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            num_labels = int((labels[0] != -100).sum())  # at the end of every row
            logits = model(**inputs, logits_to_keep=num_labels + 1, use_cache=False).logits[:, :-1]
            return F.cross_entropy(logits.flatten(0, 1).float(), labels[:, -num_labels:].flatten())

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if settings.get("bf16") else torch.float32)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        if variant in STOCK:
            names = (
                "text_config",
                "vision_config",
                "tie_word_embeddings",
                "video_token_id",
                "image_token_id",
                "vision_start_token_id",
                "vision_end_token_id",
            )
            model = Qwen2_5_VLForConditionalGeneration(
                Qwen2_5_VLConfig(**{name: config.to_dict()[name] for name in names})
            )
        else:
            model = FourDThinkerForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.model.visual.requires_grad_(False)
    peft_config = lora() if settings.pop("use_lora", False) else None
    is_dift = variant not in (*STOCK, "trl")
    args = (DIFTConfig if is_dift else SFTConfig)(
        folder,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        max_length=None,
        learning_rate=1e-6,
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        **{"bf16": False, "gradient_checkpointing": False, **settings},
    )
    trainer = (DIFTTrainer if is_dift else LabelledSFTTrainer if variant == "labelled" else SFTTrainer)(
        model=model,
        args=args,
        train_dataset=Dataset.from_list([{"row": 0}]),
        data_collator=lambda rows: rows,
        processing_class=FourDThinkerProcessor.from_pretrained(TINY),
        peft_config=peft_config,
    )
    trainer.create_optimizer()
    if args.gradient_checkpointing:  # `train` would do it
        trainer.model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
    return trainer


def status(name: str) -> int:
    """Bytes of an entry of /proc/self/status: VmRSS, resident now, or VmHWM, the most since the last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def work(connection, quick: bool, variant: str, settings: dict, head_only: bool) -> None:
    """The process of one variant: for each shape it receives, it runs a step and sends seconds, peak bytes, loss."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    config = make_3b() if settings.get("bf16") else make_config(quick)
    with tempfile.TemporaryDirectory() as folder:
        small = make_config(True)
        first = BatchShape(num_targets=0) if head_only else BatchShape()
        step(make_trainer(small, variant, folder, **settings), small, first, variant, head_only)  # loads libraries
        gc.collect()
        base = 0 if torch.cuda.is_available() else status("VmRSS")
        trainer = make_trainer(config, variant, folder, **settings)
        for shape in iter(connection.recv, None):
            seconds, peak, loss = step(trainer, config, shape, variant, head_only)
            connection.send((seconds, peak - base, loss))


def step(trainer, config, shape: BatchShape, variant: str, head_only: bool) -> tuple[float, int, float]:
    """Seconds, peak bytes and loss of one step; with `head_only`, of forward and backward of the head alone."""
    import torch

    cuda = torch.cuda.is_available()
    model = trainer.model
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if head_only:
        batch = make_batch(config, shape, variant, None)
        use_fixed_states(model, batch, config)
    else:
        batch = make_batch(config, shape, variant, base.model.visual)
    batch = trainer._prepare_inputs(batch)
    gc.collect()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    samples, num_items = trainer.get_batch_samples(iter([batch]), 1, batch["input_ids"].device)
    trainer.current_gradient_accumulation_steps = 1
    model.train()
    loss = trainer.training_step(model, samples[0], num_items)
    if not head_only:
        trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
    model.zero_grad()
    if cuda:
        torch.cuda.synchronize()
    seconds = clock() - start
    return seconds, torch.cuda.max_memory_allocated() if cuda else status("VmHWM"), loss.item()


def use_fixed_states(model, batch: dict, config) -> None:
    """Puts random hidden states in place of the layers, so that a step runs only the head."""
    import torch

    from fourdthinker_hf.modeling_fourdthinker import FourDThinkerModelOutput

    class FixedStates(torch.nn.Module):
        def __init__(self, size, embeddings):
            super().__init__()
            self.states = torch.nn.Parameter(torch.randn(size, generator=torch.Generator().manual_seed(1)))
            self.embeddings = embeddings

        def get_input_embeddings(self):
            return self.embeddings

        def forward(self, **kwargs):
            return FourDThinkerModelOutput(last_hidden_state=self.states)

    size = (*batch["input_ids"].shape, config.text_config.hidden_size)
    model.model = FixedStates(size, model.get_input_embeddings())


class Worker:
    """A variant in its own process. With `lean` it gives freed memory back at once: exact peaks, slower steps."""

    def __init__(self, quick, variant, lean=False, head_only=False, **settings):
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        if lean:  # glibc gives larger blocks back when they are freed
            os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
        self.process = context.Process(target=work, args=(other, quick, variant, settings, head_only), daemon=True)
        self.process.start()
        os.environ.pop("MALLOC_MMAP_THRESHOLD_", None)
        other.close()

    def step(self, shape: BatchShape) -> tuple[float, int, float]:
        self.connection.send(shape)
        return self.connection.recv()

    def stop(self) -> None:
        self.connection.send(None)
        self.process.join()


def take_turns(workers: dict[str, Worker], shape: BatchShape, rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds of each, and the last loss; one step each goes before, to warm up."""
    seen = {name: [] for name in workers}
    for turn in range(rounds + 1):
        for name, worker in workers.items():
            result = worker.step(shape)
            if turn:
                seen[name].append(result)
    return {name: (median(step[0] for step in steps), steps[-1][2]) for name, steps in seen.items()}


def peaks(quick: bool, variants, shapes, **settings) -> dict[str, list[int]]:
    """Peak bytes of a second step at each shape."""
    found = {}
    for variant in variants:
        worker = Worker(quick, variant, lean=True, **settings)
        worker.step(shapes[0])  # makes the optimizer's states
        found[variant] = [worker.step(shape)[1] for shape in shapes]
        worker.stop()
    return found


def estimate_bytes(config, shape: BatchShape, peft_config=None, **settings) -> int:
    """Bytes that `fourdthinker memory` estimates."""
    from fourdthinker_hf.training import memory_estimate

    setup = memory_estimate.TrainingSetup(shape.batch_size, peft_config=peft_config, **settings)
    row = memory_estimate.RowShape(
        shape.num_frames, shape.height * shape.width, shape.num_targets, shape.text_tokens, shape.labelled_tokens
    )
    return memory_estimate.estimate(config, setup, row)[-1][1]


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}"


def bench_steps(quick: bool, rounds: int) -> None:
    seconds, memory = measure(quick, VARIANTS, [BatchShape()], rounds)
    typer.echo(f"\nA step at {asdict(BatchShape())}\n")
    typer.echo("| variant | CPU s | against stock | against labelled | peak GB |")
    typer.echo("| --- " * 5 + "|")
    stock, labelled = (seconds[0][variant] for variant in STOCK)
    for variant in VARIANTS:
        own = seconds[0][variant]
        typer.echo(
            f"| {variant} | {own:.2f} | {own / stock:.2f} | {own / labelled:.2f} | {gigabytes(memory[variant][0])} |"
        )
    typer.echo("\nLimits against stock: dift 1.15, cached 0.90.")


def bench_growth(quick: bool, rounds: int) -> None:
    stated, variants = BatchShape(), VARIANTS[1:]
    shapes = [
        stated,
        replace(stated, text_tokens=800, labelled_tokens=400),
        replace(stated, num_frames=32),
        replace(stated, num_targets=6),
        replace(stated, batch_size=2),
    ]
    seconds, memory = measure(quick, variants, shapes, max(1, rounds // 3))
    typer.echo("\nHow a step grows: CPU seconds (against labelled), peak GB\n")
    typer.echo(f"| batch | video + text tokens | target frames | {' | '.join(variants)} |")
    typer.echo("| --- " * 6 + "|")
    for number, shape in enumerate(shapes):
        row = seconds[number]
        cells = [f"{row[v]:.2f} ({row[v] / row['labelled']:.2f}), {gigabytes(memory[v][number])}" for v in variants]
        typer.echo(
            f"| {shape.batch_size} | {shape.video_tokens:,} + {shape.text_tokens} | {shape.num_targets} | "
            f"{' | '.join(cells)} |"
        )


def measure(quick: bool, variants, shapes, rounds: int):
    """For each shape the median seconds of each variant, and for each variant the peak bytes at each shape."""
    workers = {variant: Worker(quick, variant) for variant in variants}
    seconds = [{name: row[0] for name, row in take_turns(workers, shape, rounds).items()} for shape in shapes]
    for worker in workers.values():
        worker.stop()
    return seconds, peaks(quick, variants, shapes)


def bench_head(quick: bool, rounds: int) -> None:
    shape = BatchShape(
        num_frames=58, text_tokens=375, labelled_tokens=300, num_targets=0
    )  # 3,625 video tokens and 375 of text
    typer.echo(
        f"\nThe head: {shape.video_tokens + shape.text_tokens:,} tokens, {shape.labelled_tokens} with a label\n"
    )
    typer.echo("| part | TRL's default: CPU s | DIFT: CPU s | ratio | TRL GB | DIFT GB | losses |")
    typer.echo("| --- " * 7 + "|")
    for part, head_only in (("head alone", True), ("whole step", False)):
        workers = {v: Worker(quick, v, head_only=head_only, **s) for v, s in HEADS.items()}
        row = take_turns(workers, shape, rounds if head_only else max(1, rounds // 3))
        for worker in workers.values():
            worker.stop()
        memory = {v: peaks(quick, [v], [shape], head_only=head_only, **s)[v][0] for v, s in HEADS.items()}
        typer.echo(
            f"| {part} | {row['trl'][0]:.2f} | {row['dift'][0]:.2f} | {row['dift'][0] / row['trl'][0]:.2f} | "
            f"{gigabytes(memory['trl'])} | {gigabytes(memory['dift'])} | "
            f"{row['trl'][1]:.6f}, {row['dift'][1]:.6f} |"
        )


HEADS = {"trl": {}, "dift": {"ce_weight": 1.0}}


def lora():
    """Adapters on the layers that train/sft.py adapts. The trainer and the estimate add the rows of latent tokens."""
    from peft import LoraConfig

    from fourdthinker_hf.training.lora import LORA_TARGETS

    return LoraConfig(target_modules=LORA_TARGETS)


def bench_memory(quick: bool) -> None:
    """Compares the estimate of `fourdthinker memory` with measured steps."""
    shape = BatchShape()
    config = make_config(quick)
    typer.echo("\nEstimated by `fourdthinker memory` and measured, GB\n\n| run | estimated | measured | difference |")
    typer.echo("| --- " * 4 + "|")
    for name, checkpointing, use_lora in (
        ("full", False, False),
        ("full, gradient checkpointing", True, False),
        ("LoRA", False, True),
    ):
        peft_config = lora() if use_lora else None
        estimated = estimate_bytes(config, shape, peft_config, gradient_checkpointing=checkpointing)
        measured = peaks(quick, ["dift"], [shape], gradient_checkpointing=checkpointing, use_lora=use_lora)["dift"][0]
        typer.echo(f"| {name} | {gigabytes(estimated)} | {gigabytes(measured)} | {estimated / measured - 1:+.1%} |")


def bench_rows() -> None:
    """Measures how long the collator takes for a row: opened from its video, or read from the feature store."""
    from PIL import Image

    from fourdthinker_hf import FourDThinkerForConditionalGeneration, FourDThinkerProcessor
    from fourdthinker_hf.data.records import Record
    from fourdthinker_hf.training import DIFTCollator
    from fourdthinker_hf.training.feature_store import CachedCollator, FeatureStore

    processor = FourDThinkerProcessor.from_pretrained(TINY)
    model = FourDThinkerForConditionalGeneration.from_pretrained(TINY)
    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder) / "frame.png"
        Image.effect_noise((448, 448), 60).convert("RGB").save(frame)
        record = Record(
            "",
            "How?",
            "a",
            options=["a", "b"],
            reasoning="<output_image> <output_image>",
            imagery=[str(frame)] * 2,
            video=str(ROOT / "examples/real.mp4"),
        )
        store = FeatureStore(folder, processor, model)
        store.fill(model, processor, [record])
        collators = {"opened": DIFTCollator(processor), "read": CachedCollator(processor, store=store)}
        seconds = {name: [] for name in collators}
        for _ in range(20):
            for name, collator in collators.items():
                start = time.process_time()
                collator([vars(record)])
                seconds[name].append(time.process_time() - start)
    opened, read = (1000 * median(seconds[name]) for name in ("opened", "read"))
    typer.echo(
        f"\nA batch of one row (examples/real.mp4, 2 target frames): opened {opened:.0f} ms, read {read:.1f} ms"
    )


def make_3b():
    """The config of Qwen2.5-VL-3B with the published latent tokens."""
    from convert import LATENTS, flat_config

    from fourdthinker_hf import FourDThinkerConfig

    flat = flat_config("3b", published=False)
    return FourDThinkerConfig(
        **{name: value for name, value in flat.items() if name != "model_type"},
        **{name: LATENTS[name] for name in list(LATENTS)[:5]},
    )


def bench_cuda(rounds: int) -> None:
    """Runs 3B in bf16 with gradient checkpointing on a CUDA device."""
    import torch
    from trl.trainer.utils import compute_flops_per_token, get_peak_flops

    shape = BatchShape(num_frames=32, height=448, width=448, text_tokens=1000, labelled_tokens=500)
    config = make_3b()
    text, vision = config.text_config, config.vision_config
    tokens = shape.video_tokens + shape.text_tokens
    layer = 4 * vision.hidden_size**2 + 3 * vision.hidden_size * vision.intermediate_size
    device = torch.cuda.get_device_name()
    peak_flops = get_peak_flops(device, "bf16") or get_peak_flops(device, "bfloat16")
    typer.echo(f"\n3B in bf16 on {device}, {tokens:,} tokens, gradient checkpointing\n")
    typer.echo("| variant | tokens/s | peak GB | MFU |\n| --- | --- | --- | --- |")
    for variant in VARIANTS:  # one at a time: two do not fit on one device
        worker = Worker(False, variant, bf16=True, gradient_checkpointing=True)
        steps = [worker.step(shape) for _ in range(rounds + 1)][1:]
        worker.stop()
        seconds = median(step[0] for step in steps)
        images = 0 if variant in STOCK else shape.num_targets
        patches = 0 if variant == "cached" else 4 * (shape.video_tokens + images * shape.frame_tokens)
        flops = tokens * compute_flops_per_token(text, tokens) + 2 * patches * vision.depth * layer
        share = "unknown" if peak_flops is None else f"{flops / seconds / peak_flops:.1%}"
        typer.echo(f"| {variant} | {tokens / seconds:,.0f} | {gigabytes(max(s[1] for s in steps))} | {share} |")


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Number of measured steps of each variant.")] = 9,
    quick: Annotated[bool, typer.Option(help="Use a smaller network, to check that the benchmark runs.")] = False,
    part: Annotated[
        list[str] | None, typer.Option(help="steps, growth, head, memory or rows; all by default.")
    ] = None,
) -> None:
    import torch

    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    names = ("torch", "transformers", "trl")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    typer.echo(
        f"commit {commit.stdout.strip()}, {os.cpu_count()} CPU cores ({platform.machine()}), "
        f"{torch.get_num_threads()} thread(s), {versions}; medians of {rounds}, {asdict(BatchShape())}"
    )
    parts = {
        "steps": lambda: bench_steps(quick, rounds),
        "growth": lambda: bench_growth(quick, rounds),
        "head": lambda: bench_head(quick, rounds),
        "memory": lambda: bench_memory(quick),
        "rows": bench_rows,
    }
    if torch.cuda.is_available():
        parts = {"cuda": lambda: bench_cuda(rounds)}
    for name in part or parts:
        parts[name]()


if __name__ == "__main__":
    typer.run(main)
