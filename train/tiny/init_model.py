"""Make the start of the tiny model: a byte-level BPE tokenizer, a processor, random weights, and a trained tower.

    python train/tiny/init_model.py runs/tiny/init --tower runs/tiny/tower --records data/tiny/train/records.jsonl

The tokenizer is trained on the words of the records and on Python's own language reference (`pydoc_data.topics`), so
that the vocabulary of the scenes is one token a word and any other question still tokenizes. No download.
"""

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated

import torch
import typer
from pretrain_tower import vision_config
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from fourdthinker_hf import FourDThinkerConfig, FourDThinkerForConditionalGeneration, FourDThinkerProcessor
from fourdthinker_hf.data.simulation.layered_questions import NUM_PAIRS, PAIR_SECONDS

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|latent_pad|>",
    "<|latent_start|>",
    "<|latent_end|>",
]
WORDS = ["<think>", "</think>", "<answer>", "</answer>"]  # ordinary text, one token each

# ChatML, as Qwen2.5-VL has it, without a system turn.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content -%}
{%- if part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""

# Pixels of a frame at most: 168 x 84 of a wide video, 112 x 112 of a square one; 16 to 21 features after the merger.
MAX_PIXELS = 16800
MIN_PIXELS = 16 * 28 * 28  # so that a mental image has its 16 features
LATENT_SIZE = 16
HIDDEN_SIZE = 192


def make_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on `texts`, with Qwen2.5-VL's special tokens and the three of the latents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(WORDS), initial_alphabet=alphabet, special_tokens=SPECIAL_TOKENS
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(WORDS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        additional_special_tokens=SPECIAL_TOKENS[1:],
    )


def make_processor(tokenizer: PreTrainedTokenizerFast) -> FourDThinkerProcessor:
    size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    return FourDThinkerProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        video_processor=Qwen2VLVideoProcessor(size=size),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
        latent_size=LATENT_SIZE,
        fps=8.0,
        max_frames=2 * NUM_PAIRS,
        pair_seconds=PAIR_SECONDS,
    )


def make_config(tokenizer: PreTrainedTokenizerFast) -> FourDThinkerConfig:
    token = tokenizer.convert_tokens_to_ids
    return FourDThinkerConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 576,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config=vision_config(HIDDEN_SIZE).to_dict(),
        latent_size=LATENT_SIZE,
        tie_word_embeddings=True,
        compress_strategy="grid",
        latent_scale="rms",
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        latent_token_id=token("<|latent_pad|>"),
        latent_start_id=token("<|latent_start|>"),
        latent_end_id=token("<|latent_end|>"),
    )


def main(
    out: Path,
    records: Annotated[list[Path], typer.Option(help="records.jsonl files whose words the tokenizer learns")],
    tower: Annotated[Path | None, typer.Option(help="Folder of pretrain_tower.py; random without")] = None,
    vocab_size: int = 2048,
    seed: int = 0,
) -> None:
    """Write OUT, a folder that FourDThinkerForConditionalGeneration.from_pretrained loads."""
    fields = ("question", "reasoning", "answer")
    rows = [json.loads(line) for path in records for line in path.open()]
    words = [" ".join(str(row[name]) for name in fields if row.get(name)) for row in rows]
    options = [f"\nA. {text}\nB. {text}\nC. {text}\nD. {text}" for row in rows for text in row.get("options") or ()]
    tokenizer = make_tokenizer([*words, *options, *topics.values()], vocab_size)
    torch.manual_seed(seed)
    model = FourDThinkerForConditionalGeneration(make_config(tokenizer))
    if tower is not None:
        model.model.visual.load_state_dict(load_file(tower / "tower.safetensors"))
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(out)
    make_processor(tokenizer).save_pretrained(out)
    typer.echo(f"{out}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    typer.run(main)
