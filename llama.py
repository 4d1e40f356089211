"""Language model: LLaMA-2, its KV cache and its token loop.

    h = h + o_proj(attention(RoPE(q), RoPE(k), v))        of input_layernorm(h)
    h = h + down_proj(silu(gate_proj(g)) * up_proj(g))    with g = post_attention_layernorm(h)

What differs from a textbook transformer: RMSNorm, rotary positions in the half-split form, SwiGLU,
no biases anywhere, an output head of its own. Parameter names are those of the Hugging Face files.

Sources: LLaMA-2, arXiv 2307.09288 section 2.2; RoFormer, arXiv 2104.09864 section 3.4; SwiGLU,
arXiv 2002.05202 section 2.

Shapes: B rows, T tokens, S cache slots, D width, H heads, d = D / H, V vocabulary.
"""
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from support.inference.generation import LOOKAHEAD, mask_logits, observe_tokens, stop_when_finished


@dataclass(frozen=True)
class LlamaConfig:
    vocab_size: int = 32000     # V
    width: int = 4096           # D
    depth: int = 32             # layers
    heads: int = 32             # H
    mlp: int = 11008            # hidden width of the SwiGLU
    max_positions: int = 4096   # context, tokens
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0


PRESETS = {
    "llama2_7b":  LlamaConfig(),
    "llama2_13b": LlamaConfig(width=5120, depth=40, heads=40, mlp=13824),
    "nano":       LlamaConfig(2048, width=192, depth=4, heads=3, mlp=512, max_positions=1024),
}


