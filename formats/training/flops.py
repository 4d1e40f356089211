"""How much a training step has to compute, and how fast this machine can."""
import time

import torch

from formats.training.products import Products


def flops(config, batch: dict, tune: str, train_vit: bool = False) -> float:
    """Of the matrix products that learning from a batch cannot do without, in FLOPs.

    config: a projector.SkyEyeConfig; batch: as data.collate makes it; tune, train_vit: as in
    train.TrainConfig. Attention is counted where a token may look, the last layer and the head
    where there is a token to learn; padding, and what --grad_checkpoint repeats, is not.
    """
    c, ids, products = config.llama, batch["ids"], Products(config.lora, tune, train_vit)
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
        seconds = min(square(a) for _ in range(4))
        best = max(best, 2 * size ** 3 / seconds)
    return best


def square(a: torch.Tensor) -> float:
    """-> seconds; reading a number waits for the device."""
    start = time.perf_counter()
    (a @ a)[0, 0].item()
    return time.perf_counter() - start
