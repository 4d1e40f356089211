"""The bridge between the eye and the language model, and **the assembled model, SkyEyeGPT**.

    picture --ViT--> P patch vectors --4 joined, one linear layer--> P/4 visual tokens
    text with P/4 slots for each picture --> embeddings, slots filled --LLaMA--> text

The four joined patches are neighbors in one row (1 x 4), not a 2 x 2 square. A negative id marks
an image slot: the model fills the slots, in order, with the visual tokens of the pictures.

    python projector.py --llama DIR --vit FILE --adapter FILE --out DIR     downloads to a folder
    python projector.py --model out/stage2 --out DIR                        the LoRA merged

Sources: SkyEyeGPT, arXiv 2401.09712 section 3.1; MiniGPT-v2, arXiv 2310.09478 section 2.1;
https://github.com/Vision-CAIR/MiniGPT-4/blob/d94738a/minigpt4/models/minigpt_v2.py

Shapes: B rows, T tokens, P patches, N visual tokens of a picture, D width, V vocabulary.
"""
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import llama
import vit
from llama import KVCache, Llama, LlamaConfig, packed_mask
from lora import LoRAConfig, add_lora, merge_lora
from support.checkpoints.files import (
    LazyTensor,
    ModelError,
    in_memory,
    load_strict,
    write_json,
    write_shards,
)
from support.checkpoints.load import fit_vit, read_folder
from support.checkpoints.names import is_adapter_name
from support.inference.quantization import quantize_checkpoint
from vit import ViT, ViTConfig


@dataclass(frozen=True)
class SkyEyeConfig:
    vit: ViTConfig = ViTConfig()
    llama: LlamaConfig = LlamaConfig()
    lora: LoRAConfig | None = LoRAConfig()
    joined: int = 4                 # neighboring patches that make one visual token
    projector: str = "linear"       # or mlp2x_gelu, LLaVA-1.5's two layers
    prompt: str = "skyeye"          # a style of data.PROMPTS
    base: str = ""                  # folder with the tensors this one leaves out: ours or released

    @property
    def visual_tokens(self) -> int:
        """N, visual tokens of one picture."""
        return self.vit.grid ** 2 // self.joined

    @classmethod
    def from_dict(cls, entries: dict) -> "SkyEyeConfig":
        """The inverse of dataclasses.asdict. TypeError on an entry that is not one of ours."""
        lora = entries["lora"] and entries["lora"] | {"targets": tuple(entries["lora"]["targets"])}
        return cls(**entries | {"vit": ViTConfig(**entries["vit"]), "llama": LlamaConfig(
            **entries["llama"]), "lora": LoRAConfig(**lora) if lora else None})


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRESETS = {"skyeyegpt": SkyEyeConfig(),
           "nano": SkyEyeConfig(vit.PRESETS["nano"], llama.PRESETS["nano"], lora=None)}


class LinearProjector(vit.Linear):
    """float[B, P, D_vit] -> float[B, P/4, D_llama]"""

    def __init__(self, config: SkyEyeConfig):
        super().__init__(config.joined * config.vit.width, config.llama.width)

    def forward(self, x: Tensor) -> Tensor:                                   # [B, P, D]
        return super().forward(x.reshape(len(x), -1, self.in_features))       # [B, N, D]


class MLPProjector(nn.Module):
    """LLaVA-1.5's, float[B, P, D_vit] -> float[B, P, D_llama]; names are Hugging Face's."""

    def __init__(self, config: SkyEyeConfig):
        super().__init__()
        self.linear_1 = LinearProjector(config)
        self.linear_2 = vit.Linear(config.llama.width, config.llama.width)

    def forward(self, x: Tensor) -> Tensor:                                   # [B, P, D]
        return self.linear_2(F.gelu(self.linear_1(x)))                        # [B, N, D]


PROJECTORS = {"linear": LinearProjector, "mlp2x_gelu": MLPProjector}


