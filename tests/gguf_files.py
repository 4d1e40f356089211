"""A LLaMA as llama.cpp's files, and the greedy tokens that llama.cpp generates from one.

Needs llama-cpp-python and gguf (pip install llama-cpp-python gguf). llama.cpp's own quantizer puts
the layers into Q8_0 or Q4_0 and the head into Q8_0; embeddings stay in the source's float type,
as ours do.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""
import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

import layouts
from llama import LlamaConfig

MISSING = [package for package, module in (("llama-cpp-python", "llama_cpp"), ("gguf", "gguf"))
           if not importlib.util.find_spec(module)]
NAMES = (("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"),
         ("lm_head", "output"), ("model.layers", "blk"), ("input_layernorm", "attn_norm"),
         ("post_attention_layernorm", "ffn_norm"), ("self_attn.o_proj", "attn_output"),
         ("self_attn.", "attn_"), ("mlp.", "ffn_"), ("_proj", ""))
KINDS = {torch.float32: "F32", torch.bfloat16: "BF16", 8: "Q8_0", 4: "Q4_0"}


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """The rows of q or k, x0 x1 .. x(d/2) .. -> x0 x(d/2) x1 .., float[D, D]"""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def described(file: Path, config: LlamaConfig):
    """-> gguf.GGUFWriter. The vocabulary has the right size and no meaning: ids go in and out."""
    import gguf
    out, kinds = gguf.GGUFWriter(file, "llama"), gguf.TokenType
    out.add_context_length(config.max_positions)
    out.add_embedding_length(config.width)
    out.add_block_count(config.depth)
    out.add_feed_forward_length(config.mlp_width)
    out.add_head_count(config.heads)
    out.add_layer_norm_rms_eps(config.norm_eps)
    out.add_rope_freq_base(config.rope_theta)
    pieces = {"<unk>": kinds.UNKNOWN, "<s>": kinds.CONTROL, "</s>": kinds.CONTROL}
    pieces |= {f"<0x{i:02X}>": kinds.BYTE for i in range(256)}
    pieces |= {f"w{i}": kinds.NORMAL for i in range(len(pieces), config.vocab_size)}
    out.add_tokenizer_model("llama")
    out.add_token_list(list(pieces))
    out.add_token_scores([-float(i) for i in range(len(pieces))])
    out.add_token_types(list(pieces.values()))
    return out


def write_gguf(folder: Path, config: LlamaConfig, file: Path) -> None:
    """A folder's model.safetensors in its own float type; norms are float32, as llama.cpp asks."""
    import gguf
    out = described(file, config)

    def read(name: str) -> Tensor:
        tensor = source.get_tensor(name)
        if "q_proj" in name or "k_proj" in name:
            tensor = interleaved(tensor, config.heads)
        return tensor.float() if "norm" in name else tensor

    with safe_open(folder / "model.safetensors", "pt") as source:
        names = list(source.keys())
        for name in names:
            (theirs, x), = layouts.renamed({name: read(name)}, *NAMES).items()
            out.add_tensor_info(theirs, x.shape, np.dtype(np.float32), x.nbytes,
                                gguf.GGMLQuantizationType[KINDS[x.dtype]])
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_ti_data_to_file()
        for name in names:
            out.write_tensor_data(read(name).contiguous().view(torch.uint8).numpy())
    out.close()


def quantize_gguf(source: Path, bits: int, dtype: torch.dtype, file: Path) -> None:
    """dtype: that of the source, which embeddings keep."""
    import gguf
    import llama_cpp
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = {8: llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
                    4: llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}[bits]
    params.pure = True                      # no other types in some layers
    params.output_tensor_type = gguf.GGMLQuantizationType.Q8_0
    params.token_embedding_type = gguf.GGMLQuantizationType[KINDS[dtype]]
    if llama_cpp.llama_model_quantize(str(source).encode(), str(file).encode(), params):
        raise RuntimeError(f"{source}: llama.cpp cannot quantize it")


def load_gguf(file: Path, prompt: int, new: int, threads: int, exact: bool = False):
    """-> llama_cpp.Llama, as is fastest: flash attention and a cache in float16. Exact: float32."""
    import llama_cpp
    kind = llama_cpp.GGML_TYPE_F32 if exact else llama_cpp.GGML_TYPE_F16
    return llama_cpp.Llama(str(file), n_ctx=prompt + new, n_batch=prompt, n_ubatch=prompt,
                           n_threads=threads, n_threads_batch=threads, type_k=kind, type_v=kind,
                           flash_attn=True, verbose=False)


def tokens(model, prompt: list[int], new: int) -> Iterator[Tensor]:
    """Greedy, on the bare C interface: the sampler and the Python class would add to it."""
    import llama_cpp
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(model.ctx), False)
    ids = prompt
    for _ in range(new):
        held = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(model.ctx, llama_cpp.llama_batch_get_one(held, len(ids))):
            raise RuntimeError("llama.cpp cannot decode")
        logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        ids = [int(np.ctypeslib.as_array(logits, (model.n_vocab(),)).argmax())]
        yield torch.tensor(ids)
