"""Measure time and peak memory of `fourdthinker convert` on random checkpoints with the shape of Qwen2.5-VL-3B.

    python bench/speed/convert.py                  # writes 15 GB twice and deletes it: three to four minutes
    python bench/speed/convert.py --scale small    # the same in a minute, to see that it works

It converts a published 4DThinker (vocabulary 151,668), of which all files are copied, and a base (vocabulary padded to
151,936, no latent tokens), of which the file with the embedding table is written anew. Both sources are laid out as on
the Hub: flat config.json, tensors `visual.*` and `model.*`, bfloat16, tied, files of at most 2 GB. The tokenizer is
made up: 256 bytes, names that only fill the ids up to 151,642, then the real special tokens in their order. The
conversion runs in a process of its own. Its peak resident memory (ru_maxrss, which counts mapped files) is printed
beside that of a process that only imports. Exits with 1 if the result does not load whole, or at full scale if the
peak is not below twice the largest file plus the table."""

import importlib.metadata
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

SHARD = 2e9  # bytes
SPECIAL_TOKENS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> "
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>"
).split()
LATENT_TOKENS = ["<|latent_pad|>", "<|latent_start|>", "<|latent_end|>"]
NUM_WORDS = 151_643
LATENTS = {
    "latent_size": 4,
    "latent_token_id": 151665,
    "latent_start_id": 151666,
    "latent_end_id": 151667,
    "compress_strategy": "average",
    "stage": "stage1",
    "ce_loss_weight": 0.1,
    "sim_loss_weight": 1.0,
}
SHAPES = {
    "3b": (
        {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16},
        {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "window_size": 112,
            "out_hidden_size": 2048,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        [16, 24, 24],
    ),
    "small": (
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "window_size": 56,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
        [2, 3, 3],
    ),
}


def flat_config(scale: str, published: bool) -> dict:
    text, vision, sections = SHAPES[scale]
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_act": "silu",
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "use_cache": True,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": sections},
        "sliding_window": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 151_668 if published else 151_936,
        "vision_config": {"model_type": "qwen2_5_vl", "tokens_per_second": 2, **vision},
        **text,
        **(LATENTS if published else {}),
    }


def write_source(folder: Path, scale: str, published: bool) -> None:
    folder.mkdir()
    config = flat_config(scale, published)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    write_tokenizer(folder, published)
    write_weights(folder, config)


def write_tokenizer(folder: Path, published: bool) -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    words = ByteLevel.alphabet()
    words += [f"<word {i}>" for i in range(len(words), NUM_WORDS)]
    tokens = SPECIAL_TOKENS + (LATENT_TOKENS if published else [])
    added = {str(NUM_WORDS + i): {"content": token, "special": True} for i, token in enumerate(tokens)}
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": added,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
    }
    pixels = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056}
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))


def write_weights(folder: Path, config: dict) -> None:
    """Write random weights, with one file in memory at a time."""
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))
    groups, size = [[]], 0
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        old_name = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        size += 2 * tensor.numel()
        if size > SHARD:
            groups.append([])
            size = 2 * tensor.numel()
        groups[-1].append((old_name, tensor.shape))
    index = {"metadata": {"total_size": 0}, "weight_map": {}}
    for number, group in enumerate(groups, start=1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        tensors = {name: torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02) for name, shape in group}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index["weight_map"] |= dict.fromkeys(tensors, file)
        index["metadata"]["total_size"] += sum(tensor.nbytes for tensor in tensors.values())
        del tensors
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def load_whole(folder: Path) -> None:
    from fourdthinker_hf import FourDThinkerForConditionalGeneration

    _, info = FourDThinkerForConditionalGeneration.from_pretrained(folder, dtype="auto", output_loading_info=True)
    if any(info.values()):
        raise SystemExit(f"The converted checkpoint does not load whole: {info}")


def in_process(function, *arguments) -> None:
    """Run a function in another process, because a process inherits the peak memory of the one that starts it."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(1)


def measure(program: str, *arguments) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak resident bytes of a Python program in a process of its own."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(1)
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def bench(folder: Path, scale: str, published: bool) -> bool:
    source, dest = folder / "source", folder / "dest"
    in_process(write_source, source, scale, published)
    _, _, imports = measure("import fourdthinker_hf.hub.convert")
    seconds, cpu, peak = measure("from fourdthinker_hf.cli import app; app()", "convert", source, dest)
    in_process(load_whole, dest)
    sizes = [path.stat().st_size for path in sorted(source.glob("*.safetensors"))]
    config = json.loads((source / "config.json").read_text())
    table = 2 * config["vocab_size"] * config["hidden_size"]
    limit = 2 * max(sizes) + table
    typer.echo(
        f"{'published 4DThinker' if published else 'base'}, {scale}, vocabulary {config['vocab_size']:,}\n"
        f"  source       {gigabytes(*sizes)} GB in {len(sizes)} files\n"
        f"  time         {seconds:.1f} s (CPU {cpu:.1f} s)\n"
        f"  peak memory  {gigabytes(peak)} GB, of which the imports are {gigabytes(imports)}\n"
        f"  limit        {gigabytes(limit)} GB: twice the largest file, {gigabytes(max(sizes))}, and the table, "
        f"{gigabytes(table)}"
    )
    return scale == "small" or peak < limit  # at the small scale the imports alone take more


def gigabytes(*sizes: float) -> str:
    return " + ".join(f"{size / 1e9:.2f}" for size in sizes)


def main(
    scale: Annotated[str, typer.Option(help="3b or small.")] = "3b",
    folder: Annotated[Path | None, typer.Option(help="Folder to write to. By default it is a temporary one.")] = None,
) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers"))
    typer.echo(f"commit {commit}, {os.cpu_count()} CPU cores ({platform.machine()}), {versions}")
    fits = []
    for published in (True, False):
        with tempfile.TemporaryDirectory(prefix="convert-", dir=folder) as scratch:
            fits.append(bench(Path(scratch), scale, published))
    raise SystemExit(not all(fits))


if __name__ == "__main__":
    typer.run(main)
