"""Stage one, DIFT: teach a model to picture. A run is one recipe.

    accelerate launch train/sft.py --config train/recipes/tiny/dift.yaml
    accelerate launch --config_file train/accelerate/zero2.yaml train/sft.py --config train/recipes/tiny/dift.yaml

Any setting of the recipe can be given on the command line instead, e.g. `--learning_rate 1e-5`. LoRA: `--use_peft`.
Launched again, a run goes on from its last whole checkpoint; one that has finished says so and stops.
`--push_to_hub --hub_model_id OWNER/NAME` publishes what it leaves as `fourdthinker publish` does, with a card.
"""

import logging
from dataclasses import dataclass, field

from transformers import set_seed
from trl import ModelConfig, TrlParser, get_peft_config

from fourdthinker_hf import FourDThinkerProcessor
from fourdthinker_hf.data.records import RecordFiles
from fourdthinker_hf.training import DIFTCollator, DIFTConfig, DIFTTrainer, last_checkpoint, record_dataset
from fourdthinker_hf.training.feature_store import CachedCollator, FeatureStore
from fourdthinker_hf.training.lora import LORA_TARGETS
from fourdthinker_hf.training.run import check_push, is_finished, load_for_training, save, send


@dataclass
class RunArguments:
    """What a run learns from, and what it leaves."""

    records: list[str] = field(metadata={"help": "JSONL files of records to train on."})
    eval_records: list[str] = field(default_factory=list, metadata={"help": "JSONL files of records to evaluate on."})
    skip_bad: bool = field(default=False, metadata={"help": "Skip and count bad records instead of stopping."})
    merge_adapter: bool = field(
        default=False, metadata={"help": "After LoRA: save the whole model; the adapter goes to output_dir/adapter."}
    )


def main(run: RunArguments, args: DIFTConfig, model_args: ModelConfig) -> None:
    if is_finished(args.output_dir):
        return
    set_seed(args.seed)

    # Model
    push, args.push_to_hub = args.push_to_hub, False  # the trainer's own would send all that it writes, unchecked
    parent = check_push(run, args, model_args) if push else None
    model = load_for_training(model_args)
    folder = model_args.model_name_or_path
    processor = FourDThinkerProcessor.from_pretrained(folder, revision=model_args.model_revision)
    if model_args.use_peft and model_args.lora_target_modules is None:
        model_args.lora_target_modules = LORA_TARGETS

    # Data
    what = {name: getattr(args, name) for name in ("imagery", "reasoning", "options", "forget_video")}
    collator = DIFTCollator(processor, **what)
    if args.feature_cache is not None:
        store = FeatureStore(args.feature_cache, processor, model, bf16=args.bf16)
        files = RecordFiles([*run.records, *run.eval_records])
        store.fill(model, processor, files, num_workers=args.dataloader_num_workers, skip_bad=run.skip_bad)
        collator = CachedCollator(processor, **what, store=store)
    train = record_dataset(run.records, collator, run.skip_bad)
    evaluation = record_dataset(run.eval_records, collator, run.skip_bad) if run.eval_records else None

    # Training
    trainer = DIFTTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=evaluation,
        data_collator=collator,
        processing_class=processor,
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))

    # Save
    save(trainer, run, args, model_args, processor)
    if push and trainer.is_world_process_zero():
        send(run, args, parent, "DIFT (`train/sft.py`)")


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fourdthinker_hf.hub.publish").setLevel(logging.INFO)  # what is sent, and what stays behind
    main(*TrlParser((RunArguments, DIFTConfig, ModelConfig)).parse_args_and_config())
