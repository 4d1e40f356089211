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
    """Few rows of x as they are, in bfloat16; for the many of a prompt parts become floats.

    With AVX-512 a byte holds two numbers of a column, 32 rows apart, and 64 rows lie together:
    [m / 64, n, 2, 16]. NotImplementedError where a processor has another order.
    """

    def __init__(self, low: LowBit):
        self.n, self.dtype = low.shape[1], low.dtype
        blocks = low.q.unflatten(0, (-1, 2, 32))                              # [m / 64, 2, 32, n/2]
        self.weight = torch.stack([self.joined(*rows) for rows in blocks]).view(len(low), -1)
        scale = (16 * low.scale[:, :self.n // 32, 0]).t().bfloat16()          # [n / 32, m]
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
        q = self.numbers(start, end).to(self.dtype).unflatten(1, (-1, 32))    # [64 b, n / 32, 32]
        scale = self.scale[:, FEW * start:FEW * end, 0].t()[..., None]        # [64 b, n / 32, 1]
        return q.mul_(scale).flatten(1)

    def dense(self) -> Tensor:
        return self.floats(0, len(self.weight))

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if x[..., 0].numel() > FEW:
            size, end = max(1, BLOCK // (FEW * self.n)), self.scale.shape[1] // FEW
            y = torch.cat([F.linear(x, self.floats(i, i + size)) for i in range(0, end, size)], -1)
        else:
            rows = x.flatten(0, -2).bfloat16()                                # [M, n]
            y = aten._weight_int4pack_mm_for_cpu(rows, self.weight, 32, self.scale)
            y = y.view(*x.shape[:-1], -1).to(x.dtype)                         # [.., m]
        return y if bias is None else y + bias
