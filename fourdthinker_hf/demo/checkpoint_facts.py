"""What the page says of a checkpoint. It is read from the files beside its weights, so that another checkpoint changes
it: the card, and what was measured."""

from pathlib import Path

from huggingface_hub import ModelCard

from ..checkpoints import find_base, num_parameters, read_json

FROM_SCRATCH = "trained-from-scratch"  # a tag, as in hub/card.py


def describe_checkpoint(folder: Path) -> str:
    """Its size, what it was trained on, and what it was asked in tests, with the share that it answered right."""
    card = folder / "README.md"
    data = ModelCard.load(card).data.to_dict() if card.is_file() else {}
    origin = ""
    if FROM_SCRATCH in (data.get("tags") or ()):
        origin = ", trained from scratch"
    elif base := data.get("base_model"):
        origin = f", trained from {_listed(base)}"
    if datasets := data.get("datasets"):
        origin += f"{'' if origin else ', trained'} on {_listed(datasets)}"
    sentences = [f"{folder.name}: {num_parameters(find_base(folder) or folder)} parameters{origin}."]
    runs: dict[bool, dict] = {}  # by whether the questions were simulated: the run with most questions
    for run in read_runs(folder):
        known = runs.get(run["simulated"])
        if run["probe"] == "plain" and (known is None or run["num_questions"] > known["num_questions"]):
            runs[run["simulated"]] = run
    for is_simulated, run in sorted(runs.items(), reverse=True):
        questions = "simulated questions" if is_simulated else f"questions of {run['benchmark']}"
        tasks = {name: row for name, row in run["table"].items() if name not in ("macro", "pooled")}
        shares = [f"{name.replace('_', ' ')} {row['accuracy']:.0%}" for name, row in tasks.items()]
        if len(shares) > 6:
            shares = [f"{run['table']['pooled']['accuracy']:.0%}"]
        sentences.append(f"Of {run['num_questions']:,} {questions} it answered right: {', '.join(shares)}.")
    if not runs:
        sentences.append("No test of it is stored.")
    elif False not in runs:
        sentences.append("On real video nothing was measured.")
    return " ".join(sentences)


def _listed(names: str | list[str]) -> str:
    return names if isinstance(names, str) else ", ".join(names)


def read_runs(folder: Path) -> list[dict]:
    """The runs of `fourdthinker evaluate` that are stored with a checkpoint."""
    return [run for path in sorted(folder.glob("evaluation/*.json")) if "probe" in (run := read_json(path))]


def read_map_test(folder: Path) -> dict | None:
    """What `fourdthinker maps` found for the model's own mental images."""
    path = folder / "evaluation" / "maps.model.json"
    return read_json(path) if path.is_file() else None


def read_rates(folder: Path) -> dict[str, dict]:
    """The accuracies over all questions of the plain run and of the probes about mental images, by probe, from the
    benchmark that has most of them."""
    rates: dict[str, dict] = {}
    for run in read_runs(folder):
        rates.setdefault(run["benchmark"], {})[run["probe"]] = run["table"]["pooled"]
    return max(rates.values(), key=len, default={})
