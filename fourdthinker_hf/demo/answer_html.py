"""Writes an answer as HTML: its reasoning, its mental images over the frames that they resemble, and its verdict.

Every sentence about what was chosen comes from [`explain_choice`], so verdict, bars and text cannot contradict each
other. The styles are in `style.css` and `answer.css`. Functions that take a list of HTML pieces, one for each mental
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
from PIL import Image

from ..question_answer import OUTPUT_IMAGE, Answer, MentalImage

# Dark violet, magenta, orange, pale yellow. Brightness rises with similarity, so colour is not needed to read a map.
HEAT_COLOURS = np.array(
    [[20, 11, 52], [120, 28, 109], [207, 68, 70], [251, 155, 6], [252, 255, 164]], dtype=np.float32
)
OPACITY = 0.75
STEPS_SHOWN = 8  # temporal steps around the best one in the panel of a mental image
MIN_MAP_MASS = 0.5  # our choice: the share of a map's light that must lie in the object for maps to be shown
MAX_REASON = 120  # characters of a reason on the page: a reply that falls apart is long
MENTAL_IMAGE = "A mental image is a few vectors that the model feeds itself in place of a word: what it pictures."


def read_asset(name: str) -> str:
    """Reads a style sheet or script that lies beside this file."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def count(number: int, noun: str) -> str:
    """
    >>> count(1, "frame"), count(8, "frame")
    ('1 frame', '8 frames')
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")


# The reasoning, with something in the place of each mental image.


def reasoning_html(answer: Answer, figures: list[str]) -> str:
    """The reasoning with a figure for each mental image: the step it resembles most and a strip of all steps, with
    their maps."""
    for number, image in enumerate(answer.images[len(figures) :], start=len(figures) + 1):
        figures.append(_figure_html(number, image, answer))
    return _reasoning_with(answer, figures)


def reasoning_tiles_html(answer: Answer, tiles: list[str]) -> str:
    """The reasoning with a small button for each mental image, which `page.js` makes show that image."""
    for number, image in enumerate(answer.images[len(tiles) :], start=len(tiles) + 1):
        tiles.append(_tile_html(number, image, answer))
    return _reasoning_with(answer, tiles)


def reasoning_text(answer: Answer) -> str:
    """The reasoning as plain text, with `[mental image 1]` where the model pictured something."""
    labels = [f" [mental image {number}] " for number in range(1, len(answer.images) + 1)]
    return " ".join(_interleave(answer, answer.reasoning.split(OUTPUT_IMAGE), labels).split())


def _interleave(answer: Answer, texts: list[str], pieces: list[str]) -> str:
    """`pieces` between the `texts`; those for which there is no place stand at the end."""
    num_places = len(texts) - 1
    pieces = [*pieces[:num_places], "".join(pieces[num_places:])]
    return "".join(text + piece for text, piece in zip_longest(texts, pieces, fillvalue=""))


def _reasoning_with(answer: Answer, pieces: list[str]) -> str:
    body = _interleave(answer, [html.escape(text.strip()) for text in answer.reasoning.split(OUTPUT_IMAGE)], pieces)
    note = "<p class='note'>The reply was cut at its limit.</p>" if answer.truncated else ""
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
    start, end = step_spans(answer)[image.best_step]
    return (
        f"<button type='button' class='tile' data-image='{number}' data-time='{start}' aria-label='Mental image "
        f"{number}, most like the video at {start:.1f} to {end:.1f} seconds: show it'>"
        f"<img alt='' src='{_picture(answer, image.best_step, 56)}'><span>mental image {number}<br>"
        f"like {start:.1f}&ndash;{end:.1f} s</span></button>"
    )


# The timeline, and the panel of each mental image.


def timeline_html(answer: Answer) -> str:
    """The temporal steps in a row, with a numbered button over the step that each mental image resembles most."""
    spans = step_spans(answer)
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


def mental_images_html(answer: Answer, panels: list[str], map_test: dict | None) -> str:
    """A panel for each mental image: which moment of the video it is most like and, if [`map_holds`], where in it.
    `map_test` is what `fourdthinker maps` measured for the checkpoint, None if that is not known."""
    for number, image in enumerate(answer.images[len(panels) :], start=len(panels) + 1):
        panels.append("" if image.maps is None else _mental_image_html(number, image, answer, map_test))
    return "".join(panels)


def map_holds(map_test: dict | None) -> bool:
    """Whether a checkpoint's maps may be shown: more of the light lies in the object that is meant than with another
    clip's mental image (95% interval), and most of it, so that a visitor sees the object lit."""
    return map_test is not None and map_test["mass"]["low"] > 0 and map_test["mass"]["own"] >= MIN_MAP_MASS