class DrawStart:
    """Draws a layer's start values, except on the meta device, where it would cost a second."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)


class Linear(DrawStart, nn.Linear):
    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out, bias=False)


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=0.5)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        # The mean of squares in float32, the product with the weight in x's type, as upstream.
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


# RoPE turns the pair (x_j, x_j+d/2) by position * theta^(-2j/d). Two layouts of it are in use:
#
#     half-split (Hugging Face files, here)    x0 x1 x2 | x3 x4 x5    pairs (x0,x3) (x1,x4) (x2,x5)
#     interleaved (Meta's files)               x0 x1  x2 x3  x4 x5    pairs (x0,x1) (x2,x3) (x4,x5)
#
# The rows of q_proj and k_proj are ordered to fit; with the wrong one text turns to nonsense.

def rope_angles(positions: Tensor, config: LlamaConfig) -> tuple[Tensor, Tensor]:
    """positions: long[B, T] -> cos, sin: float32[B, 1, T, d], with -sin in the first half."""
    half = config.width // config.heads // 2
    rates = config.rope_theta ** (-torch.arange(half, device=positions.device) / half)
    angles = positions[:, None, :, None] * torch.cat([-rates, rates])         # [B, 1, T, d]
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin                  # [B, H, T, d]


class KVCache:
    """Keys and values of the tokens seen so far; a token's slot is its position.

    Rows of different lengths share a cache without left padding: each row writes at its own
    positions and sees only the slots up to its own, so what padding left behind is overwritten
    before it is ever seen.
    """

    def __init__(self, config: LlamaConfig, batch: int, slots: int, device=None, dtype=None):
        shape = (config.depth, batch, config.heads, slots, config.width // config.heads)
        self.k = torch.zeros(shape, device=device, dtype=dtype)               # [L, B, H, S, d]
        self.v = torch.zeros(shape, device=device, dtype=dtype)               # [L, B, H, S, d]
        self.rows = torch.arange(batch, device=device)[:, None]               # [B, 1]
        self.slots = slots
        self.used = 0                                                         # by the longest row
        self.fixed = False          # every shape the same at each word, for formats.released.replay

    def advance(self, positions: Tensor) -> Tensor | None:
        """Room for tokens at positions: long[B, T] -> the mask they look through, [B, 1, T, S]."""
        if self.fixed:
            return (torch.arange(self.slots, device=positions.device) <= positions)[:, None, None]
        B, T = positions.shape
        fresh, self.used = self.used == 0, self.used + T
        if self.used > self.slots:
            raise ValueError(f"{self.used} tokens do not fit the context of {self.slots}")
        if fresh or B * T == 1:
            return None                     # plain causal, or one token that may see everything
        return (torch.arange(self.used, device=positions.device) <= positions[..., None])[:, None]

    def update(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """k, v: [B, H, T, d] at positions: long[B, T] -> all k and v so far, [B, H, S, d]"""
        self.k[layer][self.rows, :, positions] = k.transpose(1, 2).to(self.k.dtype)
        self.v[layer][self.rows, :, positions] = v.transpose(1, 2).to(self.v.dtype)
        end = self.slots if self.fixed else self.used
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def take(self, rows: Tensor, slots: int) -> None:
        """Go on with these rows: long[R], each as often as it is named, and so many slots."""
        def copied(x: Tensor) -> Tensor:
            new = x.new_zeros(len(x), len(rows), x.shape[2], slots, x.shape[4])
            new[:, :, :, :self.used] = x[:, rows, :, :self.used]
            return new

        self.k, self.v, self.slots = copied(self.k), copied(self.v), slots
        self.rows = torch.arange(len(rows), device=rows.device)[:, None]


def packed_mask(segments: Tensor) -> Tensor:
    """segments: long[B, T] -> who may look at whom, bool[B, 1, T, T]: back, into 0 and one's own.

        segments  0 0 0 1 1 2 2     two questions behind one shared prefix; neither sees the other,
        positions 0 1 2 3 4 3 4     and with such positions each is as if it stood alone
    """
    query, key = segments[:, None, :, None], segments[:, None, None, :]
    return ((key == 0) | (key == query)).tril()


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, chunk: int = 128) -> Tensor:
    """q: [B, H, T, d]; k, v: [B, H, S, d]; mask: bool[B, 1, T, S] or None, causal -> [B, H, T, d]

    A CPU computes also what a mask hides. So it is asked for a chunk of queries at a time, with the
    keys that any of them sees: of a row with many questions the prefix and a few of them.
    """
    T, parts = q.shape[2], []
    if mask is None or T <= chunk or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None and T > 1)
    for start in range(0, T, chunk):
        own = slice(start, start + chunk)
        keys = mask[:, :, own].flatten(0, 2).any(dim=0).nonzero()[:, 0]       # [seen]
        parts.append(F.scaled_dot_product_attention(
            q[:, :, own], k.index_select(2, keys), v.index_select(2, keys), mask[:, :, own, keys]))
    return torch.cat(parts, dim=2)


def gather_positions(x: Tensor, at: Tensor | None) -> Tensor:
    """x: [B, T, D], at: long[B, W] -> x at these places of each row, [B, W, D]; all without at."""
    return x if at is None else x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.layer, self.heads = layer, config.heads
        self.q_proj = Linear(config.width, config.width)
        self.k_proj = Linear(config.width, config.width)
        self.v_proj = Linear(config.width, config.width)
        self.o_proj = Linear(config.width, config.width)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None, cache: KVCache | None,
                rope: tuple[Tensor, Tensor], rope_q: tuple[Tensor, Tensor], at: Tensor | None
                ) -> Tensor:
        q, k, v = map(self.split_heads, self.project(x, at))                  # [B, H, W or T, d]
        q, k = apply_rope(q, *rope_q).to(v.dtype), apply_rope(k, *rope).to(v.dtype)
        if cache:
            k, v = cache.update(self.layer, k, v, positions)                  # 2 x [B, H, S, d]
        x = attention(q.to(k.dtype), k, v, mask).to(x.dtype)                  # [B, H, W, d]
        return self.o_proj(x.transpose(1, 2).flatten(2))                      # [B, W, D]

    def project(self, x: Tensor, at: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """For inference on a CPU formats.released.joint makes one product of the three."""
        return self.q_proj(gather_positions(x, at)), self.k_proj(x), self.v_proj(x)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)              # [B, H, T, d]


class MLP(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = Linear(config.width, config.mlp)
        self.up_proj = Linear(config.width, config.mlp)
        self.down_proj = Linear(config.mlp, config.width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.project(x)
        return self.down_proj(F.silu(gate) * up)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:                    # two of [B, T, mlp]
        return self.gate_proj(x), self.up_proj(x)


class Block(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, h: Tensor, *context: Tensor) -> Tensor:
        h = gather_positions(h, context[-1]) + self.self_attn(self.input_layernorm(h), *context)
        return h + self.mlp(self.post_attention_layernorm(h))


class Transformer(nn.Module):
    """Everything but the head; it stands under `model.` in the checkpoints."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.depth))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.recompute = False      # in training: keep a layer's input alone, compute it twice

    def forward(self, x: Tensor, positions: Tensor | None = None, mask: Tensor | None = None,
                cache: KVCache | None = None, at: Tensor | None = None) -> Tensor:
        """x: long[B, T] ids or float[B, T, D] embeddings -> float[B, T, D]

        positions: long[B, T], by default 0, 1, 2, ...; mask: bool[B, 1, T, S], True where a token
        may look, by default causal. With a cache, tokens see the slots up to their own position.
        at: long[B, W], the places that are wanted, [B, W, D] then: the last layer, whose other
        outputs nobody would read, is computed there alone.
        """
        h = x if x.is_floating_point() else self.embed_tokens(x)              # [B, T, D]
        if positions is None:
            positions = torch.arange(h.shape[1], device=h.device).expand(h.shape[:2])
        if cache:
            mask = cache.advance(positions)
        rope = rope_angles(positions, self.config)
        context = last = (positions, mask, cache, rope, rope, None)
        if at is not None:
            slots = torch.arange(h.shape[1], device=h.device)
            mask = slots <= at[..., None] if mask is None else gather_positions(mask[:, 0], at)    # [B, W, S]
            rope_q = rope_angles(positions.gather(1, at), self.config)
            last = (positions, mask[:, None], cache, rope, rope_q, at)
        for layer in self.layers:
            own = last if layer is self.layers[-1] else context
            if self.recompute and torch.is_grad_enabled():
                h = checkpoint(layer, h, *own, use_reentrant=False)
            else:
                h = layer(h, *own)                                            # [B, T or W, D]
        return self.norm(h)                                                   # [B, T or W, D]


