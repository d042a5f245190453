"""Probes test whether the video and the mental images matter. A probe is a run in which one path from the video to the
answer is cut. It is compared with the plain run of the same questions.

What the video shows can reach the text after a mental image on three paths: the text attends to the video itself; the
latents attend to the video, and the text to the latents; and the vector that is fed at each latent holds what the step
before it saw. A probe shows something only about the path that it cuts, so each names its own in `cuts`.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .. import latent_hooks
from ..data.records import Record

Images = Sequence[Sequence[torch.Tensor]]  # for each row its mental images, each (latents, hidden)


@dataclass(frozen=True)
class Probe:
    """One way of cutting a path.

    Args:
        name, cuts: its name, and which path it cuts, in a few words.
        change_frames: makes of the video's frames `(T, H, W, 3)` uint8 those that the model sees, or `None` to leave
            the video out of the prompt.
        make_hook: makes a `latent_hook` of the model, the batch's records and `next_images`.
        latents_see_video: False keeps the latents from attending to the video.
        allows_images: False keeps the model from beginning a mental image.
        needs_next_images: True if `make_hook` needs `next_images`: for each record, the mental images of the plain run
            for the benchmark's next question.
    """

    name: str
    cuts: str
    change_frames: Callable[[np.ndarray], np.ndarray | None] = lambda frames: frames
    make_hook: Callable[..., latent_hooks.LatentHook] | None = None
    latents_see_video: bool = True
    allows_images: bool = True
    needs_next_images: bool = False

    def change_video(self, frames: np.ndarray, timestamps: np.ndarray) -> np.ndarray | None:
        """`change_frames`, as `batch_inputs` takes it."""
        return self.change_frames(frames)

    def generate_kwargs(self, model, records: Sequence[Record], next_images: Images | None) -> dict:
        """The arguments of `generate` for this batch that the plain run does not have."""
        kwargs = {} if self.make_hook is None else {"latent_hook": self.make_hook(model, records, next_images)}
        if not self.latents_see_video:
            kwargs["latents_see_video"] = False
        if not self.allows_images:
            kwargs["suppress_tokens"] = [model.config.latent_start_id]
        return kwargs


def _repeat_first(frames: np.ndarray) -> np.ndarray:
    return np.repeat(frames[:1], len(frames), 0)


def _shuffle(frames: np.ndarray) -> np.ndarray:
    """Frames in an order in which none is at its own place (if there are two or more). All clips with the same number
    of frames get the same order."""
    rng, identity = np.random.default_rng(len(frames)), np.arange(len(frames))
    order = identity
    while len(identity) > 1 and (order == identity).any():
        order = rng.permutation(identity)
    return frames[order]


def _swap(images: Images) -> latent_hooks.LatentHook:
    """Feed each row the latents of `images`. A row for which there are none keeps its own latents."""
    swapped_rows = [row for row, blocks in enumerate(images) if blocks]
    swap = latent_hooks.swap([images[row] for row in swapped_rows])

    def hook(latents, rows, block, slot):
        is_swapped = torch.tensor([int(row) in swapped_rows for row in rows], device=latents.device)
        if is_swapped.any():
            indices = torch.tensor([swapped_rows.index(int(row)) for row in rows[is_swapped]])
            replacements = swap(latents[is_swapped], indices, block[is_swapped], slot[is_swapped])
            latents = latents.index_put((is_swapped,), replacements)
        return latents

    return hook


# For each probe that feeds other vectors than the latents: what it feeds, and its hook.
FED_VECTORS = {
    "zeros": ("zeros are fed", lambda model, records, next_images: latent_hooks.zeros),
    "noise": (
        "noise of the same length is fed",
        lambda model, records, next_images: latent_hooks.noise([zlib.crc32(r.id.encode()) for r in records]),
    ),
    "swap": ("the latents of the next question are fed", lambda model, records, next_images: _swap(next_images)),
    "pad-row": (
        "the embedding of the pad token is fed",
        lambda model, records, next_images: latent_hooks.pad_row(model),
    ),
}

PROBES = {
    probe.name: probe
    for probe in (
        Probe("plain", "nothing"),
        Probe("no-video", "all paths: the prompt has no video", lambda frames: None),
        Probe("grey-video", "all paths: every pixel is grey", lambda frames: np.full_like(frames, 128)),
        Probe("first-frame", "motion: every frame is the first one", _repeat_first),
        Probe("reversed", "the direction of time: the frames run backwards", lambda frames: frames[::-1].copy()),
        Probe("shuffled", "the order of time: the frames are shuffled", _shuffle),
        Probe("suppressed", "the mental images: none can be opened", allows_images=False),
        Probe("blind", "the latents' attention to the video", latents_see_video=False),
        *(
            Probe(name, f"the content of the latents: {fed}", make_hook=make_hook, needs_next_images=name == "swap")
            for name, (fed, make_hook) in FED_VECTORS.items()
        ),
        *(
            Probe(
                f"blind-{name}",
                f"the latents' attention to the video, and their content: {fed}",
                make_hook=make_hook,
                latents_see_video=False,
                needs_next_images=name == "swap",
            )
            for name, (fed, make_hook) in FED_VECTORS.items()
        ),
    )
}
