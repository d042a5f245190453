"""What happens when a visitor asks: checks a question, streams the answer to the page or the API, and asks again with
the mental images changed."""

import dataclasses
import functools
import html
import json
import math
import os
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr
import numpy as np

from ..checkpoints import load_imagery_decoder, load_model, read_json
from ..question_answer import Answer, check_question
from ..video_fourdthinker import VideoError
from . import answer_html, uploads
from .answer_video import AnswerVideo
from .checkpoint_facts import read_map_test, read_rates
from .results import Results
from .stored_answers import ANSWERS, EXAMPLES, example_video, stored_answer

if TYPE_CHECKING:
    from ..qa import Clip, VideoQA

try:
    from spaces import GPU as on_gpu  # a ZeroGPU Space lends a GPU to the functions that this wraps
except ImportError:

    def on_gpu(function):
        return function


# The outputs of `ask`, in order: parts of the page, and the state in which `ask_again` finds the last question.
PAGE = ("verdict", "reasoning", "timeline", "mental_images", "comparison", "answered")
# What can be done to the mental images: the choice that the visitor sees, the text that then takes their place, and
# the probe of `fourdthinker evaluate` that does the same.
INTERVENTIONS = {
    "suppressed": ("It may not picture at all", "no mental image allowed", "suppressed"),
    "zeroed": ("Its mental images are blank", "zeros in place of it", "zeros"),
    "swapped": ("Its mental images are of another video", "another video's in place of it", "swap"),
}
STATUS = {
    "loading": "Loading the model. It answers as soon as it is there.",
    "reading": "Reading the video.",
    "looking": "Looking at the video.",
    "writing": "Writing.",
}
STOPPED = "<p class='waiting'>Stopped. Ask again.</p>"
MAX_JOBS_PER_VISITOR = 2  # one that runs and one that waits
UPDATE_SECONDS = 0.1  # between two updates of the page while text arrives
# Limits on what a visitor asks, so that one cannot keep the model from the others. The time of a question grows with
# its length: 500 characters are a long question, and no benchmark that this project reads has more options.
MAX_QUESTION = 500  # characters
MAX_OPTIONS = 10
MAX_OPTION = 200  # characters
MAX_ANSWER_SECONDS = 60


def load_qa(model: str | os.PathLike, **settings) -> "VideoQA":
    """Loads a checkpoint, and its imagery decoder if it has one, as `VideoQA.from_pretrained` does. Uploaded videos
    are decoded in a process of their own. Only here torch and transformers are imported."""
    from ..qa import VideoQA

    network, processor = load_model(model, **settings)
    open_video = uploads.open_in_subprocess(processor)
    return VideoQA(network, processor, open_video, imagery_decoder=load_imagery_decoder(network))