class Llama(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.model = Transformer(config)
        self.lm_head = Linear(config.width, config.vocab_size)

    def forward(self, x: Tensor, positions: Tensor | None = None, mask: Tensor | None = None,
                cache: KVCache | None = None) -> Tensor:
        """As Decoder.forward, but -> logits: float[B, T, V]"""
        return self.lm_head(self.model(x, positions, mask, cache))

    def cache(self, batch: int, slots: int) -> KVCache:
        """In float32 on a CPU, where attention of one query is 4 to 7 times slower in 16 bits."""
        weight, slots = self.lm_head.weight, min(slots, self.config.max_positions)
        dtype = torch.float32 if weight.device.type == "cpu" else weight.dtype
        return KVCache(self.config, batch, slots, weight.device, dtype)

    def step(self, ids: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
        """One word more: ids, positions: long[B, 1] -> logits: float[B, V]. Nothing in it depends
        on numbers, and with cache.fixed not on the step: it can be recorded and replayed."""
        return self.lm_head(self.model(ids, positions, cache=cache)[:, 0])

    def generate(self, x: Tensor, lengths: Tensor, cache: KVCache, max_new_tokens: int, stop: int,
                 start: int = 0, guides: list | None = None, **sampling) -> Iterator[Tensor]:
        """The token loop: embeddings of the prompts in, one long[B] of new ids a step out.

        x: float[B, T, D], right-padded; lengths: long[B], real tokens of each row; start: slots of
        the cache that hold earlier turns. A row that has said `stop` goes on saying it, and the
        loop ends when all have, after max_new_tokens, or when the cache is full. guides: one
        formats.talking.guide.Guide a row, or none; `sampling` goes to `sample`.
        """
        if start + x.shape[1] > cache.slots:
            raise ValueError(f"{start + x.shape[1]} tokens do not fit the context of {cache.slots}")
        steps = min(max_new_tokens, cache.slots - start - x.shape[1] + 1)
        words = self.words(x, lengths, cache, steps, stop, start, guides or [], **sampling)
        return stop_when_finished(words, stop, 0 if guides or x.device.type == "cpu" else LOOKAHEAD)

    @torch.inference_mode()
    def words(self, x: Tensor, lengths: Tensor, cache: KVCache, steps: int, stop: int, start: int,
              guides: list, **sampling) -> Iterator[Tensor]:
        """As generate, to the last step; nothing waits for the device, unless there are guides.

        When half of the rows have ended, which is looked at now and then, the others go on alone.
        """
        B, T, _ = x.shape
        rows = torch.arange(B, device=x.device)                               # [R], that speak
        seen = torch.zeros(B, self.config.vocab_size, dtype=torch.bool, device=x.device)
        done = torch.zeros(B, dtype=torch.bool, device=x.device)
        often = 1 if x.device.type == "cpu" else 4 * LOOKAHEAD                    # steps
        h = self.model(x, start + torch.arange(T, device=x.device).expand(B, T), cache=cache,
                       at=lengths[:, None] - 1)                               # [B, 1, D]
        logits = self.lm_head(h[:, 0])                                        # [B, V]
        for step in range(steps):
            own = [guides[row] for row in rows.tolist()] if guides else []
            ids = sample(mask_logits(logits, own), seen, **sampling).masked_fill(done, stop)   # [R]
            observe_tokens(own, ids, logits)
            yield lengths.new_full((B,), stop).index_copy(0, rows, ids)       # [B]
            done = ids == stop
            if B > 1 and (step + 1) % often == 0 and len(rows) > 2 * (~done).sum() > 0:
                on = (~done).nonzero()[:, 0]                                  # [new R]
                cache.take(on, cache.slots)
                rows, ids, done, seen = rows[on], ids[on], done[on], seen[on]
            seen.scatter_(1, ids[:, None], True)
            if step + 1 < steps:
                positions = (start + lengths[rows] + step)[:, None]           # [R, 1]
                logits = self.step(ids[:, None], positions, cache)            # [R, V]


def sample(logits: Tensor, seen: Tensor, temperature: float = 0.0, top_k: int = 0,
           top_p: float = 1.0, repetition_penalty: float = 1.0,
           generator: torch.Generator | None = None) -> Tensor:
    """logits: float[B, V], seen: bool[B, V] -> ids: long[B]. Temperature 0 is greedy.

    Upstream's order: penalty on ids seen, temperature, top-k, top-p.
    """
    logits = logits.float()
    if repetition_penalty != 1:
        penalty = torch.where(logits > 0, 1 / repetition_penalty, repetition_penalty)
        logits = torch.where(seen, logits * penalty, logits)
    if temperature == 0:
        return logits.argmax(-1)
    logits, order = (logits / temperature).sort(descending=True)              # best first
    if top_k:
        logits[:, top_k:] = -torch.inf
    before = logits.softmax(-1).cumsum(-1) - logits.softmax(-1)               # of all better ids
    probabilities = logits.masked_fill(before >= top_p, -torch.inf).softmax(-1)
    return order.gather(1, probabilities.multinomial(1, generator=generator))[:, 0]
