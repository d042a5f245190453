"""What happens when a visitor asks: checks a question, streams the answer to the page or the API, and asks again with
the mental images changed."""

import dataclasses
import functools
import json
import os
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import gradio as gr
import numpy as np

from .. import latent_hooks
from ..checkpoints import load_model, shipped
from ..qa import Answer, Clip, VideoQA, check_question
from ..video_fourdthinker import VideoError
from . import answer_html, uploads

try:
    from spaces import GPU as on_gpu  # a ZeroGPU Space lends a GPU to the functions that this wraps
except ImportError:

    def on_gpu(function):
        return function


EXAMPLES_FOLDER = shipped("examples")
EXAMPLES = json.loads((EXAMPLES_FOLDER / "examples.json").read_text())

# The outputs of `ask`, in order: parts of the page, and the state in which `ask_again` finds the last question.
PAGE = ("verdict", "reasoning", "timeline", "mental_images", "comparison", "answered")
# What can be done to the mental images: the choice that the visitor sees, and the text that then takes their place.
INTERVENTIONS = {
    "suppressed": ("It may not picture at all", "no mental image allowed"),
    "zeroed": ("Its mental images are blank", "zeros in place of it"),
    "swapped": ("Its mental images are of another video", "another video's in place of it"),
}
WATCHING = "<p class='waiting' role='status'>Watching the video.</p>"
STOPPED = "<p class='waiting' role='status'>Stopped. Ask again.</p>"
MAX_JOBS_PER_VISITOR = 2  # one that runs and one that waits
UPDATE_SECONDS = 0.1  # between two updates of the page while text arrives


def load_qa(model: str | os.PathLike) -> VideoQA:
    """Loads a checkpoint that decodes uploaded videos in a process of their own."""
    network, processor = load_model(model)
    return VideoQA(network, processor, open_video=uploads.open_in_subprocess(processor))


class Handlers:
    """The functions that the page of `demo` and its API call. `model` is loaded by the first question unless it is
    given as `qa`."""

    def __init__(self, demo: gr.Blocks, model: str | os.PathLike, qa: VideoQA | None = None):
        self.demo = demo
        self.get_qa = functools.cache(lambda: qa or load_qa(model))
        self.get_example_latents = functools.cache(self._example_latents)
        self.decoding = ThreadPoolExecutor(1)
        self.reply = on_gpu(self._reply)

    # Checks.

    def check(self, request: gr.Request, video, question, options, *settings) -> list[dict]:
        """Gradio's validator, called before a question is queued: one result for each input."""
        problems = ["" if video else "Choose a video first", "" if (question or "").strip() else "Type a question", ""]
        try:
            check_question("a question", split_options(options))
            uploads.check_upload(video) if video else None
        except VideoError as error:
            problems[0] = str(error)
        except ValueError as error:
            problems[2] = str(error)
        if num_jobs(self.demo, request) >= MAX_JOBS_PER_VISITOR:
            problems[1] = "You have one question running and one waiting: stop one, or wait for an answer"
        return [gr.validate(not problem, problem) for problem in problems + [""] * len(settings)]

    # Answers.

    def ask(self, video, question, options, start, end, temperature, top_p, seed, max_new_tokens) -> Iterator[tuple]:
        """Yields updates of the page, see `PAGE`, while the answer grows."""
        asked = {
            "video": video,
            "question": question,
            "options": split_options(options),
            "start": start or None,
            "end": end or None,
            "temperature": temperature,
            "top_p": top_p,
            "seed": int(seed or 0),
            "max_new_tokens": int(max_new_tokens),
        }
        yield replace_page(verdict=WATCHING)
        tiles, panels, num_drawn, last_update = [], [], None, 0.0
        try:
            for answer in self.stream(**asked):
                if answer is None:
                    yield update_page()
                    continue
                has_new_image = len(answer.images) != num_drawn
                if not has_new_image and time.monotonic() - last_update < UPDATE_SECONDS:
                    continue
                num_drawn, last_update = len(answer.images), time.monotonic()
                update = {"reasoning": answer_html.reasoning_tiles_html(answer, tiles), "answered": None}
                if has_new_image:
                    update |= self._video_html(answer, panels)
                yield update_page(**update)
        except ValueError as error:
            yield replace_page(verdict=answer_html.notice_html(explain(error, video)))
            return
        verdict = answer_html.verdict_html(answer, asked["options"])
        html = verdict + answer_html.reasoning_text_html(answer)
        yield replace_page(
            verdict=verdict + answer_html.downloads_html(answer, question, asked["options"]),
            reasoning=answer_html.reasoning_tiles_html(answer, tiles),
            **self._video_html(answer, panels),
            answered={"asked": asked, "html": html, "answer": answer.answer},
        )

    def ask_again(self, intervention: str, answered: dict | None) -> Iterator[str]:
        """Asks the last question again with the mental images changed, and compares the answers."""
        if answered is None:
            yield answer_html.notice_html("Ask a question first, and let it be answered.")
            return
        yield WATCHING
        asked = answered["asked"]
        try:
            for so_far in self.stream(**asked, **self._settings_of(intervention, asked["video"])):
                answer = so_far
                yield gr.skip()
        except ValueError as error:
            yield answer_html.notice_html(explain(error, asked["video"]))
            return
        _, label = INTERVENTIONS[intervention]
        is_same = answer.answer == answered["answer"]
        yield answer_html.comparison_html(answered["html"], answer, asked["options"], label, is_same)

    def answer(self, video: str, question: str, options: str = "") -> Iterator[dict]:
        """Answer a question about a video, with the reasoning, the probability of each option, and, for each mental
        image that was pictured, where and when the video resembles it.

        Args:
            video: the video to watch: a file that was uploaded
            question: the question to answer
            options: answers to choose from, one a line; empty for an open question
        """
        choices, last_update = split_options(options), -1.0
        try:
            for so_far in self.stream(video, question, choices):
                reply = so_far or Answer(None, np.empty(0))
                if time.monotonic() - last_update >= UPDATE_SECONDS:
                    last_update = time.monotonic()
                    yield answer_html.answer_json(reply, question, choices, maps=False)
        except ValueError as error:
            raise gr.Error(explain(error, video), print_exception=False) from None
        yield answer_html.answer_json(reply, question, choices)

    def stream(self, video, question, options, start=None, end=None, **settings) -> Iterator[Answer | None]:
        """Yields the answer so far, and None while the video is being decoded."""
        clip = yield from self._open(video, start, end)
        for answer in self.reply(clip, question, options, settings):
            yield dataclasses.replace(answer, frames=clip.frames)

    def _open(self, video, start, end) -> Generator[None, None, Clip]:
        """Opens a video and yields until it is open, because Gradio stops an event only where its function yields. If
        the event is stopped, so is the process that decodes."""
        stopped = threading.Event()
        clip = self.decoding.submit(self.get_qa().open, video, start, end, stopped=stopped)
        try:
            while not wait([clip], UPDATE_SECONDS).done:
                yield
        finally:
            stopped.set()
        return clip.result()

    def _reply(self, clip: Clip, question: str, options: list[str], settings: dict) -> Iterator[Answer]:
        for answer in self.get_qa().stream(clip, question, options, **settings):
            yield dataclasses.replace(answer, frames=None)  # ZeroGPU copies what is yielded from another process

    def _settings_of(self, intervention: str, video: str) -> dict:
        """The arguments of `VideoQA.stream` for an intervention."""
        if intervention == "suppressed":
            return {"imagery": False}
        if intervention == "zeroed":
            return {"latent_hook": latent_hooks.zeros}
        other = 1 if Path(video).name == EXAMPLES[0]["video"] else 0
        return {"latent_hook": latent_hooks.swap([self.get_example_latents(other)])}

    def _example_latents(self, number: int) -> list:
        """The latents of each mental image in the answer to an example."""
        example = EXAMPLES[number]
        clip = self.get_qa().open(EXAMPLES_FOLDER / example["video"])
        *_, answer = self.reply(clip, example["question"], example["options"], {})
        return [image.latents for image in answer.images if len(image.latents)]

    def _video_html(self, answer: Answer, panels: list[str]) -> dict[str, str]:
        note = describe_sampling(answer.timestamps, self.get_qa().processor.fps)
        return {
            "timeline": answer_html.timeline_html(answer) + note,
            "mental_images": answer_html.mental_images_html(answer, panels),
        }


