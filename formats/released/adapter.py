"""What training adds, as it is published: LoRA and projector -> SkyEyeGPT's names.

    SkyEyeGPT.pth, MiniGPT-v2   llama_model.base_model.model.model.layers.0. .. .lora_A.weight
                                llama_proj.weight
    a peft folder               base_model.model.model.layers.0. .. .lora_A.weight
    LLaVA's                     the same, and model.mm_projector.0.weight in a file of its own;
                                multi_modal_projector.linear_1.weight in Hugging Face's folder

peft from 0.3 on writes lora_A.default.weight, which a lenient loader leaves out without a word.
"""
import re
from pathlib import Path

from formats.released.files import open_checkpoint
from formats.released.pickled import load_pickled
from formats.released.tensors import ModelError, Stored

CALLED = (                                                              # theirs, ours; in order
    (r"^(llama_model\.)?base_model\.model\.", ""), (r"\.(lora_[AB])\.default\.", r".\1."),
    (r"^(model\.)?mm_projector\.0\.", "llama_proj.linear_1."),
    (r"^(model\.)?mm_projector\.2\.", "llama_proj.linear_2."),
    (r"^(model\.)?multi_modal_projector\.", "llama_proj."), (r"^model\.", "llama_model.model."),
)
PART = r"\.lora_[AB]\.|^llama_proj\.|mm_projector\.|multi_modal_projector\."
UNUSED = r"rotary_emb\.inv_freq$"


def is_added(name: str) -> bool:
    """Whether a tensor of SkyEyeGPT is LoRA or projector."""
    return ".lora_" in name or name.startswith("llama_proj.")


def take(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """Take LoRA and projector out of `tensors` -> the same under SkyEyeGPT's names."""
    found = {}
    for name in [name for name in tensors if re.search(f"{PART}|{UNUSED}", name)]:
        ours, stored = name, tensors.pop(name)
        for theirs, called in CALLED:
            ours = re.sub(theirs, called, ours)
        if not re.search(UNUSED, ours):
            found[ours] = stored
    return found


def open_file(file: Path) -> tuple[dict[str, Stored], dict]:
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
