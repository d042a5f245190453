"""The demo: ask about a video, read the reasoning as it comes, and see what the model pictured where it pictured it.

    python app.py [--model FOLDER_OR_HUB_ID]

The model is the bundled one unless --model, or FOURDTHINKER_MODEL, names another. No code that lies beside its weights
is run. The same file is a Space, on ZeroGPU too.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import gradio as gr
import numpy as np
from starlette.middleware import Middleware

from .. import latent_hooks
from ..hub.files import BUNDLED, load_model, shipped
from ..qa import Answer, Clip, VideoQA, check_question
from ..video_fourdthinker import VideoError
from . import answer_html, uploads

try:
    from spaces import GPU as on_gpu  # a ZeroGPU Space lends a GPU to what is wrapped in this
except ImportError:

    def on_gpu(function):
        return function


MODEL = os.environ.get("FOURDTHINKER_MODEL", BUNDLED)
EXAMPLES = shipped("examples")
ROWS = json.loads((EXAMPLES / "examples.json").read_text())
INTRO = """# 4DThinker
Ask about a moving scene. The model answers in words and, between them, *pictures* how the scene evolves: each
**mental image** is a handful of vectors that it feeds back to itself. Here you see where it pictured something, and
what that is like in the video."""
HINT = """<div class='waiting'><ol><li>Choose an example, or a video of your own, and ask.</li>
<li>Read the reasoning as it comes. Where the model pictured something, a tile stands in the text, and a numbered mark
over the moment of the video that it is most like.</li>
<li>Choose a tile: the part of the scene that the mental image is like lights up.</li></ol></div>"""
BUSY = "<p class='waiting' role='status'>Watching the video.</p>"
STOPPED = "<p class='waiting' role='status'>Stopped. Ask again.</p>"
UNPLAYABLE = (
    "Your browser cannot play this format. The model can: ask, and the moments that it saw appear below the video."
)
CUTS = {
    "suppressed": ("It may not picture at all", "no mental image allowed"),
    "zeroed": ("Its mental images are blank", "zeros in place of it"),
    "swapped": ("Its mental images are of another video", "another video's in place of it"),
}
QUEUE, PER_VISITOR = 64, 2  # one that runs and one that waits
KEPT = (600, 3600)  # every so many seconds, uploads that are older than so many seconds are deleted
FRAME_SECONDS = 0.1  # from one picture of the page to the next while words arrive
THEME = gr.themes.Soft().set(  # for contrast: 4.5 of text, 3 of an input's edge, as WCAG 2.2 AA asks
    body_background_fill="*neutral_100",
    body_text_color_subdued="*neutral_600",
    block_title_background_fill="none",
    block_title_background_fill_dark="none",
    block_title_text_color="*primary_700",
    block_title_text_color_dark="*neutral_50",
    block_label_text_color="*primary_700",
    input_placeholder_color="*neutral_500",
    input_border_width="1px",
    input_border_color="*neutral_500",
    input_border_color_dark="*neutral_500",
    checkbox_border_color="*neutral_500",
    checkbox_label_background_fill_selected="*primary_600",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_hover_dark="*primary_700",
    button_secondary_background_fill_hover_dark="*neutral_700",
)


def split_options(text: str | None) -> list[str]:
    """The options in a box that holds one a line."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def load(model: str | os.PathLike) -> VideoQA:
    network, processor = load_model(model)
    return VideoQA(network, processor, open_video=uploads.open_apart(processor))


def explain(error: ValueError, video: str) -> str:
    """What to tell a visitor: never where the file lies on the server."""
    text = str(error).replace(str(video), Path(video).name)
    return f"This video cannot be read. {text}" if isinstance(error, VideoError) else text


def describe(times: np.ndarray, fps: float) -> str:
    """How much of the video the model sees, whose frames are at `times`, in seconds."""
    text = f"The model looks at {len(times)} frames from {times[0]:.1f} to {times[-1]:.1f} s."
    if len(times) > 1 and (gap := (times[-1] - times[0]) / (len(times) - 1)) > 1.2 / fps:
        text += f" The video is long, so they lie {gap:.1f} s apart: for more detail, ask about a part of it."
    return f"<p class='note'>{text}</p>"


