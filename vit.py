"""Vision encoder: SkyEyeGPT's EVA-CLIP ViT-g/14, LLaVA's CLIP ViT-L/14, and smaller ones like them.

    x = patches(image) W + b,  with a class token in front and learned positions added
    x = x + attention(norm1(x));  x = x + mlp(norm2(x))          for each block (pre-norm)
    out = LayerNorm without weights (x)[1:]                      the class token is dropped

What differs from a textbook ViT: one fused qkv projection whose bias covers q and v but never k;
39 blocks and not 40; the last LayerNorm has eps 1e-5 and no weights of its own, those inside the
blocks have eps 1e-6. The variant "clip" has a LayerNorm in front instead of the last one, and a
quick GELU.

Names are those of `eva_vit_g.pth`. Sources: EVA, arXiv 2211.07636 section 2; EVA-CLIP, arXiv
2303.15389 section 2; CLIP, arXiv 2103.00020 section 2.4;
https://github.com/Vision-CAIR/MiniGPT-4/blob/d94738a/minigpt4/models/eva_vit.py

Shapes: B images, P patches, D width, H heads, d = D / H.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ViTConfig:
    image_size: int = 448       # side of the square image, pixels
    patch_size: int = 14        # side of a patch, pixels
    width: int = 1408           # D
    depth: int = 39             # blocks
    heads: int = 16             # H
    mlp_width: int = 6144       # hidden width of a block's MLP
    variant: str = "eva"        # or "clip"

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


PRESETS = {
    "eva_vit_g": ViTConfig(),
    "clip_vit_l_336": ViTConfig(336, 14, width=1024, depth=23, heads=16, mlp_width=4096,
                                variant="clip"),
    "nano": ViTConfig(image_size=128, patch_size=16, width=192, depth=8, heads=3, mlp_width=768),
}


class Linear(nn.Linear):
    """Building it draws no random numbers: ViT.init_weights does."""

    def reset_parameters(self) -> None:
        pass


class Conv2d(nn.Conv2d):
    def reset_parameters(self) -> None:
        pass


class PatchEmbed(nn.Module):
    """Cut the image into squares and project each: a convolution whose stride is its kernel."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.proj = Conv2d(3, config.width, config.patch_size, stride=config.patch_size,
                           bias=config.variant == "eva")

    def forward(self, images: Tensor) -> Tensor:                              # [B, 3, H, W]
        return self.proj(images).flatten(2).transpose(1, 2)                   # [B, P, D], by rows


class Attention(nn.Module):
    def __init__(self, config: ViTConfig):
        super().__init__()
        self.heads = config.heads
        self.qkv = Linear(config.width, 3 * config.width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(config.width))
        self.v_bias = nn.Parameter(torch.zeros(config.width))
        self.proj = Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        B, P, D = x.shape
        # A bias on k would add q.b to every score of a row, and softmax would take it away again.
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)                              # [B, P, 3D]
        q, k, v = qkv.view(B, P, 3, self.heads, -1).permute(2, 0, 3, 1, 4)    # 3 x [B, H, P, d]
        x = F.scaled_dot_product_attention(q, k, v)                           # [B, H, P, d]
        return self.proj(x.transpose(1, 2).reshape(B, P, D))                  # [B, P, D]


class MLP(nn.Module):
    def __init__(self, config: ViTConfig):
        super().__init__()
        self.activation = quick_gelu if config.variant == "clip" else F.gelu
        self.fc1 = Linear(config.width, config.mlp_width)
        self.fc2 = Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:                                   # [B, P, D]
        return self.fc2(self.activation(self.fc1(x)))                         # [B, P, D]


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, config: ViTConfig):
        super().__init__()
        eps = 1e-5 if config.variant == "clip" else 1e-6
        self.norm1 = nn.LayerNorm(config.width, eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))                                      # [B, P, D]
        return x + self.mlp(self.norm2(x))                                    # [B, P, D]


