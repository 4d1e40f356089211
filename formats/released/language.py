"""LLaMA-2, Vicuna and LLaVA's language model as they are published -> the names of llama.py.

    Hugging Face    model.layers.0.self_attn.q_proj.weight      llama.py has these names
    LLaVA           language_model.model.layers.0. ..           and 64 rows more, for its own marks
    Meta            layers.0.attention.wq.weight                and rows of q and k interleaved
"""
import re

from torch import Tensor

from formats.released.tensors import Stored

PART = r"^(model\.)?(language_model|layers|embed_tokens|norm|lm_head|tok_embeddings|output|rope)\."

CALLED = (                                                              # theirs, ours; in order
    (r"^language_model\.", ""), (r"^model\.language_model\.", "model."),
    (r"^tok_embeddings\.", "model.embed_tokens."), (r"^output\.", "lm_head."),
    (r"^(norm|layers)\.", r"model.\1."), (r"\.attention\.w([qkvo])\.", r".self_attn.\1_proj."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."), (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."), (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
)
UNUSED = r"rotary_emb\.inv_freq$|^rope\.freqs$"                         # RoPE's rates, as buffers
PIECES = 32000                                                          # of LLaMA-2's tokenizer


def take(tensors: dict[str, Stored], heads: int) -> dict[str, Stored]:
    """Take the language model's tensors out of `tensors` -> the same under llama.py's names."""
    found = {}
    for name in [name for name in tensors if re.search(PART, name)]:
        ours, stored = name, tensors.pop(name)
        for theirs, called in CALLED:
            ours = re.sub(theirs, called, ours)
        if re.search(r"attention\.w[qk]\.", name):
            stored = stored.then(stored.shape, lambda x: half_split(x, heads))
        elif "language_model" in name and stored.shape[0] > PIECES:
            stored = stored.then((PIECES, *stored.shape[1:]), lambda x: x[:PIECES])
        if not re.search(UNUSED, ours):
            found[ours] = stored
    return found


def half_split(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k in Meta's order, x0 x1 a pair, -> Hugging Face's, x0 and x(d/2) a pair."""
    return rows.view(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
