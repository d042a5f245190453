"""Measure time and peak memory of `fourdthinker merge` on a random adapter of a random checkpoint with the shape of
4DThinker-3B, laid out as published.

    python bench/speed/merge.py                  # writes 15 GB and deletes it
    python bench/speed/merge.py --scale small    # the same in a minute, to see that it works

The adapter is of rank 16 on all linear layers of the language model, with the rows of the three latent tokens. The
peak is that of the command's process (ru_maxrss, which counts mapped files). Exits with 1 if it is above one and a
half times the weights, at full scale."""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from convert import load_whole, write_source


def write_adapter(folder: Path, base: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from safetensors.torch import save_file

    from fourdthinker_hf import FourDThinkerForConditionalGeneration
    from fourdthinker_hf.checkpoints import load_config
    from fourdthinker_hf.training.lora import LORA_TARGETS, latent_rows

    with torch.device("meta"):
        model = FourDThinkerForConditionalGeneration(load_config(base)).bfloat16()
        rows = latent_rows(model.config)
        settings = LoraConfig(r=16, target_modules=LORA_TARGETS, trainable_token_indices=rows)
        shapes = {
            name: tensor.shape for name, tensor in get_peft_model_state_dict(get_peft_model(model, settings)).items()
        }
    folder.mkdir()
    tensors = {name: torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02) for name, shape in shapes.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings.base_model_name_or_path = str(base)
    settings.save_pretrained(folder)


def main(scale: Annotated[str, typer.Option(help="3b or small.")] = "3b") -> None:
    with tempfile.TemporaryDirectory() as scratch:
        base, adapter, merged = (Path(scratch) / name for name in ("base", "adapter", "merged"))
        write_source(base, scale, published=True)
        write_adapter(adapter, base)
        weights = sum(path.stat().st_size for path in base.glob("*.safetensors"))
        start = time.perf_counter()
        command = [sys.executable, "-c", "from fourdthinker_hf.cli import app; app()", "merge", adapter, merged]
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        print(f"{scale}: weights {weights / 1e9:.2f} GB, {seconds:.0f} s, peak {peak / 1e9:.2f} GB")
        load_whole(merged)
        sys.exit(scale != "small" and peak > 1.5 * weights)


if __name__ == "__main__":
    typer.run(main)
