"""What both launchers do before and after training: load the model, save the result, publish it."""

from pathlib import Path

from peft import PeftModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import ModelConfig, get_quantization_config

from .. import FourDThinkerForConditionalGeneration
from ..hub.card import lineage
from ..hub.publish import check_repo_id, publish_run

FINISHED = "trainer_state.json"  # in output_dir itself it is the last file that a run writes


def is_finished(output: str) -> bool:
    """Whether a run has ended there; it says so."""
    if done := (Path(output) / FINISHED).is_file():
        print(
            f"{output} holds a finished run, nothing is trained. To train again, give another output_dir; to publish "
            f"it, `fourdthinker publish {output} OWNER/NAME`"
        )
    return done


def load_for_training(args: ModelConfig):
    return FourDThinkerForConditionalGeneration.from_pretrained(
        args.model_name_or_path,
        revision=args.model_revision,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        quantization_config=get_quantization_config(args),
    )


def check_push(run, args, model_args: ModelConfig) -> dict:
    """What the card will say of the model that training starts from; ValueError for what could not be published."""
    if model_args.use_peft and not run.merge_adapter:
        raise ValueError("push_to_hub publishes a whole model, and LoRA leaves an adapter: give merge_adapter too")
    check_repo_id(args.hub_model_id or "hub_model_id")
    return lineage(model_args.model_name_or_path)


def save(trainer, run, args, model_args: ModelConfig, processor) -> None:
    """The model, or LoRA's adapter, merged into the model if asked; then the trainer's state, which ends the run."""
    output = Path(args.output_dir)
    merge = model_args.use_peft and run.merge_adapter
    trainer.save_model(str(output / "adapter") if merge else args.output_dir)
    if merge and trainer.is_world_process_zero():
        unset_hf_deepspeed_config()  # this process alone loads the weights, so they must not be sharded
        merged = PeftModel.from_pretrained(load_for_training(model_args), output / "adapter").merge_and_unload()
        merged.config.latent_mean = trainer.network.config.latent_mean
        merged.save_pretrained(output)
        processor.save_pretrained(output)
    trainer.save_state()
    trainer.accelerator.wait_for_everyone()  # or Gloo's threads may abort the process as it ends (pytorch#190489)
    trainer.end()


def send(run, args, parent: dict, how: str) -> None:
    """Publish what a run left, with a card."""
    folders = ", ".join(Path(records).absolute().parent.name for records in run.records)
    about = f"{how} on {folders}."
    print(publish_run(args.output_dir, args.hub_model_id, parent, about, bool(args.hub_private_repo), args.hub_token))
