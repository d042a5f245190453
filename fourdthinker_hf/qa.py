"""Ask a question about a video: `VideoQA.from_pretrained().ask("clip.mp4", "Which way does it move?")`.

One path answers: `ask` is the last item of `stream`. A video is opened once and the vision tower runs on it once: for
decoding, for the options' probabilities, for the pictures of what was imagined, and for the next questions about it.
"""

import contextlib
import os
import queue
import re
import string
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .answers import match_option, parse
from .generation_fourdthinker import end_of_first_images
from .hub.files import BUNDLED, load_model
from .imagery import best_step, similarity_maps, video_features
from .latent_hooks import LatentHook
from .modeling_fourdthinker import FourDThinkerForConditionalGeneration
from .processing_fourdthinker import OUTPUT_IMAGE, FourDThinkerProcessor

OPEN, CLOSE = "<answer>", "</answer>"
_LETTER = re.compile(r"[(\[]?(?=[A-Z](?:[)\].:]|\s*$))")  # up to a letter that stands alone


@dataclass
class Clip:
    """A video, or a span of one, that was opened for any number of questions."""

    frames: np.ndarray  # (T, H, W, 3) uint8, the frames that the model sees
    timestamps: np.ndarray  # (T,) seconds in the source
    start: float | None  # the span that was asked for, in seconds
    end: float | None
    grid: torch.LongTensor  # (1, 3): its patches
    seconds: torch.FloatTensor  # (1,) from one temporal step to the next
    pixels: torch.Tensor | None  # what the vision tower takes; None once it has run
    features: torch.Tensor | None = None  # (T / 2, h, w, hidden), what it made


@dataclass
class MentalImage:
    """One block of latents. `maps`, `best` and `time` are None for a block that ended before its first latent."""

    latents: torch.Tensor  # (n, hidden) float32, as they were fed
    maps: np.ndarray | None = None  # (T, h, w) similarity to each temporal step of the video
    best: int | None = None  # the step it resembles most
    time: float | None = None  # of that step, in seconds of the source


@dataclass
class Answer:
    """A reply, whole or so far. `images` are in the order of the `<output_image>`s in `reasoning`."""

    frames: np.ndarray  # (T, H, W, 3) uint8, the frames that the model saw
    timestamps: np.ndarray  # (T,) seconds in the source
    text: str = ""  # the reply as written
    reasoning: str = ""
    answer: str = ""
    option: int | None = None  # index of the option that the answer names
    probabilities: list[float] | None = None  # per option; None if no answer was opened
    images: list[MentalImage] = field(default_factory=list)
    truncated: bool = False  # the limit of new tokens cut the reply
    reason: str | None = None  # why there is no answer, or why it names no option


