"""support/tools/convert.py"""
import argparse
import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import vit
from llama import LlamaConfig
from lora import LoRAConfig, merged_weight
from projector import (
    DTYPES,
    PROJECTORS,
    SkyEyeConfig,
    SkyEyeGPT,
    build_on_meta,
    read_config,
    read_tensors,
)
from support.checkpoints.files import (
    LazyTensor,
    ModelError,
    check_names_and_shapes,
    in_memory,
    require_empty,
    tensor_shapes,
    write_json,
    write_shards,
)
from support.checkpoints.load import (
    HF_KEYS,
    PLAIN_LORA,
    fit_vit,
    read_adapter,
    read_base,
    read_llama_config,
    read_vit,
    sizes_from_shapes,
)
from support.checkpoints.names import is_adapter_name
from support.common import write_atomic
from vit import ViTConfig

# ---- config --------------------------------------------------------------------------------------

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
            **{theirs: getattr(config, ours) for theirs, ours in HF_KEYS.items()}}


# ---- peft ----------------------------------------------------------------------------------------

def write_peft_folder(folder: Path, tensors: dict[str, Tensor], lora, base: str) -> None:
    """tensors: LoRA and projector under SkyEyeGPT's names; lora: a LoRAConfig."""
    folder.mkdir(parents=True, exist_ok=True)
    theirs = {name.replace("llama_model.", "base_model.model.", 1): tensor
              for name, tensor in tensors.items() if ".lora_" in name}
    rest = {name: tensor for name, tensor in tensors.items() if ".lora_" not in name}
    for file, own in (("adapter_model", theirs), ("projector", rest)):
        write_atomic(folder / f"{file}.safetensors",
                     lambda path, own=own: save_file(own, path, {"format": "pt"}))
    told = PLAIN_LORA | {"task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": lora.r,
                    "lora_alpha": lora.alpha, "lora_dropout": lora.dropout,
                    "target_modules": list(lora.targets), "inference_mode": True}
    write_atomic(folder / "adapter_config.json",
                 lambda path: path.write_text(json.dumps(told, indent=2) + "\n"))


# ---- store ---------------------------------------------------------------------------------------
# Downloads -> a model folder. Everything is checked before anything is written.

Parts = dict[str, dict[str, LazyTensor]]        # "vit", "adapter", "llama" -> tensors, by our names


def convert(places: dict[str, Path], out: Path, copy: bool,
            build: Callable[[Parts, dict, dict], tuple[nn.Module, Parts]]) -> None:
    """places: "llama", and where they lie elsewhere "vit" and "adapter". Only with `copy` is the
    language model written too. build(parts, sizes, lora) -> the model on the meta device, and the
    parts as it takes them."""
    require_empty(out)
    sizes, lora = read_llama_config(places["llama"]), {}
    parts = {"llama": read_base(places["llama"], sizes.get("heads", 32))}
    if "vit" in places:
        parts["vit"] = {f"visual_encoder.{k}": s for k, s in read_vit(places["vit"]).items()}
    if "adapter" in places:
        parts["adapter"], lora = read_adapter(places["adapter"])
    model, parts = build(parts, sizes | sizes_from_shapes(parts["llama"]), lora)
    wanted = tensor_shapes(model)
    for part, tensors in parts.items():
        own = {k: shape for k, shape in wanted.items() if part_of(k, parts) == part}
        check_names_and_shapes(places.get(part, part), own, tensors)
    tokenizer = find_tokenizer(places["llama"], model.config.llama.vocab_size)
    for part, tensors in parts.items():
        count = sum(math.prod(stored.shape) for stored in tensors.values())
        print(f"{part}: {count:,} parameters in {len(tensors)} tensors, "
              f"{places.get(part, 'new, to be trained')}", file=sys.stderr)
        if copy or part != "llama":
            write_shards(out, part, tensors)
    write_json(out / "config.json", asdict(model.config))
    shutil.copyfile(tokenizer, out / "tokenizer.model")
    print(f"prompts: in the style {model.config.prompt}", file=sys.stderr)


def part_of(name: str, parts: Parts) -> str:
    """The part a tensor must be in."""
    part = "adapter" if is_adapter_name(name) else "llama"
    part = "vit" if name.startswith("visual_encoder.") else part
    return part if part in parts else "llama"


# ---- export --------------------------------------------------------------------------------------
# A model folder -> what others read, or one folder with the LoRA merged.

EXPORT_FORMS = {
    "merged": "one model folder, the LoRA in the weights",
    "llama": "the language model for Hugging Face's LlamaForCausalLM, the LoRA in the weights",
    "peft": "LoRA and projector as a peft folder",
    "minigpt_v2": "LoRA and projector as a .pth for MiniGPT-v2's code",
}


def export_model(folder: Path, out: Path, form: str, config, tensors: dict[str, LazyTensor],
           merged: dict[str, LazyTensor], dtype: torch.dtype) -> None:
    """config: a SkyEyeConfig; tensors, merged: by SkyEyeGPT's names, as stored and with the LoRA
    in the weights, which are written as `dtype`. LoRA stays in float32."""
    added = {name: stored.read().float().contiguous() for name, stored in tensors.items()
             if is_adapter_name(name)}
    if form in ("peft", "minigpt_v2") and not config.lora:
        raise ModelError(f"{folder}: there is no LoRA in it")
    if config.lora and config.lora.experts:
        raise ModelError(f"{folder}: MoE-LoRA cannot be merged, and nobody else reads it")
    require_empty(out)
    if form == "peft":
        write_peft_folder(out, added, config.lora, config.base)
    elif form == "minigpt_v2":
        write_minigpt(out / "SkyEyeGPT.pth", added, config.lora)
    elif form == "llama":
        own = {name.removeprefix("llama_model."): stored for name, stored in merged.items()
               if name.startswith("llama_model.")}
        write_shards(out, "model", own, dtype)
        write_json(out / "config.json", hf_config(config.llama) | {"torch_dtype": str(dtype)[6:]})
    else:
        write_shards(out, "model", merged, dtype)
        write_json(out / "config.json", asdict(replace(config, lora=None, base="")))
    shutil.copyfile(folder / "tokenizer.model", out / "tokenizer.model")


