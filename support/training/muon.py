"""Muon: momentum whose update of a matrix is made orthogonal, so all directions learn alike.

The gradient of a matrix has a few large singular values; AdamW steps mostly along these. Muon
replaces them all by about 1: USV' becomes UV'. Embeddings, the head and vectors, whose rows are not
directions of one space, stay with AdamW.

Sources: https://kellerjordan.github.io/posts/muon/; Moonlight, arXiv 2502.16982 section 2.
"""
import torch
from torch import Tensor

RATE = 20                       # a matrix learns at this times the rate of the others
MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)        # of the quintic, as published


class Muon(torch.optim.AdamW):
    """AdamW that leaves the parameters of the groups with muon=True to Muon."""

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if group["muon"] and p.grad is not None:
                    self.step_matrix(p, group["lr"] * RATE, group["weight_decay"])
        super().step(closure)               # of the rest: those that still have a gradient

    def step_matrix(self, p: Tensor, lr: float, weight_decay: float) -> None:
        """p: float[n_out, n_in]"""
        state = self.state[p]
        momentum = state.setdefault("momentum", torch.zeros_like(p))
        state.setdefault("step", torch.zeros(()))           # AdamW asks for it when it is loaded
        momentum.mul_(MOMENTUM).add_(p.grad)
        update = orthogonalize(p.grad + MOMENTUM * momentum)                  # Nesterov's
        scale = lr * max(1, p.shape[0] / p.shape[1]) ** 0.5
        p.mul_(1 - lr * weight_decay).add_(update, alpha=-scale)
        p.grad = None


def orthogonalize(x: Tensor, steps: int = 5) -> Tensor:
    """float[a, b] -> the same with singular values between about 0.7 and 1.2, by Newton-Schulz.

    A step takes each singular value s to 3.4445 s - 4.775 s^3 + 2.0315 s^5. One matrix at a time:
    on a CPU a batch of small ones takes longer.
    """
    wide = x if x.shape[0] <= x.shape[1] else x.mT                            # [a, b], a <= b
    wide = wide / (wide.norm() + 1e-7)
    c1, c3, c5 = COEFFICIENTS
    for _ in range(steps):
        gram = wide @ wide.mT                                                 # [a, a]
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=c3, alpha=c5), wide, beta=c1)
    return wide if x.shape[0] <= x.shape[1] else wide.mT


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Of a block, or of the projector."""
    return parameter.ndim == 2 and any(
        part in name for part in (".layers.", ".blocks.", "llama_proj"))
