"""The alignment layer between vision encoder and language model, and **the assembled SkyEyeGPT**.

    image --ViT--> P patch vectors --4 joined, one linear layer--> P/4 visual tokens
    text with P/4 slots for each image --> embeddings, slots filled --LLaMA--> text

The four joined patches are neighbors in one row (1 x 4), not a 2 x 2 square. A negative id marks
an image slot: the model fills the slots, in order, with the visual tokens of the images.

    python projector.py --llama DIR --vit FILE --adapter FILE --out DIR     downloads to a folder
    python projector.py --model out/stage2 --out DIR                        the LoRA merged
    python projector.py --explain skyeyegpt                                 sizes, without weights

Sources: SkyEyeGPT, arXiv 2401.09712 section 3.1; MiniGPT-v2, arXiv 2310.09478 section 2.1;
https://github.com/Vision-CAIR/MiniGPT-4/blob/d94738a/minigpt4/models/minigpt_v2.py

Shapes: B rows, T tokens, P patches, N visual tokens of an image, D width, V vocabulary.
"""
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import llama
import vit
from llama import KVCache, Llama, LlamaConfig, hidden_states_at, packed_mask
from lora import LoRAConfig, add_lora, merge_lora
from support.checkpoints.files import (
    ModelError,
    in_memory,
    load_strict,
    path_between,
    read_json,
    write_json,
    write_shards,
)
from support.checkpoints.load import check_sizes, read_folder
from support.checkpoints.names import is_adapter_name
from support.common import UserError
from support.inference.generation import generate, generate_batch
from support.inference.quantization import quantize_checkpoint
from vit import ViT, ViTConfig


@dataclass(frozen=True)
class SkyEyeConfig:
    vit: ViTConfig = ViTConfig()
    llama: LlamaConfig = LlamaConfig()
    lora: LoRAConfig | None = LoRAConfig()
    patches_per_token: int = 4      # neighboring patches that make one visual token
    projector: str = "linear"       # or mlp2x_gelu, LLaVA-1.5's two layers
    prompt: str = "skyeye"          # a style of data.PROMPTS
    base: str = ""                  # folder with the tensors this one leaves out: ours or released

    @property
    def visual_tokens(self) -> int:
        """N, visual tokens of one image."""
        return self.vit.grid ** 2 // self.patches_per_token

    @classmethod
    def from_dict(cls, entries: dict) -> "SkyEyeConfig":
        """The inverse of dataclasses.asdict; entries may have the names of earlier versions.

        TypeError or KeyError on an entry that is not one of ours.
        """
        entries = rename(entries, {"joined": "patches_per_token"})
        entries.pop("files", None)              # for support.checkpoints.load alone
        vit = rename(entries["vit"], {"mlp": "mlp_width", "clip": "variant"})
        if isinstance(vit.get("variant"), bool):
            vit["variant"] = "clip" if vit["variant"] else "eva"
        entries["vit"] = ViTConfig(**vit)
        entries["llama"] = LlamaConfig(**rename(entries["llama"], {"mlp": "mlp_width"}))
        if lora := entries["lora"]:
            entries["lora"] = LoRAConfig(**lora | {"targets": tuple(lora["targets"])})
        return cls(**entries)


def rename(entries: dict, names: dict[str, str]) -> dict:
    """names: old -> new key."""
    return {names.get(key, key): value for key, value in entries.items()}


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRESETS = {"skyeyegpt": SkyEyeConfig(),
           "nano": SkyEyeConfig(vit.PRESETS["nano"], llama.PRESETS["nano"], lora=None)}


