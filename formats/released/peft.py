"""A LoRA as a folder of the library peft: adapter_config.json, adapter_model.safetensors.

peft knows LoRA alone, so the projector lies beside it in a file of its own: LLaVA calls it
non_lora_trainables.bin, we projector.safetensors.
"""
import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from formats.released.checks import read_json
from formats.released.files import open_checkpoint, write_safely
from formats.released.tensors import ModelError, Stored

FILES = ("adapter_model.safetensors", "adapter_model.bin", "projector.safetensors",
         "non_lora_trainables.bin")
PLAIN = {"peft_type": "LORA", "bias": "none", "use_rslora": False, "use_dora": False,
         "fan_in_fan_out": False, "modules_to_save": None, "layers_to_transform": None}


def open_folder(folder: Path) -> tuple[dict[str, Stored], dict]:
    """A peft folder, and the projector that LLaVA or export.py put in it -> as open_file."""
    told = read_json(folder / "adapter_config.json")
    for key, value in PLAIN.items():
        if (told.get(key) or value) != value:
            raise ModelError(f"{folder / 'adapter_config.json'}: {key} is {told[key]!r}; a plain "
                             f"LoRA, with {value!r}, is expected")
    files = [folder / name for name in FILES if (folder / name).is_file()]
    tensors = {}
    for file in files:
        tensors |= open_checkpoint(file)
    return tensors, {"r": told["r"], "alpha": float(told["lora_alpha"]),
                     "dropout": told.get("lora_dropout", 0.0),
                     "targets": tuple(sorted(told["target_modules"]))}


def write_folder(folder: Path, tensors: dict[str, Tensor], lora, base: str) -> None:
    """tensors: LoRA and projector under SkyEyeGPT's names; lora: a LoRAConfig."""
    folder.mkdir(parents=True, exist_ok=True)
    theirs = {name.replace("llama_model.", "base_model.model.", 1): tensor
              for name, tensor in tensors.items() if ".lora_" in name}
    rest = {name: tensor for name, tensor in tensors.items() if ".lora_" not in name}
    for file, own in (("adapter_model", theirs), ("projector", rest)):
        write_safely(folder / f"{file}.safetensors",
                     lambda path, own=own: save_file(own, path, {"format": "pt"}))
    told = PLAIN | {"task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": lora.r,
                    "lora_alpha": lora.alpha, "lora_dropout": lora.dropout,
                    "target_modules": list(lora.targets), "inference_mode": True}
    write_safely(folder / "adapter_config.json",
                 lambda path: path.write_text(json.dumps(told, indent=2) + "\n"))
