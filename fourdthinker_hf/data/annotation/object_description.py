"""Describes a tracked object by what can be seen of it: its size, its colour, and where it is in the picture."""

from collections.abc import Sequence

import cv2
import numpy as np

# Colour names with the upper ends of their hues, on OpenCV's scale from 0 to 180.
HUE_NAMES = (
    ("red", 8),
    ("orange", 21),
    ("yellow", 34),
    ("green", 80),
    ("cyan", 98),
    ("blue", 130),
    ("purple", 158),
    ("pink", 172),
    ("red", 180),
)
GREY_NAMES = (("black", 50), ("grey", 170), ("white", 256))  # with the upper ends of their values, from 0 to 256
POSITION_PHRASES = (" on the left", " in the middle", " on the right")


def describe_object(frames: Sequence[np.ndarray], masks: np.ndarray, noun: str) -> str:
    """A description such as "the large red car on the left".

    The size is left out if it is medium, and the position if the object does not stay in one third of the picture.
    `frames` are T arrays (H, W, 3) uint8 RGB; `masks` (T, H, W) bool must show the object in one frame or more.
    """
    visible = np.nonzero(masks.any((1, 2)))[0]
    areas = np.array([np.count_nonzero(masks[t]) for t in visible]) / masks[0].size
    centres = np.array([mask_centre(masks[t]) for t in visible]) / masks.shape[:0:-1]
    size = "large " if np.median(areas) > 0.06 else "small " if np.median(areas) < 0.01 else ""
    pixels = np.concatenate([frames[t][masks[t]] for t in visible[:: max(1, len(visible) // 8)]])
    thirds = np.bincount(np.clip(centres[:, 0] * 3, 0, 2).astype(int), minlength=3) / len(visible)
    position = POSITION_PHRASES[thirds.argmax()] if thirds.max() > 0.8 else ""
    return f"the {size}{colour_name(pixels)} {noun}{position}"


def colour_name(pixels: np.ndarray) -> str:
    """The name of the most frequent colour among pixels (N, 3) uint8 RGB."""
    hue, saturation, value = cv2.cvtColor(pixels[None], cv2.COLOR_RGB2HSV)[0].T.astype(int)
    coloured = (saturation > 80) & (value > 40)
    if coloured.mean() < 0.4:
        return next(name for name, upper in GREY_NAMES if np.median(value) < upper)
    uppers = [upper for _, upper in HUE_NAMES]
    names = np.array([name for name, _ in HUE_NAMES])[np.searchsorted(uppers, hue[coloured], "right")]
    unique, counts = np.unique(names, return_counts=True)
    name = str(unique[counts.argmax()])
    if name in ("orange", "red") and np.median(value[coloured]) < 110 and np.median(saturation[coloured]) < 225:
        return "brown"
    return name


def mask_centre(mask: np.ndarray) -> np.ndarray:
    """The mean (x, y) of a mask's pixels; (0, 0) if it has none."""
    moments = cv2.moments(mask.view(np.uint8), binaryImage=True)
    return np.array([moments["m10"], moments["m01"]]) / max(moments["m00"], 1)
