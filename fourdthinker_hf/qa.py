"""Answers a question about a video: `VideoQA.from_pretrained().ask("clip.mp4", "Which way does it move?")`.

`stream` yields the answer as it grows; `ask` returns its last item. A video is decoded once and encoded by the vision
tower once, for the reply, the options' probabilities, the maps of mental images and all further questions about it.
"""

import contextlib
import math
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .answers import choose_option, parse, without_tags
from .checkpoints import BUNDLED, load_imagery_decoder, load_model
from .imagery import best_step, similarity_maps, video_features
from .imagery_decoder_fourdthinker import FourDThinkerImageryDecoder
from .latent_hooks import LatentHook
from .modeling_fourdthinker import FourDThinkerForConditionalGeneration
from .option_scores import encoder_outputs, option_probabilities
from .processing_fourdthinker import FourDThinkerProcessor
from .question_answer import OUTPUT_IMAGE, Answer, MentalImage, check_question
from .video_fourdthinker import Timestamps


@dataclass
class Clip:
    """A video, or a part of one, that is open for any number of questions."""

    frames: np.ndarray  # (T, H, W, 3) uint8, the frames that the model sees
    timestamps: np.ndarray  # (T,) in seconds of the source
    start: float | None  # the part that was asked for, in seconds
    end: float | None
    last: float | None  # where that part ends in the video, in seconds of the source; None if it is not known
    video_grid_thw: torch.LongTensor  # (1, 3)
    second_per_grid_ts: torch.FloatTensor  # (1,)
    pixel_values_videos: torch.Tensor | None  # None once the vision tower has run
    features: torch.Tensor | None = None  # (temporal steps, h, w, hidden), the output of the vision tower


