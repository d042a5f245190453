"""Cards: README.md of a DSR-Sim split, made of its records."""

import os
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

from ..data.records import Record, read_records
from .card import BEGIN, END, _framed, _split_facts, _split_name, _write

SPLIT_TEXT = """---
{{ card_data }}
---

# {{ title }}

Questions about simulated scenes, with exact answers: MuJoCo moves the objects and the camera, and the simulator's
state says what is true. A line of `records.jsonl` is a question: its options and answer, its clip in `videos/`, and
where there is reasoning, the frames in `images/` that its mental images stand for.

```python
from datasets import load_dataset

questions = load_dataset("OWNER/NAME")
```

`hf download OWNER/NAME --repo-type dataset --local-dir data/split` gets the clips too; then
`fourdthinker evaluate --benchmark data/split` asks them, and `train/sft.py` learns from them.

{{ figures }}

## Licence

{{ licence }}. The clips show nothing but the simulator's own shapes and textures.
"""


def split_card(folder: Path, records: list[Record]) -> str:
    """README.md of a folder that `simulate` wrote, made of its records; a `ValueError` names one that has another
    origin."""
    for record in records:
        if (record.source or {}).get("generator") != "simulation":
            raise ValueError(f"{folder}: record {record.id} was not made by `fourdthinker simulate`")
    facts = _split_facts(records)
    sizes = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (float("inf"), "100K<n<1M"))
    data = DatasetCardData(
        language="en",
        license="apache-2.0",
        pretty_name=_split_name(records),
        task_categories=["video-text-to-text", "visual-question-answering"],
        size_categories=next(words for limit, words in sizes if len(records) < limit),
        tags=["synthetic", "video", "spatial-reasoning"],
        configs=[
            {"config_name": "default", "data_files": [{"split": "_".join(facts["split"]), "path": "records.jsonl"}]}
        ],
    )
    rows = [f"| {task} | {num} |" for task, num in facts["tasks"].items()]
    words = [f"{key} {', '.join(map(str, facts[key]))}" for key in ("level", "seed", "split")]
    figures = "\n".join(
        [
            f"{len(records)} questions ({'; '.join(words)}), made by `fourdthinker simulate`.",
            "",
            "| task | questions |",
            "| --- | --- |",
            *rows,
        ]
    )
    card = DatasetCard.from_template(
        data, template_str=SPLIT_TEXT, title=_split_name(records), figures=_framed(figures), licence=data.license
    )
    return str(card) + "\n"


def check_split_card(folder: Path, records: list[Record]) -> list[str]:
    """What keeps FOLDER/README.md from being published, one sentence each; there need not be one."""
    path = folder / "README.md"
    if not path.is_file():
        return []
    made, card = DatasetCard(split_card(folder, records)), DatasetCard.load(path)
    found = [] if card.data.license else ["README.md names no licence"]
    figures = made.text[made.text.index(BEGIN) : made.text.index(END)]
    if figures not in card.text or card.data.to_dict().get("configs") != made.data.to_dict()["configs"]:
        found.append(f"README.md's figures are not those of the records; `fourdthinker card {folder}` makes it anew")
    return found


def write_split_card(folder: str | os.PathLike) -> Path:
    """Make FOLDER/README.md of FOLDER/records.jsonl, whatever stood there."""
    folder = Path(folder)
    return _write(folder / "README.md", split_card(folder, read_records(folder / "records.jsonl")))