class ViT(nn.Module):
    """images: float[B, 3, H, W], CLIP-normalized -> float[B, P, D], a vector a patch, by rows."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        clip = config.variant == "clip"
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid ** 2 + 1, config.width))
        self.norm_pre = nn.LayerNorm(config.width) if clip else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))

    def forward(self, images: Tensor) -> Tensor:                              # [B, 3, H, W]
        x = self.patch_embed(images)                                          # [B, P, D]
        cls = self.cls_token.expand(len(x), -1, -1)                           # [B, 1, D]
        x = self.norm_pre(torch.cat([cls, x], dim=1) + self.pos_embed)        # [B, 1 + P, D]
        for block in self.blocks:
            x = block(x)                                                      # [B, 1 + P, D]
        if self.config.variant == "eva":
            x = F.layer_norm(x.float(), x.shape[-1:], eps=1e-5).to(x.dtype)   # [B, 1 + P, D]
        return x[:, 1:]                                                       # [B, P, D]

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start values, for a model that starts from nothing: small random matrices, sine
        positions, and q, k, v, proj such that a patch attends to its neighbors.

        "Mimetic Initialization of Self-Attention Layers", arXiv 2305.09828 section 4. From few
        images a plain ViT learns much more slowly."""
        for module in self.modules():
            if isinstance(module, Linear | Conv2d):
                init_linear(module)
        D, H = self.config.width, self.config.heads
        self.pos_embed[0, 1:] = sine_positions(self.config.grid, D)
        for block in self.blocks:
            w_q, w_k, w_v = block.attn.qkv.weight.chunk(3)                    # 3 x [D, D]
            for q, k in zip(w_q.chunk(H), w_k.chunk(H), strict=True):         # [d, D] each
                q[:], k[:] = factorize(0.7 * torch.eye(D) + 0.7 * noise(D), D // H)
            v, out = factorize(0.4 * noise(D) - 0.4 * torch.eye(D), D)
            w_v.copy_(v)
            block.attn.proj.weight.copy_(out.T)


# ---- start values --------------------------------------------------------------------------------

def init_linear(module: Linear | Conv2d) -> None:
    nn.init.trunc_normal_(module.weight, std=0.02)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def noise(width: int) -> Tensor:
    """-> float[width, width] with columns of length about 1"""
    return torch.randn(width, width) / width ** 0.5


def factorize(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """float[D, D] -> a, b: float[rank, D] with a.T @ b the best approximation of that rank."""
    u, s, v = torch.linalg.svd(matrix)
    root = s[:rank].sqrt()[:, None]
    return root * u.T[:rank], root * v[:rank]


# ---- positions -----------------------------------------------------------------------------------

def sine_positions(grid: int, width: int) -> Tensor:
    """-> float[grid * grid, width]: sines and cosines of the row, then of the column."""
    rates = 10000 ** (-torch.arange(width // 4) / (width // 4))               # [D/4]
    angles = torch.arange(grid)[:, None] * rates                              # [grid, D/4]
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)                    # [grid, D/2]
    rows, columns = waves[:, None].expand(-1, grid, -1), waves[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=-1).reshape(grid * grid, width)


def resize_positions(pos_embed: Tensor, grid: int) -> Tensor:
    """float[1, 1 + n*n, D] -> float[1, 1 + grid*grid, D]; the class token's row stays as it is.

    Plain bicubic in float32, as upstream. timm's antialiased one is another kernel (a = -0.5)."""
    cls, patches = pos_embed.float().split([1, pos_embed.shape[1] - 1], dim=1)
    side = math.isqrt(patches.shape[1])
    if side == grid:
        return pos_embed
    patches = patches.view(1, side, side, -1).permute(0, 3, 1, 2)             # [1, D, n, n]
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([cls, patches.flatten(2).transpose(1, 2)], dim=1)        # [1, 1 + P, D]


if __name__ == "__main__":                      # prints the shapes and parameters of an example
    from support.tools.model_examples import show_vit
    show_vit()