class VideoQA:
    """A loaded checkpoint that answers questions about videos. Threads may share it: they take turns at the model."""

    def __init__(
        self,
        model: FourDThinkerForConditionalGeneration,
        processor: FourDThinkerProcessor,
        open_video=None,
        keep_bytes: int = 2**29,
    ):
        """`open_video(path, start, end)` is the processor's unless another is given. The frames of the videos asked
        about last are kept as long as they take `keep_bytes` at most; the newest video always is."""
        self.model, self.processor = model.eval(), processor
        self.open_video = open_video or processor.open_video
        self.turn = threading.Lock()  # whoever holds it may run the model
        self._clips: OrderedDict[tuple, tuple[tuple | None, Clip]] = OrderedDict()  # beside each, its file's state
        self._clips_lock, self._keep_bytes = threading.Lock(), keep_bytes

    @classmethod
    def from_pretrained(cls, model: str | PathLike = BUNDLED, device: str | torch.device | None = None) -> "VideoQA":
        """Load a checkpoint as [`load_model`] does."""
        return cls(*load_model(model, device))

    def ask(
        self, video: str | PathLike | Clip, question: str, options: Sequence[str] | None = None, **kwargs
    ) -> Answer:
        """Answer a question about the video at a path; arguments and errors as in [`VideoQA.stream`]."""
        *_, answer = self.stream(video, question, options, **kwargs)
        return answer

    def open(self, video: str | PathLike, start: float | None = None, end: float | None = None, **kwargs) -> Clip:
        """Decode the video at a path from `start` to `end`, in seconds; one that was asked about lately is not decoded
        again while its file is the same. VideoError for a file that is no readable video or lacks that span. What else
        is given goes to the `open_video` that this object was made with."""
        stat = os.stat(video) if os.path.exists(video) else None
        key, state = (os.fspath(video), start, end), stat and (stat.st_size, stat.st_mtime_ns)
        with self._clips_lock:
            if key in self._clips and self._clips[key][0] == state:
                self._clips.move_to_end(key)
                return self._clips[key][1]
        frames, timestamps = self.open_video(video, start, end, **kwargs)
        made = self.processor(videos=[frames], video_timestamps=[timestamps], return_tensors="pt")
        pixels, grid = made["pixel_values_videos"], made["video_grid_thw"]
        clip = Clip(frames, timestamps, start, end, grid, made["second_per_grid_ts"], pixels)
        with self._clips_lock:
            self._clips[key] = state, clip  # in place of what the file held before
            self._clips.move_to_end(key)
            while len(self._clips) > 1 and sum(c.frames.nbytes for _, c in self._clips.values()) > self._keep_bytes:
                self._clips.popitem(last=False)
        return clip

    def stream(
        self,
        video: str | PathLike | Clip,
        question: str,
        options: Sequence[str] | None = None,
        start: float | None = None,
        end: float | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        imagery: bool = True,
        latent_hook: LatentHook | None = None,
    ) -> Iterator[Answer]:
        """Answer as `ask` does, yielding the reply so far as text and mental images arrive; the last one is whole.

        Args:
            video: a path, or a [`Clip`] that `open` gave (`start` and `end` are then the clip's).
            start, end: trim the video, in seconds.
            temperature: 0 always takes the likeliest token; above, tokens are drawn, with `top_p` and `seed`.
            imagery: False forbids it to open a mental image.
            latent_hook: replaces the vectors of mental images on their way ([`hooks`]).

        Closing the iterator stops the decoding. Raises at once, before anything is decoded: VideoError as `open` does,
        ValueError for an empty question, fewer than two options, or options that are empty or equal, and for settings
        out of range.
        """
        options = check_question(question, options)
        if temperature < 0 or not 0 < top_p <= 1 or max_new_tokens < 1:
            raise ValueError(
                f"temperature must be at least 0, top_p above 0 and at most 1, and max_new_tokens at least 1; "
                f"got {temperature}, {top_p} and {max_new_tokens}"
            )
        clip = video if isinstance(video, Clip) else self.open(video, start, end)
        generation = {"max_new_tokens": max_new_tokens, "do_sample": False}
        if temperature > 0:
            generation |= {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        if not imagery:
            generation["suppress_tokens"] = [self.model.config.latent_start_id]
        return _Reply(self, clip, question, options).stream(_Events(latent_hook, seed), generation)

    def encode(self, clip: Clip) -> torch.Tensor:
        """What the vision tower makes of a clip, `(T / 2, h, w, hidden)`; it runs once for each."""
        if clip.features is None:
            with self.turn:
                if clip.features is None:  # still, now that it is this thread's turn
                    device = self.model.device
                    inputs = {"pixel_values_videos": clip.pixels.to(device), "video_grid_thw": clip.grid.to(device)}
                    clip.features, clip.pixels = video_features(self.model, inputs)[0], None
        return clip.features

    def prompt(self, clip: Clip, question: str, options: Sequence[str]) -> dict[str, torch.Tensor]:
        """The model's inputs but for the video itself, of which `encode` has the features. Control tokens in the
        question are text, so the template's own is the only `<|video_pad|>`."""
        processor, video = self.processor, self.model.config.video_token_id
        ids = processor.tokenizer.apply_chat_template(
            processor.conversation(clip.frames, question, options, start=clip.start, end=clip.end),
            chat_template=processor.chat_template,
            tokenize=True,
            return_dict=False,
            add_generation_prompt=True,
            sanitize_control_tokens=True,
        )
        place, num = ids.index(video), int(clip.grid.prod()) // processor.video_processor.merge_size**2
        input_ids = torch.tensor([ids[:place] + [video] * num + ids[place + 1 :]])
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "video_grid_thw": clip.grid,
            "second_per_grid_ts": clip.seconds,
        }
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}


def check_question(question: str, options: Sequence[str] | None) -> list[str]:
    """The options as a list, empty for an open question; ValueError for what `VideoQA.stream` refuses."""
    options = [option.strip() for option in options or ()]
    if not question or not question.strip():
        raise ValueError("The question is empty")
    if len(options) == 1:
        raise ValueError("A single option is no choice: give at least two, or none")
    if not all(options):
        raise ValueError("An option is empty")
    if len({option.casefold() for option in options}) < len(options):
        raise ValueError("Two options are the same")
    if len(options) > len(string.ascii_uppercase):
        raise ValueError(f"{len(options)} options, but only {len(string.ascii_uppercase)} letters to name them")
    if any(OUTPUT_IMAGE in text for text in (question, *options)):
        raise ValueError(f"{OUTPUT_IMAGE} stands for the model's own mental images and cannot be asked about")
    return options


