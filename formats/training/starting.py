"""Start values of a new model that spare it some of the learning."""
import torch
from torch import nn


@torch.no_grad()
def draw_ordered(llama: nn.Module, ids: list[int]) -> None:
    """For ids that stand for 0, 1, 2, ..: what is near in value starts near.

    Sines and cosines of the value, as of a position (Attention Is All You Need, section 3.5), so
    their order need not be learned from examples. Widths are even."""
    embedding, head = llama.model.embed_tokens.weight, llama.lm_head.weight   # 2 x [V, D]
    D, values = embedding.shape[1], torch.arange(len(ids))[:, None]
    angles = 2 * torch.pi * values / torch.logspace(0.6, 2.5, D // 2)         # periods 4 .. 316
    code = torch.cat([angles.sin(), angles.cos()], dim=1) * 2 ** 0.5          # [ids, D], rms 1
    embedding[ids] = 0.5 * code.to(head)
    head[ids] = D ** -0.5 * code.to(head)
