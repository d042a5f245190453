"""The `fourdthinker` command. Each command imports what it needs when it runs, so that help appears at once.

A mistake in what was given ends a command with one line on stderr and exit status 2. A command that did its work, but
had to leave something out, names each such thing on stderr and ends with exit status 3.
"""

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from .memory_errors import is_out_of_memory
from .output_files import is_file_refused

TRAINING_PACKAGES = ("accelerate", "datasets", "deepspeed", "peft", "trl")  # of the extra "train"
MAX_NEW_TOKENS_HELP = "A reply is cut after this many tokens."

# What every command that loads a model takes.
Model = Annotated[
    str | None,
    typer.Option(help="Folder or Hub id of the model or of a PEFT adapter. By default it is the bundled checkpoint."),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the Hub.")]
Subfolder = Annotated[str | None, typer.Option(help="Folder within the model's repository that holds the checkpoint.")]
Dtype = Annotated[str, typer.Option(help="auto (that of the weights), float32, bfloat16 or float16.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or another device of PyTorch. By default it is a GPU if there is one.")
]

app = typer.Typer(
    help="Answer questions about videos with a model that reasons with latent mental images.", no_args_is_help=True
)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error that the user can correct (wrong input, a package that is not installed, too little memory, a full
    disk) into one line on stderr and exit status 2."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        if is_out_of_memory(error):
            text = (
                f"There is too little memory{f' ({text})' * bool(text)}. What was written is kept: give more, or do "
            )
            text += "less at a time"
        elif not isinstance(error, (ValueError, ImportError, OSError)):
            if not is_file_refused(error):
                raise
            text = f"a file cannot be read or written ({text}): mend that and run the same command"
        if isinstance(error, ModuleNotFoundError) and error.name in TRAINING_PACKAGES:
            text = f'This command needs the package {error.name}: pip install "fourdthinker-hf[train]"'
        typer.echo(f"fourdthinker: {text}", err=True)
        raise typer.Exit(2) from error


@contextmanager
def shared_work() -> Iterator[None]:
    """Around a command whose work several processes may share: they part in order at its end."""
    try:
        yield
    finally:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            from .distributed import end_process_group

            end_process_group()


def name_left_out(reasons: list[str]) -> None:
    """End the command with exit status 3 and these lines on stderr, if there are any."""
    if reasons:
        lines = [
            f"fourdthinker: {len(reasons)} left out or failed:",
            *(" ".join(reason.split()) for reason in reasons),
        ]
        typer.echo("\n  ".join(lines), err=True)
        raise typer.Exit(3)


def print_version(wanted: bool) -> None:
    if wanted:
        with one_line_errors():
            typer.echo(f"fourdthinker {version('fourdthinker-hf')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    warnings.simplefilter("ignore", FutureWarning)  # they are for programmers
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # also those of transformers, when it is imported


@app.command()
def ask(
    video: Annotated[Path, typer.Argument(help="Video file.")],
    question: Annotated[str, typer.Argument(help="Question about the video.")],
    option: Annotated[
        list[str] | None, typer.Option(help="An option to choose from. Repeat the flag for each option.")
    ] = None,
    start: Annotated[float | None, typer.Option(help="Show the model the video from this second on.")] = None,
    end: Annotated[float | None, typer.Option(help="Show the model the video up to this second.")] = None,
    model: Model = None,
    revision: Revision = None,
    subfolder: Subfolder = None,
    device: Device = None,
    dtype: Dtype = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help=MAX_NEW_TOKENS_HELP)] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Answer QUESTION about VIDEO. Prints the reasoning, which moments the mental images resemble, and the answer."""
    with one_line_errors():
        from .checkpoints import BUNDLED, check_dtype, find_model
        from .question_answer import check_question
        from .video_fourdthinker import check_header

        options = check_question(question, option)
        check_header(video)  # before the model is loaded or downloaded
        check_dtype(dtype)
        folder = find_model(model or BUNDLED, revision, subfolder)  # before torch is imported
        from .qa import VideoQA

        qa = VideoQA.from_pretrained(folder, device, dtype)
        answer = qa.ask(video, question, options, start=start, end=end, max_new_tokens=max_new_tokens)
    typer.echo(json.dumps(_answer_json(answer, options)) if as_json else _answer_text(answer, options))


def _answer_json(answer, options: list[str]) -> dict:
    return {
        "answer": answer.answer,
        "option": None if answer.option is None else options[answer.option],
        "chosen_by": answer.chosen_by,
        "probabilities": answer.probabilities and dict(zip(options, answer.probabilities, strict=True)),
        "reasoning": answer.reasoning,
        "images": [{"time": image.time} for image in answer.images],
        "truncated": answer.truncated,
        "reason": answer.reason,
    }


def _answer_text(answer, options: list[str]) -> str:
    lines = [f"Reasoning: {answer.reasoning}"]
    for number, image in enumerate(answer.images, start=1):
        resembles = "was empty" if image.time is None else f"resembles the video at {image.time:.2f} s"
        lines.append(f"Mental image {number}: {resembles}")
    lines.append(f"Answer: {answer.answer or '(none)'}")
    if answer.option is not None:
        lines.append(f"Option: {options[answer.option]} ({answer.probabilities[answer.option]:.0%})")
    if answer.reason:
        lines.append(f"{'The words name no option, so this is the likeliest' if options else 'Note'}: {answer.reason}")
    return "\n".join(lines)


@app.command()
def simulate(
    num: Annotated[int, typer.Option(min=1, help="Number of questions.")],
    seed: Annotated[int, typer.Option(help="Random seed. The same seed makes the same questions.")],
    out: Annotated[Path, typer.Option(help="Folder to write records.jsonl, videos/ and images/ to.")],
    level: Annotated[int, typer.Option(help="Difficulty: 1, 2 or 3.")] = 1,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="A task, or dsr for the 13 tasks of DSR-Sim. Repeat the flag for each task. By default these are "
            "four basic tasks at level 1, and dsr at levels 2 and 3."
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help="train, or unseen: shapes, colours and speeds that train never has.")
    ] = "train",
    reasoning: Annotated[
        str,
        typer.Option(
            help="How the four basic tasks are reasoned about: paths (coordinates in words), pictures (mental images "
            "alone), or places (mental images first, then coordinates in words)."
        ),
    ] = "paths",
) -> None:
    """Make questions about simulated scenes, with exact answers."""
    with one_line_errors():
        from .data.simulation import generate_records

        tasks = tasks or generate_records.expand_tasks(None, level)
        typer.echo(
            generate_records.simulate(num, seed, out, level=level, tasks=tasks, split=split, reasoning=reasoning)
        )


@app.command()
def contact_sheet(
    records: Annotated[Path, typer.Argument(help="JSONL file of records.")],
    out: Annotated[Path, typer.Argument(help="PNG file to write.")],
    num: Annotated[int, typer.Option(min=1, help="Number of questions to draw.")] = 20,
    first: Annotated[int, typer.Option(min=0, help="Number of the first question to draw; 0 is the first.")] = 0,
) -> None:
    """Draw questions of RECORDS into one picture, for a person to check: frames, options and the right answer."""
    with one_line_errors():
        from .data.contact_sheet import draw_contact_sheet

        typer.echo(draw_contact_sheet(records, out, num, first))


@app.command()
def annotate(
    source: Annotated[Path, typer.Argument(metavar="VIDEO_OR_FOLDER", help="A video, or a folder of videos.")],
    out: Annotated[
        Path,
        typer.Option(help="Folder to write records.jsonl, videos/ and images/ to. A run that stopped is resumed."),
    ],
    shard: Annotated[
        str, typer.Option(help="I/N takes every Nth video from the Ith on, to share the work among machines.")
    ] = "1/1",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Videos to annotate at the same time. By default one for each core.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the wording and of the options.")] = 0,
    sam3: Annotated[
        str | None, typer.Option(help="Folder or Hub id of a SAM 3 video model that finds the objects.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="Address of an OpenAI-compatible server, up to and including /v1.")
    ] = None,
    namer: Annotated[
        str | None, typer.Option(help="Vision-language model on the server that names the objects.")
    ] = None,
    reasoner: Annotated[str | None, typer.Option(help="Model on the server that words the reasoning.")] = None,
) -> None:
    """Make questions about raw videos, answered from their pixels. It needs no labels, and by default no network."""
    with one_line_errors(), shared_work():
        from .data.annotation import pipeline

        index, _, count = shard.partition("/")
        if not (index.isdecimal() and count.isdecimal()):
            raise ValueError(f"--shard {shard}: it must be I/N, for example 1/8")
        settings = pipeline.AnnotationSettings(seed, sam3, server, namer, reasoner)
        if cost := pipeline.estimate_cost(source, out, (int(index), int(count)), settings):
            typer.echo(cost, err=True)
        summary = pipeline.annotate(source, out, (int(index), int(count)), workers, settings)
    if summary:  # only the main process has one
        typer.echo(pipeline.format_summary(summary))
        typer.echo(f"{out / 'index.html'} shows every video with its questions.")
        name_left_out([f"{failed['video']}: {failed['cause']}" for failed in summary["failed"]])


@app.command()
def evaluate(
    benchmark: Annotated[
        str, typer.Option(help="A JSONL file of records, a folder with records.jsonl, or the folder of DSR-Bench.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder to write predictions.jsonl and the reports to. A run that stopped is resumed.")
    ],
    model: Model = None,
    revision: Revision = None,
    subfolder: Subfolder = None,
    device: Device = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of questions to answer at the same time.")] = 32,
    probe: Annotated[
        str,
        typer.Option(help="plain, or the path from the video to the answer to cut, such as no-video, zeros or blind."),
    ] = "plain",
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16, which is faster.")] = "float32",
    missing: Annotated[
        str, typer.Option(help="What to do if a video is missing: count its questions as wrong, or refuse to run.")
    ] = "count",
    max_new_tokens: Annotated[int, typer.Option(min=1, help=MAX_NEW_TOKENS_HELP)] = 256,
) -> None:
    """Ask a model every question of a benchmark, and print its accuracy on each task with 95% intervals."""
    with one_line_errors(), shared_work():
        from .checkpoints import BUNDLED
        from .evaluation.report import format_table
        from .evaluation.runner import evaluate as run

        report = run(
            str(model or BUNDLED),
            benchmark,
            str(out),
            batch_size,
            probe=probe,
            dtype=dtype,
            missing=missing,
            max_new_tokens=max_new_tokens,
            revision=revision,
            subfolder=subfolder,
            device=device,
        )
    if report:  # only the main process has one
        typer.echo(format_table(report["table"]))
        unread = [f"question {name!r} counts as wrong: {reason}" for name, reason in report["unread"].items()]
        name_left_out([*report["left_out"], *unread])


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs of evaluate. The first is compared with each other.")
    ],
    out: Annotated[Path, typer.Option(help="HTML file to write. The tables are also written as .md beside it.")],
    trained: Annotated[
        list[str] | None, typer.Option(help="A task that the model was trained on. Repeat the flag for each task.")
    ] = None,
    failures: Annotated[
        int, typer.Option(min=0, help="Number of wrong answers of the first run to show with their mental images.")
    ] = 8,
) -> None:
    """Write a page that compares runs of evaluate: accuracies, paired differences, and wrong answers."""
    with one_line_errors():
        from .evaluation.html_report import write_report

        typer.echo(write_report(runs, out, trained, failures))


@app.command()
def maps(
    benchmark: Annotated[Path, typer.Option(help="JSONL file of simulated records.")],
    out: Annotated[Path, typer.Option(help="Folder to write maps.json to.")],
    model: Model = None,
    revision: Revision = None,
    subfolder: Subfolder = None,
    device: Device = None,
    num: Annotated[int, typer.Option(min=2, help="Number of records to use.")] = 100,
    source: Annotated[
        str,
        typer.Option(
            help="Which latents to test: model (those that the model generates) or targets (those of the true target "
            "frames)."
        ),
    ] = "model",
) -> None:
    """Test whether the similarity maps of mental images point at the object that each one is about."""
    with one_line_errors():
        from .checkpoints import BUNDLED
        from .evaluation.imagery_maps import score_maps

        place = {"revision": revision, "subfolder": subfolder, "device": device}
        scores = score_maps(str(model or BUNDLED), str(benchmark), str(out), num, source, **place)
        typer.echo(json.dumps(scores, indent=1))


@app.command()
def pictures(
    benchmark: Annotated[Path, typer.Option(help="JSONL file of records with target frames.")],
    out: Annotated[Path, typer.Option(help="Folder to write pictures.json to.")],
    model: Model = None,
    revision: Revision = None,
    subfolder: Subfolder = None,
    device: Device = None,
    num: Annotated[int, typer.Option(min=10, help="Number of records to use.")] = 100,
    source: Annotated[
        str,
        typer.Option(
            help="Which latents to draw: model (those that the model generates) or targets (those of the true target "
            "frames)."
        ),
    ] = "model",
) -> None:
    """Test whether the pictures that the imagery decoder draws show the true target frames."""
    with one_line_errors():
        from .checkpoints import BUNDLED
        from .evaluation.imagery_pictures import score_pictures

        place = {"revision": revision, "subfolder": subfolder, "device": device}
        scores = score_pictures(str(model or BUNDLED), str(benchmark), str(out), num, source, **place)
        typer.echo(json.dumps(scores, indent=1))


@app.command(name="filter")
def filter_command(
    records: Annotated[Path, typer.Argument(help="JSONL file of records, ours or those of the published RL set.")],
    out: Annotated[
        Path, typer.Option(help="JSONL file to write the kept records to. The counts are written beside it.")
    ],
    model: Model = None,
    revision: Revision = None,
    subfolder: Subfolder = None,
    device: Device = None,
    dtype: Dtype = "auto",
    samples: Annotated[int, typer.Option(min=2, help="Number of replies to sample for each question.")] = 8,
    temperature: Annotated[
        float, typer.Option(min=0.01, help="Temperature of the sampling. Use that of the training to come.")
    ] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of questions to answer at the same time.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help=MAX_NEW_TOKENS_HELP)] = 512,
    seed: Annotated[int, typer.Option(help="Random seed of the sampling.")] = 0,
) -> None:
    """Keep the questions that a model answers right in some replies and wrong in others: 4DRL learns from no other.

    A run that stopped is resumed by the same command.
    """
    with one_line_errors(), shared_work():
        from .checkpoints import BUNDLED
        from .training.filter_records import filter_records

        result = filter_records(
            records,
            out,
            str(model or BUNDLED),
            samples,
            temperature,
            batch_size,
            max_new_tokens,
            seed,
            revision=revision,
            subfolder=subfolder,
            dtype=dtype,
            device=device,
        )
    if result:  # only the main process has one
        summary, left_out = result
        typer.echo(summary)
        name_left_out(left_out)


@app.command()
def memory(
    recipe: Annotated[Path, typer.Argument(help="Recipe of train/sft.py or train/grpo.py.")],
    accelerate: Annotated[Path | None, typer.Option(help="Hardware file, from train/accelerate/.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Number of GPUs, instead of the hardware file's.")] = None,
    config: Annotated[
        str | None, typer.Option(help="Folder or Hub id of a config to use if the recipe's model is not there yet.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Number of video frames in a row.")] = 16,
    pixels: Annotated[
        int, typer.Option(min=784, help="Number of pixels in a video frame, and in a target frame.")
    ] = 256 * 28 * 28,
    images: Annotated[int, typer.Option(min=0, help="Number of target frames in a row.")] = 2,
    text: Annotated[int, typer.Option(min=1, help="Number of text tokens in a row; in 4DRL, in a prompt.")] = 500,
    labelled: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of the text tokens that have a label, 300 by default; in 4DRL, of the tokens of a reply, by "
            "default the most that it may have.",
        ),
    ] = None,
) -> None:
    """Estimate the memory that each GPU needs to train with RECIPE. Nothing is loaded or trained."""
    with one_line_errors():
        from .training.memory_estimate import describe

        typer.echo(describe(recipe, frames, pixels, images, text, labelled, accelerate, gpus, config))


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(help="Folder or Hub id of a Qwen2.5-VL base or a published 4DThinker checkpoint.")
    ],
    dest: Annotated[Path, typer.Argument(help="Folder to write.")],
    revision: Revision = None,
    subfolder: Subfolder = None,
    instruction: Annotated[
        Path | None, typer.Option(help="Text file. Every question that the model is asked ends with its text.")
    ] = None,
    latent_size: Annotated[
        int | None, typer.Option(min=1, help="Number of latents in a mental image. Only for a Qwen2.5-VL base.")
    ] = None,
    compress_strategy: Annotated[
        str | None,
        typer.Option(help="How a frame's features become latents: average or grid. Only for a Qwen2.5-VL base."),
    ] = None,
) -> None:
    """Convert the checkpoint SOURCE into the 4DThinker folder DEST."""
    with one_line_errors():
        from .hub.convert import convert as run

        line = run(source, dest, instruction, latent_size, compress_strategy, revision, subfolder)
    typer.echo(line)


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(help="Folder or Hub id of a PEFT adapter. It names its base model.")],
    dest: Annotated[Path, typer.Argument(help="Folder to write.")],
    revision: Revision = None,
    subfolder: Subfolder = None,
    dtype: Dtype = "auto",
) -> None:
    """Merge ADAPTER into its base model and write the 4DThinker folder DEST. One model is in memory."""
    with one_line_errors():
        from .hub.merge import merge as run

        line = run(adapter, dest, dtype, revision, subfolder)
    typer.echo(line)


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(help="A checkpoint, or a folder that simulate wrote.")],
    run: Annotated[
        list[Path] | None, typer.Option(help="Folder of a run of evaluate. Repeat the flag for each run.")
    ] = None,
    maps: Annotated[
        list[Path] | None, typer.Option(help="A maps.json that maps wrote. Repeat the flag for each file.")
    ] = None,
    registered: Annotated[
        str | None,
        typer.Option(help="OWNER/DATASET:TASK, the name of the plain run's benchmark if it is registered on the Hub."),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the model that this checkpoint was trained from.")
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="This checkpoint was trained from no other model.")
    ] = False,
    license: Annotated[
        str | None, typer.Option(help="The licence, as the Hub abbreviates it: apache-2.0, mit, ...")
    ] = None,
    trained_on: Annotated[
        list[str] | None, typer.Option(help="Hub id of a data set it was trained on. Repeat the flag for each one.")
    ] = None,
) -> None:
    """Write FOLDER/README.md. If a checkpoint has one already, only its figures and metadata are updated.

    A README.md that TRL, PEFT or the Trainer of transformers generated is replaced.
    """
    with one_line_errors():
        if (folder / "records.jsonl").is_file():
            from .hub.dataset_card import write_dataset_card

            typer.echo(write_dataset_card(folder))
            return
        from .hub.card import is_generated, make_card, save_figures, update_card

        if run or maps:
            save_figures(folder, run or [], maps or [], registered)
        write = update_card if (folder / "README.md").is_file() and not is_generated(folder) else make_card
        typer.echo(write(folder, base_model, license, from_scratch, trained_on or ()))


@app.command()
def publish(
    folder: Annotated[
        Path, typer.Argument(help="A checkpoint; with --dataset or --space, what these flags say instead.")
    ],
    repo_id: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="The repository on the Hub. It is created if it is not there.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print what would be uploaded, but upload nothing.")
    ] = False,
    dataset: Annotated[
        bool, typer.Option("--dataset", help="Publish a data set. FOLDER is one that simulate wrote.")
    ] = False,
    space: Annotated[
        bool, typer.Option("--space", help="Publish the demo as a Space. FOLDER is a checkout of this project.")
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run the checkpoint's own code although it is not this project's."),
    ] = False,
) -> None:
    """Check FOLDER and upload what others need of it to the Hub. After an interruption, the same command continues."""
    with one_line_errors():
        from .hub.publish import check_repo_id, make_plan, upload

        if dataset and space:
            raise ValueError("--dataset and --space cannot be given together")
        check_repo_id(repo_id)
        kind = "dataset" if dataset else "space" if space else "model"
        plan = make_plan(folder, kind, trust_remote_code)
        typer.echo(plan.describe(repo_id))
        if not dry_run:
            typer.echo(upload(plan, repo_id, private))