def update_page(**parts) -> tuple:
    """The outputs of `ask`; parts that are not given stay as they are."""
    return tuple(parts.get(name, gr.skip()) for name in PAGE)


def replace_page(**parts) -> tuple:
    """The outputs of `ask`; parts that are not given become empty."""
    return tuple(parts.get(name, None if name == "answered" else "") for name in PAGE)


def clear_waiting(verdict: str, comparison: str) -> tuple[str, str]:
    """What the page shows once questions have been stopped."""
    return STOPPED if verdict == WATCHING else verdict, "" if comparison == WATCHING else comparison


def split_options(text: str | None) -> list[str]:
    """The options in a text box that holds one a line."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def explain(error: ValueError, video: str) -> str:
    """The message for a visitor, without the folder of the file on the server."""
    text = str(error).replace(str(video), Path(video).name)
    return f"This video cannot be read. {text}" if isinstance(error, VideoError) else text


def describe_sampling(timestamps: np.ndarray, fps: float) -> str:
    """How much of the video the model sees; `fps` is how many frames a second it would see of a short video."""
    text = f"The model looks at {len(timestamps)} frames from {timestamps[0]:.1f} to {timestamps[-1]:.1f} s."
    if len(timestamps) > 1 and (gap := (timestamps[-1] - timestamps[0]) / (len(timestamps) - 1)) > 1.2 / fps:
        text += f" The video is long, so they lie {gap:.1f} s apart: for more detail, ask about a part of it."
    return f"<p class='note'>{text}</p>"


def num_jobs(demo: gr.Blocks, request: gr.Request) -> int:
    """The number of a visitor's jobs that run or wait. Gradio has no limit of its own and no public list of jobs."""
    queue = demo._queue
    jobs = [job for waiting in queue.event_queue_per_concurrency_id.values() for job in waiting.queue]
    jobs += [job for batch in queue.active_jobs for job in batch or ()]
    return sum(job.session_hash == request.session_hash for job in jobs)
