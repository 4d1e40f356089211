"""Released weights, as they were downloaded -> models, or lazy tensors under SkyEyeGPT's names.

    load_vit        EVA ViT-g or CLIP, alone or in a larger model -> ViT
    load_llama      LLaMA-2, Vicuna or LLaVA's language model -> Llama
    read_folder     a model folder of ours, and the base that it names -> tensors
    read_base, read_vit, read_adapter      a download -> the tensors of one part of SkyEyeGPT

Every name in a download must be known: a ModelError lists those that are not. Layouts of the names
are in `names`, of the files in `files`. The configurations that come beside the weights are read
here too: config.json (Hugging Face), params.json (Meta), adapter_config.json (peft).
"""
import os
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
    unusable_name,
    visible_files,
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

def read_folder(folder: Path, vit_config: ViTConfig, above: tuple[Path, ...] = ()) -> Tensors:
    """All tensors of a model folder, under SkyEyeGPT's names.

    What the folder leaves out is read from the base that its config.json names: a model folder of
    ours again, or a released LLaMA or LLaVA, whose vision encoder is fitted to vit_config.
    above: the folders whose base this one is.
    """
    file = folder / "config.json"
    config = read_json(file) if file.is_file() else {}
    if "llama" not in config:                   # not one of ours
        heads = read_llama_config(folder).get("heads", 32)
        return fit_vit(read_base(folder, heads), vit_config, "visual_encoder.")
    tensors = {}
    if config.get("base"):
        if not isinstance(config["base"], str):
            raise ModelError(f"{file}: base is {repr(config['base'])[:80]}; a path is expected")
        if unusable_name(config["base"]):
            raise ModelError(f"{file}: its base {config['base'][:80]} is no path")
        base = Path(os.path.normpath(folder.resolve() / config["base"]))
        above = (*above, folder.resolve())
        if base.resolve() == folder.resolve():
            raise ModelError(f"{file}: names its own folder as its base")
        if base.resolve() in above:
            raise ModelError(f"{file}: names {base} as its base, whose base it is itself")
        if not base.is_dir():
            raise ModelError(f"{file}: its base {base} is gone; put it back or correct the entry")
        tensors = read_folder(base, vit_config, above)
    own: Tensors = {}
    for weights in folder_weights(folder, config):
        opened = open_checkpoint(weights)
        if twice := own.keys() & opened.keys():
            raise ModelError(f"{weights}: holds {list_some(sorted(twice))}, and so does another "
                             f"file of {folder}; move what does not belong to the model away")
        own |= opened
    return tensors | own


def folder_weights(folder: Path, config: dict) -> list[Path]:
    """The files that config.json's "files" names; all *.safetensors where it has no such entry, as
    in folders of earlier versions. ModelError: another one lies beside them."""
    present = visible_files(folder, "*.safetensors")
    files = config.get("files")
    if files is None:
        return present
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise ModelError(f"{folder}/config.json: files is {repr(files)[:80]}; a list of names is "
                         "expected")
    strays = [path.name for path in present if path.name not in files]
    if strays:
        raise ModelError(f"{folder}: {list_some(strays)} is not of this model, whose config.json "
                         f"names {list_some(files)}; move it away")
    for name in filter(unusable_name, files):
        raise ModelError(f"{folder}/config.json: files names {name[:80]}, which is no file's name")
    return [folder / Path(name).name for name in files]


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
    head, embedding = "llama_model.lm_head.weight", "llama_model.model.embed_tokens.weight"
    if head not in found and embedding in found and is_tied(folder):
        found[head] = found[embedding]          # written once; two tensors of ours
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
# Entries that change nothing about what a trained LoRA computes, or that are read below. Any other
# one means more than a plain LoRA, unless it is empty or False.
HARMLESS_ENTRIES = {"r", "lora_alpha", "lora_dropout", "target_modules", "rank_pattern",
                    "alpha_pattern", "init_lora_weights", "task_type", "inference_mode", "revision",
                    "base_model_name_or_path", "auto_mapping", "peft_version", "runtime_config",
                    "megatron_core", "qalora_group_size", "eva_config"}
# How B and A began: those which leave the base's weights as they are. PiSSA, OLoRA, LoftQ and CorDA
# change them, so their adapters do not fit the base that was downloaded.
PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


