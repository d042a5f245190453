"""Writes small checkpoints as they are on the Hub: a Qwen2.5-VL base, or a published 4DThinker."""

import json
from pathlib import Path

import init_model
import pytest
import torch
from conftest import TEXTS
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from fourdthinker_hf import FourDThinkerForConditionalGeneration

LATENTS = ["<|latent_pad|>", "<|latent_start|>", "<|latent_end|>"]
EMBED, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
HIDDEN = 32
# The flat config.json of the Qwen2.5-VL repositories, which the published checkpoints have too.
CONFIG = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "torch_dtype": "bfloat16",
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
    "hidden_act": "silu",
    "bos_token_id": None,
    "vision_config": {
        "model_type": "qwen2_5_vl",
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": HIDDEN,
        "window_size": 112,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    },
}
PUBLISHED = {
    "latent_size": 4,
    "compress_strategy": "average",
    "stage": "stage2",
    "ce_loss_weight": 0.1,
    "sim_loss_weight": 1.0,
}
PIXELS = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
    "min_pixels": 3136,
    "max_pixels": 12845056,
}


def small_tokenizer(latents: bool):
    with pytest.MonkeyPatch.context() as patch:
        kept = [token for token in init_model.SPECIAL_TOKENS if latents or token not in LATENTS]
        patch.setattr(init_model, "SPECIAL_TOKENS", kept)
        return init_model.make_tokenizer(TEXTS, 400)


def old_name(name: str) -> str:
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def random_tensors(config: Qwen2_5_VLConfig, num_trained: int) -> dict[str, torch.Tensor]:
    """The tensors of a base. The rows that pad its tables are far from the trained ones."""
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in Qwen2_5_VLForConditionalGeneration(config).state_dict().items()}
    draw = torch.Generator().manual_seed(1)
    tensors = {}
    for name, shape in shapes.items():
        tensors[name] = torch.randn(shape, generator=draw) * 0.1 + ("norm" in name or "ln_q" in name)
        if name in (EMBED, HEAD):
            tensors[name] = tensors[name] * 5 + 0.2
            tensors[name][num_trained:] = 50
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


def write_source(
    folder: Path, latents=False, tied=True, old=False, files=1, padding=0, head=None, tokenizer=None, **settings
) -> Path:
    """Write a checkpoint as it is on the Hub. With `head` a tied one also stores a head: the "same" or an "other"."""
    tokenizer = tokenizer or small_tokenizer(latents)
    token = tokenizer.convert_tokens_to_ids
    raw = (
        CONFIG
        | {
            "vocab_size": len(tokenizer) + padding,
            "tie_word_embeddings": tied,
            "image_token_id": token("<|image_pad|>"),
            "video_token_id": token("<|video_pad|>"),
            "vision_start_token_id": token("<|vision_start|>"),
            "vision_end_token_id": token("<|vision_end|>"),
            "eos_token_id": tokenizer.eos_token_id,
        }
        | settings
    )
    if latents:
        ids = zip(("latent_token_id", "latent_start_id", "latent_end_id"), token(LATENTS), strict=True)
        raw = raw | PUBLISHED | dict(ids)
    config = Qwen2_5_VLConfig(**raw)
    tensors = random_tensors(config, len(tokenizer))
    if tied:
        stored = tensors.pop(HEAD)
        if head is not None:
            tensors[HEAD] = tensors[EMBED].clone() if head == "same" else stored
    folder.mkdir()
    if old:
        tensors = {old_name(name): tensor for name, tensor in tensors.items()}
        (folder / "config.json").write_text(json.dumps(raw))
    else:
        config.save_pretrained(folder)
    write_shards(folder, tensors, files)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": init_model.CHAT_TEMPLATE}))
    (folder / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.5}))
    return folder


def write_shards(folder: Path, tensors: dict, files: int) -> None:
    if files == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    index = {"metadata": {"total_parameters": 0, "total_size": 0}, "weight_map": {}}
    for number in range(files):
        name = f"model-{number + 1:05}-of-{files:05}.safetensors"
        part = {key: tensors[key] for key in list(tensors)[number::files]}
        save_file(part, folder / name, metadata={"format": "pt"})
        index["weight_map"] |= dict.fromkeys(part, name)
        index["metadata"]["total_size"] += sum(tensor.nbytes for tensor in part.values())
        index["metadata"]["total_parameters"] += sum(tensor.numel() for tensor in part.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def load_whole(folder: Path, **kwargs):
    model, info = FourDThinkerForConditionalGeneration.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not any(info.values()), info
    return model.eval()
