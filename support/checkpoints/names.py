"""support/checkpoints/names.py"""
import re

import torch
from torch import Tensor

from support.checkpoints.files import LazyTensor

# ---- language ------------------------------------------------------------------------------------
# LLaMA-2, Vicuna and LLaVA's language model as they are published -> the names of llama.py.
#
#     Hugging Face    model.layers.0.self_attn.q_proj.weight      llama.py has these names
#     LLaVA           language_model.model.layers.0. ..           and 64 rows more, for its own marks
#     Meta            layers.0.attention.wq.weight                and rows of q and k interleaved

LLAMA_PART = r"^(model\.)?(language_model|layers|embed_tokens|norm|lm_head|tok_embeddings|output|rope)\."


LLAMA_RENAMES = (                                                              # theirs, ours; in order
    (r"^language_model\.", ""), (r"^model\.language_model\.", "model."),
    (r"^tok_embeddings\.", "model.embed_tokens."), (r"^output\.", "lm_head."),
    (r"^(norm|layers)\.", r"model.\1."), (r"\.attention\.w([qkvo])\.", r".self_attn.\1_proj."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."), (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."), (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
)


LLAMA_UNUSED = r"rotary_emb\.inv_freq$|^rope\.freqs$"                         # RoPE's rates, as buffers


LLAMA_VOCAB = 32000                                                          # of LLaMA-2's tokenizer


def extract_llama(tensors: dict[str, LazyTensor], heads: int) -> dict[str, LazyTensor]:
    """Take the language model's tensors out of `tensors` -> the same under llama.py's names."""
    found = {}
    for name in [name for name in tensors if re.search(LLAMA_PART, name)]:
        ours, stored = name, tensors.pop(name)
        for theirs, called in LLAMA_RENAMES:
            ours = re.sub(theirs, called, ours)
        if re.search(r"attention\.w[qk]\.", name):
            stored = stored.then(stored.shape, lambda x: to_half_split(x, heads))
        elif "language_model" in name and stored.shape[0] > LLAMA_VOCAB:
            stored = stored.then((LLAMA_VOCAB, *stored.shape[1:]), lambda x: x[:LLAMA_VOCAB])
        if not re.search(LLAMA_UNUSED, ours):
            found[ours] = stored
    return found


def to_half_split(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k in Meta's order, x0 x1 a pair, -> Hugging Face's, x0 and x(d/2) a pair."""
    return rows.view(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


# ---- vision --------------------------------------------------------------------------------------
# Vision encoders as they are published -> the names of vit.py, which are eva_vit_g.pth's.
#
#     eva_vit_g.pth, timm             blocks.0.attn.qkv.weight
#     open_clip's EVA01-g-14          visual.trunk.blocks.0.attn.qkv.weight
#     BLIP-2                          vision_model.encoder.layers.0.self_attn.qkv.weight
#     CLIP, and in LLaVA              vision_model.encoder.layers.0.self_attn.q_proj.weight
#
# The bias of k, which CLIP has, is left out: it adds the same to every score of a row, and softmax
# takes it away again. So is BLIP-2's post_layernorm: trained with BLIP-2, no part of SkyEyeGPT.

VIT_PART = r"^(visual\.trunk|visual_encoder|blocks|patch_embed|norm|head)\.|^(cls_token|pos_embed)$|" \
       r"vision_model\."


VIT_RENAMES = (                                                              # theirs, ours; in order
    (r"^(visual\.trunk|visual_encoder|(model\.)?(vision_tower\.)*vision_model)\.", ""),
    (r"^(embeddings|encoder)\.", ""), (r"^class_embedding$", "cls_token"),
    (r"^position_embedding(\.weight)?$", "pos_embed"), (r"^patch_embedding\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."), (r"^layers\.", "blocks."), (r"\.layer_norm", ".norm"),
    (r"\.self_attn\.", ".attn."), (r"\.attn\.(projection|out_proj)\.", ".attn.proj."),
)


VIT_UNUSED = r"^(norm|head|post_layernorm)\.|position_ids$|\.k_proj\.bias$"


def extract_vit(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Take the vision encoder's tensors out of `tensors` -> the same under vit.py's names."""
    found = {}
    for name in [name for name in tensors if re.search(VIT_PART, name)]:
        ours, stored = name, tensors.pop(name)
        for theirs, called in VIT_RENAMES:
            ours = re.sub(theirs, called, ours)
        if not re.search(VIT_UNUSED, ours):
            found[ours] = stored
    for name in [name for name in found if name.endswith(("qkv.bias", "q_proj.weight"))]:
        (split_bias if "bias" in name else join_qkv)(found, name[:name.index("attn.") + 5])
    for name in {"cls_token", "pos_embed"} & set(found):                # some have fewer axes
        shape = (1, *((1,) + found[name].shape)[-2:])
        found[name] = found[name].then(shape, lambda x, shape=shape: x.reshape(shape))
    return found


def split_bias(found: dict[str, LazyTensor], block: str) -> None:
    """BLIP-2's qkv.bias -> q_bias and v_bias."""
    bias = found.pop(block + "qkv.bias")
    width = bias.shape[0] // 3
    found[block + "q_bias"] = bias.then([width], lambda x: x[:width])
    found[block + "v_bias"] = bias.then([width], lambda x: x[2 * width:])


def join_qkv(found: dict[str, LazyTensor], block: str) -> None:
    """CLIP's q_proj, k_proj, v_proj -> one qkv."""
    q, k, v = (found.pop(f"{block}{x}_proj.weight") for x in "qkv")
    found[block + "qkv.weight"] = LazyTensor((3 * q.shape[0], q.shape[1]), lambda: torch.cat(
        [q.read(), k.read(), v.read()]))
    for x in "qv":
        found[f"{block}{x}_bias"] = found.pop(f"{block}{x}_proj.bias")


# ---- adapter -------------------------------------------------------------------------------------
# What training adds, as it is published: LoRA and projector -> SkyEyeGPT's names.
#
#     SkyEyeGPT.pth, MiniGPT-v2   llama_model.base_model.model.model.layers.0. .. .lora_A.weight
#                                 llama_proj.weight
#     a peft folder               base_model.model.model.layers.0. .. .lora_A.weight
#     LLaVA's                     the same, and model.mm_projector.0.weight in a file of its own;
#                                 multi_modal_projector.linear_1.weight in Hugging Face's folder
#
# peft from 0.3 on writes lora_A.default.weight, which a lenient loader leaves out without a word.

ADAPTER_RENAMES = (                                                              # theirs, ours; in order
    (r"^(llama_model\.)?base_model\.model\.", ""), (r"\.(lora_[AB])\.default\.", r".\1."),
    (r"^(model\.)?mm_projector\.0\.", "llama_proj.linear_1."),
    (r"^(model\.)?mm_projector\.2\.", "llama_proj.linear_2."),
    (r"^(model\.)?multi_modal_projector\.", "llama_proj."), (r"^model\.", "llama_model.model."),
)


ADAPTER_PART = r"\.lora_[AB]\.|^llama_proj\.|mm_projector\.|multi_modal_projector\."


ADAPTER_UNUSED = r"rotary_emb\.inv_freq$"


def is_adapter_name(name: str) -> bool:
    """Whether a tensor of SkyEyeGPT is LoRA or projector."""
    return ".lora_" in name or name.startswith("llama_proj.")


def extract_adapter(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Take LoRA and projector out of `tensors` -> the same under SkyEyeGPT's names."""
    found = {}
    for name in [name for name in tensors if re.search(f"{ADAPTER_PART}|{ADAPTER_UNUSED}", name)]:
        ours, stored = name, tensors.pop(name)
        for theirs, called in ADAPTER_RENAMES:
            ours = re.sub(theirs, called, ours)
        if not re.search(ADAPTER_UNUSED, ours):
            found[ours] = stored
    return found
