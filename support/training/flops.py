"""support/training/flops.py"""
import time
from dataclasses import dataclass

import torch

# ---- flops ---------------------------------------------------------------------------------------
# How much a training step has to compute, and how fast this machine can.

def count_flops(config, batch: dict, tune: str, train_vit: bool = False) -> float:
    """Of the matrix products that learning from a batch cannot do without, in FLOPs.

    config: a projector.SkyEyeConfig; batch: as data.collate makes it; tune, train_vit: as in
    train.TrainConfig. Attention is counted where a token may look, the last layer and the head
    where there is a token to learn; padding, and what --grad_checkpoint repeats, is not.
    """
    c, ids, products = config.llama, batch["ids"], FlopCounter(config.lora, tune, train_vit)
    places = batch.get("positions", torch.arange(ids.shape[1], device=ids.device))
    sees = places.expand_as(ids) + 1                # how many tokens: also where questions share
    real, spoken = ids != 0, batch["labels"][:, 1:] != -100
    every = int(real.sum()), int(sees[real].sum())
    asked = int(spoken.sum()), int(sees[:, :-1][spoken].sum())
    grad = tune == "full"
    if batch["images"] is not None:
        grad = products.pictures(config, len(batch["images"]))
    for queries, pairs in [every] * (c.depth - 1) + [asked]:
        grad = products.layer(c.width, c.mlp, every[0], queries, pairs, grad)
    products.linear("lm_head", c.width, c.vocab_size, asked[0], grad)
    return products.total


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """-> FLOPs a second of a product of two squares, large enough to take some milliseconds."""
    size, best, seconds = 256, 0.0, 0.0
    generator = torch.Generator(device).manual_seed(0)
    while seconds < 0.004 and size < 8192:
        size *= 2
        a = torch.randn(size, size, device=device, dtype=dtype, generator=generator)
        seconds = min(time_square_product(a) for _ in range(4))
        best = max(best, 2 * size ** 3 / seconds)
    return best


def time_square_product(a: torch.Tensor) -> float:
    """-> seconds; reading a number waits for the device."""
    start = time.perf_counter()
    (a @ a)[0, 0].item()
    return time.perf_counter() - start


# ---- products ------------------------------------------------------------------------------------
# The matrix products of the two encoders in a training step, counted.

@dataclass
class FlopCounter:
    """total, in FLOPs: 2 a weight and token forwards, 2 for the gradient of the input where
    something before it learns, 2 for that of the weight where it learns itself."""
    lora: object | None     # lora.LoRAConfig
    tune: str               # as in train.TrainConfig
    train_vit: bool
    total: float = 0.0

    def add(self, n: int, m: int, tokens: int, grad: bool, learns: bool) -> bool:
        """An n x m matrix; grad: has its input a gradient? -> has its output?"""
        self.total += 2.0 * n * m * tokens * (1 + grad + learns)
        return grad or learns

    def pictures(self, config, count: int) -> bool:
        """ViT and projector; config: projector.SkyEyeConfig."""
        vit, P, learns = config.vit, config.vit.grid ** 2 + 1, self.train_vit
        self.add(3 * vit.patch_size ** 2, vit.width, count * (P - 1), False, learns)
        blocks = count * vit.depth * P
        self.add(vit.width, 4 * vit.width + 2 * vit.mlp, blocks, learns, learns)
        self.total += 2.0 * vit.width * blocks * P * (2 + 4 * learns)       # scores and sums
        tokens, D = count * config.visual_tokens, config.llama.width
        self.add(config.joined * vit.width, D, tokens, learns, True)
        return config.projector == "linear" or self.add(D, D, tokens, True, True)

    def linear(self, name: str, n: int, m: int, tokens: int, grad: bool) -> bool:
        """One of the language model's, and the LoRA beside it."""
        lora, learns = self.lora, self.tune != "projector"
        out = self.add(n, m, tokens, grad, self.tune == "full")
        experts = lora.experts if lora and name in ("gate_proj", "up_proj", "down_proj") else 0
        if experts or lora and name in lora.targets:
            r = lora.r * max(experts, 1)
            out |= self.add(r, m, tokens, self.add(n, r, tokens, grad, learns), learns)
        return out

    def layer(self, D: int, mlp: int, tokens: int, queries: int, pairs: int, grad: bool) -> bool:
        """pairs: of a query and a key it sees."""
        q = self.linear("q_proj", D, D, queries, grad)
        k, v = (self.linear(name, D, D, tokens, grad) for name in ("k_proj", "v_proj"))
        self.total += 2.0 * D * pairs * (2 + q + k + v + (q or k))
        h = grad | self.linear("o_proj", D, D, queries, q or k or v)
        if self.lora and self.lora.experts:                                 # the router
            self.add(D, self.lora.experts, queries, h, self.tune != "projector")
        inner = [self.linear(name, D, mlp, queries, h) for name in ("gate_proj", "up_proj")]
        return h | self.linear("down_proj", mlp, D, queries, any(inner))
