"""support/checkpoints/load.py"""
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

import vit
from llama import Llama, LlamaConfig
from support.checkpoints.files import (
    LazyTensor,
    ModelError,
    load_pickled,
    load_strict,
    open_checkpoint,
    read_json,
)
from support.checkpoints.names import extract_adapter, extract_llama, extract_vit
from vit import ViT, ViTConfig, resize_positions

# ---- adapter -------------------------------------------------------------------------------------

def open_adapter_file(file: Path) -> tuple[dict[str, LazyTensor], dict]:
    """SkyEyeGPT.pth -> its tensors and its LoRA's entries of LoRAConfig, {} where there is none.

    MiniGPT-v2's LoRA is always on q and v, so that one missing is missed; its alpha stands in the
    training configuration beside the tensors, and is 16 in the released one.
    """
    tensors = open_checkpoint(file)
    ranks = [stored.shape[0] for name, stored in tensors.items() if ".lora_A." in name]
    if "llama_proj.weight" in tensors and not ranks:
        raise ModelError(f"{file}: a projector and no LoRA that has MiniGPT-v2's names; it holds "
                         f"{', '.join(list(tensors)[:3])}, ..")
    trained = {} if file.suffix == ".safetensors" else load_pickled(file).get("config")
    told = (trained or {}).get("model") or {}
    lora = {"r": max(ranks), "alpha": float(told.get("lora_alpha", 16)), "dropout": 0.05,
            "targets": ("q_proj", "v_proj")} if ranks else {}
    return tensors, lora


# ---- gather --------------------------------------------------------------------------------------
# Everything that was downloaded -> tensors under SkyEyeGPT's names.

Tensors = dict[str, LazyTensor]


# Of larger models whose vision part is read: text towers, BLIP-2's Q-Former and language model.
OTHER_PARTS = r"^(text|logit_scale|visual_projection|language_|qformer\.|query_tokens$)"


def read_folder(folder: Path, fit: Callable[[Tensors], Tensors]) -> Tensors:
    """A model folder of ours, and what it leaves out: its base, ours too or released (`fit`)."""
    file = folder / "config.json"
    told = read_json(file) if file.is_file() else {}
    if "llama" not in told:
        return fit(read_base(folder, read_llama_config(folder).get("heads", 32)))
    base = folder / told.get("base", "")
    if told.get("base") and base.resolve() == folder.resolve():
        raise ModelError(f"{file}: names its own folder as its base")
    if told.get("base") and not base.is_dir():
        raise ModelError(f"{file}: its base {base} is gone; put it back or correct the entry")
    tensors = read_folder(base, fit) if told.get("base") else {}
    for part in sorted(folder.glob("*.safetensors")):
        tensors |= open_checkpoint(part)
    return tensors


def read_base(folder: Path, heads: int) -> Tensors:
    """LLaMA-2, Vicuna, or all of LLaVA-1.5."""
    tensors = open_checkpoint(folder)
    found = {"llama_model." + name: s for name, s in extract_llama(tensors, heads).items()}
    found |= {"visual_encoder." + name: s for name, s in extract_vit(tensors).items()}
    found |= extract_adapter(tensors)
    return require_all_used(folder, tensors, found)


def read_vit(place: Path) -> Tensors:
    """A vision encoder, alone or in a larger model -> its tensors under vit.py's names."""
    tensors = open_checkpoint(place)
    found = extract_vit(tensors)
    others = [name for name in tensors if re.search(OTHER_PARTS, name)]
    return require_all_used(place, {k: s for k, s in tensors.items() if k not in others}, found)


def read_adapter(place: Path) -> tuple[Tensors, dict]:
    """-> LoRA and projector, and the LoRA's entries of LoRAConfig ({}: a projector alone)."""
    tensors, lora = (open_peft_folder if place.is_dir() else open_adapter_file)(place)
    return require_all_used(place, tensors, extract_adapter(tensors)), lora


def require_all_used(place: Path, tensors: Tensors, found: Tensors) -> Tensors:
    if tensors or not found:
        raise ModelError(f"{place}: {len(tensors)} unknown names: {', '.join(list(tensors)[:3])}")
    return found


# ---- config --------------------------------------------------------------------------------------
# What lies beside a LLaMA's weights: config.json or params.json, and the tokenizer.

