"""Stage two, 4DRL: reward a model that pictures for answering right. A run is one recipe.

    accelerate launch train/grpo.py --config train/recipes/tiny_4drl.yaml
    accelerate launch --config_file train/accelerate/zero2.yaml train/grpo.py --config train/recipes/tiny_4drl.yaml

Any setting of the recipe can be given on the command line instead, e.g. `--learning_rate 1e-6`. LoRA: `--use_peft`.
Launched again, a run goes on from its last whole checkpoint; one that has finished says so and stops.
"""

from dataclasses import dataclass, field
from pathlib import Path

from sft import FINISHED, load_model
from trl import ModelConfig, TrlParser, get_peft_config

from fourdthinker_hf import FourDThinkerProcessor
from fourdthinker_hf.training import FourDRLConfig, FourDRLTrainer, last_checkpoint, question_dataset
from fourdthinker_hf.training.dift import LORA_TARGETS


@dataclass
class RunArguments:
    """What a run learns from."""

    records: list[str] = field(metadata={"help": "JSONL files of records, ours or the published RL set, to train on."})
    eval_records: list[str] = field(default_factory=list, metadata={"help": "JSONL files of records to evaluate on."})


def main(run: RunArguments, args: FourDRLConfig, model_args: ModelConfig) -> None:
    output = Path(args.output_dir)
    if (output / FINISHED).is_file():
        print(f"{output} holds a finished run, nothing is trained. To train again, give another output_dir")
        return

    # Model
    model = load_model(model_args)
    processor = FourDThinkerProcessor.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision
    )
    if model_args.use_peft and model_args.lora_target_modules is None:
        model_args.lora_target_modules = LORA_TARGETS

    # Training
    trainer = FourDRLTrainer(
        model=model, args=args, train_dataset=question_dataset(run.records, processor), processing_class=processor,
        eval_dataset=question_dataset(run.eval_records, processor) if run.eval_records else None,
        peft_config=get_peft_config(model_args),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output_dir))

    # Save
    trainer.save_model(args.output_dir)
    trainer.save_state()
    trainer.end()


if __name__ == "__main__":
    main(*TrlParser((RunArguments, FourDRLConfig, ModelConfig)).parse_args_and_config())
