"""The page of the demo, made of Gradio blocks. A visitor asks about a video, reads the reasoning as it is written, and
sees what each mental image resembles in the video.

The layout is in `add_page`, the events are in `connect_events`, and the functions that they call in `handlers.py`.
"""

import html
import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import gradio as gr
from starlette.middleware import Middleware

from ..checkpoints import BUNDLED
from . import answer_html, uploads
from .answer_html import read_asset
from .checkpoint_facts import describe_checkpoint
from .handlers import INTERVENTIONS, MAX_OPTION, MAX_OPTIONS, MAX_QUESTION, PAGE, Handlers, clear_waiting
from .stored_answers import EXAMPLES, example_video, thumbnail

if TYPE_CHECKING:
    from ..qa import VideoQA

QUEUE_SIZE = 64
DELETE_UPLOADS = (600, 3600)  # Gradio's delete_cache: every so many seconds, files older than so many seconds
INTRODUCTION = """<h1>4DThinker <span>pictures while it reasons</span></h1>
<p>Ask about a moving scene. Between its words the model feeds itself <b>mental images</b>: a few vectors in place of
words, which stand for how the scene goes on. Below is a finished answer, with the moment that it pictured.</p>"""
LINKS = (
    ("Paper", "https://arxiv.org/abs/2605.05997"),
    ("Published model", "https://huggingface.co/jankin123/4DThinker-3B"),
    ("Data", "https://huggingface.co/datasets/jankin123/4DThinker-Training-Data"),
)
UNPLAYABLE = (
    "Your browser cannot play this format. The model can: ask, and the moments that it saw appear below the video."
)
STALE = "This answer belongs to another question. Press Ask for a new one."
# The camera button asks for a small picture, since the model sees no more and a slow machine cannot record the 1920 x
# 1440 that Gradio asks for; and for no sound, since a machine may have a camera but no microphone.
CAMERA = gr.WebcamOptions(constraints={"video": {"width": {"ideal": 640}, "height": {"ideal": 480}}, "audio": False})
# Colours with the contrast that WCAG 2.2 AA asks for: 4.5 for text, 3 for the edge of an input.
THEME = gr.themes.Soft().set(
    body_background_fill="*neutral_100",
    body_text_color_subdued="*neutral_600",
    block_title_background_fill="none",
    block_title_background_fill_dark="none",
    block_title_text_color="*primary_700",
    block_title_text_color_dark="*neutral_50",
    block_label_text_color="*primary_700",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
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


def build_demo(model: str | os.PathLike = BUNDLED, qa: "VideoQA | None" = None, **settings) -> gr.Blocks:
    """Builds the demo. `model` is loaded once the page is served, or by the first question, unless it is given as
    `qa`. `settings` are arguments of `load_model`, such as `dtype`."""
    uploads.delete_old_uploads(DELETE_UPLOADS[1])  # before Gradio puts pictures of the examples there
    with gr.Blocks(title="4DThinker", delete_cache=DELETE_UPLOADS) as demo:
        demo.handlers = Handlers(demo, model, qa, **settings)
        connect_events(add_page(demo.handlers), demo.handlers)
    return demo.queue(max_size=QUEUE_SIZE)


def launch(demo: gr.Blocks, prevent_thread_lock: bool = False, **kwargs) -> tuple:
    """Serves the demo, and then begins to load its model. Arguments and result are those of `gr.Blocks.launch`. Unless
    `prevent_thread_lock`, raises what the loading raises."""
    served = demo.launch(
        css=read_asset("answer.css") + read_asset("style.css"),
        head=f"<script>{read_asset('page.js')}</script>",
        theme=THEME,
        run_history=False,
        max_file_size=uploads.MAX_BYTES,
        app_kwargs={"middleware": [Middleware(uploads.UploadMiddleware)], "routes": demo.handlers.results.routes()},
        mcp_server=importlib.util.find_spec("mcp") is not None,
        prevent_thread_lock=True,
        **kwargs,
    )
    loaded = demo.handlers.start_loading()
    if not prevent_thread_lock:
        loaded.result()
        demo.block_thread()
    return served


def add_page(handlers: Handlers) -> SimpleNamespace:
    """Adds everything that a visitor sees. Returns the components that events use. The page opens on the stored answer
    to the first example."""
    page = SimpleNamespace()
    limits = html.escape(describe_checkpoint(Path(handlers.model)))
    links = "".join(f"<a href='{address}' target='_blank' rel='noopener'>{name}</a>" for name, address in LINKS)
    unseen = "<p id='announcer' class='unseen' role='status' aria-live='polite'></p>"
    unseen += "<h2 class='unseen'>Ask about a video</h2>"
    gr.HTML(f"<header>{INTRODUCTION}</header>{unseen}", padding=False)
    gr.HTML(f"<p class='limits'>{limits} <span class='about'>{links}</span></p>", elem_id="limits", padding=False)
    page.loading = gr.HTML(elem_id="loading", padding=False)
    page.video = new_video(
        value=example_video(EXAMPLES[0]), label="Video", height=190, elem_id="video", loop=True, render=False
    )
    opening = handlers.opening_page(page.video.value["path"])
    page.answered = gr.State(opening["answered"], time_to_live=3600)
    page.question = new_question(value=EXAMPLES[0]["question"], elem_id="question", render=False)
    page.options = new_options(value="\n".join(EXAMPLES[0]["options"]), elem_id="options", render=False)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            add_question_column(page, opening)
        with gr.Column(scale=3, min_width=320, elem_id="answer-column"):
            add_answer_column(page, opening)
    return page


def new_video(**kwargs) -> gr.Video:
    return uploads.accept_uploads_only(gr.Video(webcam_options=CAMERA, **kwargs))


def new_question(**kwargs) -> gr.Textbox:
    return gr.Textbox(
        label="Question", placeholder="Which way does it move?", lines=1, max_length=MAX_QUESTION, **kwargs
    )


def new_options(**kwargs) -> gr.Textbox:
    info = f"One a line, at most {MAX_OPTIONS}; none for an open question"
    return gr.Textbox(
        label="Options", info=info, lines=4, max_lines=MAX_OPTIONS, max_length=MAX_OPTIONS * (MAX_OPTION + 1), **kwargs
    )


def add_question_column(page: SimpleNamespace, opening: dict) -> None:
    page.video.render()
    gr.HTML(f"<p id='unplayable' class='notice' role='status' data-text='{UNPLAYABLE}' hidden></p>", padding=False)
    page.timeline = gr.HTML(opening["timeline"], elem_id="timeline", padding=False)
    page.question.render()
    page.options.render()
    with gr.Row():
        page.ask = gr.Button("Ask", variant="primary", min_width=90, elem_id="ask")
        page.stop = gr.Button("Stop", min_width=90, elem_id="stop")
        page.try_again = gr.Button("Try again", min_width=90, visible=False)
    gr.HTML("<h2>Examples</h2>", padding=False)
    with gr.Row(elem_id="examples"):
        page.examples = [
            gr.Button(
                f"{row['question']}\nRight answer: {row['answer']}",
                icon=thumbnail(row),
                elem_classes="example",
                min_width=150,
            )
            for row in EXAMPLES
        ]
    # Their files stay in Gradio's cache as long as the page is served, so that a click can show them.
    page.example_videos = [gr.Video(example_video(row), visible=False) for row in EXAMPLES]
    with gr.Accordion("Only a part of the video", open=False), gr.Row():
        page.start = gr.Number(0, label="From second", minimum=0, min_width=120)
        page.end = gr.Number(None, label="To second", placeholder="its end", minimum=0, min_width=120)
    with gr.Accordion("How words are chosen", open=False):
        page.temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature", info="0: the likeliest word")
        page.top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", info="Of the likeliest words alone")
        page.seed = gr.Number(0, label="Seed", precision=0, info="Try again adds 1; no matter at temperature 0")
        page.max_new_tokens = gr.Slider(16, 1024, 512, step=16, label="Tokens at most")


def add_answer_column(page: SimpleNamespace, opening: dict) -> None:
    gr.HTML(
        f"<h2>Answer</h2><p id='stale' class='notice' role='status' data-text='{STALE}' hidden></p>", padding=False
    )
    page.verdict = gr.HTML(opening["verdict"], elem_id="answer", padding=False)
    page.reasoning = gr.HTML(opening["reasoning"], elem_id="reasoning", padding=False)
    page.mental_images = gr.HTML(opening["mental_images"], elem_id="pictures", padding=False)
    with gr.Group(elem_id="what-if"):
        page.intervention = gr.Radio(
            [(text, name) for name, (text, *_) in INTERVENTIONS.items()],
            value="suppressed",
            label="What if it could not picture?",
            info="The last question again, with its imagery cut",
        )
        page.ask_again = gr.Button("Answer again without")
    page.comparison = gr.HTML(elem_id="comparison", padding=False)


def connect_events(page: SimpleNamespace, handlers: Handlers) -> None:
    """Connects the page's buttons with the functions that answer, and adds the API `/answer`."""
    question = [page.video, page.question, page.options]
    settings = [page.start, page.end, page.temperature, page.top_p, page.seed, page.max_new_tokens]
    private, one_at_a_time = {"api_visibility": "private"}, {"concurrency_limit": 1, "concurrency_id": "model"}

    gr.context.Context.root_block.load(handlers.show_loading, None, page.loading, concurrency_limit=None, **private)
    for row, button, video in zip(EXAMPLES, page.examples, page.example_videos, strict=True):
        chosen = (video.value["path"], row["question"], "\n".join(row["options"]))
        button.click(
            lambda chosen=chosen: (*chosen, 0, None), None, [*question, *settings[:2]], queue=False, **private
        )
    ask = {
        "fn": handlers.ask,
        "inputs": [*question, *settings],
        "outputs": [getattr(page, name) for name in PAGE],
        "validator": handlers.check,
        "show_progress_on": [page.verdict],
    }
    asked = gr.on([page.ask.click, page.question.submit], trigger_mode="once", **ask, **private, **one_at_a_time)
    next_seed = page.try_again.click(lambda seed: (seed or 0) + 1, page.seed, page.seed, queue=False, **private)
    retried = next_seed.then(**ask, **private, **one_at_a_time)
    page.temperature.change(  # at temperature 0 the answer would be the same again
        lambda temperature: gr.update(visible=temperature > 0),
        page.temperature,
        page.try_again,
        queue=False,
        **private,
    )
    asked_again = page.ask_again.click(
        handlers.ask_again, [page.intervention, page.answered], page.comparison, **private, **one_at_a_time
    )
    page.stop.click(
        clear_waiting,
        [page.verdict, page.comparison],
        [page.verdict, page.comparison],
        cancels=[asked, retried, asked_again],
        queue=False,
        **private,
    )
    # For programs: no visitor sees these.
    span = [gr.Number(None, label=name, visible=False) for name in ("start", "end")]
    result = gr.JSON(visible=False)
    result.api_info = result.api_info_as_output = lambda: answer_html.ANSWER_SCHEMA
    gr.Button(visible=False).click(
        handlers.answer,
        [new_video(visible=False), new_question(visible=False), new_options(visible=False), *span],
        result,
        api_name="answer",
        validator=handlers.check,
        **one_at_a_time,
    )
