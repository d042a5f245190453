"""Stage one, DIFT: teach a model to picture. A run is one recipe.

    accelerate launch train/sft.py --config train/recipes/tiny_dift.yaml
    accelerate launch --config_file train/accelerate/zero2.yaml train/sft.py --config train/recipes/tiny_dift.yaml

Any setting of the recipe can be given on the command line instead, e.g. `--learning_rate 1e-5`. LoRA: `--use_peft`.
Launched again, a run goes on from its last whole checkpoint; one that has finished says so and stops.
"""

from dataclasses import dataclass, field
from pathlib import Path

from peft import PeftModel
from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from fourdthinker_hf import FourDThinkerForConditionalGeneration, FourDThinkerProcessor
from fourdthinker_hf.data.records import RecordFiles
from fourdthinker_hf.training import DIFTCollator, DIFTConfig, DIFTTrainer, last_checkpoint, record_dataset
from fourdthinker_hf.training.dift import LORA_TARGETS
from fourdthinker_hf.training.features import CachedCollator, FeatureStore

FINISHED = "trainer_state.json"  # in output_dir itself it is the last file that a run writes


@dataclass
class RunArguments:
    """What a run learns from, and what it leaves."""

    records: list[str] = field(metadata={"help": "JSONL files of records to train on."})
    eval_records: list[str] = field(default_factory=list, metadata={"help": "JSONL files of records to evaluate on."})
    skip_bad: bool = field(default=False, metadata={"help": "Skip and count bad records instead of stopping."})
    merge_adapter: bool = field(
        default=False, metadata={"help": "After LoRA: save the whole model; the adapter goes to output_dir/adapter."}
    )


def load_model(args: ModelConfig):
    return FourDThinkerForConditionalGeneration.from_pretrained(
        args.model_name_or_path, revision=args.model_revision, dtype=args.dtype,
        attn_implementation=args.attn_implementation, quantization_config=get_quantization_config(args),
    )  # fmt: skip


def main(run: RunArguments, args: DIFTConfig, model_args: ModelConfig) -> None:
    output = Path(args.output_dir)
    if (output / FINISHED).is_file():
        print(f"{output} holds a finished run, nothing is trained. To train again, give another output_dir")
        return
    set_seed(args.seed)

    # Model
    model = load_model(model_args)
    folder = model_args.model_name_or_path
    processor = FourDThinkerProcessor.from_pretrained(folder, revision=model_args.model_revision)
    if model_args.use_peft and model_args.lora_target_modules is None:
        model_args.lora_target_modules = LORA_TARGETS

    # Data
    collator = DIFTCollator(processor, imagery=args.imagery, options=args.options)
    if args.feature_cache is not None:
        store = FeatureStore(args.feature_cache, processor, model, bf16=args.bf16)
        files = RecordFiles([*run.records, *run.eval_records])
        store.fill(model, processor, files, num_workers=args.dataloader_num_workers, skip_bad=run.skip_bad)
        collator = CachedCollator(processor, imagery=args.imagery, options=args.options, store=store)
    train = record_dataset(run.records, collator, run.skip_bad)
    evaluation = record_dataset(run.eval_records, collator, run.skip_bad) if run.eval_records else None

    # Training
    trainer = DIFTTrainer(
        model=model, args=args, train_dataset=train, eval_dataset=evaluation, data_collator=collator,
        processing_class=processor, peft_config=get_peft_config(model_args),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))

    # Save
    merge = model_args.use_peft and run.merge_adapter
    trainer.save_model(str(output / "adapter") if merge else args.output_dir)
    if merge and trainer.is_world_process_zero():
        unset_hf_deepspeed_config()  # this process alone loads the weights, so they must not be sharded
        merged = PeftModel.from_pretrained(load_model(model_args), output / "adapter").merge_and_unload()
        merged.config.latent_mean = trainer.network.config.latent_mean
        merged.save_pretrained(output)
        processor.save_pretrained(output)
    trainer.save_state()
    trainer.end()


if __name__ == "__main__":
    main(*TrlParser((RunArguments, DIFTConfig, ModelConfig)).parse_args_and_config())