class VideoQA:
    """A loaded checkpoint that answers questions about videos. Threads may share it; they use the model in turn."""

    def __init__(
        self,
        model: FourDThinkerForConditionalGeneration,
        processor: FourDThinkerProcessor,
        open_video=None,
        clip_cache_bytes: int = 2**29,
        imagery_decoder: FourDThinkerImageryDecoder | None = None,
    ):
        """`open_video(path, start, end)` replaces the processor's function of that name. The last videos asked about
        stay open while their frames take at most `clip_cache_bytes`; the newest always stays. `imagery_decoder` draws
        the pictures of mental images."""
        self.model, self.processor, self.imagery_decoder = model.eval(), processor, imagery_decoder
        self.open_video = open_video or processor.open_video
        self.model_lock = threading.Lock()  # held while the model runs
        self._clips: OrderedDict[tuple, tuple[tuple | None, Clip]] = OrderedDict()  # each with the state of its file
        self._clips_lock, self._clip_cache_bytes = threading.Lock(), clip_cache_bytes

    @classmethod
    def from_pretrained(
        cls,
        model: str | PathLike = BUNDLED,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        subfolder: str | None = None,
    ) -> "VideoQA":
        """Loads a checkpoint as [`load_model`] does, and its imagery decoder if it has one."""
        network, processor = load_model(model, device, dtype, revision, subfolder)
        return cls(network, processor, imagery_decoder=load_imagery_decoder(network))

    def ask(
        self, video: str | PathLike | Clip, question: str, options: Sequence[str] | None = None, **kwargs
    ) -> Answer:
        """Answers a question about a video. Arguments and errors as in [`VideoQA.stream`]."""
        *_, answer = self.stream(video, question, options, **kwargs)
        return answer

    def open(self, video: str | PathLike, start: float | None = None, end: float | None = None, **kwargs) -> Clip:
        """Decodes the video at a path from `start` to `end`, in seconds. A video that was asked about lately is not
        decoded again unless its file has changed. Other arguments go to the `open_video` that this object was made
        with. Raises `VideoError` for a file that cannot be read as a video or does not have that part."""
        stat = os.stat(video) if os.path.exists(video) else None
        key, file_state = (os.fspath(video), start, end), stat and (stat.st_size, stat.st_mtime_ns)
        with self._clips_lock:
            if key in self._clips and self._clips[key][0] == file_state:
                self._clips.move_to_end(key)
                return self._clips[key][1]
        frames, timestamps = self.open_video(video, start, end, **kwargs)
        inputs = self.processor(videos=[frames], video_timestamps=[timestamps], return_tensors="pt")
        names = ("video_grid_thw", "second_per_grid_ts", "pixel_values_videos")
        last = timestamps.end if isinstance(timestamps, Timestamps) else None
        clip = Clip(frames, timestamps, start, end, last, **{name: inputs[name] for name in names})
        with self._clips_lock:
            self._clips[key] = file_state, clip  # replaces the clip of an older state of the file
            self._clips.move_to_end(key)
            while len(self._clips) > 1 and self._num_clip_bytes() > self._clip_cache_bytes:
                self._clips.popitem(last=False)
        return clip

    def _num_clip_bytes(self) -> int:
        return sum(clip.frames.nbytes for _, clip in self._clips.values())

    def stream(
        self,
        video: str | PathLike | Clip,
        question: str,
        options: Sequence[str] | None = None,
        start: float | None = None,
        end: float | None = None,
        max_new_tokens: int = 512,
        max_seconds: float | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        imagery: bool = True,
        latent_hook: LatentHook | None = None,
    ) -> Iterator[Answer]:
        """Yields the answer so far as text and mental images arrive; the last one is complete.

        Args:
            video: a path, or a [`Clip`] from `open` (`start` and `end` are then those of the clip).
            options: the answers to choose from, at least two; none for an open question.
            start, end: the part of the video to use, in seconds.
            max_new_tokens, max_seconds: a reply that reaches either of these limits is cut. The time that it waits for
                the model, while others use it, does not count.
            temperature: 0 always takes the most likely token; above 0, tokens are drawn, with `top_p` and `seed`.
            imagery: False forbids mental images.
            latent_hook: replaces the vectors of mental images before they are fed ([`latent_hooks`]).

        Closing the iterator stops the decoding. Before anything is decoded, raises `VideoError` as `open` does, and
        `ValueError` for an empty question, a single option, empty or equal options, and settings out of range.
        """
        options = check_question(question, options)
        if not 0 <= temperature < math.inf or not 0 < top_p <= 1 or not 1 <= max_new_tokens or abs(seed) >= 2**63:
            raise ValueError(
                f"temperature must be at least 0, top_p above 0 and at most 1, max_new_tokens at least 1, and seed of "
                f"less than 64 bits; got {temperature}, {top_p}, {max_new_tokens} and {seed}"
            )
        clip = video if isinstance(video, Clip) else self.open(video, start, end)
        generation = {"max_new_tokens": max_new_tokens, "max_time": max_seconds, "do_sample": False}
        if temperature > 0:
            generation |= {"do_sample": True, "temperature": float(temperature), "top_p": top_p, "top_k": 0}
        if not imagery:
            generation["suppress_tokens"] = [self.model.config.latent_start_id]
        return _Reply(self, clip, question, options).stream(_BackgroundGeneration(latent_hook, seed), generation)

    def encode(self, clip: Clip) -> torch.Tensor:
        """The vision tower's features of a clip, `(temporal steps, h, w, hidden)`, computed once for each clip."""
        if clip.features is None:
            with self.model_lock:
                if clip.features is None:  # another thread may have computed them while this one waited
                    names = ("pixel_values_videos", "video_grid_thw")
                    inputs = {name: getattr(clip, name).to(self.model.device) for name in names}
                    clip.features, clip.pixel_values_videos = video_features(self.model, inputs)[0], None
        return clip.features

    def prompt(self, clip: Clip, question: str, options: Sequence[str]) -> dict[str, torch.Tensor]:
        """The model's inputs except for the video's features, which `encode` returns. Special tokens in the question
        are read as text, so that the only `<|video_pad|>` is that of the template."""
        processor, video_token = self.processor, self.model.config.video_token_id
        ids = processor.tokenizer.apply_chat_template(
            processor.conversation(clip.frames, question, options, start=clip.start, end=clip.end),
            chat_template=processor.chat_template,
            tokenize=True,
            return_dict=False,
            add_generation_prompt=True,
            sanitize_control_tokens=True,
        )
        place = ids.index(video_token)
        num_features = int(clip.video_grid_thw.prod()) // processor.video_processor.merge_size**2
        input_ids = torch.tensor([ids[:place] + [video_token] * num_features + ids[place + 1 :]])
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "video_grid_thw": clip.video_grid_thw,
            "second_per_grid_ts": clip.second_per_grid_ts,
        }
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}


class _BackgroundGeneration(BaseStreamer, StoppingCriteria):
    """Runs `generate` in another thread. Its queue gets an int for each token, a tensor `(hidden,)` for each latent
    that is fed, an exception if there was one, and None at the end. Setting `cancelled` stops it."""

    def __init__(self, hook: LatentHook | None, seed: int):
        self.queue, self.cancelled, self.in_prompt = queue.SimpleQueue(), threading.Event(), True
        self.hook, self.seed = hook, seed

    def run(self, model_lock: threading.Lock, model, **kwargs) -> None:
        try:
            while not model_lock.acquire(timeout=0.1):
                if self.cancelled.is_set():
                    return
            try:
                with self._seeded(model) if kwargs["do_sample"] else contextlib.nullcontext():
                    stop = StoppingCriteriaList([self])
                    model.generate(**kwargs, streamer=self, latent_hook=self.on_latents, stopping_criteria=stop)
            finally:
                model_lock.release()
            self.queue.put(None)
        except BaseException as error:  # of any kind, because the reader would wait forever
            self.queue.put(error)

    @contextlib.contextmanager
    def _seeded(self, model):
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            yield

    def put(self, value: torch.Tensor) -> None:
        if not self.in_prompt:
            self.queue.put(int(value))
        self.in_prompt = False

    def end(self) -> None:
        """The end is reported by `run`, which also catches what `generate` raises."""

    def on_latents(self, latents, rows, block, slot):
        if self.hook is not None:
            latents = self.hook(latents, rows, block, slot)
        self.queue.put(latents[0].float().cpu())
        return latents

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), self.cancelled.is_set(), device=input_ids.device)


