"""How many FLOPs a training step needs, and how many a second this machine reaches.

The ratio of the two is the model FLOPs utilization (MFU; PaLM, arXiv 2204.02311 appendix B).

A product of [tokens, n] with a weight [n, m] takes 2 n m tokens FLOPs forwards, as many for the
gradient of its input where something before it is trained, and as many for the gradient of the
weight where that is trained itself.
"""
import time

import torch
from torch import Tensor

from lora import LoRAConfig
from projector import SkyEyeConfig
from vit import ViTConfig


def is_trained(name: str, tune: str, train_vit: bool = False) -> bool:
    """Is the parameter of this name? tune, train_vit: of train.TrainConfig."""
    if name.startswith("visual_encoder."):
        return train_vit
    if name.startswith("llama_proj.") or tune == "full":
        return True
    return ".lora_" in name and tune != "projector"


def count_flops(config: SkyEyeConfig, batch: dict[str, Tensor | None], tune: str,
                train_vit: bool = False) -> float:
    """-> the FLOPs of the matrix products that one forward and backward pass cannot do without.

    batch: as data.collate makes it; tune, train_vit: fields of train.TrainConfig. Attention is
    counted for the keys a query attends to, last layer and head for the supervised positions.
    Padding is not counted, nor what --grad_checkpoint computes twice.
    """
    ids, labels = batch["ids"], batch["labels"][:, 1:]
    positions = batch.get("positions", torch.arange(ids.shape[1], device=ids.device))
    keys = positions.expand_as(ids) + 1             # what a query attends to, in packed rows too
    real, supervised = ids != 0, labels != -100
    tokens, all_pairs = int(real.sum()), int(keys[real].sum())
    targets, target_pairs = int(supervised.sum()), int(keys[:, :-1][supervised].sum())

    llama, counter = config.llama, FlopCounter(config.lora, tune, train_vit)
    grad = tune == "full"
    if batch["images"] is not None:
        if batch["images"].ndim == 4:               # pixels; else the encoder's output is there
            counter.vision_encoder(config.vit, len(batch["images"]))
        grad = counter.projector(config, len(batch["images"]))
    for _ in range(llama.depth - 1):
        grad = counter.decoder_layer(llama.width, llama.mlp_width, tokens, tokens, all_pairs, grad)
    grad = counter.decoder_layer(llama.width, llama.mlp_width, tokens, targets, target_pairs, grad)
    counter.linear("lm_head", llama.width, llama.vocab_size, targets, grad)
    return counter.total


class FlopCounter:
    """Adds up FLOPs in `total`. The methods take whether their input needs a gradient (`grad`) and
    return whether their output does. tune: of train.TrainConfig; "": nothing is trained, only the
    forward pass is counted."""

    def __init__(self, lora: LoRAConfig | None, tune: str = "", train_vit: bool = False):
        self.lora, self.train_vit = lora, train_vit
        self.train_base, self.train_projector = tune == "full", bool(tune)
        self.train_lora = tune not in ("", "projector")
        self.total = 0.0

    def matmul(self, n: int, m: int, tokens: int, grad: bool, trained: bool) -> bool:
        """[tokens, n] times a weight [n, m]."""
        products = 1
        if grad:
            products += 1
        if trained:
            products += 1
        self.total += 2.0 * n * m * tokens * products
        return grad or trained

    def vision_encoder(self, config: ViTConfig, count: int) -> None:
        """For so many pictures."""
        self.patch_embed(config, count)
        for _ in range(config.depth):
            self.vision_attention(config, count)
            self.vision_mlp(config, count)

    def patch_embed(self, config: ViTConfig, count: int) -> None:
        patches = count * config.grid ** 2
        self.matmul(3 * config.patch_size ** 2, config.width, patches, False, self.train_vit)

    def vision_attention(self, config: ViTConfig, count: int) -> None:
        """Of one block; a picture's positions are its patches and the class token."""
        trained, P = self.train_vit, config.grid ** 2 + 1
        self.matmul(config.width, 4 * config.width, count * P, trained, trained)
        products = 6 if trained else 2          # scores, weighted sums; and two gradients of each
        self.total += 2.0 * config.width * count * P * P * products

    def vision_mlp(self, config: ViTConfig, count: int) -> None:
        positions = count * (config.grid ** 2 + 1)
        self.matmul(config.width, 2 * config.mlp_width, positions, self.train_vit, self.train_vit)

    def projector(self, config: SkyEyeConfig, count: int) -> bool:
        tokens, D, trained = count * config.visual_tokens, config.llama.width, self.train_projector
        self.matmul(config.patches_per_token * config.vit.width, D, tokens, self.train_vit, trained)
        if config.projector != "linear":                            # a second layer
            self.matmul(D, D, tokens, trained, trained)
        return trained

    def linear(self, name: str, n: int, m: int, tokens: int, grad: bool) -> bool:
        """A linear layer of the language model, with its LoRA if it has one."""
        out_grad = self.matmul(n, m, tokens, grad, self.train_base)
        rank = self.lora_rank(name)
        if rank:
            low_grad = self.matmul(n, rank, tokens, grad, self.train_lora)
            out_grad |= self.matmul(rank, m, tokens, low_grad, self.train_lora)
        return out_grad

    def lora_rank(self, name: str) -> int:
        """Of a layer's LoRA, all experts together; 0: it has none."""
        if self.lora and self.lora.experts and name in ("gate_proj", "up_proj", "down_proj"):
            return self.lora.r * self.lora.experts
        return self.lora.r if self.lora and name in self.lora.targets else 0

    def decoder_layer(self, D: int, mlp: int, tokens: int, queries: int, pairs: int, grad: bool
                      ) -> bool:
        """tokens: positions with key and value; queries: positions whose output is needed; pairs:
        of a query and a key it attends to."""
        h = self.attention(D, tokens, queries, pairs, grad) or grad             # residual
        return self.mlp(D, mlp, queries, h) or h                                # residual

    def attention(self, D: int, tokens: int, queries: int, pairs: int, grad: bool) -> bool:
        q = self.linear("q_proj", D, D, queries, grad)
        k = self.linear("k_proj", D, D, tokens, grad)
        v = self.linear("v_proj", D, D, tokens, grad)
        # Scores q k^T and weighted sums of v; gradients of q, of k, of v and of the weights.
        products = 2 + sum([q, k, v, q or k])
        self.total += 2.0 * D * pairs * products
        return self.linear("o_proj", D, D, queries, q or k or v)

    def mlp(self, D: int, mlp: int, queries: int, grad: bool) -> bool:
        if self.lora and self.lora.experts:
            self.matmul(D, self.lora.experts, queries, grad, self.train_lora)   # the router
        gate = self.linear("gate_proj", D, mlp, queries, grad)
        up = self.linear("up_proj", D, mlp, queries, grad)
        return self.linear("down_proj", mlp, D, queries, gate or up)


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """-> FLOPs a second of a product of two square matrices that takes at least 4 ms."""
    size, best, seconds = 256, 0.0, 0.0
    generator = torch.Generator(device).manual_seed(0)          # the run's own stays untouched
    while seconds < 0.004 and size < 8192:
        size *= 2
        a = torch.randn(size, size, device=device, dtype=dtype, generator=generator)
        seconds = min(time_matmul(a) for _ in range(4))
        best = max(best, 2 * size ** 3 / seconds)
    return best


def time_matmul(a: Tensor) -> float:
    """-> seconds; item() waits for the device."""
    start = time.perf_counter()
    (a @ a)[0, 0].item()
    return time.perf_counter() - start