class LinearProjector(vit.Linear):
    """float[B, P, D_vit] -> float[B, P/4, D_llama]"""

    def __init__(self, config: SkyEyeConfig):
        super().__init__(config.patches_per_token * config.vit.width, config.llama.width)

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
        """images: float[n, 3, H, W], or what the vision encoder made of them, float[n, P, D] -> the
        visual tokens, float[n * N, D]"""
        patches = images                                                      # [n, P, D]
        if images.ndim == 4:
            patches = self.visual_encoder(images.to(self.visual_encoder.pos_embed.dtype))
        return self.llama_proj(patches).flatten(0, 1)                         # [n * N, D]

    def embed(self, ids: Tensor, images: Tensor | None) -> Tensor:
        """ids: long[B, T] with image slots < 0 -> float[B, T, D], the slots filled in order.

        images: as encode_images takes them, or what it made of them. ValueError: the slots do not
        fit the images.
        """
        x = self.llama_model.model.embed_tokens(ids.clamp(min=0))             # [B, T, D]
        slots, N = ids < 0, self.config.visual_tokens                         # [B, T]
        encoded = images is None or images.ndim == 2
        visual_tokens = images if encoded else self.encode_images(images)     # [n * N, D]
        count = 0 if visual_tokens is None else len(visual_tokens) // N
        if slots.sum() != count * N:
            raise ValueError(f"{slots.sum()} image slots do not fit {count} images of {N} visual "
                             "tokens")
        if visual_tokens is None:
            return x
        return x.masked_scatter(slots[..., None], visual_tokens.to(x.dtype))  # [B, T, D]

    def forward(self, ids: Tensor, images: Tensor | None = None, labels: Tensor | None = None,
                positions: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """-> the mean loss over the labels that are not -100, or without labels logits [B, T, V].

        ids, labels: long[B, T], right-padded; images: float[n, 3, H, W], the batch's images in
        order; positions, segments: long[B, T], where rows hold several questions (packed_mask).
        """
        if labels is None:
            x = self.embed(ids, images)                                       # [B, T, D]
            mask = None if segments is None else packed_mask(segments)        # [B, 1, T, T]
            return self.llama_model(x, positions, mask)                       # [B, T, V]
        at, targets = supervised_positions(labels)                            # [B, W] each
        h = self.hidden_states(ids, images, at, positions, segments)          # [B, W, D]
        supervised = targets != -100                                          # [B, W]
        logits = self.llama_model.lm_head(h[supervised])                      # [supervised, V]
        return F.cross_entropy(logits.float(), targets[supervised])

    def hidden_states(self, ids: Tensor, images: Tensor | None, at: Tensor,
                      positions: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """What the head reads at the places at: long[B, W] of each row, float[B, W, D]; the rest
        as in forward. The last layer is computed at these places alone."""
        x = self.embed(ids, images)                                           # [B, T, D]
        mask = None if segments is None else packed_mask(segments)            # [B, 1, T, T]
        return hidden_states_at(self.llama_model.model, x, at, positions, mask)

    def generate(self, ids: Tensor, images: Tensor | None = None, max_new_tokens: int = 128,
                 stop: int = 2, cache: KVCache | None = None, **options) -> Iterator[int]:
        """ids: long[T], a whole conversation -> the answer's ids one by one, without `stop`.

        With a cache from the turn before, the tokens it holds are not computed again; `images` are
        those whose slots are among the new tokens. options: constraints, and llama.sample's.
        """
        cache = cache or self.llama_model.new_cache(1, len(ids) + max_new_tokens)
        start, new = cache.length, ids[None, cache.length:]                   # [1, T]
        with torch.inference_mode():
            x = self.embed(new, images)                                       # [1, T, D]
        lengths = torch.tensor([new.shape[1]], device=ids.device)
        for token in generate(self.llama_model, x, lengths, cache, max_new_tokens, stop, start,
                              **options):
            if token.item() == stop:
                return
            yield token.item()

    @torch.inference_mode()
    def answer_batch(self, groups: list[list[Tensor]], images: Tensor | None, prefix_len: int,
                     max_new_tokens: int, stop: int = 2, **options) -> list[list[int]]:
        """The answers' ids, of one group after the other: each as if it were asked alone.

        A group asks about the same images: its prompts, long[T] each, begin with the same
        `prefix_len` ids, which hold all slots and are computed once. images: the groups', in order.
        """
        prefix = None
        if prefix_len:
            prefix = torch.stack([group[0][:prefix_len] for group in groups])     # [groups, prefix]
            prefix = self.embed(prefix, images)                               # [groups, prefix, D]
        rows = [ids[prefix_len:] for group in groups for ids in group]
        lengths = torch.tensor([len(ids) for ids in rows], device=rows[0].device)     # [B]
        x = self.embed(nn.utils.rnn.pad_sequence(rows, batch_first=True), None)   # [B, T, D]
        return generate_batch(self.llama_model, prefix, [len(group) for group in groups], x,
                              lengths, max_new_tokens, stop, **options)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu",
                        dtype: torch.dtype = torch.float32, bits: int = 16) -> "SkyEyeGPT":
        """A model folder: config.json and *.safetensors; bits: 8 or 4 freezes the language model's
        linear layers in as many, the vision encoder's in 8. ModelError: one line with the file."""
        config = read_config(Path(folder))
        tensors = read_folder(Path(folder), config.vit)
        tensors = quantize_checkpoint(tensors, bits, device, dtype)
        return load_strict(build_on_meta(config, folder), tensors, folder, device, dtype)

    def save_pretrained(self, folder: str | Path, base: str = "",
                        dtype: torch.dtype = torch.float32, state: dict | None = None) -> None:
        """Write config.json and model.safetensors; with a base, projector and LoRA alone.

        state: its state_dict(), where each process holds a part of the model (--shard).
        """
        state = state or self.state_dict()
        tensors = {k: v for k, v in state.items() if not base or is_adapter_name(k)}
        files = write_shards(Path(folder), "adapter" if base else "model", in_memory(tensors),
                             dtype)
        base = path_between(Path(folder), base) if base else ""
        write_json(Path(folder) / "config.json",
                   asdict(self.config) | {"base": base, "files": files})

    def merge(self) -> None:
        """Fold the LoRA into the base weights."""
        merge_lora(self.llama_model)
        self.config = replace(self.config, lora=None)

    def init_weights(self) -> None:
        """Random start values, for a model that starts from nothing."""
        self.visual_encoder.init_weights()
        for module in self.llama_proj.modules():
            if isinstance(module, vit.Linear):
                vit.init_linear(module)
        self.llama_model.init_weights()


def supervised_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """labels: long[B, T] -> at: long[B, W], the places where a supervised token is predicted, and
    targets: long[B, W], that token; -100 in rows that have fewer than W."""
    targets = labels[:, 1:]                                                   # [B, T - 1]
    supervised = targets != -100                                              # [B, T - 1]
    at = supervised.int().argsort(dim=1, descending=True, stable=True)        # supervised first
    at = at[:, :supervised.sum(dim=1).max()]                                  # [B, W]
    return at, targets.gather(1, at)


def read_config(folder: Path) -> SkyEyeConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{path}: no such file; a model folder holds config.json, "
                         "*.safetensors and tokenizer.model")
    entries = read_json(path)
    check_sizes(path, entries)
    try:
        return SkyEyeConfig.from_dict(entries)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path}: not a SkyEyeGPT configuration ({error})") from None


def build_on_meta(config: SkyEyeConfig, folder: str | Path) -> SkyEyeGPT:
    """Without memory for its weights, to be filled. ModelError names the folder's config.json."""
    try:
        with torch.device("meta"):
            return SkyEyeGPT(config)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{folder}/config.json: no model can be built ({error})") from None


if __name__ == "__main__":
    from support.tools import convert, row_examples
    try:
        convert.main() if sys.argv[1:] else row_examples.show_projector()
    except (UserError, OSError) as error:
        print(f"projector.py: {error}", file=sys.stderr)
        sys.exit(2)
