"""The bridge between the eye and the language model, and **the assembled model, SkyEyeGPT**.

    picture --ViT--> P patch vectors --4 joined, one linear layer--> P/4 visual tokens
    text with P/4 slots for each picture --> embeddings, slots filled --LLaMA--> text

The four joined patches are neighbors in one row (1 x 4), not a 2 x 2 square. A negative id marks
an image slot: the model fills the slots, in order, with the visual tokens of the pictures.

    python projector.py --model out/stage2 --out FOLDER     one whole folder, the LoRA merged

Sources: SkyEyeGPT, arXiv 2401.09712 section 3.1; MiniGPT-v2, arXiv 2310.09478 section 2.1;
https://github.com/Vision-CAIR/MiniGPT-4/blob/d94738a/minigpt4/models/minigpt_v2.py

Shapes: B rows, T tokens, P patches, N visual tokens of a picture, D width, V vocabulary.
"""
import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import llama
import vit
from llama import KVCache, Llama, LlamaConfig
from lora import LoRAConfig, add_lora, merge_lora
from vit import ViT, ViTConfig


@dataclass(frozen=True)
class SkyEyeConfig:
    vit: ViTConfig = ViTConfig()
    llama: LlamaConfig = LlamaConfig()
    lora: LoRAConfig | None = LoRAConfig()
    joined: int = 4                 # neighboring patches that make one visual token
    prompt: str = "skyeye"          # a style of data.PROMPTS
    base: str = ""                  # model folder that holds the tensors this one leaves out

    @property
    def visual_tokens(self) -> int:
        """N, visual tokens of one picture."""
        return self.vit.grid ** 2 // self.joined

    @classmethod
    def from_dict(cls, entries: dict) -> "SkyEyeConfig":
        """The inverse of dataclasses.asdict. TypeError on an entry that is not one of ours."""
        lora = dict(entries["lora"] or {})
        lora = lora and LoRAConfig(**lora | {"targets": tuple(lora["targets"])})
        parts = {"vit": ViTConfig(**entries["vit"]), "llama": LlamaConfig(**entries["llama"])}
        return cls(**entries | parts | {"lora": lora or None})


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRESETS = {
    "skyeyegpt": SkyEyeConfig(),
    "nano": SkyEyeConfig(vit.PRESETS["nano"], llama.PRESETS["nano"], lora=None),
}


class Projector(nn.Linear):
    """float[B, P, D_vit] -> float[B, P/4, D_llama]"""

    def __init__(self, config: SkyEyeConfig):
        super().__init__(config.joined * config.vit.width, config.llama.width)

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            nn.init.trunc_normal_(self.weight, std=0.02)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:                                   # [B, P, D]
        return super().forward(x.reshape(len(x), -1, self.in_features))       # [B, N, D]


