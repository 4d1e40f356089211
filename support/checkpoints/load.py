"""Released weights, as they were downloaded -> models, or lazy tensors under SkyEyeGPT's names.

    load_vit        EVA ViT-g or CLIP, alone or in a larger model -> ViT
    load_llama      LLaMA-2, Vicuna or LLaVA's language model -> Llama
    read_folder     a model folder of ours, and the base that it names -> tensors
    read_base, read_vit, read_adapter      a download -> the tensors of one part of SkyEyeGPT

Every name in a download must be known: a ModelError lists those that are not. Layouts of the names
are in `names`, of the files in `files`. The configurations that come beside the weights are read
here too: config.json (Hugging Face), params.json (Meta), adapter_config.json (peft).
"""
import re
from dataclasses import replace
from pathlib import Path

import torch

import vit
from llama import Llama, LlamaConfig
from lora import LoRAConfig
from support.checkpoints.files import (
    LazyTensor,
    ModelError,
    list_some,
    load_pickled,
    load_strict,
    open_checkpoint,
    read_json,
)
from support.checkpoints.names import extract_adapter, extract_llama, extract_vit
from vit import ViT, ViTConfig, resize_positions

Tensors = dict[str, LazyTensor]


# ---- the two models alone ------------------------------------------------------------------------

def load_vit(path: str | Path, config: ViTConfig | None = None, device: str = "cpu",
             dtype: torch.dtype = torch.float32) -> ViT:
    """Released weights in any published layout. ModelError: one line with the file.

    config: None for the released sizes; whether it is EVA or CLIP follows from the names.
    """
    tensors = read_vit(Path(path))
    config = config or released_vit(tensors)
    with torch.device("meta"):
        model = ViT(config)
    return load_strict(model, fit_vit(tensors, config), path, device, dtype)


def load_llama(folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32
               ) -> Llama:
    """LLaMA-2, Vicuna or LLaVA's language model, as Hugging Face or Meta publish it. ModelError."""
    folder = Path(folder)
    config = LlamaConfig(**read_llama_config(folder))
    tensors = {name.removeprefix("llama_model."): tensor
               for name, tensor in read_base(folder, config.heads).items()
               if name.startswith("llama_model.")}
    config = replace(config, **sizes_from_shapes(tensors))
    with torch.device("meta"):
        model = Llama(config)
    return load_strict(model, tensors, folder, device, dtype)


def released_vit(tensors: Tensors, prefix: str = "") -> ViTConfig:
    """Which of the two released encoders it is: CLIP alone has a norm before its blocks."""
    is_clip = f"{prefix}norm_pre.weight" in tensors
    return vit.PRESETS["clip_vit_l_336" if is_clip else "eva_vit_g"]


def fit_vit(tensors: Tensors, config: ViTConfig, prefix: str = "") -> Tensors:
    """Released weights for this config: the unused last block is left out, and EVA's positions are
    resized to the picture's size."""
    unused, pos_embed = f"{prefix}blocks.{config.depth}.", f"{prefix}pos_embed"
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(unused)}
    if pos_embed in tensors and config.variant == "eva":
        stored = tensors[pos_embed]
        shape = (1, 1 + config.grid ** 2, *stored.shape[2:])
        tensors[pos_embed] = stored.map(shape, lambda x: resize_positions(x, config.grid))
    return tensors


# ---- a model folder of ours ----------------------------------------------------------------------

def read_folder(folder: Path, vit_config: ViTConfig) -> Tensors:
    """All tensors of a model folder, under SkyEyeGPT's names.

    What the folder leaves out is read from the base that its config.json names: a model folder of
    ours again, or a released LLaMA or LLaVA, whose vision encoder is fitted to vit_config.
    """
    file = folder / "config.json"
    config = read_json(file) if file.is_file() else {}
    if "llama" not in config:                   # not one of ours
        heads = read_llama_config(folder).get("heads", 32)
        return fit_vit(read_base(folder, heads), vit_config, "visual_encoder.")
    tensors = {}
    if config.get("base"):
        base = folder / config["base"]
        if base.resolve() == folder.resolve():
            raise ModelError(f"{file}: names its own folder as its base")
        if not base.is_dir():
            raise ModelError(f"{file}: its base {base} is gone; put it back or correct the entry")
        tensors = read_folder(base, vit_config)
    for weights in sorted(folder.glob("*.safetensors")):
        tensors |= open_checkpoint(weights)
    return tensors


# ---- the parts of SkyEyeGPT ----------------------------------------------------------------------

# Of larger models whose vision part is read: text towers, BLIP-2's Q-Former and language model.
NOT_VISION = r"^(text|logit_scale|visual_projection|language_|qformer\.|query_tokens$)"


def read_base(folder: Path, heads: int) -> Tensors:
    """LLaMA-2, Vicuna, or all of LLaVA-1.5. heads: of its attention."""
    tensors = open_checkpoint(folder)
    found = {f"llama_model.{k}": v for k, v in extract_llama(tensors, heads).items()}
    found |= {f"visual_encoder.{k}": v for k, v in extract_vit(tensors).items()}
    found |= extract_adapter(tensors)
    require_all_used(folder, tensors, found)
    return found


