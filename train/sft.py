"""Stage one, DIFT: teach a model to picture. A run is one recipe.

    accelerate launch train/sft.py --config train/recipes/tiny_dift.yaml
    accelerate launch --config_file train/accelerate/zero2.yaml train/sft.py --config train/recipes/tiny_dift.yaml

Any setting of the recipe can be given on the command line instead, e.g. `--learning_rate 1e-5`.
"""

from dataclasses import dataclass, field

from datasets import Dataset
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import TrlParser

from fourdthinker_hf import FourDThinkerForConditionalGeneration, FourDThinkerProcessor
from fourdthinker_hf.data.records import read_records
from fourdthinker_hf.training import DIFTCollator, DIFTConfig, DIFTTrainer


@dataclass
class RunArguments:
    """What a run starts from and learns from."""

    model: str = field(metadata={"help": "Folder or Hub id of the 4DThinker checkpoint to start from."})
    records: list[str] = field(metadata={"help": "JSONL files of records to train on."})
    eval_records: list[str] = field(default_factory=list, metadata={"help": "JSONL files of records to evaluate on."})
    skip_bad: bool = field(default=False, metadata={"help": "Skip and count bad records instead of stopping."})


def load_dataset(paths: list[str], skip_bad: bool) -> Dataset:
    columns = ("id", "question", "options", "answer", "reasoning", "imagery", "video", "frames", "timestamps")
    rows = [record for path in paths for record in read_records(path, skip_bad=skip_bad)]
    return Dataset.from_list([{name: getattr(row, name) for name in columns} for row in rows])


def main(run: RunArguments, args: DIFTConfig) -> None:
    set_seed(args.seed)

    # Model
    model = FourDThinkerForConditionalGeneration.from_pretrained(run.model)
    processor = FourDThinkerProcessor.from_pretrained(run.model)

    # Data
    train = load_dataset(run.records, run.skip_bad)
    evaluation = load_dataset(run.eval_records, run.skip_bad) if run.eval_records else None

    # Training
    trainer = DIFTTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=evaluation,
        data_collator=DIFTCollator(processor, imagery=args.imagery, options=args.options),
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(args.output_dir))
    trainer.save_model(args.output_dir)


if __name__ == "__main__":
    main(*TrlParser((RunArguments, DIFTConfig)).parse_args_and_config())
