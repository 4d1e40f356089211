"""The step from one token to the next as one thing: recorded as a CUDA graph, or compiled.

A step of LLaMA-2-7B launches about a thousand kernels, and Python needs longer to launch them than
a GPU to run them. A graph holds them all; replaying it runs them again, on other numbers in the
same places. For that every shape must stay the same: attention sees all slots of the cache, and a
mask hides those that are empty.

Source: https://docs.pytorch.org/docs/2.13/notes/cuda.html#cuda-graphs
"""
from collections.abc import Callable

import torch
from torch import Tensor

from llama import KVCache, Llama
from support.common import UserError

Step = Callable[[Tensor, Tensor, KVCache], Tensor]      # Llama.decode_step


class StaticKVCache(KVCache):
    """A view of a cache for one token a row: its tensors, all slots of them at every step."""

    def __init__(self, cache: KVCache):
        self.k, self.v, self.rows = cache.k, cache.v, cache.rows
        self.capacity, self.length = cache.capacity, cache.length

    def extend(self, positions: Tensor) -> Tensor:
        """positions: long[B, 1] -> bool[B, 1, 1, S]"""
        self.positions = positions
        slots = torch.arange(self.capacity, device=positions.device)          # [S]
        return (slots <= positions)[:, None, None]                            # [B, 1, 1, S]

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.write(layer, k, v)
        return self.k[layer], self.v[layer]


class StaticStep:
    """Llama.decode_step with shapes that never change."""

    def __init__(self, step: Step):
        self.step = step

    def __call__(self, ids: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
        logits = self.step(ids, positions, StaticKVCache(cache))
        cache.length += 1
        return logits


class CUDAGraphStep(StaticStep):
    """The same on a GPU, recorded once for each cache."""
    recorded = None             # the keys of the cache that the graph writes to

    def __call__(self, ids: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
        if self.recorded is not cache.k:
            self.record(ids, positions, cache)
        self.ids.copy_(ids)
        self.positions.copy_(positions)
        self.graph.replay()
        cache.length += 1
        return self.logits

    def record(self, ids: Tensor, positions: Tensor, cache: KVCache) -> None:
        self.ids, self.positions, length = ids.clone(), positions.clone(), cache.length
        warmup_stream = torch.cuda.Stream()             # libraries and compilers initialize there
        warmup_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warmup_stream):
            super().__call__(self.ids, self.positions, cache)
        torch.cuda.current_stream().wait_stream(warmup_stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = super().__call__(self.ids, self.positions, cache)
        self.recorded, cache.length = cache.k, length


def accelerate_decoding(llama: Llama, compile: bool = False) -> None:
    """Replace `llama.decode_step`; on a CPU, where nothing is recorded, only to compile it."""
    step = compile_step(llama.decode_step) if compile else llama.decode_step
    on_gpu = llama.lm_head.weight.is_cuda
    if on_gpu or compile:
        llama.decode_step = CUDAGraphStep(step) if on_gpu else StaticStep(step)


def compile_step(step: Step) -> Step:
    """torch.compile in one piece. UserError where it fails: there is no C++ compiler, for one."""
    compiled = torch.compile(step, fullgraph=True)

    def run(ids: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
        try:
            return compiled(ids, positions, cache)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise UserError(f"--compile: {str(error).splitlines()[0]}") from None
    return run
