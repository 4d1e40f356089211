"""Models whose weights are sine waves, the same everywhere, and numbers that they must give.

The numbers were computed by transformers 5.23 and peft 0.21 in float64 and are held against them
again by test_parity.py; test_golden.py holds our code against them where they are not installed.
The whole models, "skyeye" (MiniGPT-v2's: EVA, four patches joined, LLaMA, LoRA) and "llava", were
put together of their parts: a vision encoder, linear layers, LlamaForCausalLM and its loss.

golden.json has what else upstream's behavior fixes: token ids and labels of prompts, boxes as text,
normalized pictures, the learning rate. Each of its parts says how it came about.
"""
import dataclasses
import json
from functools import partial
from pathlib import Path

import torch

import tiny
from llama import Llama, LlamaConfig
from projector import SkyEyeConfig, SkyEyeGPT
from vit import ViT

VECTORS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))

LANGUAGE = LlamaConfig(vocab_size=61, width=50, depth=3, heads=5, mlp_width=44, max_positions=64)
EVA = tiny.VIT
CLIP = dataclasses.replace(EVA, variant="clip")
WHOLE = {"skyeye": SkyEyeConfig(vit=EVA, llama=LANGUAGE, lora=tiny.LORA),
         "llava": SkyEyeConfig(CLIP, LANGUAGE, None, 1, "mlp2x_gelu", "vicuna_v1")}


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


def rows(config):
    """ids and labels, long[2, T]: a picture each, a question, an answer."""
    N = config.visual_tokens
    x = torch.cat([ids()[:, :4].clamp(min=3), torch.full((2, N), -1), ids()[:, 4:16]], dim=1)
    labels = torch.where(torch.arange(x.shape[1]) < N + 9, -100, x)
    labels[1, -2:] = -100
    return x, labels


def whole(name, with_labels):
    x, labels = rows(WHOLE[name])
    return wave(SkyEyeGPT(WHOLE[name]))(x, pictures(), labels if with_labels else None)


def picked(x):
    """Eight numbers from all over a tensor; of a single number itself."""
    flat = x.flatten()
    return flat[torch.linspace(0, len(flat) - 1, min(8, len(flat))).long()]


GOLDEN = {
    "language": [0.226484, -0.25048, 0.29036, -0.310657, 0.065952, 0.241925, 0.32192, 0.062995],
    "eva": [0.163843, 1.260463, -0.766165, -1.149444, -0.60458, -0.037901, -0.008807, 1.064481],
    "skyeye": [-0.167296, 0.464209, 0.261709, -0.403552, -0.646285, 0.321995, 0.782343, -1.262406],
    "skyeye loss": [4.43779],
    "llava": [-0.540308, 0.052667, 0.984603, 0.42033, -0.676564, 0.519825, 0.984681, -1.788219],
    "llava loss": [4.369986],
    "clip": [0.851884, 19.369175, -1.152212, -0.032476, 0.073363, -3.515041, -0.222036, 23.321969],
}
OURS = {
    "language": lambda: wave(Llama(LANGUAGE))(ids()),
    "eva": lambda: wave(ViT(EVA))(pictures()),
    "clip": lambda: wave(ViT(CLIP))(pictures()),
    **{name: partial(whole, name, False) for name in WHOLE},
    **{f"{name} loss": partial(whole, name, True) for name in WHOLE},
}
