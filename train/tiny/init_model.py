"""Makes the tiny model's first checkpoint: a byte-level BPE tokenizer, a processor and random weights. It downloads
nothing. train/recipes/tiny/text_only.yaml has this command and those that follow it.

    python train/tiny/init_model.py runs/init --records data/questions/records.jsonl

The tokenizer is trained on the text of the records and on Python's own language reference (`pydoc_data.topics`). So a
word of the scenes is one token, and any other question can be tokenized too.
"""

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from fourdthinker_hf import FourDThinkerConfig, FourDThinkerForConditionalGeneration, FourDThinkerProcessor

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
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]  # ordinary text, one token each

# Qwen2.5-VL's chat template without a system turn.
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

SIDE = 84  # pixels; a frame has 3 x 3 features after the merger
MAX_FRAMES = 8


def make_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`, with Qwen2.5-VL's special tokens and the three latent tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TAGS), initial_alphabet=alphabet, special_tokens=SPECIAL_TOKENS
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(TAGS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        additional_special_tokens=SPECIAL_TOKENS[1:],
    )


def make_processor(tokenizer: PreTrainedTokenizerFast) -> FourDThinkerProcessor:
    size = {"shortest_edge": 28 * 28, "longest_edge": SIDE * SIDE}
    return FourDThinkerProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        video_processor=Qwen2VLVideoProcessor(size=size),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
        max_frames=MAX_FRAMES,
    )


def make_config(tokenizer: PreTrainedTokenizerFast) -> FourDThinkerConfig:
    token_id = tokenizer.convert_tokens_to_ids
    return FourDThinkerConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_heads": 3,
            "out_hidden_size": 192,
            "window_size": SIDE,
            "fullatt_block_indexes": [0, 1, 2],
            "tokens_per_second": 2,
        },
        tie_word_embeddings=True,
        compress_strategy="grid",
        latent_scale="rms",
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        latent_token_id=token_id("<|latent_pad|>"),
        latent_start_id=token_id("<|latent_start|>"),
        latent_end_id=token_id("<|latent_end|>"),
    )


def main(
    out: Path,
    records: Annotated[list[Path], typer.Option(help="records.jsonl file whose text the tokenizer is trained on")],
    vocab_size: int = 2048,
    seed: int = 0,
) -> None:
    """Write the folder OUT, which FourDThinkerForConditionalGeneration.from_pretrained loads."""
    fields = ("question", "reasoning", "answer")
    rows = [json.loads(line) for path in records for line in path.open()]
    texts = [" ".join(str(row[name]) for name in fields if row.get(name)) for row in rows]
    options = [f"\nA. {text}\nB. {text}\nC. {text}\nD. {text}" for row in rows for text in row.get("options") or ()]
    tokenizer = make_tokenizer([*texts, *options, *topics.values()], vocab_size)
    torch.manual_seed(seed)
    model = FourDThinkerForConditionalGeneration(make_config(tokenizer))
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(out)
    make_processor(tokenizer).save_pretrained(out)
    typer.echo(f"{out}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    typer.run(main)
