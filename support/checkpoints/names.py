"""Names of published weights -> the names of llama.py, vit.py and projector.py.

Each `extract_*` moves the tensors of one part out of what a file holds, renamed; whoever calls it
checks that nothing is left over. The tables are regular expressions, applied in order.

    language model
        Hugging Face            model.layers.0.self_attn.q_proj.weight  llama.py's own names
        LLaVA                   language_model.model.layers.0. ..       and 64 more rows
        Meta                    layers.0.attention.wq.weight            interleaved rows of q, k
    vision encoder
        eva_vit_g.pth, timm     blocks.0.attn.qkv.weight                vit.py's own names
        open_clip's EVA01-g-14  visual.trunk.blocks.0.attn.qkv.weight
        BLIP-2                  vision_model.encoder.layers.0.self_attn.qkv.weight
        CLIP, also in LLaVA     vision_model.encoder.layers.0.self_attn.q_proj.weight
    adapter: LoRA and projector
        SkyEyeGPT, MiniGPT-v2   llama_model.base_model.model.model.layers.0. .. .lora_A.weight
                                llama_proj.weight
        a peft folder           base_model.model.model.layers.0. .. .lora_A.weight
        LLaVA                   the same, and model.mm_projector.0.weight in a file of its own;
                                multi_modal_projector.linear_1.weight in Hugging Face's folder
"""
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from support.checkpoints.files import LazyTensor

Renames = Sequence[tuple[str, str]]             # (pattern, replacement), applied in order


def pop_matching(tensors: dict[str, LazyTensor], pattern: str) -> dict[str, LazyTensor]:
    """Remove the tensors whose names match from `tensors` -> those."""
    return {name: tensors.pop(name) for name in list(tensors) if re.search(pattern, name)}


def rename(name: str, renames: Renames) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


# ---- language model ------------------------------------------------------------------------------

LLAMA_PART = (r"^(model\.)?"
              r"(language_model|layers|embed_tokens|norm|lm_head|tok_embeddings|output|rope)\.")
