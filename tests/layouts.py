"""Tiny models in every published layout: the inverse of support/checkpoints/names.py, spelled out.

Every function takes tensors under our names and gives them under somebody else's.
"""
import json
import struct
from pathlib import Path

import torch
from safetensors.torch import save_file

import tiny


def renamed(tensors, *pairs, prefix=""):
    """pairs: (ours, theirs), parts of names that are replaced in order."""
    out = {}
    for name, tensor in tensors.items():
        for ours, theirs in pairs:
            name = name.replace(ours, theirs)
        out[prefix + name] = tensor
    return out


# ---- vision --------------------------------------------------------------------------------------

def with_unused_block(tensors, depth):
    """The released encoders have one more block, which is not used."""
    extra = {name.replace(f"blocks.{depth - 1}.", f"blocks.{depth}."): torch.randn_like(tensor)
             for name, tensor in tensors.items() if f"blocks.{depth - 1}." in name}
    return tensors | extra


def eva(tensors, depth):
    return with_unused_block(tensors, depth)


def timm(tensors, depth):
    head = {"norm.weight": 24, "norm.bias": 24, "head.bias": 11}
    return with_unused_block(tensors, depth) | {k: torch.randn(n) for k, n in head.items()} | {
        "head.weight": torch.randn(11, 24)}


def open_clip(tensors, depth):
    text = {"text.token_embedding.weight": torch.randn(9, 8), "logit_scale": torch.randn(()),
            "text.transformer.resblocks.0.ln_1.weight": torch.randn(8)}
    return renamed(timm(tensors, depth), prefix="visual.trunk.") | text


HF_VISION = (("blocks.", "encoder.layers."), (".norm", ".layer_norm"), (".attn.", ".self_attn."))


def blip2(tensors, depth):
    own, out = dict(tensors), {}
    for i in range(depth):
        q, v = (own.pop(f"blocks.{i}.attn.{x}_bias") for x in "qv")
        own[f"blocks.{i}.attn.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    for name, tensor in renamed(own, *HF_VISION, ("attn.proj.", "attn.projection."),
                                ("cls_token", "embeddings.class_embedding"),
                                ("pos_embed", "embeddings.position_embedding"),
                                ("patch_embed.proj.", "embeddings.patch_embedding.")).items():
        out[f"vision_model.{name}"] = tensor
    return out | {"vision_model.post_layernorm.weight": torch.randn(24),
                  "vision_model.post_layernorm.bias": torch.randn(24),
                  "query_tokens": torch.randn(1, 4, 8), "qformer.layernorm.weight": torch.randn(8),
                  "language_projection.weight": torch.randn(8, 8),
                  "language_model.model.decoder.embed_tokens.weight": torch.randn(9, 8)}


def clip(tensors, depth, prefix=""):
    """CLIP gives k a bias too, and has the last block and norm."""
    own = with_unused_block(tensors, depth)
    for i in range(depth + 1):
        weights = own.pop(f"blocks.{i}.attn.qkv.weight").chunk(3)
        for x, weight in zip("qkv", weights, strict=True):
            own[f"blocks.{i}.attn.{x}_proj.weight"] = weight.clone()
            own[f"blocks.{i}.attn.{x}_proj.bias"] = own.pop(f"blocks.{i}.attn.{x}_bias",
                                                            torch.randn(len(weight)))
    own["cls_token"], own["pos_embed"] = own["cls_token"][0, 0], own["pos_embed"][0]
    own = renamed(own, *HF_VISION, ("attn.proj.", "attn.out_proj."),
                  ("cls_token", "embeddings.class_embedding"),
                  ("pos_embed", "embeddings.position_embedding.weight"),
                  ("patch_embed.proj.", "embeddings.patch_embedding."),
                  ("norm_pre.", "pre_layrnorm."), prefix=f"{prefix}vision_model.")
    return own | {f"{prefix}vision_model.post_layernorm.weight": torch.randn(24),
                  f"{prefix}vision_model.post_layernorm.bias": torch.randn(24)}


