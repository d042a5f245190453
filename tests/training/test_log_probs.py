"""Log-probabilities in tiles are those of the whole logits, with the same gradients."""

import pytest
import torch

from fourdthinker_hf.training import log_probs
from fourdthinker_hf.training.log_probs import TiledLogProbs


@pytest.mark.parametrize("uses", ["log-probabilities", "entropies", "both"])
def test_tiles_give_the_values_and_gradients_of_whole_logits(monkeypatch, uses):
    """Seven tokens and a vocabulary of eleven, in tiles of three by four; a target in each column of tiles."""
    monkeypatch.setattr(log_probs, "TOKENS", 3)
    monkeypatch.setattr(log_probs, "ENTRIES", 4)
    torch.manual_seed(0)
    states, weight = torch.randn(7, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    targets = torch.tensor([0, 3, 4, 7, 8, 10, 10])
    factors = torch.randn(2, 7)

    def whole():
        logps = (states @ weight.T / 0.7).log_softmax(-1)
        return logps.gather(1, targets[:, None])[:, 0], -(logps.exp() * logps).sum(-1)

    results = []
    for values in (TiledLogProbs.apply(states, weight, targets, 0.7), whole()):
        logps, entropies = values
        terms = {"log-probabilities": logps * factors[0], "entropies": entropies * factors[1]}
        loss = sum(term.sum() for name, term in terms.items() if uses in (name, "both"))
        gradients = torch.autograd.grad(loss, (states, weight))
        results.append((*values, *gradients))
    for tiled, expected in zip(*results, strict=True):
        torch.testing.assert_close(tiled, expected, atol=1e-5, rtol=1e-5)


def test_no_tokens_give_no_values_and_zero_gradients():
    states, weight = torch.randn(0, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    logps, entropies = TiledLogProbs.apply(states, weight, torch.zeros(0, dtype=torch.long), 1.0)
    assert logps.shape == entropies.shape == (0,)
    assert (torch.autograd.grad(logps.sum(), weight)[0] == 0).all()
