"""Writes and checks the card of a data set that `fourdthinker simulate` wrote, its README.md. The card is made of the
records."""

import os
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

from ..data.records import Record, read_records
from ..evaluation.benchmarks import simulated_facts, simulated_name
from ..output_files import write_whole
from .card import BEGIN, END, between_marks

TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

Questions about simulated scenes, with exact answers. MuJoCo moves the objects and the camera, and the answers are
computed from the simulator's state. Each line of `records.jsonl` is a question with its options, its answer, and the
path of its clip in `videos/`. A question with reasoning also names the frames in `images/` that its mental images
stand for.

```python
from datasets import load_dataset

questions = load_dataset("OWNER/NAME")
```

`hf download OWNER/NAME --repo-type dataset --local-dir data/split` also downloads the clips. Then
`fourdthinker evaluate --benchmark data/split` asks a model the questions, and `train/sft.py` trains on them.

{{ figures }}

## Licence

{{ licence }}. The clips show only the simulator's own shapes and textures.
"""
# The size categories of the Hub, each with the number of records below which it holds.
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (float("inf"), "100K<n<1M"))


def write_dataset_card(folder: str | os.PathLike) -> Path:
    """Write FOLDER/README.md from FOLDER/records.jsonl, in place of any other. Returns its path."""
    folder = Path(folder)
    return write_whole(folder / "README.md", dataset_card(folder, read_records(folder / "records.jsonl")))


def dataset_card(folder: Path, records: list[Record]) -> str:
    """The README.md of a folder that `simulate` wrote. Raises `ValueError` if a record is from elsewhere."""
    for record in records:
        if (record.source or {}).get("generator") != "simulation":
            raise ValueError(f"{folder}: record {record.id} was not made by `fourdthinker simulate`")
    facts = simulated_facts(records)
    data = DatasetCardData(
        language="en",
        license="apache-2.0",
        pretty_name=simulated_name(records),
        task_categories=["video-text-to-text", "visual-question-answering"],
        size_categories=next(category for limit, category in SIZES if len(records) < limit),
        tags=["synthetic", "video", "spatial-reasoning"],
        configs=[
            {"config_name": "default", "data_files": [{"split": "_".join(facts["split"]), "path": "records.jsonl"}]}
        ],
    )
    origin = "; ".join(f"{key} {', '.join(map(str, facts[key]))}" for key in ("level", "seed", "split"))
    lines = [
        f"{len(records)} questions ({origin}), made by `fourdthinker simulate`.",
        "",
        "| task | questions |",
        "| --- | --- |",
        *(f"| {task} | {num} |" for task, num in facts["tasks"].items()),
    ]
    card = DatasetCard.from_template(
        data,
        template_str=TEMPLATE,
        title=simulated_name(records),
        figures=between_marks("\n".join(lines)),
        licence=data.license,
    )
    return str(card) + "\n"


def check_dataset_card(folder: Path, records: list[Record]) -> list[str]:
    """The problems for which FOLDER/README.md cannot be published, one sentence each. A folder needs no README.md."""
    path = folder / "README.md"
    if not path.is_file():
        return []
    expected, card = DatasetCard(dataset_card(folder, records)), DatasetCard.load(path)
    problems = [] if card.data.license else ["README.md names no licence"]
    figures = expected.text[expected.text.index(BEGIN) : expected.text.index(END)]
    if figures not in card.text or card.data.to_dict().get("configs") != expected.data.to_dict()["configs"]:
        problems.append(
            f"README.md's figures are not those of the records; `fourdthinker card {folder}` makes it anew"
        )
    return problems