def open_peft_folder(folder: Path) -> tuple[Tensors, LoRAConfig]:
    """A folder of the library peft -> its tensors under their own names, and the configuration.

    ModelError, by the entry's name: what it computes cannot be written as a LoRAConfig.
    """
    file = folder / "adapter_config.json"
    config = read_json(file)
    for key, value in config.items():
        if key in PLAIN_LORA or key not in HARMLESS_ENTRIES:
            expected = PLAIN_LORA.get(key)
            if (value or expected) != expected:
                raise ModelError(f"{file}: {key} is {repr(value)[:80]}; a plain LoRA, with "
                                 f"{expected!r}, is expected")
    start = config.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        raise ModelError(f"{file}: init_lora_weights is {repr(start)[:80]}, which changes the "
                         "base's weights; convert it to a plain LoRA with peft's save_pretrained("
                         "path_initial_model_for_weight_conversion=..)")
    tensors = {}
    for name in PEFT_FILES:
        if (folder / name).is_file():
            tensors |= open_checkpoint(folder / name)
    ranks = {lora_layer(name): tensor.shape[0] for name, tensor in tensors.items()
             if ".lora_A." in name}
    if not ranks:
        raise ModelError(f"{folder}: no LoRA in {' or '.join(PEFT_FILES[:2])}; is the download "
                         "complete?")
    try:
        check_targets(config["target_modules"], list(ranks))
        return tensors, LoRAConfig(
            same_for_all(config, "r", "rank_pattern", ranks),
            float(same_for_all(config, "lora_alpha", "alpha_pattern", dict.fromkeys(ranks))),
            float(config.get("lora_dropout") or 0.0), same_targets(list(ranks)))
    except KeyError as error:
        raise ModelError(f"{file}: no {error}") from None
    except (TypeError, ValueError, re.error) as error:
        raise ModelError(f"{file}: {error}") from None


def lora_layer(name: str) -> str:
    """A LoRA tensor's name -> its layer's in the base, "model.layers.0.self_attn.q_proj"."""
    return name.partition(".lora_A.")[0].removeprefix("base_model.model.")


def same_for_all(config: dict, key: str, pattern_key: str, found: dict[str, int | None]
                 ) -> float:
    """config[key], or what config[pattern_key] has for the layers: one number for all of them.

    found: layer -> what its tensor shows, or None. ValueError: the numbers differ.
    """
    patterns, numbers = config.get(pattern_key) or {}, {}
    for layer, seen in found.items():
        fits = (number for pattern, number in patterns.items()      # peft takes the first one
                if re.match(rf"(.*\.)?({pattern})$", layer))
        numbers[layer] = number = next(fits, config[key])
        if isinstance(number, bool) or not isinstance(number, int | float) or not number > 0:
            raise ValueError(f"{key} of {layer} is {repr(number)[:80]}; a number is expected")
        if seen not in (None, number):
            raise ValueError(f"{key} of {layer} is {number} by {key} and {pattern_key}, its tensor "
                             f"has rank {seen}")
    first = next(iter(numbers))
    other = next((layer for layer in numbers if numbers[layer] != numbers[first]), first)
    if other != first:
        raise ValueError(f"{pattern_key} gives {first} {numbers[first]} and {other} "
                         f"{numbers[other]}; a LoRA with one {key} is expected")
    return numbers[first]


def check_targets(targets: str | list[str], layers: list[str]) -> None:
    """ValueError unless target_modules, as peft reads it, names just the layers that have a LoRA:
    ends of names, one regular expression of whole names, or "all-linear"."""
    if isinstance(targets, str):
        strays = [] if targets.lower() == "all-linear" else [
            layer for layer in layers if not re.fullmatch(targets, layer)]
        unused: list[str] = []
    else:
        ends = tuple(f".{target}" for target in targets)
        strays = [layer for layer in layers if not f".{layer}".endswith(ends)]
        unused = [target for target in targets
                  if not any(f".{layer}".endswith(f".{target}") for layer in layers)]
    if strays:
        raise ValueError(f"target_modules does not name {list_some(strays)}, whose LoRA is there")
    if unused:
        raise ValueError(f"target_modules names {list_some(unused)}, whose LoRA is not there; is "
                         "the download complete?")


