"""Everything that was downloaded -> tensors under SkyEyeGPT's names."""
import re
from collections.abc import Callable
from pathlib import Path

from formats.released import adapter, language, peft, vision
from formats.released.checks import read_json
from formats.released.config import read_config
from formats.released.files import open_checkpoint
from formats.released.tensors import ModelError, Stored

Tensors = dict[str, Stored]
# Of larger models whose vision part is read: text towers, BLIP-2's Q-Former and language model.
OTHER_PARTS = r"^(text|logit_scale|visual_projection|language_|qformer\.|query_tokens$)"


def read_folder(folder: Path, fit: Callable[[Tensors], Tensors]) -> Tensors:
    """A model folder of ours, and what it leaves out: its base, ours too or released (`fit`)."""
    file = folder / "config.json"
    told = read_json(file) if file.is_file() else {}
    if "llama" not in told:
        return fit(read_base(folder, read_config(folder).get("heads", 32)))
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
    found = {"llama_model." + name: s for name, s in language.take(tensors, heads).items()}
    found |= {"visual_encoder." + name: s for name, s in vision.take(tensors).items()}
    found |= adapter.take(tensors)
    return none_left(folder, tensors, found)


def read_vit(place: Path) -> Tensors:
    """A vision encoder, alone or in a larger model -> its tensors under vit.py's names."""
    tensors = open_checkpoint(place)
    found = vision.take(tensors)
    others = [name for name in tensors if re.search(OTHER_PARTS, name)]
    return none_left(place, {k: s for k, s in tensors.items() if k not in others}, found)


def read_adapter(place: Path) -> tuple[Tensors, dict]:
    """-> LoRA and projector, and the LoRA's entries of LoRAConfig ({}: a projector alone)."""
    tensors, lora = (peft.open_folder if place.is_dir() else adapter.open_file)(place)
    return none_left(place, tensors, adapter.take(tensors)), lora


def none_left(place: Path, tensors: Tensors, found: Tensors) -> Tensors:
    if tensors or not found:
        raise ModelError(f"{place}: {len(tensors)} unknown names: {', '.join(list(tensors)[:3])}")
    return found