def write_minigpt(file: Path, added: dict[str, torch.Tensor], lora) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    theirs = {name.replace("llama_model.", "llama_model.base_model.model.", 1): tensor
              for name, tensor in added.items()}
    content = {"model": theirs, "config": {"model": {"lora_r": lora.r, "lora_alpha": lora.alpha}}}
    write_atomic(file, lambda path: torch.save(content, path))


# ---- flags ---------------------------------------------------------------------------------------
# What `python projector.py` is told.

DTYPE_NAMES = ("fp32", "bf16", "fp16")


FLAGS = {
    "llama": "folder: LLaMA-2-7B-chat, Vicuna or LLaVA-1.5, Hugging Face's or Meta's",
    "vit": "EVA ViT-g or CLIP: a file, or a folder of shards",
    "adapter": "SkyEyeGPT.pth, MiniGPT-v2's .pth, a peft or LLaVA LoRA folder",
    "model": "or: a model folder, to be written in another form",
    "out": "folder to write",
}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Downloaded weights to a "
                                     "model folder, or a model folder to what others read.")
    source = parser.add_mutually_exclusive_group(required=True)
    for flag, text in FLAGS.items():
        (source if flag in ("llama", "model") else parser).add_argument(
            f"--{flag}", type=Path, help=text, required=flag == "out")
    parser.add_argument("--copy", action="store_true", help="write the language model to --out too")
    parser.add_argument("--prompt", default="", help="a style of data.py (default: what fits)")
    parser.add_argument("--form", choices=EXPORT_FORMS, default="merged",
                        help="; ".join(f"{form}: {text}" for form, text in EXPORT_FORMS.items()))
    parser.add_argument("--dtype", choices=DTYPE_NAMES, default="bf16", help="of merged weights")
    return parser.parse_args(argv)


# ---- projector -----------------------------------------------------------------------------------

# ---- downloads to a model folder, and back -------------------------------------------------------

def build_from_parts(parts: Parts, sizes: dict, lora: dict, prompt: str, base: str,
          eye: ViTConfig | None = None) -> tuple[SkyEyeGPT, Parts]:
    """What the names tell: CLIP is LLaVA-1.5's eye; EVA with a LoRA MiniGPT-v2 or SkyEyeGPT."""
    found = {name for tensors in parts.values() for name in tensors}
    if "visual_encoder.pos_embed" not in found:
        raise ModelError("no vision encoder in what was named: add it with --vit")
    clip = "visual_encoder.norm_pre.weight" in found
    eye = eye or vit.PRESETS["clip_vit_l_336" if clip else "eva_vit_g"]
    prompt = prompt or ("vicuna_v1" if clip else "minigpt_v2" if lora else "skyeye")
    config = SkyEyeConfig(eye, LlamaConfig(**sizes), LoRAConfig(**lora) if lora else None,
                          1 if clip else 4, "mlp2x_gelu" if clip else "linear", prompt, base)
    parts = {part: fit_vit(own, eye, "visual_encoder.") for part, own in parts.items()}
    if "adapter" not in parts and not any(name.startswith("llama_proj.") for name in found):
        fresh = PROJECTORS[config.projector](config).state_dict()
        parts["adapter"] = in_memory({f"llama_proj.{name}": tensor for name, tensor in fresh.items()})
    return build_on_meta(config, base), parts


# ---- projector -----------------------------------------------------------------------------------

def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.llama:
        places = {k: v for k, v in vars(args).items() if v and k in ("llama", "vit", "adapter")}
        base = "" if args.copy else str(args.llama.resolve())
        convert(places, args.out, args.copy, partial(build_from_parts, prompt=args.prompt, base=base))
    else:
        config = read_config(args.model)
        tensors = read_tensors(args.model, config)
        check_names_and_shapes(args.model, tensor_shapes(build_on_meta(config, args.model)), tensors)
        mergeable = config.lora and not config.lora.experts
        merged = merge_lazy(tensors, config.lora) if mergeable else tensors
        export_model(args.model, args.out, args.form, config, tensors, merged, DTYPES[args.dtype])
    print(f"wrote {args.out}", file=sys.stderr)


# ---- lora ----------------------------------------------------------------------------------------

def merge_lazy(tensors: dict[str, LazyTensor], config: LoRAConfig) -> dict[str, LazyTensor]:
    """merge_lora on the tensors of a file, each merged when it is read, in float32."""
    merged = {name: stored for name, stored in tensors.items() if ".lora_" not in name}
    for stem in [name.removesuffix(".lora_A.weight") for name in tensors if ".lora_A." in name]:
        weight, a, b = (tensors[stem + end] for end in (".weight", ".lora_A.weight",
                                                        ".lora_B.weight"))
        merged[stem + ".weight"] = weight.then(weight.shape, lambda w, a=a, b=b: merged_weight(
            w, a.read(), b.read(), config.alpha / config.r))
    return merged
