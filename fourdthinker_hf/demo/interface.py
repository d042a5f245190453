"""The page of the demo, made of Gradio blocks. A visitor asks about a video, reads the reasoning as it is written, and
sees what each mental image resembles in the video.

The layout is in `add_page`, the events are in `connect_events`, and the functions that they call in `handlers.py`.
"""

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
from starlette.middleware import Middleware

from ..checkpoints import BUNDLED
from ..qa import VideoQA
from . import uploads
from .answer_html import read_asset
from .handlers import EXAMPLES, EXAMPLES_FOLDER, INTERVENTIONS, PAGE, Handlers, clear_waiting

MODEL = os.environ.get("FOURDTHINKER_MODEL", BUNDLED)
QUEUE_SIZE = 64
DELETE_UPLOADS = (600, 3600)  # Gradio's delete_cache: every so many seconds, files older than so many seconds
INTRODUCTION = """# 4DThinker
Ask about a moving scene. The model answers in words and, between them, *pictures* how the scene evolves: each
**mental image** is a handful of vectors that it feeds back to itself. Here you see where it pictured something, and
what that is like in the video."""
HELP = """<div class='waiting'><ol><li>Choose an example, or a video of your own, and ask.</li>
<li>Read the reasoning as it comes. Where the model pictured something, a tile stands in the text, and a numbered mark
over the moment of the video that it is most like.</li>
<li>Choose a tile: the part of the scene that the mental image is like lights up.</li></ol></div>"""
UNPLAYABLE = (
    "Your browser cannot play this format. The model can: ask, and the moments that it saw appear below the video."
)
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


def build_demo(model: str | os.PathLike = MODEL, qa: VideoQA | None = None) -> gr.Blocks:
    """Builds the demo. `model` is loaded by the first question unless it is given as `qa`."""
    with gr.Blocks(title="4DThinker", delete_cache=DELETE_UPLOADS) as demo:
        connect_events(add_page(), Handlers(demo, model, qa))
    return demo.queue(max_size=QUEUE_SIZE)


def launch(demo: gr.Blocks, **kwargs) -> tuple:
    """Serves the demo. Arguments and result are those of `gr.Blocks.launch`."""
    return demo.launch(
        css=read_asset("answer.css") + read_asset("style.css"),
        head=f"<script>{read_asset('page.js')}</script>",
        theme=THEME,
        run_history=False,
        max_file_size=uploads.MAX_BYTES,
        app_kwargs={"middleware": [Middleware(uploads.UploadMiddleware)]},
        mcp_server=importlib.util.find_spec("mcp") is not None,
        **kwargs,
    )


def add_page() -> SimpleNamespace:
    """Adds everything that a visitor sees. Returns the components that events use."""
    page = SimpleNamespace()
    gr.Markdown(INTRODUCTION)
    page.answered = gr.State(None, time_to_live=3600)
    video = gr.Video(label="Video", height=340, elem_id="video", webcam_options=CAMERA, render=False)
    page.video = uploads.accept_uploads_only(video)
    page.question = gr.Textbox(label="Question", placeholder="Which way does it move?", lines=1, render=False)
    page.options = gr.Textbox(label="Options", info="One a line; none for an open question", lines=4, render=False)
    gr.Examples(
        [[str(EXAMPLES_FOLDER / row["video"]), row["question"], "\n".join(row["options"])] for row in EXAMPLES],
        [page.video, page.question, page.options],
        label="Examples",
        cache_examples=False,
        example_labels=[f"{row['question']} ({Path(row['video']).stem.partition('_')[0]})" for row in EXAMPLES],
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            add_question_column(page)
        with gr.Column(scale=3, min_width=320):
            add_answer_column(page)
    return page


def add_question_column(page: SimpleNamespace) -> None:
    page.video.render()
    gr.HTML(f"<p id='unplayable' class='notice' role='status' data-text='{UNPLAYABLE}' hidden></p>")
    page.timeline = gr.HTML(label="Timeline")
    page.question.render()
    page.options.render()
    with gr.Row():
        page.ask = gr.Button("Ask", variant="primary", min_width=90)
        page.stop = gr.Button("Stop", min_width=90)
        page.try_again = gr.Button("Try again", min_width=90)
    with gr.Accordion("Only a part of the video", open=False), gr.Row():
        page.start = gr.Number(0, label="From second", minimum=0, min_width=120)
        page.end = gr.Number(None, label="To second", placeholder="its end", minimum=0, min_width=120)
    with gr.Accordion("How words are chosen", open=False):
        page.temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature", info="0: the likeliest word")
        page.top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", info="Of the likeliest words alone")
        page.seed = gr.Number(0, label="Seed", precision=0, info="Try again adds 1; no matter at temperature 0")
        page.max_new_tokens = gr.Slider(16, 1024, 512, step=16, label="Tokens at most")


def add_answer_column(page: SimpleNamespace) -> None:
    boxed = {"show_label": True, "container": True, "padding": True}
    page.verdict = gr.HTML(HELP, label="Answer", elem_id="answer", **boxed)
    page.reasoning = gr.HTML(label="Reasoning", elem_id="reasoning", **boxed)
    page.mental_images = gr.HTML(label="Mental image")
    with gr.Group():
        page.intervention = gr.Radio(
            [(text, name) for name, (text, _) in INTERVENTIONS.items()],
            value="suppressed",
            label="What if it could not picture?",
            info="The last question again, with its imagery cut",
        )
        page.ask_again = gr.Button("Answer again without")
    page.comparison = gr.HTML(label="Both answers", elem_id="comparison")


def connect_events(page: SimpleNamespace, handlers: Handlers) -> None:
    """Connects the page's buttons with the functions that answer, and adds the API `/answer`."""
    question = [page.video, page.question, page.options]
    settings = [page.start, page.end, page.temperature, page.top_p, page.seed, page.max_new_tokens]
    private, one_at_a_time = {"api_visibility": "private"}, {"concurrency_limit": 1, "concurrency_id": "model"}

    ask = {
        "fn": handlers.ask,
        "inputs": [*question, *settings],
        "outputs": [getattr(page, name) for name in PAGE],
        "validator": handlers.check,
        "show_progress_on": [page.verdict],
        "scroll_to_output": True,
    }
    asked = gr.on([page.ask.click, page.question.submit], **ask, **private, **one_at_a_time)
    next_seed = page.try_again.click(lambda seed: (seed or 0) + 1, page.seed, page.seed, queue=False, **private)
    retried = next_seed.then(**ask, **private, **one_at_a_time)
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
    api = gr.Button(visible=False)  # for programs: no visitor sees it
    api.click(
        handlers.answer, question, gr.JSON(visible=False), api_name="answer", validator=handlers.check, **one_at_a_time
    )
