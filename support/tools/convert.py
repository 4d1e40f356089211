"""`python projector.py`: downloaded weights -> a model folder, or a model folder -> another form.

    --llama DIR --vit FILE --adapter FILE --out DIR      the downloads of SkyEyeGPT or MiniGPT-v2
    --llama DIR --out DIR                                a whole LLaVA-1.5
    --model DIR --form FORM --out DIR                    a model folder for other programs
    --explain NAME                                       nothing is written: a model's sizes

Everything is checked before anything is written. Tensors are read and written one after the other,
so that a model of 14 GB needs the memory of one shard.
"""
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor

import vit
from llama import LlamaConfig
from lora import LoRAConfig, merge_weight
from projector import DTYPES, PROJECTORS, SkyEyeConfig, build_on_meta, read_config
from support.checkpoints.files import (
    LazyTensor,
    ModelError,
    check_names_and_shapes,
    in_memory,
    path_between,
    require_empty,
    tensor_shapes,
    write_json,
    write_shards,
)
from support.checkpoints.load import (
    HF_KEYS,
    PLAIN_LORA,
    Tensors,
    fit_vit,
    read_adapter,
    read_base,
    read_folder,
    read_llama_config,
    read_vit,
    released_vit,
    sizes_from_shapes,
)
from support.checkpoints.names import is_adapter_name
from support.common import UserError, option, parse_config, write_atomic
from support.explain import sizes
from vit import ViTConfig

# ---- the command ---------------------------------------------------------------------------------

FORMS = {
    "merged": "one model folder, with the LoRA merged into the weights",
    "llama": "the language model, with the LoRA merged, for Hugging Face's LlamaForCausalLM",
    "peft": "LoRA and projector as a peft folder",
    "minigpt_v2": "LoRA and projector as a .pth file for MiniGPT-v2's code",
}


@dataclass(frozen=True)
class ConvertConfig:
    llama: str = option("", "folder of LLaMA-2-7B-chat, Vicuna or LLaVA-1.5, in the layout of "
                        "Hugging Face or Meta", metavar="DIR")
    vit: str = option("", "EVA ViT-g or CLIP: a file, or a folder of shards", metavar="PATH")
    adapter: str = option("", "LoRA and projector: SkyEyeGPT.pth, a .pth of MiniGPT-v2, or a LoRA "
                          "folder of peft or LLaVA", metavar="PATH")
    model: str = option("", "instead of --llama: a model folder to write in another form",
                        metavar="DIR")
    out: str = option("", "folder to write; it must not exist or be empty", metavar="DIR")
    copy: bool = option(False, "write the language model to --out too, instead of naming the "
                        "folder where it is")
    prompt: str = option("", "prompt style, one of data.PROMPTS", default_text="what fits the "
                         "weights")
    form: str = option("merged", "with --model, the form to write; "
                       + "; ".join(f"{form}: {text}" for form, text in FORMS.items()),
                       choices=tuple(FORMS))
    explain: str = option("", "print the shapes, parameters, FLOPs and memory of a preset or a "
                          "model folder, without its weights", metavar="NAME")
    dtype: str = option("bf16", "with --model, the type of merged weights", choices=tuple(DTYPES))


def parse_args(argv: Sequence[str] | None = None) -> ConvertConfig:
    return parse_config(ConvertConfig, argv, "Convert downloaded weights to a model folder, or a "
                        "model folder to what other programs read.")


def main(argv: Sequence[str] | None = None) -> None:
    """UserError and OSError are for the caller to print."""
    args = parse_args(argv)
    if args.explain:
        sizes.explain(args.explain)
        return
    if bool(args.llama) == bool(args.model):
        raise UserError("name either --llama, to convert downloads, or --model, to export a model")
    if not args.out:
        raise UserError("name the folder to write with --out")
    if args.llama:
        convert(args)
    else:
        export(args)
    print(f"wrote {args.out}", file=sys.stderr)


# ---- downloads -> a model folder -----------------------------------------------------------------

PartTensors = dict[str, Tensors]        # "llama", "vit", "adapter" -> tensors by SkyEyeGPT's names