class Handlers:
    """The functions that the page of `demo` and its API call. `model` is loaded by `start_loading`, or by the first
    question, unless it is given as `qa`. `settings` are arguments of [`load_qa`]."""

    def __init__(self, demo: gr.Blocks, model: str | os.PathLike, qa: "VideoQA | None" = None, **settings):
        self.demo, self.model, self.qa, self.settings = demo, model, qa, settings
        self.get_example_latents = functools.cache(self._example_latents)
        self.decoding, self.loading = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.loaded: Future | None = None
        self.reply = on_gpu(self._reply)
        self.results = Results()
        self.map_test, self.rates = read_map_test(Path(model)), read_rates(Path(model))

    # The model.

    def start_loading(self) -> Future:
        """Begins to load the model in another thread, if nothing has. The result is a [`VideoQA`]."""
        if self.loaded is None:
            qa = self.qa
            self.loaded = self.loading.submit(lambda: qa or load_qa(self.model, **self.settings))
        return self.loaded

    def get_qa(self) -> "VideoQA":
        return self.start_loading().result()

    def show_loading(self) -> Iterator[str]:
        """Yields a notice while the model is being loaded, and then nothing."""
        loaded = self.start_loading()
        if not loaded.done():
            yield "<p class='notice' role='status'>The model is being loaded. You can already look and ask.</p>"
            while not wait([loaded], 1).done:
                yield gr.skip()
        failed = loaded.exception()
        yield answer_html.notice_html(f"The model cannot be loaded: {failed}") if failed else ""

    # Checks.

    def check(self, request: gr.Request, video, question, options, start=None, end=None, *settings) -> list[dict]:
        """Gradio's validator, called before a question is queued: one result for each input."""
        problems = [
            problem_of_video(video),
            problem_of_question(question),
            problem_of_options(options),
            problem_of_span(start, end),
            "",
        ]
        if num_jobs(self.demo, request) >= MAX_JOBS_PER_VISITOR:
            problems[1] = "You have one question running and one waiting: stop one, or wait for an answer"
        problems += [problem_of_setting(value) for value in settings]
        return [gr.validate(not problem, problem) for problem in problems]

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
        tiles, panels, num_drawn, last_update, is_first = [], [], None, 0.0, True
        try:
            for status, answer in self.stream(**asked):
                if is_first:
                    yield replace_page(verdict=tag_html(waiting_html(status), asked))
                    is_first, shown = False, status
                    continue
                if status != shown:
                    shown = status
                    yield update_page(verdict=tag_html(waiting_html(status), asked))
                if answer is None:
                    yield update_page()
                    continue
                has_new_image = len(answer.images) != num_drawn
                if not has_new_image and time.monotonic() - last_update < UPDATE_SECONDS:
                    continue
                num_drawn, last_update = len(answer.images), time.monotonic()
                update = {"reasoning": answer_html.reasoning_tiles_html(answer, tiles), "answered": None}
                if has_new_image:
                    update |= self._video_html(answer, panels, self.get_qa().processor.fps)
                yield update_page(**update)
        except ValueError as error:
            yield replace_page(verdict=tag_html(answer_html.notice_html(explain(error, video)), asked))
            return
        name, right = Path(video).name, right_option(asked)
        link = self.results.add(
            answer_html.result_page_html(answer, question, asked["options"], name, right, self.map_test),
            AnswerVideo(answer),
        )
        yield replace_page(**self._finished(answer, asked, tiles, panels, self.get_qa().processor.fps, link))

    def opening_page(self, video: str) -> dict:
        """The parts of the page, see `PAGE`, that it opens on: the stored answer to the first example. `video` is the
        path of its video in Gradio's cache."""
        row, answer = EXAMPLES[0], stored_answer(0)
        asked = {name: row[name] for name in ("question", "options")} | {"video": video}
        fps = read_json(ANSWERS)["sampling"]["fps"]
        return self._finished(answer, asked, [], [], fps, None)

    def _finished(self, answer: Answer, asked: dict, tiles, panels, fps: float, link: str | None) -> dict:
        """The parts of the page that show a complete answer."""
        question, options = asked["question"], asked["options"]
        verdict = answer_html.verdict_html(answer, options, right_option(asked))
        links = answer_html.links_html(answer, question, options, link)
        images = [
            dataclasses.replace(image, maps=None, picture=None) for image in answer.images
        ]  # what `ask_again` needs of them
        return {
            "verdict": tag_html(f"<div class='finished'>{verdict}</div>{links}", asked),
            "reasoning": answer_html.reasoning_tiles_html(answer, tiles),
            "answered": {"asked": asked, "answer": dataclasses.replace(answer, frames=None, images=images)},
            **self._video_html(answer, panels, fps),
        }

    def ask_again(self, intervention: str, answered: dict | None) -> Iterator[str]:
        """Asks the last question again with the mental images changed, and compares the answers."""
        if answered is None or intervention is None:
            yield answer_html.notice_html("Ask a question first, and let it be answered.")
            return
        asked = answered["asked"]
        try:
            for status, so_far in self.stream(**asked, **self._settings_of(intervention, asked["video"])):
                answer = so_far
                yield waiting_html(status)
        except ValueError as error:
            yield answer_html.notice_html(explain(error, asked["video"]))
            return
        _, label, probe = INTERVENTIONS[intervention]
        names = {"as it pictured": "plain", label: probe}
        rates = {name: self.rates[probe] for name, probe in names.items() if probe in self.rates}
        yield answer_html.comparison_html(answered["answer"], answer, asked["options"], label, rates)

    def answer(
        self,
        video: str,
        question: str,
        options: str | None = None,
        start: float | None = None,
        end: float | None = None,
    ) -> Iterator[dict]:
        """Answer a question about a video, with the reasoning, the probability of each option, and, for each mental
        image that was pictured, where and when the video resembles it.

        Args:
            video: the video to watch: a file that was uploaded
            question: the question to answer
            options: answers to choose from, one a line; empty for an open question
            start: the second from which on to watch; empty for the beginning
            end: the second up to which to watch; empty for the end
        """
        choices, last_update, last_status, reply = split_options(options), -1.0, None, Answer(None, np.empty(0))
        try:
            for status, so_far in self.stream(video, question, choices, start or None, end or None):
                reply = so_far or reply
                if status != last_status or time.monotonic() - last_update >= UPDATE_SECONDS:
                    last_update, last_status = time.monotonic(), status
                    yield answer_html.answer_json(reply, question, choices, maps=False, status=status)
        except ValueError as error:
            raise gr.Error(explain(error, video), print_exception=False) from None
        yield answer_html.answer_json(reply, question, choices)

    def stream(
        self, video, question, options, start=None, end=None, **settings
    ) -> Iterator[tuple[str, Answer | None]]:
        """Yields what is happening, a key of `STATUS`, and the answer so far, None until the model writes."""
        loaded = self.start_loading()
        while not wait([loaded], UPDATE_SECONDS).done:
            yield "loading", None
        yield "reading", None
        clip = yield from self._open(video, start, end)
        yield "looking", None
        for answer in self.reply(clip, question, options, {"max_seconds": MAX_ANSWER_SECONDS} | settings):
            yield "writing", dataclasses.replace(answer, frames=clip.frames)

    def _open(self, video, start, end) -> Generator[tuple, None, "Clip"]:
        """Opens a video and yields until it is open, because Gradio stops an event only where its function yields. If
        the event is stopped, so is the process that decodes."""
        stopped = threading.Event()
        clip = self.decoding.submit(self.get_qa().open, video, start, end, stopped=stopped)
        try:
            while not wait([clip], UPDATE_SECONDS).done:
                yield "reading", None
        finally:
            stopped.set()
        return clip.result()

    def _reply(self, clip: "Clip", question: str, options: list[str], settings: dict) -> Iterator[Answer]:
        for answer in self.get_qa().stream(clip, question, options, **settings):
            yield dataclasses.replace(answer, frames=None)  # ZeroGPU copies what is yielded from another process

    def _settings_of(self, intervention: str, video: str) -> dict:
        """The arguments of `VideoQA.stream` for an intervention."""
        if intervention == "suppressed":
            return {"imagery": False}
        from .. import latent_hooks

        if intervention == "zeroed":
            return {"latent_hook": latent_hooks.zeros}
        other = 1 if Path(video).name == EXAMPLES[0]["video"] else 0
        return {"latent_hook": latent_hooks.swap([self.get_example_latents(other)])}

    def _example_latents(self, number: int) -> list:
        """The latents of each mental image in the answer to an example."""
        example = EXAMPLES[number]
        clip = self.get_qa().open(example_video(example))
        *_, answer = self.reply(clip, example["question"], example["options"], {})
        return [image.latents for image in answer.images if len(image.latents)]

    def _video_html(self, answer: Answer, panels: list[str], fps: float) -> dict[str, str]:
        return {
            "timeline": answer_html.timeline_html(answer) + describe_sampling(answer.timestamps, fps),
            "mental_images": answer_html.mental_images_html(answer, panels, self.map_test),
        }


