"""Names for objects, from any vision-language model behind an OpenAI-compatible address, in place of "object".

The model is shown one frame a track, the one that shows most of it: whole, with all else greyed as in target frames.
What it replies is taken if it is a short noun phrase; it is asked again if not, and at last the offline description
stays, so that one odd reply does not lose a video. A server that cannot be reached is an error (`chat.ChatError`).
"""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from ..media import highlight
from .description import PLACES
from .shots import Shot
from .tracking import Track
from .vlm_client import Chat

TRIES = 3
WORDS = 5  # of a name at most
ASKED = (
    "One thing in this picture is in colour, everything else is grey. Name it in one to five English words: its "
    'colour if that tells it from others, then what it is, as in "red car" or "woman in a blue coat". Reply with the '
    "name alone."
)


def name_tracks(shot: Shot, tracks: Sequence[Track], chat: Chat) -> list[Track]:
    """The tracks, with descriptions such as "the red car on the left"; a name that two would share is left out."""
    names = [ask_name(shot, track, chat) for track in tracks]
    named = [
        replace(track, description=f"the {name}{_place(track)}") if name else track
        for track, name in zip(tracks, names, strict=True)
    ]
    told = [track.description for track in named]
    return [new if told.count(new.description) == 1 else old for new, old in zip(named, tracks, strict=True)]


def ask_name(shot: Shot, track: Track, chat: Chat) -> str | None:
    """A name without article, "red car"; None if the model gives none."""
    frame = int(np.argmax(track.masks.sum((1, 2))))
    kept = io.BytesIO()
    Image.fromarray(highlight(shot.frames[frame], track.masks[frame])).save(kept, "JPEG", quality=92)
    address = "data:image/jpeg;base64," + base64.b64encode(kept.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": ASKED}]
    for number in range(TRIES):
        reply = chat.ask([{"role": "user", "content": content}], temperature=0.7 * (number > 0), max_tokens=64)
        if name := read_name(reply):
            return name
    return None


def read_name(reply: str) -> str | None:
    """The name in a reply, lower case, without article and full stop; None if it is no short phrase of plain words."""
    name = reply.strip().strip("\"'`*.").lower()
    name = re.sub(r"^(a|an|the)\s+", "", name)
    return name if re.fullmatch(rf"[a-z][a-z-]*( [a-z][a-z-]*){{0,{WORDS - 1}}}", name) else None


def _place(track: Track) -> str:
    return next((place for place in PLACES if track.description.endswith(place)), "")