class SkyEyeGPT(nn.Module):
    """Attribute names are those of MiniGPT-v2's checkpoints."""

    def __init__(self, config: SkyEyeConfig):
        super().__init__()
        self.config = config
        self.visual_encoder = ViT(config.vit)
        self.llama_proj = Projector(config)
        self.llama_model = Llama(config.llama)
        if config.lora:
            add_lora(self.llama_model, config.lora)

    def encode_images(self, images: Tensor) -> Tensor:
        """images: float[N, 3, H, W] -> the visual tokens, float[N * tokens, D]"""
        patches = self.visual_encoder(images.to(self.llama_proj.weight.dtype))  # [N, P, D]
        return self.llama_proj(patches).flatten(0, 1)

    def embed(self, ids: Tensor, images: Tensor | None) -> Tensor:
        """ids: long[B, T] with image slots < 0 -> float[B, T, D], the slots filled in order."""
        x = self.llama_model.model.embed_tokens(ids.clamp(min=0))             # [B, T, D]
        slots, pictures = ids < 0, 0 if images is None else len(images)
        if slots.sum() != pictures * self.config.visual_tokens:
            raise ValueError(f"{slots.sum()} image slots do not fit {pictures} pictures of "
                             f"{self.config.visual_tokens} visual tokens")
        if pictures:
            x = x.masked_scatter(slots[..., None], self.encode_images(images).to(x.dtype))
        return x

    def forward(self, ids: Tensor, images: Tensor | None = None, labels: Tensor | None = None,
                positions: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """-> the mean loss over the labels that are not -100, or without labels logits [B, T, V].

        ids, labels: long[B, T], right-padded; images: float[N, 3, H, W], the batch's pictures in
        order; positions, segments: long[B, T], where rows hold several questions (segment_mask).
        """
        x = self.embed(ids, images)                                           # [B, T, D]
        mask = None if segments is None else segment_mask(segments)           # [B, 1, T, T]
        h = self.llama_model.model(x, positions, mask)                        # [B, T, D]
        if labels is None:
            return self.llama_model.lm_head(h)
        target = labels[:, 1:]                                                # the next token's id
        spoken = target != -100
        # The head is applied where there is something to learn, a fraction of all positions.
        logits = self.llama_model.lm_head(h[:, :-1][spoken])                  # [supervised, V]
        return F.cross_entropy(logits.float(), target[spoken])

    def generate(self, ids: Tensor, images: Tensor | None = None, max_new_tokens: int = 128,
                 stop: int = 2, cache: KVCache | None = None, **sampling) -> Iterator[int]:
        """ids: long[T], a whole conversation -> the answer's ids one by one, without `stop`.

        With a cache from the turn before, the tokens it holds are not computed again; `images` are
        those whose slots are among the new tokens. `sampling` goes to llama.sample.
        """
        cache = cache or self.llama_model.cache(1, len(ids) + max_new_tokens)
        start, new = cache.used, ids[None, cache.used:]
        with torch.inference_mode():
            x = self.embed(new, images)
        lengths = torch.tensor([new.shape[1]], device=ids.device)
        for token in self.llama_model.generate(x, lengths, cache, max_new_tokens, stop, start,
                                               **sampling):
            if token.item() == stop:
                return
            yield token.item()

    @torch.inference_mode()
    def answer(self, prompts: list[Tensor], images: Tensor | None, max_new_tokens: int,
               stop: int = 2, **sampling) -> list[list[int]]:
        """prompts: long[T] each, images in their order -> each answer's ids, as if asked alone."""
        lengths = torch.tensor([len(ids) for ids in prompts], device=prompts[0].device)
        ids = nn.utils.rnn.pad_sequence(prompts, batch_first=True)
        cache = self.llama_model.cache(len(prompts), ids.shape[1] + max_new_tokens)
        tokens = self.llama_model.generate(self.embed(ids, images), lengths, cache, max_new_tokens,
                                           stop, **sampling)
        rows = torch.stack(list(tokens), dim=1).tolist()                      # [B, new tokens]
        return [row[:row.index(stop)] if stop in row else row for row in rows]

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu",
                        dtype: torch.dtype = torch.float32) -> "SkyEyeGPT":
        """A model folder: config.json and *.safetensors. ModelError: one line with the file."""
        folder = Path(folder)
        try:
            with torch.device("meta"):
                model = cls(read_config(folder))
        except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(f"{folder / 'config.json'}: no model can be built ({error})") from None
        tensors = read_folder(folder)
        check_tensors(folder, {k: v.shape for k, v in model.state_dict().items()}, tensors)
        tensors = {k: v.to(device, kept_as(k, dtype)) for k, v in tensors.items()}
        model.load_state_dict(tensors, strict=True, assign=True)
        return model.eval().requires_grad_(False)

    def save_pretrained(self, folder: str | Path, base: str = "",
                        dtype: torch.dtype = torch.float32) -> None:
        """Write config.json and model.safetensors; with a base, projector and LoRA alone."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.detach().to("cpu", kept_as(k, dtype)).contiguous()
                   for k, v in self.state_dict().items()
                   if not base or ".lora_" in k or k.startswith("llama_proj.")}
        write_safely(folder / ("adapter.safetensors" if base else "model.safetensors"),
                     lambda path: save_file(tensors, path, metadata={"format": "pt"}))
        config = asdict(self.config) | {"base": str(Path(base).resolve()) if base else ""}
        write_safely(folder / "config.json",
                     lambda path: path.write_text(json.dumps(config, indent=2) + "\n"))

    def merge(self) -> None:
        """Fold the LoRA into the base weights."""
        merge_lora(self.llama_model)
        self.config = replace(self.config, lora=None)


def kept_as(name: str, dtype: torch.dtype) -> torch.dtype:
    """LoRA stays in float32: the steps of training are too small for 16 bits."""
    return torch.float32 if ".lora_" in name else dtype


def segment_mask(segments: Tensor) -> Tensor:
    """segments: long[B, T] -> who may look at whom, bool[B, 1, T, T]: back, into 0 and one's own.

        segments  0 0 0 1 1 2 2     two questions behind one shared prefix; neither sees the other,
        positions 0 1 2 3 4 3 4     and with such positions each is as if it stood alone
    """
    query, key = segments[:, None, :, None], segments[:, None, None, :]
    return ((key == 0) | (key == query)).tril()


class ModelError(Exception):
    """A model folder that cannot be used: a line that names the file and what to do."""


def read_config(folder: Path) -> SkyEyeConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{path}: no such file; a model folder holds config.json, "
                         "*.safetensors and tokenizer.model")
    try:
        return SkyEyeConfig.from_dict(json.loads(path.read_text()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path}: not a SkyEyeGPT configuration ({error})") from None


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder, those of its base first."""
    base = read_config(folder).base
    if base and (folder / base).resolve() == folder.resolve():
        raise ModelError(f"{folder / 'config.json'}: names its own folder as its base")
    tensors = read_folder(folder / base) if base else {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: not a complete safetensors file ({error}); "
                             "download it again") from None
    return tensors


def check_tensors(folder: Path, wanted: dict[str, torch.Size], found: dict[str, Tensor]) -> None:
    """Every tensor there, of the right shape, and none too many; else ModelError."""
    problems = {
        "missing": [k for k in wanted if k not in found],
        "unexpected": [k for k in found if k not in wanted],
        "mis-shaped": [f"{k} is {list(found[k].shape)}, not {list(shape)}"
                       for k, shape in wanted.items() if k in found and found[k].shape != shape],
    }
    if any(problems.values()):
        told = "; ".join(f"{len(keys)} {kind}: {', '.join(keys[:3])}{', ..' * (len(keys) > 3)}"
                         for kind, keys in problems.items() if keys)
        raise ModelError(f"{folder}: the weights do not fit its config.json; {told}")


def write_safely(path: Path, write: Callable[[Path], object]) -> None:
    """Write under another name, flush, rename: a reader sees the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Gather a model folder into one, LoRA merged.")
    parser.add_argument("--model", type=Path, required=True, help="model folder to read")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, in bf16")
    args = parser.parse_args(argv)
    model = SkyEyeGPT.from_pretrained(args.model)
    model.merge()
    model.save_pretrained(args.out, dtype=torch.bfloat16)
    shutil.copyfile(args.model / "tokenizer.model", args.out / "tokenizer.model")
    print(f"wrote {args.out}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    try:
        main()
    except (ModelError, OSError) as error:
        print(f"projector.py: {error}", file=sys.stderr)
        sys.exit(2)