class _Events(BaseStreamer, StoppingCriteria):
    """What `generate` in another thread did, in order: an int is a token, a tensor the latent fed, None the end."""

    def __init__(self, hook: LatentHook | None, seed: int):
        self.queue, self.cancelled, self.in_prompt = queue.SimpleQueue(), threading.Event(), True
        self.hook, self.seed = hook, seed

    def put(self, value: torch.Tensor) -> None:
        if not self.in_prompt:
            self.queue.put(int(value))
        self.in_prompt = False

    def end(self) -> None:
        """The end is sent by `run`, which also sees what `generate` raises."""

    def latent(self, latents, rows, block, slot):
        if self.hook is not None:
            latents = self.hook(latents, rows, block, slot)
        self.queue.put(latents[0].float().cpu())
        return latents

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), self.cancelled.is_set(), device=input_ids.device)

    def run(self, turn: threading.Lock, model, **kwargs) -> None:
        try:
            while not turn.acquire(timeout=0.1):
                if self.cancelled.is_set():
                    return
            try:
                with self._seeded(model) if kwargs["do_sample"] else contextlib.nullcontext():
                    stop = StoppingCriteriaList([self])
                    model.generate(**kwargs, streamer=self, latent_hook=self.latent, stopping_criteria=stop)
            finally:
                turn.release()
            self.queue.put(None)
        except BaseException as error:  # whatever it is, the reader must not wait forever
            self.queue.put(error)

    @contextlib.contextmanager
    def _seeded(self, model):
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            yield


