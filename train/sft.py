"""DIFT, the first stage: supervised training of text and latents. A run is one recipe.

    accelerate launch train/sft.py --config train/recipes/tiny/dift.yaml
    accelerate launch --config_file train/accelerate/zero2.yaml train/sft.py --config train/recipes/tiny/dift.yaml

Any setting of the recipe can be given on the command line instead, e.g. `--learning_rate 1e-5`; `--use_peft true`
trains LoRA adapters. The same command continues an interrupted run from its last complete checkpoint; for a finished
run it says so and stops. `--push_to_hub true --hub_model_id OWNER/NAME` publishes the result as `fourdthinker publish`
does, with a card.

The exit status is 3 if the run is complete but bad records were skipped (`--skip_bad true`).
"""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import set_seed
from trl import ModelConfig, get_peft_config

from fourdthinker_hf import FourDThinkerProcessor
from fourdthinker_hf.data.records import RecordFiles
from fourdthinker_hf.training import DIFTCollator, DIFTConfig, DIFTTrainer, check_records, record_dataset
from fourdthinker_hf.training.feature_store import CachedCollator, FeatureStore
from fourdthinker_hf.training.lora import LORA_TARGETS
from fourdthinker_hf.training.run import (
    check_publishable,
    exit_status,
    is_finished,
    launch,
    load_for_training,
    print_gain,
    publish_result,
    save_result,
)

RECIPE = Path(__file__).resolve().parent / "recipes/tiny/short_dift.yaml"  # what runs without arguments


@dataclass
class ScriptArguments:
    """What a run is trained and evaluated on, and what it saves."""

    records: list[str] = field(metadata={"help": "JSONL files of records to train on."})
    eval_records: list[str] = field(default_factory=list, metadata={"help": "JSONL files of records to evaluate on."})
    skip_bad: bool = field(default=False, metadata={"help": "Skip and count bad records instead of stopping."})
    merge_adapter: bool = field(
        default=False, metadata={"help": "After LoRA: save the whole model; the adapter goes to output_dir/adapter."}
    )


def main(script_args: ScriptArguments, training_args: DIFTConfig, model_args: ModelConfig) -> int:
    if is_finished(training_args.output_dir):
        return 0
    if not script_args.skip_bad:
        check_records([*script_args.records, *script_args.eval_records])
    set_seed(training_args.seed)

    # Model
    publish = training_args.push_to_hub
    training_args.push_to_hub = False  # the trainer itself would upload all its files, unchecked
    parent = check_publishable(script_args, training_args, model_args) if publish else None
    model = load_for_training(model_args)
    processor = FourDThinkerProcessor.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision
    )
    if model_args.use_peft and model_args.lora_target_modules is None:
        model_args.lora_target_modules = LORA_TARGETS

    # Dataset
    options = {name: getattr(training_args, name) for name in ("imagery", "reasoning", "options", "forget_video")}
    collator = DIFTCollator(processor, **options)
    if training_args.feature_cache is not None:
        store = FeatureStore(training_args.feature_cache, processor, model, bf16=training_args.bf16)
        records = RecordFiles([*script_args.records, *script_args.eval_records])
        has_images = training_args.imagery and training_args.reasoning
        store.fill(model, processor, records, training_args.dataloader_num_workers, script_args.skip_bad, has_images)
        collator = CachedCollator(processor, **options, store=store)
    train_dataset = record_dataset(script_args.records, collator, script_args.skip_bad)
    eval_dataset = None
    if script_args.eval_records:
        eval_dataset = record_dataset(script_args.eval_records, collator, script_args.skip_bad)

    # Training
    trainer = DIFTTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collator,
        processing_class=processor,
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)

    # Result
    print_gain(trainer)
    status = exit_status(trainer)  # before the processes part in save_result
    save_result(trainer, script_args, training_args, model_args, processor)
    if publish and trainer.is_world_process_zero():
        publish_result(script_args, training_args, parent, "DIFT (`train/sft.py`)")
    return status


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fourdthinker_hf.hub.publish").setLevel(logging.INFO)  # what is uploaded and what is not
    sys.exit(launch(main, (ScriptArguments, DIFTConfig, ModelConfig), RECIPE))
