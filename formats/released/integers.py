"""Products with weights in 8 bits that a CPU computes without making floats of them, by operators
of torch that are not documented: `kernels.kernel` alone builds them."""
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from formats.released.lowbit import LowBit
from formats.released.product import by_rows

quantized, norm = torch.ops.quantized, torch.linalg.vector_norm


class Int8:
    """8 bits by 8 bits (VNNI): each row of x is rounded too, in steps of its largest number.

    torch takes the largest of all rows, so each is divided by its own, and one more row, 1 -1 0 ..,
    keeps the steps the same whatever rows come together."""

    def __init__(self, low: LowBit):
        if not by_rows(low):                                        # the vision encoder's
            raise NotImplementedError("where neighbors share a scale, x is not to be rounded")
        weight = torch._make_per_channel_quantized_tensor(
            low.q, low.scale.double().flatten(), torch.zeros(len(low)).long(), 0)
        self.weight, self.dtype = quantized.linear_prepack(weight, None), low.dtype
        self.ends = F.pad(torch.tensor([[1.0, -1.0]]), (0, low.shape[1] - 2))     # [1, n]

    def dense(self) -> Tensor:
        weight = quantized.linear_unpack(self.weight)[0]
        scale = weight.q_per_channel_scales().to(self.dtype)[:, None]         # [m, 1]
        return weight.int_repr().to(self.dtype).mul_(scale)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])                                     # [M, n]
        top = norm(rows, math.inf, -1, True, dtype=torch.float32).clamp_(min=1e-30)    # [M, 1]
        y = quantized.linear_dynamic.default(torch.cat([rows / top, self.ends]), self.weight)[:-1]
        y = y.mul_(top).to(x.dtype).view(*x.shape[:-1], -1)                   # [.., m]
        return y if bias is None else y + bias