class _Reply:
    """One reply in the making: the prompt, the ids and latents so far, and the `Answer` they amount to."""

    def __init__(self, qa: VideoQA, clip: Clip, question: str, options: list[str]):
        self.model, self.processor, self.turn, self.options = qa.model, qa.processor, qa.turn, options
        self.features = qa.encode(clip)
        self.inputs = qa.prompt(clip, question, options)
        self.answer = Answer(clip.frames, clip.timestamps)
        self.ids: list[int] = []
        self.latents: list[torch.Tensor] = []  # (hidden,) of every pad so far

    def stream(self, events: _Events, generation: dict) -> Iterator[Answer]:
        kwargs = self.inputs | generation | {"mm_encoder_outputs": self._vision(1)}
        worker = threading.Thread(target=events.run, args=(self.turn, self.model), kwargs=kwargs, daemon=True)
        worker.start()
        try:
            while (event := events.queue.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                if isinstance(event, torch.Tensor):
                    self.latents.append(event)
                else:
                    self.ids.append(event)
                    yield self._read(closed_blocks=True)
        finally:
            events.cancelled.set()
            worker.join()
        yield self._finish()

    def _vision(self, copies: int) -> dict:
        """The video's features for the model's forward, for a batch of `copies` rows."""
        return {"video": BaseModelOutputWithPooling(pooler_output=(self.features.flatten(0, 2),) * copies)}

    def _read(self, closed_blocks: bool) -> Answer:
        """The answer so far; with `closed_blocks`, without a mental image that is still being decoded."""
        config, ids = self.model.config, self.ids
        if closed_blocks and ids[-1] in (config.latent_start_id, config.latent_token_id):
            ids = ids[: len(ids) - ids[::-1].index(config.latent_start_id) - 1]
        text = self.processor.decode_with_images(ids)
        text = text.removesuffix("\ufffd") if closed_blocks else text  # half a character
        parsed = parse(text)
        reasoning = parsed.think if parsed.think is not None else text.partition(OPEN)[0].strip()
        known = self.answer.images
        images = known + [self._picture(block) for block in self._blocks(ids)[len(known) :]]
        frames, timestamps = self.answer.frames, self.answer.timestamps
        self.answer = Answer(frames, timestamps, text, reasoning, parsed.answer or "", images=images)
        return self.answer

    def _blocks(self, ids: list[int]) -> list[list[torch.Tensor]]:
        """The latents of each `<|latent_start|>` in `ids`."""
        latents, blocks = iter(self.latents), []
        for token in ids:
            if token == self.model.config.latent_start_id:
                blocks.append([])
            elif token == self.model.config.latent_token_id:
                blocks[-1] += [latent for latent in [next(latents, None)] if latent is not None]  # the last is not fed
        return blocks

    def _picture(self, block: list[torch.Tensor]) -> MentalImage:
        if not block:
            return MentalImage(torch.empty(0, self.features.shape[-1]))
        latents = torch.stack(block)
        maps = similarity_maps(latents, self.features.cpu(), self.model.config.latent_mean).numpy()
        best = best_step(maps)
        patch = self.processor.video_processor.temporal_patch_size
        time = self.answer.timestamps[patch * best : patch * (best + 1)].mean()
        return MentalImage(latents, maps, best, float(time))

    def _finish(self) -> Answer:
        answer = self._read(closed_blocks=False)
        ends = self.model.generation_config.eos_token_id
        answer.truncated = self.ids[-1] not in (ends if isinstance(ends, list) else [ends])
        if not answer.answer:
            answer.reason = "the reply was cut before an answer" if answer.truncated else "the reply has no answer"
        elif self.options:
            answer.option, answer.reason = match_option(answer.answer, self.options)
        if self.options:
            answer.probabilities = self._probabilities()
        return answer

    def _probabilities(self) -> list[float] | None:
        """Softmax over the options' scores after the `<answer>` written: of their letters if a letter was written
        there, else their texts' log-likelihoods per token, `</answer>` included."""
        text = self._decode(self.ids)
        place = text.rfind(OPEN, 0, text.rfind(CLOSE) if CLOSE in text else None)
        if place < 0:
            return None
        written = text[place + len(OPEN) :].partition(CLOSE)[0]
        lead = written[: len(written) - len(written.lstrip())]
        if letter := _LETTER.match(written.strip()):
            lead, candidates = lead + letter[0], string.ascii_uppercase[: len(self.options)]
        else:
            candidates = [option + CLOSE for option in self.options]
        prefix, rest = self._prefix(text, place + len(OPEN))
        continuations = [self._tokenize(rest + lead + candidate) for candidate in candidates]
        return torch.tensor(self._scores(prefix, continuations)).softmax(0).tolist()

    def _prefix(self, text: str, end: int) -> tuple[list[int], str]:
        """The longest run of generated ids within `text[:end]`, and the text that it leaves (a token may straddle)."""
        for count in range(len(self.ids), -1, -1):
            head = self._decode(self.ids[:count])
            if len(head) <= end and text.startswith(head):
                return self.ids[:count], text[len(head) : end]
        raise AssertionError("the empty prefix fits any text")

    def _decode(self, ids: list[int]) -> str:
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _tokenize(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    @torch.no_grad()
    def _scores(self, prefix: list[int], continuations: list[list[int]]) -> list[float]:
        """Mean log-probability per token of each continuation of the prompt and `prefix`, latents replayed; without
        the video if the model has forgotten it by then."""
        prompt = self.inputs["input_ids"][0]
        written = prompt.new_tensor(prefix)
        forgotten = self.model.config.forget_video and end_of_first_images(written[None], self.model.config) > 0
        if forgotten:
            prompt = prompt[~self.model.model.is_vision(prompt)]
        head = torch.cat([prompt, written])
        rows = [torch.cat([head, head.new_tensor(tokens)]) for tokens in continuations]
        pad = self.processor.tokenizer.pad_token_id
        input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        lengths = torch.tensor([len(row) for row in rows], device=head.device)
        mask = (torch.arange(input_ids.shape[1], device=head.device) < lengths[:, None]).long()
        is_pad = input_ids == self.model.config.latent_token_id
        latents = torch.zeros(*input_ids.shape, self.features.shape[-1], device=head.device)
        if is_pad.any():
            latents[is_pad] = torch.stack(self.latents[: int(is_pad[0].sum())]).to(latents).repeat(len(rows), 1)
        copies = len(rows)
        video = (
            {}
            if forgotten
            else {
                "mm_encoder_outputs": self._vision(copies),
                "video_grid_thw": self.inputs["video_grid_thw"].repeat(copies, 1),
                "second_per_grid_ts": self.inputs["second_per_grid_ts"].repeat(copies),
            }
        )
        with self.turn:
            logits = self.model(
                input_ids=input_ids,
                attention_mask=mask,
                latent_embeds=latents,
                **video,
                logits_to_keep=input_ids.shape[1] - len(head) + 1,
            ).logits
        logprobs = logits[:, :-1].float().log_softmax(-1)
        chosen = logprobs.gather(-1, input_ids[:, len(head) :, None])[..., 0]
        kept = mask[:, len(head) :]
        return ((chosen * kept).sum(1) / kept.sum(1)).tolist()
