"""Vision encoders as they are published -> the names of vit.py, which are eva_vit_g.pth's.

    eva_vit_g.pth, timm             blocks.0.attn.qkv.weight
    open_clip's EVA01-g-14          visual.trunk.blocks.0.attn.qkv.weight
    BLIP-2                          vision_model.encoder.layers.0.self_attn.qkv.weight
    CLIP, and in LLaVA              vision_model.encoder.layers.0.self_attn.q_proj.weight

The bias of k, which CLIP has, is left out: it adds the same to every score of a row, and softmax
takes it away again. So is BLIP-2's post_layernorm: trained with BLIP-2, no part of SkyEyeGPT.
"""
import re

import torch

from formats.released.tensors import Stored

PART = r"^(visual\.trunk|visual_encoder|blocks|patch_embed|norm|head)\.|^(cls_token|pos_embed)$|" \
       r"vision_model\."
CALLED = (                                                              # theirs, ours; in order
    (r"^(visual\.trunk|visual_encoder|(model\.)?(vision_tower\.)*vision_model)\.", ""),
    (r"^(embeddings|encoder)\.", ""), (r"^class_embedding$", "cls_token"),
    (r"^position_embedding(\.weight)?$", "pos_embed"), (r"^patch_embedding\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."), (r"^layers\.", "blocks."), (r"\.layer_norm", ".norm"),
    (r"\.self_attn\.", ".attn."), (r"\.attn\.(projection|out_proj)\.", ".attn.proj."),
)
UNUSED = r"^(norm|head|post_layernorm)\.|position_ids$|\.k_proj\.bias$"


def take(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """Take the vision encoder's tensors out of `tensors` -> the same under vit.py's names."""
    found = {}
    for name in [name for name in tensors if re.search(PART, name)]:
        ours, stored = name, tensors.pop(name)
        for theirs, called in CALLED:
            ours = re.sub(theirs, called, ours)
        if not re.search(UNUSED, ours):
            found[ours] = stored
    for name in [name for name in found if name.endswith(("qkv.bias", "q_proj.weight"))]:
        (split_bias if "bias" in name else join_weights)(found, name[:name.index("attn.") + 5])
    for name in {"cls_token", "pos_embed"} & set(found):                # some have fewer axes
        shape = (1, *((1,) + found[name].shape)[-2:])
        found[name] = found[name].then(shape, lambda x, shape=shape: x.reshape(shape))
    return found


def split_bias(found: dict[str, Stored], block: str) -> None:
    """BLIP-2's qkv.bias -> q_bias and v_bias."""
    bias = found.pop(block + "qkv.bias")
    width = bias.shape[0] // 3
    found[block + "q_bias"] = bias.then([width], lambda x: x[:width])
    found[block + "v_bias"] = bias.then([width], lambda x: x[2 * width:])


def join_weights(found: dict[str, Stored], block: str) -> None:
    """CLIP's q_proj, k_proj, v_proj -> one qkv."""
    q, k, v = (found.pop(f"{block}{x}_proj.weight") for x in "qkv")
    found[block + "qkv.weight"] = Stored((3 * q.shape[0], q.shape[1]), lambda: torch.cat(
        [q.read(), k.read(), v.read()]))
    for x in "qv":
        found[f"{block}{x}_bias"] = found.pop(f"{block}{x}_proj.bias")