class SkyEyeGPT(nn.Module):
    """Attribute names are those of MiniGPT-v2's checkpoints."""

    def __init__(self, config: SkyEyeConfig):
        super().__init__()
        self.config = config
        self.visual_encoder = ViT(config.vit)
        self.llama_proj = PROJECTORS[config.projector](config)
        self.llama_model = Llama(config.llama)
        if config.lora:
            add_lora(self.llama_model, config.lora)

    def encode_images(self, images: Tensor) -> Tensor:
        """images: float[N, 3, H, W] -> the visual tokens, float[N * tokens, D]"""
        patches = self.visual_encoder(images.to(self.visual_encoder.pos_embed.dtype))  # [N, P, D]
        return self.llama_proj(patches).flatten(0, 1)

    def embed(self, ids: Tensor, images: Tensor | None) -> Tensor:
        """ids: long[B, T] with image slots < 0 -> float[B, T, D], the slots filled in order by
        images: float[pictures, 3, H, W], or what encode_images made of them."""
        x = self.llama_model.model.embed_tokens(ids.clamp(min=0))             # [B, T, D]
        slots, N = ids < 0, self.config.visual_tokens
        seen = images if images is None or images.ndim == 2 else self.encode_images(images)
        pictures = 0 if seen is None else len(seen) // N
        if slots.sum() != pictures * N:
            raise ValueError(f"{slots.sum()} image slots do not fit {pictures} pictures of {N} "
                             "visual tokens")
        return x if seen is None else x.masked_scatter(slots[..., None], seen.to(x.dtype))

    def forward(self, ids: Tensor, images: Tensor | None = None, labels: Tensor | None = None,
                positions: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """-> the mean loss over the labels that are not -100, or without labels logits [B, T, V].

        ids, labels: long[B, T], right-padded; images: float[N, 3, H, W], the batch's pictures in
        order; positions, segments: long[B, T], where rows hold several questions (segment_mask).
        """
        x = self.embed(ids, images)                                           # [B, T, D]
        mask = None if segments is None else packed_mask(segments)           # [B, 1, T, T]
        if labels is None:
            return self.llama_model(x, positions, mask)                       # [B, T, V]
        # Last layer and head are computed where there is something to learn, at few positions.
        spoken = labels[:, 1:] != -100                                        # [B, T - 1]
        at = spoken.int().argsort(dim=1, descending=True, stable=True)        # spoken ones first
        at = at[:, :spoken.sum(dim=1).max()]                                  # [B, W]
        h = self.llama_model.model(x, positions, mask, at=at)                 # [B, W, D]
        learned, target = spoken.gather(1, at), labels[:, 1:].gather(1, at)   # the next token's id
        logits = self.llama_model.lm_head(h[learned])                         # [supervised, V]
        return F.cross_entropy(logits.float(), target[learned])

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
    def answer(self, groups: list[list[Tensor]], images: Tensor | None, shared: int,
               max_new_tokens: int, stop: int = 2, **sampling) -> list[list[int]]:
        """The answers' ids, of one group after the other: each as if it were asked alone.

        A group asks about the same pictures: its prompts, long[T] each, begin with the same
        `shared` ids, which hold all slots and are computed once. images: the groups', in order.
        """
        ids, lengths, cache = self.read(groups, images, shared, max_new_tokens)
        tokens = self.llama_model.generate(self.embed(ids, None), lengths, cache, max_new_tokens,
                                           stop, shared, **sampling)
        rows = torch.stack(list(tokens), dim=1).tolist()                      # [B, new tokens]
        return [row[:row.index(stop)] if stop in row else row for row in rows]

    def read(self, groups: list[list[Tensor]], images: Tensor | None, shared: int, room: int
             ) -> tuple[Tensor, Tensor, KVCache]:
        """-> what is not shared: long[B, T] and lengths; a cache that holds what is, with room."""
        rows = [ids[shared:] for group in groups for ids in group]
        owner = torch.tensor([i for i, group in enumerate(groups) for _ in group])
        cache = self.llama_model.cache(len(groups), shared + max(map(len, rows)) + room)
        if shared:
            prefix = torch.stack([group[0][:shared] for group in groups])     # [groups, shared]
            self.llama_model.model(self.embed(prefix, images), cache=cache)
        cache.take(owner.to(rows[0].device), cache.slots)
        lengths = torch.tensor([len(ids) for ids in rows], device=rows[0].device)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths, cache

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu",
                        dtype: torch.dtype = torch.float32, bits: int = 16) -> "SkyEyeGPT":
        """A model folder: config.json and *.safetensors; bits: 8 or 4 freezes the language model's
        linear layers in as many, the eye's in 8. ModelError: one line with the file."""
        config = read_config(Path(folder))
        tensors = quantize_checkpoint(read_tensors(Path(folder), config), bits, device, dtype)
        return load_strict(build_on_meta(config, folder), tensors, folder, device, dtype)

    def save_pretrained(self, folder: str | Path, base: str = "",
                        dtype: torch.dtype = torch.float32, state: dict | None = None) -> None:
        """Write config.json and model.safetensors; with a base, projector and LoRA alone.

        state: its state_dict(), where the model itself holds but pieces of it (--shard).
        """
        state = state or self.state_dict()
        tensors = {k: v for k, v in state.items() if not base or is_adapter_name(k)}
        write_shards(Path(folder), "adapter" if base else "model", in_memory(tensors), dtype)
        base = str(Path(base).resolve()) if base else ""
        write_json(Path(folder) / "config.json", asdict(self.config) | {"base": base})

    def merge(self) -> None:
        """Fold the LoRA into the base weights."""
        merge_lora(self.llama_model)
        self.config = replace(self.config, lora=None)


def read_config(folder: Path) -> SkyEyeConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{path}: no such file; a model folder holds config.json, "
                         "*.safetensors and tokenizer.model")
    try:
        return SkyEyeConfig.from_dict(json.loads(path.read_text()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path}: not a SkyEyeGPT configuration ({error})") from None


def build_on_meta(config: SkyEyeConfig, folder: str | Path) -> SkyEyeGPT:
    try:
        with torch.device("meta"):
            return SkyEyeGPT(config)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{folder}/config.json: no model can be built ({error})") from None


def read_tensors(folder: Path, config: SkyEyeConfig) -> dict[str, LazyTensor]:
    """All of a model folder, those of its base too."""
    return read_folder(folder, lambda own: fit_vit(own, config.vit, "visual_encoder."))


if __name__ == "__main__":
    from support.tools.convert import main
    try:
        main()
    except (ModelError, OSError) as error:
        print(f"projector.py: {error}", file=sys.stderr)
        sys.exit(2)
