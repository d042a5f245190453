"""Functions of the task `dsr_sim`. A document (`doc`) is a line of `records.jsonl`: see `data/records.py`.

lmms-eval loads this file by its path and not as part of the package, so its imports are absolute.
"""

import os

from fourdthinker_hf.answers import judge
from fourdthinker_hf.data.records import LETTERS


def doc_to_visual(doc: dict, lmms_eval_specific_kwargs: dict) -> list[str]:
    return [os.path.join(lmms_eval_specific_kwargs["folder"], doc["video"])]


def doc_to_text(doc: dict, lmms_eval_specific_kwargs: dict) -> str:
    """The question, and each option with its letter on a line of its own, as `fourdthinker evaluate` asks them."""
    options = [f"{LETTERS[i]}. {option}" for i, option in enumerate(doc["options"])]
    return "\n".join([doc["question"], *options]) + lmms_eval_specific_kwargs["post_prompt"]


def process_results(doc: dict, results: list[str]) -> dict[str, float]:
    """1.0 if the `<answer>` of the reply names the right option by its letter, its text, or both; else 0.0."""
    return {"accuracy": float(judge(results[0], doc["answer"], doc["options"]).is_right)}
