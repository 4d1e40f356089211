"""Models whose weights are sine waves, the same everywhere, and numbers that they must give.

The numbers were computed by transformers 5.23 in float64 and are held against it again by
test_parity.py; test_golden.py holds our code against them where transformers is not installed.
"""
import dataclasses

import torch

import tiny
from llama import Llama, LlamaConfig
from vit import ViT

LANGUAGE = LlamaConfig(vocab_size=61, width=50, depth=3, heads=5, mlp_width=44, max_positions=64)
EVA = tiny.VIT
CLIP = dataclasses.replace(EVA, variant="clip")


def wave(model):
    """Give every parameter values of a sine whose pace follows from its place in the model."""
    with torch.no_grad():
        for i, (name, p) in enumerate(model.named_parameters()):
            turns = torch.arange(p.numel(), dtype=torch.float64) * (0.7 + 0.013 * i) + i
            scale = 2.0 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.3
            one = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            p.copy_((one + scale * turns.sin()).view(p.shape))
    return model.eval()


def pictures():
    return torch.linspace(0, 700, 2 * 3 * 30 * 30).cos().view(2, 3, 30, 30)


def ids():
    return (torch.arange(40).view(2, 20) * 7) % 61


def picked(x):
    """Eight numbers from all over a tensor."""
    flat = x.flatten()
    return flat[torch.linspace(0, len(flat) - 1, 8).long()]


GOLDEN = {
    "language": [0.226484, -0.25048, 0.29036, -0.310657, 0.065952, 0.241925, 0.32192, 0.062995],
    "eva": [0.163843, 1.260463, -0.766165, -1.149444, -0.60458, -0.037901, -0.008807, 1.064481],
    "clip": [0.851884, 19.369175, -1.152212, -0.032476, 0.073363, -3.515041, -0.222036, 23.321969],
}
OURS = {
    "language": lambda: wave(Llama(LANGUAGE))(ids()),
    "eva": lambda: wave(ViT(EVA))(pictures()),
    "clip": lambda: wave(ViT(CLIP))(pictures()),
}
