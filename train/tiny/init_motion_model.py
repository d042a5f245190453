"""Makes the first checkpoint of the next tiny model: a byte-level BPE tokenizer, a processor that samples frames in
pairs, and random weights. train/tiny/make.py has this command and those around it.

    python train/tiny/init_motion_model.py runs/tiny_1/init --records runs/tiny_1/data/train/varied.jsonl

The tokenizer, the chat template and the rest of the configuration are those of init_model.py.
"""

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated

import init_model
import torch
import typer
from init_model import CHAT_TEMPLATE, make_tokenizer
from pretrain_motion_tower import vision_config
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from fourdthinker_hf import FourDThinkerConfig, FourDThinkerForConditionalGeneration, FourDThinkerProcessor
from fourdthinker_hf.data.simulation.layered_questions import NUM_PAIRS, PAIR_SECONDS

# Pixels of a frame at most: 168 x 84 of a wide video, 112 x 112 of a square one; 16 to 21 features after the merger.
MAX_PIXELS = 16800
MIN_PIXELS = 16 * 28 * 28  # so that a mental image has its 16 features
LATENT_SIZE = 16


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
    config = init_model.make_config(tokenizer).to_dict()
    text_config = config["text_config"] | {"intermediate_size": 576, "num_hidden_layers": 6}
    del text_config["layer_types"]  # one entry for each layer; the configuration makes it from their number
    vision = vision_config(text_config["hidden_size"]).to_dict()
    return FourDThinkerConfig(
        **config | {"text_config": text_config, "vision_config": vision, "latent_size": LATENT_SIZE}
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