HF_KEYS = {"hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "heads",
      "max_position_embeddings": "max_positions", "rms_norm_eps": "norm_eps",
      "rope_theta": "rope_theta", "vocab_size": "vocab_size", "intermediate_size": "mlp"}


META_KEYS = {"dim": "width", "n_layers": "depth", "n_heads": "heads", "norm_eps": "norm_eps"}


def read_llama_config(folder: Path) -> dict:
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
    return {ours: told[theirs] for theirs, ours in (HF_KEYS | META_KEYS).items() if theirs in told}


def sizes_from_shapes(found: Mapping[str, LazyTensor]) -> dict:
    """What the shapes tell, as LLaVA's rows have been cut and Meta's file names no widths."""
    sizes = {"vocab_size": "lm_head.weight", "mlp": "layers.0.mlp.gate_proj.weight"}
    return {ours: found[name].shape[0] for ours, end in sizes.items()
            for name in found if name.endswith(end)}


# ---- peft ----------------------------------------------------------------------------------------
# A LoRA as a folder of the library peft: adapter_config.json, adapter_model.safetensors.
#
# peft knows LoRA alone, so the projector lies beside it in a file of its own: LLaVA calls it
# non_lora_trainables.bin, we projector.safetensors.

PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin", "projector.safetensors",
         "non_lora_trainables.bin")


PLAIN_LORA = {"peft_type": "LORA", "bias": "none", "use_rslora": False, "use_dora": False,
         "fan_in_fan_out": False, "modules_to_save": None, "layers_to_transform": None}


def open_peft_folder(folder: Path) -> tuple[dict[str, LazyTensor], dict]:
    """A peft folder, and the projector that LLaVA or export.py put in it -> as open_file."""
    told = read_json(folder / "adapter_config.json")
    for key, value in PLAIN_LORA.items():
        if (told.get(key) or value) != value:
            raise ModelError(f"{folder / 'adapter_config.json'}: {key} is {told[key]!r}; a plain "
                             f"LoRA, with {value!r}, is expected")
    files = [folder / name for name in PEFT_FILES if (folder / name).is_file()]
    tensors = {}
    for file in files:
        tensors |= open_checkpoint(file)
    return tensors, {"r": told["r"], "alpha": float(told["lora_alpha"]),
                     "dropout": told.get("lora_dropout", 0.0),
                     "targets": tuple(sorted(told["target_modules"]))}


# ---- vit -----------------------------------------------------------------------------------------

def fit_vit(tensors: dict[str, LazyTensor], config: ViTConfig, prefix: str = "") -> dict[str, LazyTensor]:
    """Without the block after the last one that is used; EVA's positions for the picture's size."""
    unused, pos_embed = f"{prefix}blocks.{config.depth}.", f"{prefix}pos_embed"
    tensors = {name: stored for name, stored in tensors.items() if not name.startswith(unused)}
    if pos_embed in tensors and not config.clip:
        stored, P = tensors[pos_embed], config.grid ** 2
        tensors[pos_embed] = stored.then((1, 1 + P, *stored.shape[2:]),
                                         lambda x: resize_positions(x, config.grid))
    return tensors


def load_vit(path: str | Path, config: ViTConfig | None = None, device: str = "cpu",
             dtype: torch.dtype = torch.float32) -> ViT:
    """Released weights in any published layout; the names tell EVA from CLIP. ModelError."""
    tensors = read_vit(Path(path))
    released = vit.PRESETS["clip_vit_l_336" if "norm_pre.weight" in tensors else "eva_vit_g"]
    with torch.device("meta"):
        model = ViT(config or released)
    return load_strict(model, fit_vit(tensors, model.config), path, device, dtype)


def load_llama(folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32
               ) -> Llama:
    """LLaMA-2, Vicuna or LLaVA's language model, as Hugging Face or Meta publish it.

    Raises ModelError: one line with the file.
    """
    folder = Path(folder)
    config = LlamaConfig(**read_llama_config(folder))
    found = {name.removeprefix("llama_model."): stored
             for name, stored in read_base(folder, config.heads).items()
             if name.startswith("llama_model.")}
    with torch.device("meta"):
        model = Llama(replace(config, **sizes_from_shapes(found)))
    return load_strict(model, found, folder, device, dtype)