def same_targets(layers: list[str]) -> tuple[str, ...]:
    """-> the last parts of the layers' names. ValueError unless each decoder layer has the same."""
    names: dict[str, set[str]] = {}
    for layer in layers:
        block, _, name = layer.rpartition(".")
        names.setdefault(re.sub(r"(\.layers\.[0-9]+)\..*", r"\1", block), set()).add(name)
    everywhere = set.union(*names.values())
    for block, own in names.items():
        if own != everywhere:
            raise ValueError(f"target_modules leaves {list_some(sorted(everywhere - own))} of "
                             f"{block} without a LoRA; one on every layer is expected")
    return tuple(sorted(everywhere))


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
    for key in ("text_config", "rope_parameters"):      # of LLaVA; of transformers from 5 on
        entries = config.get(key) or {}
        if not isinstance(entries, dict):
            raise ModelError(f"{file}: {key} is {repr(entries)[:80]}; an object is expected")
        config |= entries
    check_architecture(file, config)
    fields = {ours: config[theirs] for theirs, ours in (HF_KEYS | META_KEYS).items()
              if config.get(theirs) is not None}
    check_sizes(file, fields)
    llama = LlamaConfig(**fields)
    if llama.heads < 1 or llama.width < 2 or llama.width % (2 * llama.heads):
        raise ModelError(f"{file}: {llama.heads} heads do not divide a width of {llama.width} into "
                         "even parts")
    return fields


def check_architecture(file: Path, config: dict) -> None:
    if config.get("model_type", "llama") not in ("llama", "llava", "llava_llama"):
        raise ModelError(f"{file}: a {config['model_type']}; a llama or llava is expected")
    heads = config.get("num_attention_heads") or config.get("n_heads")
    kv_heads = config.get("num_key_value_heads") or config.get("n_kv_heads") or heads
    if kv_heads != heads:
        raise ModelError(f"{file}: fewer keys than queries; LLaMA-2 7B and 13B have as many")
    if not is_plain_rope(config.get("rope_scaling")) or not is_plain_rope(config):
        raise ModelError(f"{file}: RoPE is scaled; LLaMA-2's is not")
    activation = config.get("hidden_act") or "silu"
    if activation not in ("silu", "swish"):
        raise ModelError(f"{file}: hidden_act is {repr(activation)[:80]}; LLaMA's is silu")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ModelError(f"{file}: {key} is on; LLaMA-2's layers have no bias")


def is_plain_rope(entries: dict | None) -> bool:
    """Whether rope_scaling, or what stands in its place, leaves RoPE as it is."""
    if not isinstance(entries, dict):
        return not entries
    kind = entries.get("rope_type") or entries.get("type") or "default"
    return kind == "default" or (kind == "linear" and entries.get("factor") == 1)


MAX_DEPTH, MAX_SIZE = 1000, 10_000_000
WHOLE_NUMBERS = ("width", "depth", "heads", "vocab_size", "mlp_width", "max_positions",
                 "image_size", "patch_size", "patches_per_token")
NUMBERS = (*WHOLE_NUMBERS, "norm_eps", "rope_theta")


def check_sizes(file: Path, fields: dict) -> None:
    """ModelError where a number of a configuration is none, or one that no model has.

    fields: those of a config dataclass, nested or not.
    """
    for name, value in fields.items():
        if isinstance(value, dict) and name not in NUMBERS:
            check_sizes(file, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            limit = MAX_DEPTH if name in ("depth", "experts") else MAX_SIZE
            if not -1 <= value <= limit:        # -1: a vocab_size that Meta leaves open
                raise ModelError(f"{file}: {name} is {str(value)[:20]}; at most {limit:,} is "
                                 "expected")
            if name in WHOLE_NUMBERS and not isinstance(value, int):
                raise ModelError(f"{file}: {name} is {value}; a whole number is expected")
        elif name in NUMBERS and value is not None:
            raise ModelError(f"{file}: {name} is {repr(value)[:80]}; a number is expected")


def is_tied(folder: Path) -> bool:
    """Whether config.json says that the head is the embedding."""
    file = folder / "config.json"
    config = read_json(file) if file.is_file() else {}
    inner = config.get("text_config")
    config = config | inner if isinstance(inner, dict) else config
    return bool(config.get("tie_word_embeddings"))


def sizes_from_shapes(tensors: Tensors) -> dict:
    """-> the fields of LlamaConfig that the shapes show: LLaVA's extra rows have been cut off, and
    Meta's file names no widths."""
    names = {"vocab_size": "lm_head.weight", "mlp_width": "layers.0.mlp.gate_proj.weight"}
    return {field: tensor.shape[0] for field, ending in names.items()
            for name, tensor in tensors.items() if name.endswith(ending)}