def update_page(**parts) -> tuple:
    """The outputs of `ask`; parts that are not given stay as they are."""
    return tuple(parts.get(name, gr.skip()) for name in PAGE)


def replace_page(**parts) -> tuple:
    """The outputs of `ask`; parts that are not given become empty."""
    return tuple(parts.get(name, None if name == "answered" else "") for name in PAGE)


def waiting_html(status: str) -> str:
    return f"<p class='waiting'>{STATUS[status]}</p>"


def tag_html(body: str, asked: dict) -> str:
    """What the answer column shows, with what was asked. From that `page.js` sees whether the page asks something else
    by now. Of the video's path it gets the end, which tells uploads apart."""
    video = "/".join(Path(asked["video"]).parts[-2:])
    data = html.escape(json.dumps([video, asked["question"], asked["options"]]), quote=True)
    return f"<div class='asked' data-asked='{data}'>{body}</div>"


def clear_waiting(verdict: str, comparison: str) -> tuple[str, str]:
    """What the page shows once questions have been stopped."""
    return tuple(STOPPED if "class='waiting'" in (shown or "") else shown for shown in (verdict, comparison))


def split_options(text: str | None) -> list[str]:
    """The options in a text box that holds one a line."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def right_option(asked: dict) -> int | None:
    """The index of the right option if what was asked is an example."""
    for row in EXAMPLES:
        if Path(asked["video"]).name == row["video"] and asked["question"] == row["question"]:
            if asked["options"] == row["options"]:
                return row["options"].index(row["answer"])
    return None


# What is wrong with an input, in words for the visitor; empty if nothing is.


def problem_of_video(video: str | None) -> str:
    try:
        return uploads.check_upload(video) or "" if video else "Choose a video first"
    except VideoError as error:
        return str(error)


def problem_of_question(question: str | None) -> str:
    if not (question or "").strip():
        return "Type a question"
    if len(question) > MAX_QUESTION:
        return f"The question has {len(question):,} characters: at most {MAX_QUESTION} are accepted"
    try:
        check_question(question, None)
    except ValueError as error:
        return str(error)
    return ""


def problem_of_options(text: str | None) -> str:
    options = split_options(text)
    if len(options) > MAX_OPTIONS:
        return f"There are {len(options):,} options: at most {MAX_OPTIONS} are accepted"
    if (longest := max(map(len, options), default=0)) > MAX_OPTION:
        return f"An option has {longest:,} characters: at most {MAX_OPTION} are accepted"
    try:
        check_question("a question", options)
    except ValueError as error:
        return str(error)
    return ""


def problem_of_span(start: float | None, end: float | None) -> str:
    """0 is what Gradio makes of an empty field: as an end it means the end of the video."""
    for name, value in (("start", start), ("end", end)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            return f"The {name} must be a number of seconds from 0 on"
    return "" if not end or (start or 0) < end else "The start must be before the end"


def problem_of_setting(value: float | None) -> str:
    """Gradio has compared it with the bounds of its slider, but takes NaN, and a seed of any size."""
    return "" if value is None or abs(value) < 2**63 else "This must be a number, and smaller"


def explain(error: ValueError, video: str) -> str:
    """The message for a visitor, without the folder of the file on the server."""
    text = str(error).replace(str(video), Path(video).name)
    return f"This video cannot be read. {text}" if isinstance(error, VideoError) else text


def describe_sampling(timestamps: np.ndarray, fps: float) -> str:
    """How much of the video the model sees; `fps` is how many frames a second it would see of a short video.
    Frames that lie 0.6 s apart on average, as many models see any video, are not called sparse."""
    frames = answer_html.count(len(timestamps), "frame")
    text = f"The model looks at {frames} from {timestamps[0]:.1f} to {timestamps[-1]:.1f} s."
    if len(timestamps) > 1 and (gap := (timestamps[-1] - timestamps[0]) / (len(timestamps) - 1)) > max(1.2 / fps, 0.6):
        text += f" The video is long, so they lie {gap:.1f} s apart: for more detail, ask about a part of it."
    return f"<p class='note'>{text}</p>"


def num_jobs(demo: gr.Blocks, request: gr.Request) -> int:
    """The number of a visitor's jobs that run or wait. Gradio has no limit of its own and no public list of jobs."""
    queue = demo._queue
    jobs = [job for waiting in queue.event_queue_per_concurrency_id.values() for job in waiting.queue]
    jobs += [job for batch in queue.active_jobs for job in batch or ()]
    return sum(job.session_hash == request.session_hash for job in jobs)
