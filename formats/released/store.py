"""Downloads -> a model folder. Everything is checked before anything is written."""
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from torch import nn

from formats.released import gather
from formats.released.adapter import is_added
from formats.released.checks import check_empty
from formats.released.config import find_tokenizer, measure, read_config
from formats.released.shards import write_json, write_shards
from formats.released.tensors import Stored, check, shapes

Parts = dict[str, dict[str, Stored]]        # "vit", "adapter", "llama" -> tensors, by our names


def convert(places: dict[str, Path], out: Path, copy: bool,
            build: Callable[[Parts, dict, dict], tuple[nn.Module, Parts]]) -> None:
    """places: "llama", and where they lie elsewhere "vit" and "adapter". Only with `copy` is the
    language model written too. build(parts, sizes, lora) -> the model on the meta device, and the
    parts as it takes them."""
    check_empty(out)
    sizes, lora = read_config(places["llama"]), {}
    parts = {"llama": gather.read_base(places["llama"], sizes.get("heads", 32))}
    if "vit" in places:
        parts["vit"] = {f"visual_encoder.{k}": s for k, s in gather.read_vit(places["vit"]).items()}
    if "adapter" in places:
        parts["adapter"], lora = gather.read_adapter(places["adapter"])
    model, parts = build(parts, sizes | measure(parts["llama"]), lora)
    wanted = shapes(model)
    for part, tensors in parts.items():
        own = {k: shape for k, shape in wanted.items() if owner(k, parts) == part}
        check(places.get(part, part), own, tensors)
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


def owner(name: str, parts: Parts) -> str:
    """The part a tensor must be in."""
    part = "adapter" if is_added(name) else "llama"
    part = "vit" if name.startswith("visual_encoder.") else part
    return part if part in parts else "llama"
