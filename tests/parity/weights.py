"""The checkpoint that `reference.safetensors` was measured on: a random miniature in the published layout.

Each tensor comes from numpy's PCG64, seeded by its name, so the weights depend on no version of torch or transformers.
"""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from fourdthinker_hf import FourDThinkerConfig, FourDThinkerForConditionalGeneration

SEED = 20260


def draw(name: str, shape: torch.Size) -> torch.Tensor:
    random = np.random.Generator(np.random.PCG64([SEED, zlib.crc32(name.encode())]))
    values = random.standard_normal(tuple(shape), np.float32)
    if name.endswith(".bias"):
        return torch.from_numpy(values * np.float32(0.1))
    if len(shape) == 1:  # a norm
        return torch.from_numpy(np.float32(1) + np.float32(0.1) * values)
    vocabulary = name in ("model.embed_tokens.weight", "lm_head.weight")
    gain = 4 if vocabulary else 1  # logits of standard deviation 4, so that greedy choices have margins
    return torch.from_numpy(values * np.float32(gain / np.sqrt(np.prod(shape[1:]))))


def write(folder: Path, tied: bool = True) -> Path:
    """Write it into `folder` (39 MB, untied 78 MB): flat config.json; keys `visual.*`, `model.*` and `lm_head.*`."""
    for path in Path(__file__).parent.glob("*config.json"):
        shutil.copy(path, folder)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "fourdthinker", "tie_word_embeddings": tied}  # it has the settings that convert adds
    (folder / "config.json").write_text(json.dumps(settings))
    with torch.device("meta"):
        shapes = FourDThinkerForConditionalGeneration(FourDThinkerConfig.from_pretrained(folder)).state_dict()
    weights = {}
    for name, parameter in shapes.items():
        if not (tied and name == "lm_head.weight"):
            name = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
            weights[name] = draw(name, parameter.shape)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
