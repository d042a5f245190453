"""Stage two, 4DRL: reward a model that pictures for answering right. A run is one recipe.

    accelerate launch train/grpo.py --config train/recipes/tiny/4drl.yaml
    accelerate launch --config_file train/accelerate/zero2.yaml train/grpo.py --config train/recipes/tiny/4drl.yaml

Any setting of the recipe can be given on the command line instead, e.g. `--learning_rate 1e-6`. LoRA: `--use_peft`.
Launched again, a run goes on from its last whole checkpoint; one that has finished says so and stops.
`--push_to_hub --hub_model_id OWNER/NAME` publishes what it leaves as `fourdthinker publish` does, with a card.
"""

import logging
import warnings
from dataclasses import dataclass, field

from trl import ModelConfig, TrlParser, get_peft_config

from fourdthinker_hf import FourDThinkerProcessor
from fourdthinker_hf.training import FourDRLConfig, FourDRLTrainer, last_checkpoint, question_dataset
from fourdthinker_hf.training.lora import LORA_TARGETS
from fourdthinker_hf.training.run import check_push, is_finished, load_for_training, save, send


@dataclass
class RunArguments:
    """What a run learns from, and what it leaves."""

    records: list[str] = field(metadata={"help": "JSONL files of records, ours or the published RL set, to train on."})
    eval_records: list[str] = field(default_factory=list, metadata={"help": "JSONL files of records to evaluate on."})
    merge_adapter: bool = field(
        default=False, metadata={"help": "After LoRA: save the whole model; the adapter goes to output_dir/adapter."}
    )


def main(run: RunArguments, args: FourDRLConfig, model_args: ModelConfig) -> None:
    if is_finished(args.output_dir):
        return

    # Model
    push, args.push_to_hub = args.push_to_hub, False  # the trainer's own would send all that it writes, unchecked
    parent = check_push(run, args, model_args) if push else None
    model = load_for_training(model_args)
    processor = FourDThinkerProcessor.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision
    )
    if model_args.use_peft and model_args.lora_target_modules is None:
        model_args.lora_target_modules = LORA_TARGETS

    # Training
    trainer = FourDRLTrainer(
        model=model,
        args=args,
        train_dataset=question_dataset(run.records, processor),
        processing_class=processor,
        eval_dataset=question_dataset(run.eval_records, processor) if run.eval_records else None,
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))

    # Save
    save(trainer, run, args, model_args, processor)
    if push and trainer.is_world_process_zero():
        send(run, args, parent, "4DRL (`train/grpo.py`)")


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fourdthinker_hf.hub.publish").setLevel(logging.INFO)  # what is sent, and what stays behind
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # TRL reads it at every step
    main(*TrlParser((RunArguments, FourDRLConfig, ModelConfig)).parse_args_and_config())
