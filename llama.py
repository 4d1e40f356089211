"""Language model: LLaMA-2, its KV cache, generation of one answer.

    h = h + o_proj(attention(RoPE(q), RoPE(k), v))        of input_layernorm(h)
    h = h + down_proj(silu(gate_proj(g)) * up_proj(g))    with g = post_attention_layernorm(h)

What differs from a textbook transformer: RMSNorm, rotary positions in the half-split form, SwiGLU,
no biases anywhere, an output head of its own. Parameter names are those of the Hugging Face files.

Read down to the ruler. Below it stands the same mathematics, faster.

Sources: LLaMA-2, arXiv 2307.09288 section 2.2; RoFormer, arXiv 2104.09864 section 3.4; SwiGLU,
arXiv 2002.05202 section 2.

Shapes: B rows, T tokens, S tokens in the cache, D width, H heads, d = D / H, V vocabulary.
"""
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class LlamaConfig:
    vocab_size: int = 32000     # V
    width: int = 4096           # D
    depth: int = 32             # blocks
    heads: int = 32             # H
    mlp_width: int = 11008      # hidden width of the SwiGLU
    max_positions: int = 4096   # context length, tokens
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0


PRESETS = {
    "llama2_7b":  LlamaConfig(),
    "llama2_13b": LlamaConfig(width=5120, depth=40, heads=40, mlp_width=13824),
    "nano":       LlamaConfig(2048, width=192, depth=4, heads=3, mlp_width=512, max_positions=1024),
}


