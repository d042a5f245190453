"""Processor of 4DThinker: as in Qwen2.5-VL, but it also opens videos, keeps their real times and places mental images.

What happens to the text of an assistant turn (with `latent_size` 4):

    text      <think> the ball is here <output_image> it moves left </think>...
    tokens    ... here <|latent_start|> <|latent_pad|> x 4 <|latent_end|> it moves ...
    tensors   pixel_values_latent, image_grid_thw_latent: the target frame of these four pads
"""

import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2_5_VLProcessor

from .video_fourdthinker import Timestamps, Video, VideoError, load_video, second_per_grid

OUTPUT_IMAGE = "<output_image>"
# A part of a video, in seconds, as in W3C's Media Fragments (section 4.2.1) and in HTML: clip.mp4#t=1,2.5
FRAGMENT = re.compile(r"(?P<path>.+)#t=(?P<start>-?\d*\.?\d+)?(,(?P<end>-?\d*\.?\d+))?")
# What a message may say beside a video, as in qwen-vl-utils 0.0.14, and which of these choose frames or their size.
FRAME_KEYS = ("fps", "nframes", "min_frames", "max_frames", "video_start", "video_end")
SIZE_KEYS = ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width")
ADDRESS = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+://|data:")
LATENT_PAD, LATENT_START, LATENT_END = "<|latent_pad|>", "<|latent_start|>", "<|latent_end|>"


class MessageVideo:
    """A video of a chat message (a path, an array, or a list of frames, which are paths or pictures) and what the
    message asks for it. Raises `ValueError`, naming the key, for what is not known or does not fit together; nothing
    is opened. (Not a dataclass: transformers turns those into dicts.)"""

    def __init__(self, video, asked: dict):
        self.video, self.asked = video, asked
        known = (*FRAME_KEYS, *SIZE_KEYS)
        if isinstance(self.video, (list, tuple)):
            known = (*SIZE_KEYS, "sample_fps")
        elif not isinstance(self.video, (str, Path)):
            known = SIZE_KEYS
        for name, value in asked.items():
            if name not in known:
                raise ValueError(
                    f"{name} beside this video of a message is not supported; what is: {', '.join(known)}"
                )
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number or (value < 0 if name in ("video_start", "video_end") else value <= 0):
                raise ValueError(f"{name} of a video in a message must be a number above 0, not {value!r}")
        for one, other in (("fps", "nframes"), ("nframes", "min_frames"), ("nframes", "max_frames")):
            if one in asked and other in asked:
                raise ValueError(f"a message gives {one} and {other} for one video; give only one of them")
        if ("resized_height" in asked) != ("resized_width" in asked):
            raise ValueError("resized_height and resized_width of a video are given together or not at all")
        if asked.get("min_pixels", 0) > asked.get("max_pixels", math.inf):
            raise ValueError(f"min_pixels={asked['min_pixels']} of a video is above max_pixels={asked['max_pixels']}")
        if asked.get("video_start", 0) >= asked.get("video_end", math.inf):
            raise ValueError(
                f"video_start={asked['video_start']} of a video is not before video_end={asked['video_end']}"
            )
        if asked and isinstance(self.video, str) and _split_fragment(self.video)[1:] != (None, None):
            raise ValueError(f"{self.video}: give the part by #t= or by the keys of the message, not by both")
        for path in self.video if isinstance(self.video, (list, tuple)) else [self.video]:
            if isinstance(path, str):
                _local_path(path)


