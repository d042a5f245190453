"""The steps of a run that both launchers share: read the command line, find the data, load the model, find the
checkpoint to resume from, save the result and publish it."""

import json
import logging
import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import fields
from pathlib import Path

# DeepSpeed is imported before there is a process group. Otherwise the default arguments of its functions hold the
# group, and Gloo's threads outlive the interpreter, which then ends by SIGABRT in some runs (pytorch#190489).
import deepspeed  # noqa: F401
from accelerate import PartialState
from peft import PeftModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_callback import TrainerState
from trl import ModelConfig, TrlParser, get_quantization_config

from .. import FourDThinkerForConditionalGeneration
from ..checkpoints import (
    check_shapes,
    explain_missing_data,
    find_base,
    find_model,
    load_config,
    load_processor,
    model_hash,
    read_json,
)
from ..distributed import LAUNCHER_VARIABLES, end_process_group
from ..hub.card import lineage
from ..hub.publish import check_repo_id, publish_run
from ..memory_errors import is_out_of_memory
from ..output_files import WORK, claim, files_hash, is_file_refused
from ..published import is_published
from .unsupported_options import UNSUPPORTED_MODEL_OPTIONS, refuse_unsupported

logger = logging.getLogger(__name__)

SOME_SKIPPED = 3  # exit status of a run that is complete but skipped records
BAD_ARGUMENTS = 2  # exit status of a run that could not begin
TOO_LITTLE_MEMORY = (
    "there is too little memory. Rows of fewer pixels, gradient_checkpointing, LoRA or a lower "
    "per_device_train_batch_size need less: `fourdthinker memory` tells how much"
)
FILE_REFUSED = "a file cannot be read or written. What was written before is safe: mend that and run the same command"
GAINS = {  # metrics of an evaluation, and how they are called where a run ends
    "eval_reward": "mean reward",
    "eval_rewards/accuracy/mean": "share of right replies",
    "eval_accuracy": "share of right answers",
    "eval_text_loss": "loss of the text",
    "eval_mean_token_accuracy": "share of right tokens",
    "eval_latent_loss": "loss of the mental images",
}
RECIPE_PROGRAMS = ("accelerate", "fourdthinker", "hf", "ln", "python")  # the first words of commands in recipes
FINISHED = "trainer_state.json"  # the last file that a run writes into output_dir itself
# Beginnings of the settings that say where and how a run works, not what it learns: a resumed run may change them.
FREE_SETTINGS = (
    *("output_dir", "log", "report_to", "run_name", "project", "trackio", "disable_tqdm", "save_", "push_to_hub"),
    *("hub_", "dataloader_", "feature_cache", "deepspeed", "fsdp", "ddp_", "local_rank", "use_cpu", "do_", "resume_"),
)


def launch(main: Callable[..., int], argument_types: Sequence[type], recipe: Path) -> int:
    """Runs `main` with the arguments of the command line, and returns the exit status. Without any argument, the
    checkout's `recipe` is run there, and the records that it reads are made first if they are missing.

    An argument that cannot be used, a missing file of records, a damaged model, a checkpoint from which the run cannot
    go on, or an `output_dir` of another run ends it with one message, which the main process of each machine prints,
    and with the exit status 2. Too little memory and a file that cannot be read or written end it so, too; the process
    that meets them prints the message. `main` finds the checkpoint to go on from in `resume_from_checkpoint`.
    """
    arguments = sys.argv[1:]
    is_default_run = not arguments
    if is_default_run:
        arguments = ["--config", str(recipe)]
        os.chdir(recipe.parents[3])  # the paths in a recipe start at the checkout
    claimed = ExitStack()
    try:
        parsed = TrlParser(argument_types).parse_args_and_config(arguments)
        given = dict(zip(arguments, arguments[1:], strict=False)).get("--config")
        script_args, training_args, model_args = parsed
        check_arguments(script_args, training_args, model_args)
        if not (Path(training_args.output_dir) / FINISHED).is_file():
            _find_records(script_args, given, is_default_run)
            training_args.resume_from_checkpoint = checkpoint_to_resume(training_args)
            check_model(model_args)
            if cache := getattr(training_args, "feature_cache", None):
                Path(cache).mkdir(parents=True, exist_ok=True)
        claimed.enter_context(claim_output_dir(Path(sys.argv[0]).name, *parsed))
    except (ValueError, OSError) as error:
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            print(f"{sys.argv[0]}: {error}", file=sys.stderr)
        status = BAD_ARGUMENTS
    else:
        try:
            with claimed:
                status = main(*parsed)
        except Exception as error:
            cause = TOO_LITTLE_MEMORY if is_out_of_memory(error) else FILE_REFUSED if is_file_refused(error) else None
            if cause is None:
                raise
            print(f"{sys.argv[0]}: {cause} ({' '.join(str(error).split())})", file=sys.stderr)
            return BAD_ARGUMENTS  # at once: the other processes wait for this one, and the launcher ends them
    end_process_group()
    return status


