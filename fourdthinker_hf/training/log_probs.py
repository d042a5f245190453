"""Log-probabilities of tokens from hidden states, without the logits `(tokens, vocabulary)` ever being whole.

[`TiledLogProbs`] is for the CPU. On other devices 4DRL uses TRL's fused head, which has a kernel for CUDA. On a CPU
that head folds tiles of up to 4,096 x 32,768 logits in plain PyTorch, with 0.5 GB for each intermediate result and
more than twice as many passes.
"""

import torch
from trl.trainer.utils import maybe_gather_lm_head_ctx

# Tokens and vocabulary entries in a tile. A tile of logits takes 2 MB in float32, so that it stays in the processor's
# cache; fewer tokens would read the weights, and write their gradient, more often.
TOKENS, ENTRIES = 512, 1024


class TiledLogProbs(torch.autograd.Function):
    """`apply(states (n, hidden), weight (vocabulary, hidden), targets (n,), temperature)` returns the
    log-probabilities `(n,)` of `targets` and the entropies `(n,)`, in float32. Products are computed in the dtype of
    autocast, or else of `states`; sums in float32. Both results have gradients, by `states` and `weight`."""

    @staticmethod
    def forward(ctx, states, weight, targets, temperature):
        ctx.set_materialize_grads(False)
        ctx.temperature, device = temperature, states.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
        log_z = torch.full(states.shape[:1], -torch.inf, device=states.device)
        target_logits, mean_logits = torch.zeros_like(log_z), torch.zeros_like(log_z)
        for rows, entries, tile in logit_tiles(states, weight, ctx.dtype, temperature):
            largest = tile.amax(-1, keepdim=True)
            weights = (tile - largest).exp_()
            total = weights.sum(-1)
            tile_log_z = total.log() + largest[:, 0]
            tile_mean = weights.mul_(tile).sum(-1) / total
            both = torch.logaddexp(log_z[rows], tile_log_z)
            mean_logits[rows] = mean_logits[rows] * (log_z[rows] - both).exp() + tile_mean * (tile_log_z - both).exp()
            log_z[rows] = both
            row, column = targets_in_tile(targets, rows, entries)
            target_logits[rows][row] = tile[row, column]
        entropies = log_z - mean_logits
        ctx.save_for_backward(states, weight, targets, log_z, entropies)
        return target_logits - log_z, entropies

    @staticmethod
    def backward(ctx, grad_log_probs, grad_entropies):
        states, weight, targets, log_z, entropies = ctx.saved_tensors
        if grad_log_probs is None:
            grad_log_probs = torch.zeros_like(log_z)
        with maybe_gather_lm_head_ctx(weight, None):
            grad_states = torch.zeros_like(states, dtype=torch.float32)
            grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
            for rows, entries, tile in logit_tiles(states, weight, ctx.dtype, ctx.temperature):
                tile -= log_z[rows, None]  # log p
                # Of a logit: d(log p of the target) = [is the target] - p, and d(entropy) = -p (log p + entropy).
                if grad_entropies is None:
                    grad = tile.exp_().mul_(-grad_log_probs[rows, None])
                else:
                    factor = (tile + entropies[rows, None]).mul_(grad_entropies[rows, None])
                    grad = tile.exp_().mul_(factor.add_(grad_log_probs[rows, None]).neg_())
                row, column = targets_in_tile(targets, rows, entries)
                grad[row, column] += grad_log_probs[rows][row]
                grad = grad.div_(ctx.temperature).to(ctx.dtype)
                grad_states[rows] += grad @ weight[entries].to(ctx.dtype)
                if grad_weight is not None:
                    grad_weight[entries] += grad.T @ states[rows].to(ctx.dtype)
        return grad_states.to(states.dtype), None if grad_weight is None else grad_weight.to(weight.dtype), None, None


def logit_tiles(states, weight, dtype: torch.dtype, temperature: float):
    """For each tile: the slice of its tokens, the slice of its vocabulary entries, and its logits over `temperature`,
    in float32."""
    for start in range(0, len(states), TOKENS):
        rows = slice(start, min(start + TOKENS, len(states)))
        part = states[rows].to(dtype)
        for first in range(0, len(weight), ENTRIES):
            entries = slice(first, min(first + ENTRIES, len(weight)))
            yield rows, entries, (part @ weight[entries].to(dtype).T).float().div_(temperature)


def targets_in_tile(targets, rows: slice, entries: slice):
    """The rows and columns of a tile in which its tokens' targets stand."""
    columns = targets[rows] - entries.start
    row = ((columns >= 0) & (columns < entries.stop - entries.start)).nonzero()[:, 0]
    return row, columns[row]