class FourDThinkerProcessor(Qwen2_5_VLProcessor):
    r"""
    Args (beyond those of [`Qwen2_5_VLProcessor`]):
        latent_size (`int`, defaults to 4): number of latent vectors in one mental image, the same as the model's
            `config.latent_size`.
        fps (`float`, defaults to 2.0 as in Qwen2.5-VL): number of frames sampled per second of a video.
        max_frames (`int`, defaults to 64): the largest number of frames; of a longer video this many are taken, evenly
            spaced. Our choice: at 448 x 448 pixels, 64 frames are 32 temporal patches of 16 x 16 tokens, 8,192 in all.
        pair_seconds (`float`, *optional*): frames are sampled in pairs whose two frames are that many seconds apart;
            the pairs are evenly spaced. For checkpoints whose temporal patches were trained to see motion. By default
            all frames are evenly spaced.
        second_per_grid (`float`, *optional*): seconds from one temporal patch to the next, instead of the real times.
            For checkpoints that were trained with one fixed value (the published ones with 1.0).
        instruction (`str`): the text that every question ends with, as in the training of the checkpoint.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        video_processor=None,
        chat_template=None,
        latent_size=4,
        fps=2.0,
        max_frames=64,
        pair_seconds=None,
        second_per_grid=None,
        instruction="",
        **kwargs,
    ):
        super().__init__(image_processor, tokenizer, video_processor, chat_template=chat_template, **kwargs)
        self.latent_size, self.fps, self.max_frames = latent_size, fps, max_frames
        self.pair_seconds = pair_seconds
        self.second_per_grid, self.instruction = second_per_grid, instruction
        self.latent_block = LATENT_START + LATENT_PAD * latent_size + LATENT_END

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers. Raises `ValueError` for the processor of another model: a published 4DThinker or its
        base has not the settings that are read here, and would get other numbers of frames and pixels."""
        settings, kwargs = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "latent_size" not in settings:
            raise ValueError(
                f"{pretrained_model_name_or_path}: there is no processor_config.json with a latent_size; "
                f"`fourdthinker convert {pretrained_model_name_or_path} DEST` makes it of a published 4DThinker or of "
                "a Qwen2.5-VL"
            )
        return settings, kwargs

    def __call__(
        self,
        images=None,
        text=None,
        videos=None,
        imagery=None,
        video_timestamps=None,
        fps=None,
        num_frames=None,
        **kwargs,
    ):
        """Qwen2.5-VL's call with these changes:

        Args:
            videos: paths (also `file://`), or arrays `(frames, height, width, 3)` uint8 with `video_timestamps`. A
                path may name a part of a video: `clip.mp4#t=1,2.5` is 1 s to 2.5 s, and positions begin at 1 s.
            video_timestamps: for each video given as an array, the times of its frames in seconds.
            imagery: for each text, the target frames (PIL images or uint8 arrays) of its `<output_image>`s, in order.
                Without it, `<output_image>` still becomes a block of pads, whose latents are then given as vectors.
            fps, num_frames: the sampling of a path, instead of the processor's `fps`.

        Returns a `BatchFeature` with the keys of Qwen2.5-VL, `second_per_grid_ts` `(num_videos,)` float32 from the
        real times, and, with imagery, `pixel_values_latent` and `image_grid_thw_latent`. Raises `VideoError` for a
        file that cannot be read as a video, `ValueError` for a number of frames, times or texts that does not fit.
        """
        if videos is not None:
            opened = self._open_videos(videos, video_timestamps, fps, num_frames)
            videos, times = [frames for frames, *_ in opened], [seconds for _, seconds, _ in opened]
            kwargs |= {"do_sample_frames": False, "cap_pixels_per_frame": True}
            if any(is_sized for *_, is_sized in opened):
                kwargs["do_resize"] = False
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            if imagery is not None:
                _check_imagery(texts, imagery)
            text = [one.replace(OUTPUT_IMAGE, self.latent_block) for one in texts]
        batch = super().__call__(images=images, text=text, videos=videos, **kwargs)
        if videos is not None:
            batch["second_per_grid_ts"] = self.grid_seconds(times)
        target_frames = [frame for row in imagery or () for frame in row]
        if target_frames:
            targets = self.image_processor(target_frames, return_tensors="pt")
            batch["pixel_values_latent"] = targets["pixel_values"]
            batch["image_grid_thw_latent"] = targets["image_grid_thw"]
        return batch

    def grid_seconds(self, times) -> torch.FloatTensor:
        """Seconds from one temporal patch to the next, `(num_videos,)`, from the times of each video's frames."""
        patch = self.video_processor.temporal_patch_size
        seconds = [self.second_per_grid or second_per_grid(video_times, patch) for video_times in times]
        return torch.tensor(seconds, dtype=torch.float32)

    def open_video(self, path, start=None, end=None, fps=None, num_frames=None) -> tuple[np.ndarray, np.ndarray]:
        """Frames `(T, H, W, 3)` uint8 and their times `(T,)` in seconds, sampled for this checkpoint. Training,
        evaluation and demo all use this function. Arguments and errors as in `load_video`."""
        pair_seconds = None
        if fps is None and num_frames is None:
            fps, pair_seconds = self.fps, self.pair_seconds
        return load_video(path, fps, num_frames, start, end, max_frames=self.max_frames, pair_seconds=pair_seconds)

    def apply_chat_template(self, conversation, *args, **kwargs):
        """That of transformers. A video of a message may also be a list of frame paths, and beside it may stand what
        qwen-vl-utils reads: `fps`, `nframes`, `min_frames`, `max_frames`, `video_start`, `video_end`, `min_pixels`,
        `max_pixels`, `total_pixels`, `resized_height` and `resized_width`, and `sample_fps` beside a list. They choose
        the same number of frames and the same size as there, within the processor's own bounds of a frame's pixels.
        Anything else is a `ValueError` that names it, before a video is opened."""
        first = conversation[0] if isinstance(conversation, (list, tuple)) and conversation else None
        if not isinstance(first, (dict, list, tuple)):  # an object with messages
            return super().apply_chat_template(conversation, *args, **kwargs)
        is_batch = not isinstance(first, dict)
        rows = [
            [_with_message_videos(message) for message in row]
            for row in (conversation if is_batch else [conversation])
        ]
        return super().apply_chat_template(rows if is_batch else rows[0], *args, **kwargs)

    def _open_videos(self, videos, video_timestamps, fps, num_frames) -> list[tuple]:
        """Opens paths and flattens nested lists: for each video its frames, their times, and whether the frames have
        the size that they will be encoded in. If one has it, all have."""
        opened, given = [], iter(video_timestamps or ())
        for video in _flatten_videos(videos):
            asked = video.asked if isinstance(video, MessageVideo) else {}
            source = video.video if isinstance(video, MessageVideo) else video
            if isinstance(source, (list, tuple)):
                frames = _open_pictures(source)
                times = next(given, None) if "sample_fps" not in asked and not _are_paths(source) else None
                if times is None:
                    times = np.arange(len(frames)) / asked.get("sample_fps", 2.0)
                if asked or _are_paths(source):
                    frames = self._resize(frames, self._picture_size(frames, asked))
                    opened.append((frames, times, True))
                    continue
            elif isinstance(source, (str, Path)):
                path, start, end = _split_fragment(_local_path(str(source)))
                if asked:
                    opened.append((*self._open_asked(path, asked), True))
                    continue
                frames, times = self.open_video(path, start, end, fps, num_frames)
            else:
                frames, times = source, next(given, None)
            if times is None or len(times) != len(frames):
                raise ValueError(
                    f"A video given as an array of {len(frames)} frames needs video_timestamps with as many times "
                    f"in seconds, got {'none' if times is None else len(times)}"
                )
            if asked:
                frames = self._resize(frames, self._asked_size(asked, len(frames), *np.shape(frames)[1:3]))
            opened.append((frames, times, bool(asked)))
        if any(is_sized for *_, is_sized in opened):
            opened = [
                (
                    frames
                    if is_sized
                    else self._resize(frames, self._asked_size({}, len(frames), *np.shape(frames)[1:3])),
                    times,
                    True,
                )
                for frames, times, is_sized in opened
            ]
        return opened

    def _open_asked(self, path: str, asked: dict) -> tuple[np.ndarray, np.ndarray]:
        """The frames that qwen-vl-utils takes (`calculate_video_frame_range`, `smart_nframes`), with their times."""
        film = Video(path)
        total = len(film.times)
        rate = total / film.duration
        first, last = 0, total - 1
        if "video_start" in asked:
            first = math.ceil(min(asked["video_start"], film.duration) * rate - 1e-6)
        if "video_end" in asked:
            last = min(math.floor(min(asked["video_end"], film.duration) * rate + 1e-6), last)
        if first >= last and ("video_start" in asked or "video_end" in asked):
            raise VideoError(f"{path}: video_start and video_end leave no two frames of its {film.duration:.3f} s")
        span = last - first + 1
        if "nframes" in asked:
            count = round(asked["nframes"] / 2) * 2
        else:
            most = asked.get(
                "max_frames", min(self.video_processor.max_frames if "fps" in asked else self.max_frames, span)
            )
            least = math.ceil(asked.get("min_frames", 4) / 2) * 2
            count = span / rate * asked.get("fps", self.fps)
            count = math.floor(min(max(count, least), math.floor(most / 2) * 2, span) / 2) * 2
        if not 2 <= count <= span:
            raise VideoError(
                f"{path}: {count} frames cannot be taken; there are {span}, and it must be 2 or more of them"
            )
        indices = np.linspace(first, last, count).round().astype(np.int64)
        film.check_intact(*film.times[[indices[0], indices[-1]]].tolist())
        size = self._asked_size(asked, count, film.height, film.width)
        frames = np.empty((count, *size, 3), np.uint8)
        for place, frame in enumerate(film.frames(np.unique(indices), *size)):
            frames[place] = frame
        steps = np.diff(film.times)
        is_even = steps.max() <= 1.5 * np.median(steps)
        return frames, Timestamps(film.times[indices], span / rate / count if is_even else None)

    def _asked_size(self, asked: dict, num_frames: int, height: int, width: int) -> tuple[int, int]:
        """Height and width of each frame, as in `fetch_video` of qwen-vl-utils."""
        factor = self.video_processor.patch_size * self.video_processor.merge_size
        if "resized_height" in asked:
            bounds = 4 * factor**2, 16384 * factor**2
            return _smart_resize(asked["resized_height"], asked["resized_width"], factor, *bounds)
        size = self.video_processor.size
        least = asked.get("min_pixels", size["shortest_edge"])
        total = asked.get("total_pixels", int(self.video_processor.max_video_tokens * factor**2 * 0.9))
        most = max(min(size["longest_edge"], total / num_frames * 2), int(least * 1.05))
        return _smart_resize(height, width, factor, least, min(asked.get("max_pixels", most), most))

    def _picture_size(self, frames: np.ndarray, asked: dict) -> tuple[int, int]:
        """As `_asked_size`, for frames that are pictures: qwen-vl-utils first scales each as a picture of patches of
        28 pixels."""
        factor = 2 * self.video_processor.patch_size * self.video_processor.merge_size
        sides = asked.get("resized_height", frames.shape[1]), asked.get("resized_width", frames.shape[2])
        bounds = 4 * factor**2, 16384 * factor**2
        if "resized_height" not in asked:
            bounds = asked.get("min_pixels", bounds[0]), asked.get("max_pixels", bounds[1])
        return self._asked_size(asked, len(frames), *_smart_resize(*sides, factor, *bounds))

    @staticmethod
    def _resize(frames, size: tuple[int, int]) -> np.ndarray:
        """Frames (T, H, W, 3) uint8 in another size, by Pillow's bicubic filter."""
        resized = [Image.fromarray(np.asarray(frame)).resize(size[::-1], Image.Resampling.BICUBIC) for frame in frames]
        return np.stack([np.asarray(frame) for frame in resized])

    def format_question(self, question: str, options=None, start: float | None = None, end: float | None = None):
        """The user's text, the same in training, rollouts, evaluation and demo: the span of a trimmed video in seconds
        of the source, the question, the options with their letters (one a line), and the instruction."""
        lines = [] if start is None and end is None else [_describe_span(start, end)]
        lines.append(question.strip())
        lines += [f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(options or ())]
        return "\n".join(lines + ([self.instruction] if self.instruction else []))

    def conversation(
        self,
        video,
        question: str,
        options=None,
        answer: str | None = None,
        start: float | None = None,
        end: float | None = None,
    ) -> list[dict]:
        """Messages for one question about one video, and with `answer` the assistant's turn. A path is trimmed to
        `start` and `end`, in seconds of the source; an array must already be that span. The text states the span."""
        if isinstance(video, (str, Path)) and (start, end) != (None, None):
            bounds = ["" if bound is None else f"{bound:.6f}" for bound in (start, end)]
            video = f"{video}#t={bounds[0]}" + (f",{bounds[1]}" if end is not None else "")
        content = [{"type": "video", "video": video}]
        content.append({"type": "text", "text": self.format_question(question, options, start, end)})
        messages = [{"role": "user", "content": content}]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return messages

    def decode_with_images(self, token_ids) -> str:
        """Text of one row of ids with `<output_image>` for each mental image and without other special tokens."""
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else list(token_ids)
        start = self.tokenizer.convert_tokens_to_ids(LATENT_START)
        cuts = [0, *(i for i, token in enumerate(ids) if token == start), len(ids)]
        pieces = [self.tokenizer.decode(ids[i:j], skip_special_tokens=True) for i, j in pairwise(cuts)]
        return OUTPUT_IMAGE.join(pieces)

    @property
    def model_input_names(self):
        """Those of Qwen2.5-VL and those of the target frames."""
        return super().model_input_names + ["pixel_values_latent", "image_grid_thw_latent"]


