"""An answer as HTML: the reasoning, with each mental image in its place, laid over the frames that it resembles."""

import base64
import html
import io
from itertools import zip_longest

import numpy as np
from PIL import Image

from .imagery import overlay
from .processing_fourdthinker import OUTPUT_IMAGE
from .qa import Answer, MentalImage

STYLE = """
.reasoning { margin-top: 1.6rem; line-height: 1.65; font-size: 1rem; overflow-wrap: anywhere; white-space: pre-wrap; }
.reasoning figure { margin: .8rem 0; padding: .8rem; border-radius: 10px;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-secondary); white-space: normal; }
.reasoning figcaption, .note { font-size: .85rem; margin-top: .4rem; }
.reasoning .row { display: flex; gap: .8rem; flex-wrap: wrap; }
.reasoning .best { height: 190px; max-width: 100%; border-radius: 6px; object-fit: contain; }
.reasoning .strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(92px, 1fr)); gap: .4rem;
  flex: 1 1 240px; align-content: start; margin: 0; }
.reasoning .step { text-align: center; font-size: .75rem; line-height: 1.4; }
.reasoning .step img { width: 100%; border-radius: 4px; margin-bottom: .2rem; }
.reasoning .step.most img { outline: 2px solid var(--color-accent); }
.reasoning .step.most { font-weight: 600; }
"""


def _picture(frame: np.ndarray, similarity: np.ndarray, high: float, height: int) -> str:
    """A `data:` address of the overlay, `height` pixels high."""
    width = round(frame.shape[1] / frame.shape[0] * height)
    frame = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
    file = io.BytesIO()
    Image.fromarray(overlay(frame, similarity, high)).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def figure(number: int, image: MentalImage, answer: Answer) -> str:
    """One mental image as HTML: over the step it resembles most, and a strip over every step."""
    if image.maps is None:
        return f"<figure><figcaption>Mental image {number} ended before it began.</figcaption></figure>"
    high = float(image.maps.max())
    steps = []
    for step, similarity in enumerate(image.maps):
        frames = answer.frames[2 * step : 2 * step + 2]  # a temporal step covers two frames; the later one is shown
        times = answer.timestamps[2 * step : 2 * step + 2]
        steps.append((frames[-1], similarity, f"{times[0]:.1f}&ndash;{times[-1]:.1f} s"))
    frame, similarity, span = steps[image.best]
    alt = f"Frame at {span} with the part that mental image {number} resembles lit up"
    best = f"<img class='best' alt='{alt}' src='{_picture(frame, similarity, high, 240)}'>"
    strip = "".join(
        f"<div class='step{' most' if step == image.best else ''}'>"
        f"<img alt='Overlay at {span}' src='{_picture(frame, similarity, high, 120)}'>"
        f"{span}{'<br>&#9650; most alike' if step == image.best else ''}</div>"
        for step, (frame, similarity, span) in enumerate(steps)
    )
    return (
        f"<figure><div class='row'>{best}<div class='strip'>{strip}</div></div><figcaption>Mental image {number}: "
        f"most like the video at {span} (cosine {high:.2f}). The brighter, the more alike.</figcaption></figure>"
    )


def reasoning_html(answer: Answer, figures: list[str]) -> str:
    """The reasoning with each mental image in its place. Draws the figures that `figures` lacks into it."""
    for number, image in enumerate(answer.images[len(figures) :], start=len(figures) + 1):
        figures.append(figure(number, image, answer))
    pieces = [html.escape(piece.strip()) for piece in answer.reasoning.split(OUTPUT_IMAGE)]
    shown = [*figures[: len(pieces) - 1], "".join(figures[len(pieces) - 1 :])]  # the last: pictured past the reasoning
    body = "".join(piece + between for piece, between in zip_longest(pieces, shown, fillvalue=""))
    note = "<p class='note'>The reply was cut at its limit of tokens.</p>" if answer.truncated else ""
    return f"<div class='reasoning'>{body}{note}</div>"
