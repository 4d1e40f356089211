"""support/inference/cuda_graphs.py"""
from collections.abc import Callable

import torch
from torch import Tensor, nn

# ---- replay --------------------------------------------------------------------------------------
# The step from one word to the next as one thing: recorded as a CUDA graph, or compiled.
#
# A step of LLaMA-2-7B starts about a thousand kernels, and Python needs longer to start them than a
# GPU to run them. A graph holds them all; a call runs them again, on other numbers in their places.
#
# Source: https://docs.pytorch.org/docs/2.13/notes/cuda.html#cuda-graphs

class StaticStep:
    """Llama.step, its shapes always the same: it looks at all slots of the cache, by a mask."""

    def __init__(self, step):
        self.step = step

    def __call__(self, ids: Tensor, positions: Tensor, cache) -> Tensor:
        cache.fixed = True
        try:
            logits = self.step(ids, positions, cache)
        finally:                                        # Ctrl-C while it compiles
            cache.fixed = False
        cache.used += 1
        return logits


class CUDAGraphStep(StaticStep):
    """The same on a GPU, recorded once for each cache."""
    recorded = None

    def __call__(self, ids: Tensor, positions: Tensor, cache) -> Tensor:
        if self.recorded is not cache.k:
            self.record(ids, positions, cache)
        self.ids.copy_(ids)
        self.positions.copy_(positions)
        self.graph.replay()
        cache.used += 1
        return self.logits

    def record(self, ids: Tensor, positions: Tensor, cache) -> None:
        self.ids, self.positions, used = ids.clone(), positions.clone(), cache.used
        aside = torch.cuda.Stream()                     # libraries and compilers get ready there
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            super().__call__(self.ids, self.positions, cache)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = super().__call__(self.ids, self.positions, cache)
        self.recorded, cache.used = cache.k, used


def accelerate_decoding(llama: nn.Module, compile: bool = False) -> None:
    """Give a language model such a step; on a CPU, where none is recorded, only to compile it."""
    step = compile_step(llama.step) if compile else llama.step
    if llama.lm_head.weight.is_cuda or compile:
        llama.step = (CUDAGraphStep if llama.lm_head.weight.is_cuda else StaticStep)(step)


# ---- compiling -----------------------------------------------------------------------------------
# torch.compile, whose failures are told in a line.

def compile_step(step: Callable) -> Callable:
    """In one piece. ValueError: there is no compiler, say."""
    made = torch.compile(step, fullgraph=True)

    def run(*given):
        try:
            return made(*given)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise ValueError(f"--compile: {str(error).splitlines()[0]}") from None
    return run