def _flatten_videos(videos) -> list:
    if isinstance(videos, (str, Path, MessageVideo)) or getattr(videos, "ndim", 0) == 4:
        return [videos]
    if isinstance(videos, (list, tuple)) and not videos:  # a row without a video
        return []
    if isinstance(videos, (list, tuple)):
        if getattr(videos[0], "ndim", 0) == 3 or hasattr(videos[0], "convert"):  # frames of one video
            return [np.stack([np.asarray(frame) for frame in videos])]
        return [flat for video in videos for flat in _flatten_videos(video)]
    raise ValueError(f"A video is a path, an array (frames, height, width, 3) or a list of frames, got {type(videos)}")


def _with_message_videos(message):
    """The message, with a `MessageVideo` for each video that is a list or that has settings beside it."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), (list, tuple)):
        return message
    content = []
    for block in message["content"]:
        if isinstance(block, dict) and block.get("type") == "video":
            given = {name: value for name, value in block.items() if value is not None and name != "type"}
            place = next((name for name in ("video", "url", "path") if name in given), None)
            if place is not None:
                video = given.pop(place)
                asked = MessageVideo(video, given)  # also refuses an address
                video = asked if given or _are_paths(video) else video
                block = {"type": "video", place: video}
        content.append(block)
    return {**message, "content": content}


def _are_paths(video) -> bool:
    return isinstance(video, (list, tuple)) and len(video) > 0 and all(isinstance(one, (str, Path)) for one in video)


def _local_path(path: str) -> str:
    """A path, without `file://`. `ValueError` for an address of another kind."""
    if ADDRESS.match(path):
        raise ValueError(f"{path[:200]}: nothing is downloaded; save the video as a file and give its path")
    return path.removeprefix("file://")


def _open_pictures(pictures) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 from paths, PIL images or arrays of one size."""
    frames = []
    for picture in pictures:
        if isinstance(picture, (str, Path)):
            picture = _local_path(str(picture))
            try:
                with Image.open(picture) as opened:
                    picture = opened.convert("RGB")
            except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
                raise ValueError(f"{picture}: cannot be read as a frame: {error}") from error
        frames.append(np.asarray(picture))
    if len(sizes := {frame.shape for frame in frames}) > 1:
        raise ValueError(f"the frames of a video must be of one size, got (height, width, 3) {sorted(sizes)}")
    return np.stack(frames)