class Linear(nn.Linear):
    """Without a bias. Building it draws no random numbers: Llama.init_weights does."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out, bias=False)

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        pass


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        # The mean of squares in float32, the product with the weight in x's dtype, as upstream.
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


# RoPE rotates the pair (x_j, x_j+d/2) by position * theta^(-2j/d). Two layouts of it are in use:
#
#     half-split (Hugging Face files, here)    x0 x1 x2 | x3 x4 x5    pairs (x0,x3) (x1,x4) (x2,x5)
#     interleaved (Meta's files)               x0 x1  x2 x3  x4 x5    pairs (x0,x1) (x2,x3) (x4,x5)
#
# The rows of q_proj and k_proj are ordered to fit; with the wrong layout the model writes nonsense.

def rope_angles(positions: Tensor, config: LlamaConfig) -> tuple[Tensor, Tensor]:
    """positions: long[B, T] -> cos, sin: float32[B, 1, T, d], with -sin in the first half."""
    half = config.width // config.heads // 2
    rates = config.rope_theta ** (-torch.arange(half, device=positions.device) / half)
    angles = positions[:, None, :, None] * torch.cat([-rates, rates])         # [B, 1, T, d]
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x_rotated = x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin             # [B, H, T, d]
    return x_rotated.to(x.dtype)


class KVCache:
    """Keys and values of the tokens so far; a token's slot is its position.

    Rows of different lengths share a cache without left padding: each row writes at its own
    positions and sees only the slots up to its own, so what right padding left behind is
    overwritten before a token can see it.
    """

    def __init__(self, config: LlamaConfig, batch: int, capacity: int, device=None, dtype=None):
        shape = (config.depth, batch, config.heads, capacity, config.width // config.heads)
        self.k = torch.zeros(shape, device=device, dtype=dtype)               # [L, B, H, S, d]
        self.v = torch.zeros(shape, device=device, dtype=dtype)               # [L, B, H, S, d]
        self.rows = torch.arange(batch, device=device)[:, None]               # [B, 1]
        self.capacity = capacity                                              # slots
        self.length = 0                                                       # of the longest row

    def extend(self, positions: Tensor) -> Tensor | None:
        """Make room for tokens at positions: long[B, T] -> what they may see, bool[B, 1, T, S], or
        None: each token all before it. ValueError where the cache is full."""
        B, T = positions.shape
        empty = self.length == 0
        self.positions, self.length = positions, self.length + T
        if self.length > self.capacity:
            raise ValueError(f"{self.length} tokens do not fit the context of {self.capacity}")
        if empty or B * T == 1:
            return None
        slots = torch.arange(self.length, device=positions.device)            # [S]
        return (slots <= positions[..., None])[:, None]                       # [B, 1, T, S]

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v: [B, H, T, d] of the new tokens -> those of all tokens, [B, H, S, d]."""
        self.write(layer, k, v)
        return self.k[layer, :, :, :self.length], self.v[layer, :, :, :self.length]

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        self.k[layer][self.rows, :, self.positions] = k.transpose(1, 2).to(self.k.dtype)
        self.v[layer][self.rows, :, self.positions] = v.transpose(1, 2).to(self.v.dtype)

    def select_rows(self, rows: Tensor, capacity: int) -> None:
        """Continue with these rows, long[R], a row as often as it is named, and this capacity."""
        def select(x: Tensor) -> Tensor:
            new = x.new_zeros(len(x), len(rows), x.shape[2], capacity, x.shape[4])
            new[:, :, :, :self.length] = x[:, rows, :, :self.length]
            return new

        self.k, self.v, self.capacity = select(self.k), select(self.v), capacity
        self.rows = torch.arange(len(rows), device=rows.device)[:, None]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, with q: [B, H, T, d]; k, v: [B, H, S, d]; mask: bool[B, 1, T, S],
    True where a token may look, or None, causal -> [B, H, T, d]"""
    q = q.to(k.dtype)
    if mask is not None and q.device.type == "cpu" and q.shape[2] > CHUNK:
        return chunked_attention(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None and q.shape[2] > 1)


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.layer, self.heads = layer, config.heads
        self.q_proj = Linear(config.width, config.width)
        self.k_proj = Linear(config.width, config.width)
        self.v_proj = Linear(config.width, config.width)
        self.o_proj = Linear(config.width, config.width)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None = None,
                cache: KVCache | None = None) -> Tensor:                      # [B, T, D]
        q, k, v = map(self.split_heads, self.qkv(x))                          # 3 x [B, H, T, d]
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)                     # 2 x [B, H, T, d]
        if cache:
            k, v = cache.update(self.layer, k, v)                             # 2 x [B, H, S, d]
        y = attention(q, k, v, mask).to(x.dtype)                              # [B, H, T, d]
        return self.o_proj(y.transpose(1, 2).flatten(2))                      # [B, T, D]

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three products with the same x; support/inference/cpu_kernels.py makes one of them."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)                 # 3 x [B, T, D]

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)              # [B, H, T, d]


class MLP(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = Linear(config.width, config.mlp_width)
        self.up_proj = Linear(config.width, config.mlp_width)
        self.down_proj = Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:                                   # [B, T, D]
        gate, up = self.gate_up(x)                                            # 2 x [B, T, mlp]
        return self.down_proj(F.silu(gate) * up)                              # [B, T, D]

    def gate_up(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.gate_proj(x), self.up_proj(x)


class Block(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, h: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None = None,
                cache: KVCache | None = None) -> Tensor:                      # [B, T, D]
        h = h + self.self_attn(self.input_layernorm(h), rope, mask, cache)    # [B, T, D]
        return h + self.mlp(self.post_attention_layernorm(h))                 # [B, T, D]


class Transformer(nn.Module):
    """Everything but the head; its parameters stand under `model.` in the checkpoints."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.depth - 1))
        self.layers.append(LastBlock(config, config.depth - 1))     # a Block, with one more way in
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.gradient_checkpointing = False     # in training: store a block's input, compute twice

    def forward(self, x: Tensor, positions: Tensor | None = None, mask: Tensor | None = None,
                cache: KVCache | None = None) -> Tensor:
        """x: long[B, T] ids or float[B, T, D] embeddings -> float[B, T, D]

        positions: long[B, T], by default 0, 1, 2, ...; mask: bool[B, 1, T, S], True where a token
        may look, by default causal. With a cache, tokens see the slots up to their own position.
        """
        h, rope, mask = self.prepare(x, positions, mask, cache)               # [B, T, D]
        for block in self.layers:
            h = self.run(block, h, rope, mask, cache)                         # [B, T, D]
        return self.norm(h)                                                   # [B, T, D]

    def prepare(self, x: Tensor, positions: Tensor | None, mask: Tensor | None,
                cache: KVCache | None) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
        """-> embeddings, the rotations of their positions, and what each may see."""
        h = x if x.is_floating_point() else self.embed_tokens(x)              # [B, T, D]
        if positions is None:
            positions = torch.arange(h.shape[1], device=h.device).expand(h.shape[:2])
        if cache:
            mask = cache.extend(positions)
        return h, rope_angles(positions, self.config), mask

    def run(self, block: nn.Module, *inputs) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


