"""What lies beside a LLaMA's weights: config.json or params.json, and the tokenizer."""
from collections.abc import Mapping
from pathlib import Path

import sentencepiece

from formats.released.checks import read_json
from formats.released.tensors import ModelError, Stored

HF = {"hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "heads",
      "max_position_embeddings": "max_positions", "rms_norm_eps": "norm_eps",
      "rope_theta": "rope_theta", "vocab_size": "vocab_size", "intermediate_size": "mlp"}
META = {"dim": "width", "n_layers": "depth", "n_heads": "heads", "norm_eps": "norm_eps"}


def read_config(folder: Path) -> dict:
    """-> the entries of LlamaConfig that the folder tells. ModelError: another architecture."""
    file = folder / ("params.json" if (folder / "params.json").is_file() else "config.json")
    if not file.is_file():
        raise ModelError(f"{folder}: neither config.json (Hugging Face) nor params.json (Meta)")
    told = read_json(file)
    told |= told.get("text_config") or {}
    told |= told.get("rope_parameters") or {}
    if told.get("model_type", "llama") not in ("llama", "llava", "llava_llama"):
        raise ModelError(f"{file}: a {told['model_type']}; a llama or llava is expected")
    heads = told.get("num_attention_heads") or told.get("n_heads")
    if (told.get("num_key_value_heads") or told.get("n_kv_heads") or heads) != heads:
        raise ModelError(f"{file}: fewer keys than queries; LLaMA-2 7B and 13B have as many")
    if told.get("rope_scaling") or told.get("rope_type", "default") != "default":
        raise ModelError(f"{file}: RoPE is scaled; LLaMA-2's is not")
    return {ours: told[theirs] for theirs, ours in (HF | META).items() if theirs in told}


def measure(found: Mapping[str, Stored]) -> dict:
    """What the shapes tell, as LLaVA's rows have been cut and Meta's file names no widths."""
    sizes = {"vocab_size": "lm_head.weight", "mlp": "layers.0.mlp.gate_proj.weight"}
    return {ours: found[name].shape[0] for ours, end in sizes.items()
            for name in found if name.endswith(end)}


def find_tokenizer(folder: Path, vocabulary: int) -> Path:
    """tokenizer.model there or, as Meta packs it, above; of as many pieces as embeddings."""
    file = folder / "tokenizer.model"
    file = file if file.is_file() else folder.parent / "tokenizer.model"
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(file)).vocab_size()
    except (OSError, RuntimeError):
        raise ModelError(f"{folder}: no readable tokenizer.model there; download it") from None
    if pieces != vocabulary:
        raise ModelError(f"{file}: {pieces} pieces for the {vocabulary} embeddings of {folder}")
    return file


def hf_config(config) -> dict:
    """LlamaConfig -> the config.json of a Hugging Face folder."""
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "num_key_value_heads": config.heads, "hidden_act": "silu", "tie_word_embeddings": False,
            "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2,
            **{theirs: getattr(config, ours) for theirs, ours in HF.items()}}
