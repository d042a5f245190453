"""The demo: ask about a video, read the reasoning as it comes, and see what the model pictured where it pictured it.

    python app.py

The first question loads the checkpoint: the bundled one, or the folder or Hub id in FOURDTHINKER_MODEL.
"""

import functools
import json
import os
import string
from collections.abc import Iterator
from pathlib import Path

import gradio as gr

from fourdthinker_hf.qa import BUNDLED, Answer, VideoQA, check_question
from fourdthinker_hf.show import STYLE, reasoning_html
from fourdthinker_hf.video_fourdthinker import VideoError

MODEL = os.environ.get("FOURDTHINKER_MODEL", BUNDLED)
EXAMPLES = Path(__file__).parent / "examples"
INTRO = """# 4DThinker
It answers questions about moving scenes by *picturing* them: between the words it writes **mental images**,
vectors that stand for how the scene evolves. Each is shown where it was pictured, over the frames it resembles."""
WAITING = "<p class='waiting'>The reasoning and the mental images appear here.</p>"
BUSY = "<p class='waiting'>Watching the video.</p>"
CSS = STYLE + "p.waiting { margin-top: 1.6rem; }"
THEME = gr.themes.Soft().set(  # contrast: white on the button, and red messages beside the titles
    button_primary_background_fill="*primary_600", block_title_background_fill="none",
    block_title_background_fill_dark="none", block_title_text_color_dark="*neutral_50",
)  # fmt: skip
LAUNCH = {"css": CSS, "theme": THEME, "run_history": False, "max_file_size": "100mb"}


def split_options(text: str | None) -> list[str]:
    """The options in a box that holds one a line."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def check(video: str | None, question: str, options: str) -> list[dict]:
    """Gradio's validation, before a request is queued; one entry per input."""
    try:
        check_question("a question", split_options(options))
        problem = ""
    except ValueError as error:
        problem = str(error)
    return [
        gr.validate(bool(video), "Choose a video first"),
        gr.validate(bool(question and question.strip()), "Type a question"),
        gr.validate(not problem, problem),
    ]


def verdict(answer: Answer, options: list[str]) -> str:
    """The answer in words: the chosen option with its letter and probability, or why there is none."""
    if answer.option is not None:
        chosen = f"{string.ascii_uppercase[answer.option]}. {options[answer.option]}"
        return f"{chosen} ({answer.probabilities[answer.option]:.0%})"
    return f"{answer.answer} ({answer.reason})".strip() if answer.reason else answer.answer


def build_demo(model: str | os.PathLike = MODEL) -> gr.Blocks:
    """The interface; `model` is loaded by the first question."""

    @functools.cache
    def load() -> VideoQA:
        return VideoQA.from_pretrained(model)

    def answer(video: str, question: str, options: str = "") -> Iterator[tuple]:
        """Answer a question about a video.

        Args:
            video: the video to watch
            question: the question to answer
            options: answers to choose from, one a line; empty for an open question
        """
        choices, figures = split_options(options), []
        yield "", None, BUSY
        try:
            for reply in load().stream(video, question, choices):
                yield "", None, reasoning_html(reply, figures)
        except VideoError as error:
            reason = str(error).replace(str(video), Path(video).name)
            raise gr.Error(reason, title="This video cannot be read", print_exception=False) from None
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None
        chances = reply.probabilities and dict(zip(choices, reply.probabilities, strict=True))
        yield verdict(reply, choices), chances, reasoning_html(reply, figures)

    with gr.Blocks(title="4DThinker", delete_cache=(3600, 3600)) as demo:
        gr.Markdown(INTRO)
        with gr.Row():
            with gr.Column(scale=2):
                video = gr.Video(sources=["upload"], label="Video", height=280)
                question = gr.Textbox(label="Question", placeholder="Which way does it move?", lines=1)
                options = gr.Textbox(label="Options", info="One a line; none for an open question", lines=4)
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary")
                    stop = gr.Button("Stop")
            with gr.Column(scale=3):
                reply = gr.Textbox(label="Answer", interactive=False)
                chances = gr.Label(label="Probability of each option", show_heading=False)
                thoughts = gr.HTML(WAITING, label="Reasoning", show_label=True, container=True, padding=True)
        rows = json.loads((EXAMPLES / "examples.json").read_text())
        examples = [[str(EXAMPLES / row["video"]), row["question"], "\n".join(row["options"])] for row in rows]
        gr.Examples(examples, [video, question, options], label="Examples", cache_examples=False)
        asked = gr.on(
            [ask.click, question.submit], answer, [video, question, options], [reply, chances, thoughts],
            api_name="answer", concurrency_limit=1, validator=check, show_progress_on=[reply],
        )  # fmt: skip
        stop.click(None, cancels=[asked], api_visibility="private")
    return demo.queue(max_size=16)


demo = build_demo()

if __name__ == "__main__":
    demo.launch(**LAUNCH)