class Llama(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.model = Transformer(config)
        self.lm_head = Linear(config.width, config.vocab_size)

    def forward(self, x: Tensor, positions: Tensor | None = None, mask: Tensor | None = None,
                cache: KVCache | None = None) -> Tensor:
        """As Transformer.forward, but -> logits: float[B, T, V]"""
        return self.lm_head(self.model(x, positions, mask, cache))

    @torch.inference_mode()
    def generate(self, x: Tensor, max_new_tokens: int, stop: int, **sampling) -> Iterator[int]:
        """One prompt, x: long[T] ids or float[T, D] embeddings -> the ids of its answer, one by
        one, without `stop`; `sampling` goes to `sample`. Batches: support/inference/generation.py.
        """
        cache = self.new_cache(1, len(x) + max_new_tokens)
        generated = torch.zeros(1, self.config.vocab_size, dtype=torch.bool, device=x.device)
        new, positions = x[None], torch.arange(len(x), device=x.device)[None]     # [1, T] each
        for _ in range(min(max_new_tokens, cache.capacity - len(x) + 1)):
            logits = self(new, positions, cache=cache)[:, -1]                 # [1, V]
            token = sample(logits, generated, **sampling)                     # [1]
            if token.item() == stop:
                return
            yield token.item()
            generated[0, token] = True
            new, positions = token[None], positions[:, -1:] + 1               # [1, 1] each

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """In float32 on a CPU, where attention of one query is 4 to 7 times slower in 16 bits."""
        weight, capacity = self.lm_head.weight, min(capacity, self.config.max_positions)
        dtype = torch.float32 if weight.device.type == "cpu" else weight.dtype
        return KVCache(self.config, batch, capacity, weight.device, dtype)

    def decode_step(self, ids: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
        """One more token for each row: ids, positions: long[B, 1] -> logits: float[B, V]. Nothing
        here depends on a number on the device, so support/inference/cuda_graphs.py can record it.
        """
        return self.lm_head(self.model(ids, positions, cache=cache)[:, 0])

    @torch.no_grad()
    def init_weights(self) -> None:
        """Random start values, for a model that starts from nothing."""
        for module in self.modules():
            if isinstance(module, Embedding):
                nn.init.normal_(module.weight, std=0.5)
            elif isinstance(module, Linear):
                nn.init.normal_(module.weight, std=module.in_features ** -0.5)


def sample(logits: Tensor, generated: Tensor, temperature: float = 0.0, top_k: int = 0,
           top_p: float = 1.0, repetition_penalty: float = 1.0,
           generator: torch.Generator | None = None) -> Tensor:
    """logits: float[B, V]; generated: bool[B, V], ids so far -> ids: long[B]. Temperature 0 is
    greedy, and so is one by which logits cannot be divided. The steps are in upstream's order."""
    logits = logits.float()
    # 1. penalty on ids that were generated before
    if repetition_penalty != 1:
        penalty = torch.where(logits > 0, 1 / repetition_penalty, repetition_penalty)
        logits = torch.where(generated, logits * penalty, logits)
    # 2. temperature
    if temperature < 1e-6:
        return logits.argmax(-1)
    logits, order = (logits / temperature).sort(descending=True)              # most probable first
    # 3. top-k
    if top_k:
        logits[:, top_k:] = -torch.inf
    # 4. top-p: the fewest ids that together reach it, and at least one
    mass_of_better = logits.softmax(-1).cumsum(-1) - logits.softmax(-1)
    mass_of_better[:, 0] = -1
    probabilities = logits.masked_fill(mass_of_better >= top_p, -torch.inf).softmax(-1)
    return order.gather(1, probabilities.multinomial(1, generator=generator))[:, 0]


# ==== the same, faster: not needed to understand the model ========================================

CHUNK = 128     # queries that a CPU attends for at a time


def packed_mask(segments: Tensor) -> Tensor:
    """Several questions behind one prefix. segments: long[B, T] -> bool[B, 1, T, T]: a token sees
    what stands before it, in segment 0 and in its own.

        segments  0 0 0 1 1 2 2     two questions behind one shared prefix; neither sees the other,
        positions 0 1 2 3 4 3 4     and with such positions each is as if it stood alone
    """
    query, key = segments[:, None, :, None], segments[:, None, None, :]
    return ((key == 0) | (key == query)).tril()


def chunked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """`attention` on a CPU, which computes also what a mask hides: each chunk of queries attends
    only to the keys that one of them sees; of packed questions, the prefix and a few of them."""
    chunks = []
    for start in range(0, q.shape[2], CHUNK):
        part = slice(start, start + CHUNK)
        keys = mask[:, :, part].flatten(0, 2).any(dim=0).nonzero()[:, 0]      # [visible]
        visible_k, visible_v = k.index_select(2, keys), v.index_select(2, keys)
        chunks.append(F.scaled_dot_product_attention(
            q[:, :, part], visible_k, visible_v, mask[:, :, part, keys]))     # [B, H, CHUNK, d]
    return torch.cat(chunks, dim=2)                                           # [B, H, T, d]


def gather_positions(x: Tensor, at: Tensor) -> Tensor:
    """x: [B, T, D], at: long[B, W] -> x at these places of each row, [B, W, D]"""
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


class LastAttention(Attention):
    """With `at`: long[B, W], outputs at these places of each row alone, [B, W, D]."""

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None = None,
                cache: KVCache | None = None, at: Tensor | None = None) -> Tensor:
        if at is None:
            return super().forward(x, rope, mask, cache)
        q, k, v = map(self.split_heads, self.qkv_at(x, at))                   # [B, H, W or T, d]
        rope_at = (gather_positions(angles[:, 0], at)[:, None] for angles in rope)
        q, k = apply_rope(q, *rope_at), apply_rope(k, *rope)                  # [B, H, W or T, d]
        if mask is None:
            mask = torch.arange(x.shape[1], device=x.device) <= at[..., None]     # [B, W, S]
        else:
            mask = gather_positions(mask[:, 0], at)                           # [B, W, S]
        if cache:
            k, v = cache.update(self.layer, k, v)                             # 2 x [B, H, S, d]
        y = attention(q, k, v, mask[:, None]).to(x.dtype)                     # [B, H, W, d]
        return self.o_proj(y.transpose(1, 2).flatten(2))                      # [B, W, D]

    def qkv_at(self, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q_proj(gather_positions(x, at)), self.k_proj(x), self.v_proj(x)


class LastBlock(Block):
    """The last block's outputs are read where a token is predicted, often in few places."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__(config, layer)
        self.self_attn = LastAttention(config, layer)

    def forward(self, h: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None = None,
                cache: KVCache | None = None, at: Tensor | None = None) -> Tensor:
        if at is None:
            return super().forward(h, rope, mask, cache)
        h_at = gather_positions(h, at)                                        # [B, W, D]
        h = h_at + self.self_attn(self.input_layernorm(h), rope, mask, cache, at)
        return h + self.mlp(self.post_attention_layernorm(h))                 # [B, W, D]


def hidden_states_at(model: Transformer, x: Tensor, at: Tensor, positions: Tensor | None = None,
                     mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
    """`model(x, positions, mask, cache)` at the places at: long[B, W] of each row, [B, W, D]."""
    h, rope, mask = model.prepare(x, positions, mask, cache)                  # [B, T, D]
    for block in model.layers[:-1]:
        h = model.run(block, h, rope, mask, cache)                            # [B, T, D]
    return model.norm(model.run(model.layers[-1], h, rope, mask, cache, at))  # [B, W, D]


if __name__ == "__main__":                      # prints the shapes and parameters of an example
    from support.tools.model_examples import show_llama
    show_llama()
