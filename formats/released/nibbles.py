"""Products with weights in 4 bits that a CPU computes without making floats of them, by operators
of torch that are not documented: `kernels.kernel` alone builds them."""
import torch
import torch.nn.functional as F
from torch import Tensor

from formats.released.lowbit import LowBit
from formats.released.product import BLOCK

aten = torch.ops.aten
FEW = 64            # rows of x, also those of a weight that lie together


class Int4:
    """In bfloat16: few rows of x as they are, for the many of a prompt parts become floats.

    With AVX-512 a byte holds two numbers of a column, 32 rows apart, and 64 rows lie together:
    [m / 64, n, 2, 16]. NotImplementedError where a processor has another order.
    """

    def __init__(self, low: LowBit):
        (self.m, self.n), self.dtype, more = low.shape, low.dtype, -len(low) % FEW
        q, scale = (F.pad(part, (0, 0, 0, more)) if more else part            # to whole blocks
                    for part in (low.q, low.scale[:, :self.n // 32, 0]))
        parts = [self.joined(*rows) for rows in q.unflatten(0, (-1, 2, 32))]  # [n, 32] each
        self.weight = torch.stack(parts).view(len(q), -1)                     # [m, n/2]
        scale = (16 * scale).t().bfloat16()                                   # [n / 32, m]
        self.scale = torch.stack([scale, torch.zeros_like(scale)], -1)        # and the zero points
        q = (self.numbers(0, 1) + 8).int()                                    # [64, n], 0 .. 15
        if not torch.equal(aten._convert_weight_to_int4pack_for_cpu(q, 1), self.weight[:FEW]):
            raise NotImplementedError("an unknown order of 4-bit weights")

    def joined(self, a: Tensor, b: Tensor) -> Tensor:
        """32 rows of a LowBit's q and the 32 below, uint8[32, n/2] each -> uint8[n, 32]"""
        left, right = a & 15 | b << 4, a >> 4 | b & 0xF0
        return torch.cat([left, right], dim=1)[:, :self.n].t().contiguous() ^ 0x88

    def numbers(self, start: int, end: int) -> Tensor:
        """Of some blocks of rows -> int8[64 blocks, n], -8 .. 7"""
        packed = self.weight.view(-1, self.n, 2, 16)[start:end]
        q = torch.stack([packed & 15, packed >> 4], dim=1)                    # [b, 2, n, 2, 16]
        return q.permute(0, 1, 3, 4, 2).reshape(-1, self.n).view(torch.int8) - 8

    def floats(self, start: int, end: int) -> Tensor:
        q = self.numbers(start, end).bfloat16().unflatten(1, (-1, 32))        # [64 b, n / 32, 32]
        scale = self.scale[:, FEW * start:FEW * end, 0].t()[..., None]        # [64 b, n / 32, 1]
        return q.mul_(scale).flatten(1)

    def dense(self) -> Tensor:
        return self.floats(0, len(self.weight))[:self.m].to(self.dtype)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows, size = x.flatten(0, -2).bfloat16(), max(1, BLOCK // (FEW * self.n))     # [M, n]
        if len(rows) <= FEW:
            y = aten._weight_int4pack_mm_for_cpu(rows, self.weight, 32, self.scale)
        else:
            y = torch.cat([F.linear(rows, self.floats(i, i + size))
                           for i in range(0, self.scale.shape[1] // FEW, size)], dim=1)
        y = y[:, :self.m].to(x.dtype).reshape(*x.shape[:-1], -1)              # [.., m]
        return y if bias is None else y + bias