def read_vit(place: Path) -> Tensors:
    """A vision encoder, alone or in a larger model -> its tensors under vit.py's names."""
    tensors = open_checkpoint(place)
    found = extract_vit(tensors)
    unused = {name: tensor for name, tensor in tensors.items() if not re.search(NOT_VISION, name)}
    require_all_used(place, unused, found)
    return found


def read_adapter(place: Path) -> tuple[Tensors, LoRAConfig | None]:
    """LoRA and projector, or a projector alone, and the LoRA's configuration.

    place: SkyEyeGPT.pth or another .pth of MiniGPT-v2, or a peft folder.
    """
    if place.is_dir():
        tensors, lora = open_peft_folder(place)
    else:
        tensors, lora = open_adapter_file(place)
    found = extract_adapter(tensors)
    require_all_used(place, tensors, found)
    return found, lora


def require_all_used(place: Path, unused: Tensors, found: Tensors) -> None:
    if unused or not found:
        raise ModelError(f"{place}: {len(unused)} unknown names: {list_some(unused)}")


def open_adapter_file(file: Path) -> tuple[Tensors, LoRAConfig | None]:
    """MiniGPT-v2's .pth -> its tensors under its own names, and the LoRA's configuration.

    MiniGPT-v2's LoRA is always on q and v (so a missing one is noticed). Its alpha is in the
    training configuration beside the tensors, and 16 where there is none, as in SkyEyeGPT.pth.
    """
    tensors = open_checkpoint(file)
    ranks = [tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name]
    if not ranks:
        if "llama_proj.weight" in tensors:
            raise ModelError(f"{file}: a projector and no LoRA that has MiniGPT-v2's names; it "
                             f"holds {list_some(tensors)}")
        return tensors, None
    training = {} if file.suffix == ".safetensors" else load_pickled(file).get("config") or {}
    alpha = (training.get("model") or {}).get("lora_alpha", 16)
    return tensors, LoRAConfig(max(ranks), float(alpha), 0.05, ("q_proj", "v_proj"))


# peft knows LoRA alone, so the projector is beside it in a file of its own: ours is called
# projector.safetensors, LLaVA's non_lora_trainables.bin.
PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin", "projector.safetensors",
              "non_lora_trainables.bin")
PLAIN_LORA = {"peft_type": "LORA", "bias": "none", "use_rslora": False, "use_dora": False,
              "fan_in_fan_out": False, "modules_to_save": None, "layers_to_transform": None}


def open_peft_folder(folder: Path) -> tuple[Tensors, LoRAConfig]:
    """A folder of the library peft -> its tensors under their own names, and the configuration."""
    file = folder / "adapter_config.json"
    config = read_json(file)
    for key, expected in PLAIN_LORA.items():
        if (config.get(key) or expected) != expected:
            raise ModelError(f"{file}: {key} is {config[key]!r}; a plain LoRA, with {expected!r}, "
                             "is expected")
    tensors = {}
    for name in PEFT_FILES:
        if (folder / name).is_file():
            tensors |= open_checkpoint(folder / name)
    return tensors, LoRAConfig(config["r"], float(config["lora_alpha"]),
                               config.get("lora_dropout", 0.0),
                               tuple(sorted(config["target_modules"])))


# ---- the language model's configuration ----------------------------------------------------------

# Their key -> the field of LlamaConfig.
HF_KEYS = {"hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "heads",
           "max_position_embeddings": "max_positions", "rms_norm_eps": "norm_eps",
           "rope_theta": "rope_theta", "vocab_size": "vocab_size",
           "intermediate_size": "mlp_width"}
META_KEYS = {"dim": "width", "n_layers": "depth", "n_heads": "heads", "norm_eps": "norm_eps"}


def read_llama_config(folder: Path) -> dict:
    """-> the fields of LlamaConfig that are given beside the weights.

    ModelError: no configuration, or one of another architecture.
    """
    file = folder / ("params.json" if (folder / "params.json").is_file() else "config.json")
    if not file.is_file():
        raise ModelError(f"{folder}: neither config.json (Hugging Face) nor params.json (Meta)")
    config = read_json(file)
    config |= config.get("text_config") or {}           # of LLaVA
    config |= config.get("rope_parameters") or {}       # of transformers from version 5 on
    check_architecture(file, config)
    return {ours: config[theirs] for theirs, ours in (HF_KEYS | META_KEYS).items()
            if theirs in config}


def check_architecture(file: Path, config: dict) -> None:
    if config.get("model_type", "llama") not in ("llama", "llava", "llava_llama"):
        raise ModelError(f"{file}: a {config['model_type']}; a llama or llava is expected")
    heads = config.get("num_attention_heads") or config.get("n_heads")
    kv_heads = config.get("num_key_value_heads") or config.get("n_kv_heads") or heads
    if kv_heads != heads:
        raise ModelError(f"{file}: fewer keys than queries; LLaMA-2 7B and 13B have as many")
    if config.get("rope_scaling") or config.get("rope_type", "default") != "default":
        raise ModelError(f"{file}: RoPE is scaled; LLaMA-2's is not")


def sizes_from_shapes(tensors: Tensors) -> dict:
    """-> the fields of LlamaConfig that the shapes show: LLaVA's extra rows have been cut off, and
    Meta's file names no widths."""
    names = {"vocab_size": "lm_head.weight", "mlp_width": "layers.0.mlp.gate_proj.weight"}
    return {field: tensor.shape[0] for field, ending in names.items()
            for name, tensor in tensors.items() if name.endswith(ending)}
