"""What can be asked about a video, and what an answer holds. Neither torch nor transformers is imported here, so that
the demo's page can show an answer before they are."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

OUTPUT_IMAGE = "<output_image>"  # as in processing_fourdthinker.py, which imports transformers


@dataclass
class MentalImage:
    """One block of latents. `maps`, `best_step` and `time` are None for a block that ended before its first latent."""

    latents: torch.Tensor  # (num_latents, hidden) float32, as they were fed
    maps: np.ndarray | None = None  # (temporal steps, h, w), the similarity to each place of the video
    best_step: int | None = None  # the temporal step of the highest similarity
    time: float | None = None  # of that step, in seconds of the source
    picture: Image.Image | None = None  # what the imagery decoder draws from the latents alone, if there is one


@dataclass
class Answer:
    """A reply, complete or so far. `images` are in the order of the `<output_image>`s in `reasoning`."""

    frames: np.ndarray  # (T, H, W, 3) uint8, the frames that the model saw
    timestamps: np.ndarray  # (T,) in seconds of the source
    text: str = ""  # the whole reply, as it was written
    reasoning: str = ""
    words: str = ""  # what the reply itself says in <answer>
    answer: str = ""  # the chosen option's text; without options, and until the reply is complete, the `words`
    option: int | None = None  # index of the chosen option; None for an open question and until it is complete
    chosen_by: str | None = None  # "words" name the option, or they name none and it is the likeliest ("likelihood")
    probabilities: list[float] | None = None  # of each option, once the reply is complete
    images: list[MentalImage] = field(default_factory=list)
    truncated: bool = False  # whether the reply was cut at its limit of tokens or of time
    reason: str | None = None  # why there is no answer, or why its words name no option
    temporal_patch_size: int = 2  # number of frames in a temporal step, 2 in Qwen2.5-VL
    end: float | None = None  # where the part of the video that was asked about ends, in seconds, if it is known

    @property
    def steps(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The frames and timestamps of each temporal step; the last step may have fewer than the others."""
        size = self.temporal_patch_size
        starts = range(0, len(self.timestamps), size)
        return [(self.frames[i : i + size], self.timestamps[i : i + size]) for i in starts]


def check_question(question: str, options: Sequence[str] | None) -> list[str]:
    """Returns the options as a list, empty for an open question. Raises `ValueError` for a question or options that
    cannot be asked."""
    options = [option.strip() for option in options or ()]
    if not question or not question.strip():
        raise ValueError("The question is empty")
    if len(options) == 1:
        raise ValueError("There is only one option: give at least two, or none for an open question")
    if not all(options):
        raise ValueError("An option is empty")
    if len({option.casefold() for option in options}) < len(options):
        raise ValueError("Two options are the same")
    if len(options) > len(string.ascii_uppercase):
        limit = len(string.ascii_uppercase)
        raise ValueError(f"There are {len(options)} options, but only {limit} letters to name them: give fewer")
    if any(OUTPUT_IMAGE in text for text in (question, *options)):
        raise ValueError(f"{OUTPUT_IMAGE} stands for the model's own mental images: leave it out of the question")
    return options