def clip_with_text_tower(tensors, depth):
    return clip(tensors, depth) | {
        "text_model.embeddings.token_embedding.weight": torch.randn(9, 8),
        "visual_projection.weight": torch.randn(8, 24), "text_projection.weight": torch.randn(8, 8),
        "logit_scale": torch.randn(()),
        "vision_model.embeddings.position_ids": torch.arange(37)[None]}


# ---- language ------------------------------------------------------------------------------------

def hf(tensors):
    """Old files hold RoPE's frequencies too."""
    return tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.randn(5)}


def meta(tensors, heads):
    out = {"rope.freqs": torch.randn(5)}
    names = {"self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk",
             "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
             "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
             "mlp.up_proj": "feed_forward.w3", "input_layernorm": "attention_norm",
             "post_attention_layernorm": "ffn_norm", "model.embed_tokens": "tok_embeddings",
             "lm_head": "output", "model.": ""}
    for name, tensor in tensors.items():
        theirs = next(iter(renamed({name: 0}, *names.items())))
        if ".wq." in theirs or ".wk." in theirs:        # x0 x1 .. x(d/2) .. -> x0 x(d/2) x1 ..
            per_head = tensor.view(heads, 2, -1, tensor.shape[1])
            tensor = torch.stack([per_head[:, 0], per_head[:, 1]], dim=2).reshape(tensor.shape)
        out[theirs] = tensor
    return out


def hf_json(config, **more):
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "hidden_size": config.width, "num_hidden_layers": config.depth,
            "num_attention_heads": config.heads, "intermediate_size": config.mlp_width,
            "max_position_embeddings": config.max_positions, "rms_norm_eps": config.norm_eps,
            "vocab_size": config.vocab_size, "rope_scaling": None, **more}


def params_json(config):
    return {"dim": config.width, "n_layers": config.depth, "n_heads": config.heads,
            "norm_eps": config.norm_eps, "multiple_of": 256, "vocab_size": -1}


# ---- adapters ------------------------------------------------------------------------------------

def minigpt_v2(tensors, default=""):
    """{"model": ..} with the optimizer's state beside it; default: ".default", as peft from 0.3 on
    names its tensors."""
    own = renamed({k: v for k, v in tensors.items() if ".lora_" in k},
                  ("llama_model.model.", "llama_model.base_model.model.model."),
                  (".weight", f"{default}.weight"))
    own |= {k: v for k, v in tensors.items() if k.startswith("llama_proj.")}
    buffer = "llama_model.base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq"
    state = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(4)}},
             "param_groups": [{"lr": 1e-5, "betas": (0.9, 0.999), "params": [0]}]}
    return {"model": own | {buffer: torch.randn(5)}, "optimizer": state, "epoch": 3,
            "config": {"run": {"amp": True}, "model": {"lora_r": 7, "lora_alpha": 11}},
            "scaler": {"scale": 65536.0}}


# ---- files ---------------------------------------------------------------------------------------

def tokenizer(pieces=tiny.VOCAB):
    """tokenizer.model with so many pieces: the tests' own, then pieces that no text contains."""
    more = b""
    for i in range(tiny.VOCAB, pieces):
        text = f"\uffff{i}".encode()
        piece = b"\n" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", -1000.0 - i)
        more += b"\n" + bytes([len(piece)]) + piece
    return tiny.tokenizer_bytes() + more


def write_sharded(folder: Path, tensors, shards=2, stem="model"):
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    weight_map = {name: f"{stem}-{1 + i * shards // len(names):05}-of-{shards:05}.safetensors"
                  for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        own = {k: tensors[k].contiguous() for k in names if weight_map[k] == file}
        save_file(own, folder / file, {"format": "pt"})
    size = sum(tensor.nbytes for tensor in tensors.values())
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(
        {"metadata": {"total_size": size}, "weight_map": weight_map}))


def llama_folder(folder: Path, tensors, config, pieces=None, **more):
    """LLaMA-2-7b-chat-hf, in small."""
    write_sharded(folder, tensors)
    (folder / "config.json").write_text(json.dumps(hf_json(config, **more)))
    (folder / "tokenizer.model").write_bytes(tokenizer(pieces or config.vocab_size))
    return folder