def convert(args: ConvertConfig, vit_config: ViTConfig | None = None) -> None:
    """Write a model folder from downloads. ModelError.

    vit_config: None for one of the two released vision encoders; which one shows in the names.
    """
    out = Path(args.out)
    require_empty(out)
    places = {part: Path(place) for part, place in (
        ("llama", args.llama), ("vit", args.vit), ("adapter", args.adapter)) if place}
    llama_fields = read_llama_config(places["llama"])
    parts, lora = read_parts(places, llama_fields.get("heads", 32))
    llama = LlamaConfig(**llama_fields | sizes_from_shapes(parts["llama"]))
    base = "" if args.copy else path_between(out, places["llama"])
    config = choose_config(parts, llama, lora, vit_config, args.prompt, base)
    parts = {part: fit_vit(tensors, config.vit, "visual_encoder.")
             for part, tensors in parts.items()}
    if "adapter" not in parts and not has_projector(parts):
        parts["adapter"] = new_projector(config)
    check_parts(parts, config, places)
    tokenizer = find_tokenizer(places["llama"], config.llama.vocab_size)
    files = []
    for part, tensors in parts.items():
        numbers = sum(math.prod(tensor.shape) for tensor in tensors.values())
        print(f"{part}: {numbers:,} parameters in {len(tensors)} tensors, "
              f"{places.get(part, 'new, to be trained')}", file=sys.stderr)
        if args.copy or part != "llama":
            files += write_shards(out, part, tensors)
    write_json(out / "config.json", asdict(config) | {"files": files})
    shutil.copyfile(tokenizer, out / "tokenizer.model")
    print(f"prompts: in the style {config.prompt}", file=sys.stderr)


def read_parts(places: dict[str, Path], heads: int) -> tuple[PartTensors, LoRAConfig | None]:
    """Open every download -> its tensors, renamed, and the LoRA of the adapter.

    heads: of the language model's attention. The base may hold all parts (LLaVA in one folder).
    """
    parts, lora = {"llama": read_base(places["llama"], heads)}, None
    if "vit" in places:
        parts["vit"] = {f"visual_encoder.{name}": tensor
                        for name, tensor in read_vit(places["vit"]).items()}
    if "adapter" in places:
        parts["adapter"], lora = read_adapter(places["adapter"])
    return parts, lora


def choose_config(parts: PartTensors, llama: LlamaConfig, lora: LoRAConfig | None,
                  vit_config: ViTConfig | None, prompt: str, base: str) -> SkyEyeConfig:
    """From the names: CLIP belongs to LLaVA-1.5, EVA with a LoRA to MiniGPT-v2 or SkyEyeGPT."""
    tensors = all_tensors(parts)
    if "visual_encoder.pos_embed" not in tensors:
        raise ModelError("no vision encoder in what was named: add it with --vit")
    released = released_vit(tensors, "visual_encoder.")
    common = {"vit": vit_config or released, "llama": llama, "lora": lora, "base": base}
    if released.variant == "clip":
        return SkyEyeConfig(**common, patches_per_token=1, projector="mlp2x_gelu",
                            prompt=prompt or "vicuna_v1")
    return SkyEyeConfig(**common, patches_per_token=4, projector="linear",
                        prompt=prompt or ("minigpt_v2" if lora else "skyeye"))


def all_tensors(parts: PartTensors) -> Tensors:
    return {name: tensor for tensors in parts.values() for name, tensor in tensors.items()}


def has_projector(parts: PartTensors) -> bool:
    return any(name.startswith("llama_proj.") for name in all_tensors(parts))


def new_projector(config: SkyEyeConfig) -> Tensors:
    """Random start values, for a model whose projector is still to be trained."""
    projector = PROJECTORS[config.projector](config)
    for module in projector.modules():
        if isinstance(module, vit.Linear):
            vit.init_linear(module)
    return in_memory({f"llama_proj.{k}": v for k, v in projector.state_dict().items()})


def check_parts(parts: PartTensors, config: SkyEyeConfig, places: dict[str, Path]) -> None:
    """Does every download hold just the tensors of its part? ModelError names the one that does
    not."""
    wanted = tensor_shapes(build_on_meta(config, places["llama"]))
    for part, tensors in parts.items():
        shapes = {name: shape for name, shape in wanted.items() if part_of(name, parts) == part}
        check_names_and_shapes(places.get(part, part), shapes, tensors)


def part_of(name: str, parts: PartTensors) -> str:
    """The part that a tensor of SkyEyeGPT belongs to; "llama" where that part came with it."""
    part = "llama"
    if is_adapter_name(name):
        part = "adapter"
    elif name.startswith("visual_encoder."):
        part = "vit"
    return part if part in parts else "llama"


def find_tokenizer(folder: Path, vocab_size: int) -> Path:
    """tokenizer.model in the folder or, as Meta packs it, above. ModelError: none that fits."""
    file = folder / "tokenizer.model"
    if not file.is_file():
        file = folder.parent / "tokenizer.model"
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(file)).vocab_size()
    except (OSError, RuntimeError):
        raise ModelError(f"{folder}: no readable tokenizer.model there; download it") from None
    if pieces != vocab_size:
        raise ModelError(f"{file}: {pieces} pieces for the {vocab_size} embeddings of {folder}")
    return file