def build_demo(model: str | os.PathLike = MODEL, qa: VideoQA | None = None) -> gr.Blocks:
    """The interface; `model` is loaded by the first question unless it comes loaded, as `qa`."""
    get_qa = functools.cache(lambda: qa or load(model))
    opener = ThreadPoolExecutor(1)

    @on_gpu
    def reply(clip: Clip, question: str, options: list[str], settings: dict) -> Iterator[Answer]:
        for answer in get_qa().stream(clip, question, options, **settings):
            yield dataclasses.replace(answer, frames=None)  # ZeroGPU copies what is yielded from another process

    def opening(video, start, end) -> Generator[None, None, Clip]:
        """Open a video, yielding until it is open: Gradio stops a step only where it yields. The decoder is killed."""
        stopped = threading.Event()
        clip = opener.submit(get_qa().open, video, start, end, stopped=stopped)
        try:
            while not wait([clip], FRAME_SECONDS).done:
                yield
        finally:
            stopped.set()
        return clip.result()

    def stream(video, question, options, start=None, end=None, **settings) -> Iterator[Answer | None]:
        """The answer so far; None while the video is being opened."""
        clip = yield from opening(video, start, end)
        for answer in reply(clip, question, options, settings):
            yield dataclasses.replace(answer, frames=clip.frames)

    @functools.cache
    def others_images(row: int) -> list:
        """What is pictured of an example."""
        clip = get_qa().open(EXAMPLES / ROWS[row]["video"])
        *_, answer = reply(clip, ROWS[row]["question"], ROWS[row]["options"], {})
        return [image.latents for image in answer.images if len(image.latents)]

    def settings_without(cut: str, video: str) -> dict:
        if cut == "suppressed":
            return {"imagery": False}
        if cut == "zeroed":
            return {"latent_hook": latent_hooks.zeros}
        row = int(Path(video).name == ROWS[0]["video"])  # any but this video's own
        return {"latent_hook": latent_hooks.swap([others_images(row)])}

    def check(request: gr.Request, video, question, options, *rest) -> list[dict]:
        """Gradio's validation, before a request is queued; one entry per input."""
        problems = ["" if video else "Choose a video first", "" if (question or "").strip() else "Type a question", ""]
        try:
            check_question("a question", split_options(options))
            uploads.check_upload(video) if video else None
        except VideoError as error:
            problems[0] = str(error)
        except ValueError as error:
            problems[2] = str(error)
        if jobs_of(demo, request) >= PER_VISITOR:
            problems[1] = "You have one question running and one waiting: stop one, or wait for an answer"
        return [gr.validate(not problem, problem) for problem in problems + [""] * len(rest)]

    def ask(video, question, options, start, end, temperature, top_p, seed, limit) -> Iterator[tuple]:
        """The page as the answer grows: verdict, words, timeline, pictures, comparison, and what was asked."""
        choices, tiles, pictures, drawn, last = split_options(options), [], [], None, 0.0
        settings = {"temperature": temperature, "top_p": top_p, "seed": int(seed or 0), "max_new_tokens": int(limit)}
        asked = {
            "video": video,
            "question": question,
            "options": choices,
            "start": start or None,
            "end": end or None,
            **settings,
        }
        yield BUSY, "", "", "", "", None
        try:
            for answer in stream(**asked):
                if answer is None:
                    yield (gr.skip(),) * 6
                    continue
                seen = describe(answer.timestamps, get_qa().processor.fps)
                news = len(answer.images) if len(answer.images) != drawn else None
                if news is None and time.monotonic() - last < FRAME_SECONDS:
                    continue
                last, drawn = time.monotonic(), len(answer.images)
                changed = (gr.skip(), gr.skip())
                if news is not None:
                    changed = answer_html.timeline_html(answer) + seen, answer_html.pictures_html(answer, pictures)
                yield gr.skip(), answer_html.words_html(answer, tiles), *changed, gr.skip(), None
        except ValueError as error:
            yield answer_html.notice_html(explain(error, video)), "", "", "", "", None
            return
        said = answer_html.verdict_html(answer, choices)
        words = answer_html.words_html(answer, tiles)
        before = said + answer_html.compact_html(answer)
        done = {"asked": asked, "before": before, "answer": answer.answer}
        links = answer_html.links_html(answer, question, choices)
        timeline = answer_html.timeline_html(answer) + seen
        yield said + links, words, timeline, answer_html.pictures_html(answer, pictures), "", done

    def ask_without(cut: str, done: dict | None) -> Iterator[str]:
        """The last question again, with its imagery cut."""
        if done is None:
            yield answer_html.notice_html("Ask a question first, and let it be answered.")
            return
        yield BUSY
        asked = done["asked"]
        try:
            for so_far in stream(**asked, **settings_without(cut, asked["video"])):
                answer = so_far
                yield gr.skip()
        except ValueError as error:
            yield answer_html.notice_html(explain(error, asked["video"]))
            return
        same = answer.answer == done["answer"]
        yield answer_html.versus_html(done["before"], answer, asked["options"], CUTS[cut][1], same)

    def answer(video: str, question: str, options: str = "") -> Iterator[dict]:
        """Answer a question about a video, with the reasoning, the probability of each option, and, for each mental
        image that was pictured, where and when the video resembles it.

        Args:
            video: the video to watch: a file that was uploaded
            question: the question to answer
            options: answers to choose from, one a line; empty for an open question
        """
        choices, last = split_options(options), -1.0
        try:
            for so_far in stream(video, question, choices):
                reply = so_far or Answer(None, np.empty(0))
                if time.monotonic() - last >= FRAME_SECONDS:
                    last = time.monotonic()
                    yield answer_html.as_json(reply, question, choices, maps=False)
        except ValueError as error:
            raise gr.Error(explain(error, video), print_exception=False) from None
        yield answer_html.as_json(reply, question, choices)

    with gr.Blocks(title="4DThinker", delete_cache=KEPT) as demo:
        gr.Markdown(INTRO)
        done = gr.State(None, time_to_live=3600)
        video = uploads.refuse_addresses(gr.Video(label="Video", height=340, elem_id="video", render=False))
        question = gr.Textbox(label="Question", placeholder="Which way does it move?", lines=1, render=False)
        options = gr.Textbox(label="Options", info="One a line; none for an open question", lines=4, render=False)
        fields = [video, question, options]
        labels = [f"{row['question']} ({Path(row['video']).stem.partition('_')[0]})" for row in ROWS]
        examples = [[str(EXAMPLES / r["video"]), r["question"], "\n".join(r["options"])] for r in ROWS]
        gr.Examples(examples, fields, label="Examples", cache_examples=False, example_labels=labels)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                video.render()
                gr.HTML(f"<p id='unplayable' class='notice' role='status' data-text='{UNPLAYABLE}' hidden></p>")
                timeline = gr.HTML(label="Timeline")
                question.render()
                options.render()
                with gr.Row():
                    button = gr.Button("Ask", variant="primary", min_width=90)
                    stop, again = gr.Button("Stop", min_width=90), gr.Button("Try again", min_width=90)
                with gr.Accordion("Only a part of the video", open=False), gr.Row():
                    start = gr.Number(0, label="From second", minimum=0, min_width=120)
                    end = gr.Number(None, label="To second", placeholder="its end", minimum=0, min_width=120)
                with gr.Accordion("How words are chosen", open=False):
                    temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature", info="0: the likeliest word")
                    top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", info="Of the likeliest words alone")
                    seed = gr.Number(0, label="Seed", precision=0, info="Try again adds 1; no matter at temperature 0")
                    limit = gr.Slider(16, 1024, 512, step=16, label="Tokens at most")
            with gr.Column(scale=3, min_width=320):
                said = gr.HTML(HINT, label="Answer", show_label=True, container=True, padding=True, elem_id="answer")
                words = gr.HTML(label="Reasoning", show_label=True, container=True, padding=True, elem_classes="words")
                pictures = gr.HTML(label="Mental image")
                with gr.Group():
                    cut = gr.Radio(
                        [(text, name) for name, (text, _) in CUTS.items()],
                        value="suppressed",
                        label="What if it could not picture?",
                        info="The last question again, with its imagery cut",
                    )
                    compare = gr.Button("Answer again without")
                versus = gr.HTML(label="Both answers", elem_id="versus")
        inputs = [*fields, start, end, temperature, top_p, seed, limit]
        outputs = [said, words, timeline, pictures, versus, done]
        shared = {"concurrency_limit": 1, "concurrency_id": "model"}
        page = shared | {"validator": check, "show_progress_on": [said], "scroll_to_output": True}
        asked = gr.on([button.click, question.submit], ask, inputs, outputs, api_visibility="private", **page)
        seeded = again.click(lambda seed: (seed or 0) + 1, seed, seed, api_visibility="private", queue=False)
        retried = seeded.then(ask, inputs, outputs, api_visibility="private", **page)
        compared = compare.click(ask_without, [cut, done], versus, api_visibility="private", **shared)
        stop.click(
            lambda shown, other: (STOPPED if shown == BUSY else shown, "" if other == BUSY else other),
            [said, versus],
            [said, versus],
            cancels=[asked, retried, compared],
            api_visibility="private",
            queue=False,
        )
        gr.Button(visible=False).click(  # a button that nobody sees: this is for programs
            answer, fields, gr.JSON(visible=False), api_name="answer", validator=check, **shared
        )
    return demo.queue(max_size=QUEUE)


def jobs_of(demo: gr.Blocks, request: gr.Request) -> int:
    """How many jobs of a visitor run or wait. Gradio has no limit of its own, nor a public list of them."""
    queue = demo._queue
    jobs = [job for waiting in queue.event_queue_per_concurrency_id.values() for job in waiting.queue]
    jobs += [job for batch in queue.active_jobs for job in batch or ()]
    return sum(job.session_hash == request.session_hash for job in jobs)


def launch(demo: gr.Blocks, **kwargs) -> tuple:
    """Serve it; arguments and result as of its own `launch`."""
    return demo.launch(
        css=answer_html.read_asset("reasoning.css") + answer_html.read_asset("style.css"),
        head=f"<script>{answer_html.read_asset('page.js')}</script>",
        theme=THEME,
        run_history=False,
        max_file_size=uploads.MAX_BYTES,
        app_kwargs={"middleware": [Middleware(uploads.OnlyVideos)]},
        mcp_server=importlib.util.find_spec("mcp") is not None,
        **kwargs,
    )
