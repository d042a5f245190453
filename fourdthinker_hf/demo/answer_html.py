"""Writes an answer as HTML: its reasoning, its mental images over the frames that they resemble, and its verdict.

Their styles are in `style.css` and `answer.css`. Functions that take a list of HTML pieces, one for each mental
image, add the pieces that are missing: while an answer grows, each mental image is drawn only once.
"""

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

STEPS_SHOWN = 8  # temporal steps around the best one in the panel of a mental image


def read_asset(name: str) -> str:
    """Reads a style sheet or script that lies beside this file."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


# The reasoning, with something in the place of each mental image.


def reasoning_html(answer: Answer, figures: list[str]) -> str:
    """The reasoning with a figure for each mental image: the step it resembles most and a strip of all steps."""
    for number, image in enumerate(answer.images[len(figures) :], start=len(figures) + 1):
        figures.append(_figure_html(number, image, answer))
    return _reasoning_with(answer, figures)


def reasoning_tiles_html(answer: Answer, tiles: list[str]) -> str:
    """The reasoning with a small button for each mental image, which `page.js` makes show that image."""
    for number, image in enumerate(answer.images[len(tiles) :], start=len(tiles) + 1):
        tiles.append(_tile_html(number, image, answer))
    return _reasoning_with(answer, tiles)


def reasoning_text_html(answer: Answer) -> str:
    """The reasoning with a label for each mental image."""
    labels = [f"<span class='tile'>mental image {number}</span>" for number in range(1, len(answer.images) + 1)]
    return _reasoning_with(answer, labels)


def _reasoning_with(answer: Answer, pieces: list[str]) -> str:
    """The reasoning with `pieces` in the places of the mental images; those of images after it at its end."""
    texts = [html.escape(text.strip()) for text in answer.reasoning.split(OUTPUT_IMAGE)]
    num_places = len(texts) - 1
    pieces = [*pieces[:num_places], "".join(pieces[num_places:])]
    body = "".join(text + piece for text, piece in zip_longest(texts, pieces, fillvalue=""))
    note = "<p class='note'>The reply was cut at its limit of tokens.</p>" if answer.truncated else ""
    return f"<div class='reasoning'>{body}{note}</div>"


def _figure_html(number: int, image: MentalImage, answer: Answer) -> str:
    if image.maps is None:
        return f"<figure><figcaption>Mental image {number} ended before it began.</figcaption></figure>"
    high = float(image.maps.max())
    spans = [f"{times[0]:.1f}&ndash;{times[-1]:.1f} s" for _, times in answer.steps]
    strip = ""
    for step, (similarity, span) in enumerate(zip(image.maps, spans, strict=True)):
        is_best = step == image.best_step
        strip += (
            f"<div class='step{' most' if is_best else ''}'>"
            f"<img alt='Overlay at {span}' src='{_picture(answer, step, 120, similarity, high)}'>"
            f"{span}{'<br>&#9650; most alike' if is_best else ''}</div>"
        )
    span = spans[image.best_step]
    alt = f"Frame at {span} with the part that mental image {number} resembles lit up"
    source = _picture(answer, image.best_step, 240, image.maps[image.best_step], high)
    return (
        f"<figure><div class='row'><img class='best' alt='{alt}' src='{source}'><div class='strip'>{strip}</div></div>"
        f"<figcaption>Mental image {number}: most like the video at {span} (cosine {high:.2f}). The brighter, the "
        "more alike.</figcaption></figure>"
    )


def _tile_html(number: int, image: MentalImage, answer: Answer) -> str:
    if image.maps is None:
        return f"<span class='tile missing'>mental image {number}, cut off</span>"
    start, end = _step_spans(answer)[image.best_step]
    source = _picture(answer, image.best_step, 56, image.maps[image.best_step], float(image.maps.max()))
    return (
        f"<button type='button' class='tile' data-image='{number}' data-time='{start}' aria-label='Mental image "
        f"{number}, most like the video at {start:.1f} to {end:.1f} seconds: show it'>"
        f"<img alt='' src='{source}'><span>mental image {number}<br>like {start:.1f}&ndash;{end:.1f} s"
        "</span></button>"
    )


# The timeline, and the panel of each mental image.


def timeline_html(answer: Answer) -> str:
    """The temporal steps in a row, with a numbered button over the step that each mental image resembles most."""
    spans = _step_spans(answer)
    moments = []
    for step, (start, end) in enumerate(spans):
        marks = "".join(
            f"<button type='button' class='mark' data-image='{number}' data-time='{start}' aria-label='Mental image "
            f"{number}, at {start:.1f} to {end:.1f} seconds: show it'>{number}</button>"
            for number, image in enumerate(answer.images, start=1)
            if image.best_step == step
        )
        moments.append(f"<div class='moment'>{marks}<img alt='' src='{_picture(answer, step, 66)}'></div>")
    first, last = spans[0][0], spans[-1][1]
    return (
        f"<div class='timeline' data-start='{first}' data-end='{last}' role='group' "
        "aria-label='Timeline of the video' "
        f"style='grid-template-columns: repeat({len(spans)}, minmax(0, 1fr))'>{''.join(moments)}"
        "<div class='playhead'></div></div>"
        f"<div class='timeline-ends'><span>{first:.1f} s</span><span>{last:.1f} s</span></div>"
    )


def mental_images_html(answer: Answer, panels: list[str]) -> str:
    """A panel for each mental image: the frame it resembles most, the part of it, and the steps around."""
    for number, image in enumerate(answer.images[len(panels) :], start=len(panels) + 1):
        panels.append("" if image.maps is None else _mental_image_html(number, image, answer))
    return "".join(panels)


def _mental_image_html(number: int, image: MentalImage, answer: Answer) -> str:
    best, high = image.best_step, float(image.maps.max())
    names = [f"{start:.1f}&ndash;{end:.1f} s" for start, end in _step_spans(answer)]
    first = max(0, min(best - STEPS_SHOWN // 2, len(names) - STEPS_SHOWN))
    steps = "".join(
        f"<figure class='{'most' if step == best else ''}'>"
        f"<img alt='What is alike at {names[step]}' src='{_picture(answer, step, 96, image.maps[step], high)}'>"
        f"<figcaption>{names[step]}{'<br>most alike' if step == best else ''}</figcaption></figure>"
        for step in range(first, min(first + STEPS_SHOWN, len(names)))
    )
    frame, lit = _picture(answer, best, 260), _picture(answer, best, 260, image.maps[best], high)
    return (
        f"<section class='picture' data-picture='{number}'><h3>What is mental image {number} like?</h3>"
        f"<div class='pair'><figure><img alt='The video at {names[best]}' src='{frame}'>"
        f"<figcaption>The moment it is most like: {names[best]}</figcaption></figure>"
        f"<figure><img alt='The same frame; the part that mental image {number} is like is lit up' src='{lit}'>"
        f"<figcaption>Lit up: the part of it that it is like (cosine up to {high:.2f})</figcaption></figure></div>"
        f"<div class='steps'>{steps}</div><p class='key'>less alike <i></i> more alike. A mental image is a few "
        "vectors, not a photograph: this compares them with what the model saw, place by place.</p></section>"
    )


def _step_spans(answer: Answer) -> list[tuple[float, float]]:
    """From when to when each temporal step is on screen, in seconds: until the next step begins."""
    starts = [float(times[0]) for _, times in answer.steps]
    gap = starts[1] - starts[0] if len(starts) > 1 else 0.0
    return list(zip(starts, [*starts[1:], starts[-1] + gap], strict=True))


def _picture(answer: Answer, step: int, height: int, similarity: np.ndarray | None = None, high: float = 1.0) -> str:
    """A `data:` URL of the last frame of a temporal step, `height` pixels high, under the heat map of `similarity` if
    it is given."""
    frames, _ = answer.steps[step]
    frame = frames[-1]
    width = round(frame.shape[1] / frame.shape[0] * height)
    frame = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
    if similarity is not None:
        frame = overlay(frame, similarity, high)
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


# The verdict, and what else goes with it.


def verdict_text(answer: Answer, options: Sequence[str]) -> str:
    """The chosen option with its letter and probability, or the answer and why it is no option."""
    if answer.option is not None:
        chosen = f"{string.ascii_uppercase[answer.option]}. {options[answer.option]}"
        return f"{chosen} ({answer.probabilities[answer.option]:.0%})"
    return f"{answer.answer} ({answer.reason})".strip() if answer.reason else answer.answer


def verdict_html(answer: Answer, options: Sequence[str]) -> str:
    """The verdict, and the probability of each option."""
    rows = "".join(
        f"<li class='{'chosen' if i == answer.option else ''}'><span>{string.ascii_uppercase[i]}. "
        f"{html.escape(option)}{' &#10003;' if i == answer.option else ''}</span><b>{probability:.0%}</b>"
        f"<span class='bar' aria-hidden='true'><i style='width: {probability:.1%}'></i></span></li>"
        for i, (option, probability) in enumerate(zip(options, answer.probabilities or (), strict=False))
    )
    bars = f"<ul class='probabilities' aria-label='Probability of each option'>{rows}</ul>" if rows else ""
    return f"<p class='verdict'>{html.escape(verdict_text(answer, options))}</p>{bars}"


def comparison_html(original: str, changed: Answer, options: Sequence[str], intervention: str, is_same: bool) -> str:
    """Two answers side by side: the HTML of the original one, and the answer without the model's own mental images,
    which `intervention` names. The second one's mental images are not drawn, because the model did not make them."""
    tile = f"<span class='tile missing'>mental image: {html.escape(intervention)}</span>"
    changed_html = verdict_html(changed, options) + _reasoning_with(changed, [tile] * len(changed.images))
    verdict = "The answer stays the same." if is_same else "The answer changes."
    heading = html.escape(intervention[:1].upper() + intervention[1:])
    return (
        f"<p class='verdict'>{verdict}</p><div class='comparison'><div><h3>As it pictured</h3>{original}</div>"
        f"<div><h3>{heading}</h3>{changed_html}</div></div>"
        "<p class='note'>One question proves little, either way: what mental images do shows over many questions.</p>"
    )


