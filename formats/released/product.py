"""F.linear with a weight in 8 or 4 bits, which keeps no float weight for the backward pass."""
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1 << 21     # numbers that are floats at once on a CPU, where they stay in its cache
ROWS = 64           # a CPU multiplies with so many rows of a weight in the time of fewer
FEW = 8             # tokens, at which reading the weight costs more than the product


class Product(torch.autograd.Function):
    """x: float[.., n], weight: LowBit[m, n] -> float[.., m]"""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ctx.weight = weight
        y = multiply(x, weight)
        return y if bias is None else y + bias

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, Tensor | None]:
        return grad @ ctx.weight.dequantize().to(grad.dtype), None, None


def by_rows(weight: Tensor) -> bool:
    """8 bits and one scale a row, so that a product with integers can be scaled afterwards."""
    return weight.q.shape == weight.shape and weight.scale.shape[1] == 1


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    m, n = weight.shape
    if x.device.type != "cpu":
        return F.linear(x, weight.dequantize())
    if x.dtype == weight.dtype == torch.bfloat16 and by_rows(weight) \
            and x.numel() <= FEW * n:               # 3 times as fast, for bf16 alone
        y = torch._weight_int8pack_mm(x.reshape(-1, n), weight.q, weight.scale.flatten())
        return y.unflatten(0, x.shape[:-1])
    size = max(1, BLOCK // (ROWS * n)) * ROWS
    parts = [F.linear(x, weight.dequantize(slice(i, i + size))) for i in range(0, m, size)]
    return torch.cat(parts, dim=-1)
