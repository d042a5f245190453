"""The steps of a run that both launchers share: load the model, find the checkpoint to resume from, save the result
and publish it."""

import logging
from pathlib import Path

from peft import PeftModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_callback import TrainerState
from trl import ModelConfig, get_quantization_config

from .. import FourDThinkerForConditionalGeneration
from ..hub.card import lineage
from ..hub.publish import check_repo_id, publish_run

logger = logging.getLogger(__name__)

SOME_SKIPPED = 3  # exit status of a run that is complete but skipped records
FINISHED = "trainer_state.json"  # the last file that a run writes into output_dir itself


def is_finished(output_dir: str) -> bool:
    """Whether `output_dir` holds a finished run. If so, prints what to do next."""
    if finished := (Path(output_dir) / FINISHED).is_file():
        print(
            f"{output_dir} holds a finished run, nothing is trained. To train again, give another output_dir; to "
            f"publish it, `fourdthinker publish {output_dir} OWNER/NAME`"
        )
    return finished


def load_for_training(model_args: ModelConfig) -> FourDThinkerForConditionalGeneration:
    return FourDThinkerForConditionalGeneration.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=get_quantization_config(model_args),
    )


def last_checkpoint(output_dir: str) -> str | None:
    """The newest complete checkpoint in `output_dir`, or None if there is none."""
    folders = Path(output_dir).glob("checkpoint-*")
    for folder in sorted(folders, key=lambda folder: int(folder.name.removeprefix("checkpoint-")), reverse=True):
        try:
            TrainerState.load_from_json(folder / FINISHED)
            return str(folder)
        except (FileNotFoundError, ValueError):
            logger.warning("%s was not written to its end: an earlier checkpoint is taken", folder)
    return None


def check_publishable(script_args, training_args, model_args: ModelConfig) -> dict:
    """What the card will say about the model that training starts from. Raises `ValueError` for a run whose result
    could not be published."""
    if model_args.use_peft and not script_args.merge_adapter:
        raise ValueError("push_to_hub publishes a whole model, and LoRA leaves an adapter: give merge_adapter too")
    check_repo_id(training_args.hub_model_id or "hub_model_id")
    return lineage(model_args.model_name_or_path)


def save_result(trainer, script_args, training_args, model_args: ModelConfig, processor) -> None:
    """Saves the model, or with LoRA the adapter, which is also merged into the model if `merge_adapter` is set. The
    trainer's state is saved last: it marks the run as finished."""
    output_dir = Path(training_args.output_dir)
    merge = model_args.use_peft and script_args.merge_adapter
    trainer.save_model(str(output_dir / "adapter") if merge else training_args.output_dir)
    if merge and trainer.is_world_process_zero():
        unset_hf_deepspeed_config()  # only this process loads the weights, so they must not be sharded
        adapted = PeftModel.from_pretrained(load_for_training(model_args), output_dir / "adapter")
        merged = adapted.merge_and_unload()
        merged.config.latent_mean = trainer.unwrapped_model.config.latent_mean
        merged.save_pretrained(output_dir)
        processor.save_pretrained(output_dir)
    trainer.save_state()
    trainer.accelerator.wait_for_everyone()  # without it Gloo's threads may abort the ending process (pytorch#190489)
    trainer.end()


def exit_status(trainer) -> int:
    """`SOME_SKIPPED` if a record was skipped in any process, else 0. Says how often."""
    if num_skipped := trainer.num_skipped():
        if trainer.is_world_process_zero():
            print(f"Bad records were skipped {num_skipped} times; the log names file, line and reason of each.")
        return SOME_SKIPPED
    return 0


def publish_result(script_args, training_args, parent: dict, method: str) -> None:
    """Publishes the result of a run with a card; `parent` is what [`check_publishable`] returned."""
    folders = ", ".join(Path(records).absolute().parent.name for records in script_args.records)
    print(
        publish_run(
            training_args.output_dir,
            training_args.hub_model_id,
            parent,
            f"{method} on {folders}.",
            bool(training_args.hub_private_repo),
            training_args.hub_token,
        )
    )