LLAMA_RENAMES = (
    (r"^language_model\.", ""), (r"^model\.language_model\.", "model."),
    (r"^tok_embeddings\.", "model.embed_tokens."), (r"^output\.", "lm_head."),
    (r"^(norm|layers)\.", r"model.\1."), (r"\.attention\.w([qkvo])\.", r".self_attn.\1_proj."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."), (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."), (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
)
LLAMA_UNUSED = r"rotary_emb\.inv_freq$|^rope\.freqs$"       # RoPE's frequencies, stored as buffers
LLAMA_VOCAB = 32000                             # of LLaMA-2's tokenizer


def extract_llama(tensors: dict[str, LazyTensor], heads: int) -> dict[str, LazyTensor]:
    """Move the language model out of `tensors` -> its tensors under llama.py's names."""
    found = {}
    for name, tensor in pop_matching(tensors, LLAMA_PART).items():
        ours = rename(name, LLAMA_RENAMES)
        if re.search(LLAMA_UNUSED, ours):
            continue
        if re.search(r"attention\.w[qk]\.", name):
            tensor = tensor.map(tensor.shape, lambda x: to_half_split(x, heads))
        elif "language_model" in name and tensor.shape[0] > LLAMA_VOCAB:    # LLaVA's special tokens
            tensor = tensor.map((LLAMA_VOCAB, *tensor.shape[1:]), lambda x: x[:LLAMA_VOCAB])
        found[ours] = tensor
    return found


def to_half_split(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k in Meta's order, x0 x1 a pair, -> Hugging Face's, x0 and x(d/2) a pair."""
    return rows.view(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


# ---- vision encoder ------------------------------------------------------------------------------

VIT_PART = (r"^(visual\.trunk|visual_encoder|blocks|patch_embed|norm|head)\.|"
            r"^(cls_token|pos_embed)$|vision_model\.")
VIT_RENAMES = (
    (r"^(visual\.trunk|visual_encoder|(model\.)?(vision_tower\.)*vision_model)\.", ""),
    (r"^(embeddings|encoder)\.", ""), (r"^class_embedding$", "cls_token"),
    (r"^position_embedding(\.weight)?$", "pos_embed"), (r"^patch_embedding\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."), (r"^layers\.", "blocks."), (r"\.layer_norm", ".norm"),
    (r"\.self_attn\.", ".attn."), (r"\.attn\.(projection|out_proj)\.", ".attn.proj."),
)
# The bias of k, which CLIP has, adds the same to every score of a row: softmax takes it away again.
# BLIP-2's post_layernorm was trained with BLIP-2 and is no part of SkyEyeGPT.
VIT_UNUSED = r"^(norm|head|post_layernorm)\.|position_ids$|\.k_proj\.bias$"


def extract_vit(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Move the vision encoder out of `tensors` -> its tensors under vit.py's names."""
    found = {}
    for name, tensor in pop_matching(tensors, VIT_PART).items():
        ours = rename(name, VIT_RENAMES)
        if not re.search(VIT_UNUSED, ours):
            found[ours] = tensor
    for name in list(found):
        if name.endswith("attn.qkv.bias"):
            split_bias(found, name.removesuffix("qkv.bias"))
        elif name.endswith("attn.q_proj.weight"):
            join_qkv(found, name.removesuffix("q_proj.weight"))
    for name in ("cls_token", "pos_embed"):     # [1, n, D] in vit.py; CLIP leaves out leading axes
        if name in found:
            shape = (1, *((1,) + found[name].shape)[-2:])
            found[name] = found[name].map(shape, lambda x, shape=shape: x.reshape(shape))
    return found


def split_bias(tensors: dict[str, LazyTensor], attention: str) -> None:
    """BLIP-2's qkv.bias -> q_bias and v_bias, in place. attention: "blocks.0.attn."."""
    bias = tensors.pop(attention + "qkv.bias")
    width = bias.shape[0] // 3
    tensors[attention + "q_bias"] = bias.map([width], lambda x: x[:width])
    tensors[attention + "v_bias"] = bias.map([width], lambda x: x[2 * width:])


def join_qkv(tensors: dict[str, LazyTensor], attention: str) -> None:
    """CLIP's q_proj, k_proj, v_proj -> one qkv, in place. attention: "blocks.0.attn."."""
    q, k, v = (tensors.pop(f"{attention}{x}_proj.weight") for x in "qkv")
    tensors[attention + "qkv.weight"] = LazyTensor(
        (3 * q.shape[0], q.shape[1]), lambda: torch.cat([q.read(), k.read(), v.read()]))
    for x in "qv":
        tensors[f"{attention}{x}_bias"] = tensors.pop(f"{attention}{x}_proj.bias")


# ---- adapter -------------------------------------------------------------------------------------

ADAPTER_PART = r"\.lora_[AB]\.|^llama_proj\.|mm_projector\.|multi_modal_projector\."
ADAPTER_UNUSED = r"rotary_emb\.inv_freq$"
ADAPTER_RENAMES = (
    (r"^(llama_model\.)?base_model\.model\.", ""),
    (r"\.(lora_[AB])\.default\.", r".\1."),     # peft from 0.3 on; lenient loaders leave these out
    (r"^(model\.)?mm_projector\.0\.", "llama_proj.linear_1."),
    (r"^(model\.)?mm_projector\.2\.", "llama_proj.linear_2."),
    (r"^(model\.)?multi_modal_projector\.", "llama_proj."), (r"^model\.", "llama_model.model."),
)


def extract_adapter(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Move LoRA and projector out of `tensors` -> the same under SkyEyeGPT's names."""
    found = {}
    for name, tensor in pop_matching(tensors, f"{ADAPTER_PART}|{ADAPTER_UNUSED}").items():
        ours = rename(name, ADAPTER_RENAMES)
        if not re.search(ADAPTER_UNUSED, ours):
            found[ours] = tensor
    return found


def is_adapter_name(name: str) -> bool:
    """Whether a tensor of SkyEyeGPT belongs to its LoRA or projector."""
    return ".lora_" in name or name.startswith("llama_proj.")