class _Reply:
    """One reply while it is decoded: its prompt, its token ids and latents so far, and the `Answer` made of them."""

    def __init__(self, qa: VideoQA, clip: Clip, question: str, options: list[str]):
        self.model, self.processor, self.model_lock, self.options = qa.model, qa.processor, qa.model_lock, options
        self.features, self.imagery_decoder = qa.encode(clip), qa.imagery_decoder
        self.inputs = qa.prompt(clip, question, options)
        patch = qa.processor.video_processor.temporal_patch_size
        self.answer = Answer(clip.frames, clip.timestamps, temporal_patch_size=patch, end=clip.last)
        self.ids: list[int] = []
        self.latents: list[torch.Tensor] = []  # (hidden,) of every pad so far

    def stream(self, generation: _BackgroundGeneration, settings: dict) -> Iterator[Answer]:
        kwargs = self.inputs | settings | {"mm_encoder_outputs": encoder_outputs(self.features.flatten(0, 2), 1)}
        thread = threading.Thread(
            target=generation.run, args=(self.model_lock, self.model), kwargs=kwargs, daemon=True
        )
        thread.start()
        try:
            while (item := generation.queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, torch.Tensor):
                    self.latents.append(item)
                else:
                    self.ids.append(item)
                    yield self._update_answer(is_complete=False)
        finally:
            generation.cancelled.set()
            thread.join()
        yield self._finish_answer()

    def _update_answer(self, is_complete: bool) -> Answer:
        """The answer so far. Leaves out a mental image that is still being decoded, unless the reply is complete."""
        config, ids = self.model.config, self.ids
        if not is_complete and ids[-1] in (config.latent_start_id, config.latent_token_id):
            ids = ids[: len(ids) - ids[::-1].index(config.latent_start_id) - 1]
        text = self.processor.decode_with_images(ids)
        text = text if is_complete else text.removesuffix("\ufffd")  # an incomplete character
        parsed = parse(text)
        reasoning = without_tags(text.partition("<answer>")[0] if parsed.think is None else parsed.think)
        words = without_tags((parsed.answer or "").replace(OUTPUT_IMAGE, ""))
        known = self.answer.images
        images = known + [self._mental_image(latents) for latents in self._latents_by_image(ids)[len(known) :]]
        self.answer = replace(self.answer, text=text, reasoning=reasoning, words=words, answer=words, images=images)
        return self.answer

    def _latents_by_image(self, ids: list[int]) -> list[list[torch.Tensor]]:
        """The latents of each mental image in `ids`."""
        latents, images = iter(self.latents), []
        for token in ids:
            if token == self.model.config.latent_start_id:
                images.append([])
            elif token == self.model.config.latent_token_id:
                images[-1] += [latent for latent in [next(latents, None)] if latent is not None]  # the last is not fed
        return images

    def _mental_image(self, latents: list[torch.Tensor]) -> MentalImage:
        if not latents:
            return MentalImage(torch.empty(0, self.features.shape[-1]))
        stacked = torch.stack(latents)
        maps = similarity_maps(stacked, self.features.cpu(), self.model.config.latent_mean).numpy()
        step = best_step(maps)
        _, timestamps = self.answer.steps[step]
        picture = None
        if self.imagery_decoder is not None and len(stacked) == self.imagery_decoder.config.latent_size:
            height, width = self.answer.frames.shape[1:3]
            picture = self.imagery_decoder.draw(stacked[None], width / height)[0]
        return MentalImage(stacked, maps, step, float(timestamps.mean()), picture)

    def _finish_answer(self) -> Answer:
        answer = self._update_answer(is_complete=True)
        end_ids = self.model.generation_config.eos_token_id
        answer.truncated = self.ids[-1] not in (end_ids if isinstance(end_ids, list) else [end_ids])
        if self.options:
            answer.probabilities = self._option_probabilities()
            likeliest = int(np.argmax(answer.probabilities))
            choice = choose_option(parse(answer.text).answer, self.options, likeliest)
            answer.option, answer.chosen_by, answer.reason = choice.option, choice.chosen_by, choice.reason
            answer.answer = self.options[choice.option]
        if not answer.words:
            answer.reason = "the reply was cut before an answer" if answer.truncated else "the reply has no answer"
        return answer

    def _option_probabilities(self) -> list[float]:
        latents = torch.stack(self.latents) if self.latents else torch.empty(0, self.features.shape[-1])
        with self.model_lock:
            return option_probabilities(
                self.model, self.processor, self.inputs, self.features.flatten(0, 2), self.ids, latents, self.options
            )
