"""How well latents are predicted. Plain cosine says little: targets share most of their direction, so the mean target
alone scores near 1. So here each is also compared with others, and after their mean is taken away."""

from collections import defaultdict

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object

NUM_RIVALS = 64
MEAN_RATE = 0.01  # of the running mean: about the last hundred batches count


class LatentMeasures:
    """Measures of one process; the rivals of a mental image are the targets of the 64 before it, in earlier batches.

    In training and evaluation alike, so (but for an epoch's first batches) they belong to other records. The centre
    is the mean of the 65 candidates, a vector for each slot of a block: one over all slots would let a prediction gain
    by knowing its slot, one over the batch would be mostly noise in a small batch. The candidates are alike to a
    prediction that does not depend on what is seen, so its centred cosine is 0 and its rank 33 on average. Until
    there are 64 rivals, neither is given.
    """

    def __init__(self, latent_size: int):
        self.latent_size = latent_size
        self.rivals = torch.empty(0)  # (images, latent_size, hidden) float32
        self.mean = None  # (hidden,): running mean of the predictions' directions in training

    @torch.no_grad()
    def __call__(self, predicted: torch.Tensor, targets: torch.Tensor, training: bool) -> dict[str, torch.Tensor]:
        """Measures of `predicted` latents `(num_latents, hidden)`, whole blocks in order, against their targets.

        For each latent `latent_cosine`, `latent_centred_cosine`, `latent_norm` and `target_norm`; for each mental
        image `latent_rank`, 1 + the rivals whose centred cosine, mean over the block, beats the true target's, and
        `latent_top1`, whether none does (chance 33 and 1/65).
        """
        measures = {
            "latent_cosine": F.cosine_similarity(predicted, targets, dim=-1),
            "latent_norm": predicted.norm(dim=-1),
            "target_norm": targets.norm(dim=-1),
        }
        images, truths = (x.unflatten(0, (-1, self.latent_size)) for x in (predicted, targets))
        rivals = self.rivals.to(truths)
        if len(rivals) == NUM_RIVALS:
            pairs = zip(images, truths, strict=True)
            cosines = torch.stack([self._centred_cosines(i, torch.cat([t[None], rivals])) for i, t in pairs])
            per_image = cosines.mean(-1)  # (images, candidates)
            measures["latent_centred_cosine"] = cosines[:, 0]
            measures["latent_rank"] = rank = 1.0 + (per_image[:, 1:] > per_image[:, :1]).sum(-1)
            measures["latent_top1"] = (rank == 1).float()
        self.rivals = torch.cat([rivals, truths] if len(rivals) else [truths])[-NUM_RIVALS:].clone()
        if training:
            mean = F.normalize(predicted, dim=-1).mean(0)
            self.mean = mean if self.mean is None else self.mean.to(mean).lerp(mean, MEAN_RATE)
        return measures

    def _centred_cosines(self, image: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Of `image` `(latent_size, hidden)` with each of `candidates` `(n, latent_size, hidden)`, slot by slot."""
        centre = candidates.mean(0)
        return F.cosine_similarity(image - centre, candidates - centre, dim=-1)

    def state_dict(self) -> dict:
        return {"rivals": self.rivals, "mean": self.mean}

    def load_state_dict(self, state: dict) -> None:
        self.rivals, self.mean = state["rivals"], state["mean"]


class Means:
    """Means of what is counted, over all values and all processes: how they came in batches does not matter."""

    def __init__(self):
        self.totals = defaultdict(lambda: [0.0, 0])  # name: [sum, number], the sum on the values' device

    def count(self, name: str, values: torch.Tensor) -> None:
        total = self.totals[name]
        total[0] = total[0] + values.detach().sum()
        total[1] += values.numel()

    def collect(self) -> dict[str, float]:
        """The means since the last call; every process must call it."""
        parts = gather_object([{name: (float(total), number) for name, (total, number) in self.totals.items()}])
        self.totals.clear()
        sums = defaultdict(lambda: [0.0, 0])
        for part in parts:
            for name, (total, number) in part.items():
                sums[name] = [sums[name][0] + total, sums[name][1] + number]
        return {name: total / number for name, (total, number) in sorted(sums.items()) if number}
