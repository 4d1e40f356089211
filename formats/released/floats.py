"""Products with weights as floats, in an order in which a CPU reads them faster."""
import torch
from torch import Tensor

mkldnn = torch.ops.mkldnn


class Blocked:
    """float[m, n] in the order in which oneDNN reads it, with the same numbers to the bit. Its
    operators are not documented: `kernels.kernel` alone builds one."""

    def __init__(self, weight: Tensor):
        self.weight = mkldnn._reorder_linear_weight(weight.detach(), 1)

    def dense(self) -> Tensor:
        return self.weight.to_dense()

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return mkldnn._linear_pointwise(x, self.weight, bias, "none", [], "")


class Strips:
    """float[m, n] in strips, a thread each: torch gives F.linear of one x to one thread.

    Where there are more rows than columns, an x's product is a sum of columns, so they lie
    together: [threads, n, m / threads]."""

    def __init__(self, weight: Tensor):
        self.m, self.n = weight.shape
        strips = weight.detach().view(torch.get_num_threads(), -1, self.n).mT
        self.weight = strips.contiguous() if self.m > self.n else strips

    def dense(self) -> Tensor:
        return self.weight.mT.reshape(self.m, self.n)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(1, -1, self.n).expand(len(self.weight), -1, -1)      # [threads, M, n]
        y = torch.bmm(rows, self.weight).transpose(0, 1)                      # [M, threads, ..]
        y = y.reshape(*x.shape[:-1], self.m)                                  # [.., m]
        return y if bias is None else y + bias
