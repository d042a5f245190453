"""Names tracked objects with a vision-language model, in place of the word "object".

The model is given the frame that shows most of the track, in which all else is dimmed as in target frames. Its reply
is used if it is a short noun phrase. If it is not, the model is asked again, and after `MAX_TRIES` replies the track
keeps its description, so that a strange reply does not cost a video. If the server fails, `VLMError` is raised.
"""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from ..media import highlight
from .object_description import POSITION_PHRASES
from .shots import Shot
from .tracking import Track
from .vlm_client import VLMClient

MAX_TRIES = 3
MAX_WORDS = 5  # of a name
PROMPT = (
    "One thing in this picture is in colour, everything else is grey. Name it in one to five English words: its "
    'colour if that tells it from others, then what it is, as in "red car" or "woman in a blue coat". Reply with the '
    "name alone."
)


def name_tracks(shot: Shot, tracks: Sequence[Track], client: VLMClient) -> list[Track]:
    """The tracks with new descriptions, such as "the red car on the left".

    A track keeps its old description if the model gives no name, or if two tracks would get the same description.
    """
    names = [ask_name(shot, track, client) for track in tracks]
    named = [
        replace(track, description=f"the {name}{_position_phrase(track)}") if name else track
        for track, name in zip(tracks, names, strict=True)
    ]
    descriptions = [track.description for track in named]
    return [new if descriptions.count(new.description) == 1 else old for new, old in zip(named, tracks, strict=True)]


def ask_name(shot: Shot, track: Track, client: VLMClient) -> str | None:
    """The model's name for a track, without article, such as "red car"; None if it gives none."""
    frame = int(np.argmax(track.masks.sum((1, 2))))
    jpeg = io.BytesIO()
    Image.fromarray(highlight(shot.frames[frame], track.masks[frame])).save(jpeg, "JPEG", quality=92)
    url = "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": PROMPT}]
    for attempt in range(MAX_TRIES):
        temperature = 0.7 * (attempt > 0)
        reply = client.complete([{"role": "user", "content": content}], temperature=temperature, max_tokens=64)
        if name := parse_name(reply):
            return name
    return None


def parse_name(reply: str) -> str | None:
    """The name in a reply, in lower case, without article or quotes; None if it is no short phrase of plain words."""
    name = reply.strip().strip("\"'`*.").lower()
    name = re.sub(r"^(a|an|the)\s+", "", name)
    return name if re.fullmatch(rf"[a-z][a-z-]*( [a-z][a-z-]*){{0,{MAX_WORDS - 1}}}", name) else None


def _position_phrase(track: Track) -> str:
    return next((phrase for phrase in POSITION_PHRASES if track.description.endswith(phrase)), "")
