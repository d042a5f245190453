"""The `fourdthinker` command. A mistake in what is given ends it with one line on stderr and exit status 2."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Ask questions about moving scenes, answered by picturing them.", no_args_is_help=True)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what a person can put right (bad input, a missing extra) into one line and exit status 2."""
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        typer.echo(f"fourdthinker: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error


@app.callback()
def main() -> None:
    pass


@app.command()
def ask(
    video: Path,
    question: str,
    option: Annotated[list[str] | None, typer.Option(help="An option to choose from; give it once for each.")] = None,
    start: Annotated[float | None, typer.Option(help="Seconds at which the video is cut to start.")] = None,
    end: Annotated[float | None, typer.Option(help="Seconds at which it is cut to end.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or Hub id; the bundled checkpoint by default.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Answer QUESTION about VIDEO, with the reasoning and what was pictured."""
    with plain_errors():
        from .hub.files import BUNDLED
        from .qa import VideoQA, check_question

        options = check_question(question, option)
        qa = VideoQA.from_pretrained(model or BUNDLED)
        answer = qa.ask(video, question, options, start=start, end=end, max_new_tokens=max_new_tokens)
    typer.echo(json.dumps(_summary(answer, options)) if as_json else _report(answer, options))


def _summary(answer, options: list[str]) -> dict:
    return {
        "answer": answer.answer,
        "option": None if answer.option is None else options[answer.option],
        "probabilities": answer.probabilities and dict(zip(options, answer.probabilities, strict=True)),
        "reasoning": answer.reasoning,
        "images": [{"time": image.time} for image in answer.images],
        "truncated": answer.truncated,
        "reason": answer.reason,
    }


def _report(answer, options: list[str]) -> str:
    lines = [f"Reasoning: {answer.reasoning}"]
    for number, image in enumerate(answer.images, start=1):
        resembles = "was empty" if image.time is None else f"resembles the video at {image.time:.2f} s"
        lines.append(f"Mental image {number}: {resembles}")
    lines.append(f"Answer: {answer.answer or '(none)'}")
    if answer.option is not None:
        lines.append(f"Option: {options[answer.option]} ({answer.probabilities[answer.option]:.0%})")
    elif answer.reason:
        lines.append(f"{'No option' if options else 'Note'}: {answer.reason}")
    return "\n".join(lines)


@app.command()
def simulate(
    num: Annotated[int, typer.Option(min=1, help="Questions to make.")],
    seed: Annotated[int, typer.Option(help="The same seed makes the same questions.")],
    out: Annotated[Path, typer.Option(help="Folder for records.jsonl, videos/ and images/.")],
    level: Annotated[int, typer.Option(help="Of difficulty: 1, 2 or 3.")] = 1,
    tasks: Annotated[
        list[str] | None,
        typer.Option(help="A task, or dsr for DSR-Sim's 13; once for each. Default: dsr, at level 1 its own 4."),
    ] = None,
    split: Annotated[str, typer.Option(help="train, or unseen: other shapes, colours and speeds.")] = "train",
    reasoning: Annotated[
        str, typer.Option(help="Of the 4: paths writes coordinates, pictures only shows, places shows, then writes.")
    ] = "paths",
) -> None:
    """Make questions about simulated scenes, with exact answers."""
    with plain_errors():
        from .data.simulation.generation import expand_tasks
        from .data.simulation.generation import simulate as make

        tasks = tasks or expand_tasks(None, level)
        typer.echo(make(num, seed, out, level=level, tasks=tasks, split=split, reasoning=reasoning))


@app.command()
def sheet(
    records: Annotated[Path, typer.Argument(help="JSONL file of records.")],
    out: Annotated[Path, typer.Argument(help="PNG to write.")],
    num: Annotated[int, typer.Option(min=1, help="Questions on it.")] = 20,
    first: Annotated[int, typer.Option(min=0, help="Number of the first one.")] = 0,
) -> None:
    """Draw a contact sheet OUT of RECORDS: frames, questions, options, and which one is right."""
    with plain_errors():
        from .data.contact_sheet import contact_sheet

        typer.echo(contact_sheet(records, out, num, first))


@app.command()
def annotate(
    source: Annotated[Path, typer.Argument(metavar="VIDEO_OR_FOLDER")],
    out: Annotated[Path, typer.Option(help="Folder for records.jsonl, videos/ and images/; resumed if it has some.")],
    shard: Annotated[str, typer.Option(help="I/N: every Nth video from the Ith, for many machines.")] = "1/1",
    workers: Annotated[int | None, typer.Option(min=1, help="Videos at a time; one a core by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of wording and options.")] = 0,
    sam3: Annotated[str | None, typer.Option(help="SAM 3 video model, folder or Hub id, to find objects.")] = None,
    server: Annotated[str | None, typer.Option(help="OpenAI-compatible address, up to and with /v1.")] = None,
    namer: Annotated[str | None, typer.Option(help="Its vision-language model that names objects.")] = None,
    reasoner: Annotated[str | None, typer.Option(help="Its model that words the reasoning.")] = None,
) -> None:
    """Make questions about raw videos, answered from their pixels: no labels, and by default no network."""
    with plain_errors():
        from .data.annotation.pipeline import Settings, describe
        from .data.annotation.pipeline import annotate as make

        index, _, count = shard.partition("/")
        if not (index.isdecimal() and count.isdecimal()):
            raise ValueError(f"--shard {shard}: it must be I/N, as 1/8")
        settings = Settings(seed, sam3, server, namer, reasoner)
        typer.echo(describe(make(source, out, (int(index), int(count)), workers, settings)))


@app.command()
def evaluate(
    benchmark: Annotated[str, typer.Option(help="JSONL file of records, a folder with one, or DSR-Bench's folder.")],
    out: Annotated[Path, typer.Option(help="Folder for predictions.jsonl and reports; resumed if it holds this run.")],
    model: Annotated[str | None, typer.Option(help="Folder or Hub id; the bundled checkpoint by default.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    probe: Annotated[str, typer.Option(help="plain, or what is cut: no-video, zeros, blind, ...")] = "plain",
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16 for speed.")] = "float32",
    missing: Annotated[str, typer.Option(help="A question without its video: count as wrong, or refuse.")] = "count",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
) -> None:
    """Ask every question of a benchmark; print accuracies with 95% intervals."""
    with plain_errors():
        from .evaluation.report import format_table
        from .evaluation.runner import evaluate as run
        from .hub.files import BUNDLED

        report = run(
            str(model or BUNDLED),
            benchmark,
            str(out),
            batch_size,
            probe=probe,
            dtype=dtype,
            missing=missing,
            max_new_tokens=max_new_tokens,
        )
    if report:  # one of several processes speaks
        typer.echo(format_table(report["table"]))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs; the first is the measure.")],
    out: Annotated[Path, typer.Option(help="The page, HTML; the tables stand beside it as .md.")],
    trained: Annotated[list[str] | None, typer.Option(help="A task that was trained; give it once for each.")] = None,
    failures: Annotated[int, typer.Option(min=0, help="Wrong answers of the first run to show.")] = 8,
) -> None:
    """Draw a page that compares runs of `evaluate`: accuracies, paired differences, worst answers with imagery."""
    with plain_errors():
        from .evaluation.html_report import write_report

        typer.echo(write_report(runs, out, trained, failures))


@app.command()
def maps(
    benchmark: Annotated[Path, typer.Option(help="JSONL file of simulated records.")],
    out: Annotated[Path, typer.Option(help="Folder for maps.json.")],
    model: Annotated[str | None, typer.Option(help="Folder or Hub id; the bundled checkpoint by default.")] = None,
    num: Annotated[int, typer.Option(min=2, help="Records to use.")] = 100,
    source: Annotated[str, typer.Option(help="model: what it pictured; targets: the true target frames.")] = "model",
) -> None:
    """Test whether the maps of mental images point at the object pictured, against shuffled ones."""
    with plain_errors():
        from .evaluation.maps import map_test
        from .hub.files import BUNDLED

        typer.echo(json.dumps(map_test(str(model or BUNDLED), str(benchmark), str(out), num, source), indent=1))


@app.command(name="filter")
def filter_command(
    records: Annotated[Path, typer.Argument(help="JSONL file of records, ours or the published RL set.")],
    out: Annotated[Path, typer.Option(help="JSONL file for those worth training on; counts lie beside it.")],
    model: Annotated[str | None, typer.Option(help="Folder or Hub id; the bundled checkpoint by default.")] = None,
    samples: Annotated[int, typer.Option(min=2, help="Replies to a question.")] = 8,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of the sampling; that of the run to come.")] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 512,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Keep the questions that a model answers right sometimes: 4DRL learns nothing from others. Resumable."""
    with plain_errors():
        from .hub.files import BUNDLED
        from .training.filter_records import filter_records

        typer.echo(
            filter_records(records, out, str(model or BUNDLED), samples, temperature, batch_size, max_new_tokens, seed)
        )


@app.command()
def memory(
    recipe: Annotated[Path, typer.Argument(help="Recipe of train/sft.py.")],
    accelerate: Annotated[Path | None, typer.Option(help="Its hardware, a file of train/accelerate/.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs, instead of the hardware file's number.")] = None,
    config: Annotated[str | None, typer.Option(help="Config to use if the model is not here yet.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames of the video of a row.")] = 16,
    pixels: Annotated[int, typer.Option(min=784, help="Pixels of a frame, and of a target frame.")] = 256 * 28 * 28,
    images: Annotated[int, typer.Option(min=0, help="Target frames of a row.")] = 2,
    text: Annotated[int, typer.Option(min=1, help="Tokens of text of a row.")] = 500,
    spoken: Annotated[int, typer.Option(min=1, help="Those among them that have a label.")] = 300,
) -> None:
    """Tell the memory that each GPU needs to train by RECIPE; nothing is loaded or trained."""
    with plain_errors():
        from .training.memory_estimate import Shape, describe

        typer.echo(describe(recipe, Shape(frames, pixels, images, text, spoken), accelerate, gpus, config))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Folder or Hub id: a Qwen2.5-VL base or a published 4DThinker.")],
    dest: Annotated[Path, typer.Argument(help="Folder to make.")],
    instruction: Annotated[Path | None, typer.Option(help="Text file with what every question ends with.")] = None,
    latent_size: Annotated[int | None, typer.Option(min=1, help="For a base: latents in a mental image.")] = None,
    compress_strategy: Annotated[str | None, typer.Option(help="For a base: average or grid.")] = None,
) -> None:
    """Make a 4DThinker folder DEST of the checkpoint SOURCE."""
    with plain_errors():
        from .hub.convert import convert as make

        line = make(source, dest, instruction, latent_size=latent_size, compress_strategy=compress_strategy)
    typer.echo(line)


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(help="A checkpoint, or a folder that simulate wrote.")],
    run: Annotated[list[Path] | None, typer.Option(help="Folder of an evaluate run; once for each.")] = None,
    maps: Annotated[list[Path] | None, typer.Option(help="A maps.json; once for each.")] = None,
    registered: Annotated[
        str | None, typer.Option(help="OWNER/DATASET:TASK, what the plain run is among the Hub's benchmarks.")
    ] = None,
    base_model: Annotated[str | None, typer.Option(help="Hub id of the model that it was made of.")] = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="It was made of none.")] = False,
    license: Annotated[str | None, typer.Option(help="As the Hub abbreviates it: apache-2.0, mit, ...")] = None,
    trained_on: Annotated[list[str] | None, typer.Option(help="Hub id of a data set; once for each.")] = None,
) -> None:
    """Make FOLDER/README.md, or render its figures anew, from the runs given and those given before."""
    with plain_errors():
        from .hub.card import keep_figures, make_card, renew_card, write_split_card

        if (folder / "records.jsonl").is_file():
            typer.echo(write_split_card(folder))
            return
        if run or maps:
            keep_figures(folder, run or [], maps or [], registered)
        write = renew_card if (folder / "README.md").is_file() else make_card
        typer.echo(write(folder, base_model, license, from_scratch, trained_on or ()))


@app.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="A checkpoint; see --dataset and --space for others.")],
    repo_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, print the plan, and send nothing.")] = False,
    dataset: Annotated[bool, typer.Option("--dataset", help="FOLDER is what simulate wrote.")] = False,
    space: Annotated[bool, typer.Option("--space", help="FOLDER is a checkout; its demo becomes a Space.")] = False,
) -> None:
    """Check FOLDER and upload what others need of it to the Hub; the same command goes on after a break."""
    with plain_errors():
        from .hub.publish import check_repo_id, make_plan, upload

        if dataset and space:
            raise ValueError("--dataset and --space: it is one of the two")
        check_repo_id(repo_id)
        plan = make_plan(folder, "dataset" if dataset else "space" if space else "model")
        typer.echo(plan.describe(repo_id))
        if not dry_run:
            typer.echo(upload(plan, repo_id, private))
