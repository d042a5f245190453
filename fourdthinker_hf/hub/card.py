"""Cards: README.md of a checkpoint, whose figures are rendered from files.

A checkpoint's card is made of `model_card.md`, the template. Its figures come from `FOLDER/evaluation/*.json`, one
file for each run of `evaluate` and each `maps.json`: what the card needs of them, and which weights were evaluated.
The figures stand in three places, all rendered: between two marks in README.md, in its metadata as `model-index`
(simulated questions), and in `.eval_results/*.yaml` (benchmarks registered on the Hub). Everything else in README.md
is a person's. A card that still says NEEDED somewhere is not ready.

A model that was trained from scratch has no `base_model`, and the Hub has no word for that: the tag FROM_SCRATCH says
so, and that nobody forgot it.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index

from ..data.records import Record
from ..data.vocabulary import DSR_TASKS
from ..evaluation.benchmarks import load_benchmark, questions_hash
from ..evaluation.html_report import Run, read_run
from ..evaluation.probes import PROBES
from ..evaluation.report import accuracy_table, format_table
from ..evaluation.statistics import compare
from .files import find_model, model_hash, read_shards, shipped

TEMPLATE = shipped("model_card.md")
BEGIN, END = "<!-- figures: written by `fourdthinker card` -->", "<!-- end of figures -->"
NEEDED = "[More Information Needed]"  # as in the Hub's own template
FROM_SCRATCH = "trained-from-scratch"
LIMITS = (
    "Its answers can be wrong, and fluent reasoning is no sign that they are right. The questions above are what it "
    "was tested on; nothing is known of others. What a mental image resembles is no evidence of what the model saw, "
    "unless the probes above say so."
)
PROBE_HEAD = (
    "| probe | what it cuts | accuracy | 95% interval | difference | 95% interval | answers changed |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)
MAPS_HEAD = (
    "| latents | score | own | shuffled | chance | gain | 95% interval |\n| --- | --- | --- | --- | --- | --- | --- |"
)
SCORES = {"mass": "mass in the object's mask", "best_step": "best step right", "near_step": "at most one step off"}
SOURCES = {"model": "the model's own", "targets": "of the true target frames"}


# A checkpoint's card


def make_card(
    folder: str | os.PathLike,
    base_model: str | None = None,
    license: str | None = None,
    from_scratch: bool = False,
    datasets: Sequence[str] = (),
    training: str = NEEDED,
    limits: str = LIMITS,
) -> Path:
    """Write FOLDER/README.md anew from the template, whatever stood there; returns its path.

    Args:
        folder: a 4DThinker checkpoint.
        base_model: Hub id of the model that it was made of.
        license: as the Hub abbreviates it, e.g. "apache-2.0".
        from_scratch: it was made of no model.
        datasets: Hub ids of the data that it learnt from.
        training, limits: what the card says of both, Markdown.
    """
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    data = ModelCardData(
        language="en",
        library_name="transformers",
        pipeline_tag="video-text-to-text",
        tags=["custom_code", "video-question-answering", "latent-reasoning", "spatial-reasoning"],
    )
    _describe(data, base_model, license, from_scratch, datasets)
    kept = read_figures(folder)
    _set_index(data, kept, folder.name)
    descent = f", and comes from [{base_model}](https://huggingface.co/{base_model})" if base_model else ""
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=folder.name,
        parameters=_count(folder),
        latent_size=config["latent_size"],
        descent=", trained from scratch" if from_scratch else descent,
        training=training,
        evaluation=_framed(figures_text(kept)),
        limits=limits,
        licence=license or NEEDED,
    )
    _write_registered(folder, kept)
    return _write(folder / "README.md", str(card) + "\n")


def renew_card(
    folder: str | os.PathLike,
    base_model: str | None = None,
    license: str | None = None,
    from_scratch: bool = False,
    datasets: Sequence[str] = (),
) -> Path:
    """Render the figures of FOLDER/README.md anew, and set in its metadata what is given; leave the rest."""
    folder = Path(folder)
    card = read_card(folder)
    if BEGIN not in card.text or END not in card.text:
        raise ValueError(
            f"{folder / 'README.md'}: has no place for figures; write the lines {BEGIN} and {END} where they belong, "
            "or remove the file to have one made of the template"
        )
    _describe(card.data, base_model, license, from_scratch, datasets)
    kept = read_figures(folder)
    _set_index(card.data, kept, card.data.model_name or folder.name)
    card.text = _with_figures(card.text, figures_text(kept))
    _write_registered(folder, kept)
    return _write(folder / "README.md", card.content)


def check_card(folder: Path) -> list[str]:
    """What keeps FOLDER/README.md from being published, one sentence each."""
    path, renew = folder / "README.md", f"fourdthinker card {folder}"
    if not path.is_file():
        return [f"no README.md; `{renew}` makes one"]
    card, found = read_card(folder), []
    if not card.data.license:
        found.append(f"README.md names no licence; `{renew} --license ID` does")
    if not card.data.base_model and FROM_SCRATCH not in (card.data.tags or ()):
        found.append(
            f"README.md names no base model; `{renew} --base-model ID` does, `{renew} --from-scratch` says "
            "that there is none"
        )
    if NEEDED in card.text:
        line = card.content[: card.content.index(NEEDED)].count("\n") + 1
        found.append(f"README.md, line {line}: still says {NEEDED}")
    kept = read_figures(folder)
    if other := [name for name, row in kept.items() if row["model_sha256"] != model_hash(folder)]:
        found.append(f"{', '.join(other)}: measured on other weights; evaluate these and give the runs to it")
    index = _index(kept, card.data.model_name or folder.name)
    texts = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.glob(".eval_results/*.yaml")}
    if (
        _framed(figures_text(kept)) not in card.text
        or card.data.to_dict().get("model-index") != index
        or texts != registered_files(kept)
    ):
        found.append(f"README.md's figures are not those of evaluation/; `{renew}` renders them anew")
    return found


def read_card(folder: Path) -> ModelCard:
    """The card; `OSError` if there is none, `ValueError` if its metadata cannot be read."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    try:
        return ModelCard(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{folder / 'README.md'}: its metadata cannot be read: {error}") from error


def lineage(model: str | os.PathLike) -> dict:
    """`base_model`, `license` and `from_scratch` of a card for what is made of `model`, a folder with a card or a Hub
    id. `ValueError` if its own card does not say."""
    is_folder = Path(model).is_dir()
    try:
        data = read_card(Path(model)).data if is_folder else ModelCard.load(str(model)).data
    except OSError as error:
        raise ValueError(f"{model}: no card (README.md) says what its licence is: {error}") from error
    of_folder = {"base_model": data.base_model, "from_scratch": FROM_SCRATCH in (data.tags or ())}
    found = of_folder if is_folder else {"base_model": str(model), "from_scratch": False}
    if not data.license or not (found["base_model"] or found["from_scratch"]):
        raise ValueError(
            f"{model}: its card names no licence or no base model; `fourdthinker card {model} --license ID "
            "--base-model ID` (or --from-scratch) writes them"
        )
    return {**found, "license": data.license}


# Figures


def keep_figures(
    folder: str | os.PathLike, runs: Sequence[Path], maps: Sequence[Path] = (), registered: str | None = None
) -> list[Path]:
    """Write to FOLDER/evaluation what its card needs of `runs` (folders of `evaluate`) and `maps` (their `maps.json`).

    Runs with a probe are compared with the plain run of the same questions among `runs`. `registered`,
    "OWNER/DATASET:TASK", names what the plain run is on the Hub. What is there of other weights than FOLDER's goes.
    Raises `ValueError` for a run of other weights, of a benchmark that changed since, or a probe without its plain
    run.
    """
    folder = Path(folder)
    known = model_hash(folder)
    found = [read_run(path) for path in runs]
    plain = {run.settings["questions_sha256"]: run for run in found if run.settings["probe"] == "plain"}
    if registered is not None and (len(plain) != 1 or not re.fullmatch(r"[^/:]+/[^/:]+:[^:]+", registered)):
        raise ValueError(f"--registered {registered}: must be OWNER/DATASET:TASK, with one plain run given")
    files = {}
    for run in found:
        if run.settings["model_sha256"] != known:
            raise ValueError(f"{run.folder}: a run of other weights than those in {folder}; evaluate these")
        if run.settings["questions_sha256"] not in plain:
            raise ValueError(f"{run.folder}: a probe is held against the plain run of its questions; give that too")
        row = _run_figures(run, plain[run.settings["questions_sha256"]])
        if registered is not None and row["probe"] == "plain":
            row["registered"] = registered
        files[f"{_slug(row['benchmark'])}.{row['probe']}.json"] = row
    for path in maps:
        row = json.loads(Path(path).read_text())
        if model_hash(find_model(row["model"])) != known:
            raise ValueError(f"{path}: maps of other weights than those in {folder}; test these")
        kept = {key: value for key, value in row.items() if key not in ("model", "benchmark")}
        files[f"maps.{row['source']}.json"] = {"model_sha256": known, **kept}
    (folder / "evaluation").mkdir(exist_ok=True)
    for name, row in read_figures(folder).items():
        if row["model_sha256"] != known:
            (folder / name).unlink()
    return [_write(folder / "evaluation" / name, json.dumps(row, indent=1) + "\n") for name, row in files.items()]


def read_figures(folder: Path) -> dict[str, dict]:
    """What FOLDER/evaluation holds, by file name."""
    return {f"evaluation/{path.name}": json.loads(path.read_text()) for path in _sorted(folder, "evaluation/*.json")}


def figures_text(kept: dict[str, dict]) -> str:
    """The evaluation as Markdown."""
    runs, maps = [row for row in kept.values() if "probe" in row], [row for row in kept.values() if "source" in row]
    parts = []
    for plain in (row for row in runs if row["probe"] == "plain"):
        cut = [row for row in runs if row["benchmark"] == plain["benchmark"] and row is not plain]
        cut.sort(key=lambda row: list(PROBES).index(row["probe"]))
        parts += [_run_text(plain), *([_probes_text(cut)] if cut else [])]
    if maps:
        parts.append(_maps_text(maps))
    return "\n\n".join(parts) or "It was not evaluated."


def registered_files(kept: dict[str, dict]) -> dict[str, str]:
    """`{path: YAML}` of `.eval_results/`: accuracies in percent on benchmarks that are registered on the Hub."""
    files = {}
    for row in kept.values():
        if "registered" in row:
            dataset, task = row["registered"].split(":")
            total = row["table"]["pooled"]
            notes = f"{total['num']} questions, greedy; 95% interval {total['low']:.1%} to {total['high']:.1%}"
            entry = EvalResultEntry(dataset, task, round(100 * total["accuracy"], 2), notes=notes)
            text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
            files[f".eval_results/{_slug(row['registered'])}.yaml"] = text
    return files


def _run_figures(run: Run, plain: Run) -> dict:
    """What the card needs of a run; paths of this machine stay out."""
    settings = run.settings
    records = load_benchmark(settings["benchmark"])
    if questions_hash(records) != settings["questions_sha256"]:
        raise ValueError(f"{run.folder}: {settings['benchmark']} holds other questions now; evaluate it again")
    name, simulated = _benchmark_name(records, Path(settings["benchmark"]))
    report = json.loads((run.folder / "report.json").read_text())
    row = {
        "benchmark": name,
        "simulated": simulated,
        "probe": settings["probe"],
        **{key: value for key, value in settings.items() if key not in ("model", "benchmark", "probe")},
        "commit": report["this_call"]["commit"],
        "table": accuracy_table(run.rows),
    }
    return row if run is plain else {**row, "against_plain": compare(plain.rows, run.rows)}


def _benchmark_name(records: list[Record], path: Path) -> tuple[str, bool]:
    """What is asked, in words, and whether the simulator made it."""
    if all((record.source or {}).get("generator") == "simulation" for record in records):
        return _split_name(records), True
    return (path.parent.name if path.name == "records.jsonl" else path.stem), False


def _split_name(records: list[Record]) -> str:
    facts = _split_facts(records)
    family = "DSR-Sim" if facts["tasks"].keys() <= set(DSR_TASKS) else "Simulated questions"
    words = [f"{key} {', '.join(map(str, facts[key]))}" for key in ("level", "seed")]
    return ", ".join([family, *words, *(f"split {split}" for split in facts["split"] if split != "train")])


def _split_facts(records: list[Record]) -> dict:
    sources = [record.source for record in records]
    return {
        **{key: sorted({source[key] for source in sources}) for key in ("level", "seed")},
        "split": sorted({source.get("split", "train") for source in sources}),
        "tasks": dict(sorted(Counter(record.task for record in records).items())),
    }


def _run_text(row: dict) -> str:
    where = f"PyTorch {row['torch']}, transformers {row['transformers']}, {row['device']}, {row['dtype']}"
    commit, *changes = (row["commit"] or "").split(" ", 1)
    measured = ", ".join([" ".join([f"commit {commit[:7]}", *changes]), where]) if commit else where
    return (
        f"### {row['benchmark']}\n\n{row['num_questions']} questions, asked greedily, the reply written freely "
        f"(`fourdthinker evaluate`; {measured}).\n\n{format_table(row['table'])}"
    )


def _probes_text(rows: list[dict]) -> str:
    lines = [PROBE_HEAD]
    for row in rows:
        total, pair = row["table"]["pooled"], row["against_plain"]
        lines.append(
            f"| `{row['probe']}` | {PROBES[row['probe']].cuts} | {total['accuracy']:.1%} "
            f"| {total['low']:.1%} to {total['high']:.1%} | {pair['difference']:+.1%} "
            f"| {pair['low']:+.1%} to {pair['high']:+.1%} | {pair['changed']:.1%} |"
        )
    about = "One path from the video to the answer is cut. Differences are to the run above, paired by question."
    return f"{about}\n\n" + "\n".join(lines)


def _maps_text(rows: list[dict]) -> str:
    lines = [MAPS_HEAD]
    for row in rows:
        for name, words in SCORES.items():
            score = row[name]
            lines.append(
                f"| {SOURCES[row['source']]} | {words} | {score['own']:.3f} | {score['shuffled']:.3f} "
                f"| {score['chance']:.3f} | {score['gain']:.3f} | {score['low']:.3f} to {score['high']:.3f} |"
            )
    counts = "; ".join(f"{SOURCES[row['source']]}: {row['num']}" for row in rows)
    return (
        f"### What the mental images point at\n\nMaps of mental images ({counts}) against the exact masks of the "
        "objects pictured, and against another clip's mental image on the same video (`fourdthinker maps`).\n\n"
        + "\n".join(lines)
    )


def _index(kept: dict[str, dict], name: str) -> list[dict] | None:
    results = _results(kept)
    return eval_results_to_model_index(name, results) if results else None


def _results(kept: dict[str, dict]) -> list[EvalResult]:
    """Accuracies on simulated questions, for `model-index`."""
    found = []
    for row in kept.values():
        if row.get("probe") == "plain" and row["simulated"]:
            for task, cell in row["table"].items():
                if task == "macro":
                    continue
                interval = {key: round(cell[key], 4) for key in ("low", "high")}
                found.append(
                    EvalResult(
                        task_type="video-text-to-text",
                        dataset_type=_slug(row["benchmark"]),
                        dataset_config=task,
                        dataset_name=f"{row['benchmark']}: {task}",
                        metric_type="accuracy",
                        metric_name="accuracy",
                        metric_value=round(cell["accuracy"], 4),
                        metric_args={"questions": cell["num"], **interval},
                    )
                )
    return found


# Parts


def _describe(data, base_model: str | None, license: str | None, from_scratch: bool, datasets: Sequence[str]) -> None:
    if base_model and from_scratch:
        raise ValueError(f"made of {base_model} or from scratch: it is one of the two")
    tags = [tag for tag in data.tags or () if tag != FROM_SCRATCH or not base_model]
    data.tags = tags + [FROM_SCRATCH] * (from_scratch and FROM_SCRATCH not in tags)
    if base_model:
        data.base_model, data.base_model_relation = base_model, "finetune"
    elif from_scratch:
        data.base_model = data.base_model_relation = None
    data.license = license or data.license
    data.datasets = list(datasets) or data.datasets


def _set_index(data, kept: dict[str, dict], name: str) -> None:
    data.eval_results = _results(kept) or None
    data.model_name = name if data.eval_results else None


def _write_registered(folder: Path, kept: dict[str, dict]) -> None:
    for path in folder.glob(".eval_results/*.yaml"):
        path.unlink()
    for name, text in registered_files(kept).items():
        (folder / name).parent.mkdir(exist_ok=True)
        _write(folder / name, text)


def _framed(text: str) -> str:
    return f"{BEGIN}\n\n{text}\n\n{END}"


def _with_figures(text: str, figures: str) -> str:
    before, rest = text.split(BEGIN, 1)
    return before + _framed(figures) + rest.split(END, 1)[1]


def _count(folder: Path) -> str:
    """Numbers in the weights, in words: 3.0 M."""
    total = sum(math.prod(shape) for shapes in read_shards(folder).values() for shape in shapes.values())
    return f"{total / 1e9:.1f} B" if total >= 1e9 else f"{total / 1e6:.1f} M"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _sorted(folder: Path, pattern: str) -> list[Path]:
    """The plain run first, and the rest by name."""
    return sorted(folder.glob(pattern), key=lambda path: (".plain." not in path.name, path.name))


def _write(path: Path, text: str) -> Path:
    """The file appears whole or not at all."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
    return path
