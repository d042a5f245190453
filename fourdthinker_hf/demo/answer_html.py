"""An answer as HTML: the reasoning, with each mental image in its place, laid over the frames that it resembles."""

import base64
import html
import io
import json
import string
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
import safetensors.torch
from PIL import Image

from ..imagery import overlay
from ..processing_fourdthinker import OUTPUT_IMAGE
from ..qa import Answer, MentalImage


def read_asset(name: str) -> str:
    """A style sheet or script that lies beside this file."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


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
    frame, similarity, span = steps[image.best_step]
    alt = f"Frame at {span} with the part that mental image {number} resembles lit up"
    best = f"<img class='best' alt='{alt}' src='{_picture(frame, similarity, high, 240)}'>"
    strip = "".join(
        f"<div class='step{' most' if step == image.best_step else ''}'>"
        f"<img alt='Overlay at {span}' src='{_picture(frame, similarity, high, 120)}'>"
        f"{span}{'<br>&#9650; most alike' if step == image.best_step else ''}</div>"
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
    return _interleaved(answer, figures)


def _interleaved(answer: Answer, shown: list[str]) -> str:
    """The reasoning with `shown`, one for each mental image, where they were pictured."""
    pieces = [html.escape(piece.strip()) for piece in answer.reasoning.split(OUTPUT_IMAGE)]
    shown = [*shown[: len(pieces) - 1], "".join(shown[len(pieces) - 1 :])]  # the last: pictured past the reasoning
    body = "".join(piece + between for piece, between in zip_longest(pieces, shown, fillvalue=""))
    note = "<p class='note'>The reply was cut at its limit of tokens.</p>" if answer.truncated else ""
    return f"<div class='reasoning'>{body}{note}</div>"


# The demo's page: its style is style.css, its script page.js.


def _spans(answer: Answer) -> list[tuple[float, float]]:
    """From when to when each temporal step shows, in seconds: until the next one does."""
    starts = answer.timestamps[::2]
    gap = starts[1] - starts[0] if len(starts) > 1 else 0.0
    return [(float(a), float(b)) for a, b in zip(starts, [*starts[1:], starts[-1] + gap], strict=True)]


def _frame(answer: Answer, step: int) -> np.ndarray:
    return answer.frames[2 * step : 2 * step + 2][-1]


def _plain(answer: Answer, step: int, height: int) -> str:
    frame = _frame(answer, step)
    return _picture(frame, np.zeros((1, 1)), 1.0, height)


def words_html(answer: Answer, tiles: list[str]) -> str:
    """The reasoning with a tile for each mental image. Draws the tiles that `tiles` lacks into it."""
    spans = _spans(answer)
    for number, image in enumerate(answer.images[len(tiles) :], start=len(tiles) + 1):
        if image.maps is None:
            tiles.append(f"<span class='tile cut'>mental image {number}, cut off</span>")
            continue
        start, end = spans[image.best_step]
        source = _picture(_frame(answer, image.best_step), image.maps[image.best_step], float(image.maps.max()), 56)
        tiles.append(
            f"<button type='button' class='tile' data-image='{number}' data-time='{start}' aria-label='Mental image "
            f"{number}, most like the video at {start:.1f} to {end:.1f} seconds: show it'>"
            f"<img alt='' src='{source}'><span>mental image {number}<br>like {start:.1f}&ndash;{end:.1f} s"
            "</span></button>"
        )
    return _interleaved(answer, tiles)


def timeline_html(answer: Answer) -> str:
    """The moments that the model saw, in a row, with a mark over the one that each mental image resembles most."""
    spans = _spans(answer)
    moments = []
    for step, (start, end) in enumerate(spans):
        marks = "".join(
            f"<button type='button' class='mark' data-image='{number}' data-time='{start}' aria-label='Mental image "
            f"{number}, at {start:.1f} to {end:.1f} seconds: show it'>{number}</button>"
            for number, image in enumerate(answer.images, start=1)
            if image.best_step == step
        )
        moments.append(f"<div class='moment'>{marks}<img alt='' src='{_plain(answer, step, 66)}'></div>")
    first, last = spans[0][0], spans[-1][1]
    return (
        f"<div class='timeline' data-start='{first}' data-end='{last}' role='group' "
        "aria-label='Timeline of the video' "
        f"style='grid-template-columns: repeat({len(spans)}, minmax(0, 1fr))'>{''.join(moments)}"
        f"<div class='now'></div></div><div class='ends'><span>{first:.1f} s</span><span>{last:.1f} s</span></div>"
    )


def pictures_html(answer: Answer, pictures: list[str]) -> str:
    """What each mental image resembles, one block each. Draws those that `pictures` lacks into it."""
    for number, image in enumerate(answer.images[len(pictures) :], start=len(pictures) + 1):
        pictures.append("" if image.maps is None else _large_picture(number, image, answer))
    return "".join(pictures)


def _large_picture(number: int, image: MentalImage, answer: Answer) -> str:
    spans, high = _spans(answer), float(image.maps.max())
    names = [f"{start:.1f}&ndash;{end:.1f} s" for start, end in spans]
    best = image.best_step
    low = max(0, min(best - 4, len(spans) - 8))
    steps = "".join(
        f"<figure class='{'most' if step == best else ''}'>"
        f"<img alt='What is alike at {names[step]}' "
        f"src='{_picture(_frame(answer, step), image.maps[step], high, 96)}'>"
        f"<figcaption>{names[step]}{'<br>most alike' if step == best else ''}</figcaption></figure>"
        for step in range(low, min(low + 8, len(spans)))
    )
    lit = _picture(_frame(answer, best), image.maps[best], high, 260)
    return (
        f"<section class='picture' data-picture='{number}'><h3>What is mental image {number} like?</h3>"
        f"<div class='pair'><figure><img alt='The video at {names[best]}' src='{_plain(answer, best, 260)}'>"
        f"<figcaption>The moment it is most like: {names[best]}</figcaption></figure>"
        f"<figure><img alt='The same frame; the part that mental image {number} is like is lit up' src='{lit}'>"
        f"<figcaption>Lit up: the part of it that it is like (cosine up to {high:.2f})</figcaption></figure></div>"
        f"<div class='steps'>{steps}</div><p class='key'>less alike <i></i> more alike. A mental image is a few "
        "vectors, not a photograph: this compares them with what the model saw, place by place.</p></section>"
    )


def notice_html(text: str) -> str:
    """What went wrong and what to do, read out at once by screen readers."""
    return f"<p class='notice' role='alert'>{html.escape(text)}</p>"


def verdict(answer: Answer, options: Sequence[str]) -> str:
    """The answer in words: the chosen option with its letter and probability, or why there is none."""
    if answer.option is not None:
        chosen = f"{string.ascii_uppercase[answer.option]}. {options[answer.option]}"
        return f"{chosen} ({answer.probabilities[answer.option]:.0%})"
    return f"{answer.answer} ({answer.reason})".strip() if answer.reason else answer.answer


def verdict_html(answer: Answer, options: Sequence[str]) -> str:
    """The answer, and the probability of every option beside it."""
    rows = "".join(
        f"<li class='{'chosen' if i == answer.option else ''}'><span>{string.ascii_uppercase[i]}. "
        f"{html.escape(option)}{' &#10003;' if i == answer.option else ''}</span><b>{chance:.0%}</b>"
        f"<span class='bar' aria-hidden='true'><i style='width: {chance:.1%}'></i></span></li>"
        for i, (option, chance) in enumerate(zip(options, answer.probabilities or (), strict=False))
    )
    list_ = f"<ul class='chances' aria-label='Probability of each option'>{rows}</ul>" if rows else ""
    return f"<p class='said'>{html.escape(verdict(answer, options))}</p>{list_}"


def as_json(answer: Answer, question: str, options: Sequence[str], maps: bool = True) -> dict:
    """An answer as plain data; `maps` of a mental image are `(T, h, w)`, one for each of its `times` in seconds."""
    images = [
        {"time": image.time} | ({"map": np.round(image.maps.astype(float), 3).tolist()} if maps else {})
        for image in answer.images
        if image.maps is not None
    ]
    return {
        "question": question,
        "options": list(options),
        "answer": answer.answer,
        "option": answer.option,
        "probabilities": answer.probabilities,
        "reasoning": answer.reasoning,
        "reason": answer.reason,
        "truncated": answer.truncated,
        "timestamps": answer.timestamps.tolist(),
        "images": images,
    }


def links_html(answer: Answer, question: str, options: Sequence[str]) -> str:
    """Buttons to copy the answer and to download it and its latents. The files are in the links: none is kept."""
    lines = [question, *(f"{string.ascii_uppercase[i]}. {option}" for i, option in enumerate(options))]
    text = "\n".join([*lines, "", answer.reasoning, "", verdict(answer, options)])
    latents = {f"image_{n}": image.latents.contiguous() for n, image in enumerate(answer.images, start=1)}
    tensors = _link(safetensors.torch.save(latents), "latents.safetensors", "Latents (safetensors)") if latents else ""
    data = json.dumps(as_json(answer, question, options)).encode()
    return (
        f"<div class='links'><button type='button' data-copy='{html.escape(text, quote=True)}'>Copy</button>"
        f"{_link(data, 'answer.json', 'Answer (JSON)')}{tensors}</div>"
    )


def _link(data: bytes, name: str, label: str) -> str:
    source = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    return f"<a download='{name}' href='{source}'>{label}</a>"


def compact_html(answer: Answer) -> str:
    """The reasoning in words, with a word where something was pictured."""
    tiles = [f"<span class='tile'>mental image {number}</span>" for number in range(1, len(answer.images) + 1)]
    return _interleaved(answer, tiles)


def versus_html(before: str, after: Answer, options: Sequence[str], cut: str, same: bool) -> str:
    """Two answers side by side: `before` is the first's HTML; `cut` says what was taken from the second, whose mental
    images are not shown: they are not the model's own."""
    tile = f"<span class='tile cut'>mental image: {html.escape(cut)}</span>"
    reply = verdict_html(after, options) + _interleaved(after, [tile] * len(after.images))
    said = "The answer stays the same." if same else "The answer changes."
    return (
        f"<p class='said'>{said}</p><div class='versus'><div><h3>As it pictured</h3>{before}</div>"
        f"<div><h3>{html.escape(cut[:1].upper() + cut[1:])}</h3>{reply}</div></div>"
        "<p class='note'>One question proves little, either way: the README has the rates over 400.</p>"
    )