def _mental_image_html(number: int, image: MentalImage, answer: Answer, map_test: dict | None) -> str:
    best, high = image.best_step, float(image.maps.max())
    names = [f"{start:.1f}&ndash;{end:.1f} s" for start, end in step_spans(answer)]
    with_map = map_holds(map_test)
    pair = (
        f"<figure><img alt='The video at {names[best]}' src='{_picture(answer, best, 260)}'>"
        f"<figcaption>Most like it: {names[best]}</figcaption></figure>"
    )
    if image.picture is not None:
        pair = (
            f"<figure><img alt='What the model pictured, drawn from mental image {number} alone' "
            f"src='{data_url(image.picture)}'><figcaption>What it pictured, drawn from the mental image alone"
            f"</figcaption></figure>{pair}"
        )
    if with_map:
        lit = _picture(answer, best, 260, image.maps[best], high)
        pair += (
            f"<figure><img alt='The same frame; the cells that mental image {number} is like are lit up' src='{lit}'>"
            f"<figcaption>Lit up: the cells of it that it is like (cosine up to {high:.2f})</figcaption></figure>"
        )
    first = max(0, min(best - STEPS_SHOWN // 2, len(names) - STEPS_SHOWN))
    steps = ""
    for step in range(first, min(first + STEPS_SHOWN, len(names))):
        alike = max(0.0, float(image.maps[step].max()))
        frame = _picture(answer, step, 96, image.maps[step] if with_map else None, high)
        steps += (
            f"<figure class='{'most' if step == best else ''}'><img alt='The video at {names[step]}' src='{frame}'>"
            f"{_bar(alike)}<figcaption>{names[step]}<br>{alike:.2f}</figcaption></figure>"
        )
    return (
        f"<section class='picture' data-picture='{number}'><h3>Which moment is mental image {number} like?</h3>"
        f"<div class='pair'>{pair}<div class='steps' role='group' aria-label='How alike each moment is'>{steps}</div>"
        f"</div><p class='key'>{_key(image, map_test)}</p></section>"
    )


def _key(image: MentalImage, map_test: dict | None) -> str:
    """What the bars and colours mean, and how far to trust them."""
    text = "Bars: how alike each moment is at its most alike place (cosine)."
    if map_test is None:
        return f"{text} Where in the frame is not shown: no test says that the maps of this model point at anything."
    step, mass = map_test["best_step"], map_test["mass"]
    text += (
        f" On {map_test['num']} simulated images the moment was the right one in {step['own']:.0%}, with another "
        f"clip's image in {step['shuffled']:.0%}."
    )
    light = (
        f"{mass['own']:.0%} of the light lay in the object that was meant ({mass['shuffled']:.0%} with another clip's "
        "image)"
    )
    if not map_holds(map_test):
        return f"{text} Where in the frame is not shown, because only {light}."
    rows, columns = image.maps.shape[1:]
    return f"{text} Colours, in the {rows} x {columns} cells that the model sees: less <i></i> more alike; {light}."


def step_spans(answer: Answer) -> list[tuple[float, float]]:
    """From when to when each temporal step is on screen, in seconds: until the next step begins, the last one until
    the part of the video that was asked about ends."""
    starts = [float(times[0]) for _, times in answer.steps]
    gap = starts[1] - starts[0] if len(starts) > 1 else 0.0
    end = starts[-1] + gap if answer.end is None else max(answer.end, starts[-1])
    return list(zip(starts, [*starts[1:], end], strict=True))


def _picture(answer: Answer, step: int, height: int, similarity: np.ndarray | None = None, high: float = 1.0) -> str:
    """A `data:` URL of the last frame of a temporal step, `height` pixels high, under the heat map of `similarity` if
    it is given."""
    frames, _ = answer.steps[step]
    frame = resized(frames[-1], height)
    if similarity is not None:
        frame = overlay(frame, similarity, high)
    return data_url(Image.fromarray(frame))


def resized(frame: np.ndarray, height: int) -> np.ndarray:
    """A frame (H, W, 3) uint8, `height` pixels high."""
    width = max(1, round(frame.shape[1] / frame.shape[0] * height))
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def overlay(frame: np.ndarray, similarity: np.ndarray, high: float = 1.0) -> np.ndarray:
    """Draws a map `(h, w)` as a heat map over a frame `(H, W, 3)` uint8: transparent where the map is 0 or less, most
    opaque and brightest where it is `high`. A cell has one colour, because nothing finer was measured."""
    height, width = frame.shape[:2]
    grid = Image.fromarray(np.asarray(similarity, dtype=np.float32))
    heat = np.asarray(grid.resize((width, height), Image.Resampling.NEAREST)) / max(high, 1e-6)
    heat = heat.clip(0, 1)
    levels = range(len(HEAT_COLOURS))
    colour = np.stack([np.interp(heat * levels[-1], levels, channel) for channel in HEAT_COLOURS.T], -1)
    opacity = OPACITY * heat[..., None]
    return ((1 - opacity) * frame + opacity * colour).round().astype(np.uint8)


def data_url(picture: Image.Image) -> str:
    """The address of a picture that holds the picture itself, as JPEG."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


# The verdict, and what else goes with it.


def named(option: int, options: Sequence[str]) -> str:
    return f"{string.ascii_uppercase[option]}. {options[option]}"


def verdict_text(answer: Answer, options: Sequence[str]) -> str:
    """The chosen option with its letter, or the answer to an open question."""
    return named(answer.option, options) if answer.option is not None else answer.answer or "No answer"


def explain_choice(answer: Answer, options: Sequence[str]) -> str:
    """In a sentence, how the answer was chosen and how that goes with the probabilities. No other place says so."""
    reason = shorten(answer.reason or "")
    if answer.option is None:
        return f"There is none: {reason}." if reason else ""
    probability = answer.probabilities[answer.option]
    if answer.chosen_by == "likelihood":
        return f"Its words name none of the options ({reason}), so this is the likeliest one ({probability:.0%})."
    likeliest = int(np.argmax(answer.probabilities))
    if likeliest == answer.option:
        return f"Its words say so, and of the {len(options)} options this is the likeliest ({probability:.0%})."
    return (
        f"Its words say so ({probability:.0%}). They overrule its scores, by which {named(likeliest, options)} was "
        f"likelier ({answer.probabilities[likeliest]:.0%})."
    )


def shorten(text: str) -> str:
    return text if len(text) <= MAX_REASON else text[:MAX_REASON].rstrip() + "..."


def verdict_html(answer: Answer, options: Sequence[str], right: int | None = None) -> str:
    """The verdict, how it was chosen, and the probability of each option. `right` is the index of the right option if
    it is known."""
    truth = ""
    if right is not None:
        outcome = "the model had it" if answer.option == right else "the model missed it"
        truth = f"<p class='truth'>Right answer: {html.escape(named(right, options))} &ndash; {outcome}.</p>"
    return (
        f"<p class='verdict'>{html.escape(verdict_text(answer, options))}</p>"
        f"<p class='how'>{html.escape(explain_choice(answer, options))}</p>{truth}{_bars_html(answer, options)}"
    )


def _bars_html(answer: Answer, options: Sequence[str]) -> str:
    rows = "".join(
        f"<li class='{'chosen' if i == answer.option else ''}'><span>{html.escape(named(i, options))}"
        f"{' &#10003;' if i == answer.option else ''}</span><b>{probability:.0%}</b>{_bar(probability)}</li>"
        for i, probability in enumerate(answer.probabilities or ())
    )
    return f"<ul class='probabilities' aria-label='Probability of each option'>{rows}</ul>" if rows else ""


def _bar(share: float) -> str:
    return f"<span class='bar' aria-hidden='true'><i style='width: {share:.1%}'></i></span>"


def comparison_html(
    original: Answer, changed: Answer, options: Sequence[str], intervention: str, rates: dict[str, dict]
) -> str:
    """Two answers side by side, the second without the model's own mental images, which `intervention` names, and the
    change of each option's probability. `rates` are the accuracies measured over many questions, by what was done.
    The second one's mental images are not drawn, because the model did not make them."""
    sides = "".join(
        f"<div><h3>{heading}</h3><p class='verdict'>{html.escape(verdict_text(answer, options))}</p>"
        f"<p class='how'>{html.escape(explain_choice(answer, options))}</p>{_reasoning_with(answer, tiles)}</div>"
        for heading, answer, tiles in (
            ("As it pictured", original, _labels(original, "mental image {}")),
            (html.escape(intervention[:1].upper() + intervention[1:]), changed, _labels(changed, intervention)),
        )
    )
    return (
        f"<p class='verdict'>{html.escape(compare_answers(original, changed, options))}</p>"
        f"<div class='comparison'>{sides}</div>{_changes_html(original, changed, options)}{_rates_html(rates)}"
    )


def compare_answers(original: Answer, changed: Answer, options: Sequence[str]) -> str:
    """In a sentence, what became of the answer. A text that falls apart is called that."""
    fell_apart = changed.chosen_by == "likelihood" or (not options and changed.reason is not None)
    same = original.answer.casefold() == changed.answer.casefold()
    if fell_apart:
        rest = ""
        if options:
            option = "the same" if same else f"now {named(changed.option, options)}"
            rest = f" The likeliest option is {option}."
        return f"The text falls apart: it gives no answer of its own.{rest}"
    return "The answer stays the same." if same else "The answer changes."


def _labels(answer: Answer, text: str) -> list[str]:
    return [
        f"<span class='tile missing'>{html.escape(text.format(number))}</span>"
        for number in range(1, len(answer.images) + 1)
    ]


def _changes_html(original: Answer, changed: Answer, options: Sequence[str]) -> str:
    if not options:
        return ""
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(named(i, options))}</th><td>{before:.0%}{_bar(before)}</td>"
        f"<td>{after:.0%}{_bar(after)}</td><td>{round(100 * after) - round(100 * before):+d}</td></tr>"
        for i, (before, after) in enumerate(zip(original.probabilities, changed.probabilities, strict=True))
    )
    return (
        "<table class='changes'><caption>Probability of each option</caption><thead><tr><th scope='col'>option</th>"
        "<th scope='col'>as it pictured</th><th scope='col'>changed</th><th scope='col'>points</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _rates_html(rates: dict[str, dict]) -> str:
    """What the intervention does over many questions, as bars with their 95% intervals."""
    if not rates:
        return (
            "<p class='note'>One question proves little, either way. No test over many is stored for this model.</p>"
        )
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(name)}</th><td>{row['accuracy']:.0%}{_bar(row['accuracy'])}</td>"
        f"<td>{row['low']:.0%} to {row['high']:.0%}</td></tr>"
        for name, row in rates.items()
    )
    number = next(iter(rates.values()))["num"]
    return (
        f"<table class='changes'><caption>One question proves little. Over {number} simulated questions that it was "
        "not trained on, it answered right</caption><thead><tr><th scope='col'>mental images</th>"
        f"<th scope='col'>share</th><th scope='col'>95% interval</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def notice_html(text: str) -> str:
    """What went wrong and what to do, read out at once by screen readers."""
    return f"<p class='notice' role='alert'>{html.escape(text)}</p>"


def links_html(answer: Answer, question: str, options: Sequence[str], link: str | None = None) -> str:
    """A button that copies the answer, links that download it and its latents, which hold the files themselves, and
    the `link` to its page."""
    lines = [question, *(named(i, options) for i in range(len(options)))]
    text = "\n".join([*lines, "", reasoning_text(answer), "", verdict_text(answer, options)])
    links = ""
    if link:
        links += f"<a href='{link}' target='_blank'>Link to this result</a>"
        links += f"<a href='{link}' download='answer.html'>Page (HTML)</a>"
        if any(image.best_step is not None for image in answer.images):
            links += f"<a href='{link}/answer.mp4' download='answer.mp4'>Video (MP4)</a>"
    links += _download_link(
        json.dumps(answer_json(answer, question, options)).encode(), "answer.json", "Answer (JSON)"
    )
    if answer.images and all(image.latents is not None for image in answer.images):
        import safetensors.torch

        latents = {f"image_{n}": image.latents.contiguous() for n, image in enumerate(answer.images, start=1)}
        links += _download_link(safetensors.torch.save(latents), "latents.safetensors", "Latents (safetensors)")
    note = "<p class='note'>The link works for an hour, as long as this server runs.</p>" if link else ""
    return (
        f"<div class='links'><button type='button' data-copy='{html.escape(text, quote=True)}'>Copy</button>"
        f"{links}</div>{note}"
    )


def _download_link(data: bytes, name: str, label: str) -> str:
    source = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    return f"<a download='{name}' href='{source}'>{label}</a>"


RESULT_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>4DThinker: {title}</title><style>{style}</style>
<main><h1>{title}</h1><p>{video}</p><h2>Answer</h2>{body}<p class="note">{about}</p></main></html>
"""


def result_page_html(
    answer: Answer, question: str, options: Sequence[str], video: str, right: int | None, map_test: dict | None
) -> str:
    """An answer as one HTML page that needs no other file."""
    style = read_asset("result.css") + read_asset("answer.css") + read_asset("style.css")
    body = verdict_html(answer, options, right) + timeline_html(answer) + reasoning_tiles_html(answer, [])
    body += mental_images_html(answer, [], map_test)
    title, video = html.escape(question), html.escape(f"Asked about {video}.")
    return RESULT_PAGE.format(title=title, style=style, video=video, body=body, about=MENTAL_IMAGE)


# What the API of the demo returns, as a JSON schema.
_OR_NULL = {"type": "null"}
ANSWER_SCHEMA = {
    "type": "object",
    "properties": {
        "status": {"type": "string", "description": "what is happening: loading, reading, looking, writing or done"},
        "question": {"type": "string"},
        "options": {"type": "array", "items": {"type": "string"}},
        "answer": {"type": "string", "description": "with options the text of one of them"},
        "option": {"anyOf": [{"type": "integer"}, _OR_NULL], "description": "index of that option"},
        "chosen_by": {"anyOf": [{"type": "string"}, _OR_NULL], "description": "words or likelihood"},
        "words": {"type": "string", "description": "what the reply itself says"},
        "probabilities": {"anyOf": [{"type": "array", "items": {"type": "number"}}, _OR_NULL]},
        "reasoning": {"type": "string"},
        "reason": {"anyOf": [{"type": "string"}, _OR_NULL], "description": "why the words give no answer"},
        "truncated": {"type": "boolean"},
        "timestamps": {"type": "array", "items": {"type": "number"}, "description": "of the frames seen, in seconds"},
        "images": {"type": "array", "items": {"type": "object"}, "description": "time and map of each mental image"},
    },
}


def answer_json(
    answer: Answer, question: str, options: Sequence[str], maps: bool = True, status: str = "done"
) -> dict:
    """The answer as JSON data, as `ANSWER_SCHEMA` says: what the API returns and the page offers for download. With
    `maps`, each mental image has its map `(temporal steps, h, w)`."""
    images = [
        {"time": image.time} | ({"map": np.round(image.maps.astype(float), 3).tolist()} if maps else {})
        for image in answer.images
        if image.maps is not None
    ]
    return {
        "status": status,
        "question": question,
        "options": list(options),
        "answer": answer.answer,
        "option": answer.option,
        "chosen_by": answer.chosen_by,
        "words": answer.words,
        "probabilities": answer.probabilities,
        "reasoning": reasoning_text(answer),
        "reason": answer.reason,
        "truncated": answer.truncated,
        "timestamps": np.asarray(answer.timestamps).tolist(),
        "images": images,
    }