def claim_output_dir(command: str, script_args, training_args, model_args: ModelConfig) -> AbstractContextManager:
    """In the main process, claims `output_dir` for this model, these records and settings, see [`claim`]. A finished
    run whose records are gone only says that it is finished."""
    out, model = Path(training_args.output_dir), Path(model_args.model_name_or_path)
    files = {name: getattr(script_args, name) for name in ("records", "eval_records")}
    if training_args.process_index > 0 or not all(Path(path).is_file() for paths in files.values() for path in paths):
        return nullcontext()
    given = {**vars(script_args), **vars(model_args), **training_args.to_dict()}
    settings = {name: value for name, value in given.items() if not name.startswith(FREE_SETTINGS)}
    settings |= {name: files_hash(paths) for name, paths in files.items()}
    if model.is_dir():
        settings["model_name_or_path"] = model_hash(model)
    work = {"command": command, **json.loads(json.dumps(settings, default=str))}
    return claim(out / WORK, work, [out / FINISHED, *out.glob("checkpoint-*")])


def check_arguments(script_args, training_args, model_args: ModelConfig) -> None:
    """Raises `ValueError` for arguments that would have no effect beside the others, and for those of the model that
    cannot be honoured. What the trainer's config can judge alone, it refuses itself."""
    refuse_unsupported(model_args, UNSUPPORTED_MODEL_OPTIONS, "this launcher")
    if not model_args.use_peft:
        if script_args.merge_adapter:
            raise ValueError("merge_adapter needs use_peft: there is no adapter without it")
        for option in fields(ModelConfig):
            if option.name.startswith("lora_") and getattr(model_args, option.name) != option.default:
                raise ValueError(f"{option.name} needs use_peft: all weights are trained without it")
    if script_args.eval_records and training_args.eval_strategy == "no" and not training_args.eval_on_start:
        raise ValueError("eval_records need eval_strategy (steps or epoch): they would never be evaluated without it")
    if getattr(training_args, "eval_questions", 0) and not script_args.eval_records:
        raise ValueError("eval_questions needs eval_records, from which the questions are taken")


def _find_records(script_args, recipe: str | None, make: bool) -> None:
    """Raises `FileNotFoundError` for records that are missing. With `make`, the commands in the recipe's first comment
    make them before."""
    paths = [*script_args.records, *script_args.eval_records]

    def missing() -> list[str]:
        return [path for path in paths if not Path(path).exists()]

    commands = recipe_commands(recipe) if recipe else []
    if make:
        with PartialState().main_process_first():
            if missing():
                _run_commands(commands)
    if lost := missing():
        remedy = f" These commands make the data:\n{' && '.join(commands)}" if commands else ""
        raise FileNotFoundError(f"{'; '.join(map(explain_missing_data, dict.fromkeys(lost)))}.{remedy}")


def recipe_commands(recipe: str | Path) -> list[str]:
    """The commands in a recipe's first comment that come before its own run, without those that only inform. They are
    indented by three spaces there."""
    lines = Path(recipe).read_text(encoding="utf-8").replace("\\\n#", "").splitlines()
    commands = [" ".join(line[1:].split()) for line in lines if line.startswith("#   ")]
    first = [command for command in commands if command.split()[0] in RECIPE_PROGRAMS]
    return [command for command in first[:-1] if not command.startswith("fourdthinker memory")]


