"""Metrics that show how well latents are predicted. The plain cosine says little: targets share most of their
direction, so even the mean of all targets scores near 1. Therefore a prediction is also compared with other targets,
and after their mean has been subtracted."""

from collections import defaultdict

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object

NUM_NEGATIVES = 64
MEAN_RATE = 0.01  # of the running mean: about the last hundred batches count


class LatentMetrics:
    """Metrics of one process. The negatives of a mental image are the 64 targets before it, from earlier batches.

    They are the same in training and evaluation, and, except in the first batches of an epoch, they belong to other
    records. The centre is the mean of the 65 candidates, with one vector for each slot of a block: a mean over all
    slots would reward a prediction for knowing its slot, and a mean over the batch would be mostly noise when the
    batch is small. A prediction that does not depend on the video has no preference among the candidates, so its
    centred cosine is 0 and its rank 33 on average. Until there are 64 negatives, neither metric is given.
    """

    def __init__(self, latent_size: int):
        self.latent_size = latent_size
        self.negatives = torch.empty(0)  # (images, latent_size, hidden) float32
        self.mean = None  # (hidden,): running mean of the predictions' directions in training

    @torch.no_grad()
    def __call__(self, predicted: torch.Tensor, targets: torch.Tensor, training: bool) -> dict[str, torch.Tensor]:
        """Metrics of `predicted` latents `(num_latents, hidden)`, complete blocks in order, against their targets.

        For each latent: `latent_cosine`, `latent_centred_cosine`, `latent_norm` and `target_norm`. For each mental
        image: `latent_rank`, 1 + the number of negatives whose centred cosine, averaged over the block, exceeds that
        of the true target, and `latent_top1`, whether there is no such negative (by chance 33 and 1/65).
        """
        metrics = {
            "latent_cosine": F.cosine_similarity(predicted, targets, dim=-1),
            "latent_norm": predicted.norm(dim=-1),
            "target_norm": targets.norm(dim=-1),
        }
        images, true_targets = (x.unflatten(0, (-1, self.latent_size)) for x in (predicted, targets))
        negatives = self.negatives.to(true_targets)
        if len(negatives) == NUM_NEGATIVES:
            cosines = torch.stack(
                [
                    self._centred_cosines(image, torch.cat([target[None], negatives]))
                    for image, target in zip(images, true_targets, strict=True)
                ]
            )
            per_image = cosines.mean(-1)  # (images, candidates)
            metrics["latent_centred_cosine"] = cosines[:, 0]
            metrics["latent_rank"] = rank = 1.0 + (per_image[:, 1:] > per_image[:, :1]).sum(-1)
            metrics["latent_top1"] = (rank == 1).float()
        kept = torch.cat([negatives, true_targets] if len(negatives) else [true_targets])
        self.negatives = kept[-NUM_NEGATIVES:].clone()
        if training:
            mean = F.normalize(predicted, dim=-1).mean(0)
            self.mean = mean if self.mean is None else self.mean.to(mean).lerp(mean, MEAN_RATE)
        return metrics

    def _centred_cosines(self, image: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Cosines `(n, latent_size)` of `image` `(latent_size, hidden)` and each of `candidates`
        `(n, latent_size, hidden)`, slot by slot."""
        centre = candidates.mean(0)
        return F.cosine_similarity(image - centre, candidates - centre, dim=-1)

    def state_dict(self) -> dict:
        return {"negatives": self.negatives, "mean": self.mean}

    def load_state_dict(self, state: dict) -> None:
        self.negatives, self.mean = state["negatives"], state["mean"]


class MetricMeans:
    """Means of named values over all batches and all processes. How the values were cut into batches has no effect."""

    def __init__(self):
        self.totals = defaultdict(lambda: [0.0, 0])  # name: [sum, count], the sum on the values' device

    def update(self, name: str, values: torch.Tensor) -> None:
        total = self.totals[name]
        total[0] = total[0] + values.detach().sum()
        total[1] += values.numel()

    def compute(self) -> dict[str, float]:
        """The means since the last call. Every process must call it."""
        parts = gather_object([{name: (float(total), count) for name, (total, count) in self.totals.items()}])
        self.totals.clear()
        sums = defaultdict(lambda: [0.0, 0])
        for part in parts:
            for name, (total, count) in part.items():
                sums[name] = [sums[name][0] + total, sums[name][1] + count]
        return {name: total / count for name, (total, count) in sorted(sums.items()) if count}
