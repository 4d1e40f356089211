"""A model folder -> what others read, or one folder with the LoRA merged."""
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import torch

from formats.released import peft
from formats.released.adapter import is_added
from formats.released.checks import check_empty
from formats.released.config import hf_config
from formats.released.files import write_safely
from formats.released.shards import write_json, write_shards
from formats.released.tensors import ModelError, Stored

FORMS = {
    "merged": "one model folder, the LoRA in the weights",
    "llama": "the language model for Hugging Face's LlamaForCausalLM, the LoRA in the weights",
    "peft": "LoRA and projector as a peft folder",
    "minigpt_v2": "LoRA and projector as a .pth for MiniGPT-v2's code",
}


def export(folder: Path, out: Path, form: str, config, tensors: dict[str, Stored],
           merged: dict[str, Stored], dtype: torch.dtype) -> None:
    """config: a SkyEyeConfig; tensors, merged: by SkyEyeGPT's names, as stored and with the LoRA
    in the weights, which are written as `dtype`. LoRA stays in float32."""
    added = {name: stored.read().float().contiguous() for name, stored in tensors.items()
             if is_added(name)}
    if form in ("peft", "minigpt_v2") and not config.lora:
        raise ModelError(f"{folder}: there is no LoRA in it")
    if config.lora and config.lora.experts:
        raise ModelError(f"{folder}: MoE-LoRA cannot be merged, and nobody else reads it")
    check_empty(out)
    if form == "peft":
        peft.write_folder(out, added, config.lora, config.base)
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
    write_safely(file, lambda path: torch.save(content, path))
