"""A short video of an answer: the frames that the model saw and, beside them, what each mental image pictured."""

import math
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.media import write_video
from ..question_answer import Answer
from .answer_html import resized, step_spans

HEIGHT, CAPTION, MIN_WIDTH = 240, 24, 240  # pixels: of a frame, of the line below it, of a frame with its margins
MAX_FRAMES, MAX_IMAGES = 32, 4  # of a video: the frames beside each mental image, and the mental images
SECONDS_PER_IMAGE = 8  # at most
MARK = (129, 140, 248)  # around the frames that a mental image is most like


class AnswerVideo:
    """What the video of an answer is made of: small frames, which can be kept until somebody asks for it."""

    def __init__(self, answer: Answer):
        chosen = np.linspace(0, len(answer.frames) - 1, min(len(answer.frames), MAX_FRAMES)).round().astype(int)
        self.times = np.asarray(answer.timestamps)[chosen]
        self.frames = [resized(answer.frames[i], HEIGHT) for i in chosen]
        self.images = []  # of each mental image: picture (HEIGHT, w, 3), caption, and the span that it is most like
        for number, image in enumerate(answer.images[:MAX_IMAGES], start=1):
            if image.best_step is None:
                continue
            start, end = step_spans(answer)[image.best_step]
            if image.picture is None:
                picture, caption = answer.steps[image.best_step][0][-1], f"like {start:.1f} to {end:.1f} s"
            else:
                picture, caption = np.asarray(image.picture), "drawn from it alone"
            self.images.append((resized(picture, HEIGHT), f"Mental image {number}: {caption}", start, end))

    @property
    def nbytes(self) -> int:
        return sum(picture.nbytes for picture in (*self.frames, *(image[0] for image in self.images)))

    def mp4(self) -> bytes:
        """The video as an H.264 file. It runs as fast as the clip, unless that would take more than
        `SECONDS_PER_IMAGE`. Raises `ValueError` without mental images."""
        if not self.images:
            raise ValueError("The answer has no mental image to show")
        shown = []
        for picture, caption, start, end in self.images:
            right = _panel(picture, caption)
            for frame, time in zip(self.frames, self.times, strict=True):
                left = _panel(frame, f"The video at {time:.1f} s", is_marked=start <= time < end)
                shown.append(np.concatenate([left, right], axis=1))
        num, seconds = len(self.times), float(self.times[-1] - self.times[0])
        pace = (num - 1) / seconds if seconds else 1
        with tempfile.TemporaryDirectory(prefix="fourdthinker-") as folder:
            path = Path(folder, "answer.mp4")
            write_video(path, np.stack(shown), fps=max(1, round(pace), math.ceil(num / SECONDS_PER_IMAGE)))
            return path.read_bytes()


def _panel(picture: np.ndarray, caption: str, is_marked: bool = False) -> np.ndarray:
    """A picture (HEIGHT, w, 3) on black, with a line of text below it. Height and width are even, as H.264 needs."""
    width = max(picture.shape[1], MIN_WIDTH) + picture.shape[1] % 2
    panel = Image.new("RGB", (width + width % 2, HEIGHT + CAPTION))
    left = (panel.width - picture.shape[1]) // 2
    panel.paste(Image.fromarray(picture), (left, 0))
    draw = ImageDraw.Draw(panel)
    if is_marked:
        draw.rectangle((left, 0, left + picture.shape[1] - 1, HEIGHT - 1), outline=MARK, width=4)
    draw.text((6, HEIGHT + 4), caption, font=ImageFont.load_default(14))
    return np.asarray(panel)