def _smart_resize(height: int, width: int, factor: int, min_pixels: float, max_pixels: float) -> tuple[int, int]:
    """`smart_resize` of qwen-vl-utils: multiples of `factor` within these bounds, in about the same shape."""
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"a frame of {width} x {height} pixels has one side over 200 times the other; crop it")
    sides = [max(factor, round(side / factor) * factor) for side in (height, width)]
    if sides[0] * sides[1] > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        sides = [max(factor, math.floor(side / scale / factor) * factor) for side in (height, width)]
    elif sides[0] * sides[1] < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        sides = [math.ceil(side * scale / factor) * factor for side in (height, width)]
    return sides[0], sides[1]


def _split_fragment(video: str) -> tuple[str, float | None, float | None]:
    """Splits `clip.mp4#t=1,2.5` into path, start and end."""
    match = FRAGMENT.fullmatch(video)
    if match is None:
        return video, None, None
    start, end = (None if match[name] is None else float(match[name]) for name in ("start", "end"))
    return match["path"], start, end


def _check_imagery(texts: list[str], imagery) -> None:
    if len(imagery) != len(texts):
        raise ValueError(f"imagery has {len(imagery)} rows for {len(texts)} texts")
    for row, (text, frames) in enumerate(zip(texts, imagery, strict=True)):
        if (count := text.count(OUTPUT_IMAGE)) != len(frames):
            raise ValueError(f"Text {row} has {count} {OUTPUT_IMAGE} but {len(frames)} target frames")


def _describe_span(start: float | None, end: float | None) -> str:
    start = f"{start or 0:g}"
    return f"The video shows {start} s to {end:g} s." if end is not None else f"The video starts at {start} s."


FourDThinkerProcessor.register_for_auto_class()

__all__ = ["FourDThinkerProcessor"]