def _run_commands(commands: list[str]) -> None:
    """Runs commands of this environment, each as the only process of its own run. Raises `ValueError` for the first
    one that fails; it has said why."""
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    environment["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), environment.get("PATH", "")])
    for command in commands:
        print(command, flush=True)
        if status := subprocess.run(shlex.split(command), env=environment).returncode:
            raise ValueError(f"the data could not be made: exit status {status} of {command}")


def is_finished(output_dir: str) -> bool:
    """Whether `output_dir` holds a finished run. If so, prints what to do next."""
    if finished := (Path(output_dir) / FINISHED).is_file():
        print(
            f"{output_dir} holds a finished run, nothing is trained. To train again, give another output_dir; to "
            f"publish it, `fourdthinker publish {output_dir} OWNER/NAME`"
        )
    return finished


def check_model(model_args: ModelConfig) -> None:
    """Raises `ValueError` if there is no checkpoint to start from, if it is damaged, or if it must be converted or
    merged before. Nothing of it is loaded."""
    model, revision = model_args.model_name_or_path, model_args.model_revision
    folder = find_model(model, revision if revision != "main" else None)  # "main" is the default, also for a folder
    if find_base(folder) is not None:
        raise ValueError(f"{model}: this is an adapter; train on what `fourdthinker merge {model} DEST` writes")
    if is_published(read_json(folder / "config.json")):
        raise ValueError(
            f"{model}: this is a published 4DThinker; train on what `fourdthinker convert {model} DEST` writes"
        )
    check_shapes(folder, load_config(folder), allow_more=True)
    load_processor(folder)


def load_for_training(model_args: ModelConfig, quantized: bool = True) -> FourDThinkerForConditionalGeneration:
    """The model of `model_args`. Without `quantized`, it is whole even if `load_in_8bit` or `load_in_4bit` is set."""
    return FourDThinkerForConditionalGeneration.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=get_quantization_config(model_args) if quantized else None,
    )


def checkpoint_to_resume(training_args) -> str | None:
    """The checkpoint that the run goes on from: `resume_from_checkpoint` if it is given, else the newest complete one
    in `output_dir`, or None if there is none. Raises `ValueError` for one from which this run cannot go on exactly."""
    given = training_args.resume_from_checkpoint
    if given is None or str(given).lower() == "true":
        checkpoint = last_checkpoint(training_args.output_dir)
    elif _is_complete(Path(given)):
        checkpoint = str(given)
    else:
        raise ValueError(f"resume_from_checkpoint={given}: it is no checkpoint that was written to its end")
    if checkpoint is None:
        return None
    folder, anew = (
        Path(checkpoint),
        "to train on from its weights alone, give --model_name_or_path {} --output_dir NEW",
    )
    if not ((folder / "optimizer.pt").exists() or (folder / "latest").exists()):  # the second one is DeepSpeed's
        raise ValueError(
            f"{folder} has no optimizer state (save_only_model), so the run cannot go on from it; "
            + anew.format(folder)
        )
    saved, now = len(list(folder.glob("rng_state*.pth"))), training_args.world_size
    if saved != now:
        raise ValueError(
            f"{folder} was written by {saved} process(es), and {now} would see other rows and share the optimizer in "
            f"another way: start {saved}; or, " + anew.format(folder)
        )
    return checkpoint


def last_checkpoint(output_dir: str) -> str | None:
    """The newest complete checkpoint in `output_dir`, or None if there is none."""
    folders = Path(output_dir).glob("checkpoint-*")
    for folder in sorted(folders, key=lambda folder: int(folder.name.removeprefix("checkpoint-")), reverse=True):
        if _is_complete(folder):
            return str(folder)
        logger.warning("%s was not written to its end: an earlier checkpoint is taken", folder)
    return None


def _is_complete(folder: Path) -> bool:
    try:
        TrainerState.load_from_json(folder / FINISHED)
    except (OSError, ValueError):
        return False
    return True


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
        base = load_for_training(model_args, quantized=False)  # an adapter cannot be added to rounded weights exactly
        adapted = PeftModel.from_pretrained(base, output_dir / "adapter")
        merged = adapted.merge_and_unload()
        merged.config.latent_mean = trainer.unwrapped_model.config.latent_mean
        merged.save_pretrained(output_dir)
        processor.save_pretrained(output_dir)
    trainer.save_state()
    trainer.accelerator.wait_for_everyone()
    trainer.end()


def print_gain(trainer) -> None:
    """Prints, in the main process, how the first and the last evaluation of the run differ, if there were two."""
    evaluations = [row for row in trainer.state.log_history if "eval_runtime" in row]
    if trainer.is_world_process_zero() and len(evaluations) > 1:
        first, last = evaluations[0], evaluations[-1]
        gains = [f"{text} {first[name]:.3g} -> {last[name]:.3g}" for name, text in GAINS.items() if name in last]
        print(f"Evaluated at step {first['step']} and at step {last['step']}: {', '.join(gains)}")


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
