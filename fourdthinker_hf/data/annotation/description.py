"""Describes a tracked object by what is seen: its colour, and where it is."""

from collections.abc import Sequence

import cv2
import numpy as np

HUES = (
    ("red", 8),
    ("orange", 21),
    ("yellow", 34),
    ("green", 80),
    ("cyan", 98),
    ("blue", 130),
    ("purple", 158),
    ("pink", 172),
    ("red", 180),
)  # upper ends, of OpenCV's 180

PLACES = (" on the left", " in the middle", " on the right")

GREYS = (("black", 50), ("grey", 170), ("white", 256))


def describe(frames: Sequence[np.ndarray], masks: np.ndarray, name: str) -> str:
    """ "the large red car on the left": size if not middling, colour, and place if it stays there."""
    seen = np.nonzero(masks.any((1, 2)))[0]
    areas = np.array([np.count_nonzero(masks[t]) for t in seen]) / masks[0].size
    centres = np.array([centre(masks[t]) for t in seen]) / masks.shape[:0:-1]
    size = "large " if np.median(areas) > 0.06 else "small " if np.median(areas) < 0.01 else ""
    pixels = np.concatenate([frames[t][masks[t]] for t in seen[:: max(1, len(seen) // 8)]])
    thirds = np.bincount(np.clip(centres[:, 0] * 3, 0, 2).astype(int), minlength=3) / len(seen)
    place = PLACES[thirds.argmax()] if thirds.max() > 0.8 else ""
    return f"the {size}{colour_name(pixels)} {name}{place}"


def colour_name(pixels: np.ndarray) -> str:
    """The colour that most of some pixels (n, 3) uint8 RGB have."""
    hue, vivid, bright = cv2.cvtColor(pixels[None], cv2.COLOR_RGB2HSV)[0].T.astype(int)
    coloured = (vivid > 80) & (bright > 40)
    if coloured.mean() < 0.4:
        return next(word for word, top in GREYS if np.median(bright) < top)
    words = np.array([word for word, _ in HUES])[np.searchsorted([top for _, top in HUES], hue[coloured], "right")]
    known, counts = np.unique(words, return_counts=True)
    word = str(known[counts.argmax()])
    if word in ("orange", "red") and np.median(bright[coloured]) < 110 and np.median(vivid[coloured]) < 225:
        return "brown"
    return word


def centre(mask: np.ndarray) -> np.ndarray:
    """(x, y)."""
    moments = cv2.moments(mask.view(np.uint8), binaryImage=True)
    return np.array([moments["m10"], moments["m01"]]) / max(moments["m00"], 1)