def notice_html(text: str) -> str:
    """What went wrong and what to do, read out at once by screen readers."""
    return f"<p class='notice' role='alert'>{html.escape(text)}</p>"


def downloads_html(answer: Answer, question: str, options: Sequence[str]) -> str:
    """A button that copies the answer and links that download it and its latents. The links hold the files themselves,
    so none is kept on the server."""
    lines = [question, *(f"{string.ascii_uppercase[i]}. {option}" for i, option in enumerate(options))]
    text = "\n".join([*lines, "", answer.reasoning, "", verdict_text(answer, options)])
    links = _download_link(json.dumps(answer_json(answer, question, options)).encode(), "answer.json", "Answer (JSON)")
    if answer.images:
        latents = {f"image_{n}": image.latents.contiguous() for n, image in enumerate(answer.images, start=1)}
        links += _download_link(safetensors.torch.save(latents), "latents.safetensors", "Latents (safetensors)")
    return (
        f"<div class='links'><button type='button' data-copy='{html.escape(text, quote=True)}'>Copy</button>"
        f"{links}</div>"
    )


def _download_link(data: bytes, name: str, label: str) -> str:
    source = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    return f"<a download='{name}' href='{source}'>{label}</a>"


def answer_json(answer: Answer, question: str, options: Sequence[str], maps: bool = True) -> dict:
    """The answer as JSON data: what the API returns and the page offers for download. With `maps`, each mental image
    has its map `(temporal steps, h, w)`."""
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
