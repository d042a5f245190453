"""Processor of 4DThinker: as in Qwen2.5-VL, but it also opens videos, keeps their real times and places mental images.

What happens to the text of an assistant turn (with `latent_size` 4):

    text      <think> the ball is here <output_image> it moves left </think>...
    tokens    ... here <|latent_start|> <|latent_pad|> x 4 <|latent_end|> it moves ...
    tensors   pixel_values_latent, image_grid_thw_latent: the target frame of these four pads
"""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2_5_VLProcessor

from .video_fourdthinker import load_video, second_per_grid

OUTPUT_IMAGE = "<output_image>"
# A part of a video, in seconds, as in W3C's Media Fragments (section 4.2.1) and in HTML: clip.mp4#t=1,2.5
FRAGMENT = re.compile(r"(?P<path>.+)#t=(?P<start>-?\d*\.?\d+)?(,(?P<end>-?\d*\.?\d+))?")
LATENT_PAD, LATENT_START, LATENT_END = "<|latent_pad|>", "<|latent_start|>", "<|latent_end|>"


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
            videos: paths, or arrays `(frames, height, width, 3)` uint8 with `video_timestamps`. A path may name a part
                of a video: `clip.mp4#t=1,2.5` is 1 s to 2.5 s, and positions begin at 1 s.
            video_timestamps: for each video given as an array, the times of its frames in seconds.
            imagery: for each text, the target frames (PIL images or uint8 arrays) of its `<output_image>`s, in order.
                Without it, `<output_image>` still becomes a block of pads, whose latents are then given as vectors.
            fps, num_frames: the sampling of a path, instead of the processor's `fps`.

        Returns a `BatchFeature` with the keys of Qwen2.5-VL, `second_per_grid_ts` `(num_videos,)` float32 from the
        real times, and, with imagery, `pixel_values_latent` and `image_grid_thw_latent`. Raises `VideoError` for a
        file that cannot be read as a video, `ValueError` for a number of frames, times or texts that does not fit.
        """
        if videos is not None:
            videos, times = self._open_videos(videos, video_timestamps, fps, num_frames)
            kwargs |= {"do_sample_frames": False, "cap_pixels_per_frame": True}
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

    def _open_videos(self, videos, video_timestamps, fps, num_frames):
        """Opens paths and flattens nested lists: returns a list of arrays and a list of their times."""
        arrays, times, given = [], [], iter(video_timestamps or ())
        for video in _flatten_videos(videos):
            if isinstance(video, (str, Path)):
                path, start, end = _split_fragment(str(video))
                video, seconds = self.open_video(path, start, end, fps, num_frames)
            else:
                seconds = next(given, None)
                if seconds is None or len(seconds) != len(video):
                    raise ValueError(
                        f"A video given as an array of {len(video)} frames needs video_timestamps with as many times "
                        f"in seconds, got {'none' if seconds is None else len(seconds)}"
                    )
            arrays.append(video)
            times.append(seconds)
        return arrays, times

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
    if isinstance(videos, (str, Path)) or getattr(videos, "ndim", 0) == 4:
        return [videos]
    if isinstance(videos, (list, tuple)) and not videos:  # a row without a video
        return []
    if isinstance(videos, (list, tuple)):
        if getattr(videos[0], "ndim", 0) == 3 or hasattr(videos[0], "convert"):  # frames of one video
            return [np.stack([np.asarray(frame) for frame in videos])]
        return [flat for video in videos for flat in _flatten_videos(video)]
    raise ValueError(f"A video is a path, an array (frames, height, width, 3) or a list of frames, got {type(videos)}")


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