# ---- a model folder -> what other programs read --------------------------------------------------

def export(args: ConvertConfig) -> None:
    """Write a model folder in one of FORMS. ModelError."""
    folder, out = Path(args.model), Path(args.out)
    config = read_config(folder)
    tensors = read_folder(folder, config.vit)
    check_names_and_shapes(folder, tensor_shapes(build_on_meta(config, folder)), tensors)
    if args.form in ("peft", "minigpt_v2") and not config.lora:
        raise ModelError(f"{folder}: there is no LoRA in it")
    if config.lora and config.lora.experts:
        raise ModelError(f"{folder}: MoE-LoRA cannot be merged, and no other program reads it")
    require_empty(out)
    if args.form == "merged":
        write_merged(out, config, tensors, DTYPES[args.dtype])
    elif args.form == "llama":
        write_llama(out, config, tensors, DTYPES[args.dtype])
    elif args.form == "peft":
        write_peft(out, config, read_adapter_tensors(tensors))
    else:
        write_minigpt_v2(out / "SkyEyeGPT.pth", config.lora, read_adapter_tensors(tensors))
    shutil.copyfile(folder / "tokenizer.model", out / "tokenizer.model")


def write_merged(out: Path, config: SkyEyeConfig, tensors: Tensors, dtype: torch.dtype) -> None:
    files = write_shards(out, "model", merge_lazy(tensors, config.lora), dtype)
    write_json(out / "config.json", asdict(replace(config, lora=None, base="")) | {"files": files})


def write_llama(out: Path, config: SkyEyeConfig, tensors: Tensors, dtype: torch.dtype) -> None:
    """A Hugging Face folder without the vision encoder and the projector."""
    merged = merge_lazy(tensors, config.lora)
    write_shards(out, "model", {name.removeprefix("llama_model."): tensor
                                for name, tensor in merged.items()
                                if name.startswith("llama_model.")}, dtype)
    write_json(out / "config.json", {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": config.llama.heads,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": str(dtype).removeprefix("torch."),
    } | {theirs: getattr(config.llama, ours) for theirs, ours in HF_KEYS.items()})


def write_peft(out: Path, config: SkyEyeConfig, adapter: dict[str, Tensor]) -> None:
    """The LoRA as peft reads it, the projector beside it in a file of its own."""
    out.mkdir(parents=True, exist_ok=True)
    lora = {name.replace("llama_model.", "base_model.model.", 1): tensor
            for name, tensor in adapter.items() if ".lora_" in name}
    projector = {name: tensor for name, tensor in adapter.items() if ".lora_" not in name}
    for file, tensors in (("adapter_model", lora), ("projector", projector)):
        write_atomic(out / f"{file}.safetensors", lambda path, tensors=tensors: save_file(
            tensors, path, {"format": "pt"}))
    write_json(out / "adapter_config.json", PLAIN_LORA | {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": Path(config.base).name,
        "r": config.lora.r,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": config.lora.dropout,
        "target_modules": list(config.lora.targets),
        "inference_mode": True,
    })


def write_minigpt_v2(file: Path, lora: LoRAConfig, adapter: dict[str, Tensor]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    model = {name.replace("llama_model.", "llama_model.base_model.model.", 1): tensor
             for name, tensor in adapter.items()}
    content = {"model": model, "config": {"model": {"lora_r": lora.r, "lora_alpha": lora.alpha}}}
    write_atomic(file, lambda path: torch.save(content, path))


def read_adapter_tensors(tensors: Tensors) -> dict[str, Tensor]:
    """LoRA and projector in float32."""
    return {name: tensor.read().float().contiguous() for name, tensor in tensors.items()
            if is_adapter_name(name)}


def merge_lazy(tensors: Tensors, lora: LoRAConfig | None) -> Tensors:
    """lora.merge_lora for tensors in a file: each is merged when it is read, in float32."""
    if lora is None:
        return tensors
    merged = {name: tensor for name, tensor in tensors.items() if ".lora_" not in name}
    for name in tensors:
        if ".lora_A." in name:
            layer = name.removesuffix(".lora_A.weight")
            merged[f"{layer}.weight"] = merge_layer(tensors, layer, lora.alpha / lora.r)
    return merged


def merge_layer(tensors: Tensors, layer: str, scale: float) -> LazyTensor:
    weight = tensors[f"{layer}.weight"]
    lora_A, lora_B = tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"]
    return weight.map(weight.shape, lambda w: merge_weight(w, lora_A.read(), lora_B.read(), scale))
