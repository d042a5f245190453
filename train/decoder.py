"""Trains the imagery decoder of a checkpoint: it draws what a mental image shows, from its latents alone.

    accelerate launch train/decoder.py --config train/recipes/tiny/decoder.yaml

The checkpoint's vision tower gives the latents of the records' target frames and stays as it is, so a decoder fits all
checkpoints with this tower. The decoder goes to `output_dir`, and to `imagery_decoder/` in the checkpoint's folder if
the checkpoint is a folder: there `VideoQA` and the demo find it. The same command continues an interrupted run.

The exit status is 3 if the run is complete but bad records or frames were left out (`--skip_bad true`).
"""

import logging
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import Trainer, TrainingArguments, set_seed
from trl import ModelConfig, TrlParser

from fourdthinker_hf import FourDThinkerProcessor
from fourdthinker_hf.checkpoints import IMAGERY_DECODER
from fourdthinker_hf.data.records import RecordFiles
from fourdthinker_hf.imagery_decoder_fourdthinker import FourDThinkerImageryDecoder, FourDThinkerImageryDecoderConfig
from fourdthinker_hf.training import check_records
from fourdthinker_hf.training.feature_store import FeatureStore
from fourdthinker_hf.training.imagery_decoder import TargetFrames
from fourdthinker_hf.training.run import SOME_SKIPPED, is_finished, last_checkpoint, load_for_training


@dataclass
class ScriptArguments:
    """What the decoder is trained and evaluated on, and its size."""

    records: list[str] = field(metadata={"help": "JSONL files of records with target frames to train on."})
    feature_cache: str = field(metadata={"help": "Folder for the vision features of the target frames."})
    eval_records: list[str] = field(default_factory=list, metadata={"help": "JSONL files of records to evaluate on."})
    skip_bad: bool = field(default=False, metadata={"help": "Leave out and count bad records instead of stopping."})
    picture_size: int = field(default=56, metadata={"help": "Height and width of the pictures in pixels."})
    patch_size: int = field(default=7, metadata={"help": "Side of the squares that a picture is made of."})
    hidden_size: int = field(default=128, metadata={"help": "Width of the decoder."})
    num_hidden_layers: int = field(default=3, metadata={"help": "Number of the decoder's layers."})
    num_attention_heads: int = field(default=4, metadata={"help": "Number of the decoder's attention heads."})


def main(script_args: ScriptArguments, training_args: TrainingArguments, model_args: ModelConfig) -> int:
    if is_finished(training_args.output_dir):
        return 0
    if not script_args.skip_bad:
        check_records([*script_args.records, *script_args.eval_records])
    set_seed(training_args.seed)

    # Latents
    model = load_for_training(model_args)
    processor = FourDThinkerProcessor.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision
    )
    store = FeatureStore(script_args.feature_cache, processor, model)
    datasets = []
    for paths in filter(None, (script_args.records, script_args.eval_records)):
        records = RecordFiles(paths)
        store.fill(model, processor, records, training_args.dataloader_num_workers, script_args.skip_bad, clips=False)
        datasets.append(TargetFrames(records, store, model.config, script_args.picture_size, script_args.skip_bad))

    # Training
    config = FourDThinkerImageryDecoderConfig(
        latent_size=model.config.latent_size,
        latent_dim=model.config.text_config.hidden_size,
        picture_size=script_args.picture_size,
        patch_size=script_args.patch_size,
        hidden_size=script_args.hidden_size,
        intermediate_size=4 * script_args.hidden_size,
        num_hidden_layers=script_args.num_hidden_layers,
        num_attention_heads=script_args.num_attention_heads,
    )
    del model
    training_args.label_names, training_args.prediction_loss_only = ["pictures"], True
    decoder = FourDThinkerImageryDecoder(config)
    trainer = Trainer(decoder, training_args, train_dataset=datasets[0], eval_dataset=datasets[1:] and datasets[1])
    trainer.train(resume_from_checkpoint=last_checkpoint(training_args.output_dir))

    # Result
    if len(datasets) > 1:
        error = trainer.evaluate()["eval_loss"]
        print(f"Pictures of {len(datasets[1])} held-out target frames: PSNR {-10 * math.log10(error):.1f} dB")
    trainer.save_model()
    checkpoint = Path(model_args.model_name_or_path)
    if trainer.is_world_process_zero() and checkpoint.is_dir():
        decoder.save_pretrained(checkpoint / IMAGERY_DECODER)
        code = f"{FourDThinkerImageryDecoder.__module__.rpartition('.')[2]}.py"  # AutoModel looks for it in the root
        (checkpoint / IMAGERY_DECODER / code).replace(checkpoint / code)
    trainer.save_state()
    return SOME_SKIPPED if sum(dataset.num_skipped for dataset in datasets) else 0


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    sys.exit(main(*TrlParser((ScriptArguments, TrainingArguments, ModelConfig)).parse_args_and_config()))
