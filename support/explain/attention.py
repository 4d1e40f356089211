"""Attention written out, and what can be read from a model while it answers.

    weights = softmax(q k^T / sqrt(d))        rows sum to one
    out = weights v

The model computes the same in one fused kernel (F.scaled_dot_product_attention), which never shows
the weights. Here they are computed a second time, beside the model, from the inputs that forward
hooks catch. That works with a LoRA or without, in 16, 8 and 4 bits, and with packed weights.

An answer is read at the places that its tokens were predicted from. The token at place t is
predicted by what the last layer made of the token at t - 1, so "where it looked for a token" is the
row of weights of the place before it.

Shapes: B rows, H heads, d width of a head, T tokens, S tokens that may be seen, D width, V
vocabulary, L layers, A tokens of an answer, P patches, N visual tokens of an image.
"""
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import llama
import vit
from llama import apply_rope
from lora import LoRALinear
from projector import SkyEyeConfig, SkyEyeGPT
from support.common import Box

LIKELIEST = 5               # alternatives that are kept of each token

# ---- attention, written out ----------------------------------------------------------------------

def softmax_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None
                      ) -> tuple[Tensor, Tensor]:
    """q: [B, H, T, d]; k, v: [B, H, S, d]; visible: bool[T, S], what a token may see, None: all ->
    weights: float32[B, H, T, S], and their sums of v, float32[B, H, T, d]"""
    scores = q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])     # [B, H, T, S]
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    weights = scores.softmax(-1)                                              # [B, H, T, S]
    return weights, weights @ v.float()


