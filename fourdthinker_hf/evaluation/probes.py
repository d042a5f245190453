"""Does the imagery matter? Probes: a run with one path cut, to be held against the plain run of the same questions.

What was seen reaches the words after a mental image by three paths: the words attend to the video themselves; the
latents attend to it, and the words to them; and the vector fed at each latent holds what the step before it saw. Only
a probe that cuts a path says something about it, so each names its own.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .. import latent_hooks
from ..data.records import Record

Images = Sequence[Sequence[torch.Tensor]]  # per row its mental images, each (latents, hidden)


@dataclass(frozen=True)
class Probe:
    """One way of cutting. `frames` makes `(T, H, W, 3)` uint8 what the model sees, `None` for no video at all; `hook`
    makes a `latent_hook` of the model, the batch's records and their donors' mental images."""

    name: str
    cuts: str  # which path, in a line
    frames: Callable[[np.ndarray], np.ndarray | None] = lambda frames: frames
    hook: Callable[..., latent_hooks.LatentHook] | None = None
    latents_see_video: bool = True
    pictures: bool = True
    needs_donors: bool = False  # the plain mental images of another question for each

    def video(self, frames: np.ndarray, timestamps: np.ndarray) -> np.ndarray | None:
        """What the model sees instead of `frames`; `None` leaves the video out of the prompt."""
        return self.frames(frames)

    def generation(self, model, processor, inputs, records: Sequence[Record], donors: Images | None) -> dict:
        """Arguments of `generate` for this batch, beyond those of the plain run."""
        kwargs = {} if self.hook is None else {"latent_hook": self.hook(model, records, donors)}
        if not self.latents_see_video:
            kwargs["latents_see_video"] = False
        if not self.pictures:
            kwargs["suppress_tokens"] = [model.config.latent_start_id]
        return kwargs


def _freeze(frames: np.ndarray) -> np.ndarray:
    return np.repeat(frames[:1], len(frames), 0)


def _shuffle(frames: np.ndarray) -> np.ndarray:
    """The same order for every clip of as many frames, drawn until none stands where it stood (if there are two)."""
    rng, places = np.random.default_rng(len(frames)), np.arange(len(frames))
    order = places
    while len(places) > 1 and (order == places).any():
        order = rng.permutation(places)
    return frames[order]


def _own_or_donors(donors: Images) -> latent_hooks.LatentHook:
    """Swap, where the donor pictured anything; where not, the row keeps its own."""
    rows = [row for row, images in enumerate(donors) if images]
    swap = latent_hooks.swap([donors[row] for row in rows])

    def hook(latents, at, block, slot):
        has = torch.tensor([int(row) in rows for row in at], device=latents.device)
        if has.any():
            places = torch.tensor([rows.index(int(row)) for row in at[has]])
            latents = latents.index_put((has,), swap(latents[has], places, block[has], slot[has]))
        return latents

    return hook


HOOKS = {
    "zeros": lambda model, records, donors: latent_hooks.zeros,
    "noise": lambda model, records, donors: latent_hooks.noise([zlib.crc32(record.id.encode()) for record in records]),
    "swap": lambda model, records, donors: _own_or_donors(donors),
    "pad-row": lambda model, records, donors: latent_hooks.pad_row(model),
}
INSTEAD = {
    "zeros": "zeros",
    "noise": "noise as long",
    "swap": "those of the next question",
    "pad-row": "the pad's embedding",
}

PROBES = {
    probe.name: probe
    for probe in (
        Probe("plain", "nothing"),
        Probe("no-video", "all paths: the prompt has no video", lambda frames: None),
        Probe("grey-video", "all paths: every pixel is grey", lambda frames: np.full_like(frames, 128)),
        Probe("first-frame", "motion: the first frame, repeated", _freeze),
        Probe("reversed", "the direction of time: frames in reverse order", lambda frames: frames[::-1].copy()),
        Probe("shuffled", "the order of time: frames shuffled", _shuffle),
        Probe("suppressed", "imagery altogether: no mental image can be opened", pictures=False),
        Probe("blind", "the latents' attention to the video", latents_see_video=False),
        *(
            Probe(name, f"the vector fed: {INSTEAD[name]} instead", hook=HOOKS[name], needs_donors=name == "swap")
            for name in HOOKS
        ),
        *(
            Probe(
                f"blind-{name}",
                f"the latents' attention to the video, and the vector fed: {INSTEAD[name]} instead",
                hook=HOOKS[name],
                latents_see_video=False,
                needs_donors=name == "swap",
            )
            for name in HOOKS
        ),
    )
}