def vit_heads(layer: vit.Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x: float[B, P, D], the input of the layer -> q, k, v: float[B, H, P, d]"""
    bias = torch.cat([layer.q_bias, torch.zeros_like(layer.q_bias), layer.v_bias])
    qkv = F.linear(x, layer.qkv.weight, bias)                                 # [B, P, 3D]
    return qkv.unflatten(-1, (3, layer.heads, -1)).permute(2, 0, 3, 1, 4).unbind()


def llama_heads(layer: llama.Attention, x: Tensor, rope: tuple[Tensor, Tensor]
                ) -> tuple[Tensor, Tensor, Tensor]:
    """x: float[B, T, D], rope: the angles, as the layer gets them -> q and k, rotated, and v:
    float[B, H, T, d]"""
    q, k, v = map(layer.split_heads, layer.qkv(x))                            # 3 x [B, H, T, d]
    return apply_rope(q, *rope), apply_rope(k, *rope), v


def causal(places: Tensor, length: int) -> Tensor:
    """What the tokens at places: long[W] may see of `length`: bool[W, S], themselves and before."""
    return torch.arange(length, device=places.device) <= places[:, None]


# ---- an answer, read -----------------------------------------------------------------------------

@dataclass(frozen=True)
class Reading:
    """What was read while a model was given a prompt and the answer to it, in one pass."""
    ids: list[int]              # the prompt's
    tokens: list[int]           # the answer's, A of them
    attention: Tensor           # float[L, A, T], mean over heads: where each token was read from
    hidden: Tensor              # float[L, A, D], what each layer made of these places
    lens_ids: Tensor            # long[L, A], the token that each layer would say, were it the last
    lens: Tensor                # float[L, A], its probability there
    likeliest: Tensor           # long[A, LIKELIEST], the most probable tokens
    probabilities: Tensor       # float[A, LIKELIEST], theirs
    probability: Tensor         # float[A], of the token that stands in the answer


@torch.inference_mode()
def read_answer(model: SkyEyeGPT, ids: Sequence[int], tokens: Sequence[int], images: Tensor | None
                ) -> Reading:
    """ids: the prompt, image slots < 0; tokens: its answer, one at least; images: as
    SkyEyeGPT.embed takes them."""
    network = model.llama_model
    device = network.lm_head.weight.device
    given = torch.tensor([[*ids, *tokens[:-1]]], device=device)               # [1, T]
    places = torch.arange(len(ids) - 1, given.shape[1], device=device)        # [A]
    attention: list[Tensor] = []
    hidden: list[Tensor] = []

    def keep_attention(layer: llama.Attention, inputs: tuple) -> None:
        x, rope = inputs[:2]
        q, k, v = llama_heads(layer, x, rope)
        weights, _ = softmax_attention(q[:, :, places], k, v, causal(places, x.shape[1]))
        attention.append(weights[0].mean(dim=0).cpu())                        # [A, T]

    def keep_hidden(block: nn.Module, inputs: tuple, output: Tensor) -> None:
        hidden.append(output[0, places])                                      # [A, D]

    handles = [handle for block in network.model.layers for handle in (
        block.self_attn.register_forward_pre_hook(keep_attention),
        block.register_forward_hook(keep_hidden))]
    try:
        network.model(model.embed(given, images))
    finally:
        for handle in handles:
            handle.remove()
    # The logit lens: each layer's output through the last norm and the head.
    best = []
    for h in hidden:
        p = network.lm_head(network.model.norm(h)).float().softmax(-1)        # [A, V]
        best.append(p.max(-1))                                                # [A] each
    last = p.cpu()                                                            # of the last layer
    probabilities, likeliest = last.topk(min(LIKELIEST, last.shape[-1]))
    return Reading(list(ids), list(tokens), torch.stack(attention),
                   torch.stack(hidden).float().cpu(),
                   torch.stack([b.indices for b in best]).cpu(),
                   torch.stack([b.values for b in best]).cpu(), likeliest, probabilities,
                   last.gather(1, torch.tensor(tokens)[:, None])[:, 0])


@torch.inference_mode()
def patch_attention(encoder: vit.ViT, image: Tensor, patch: int) -> Tensor:
    """image: float[3, H, W] -> where a patch looks in each block of the vision encoder, by the mean
    over heads, the class token left out: float[blocks, P]"""
    rows: list[Tensor] = []

    def keep(layer: vit.Attention, inputs: tuple) -> None:
        q, k, v = vit_heads(layer, inputs[0])
        weights, _ = softmax_attention(q[:, :, patch + 1:patch + 2], k, v)    # [1, H, 1, 1 + P]
        rows.append(weights[0, :, 0, 1:].mean(dim=0).cpu())                   # [P]

    handles = [block.attn.register_forward_pre_hook(keep) for block in encoder.blocks]
    try:
        encoder(image[None].to(encoder.pos_embed.device, encoder.pos_embed.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(rows)


@contextmanager
def without_lora(model: nn.Module) -> Iterator[int]:
    """Inside it the model computes as if it had no LoRA -> how many layers have one. An expert's
    LoRA is one too."""
    layers = [module for module in model.modules() if isinstance(module, LoRALinear)]
    scales = [layer.scale for layer in layers]
    try:
        for layer in layers:
            layer.scale = 0.0
        yield len(layers)
    finally:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scale = scale


# ---- from tokens to the picture ------------------------------------------------------------------

def over_patches(weights: Tensor, slots: Sequence[bool], config: SkyEyeConfig, picture: int = 0
                 ) -> Tensor:
    """Attention to the tokens, float[.., T], of which `slots` are image slots -> to the patches of
    a picture, float[.., grid, grid]. A visual token's share is spread evenly over the neighboring
    patches that it was made of; the sum stays what the picture got."""
    N, joined, grid = config.visual_tokens, config.patches_per_token, config.vit.grid
    own = weights[..., torch.tensor(slots[:weights.shape[-1]])]               # [.., pictures * N]
    own = own[..., picture * N:(picture + 1) * N]                             # [.., N]
    return (own / joined).repeat_interleave(joined, dim=-1).unflatten(-1, (grid, grid))


def share_inside(heat: Tensor, box: Box, width: float = 1, height: float = 1) -> Tensor:
    """heat: float[.., grid, grid] over a picture of this size -> the part of it that lies in the
    box, float[..]; a patch that the box cuts counts by its area inside."""
    rows, columns = heat.shape[-2:]
    x1, x2 = (columns * x / width for x in box[::2])
    y1, y2 = (rows * y / height for y in box[1::2])
    inside = covered(rows, y1, y2)[:, None] * covered(columns, x1, x2)        # [grid, grid]
    return (heat * inside).sum(dim=(-2, -1)) / heat.sum(dim=(-2, -1))


def covered(cells: int, start: float, end: float) -> Tensor:
    """How much of each of the cells 0 .. 1, 1 .. 2, .. lies between start and end: float[cells]"""
    left = torch.arange(cells, dtype=torch.float32)
    return (left + 1).clamp(max=end).sub(left.clamp(min=start)).clamp(min=0)
