"""How large a model is, without its weights: `python projector.py --explain skyeyegpt`.

The forward pass runs on PyTorch's meta device, where tensors have shapes and no numbers. Memory is
counted in bytes, 1G = 1e9, and is that of tensors; what a program, CUDA and the allocator take
comes on top.

A training step holds, at the end of its forward pass and in its backward pass,

    weights         frozen ones in bf16 where adapters alone are trained, all others in float32
    gradients       float32, of what is trained
    optimizer       AdamW's two means of each trained number, float32
    activations     what the forward pass keeps for the backward pass, under bf16 autocast

Activations are what autograd saves, seen on fake tensors: shapes that pretend to be on a CPU. All
blocks save as much, so two small depths give every other.
"""
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from llama import hidden_states_at
from lora import MOE_LORA, LoRAConfig
from projector import PRESETS, SkyEyeConfig, SkyEyeGPT, read_config
from support.checkpoints.files import ModelError
from support.explain.walk import (
    Step,
    is_block,
    print_columns,
    print_steps,
    short,
    watch_forward,
)
from support.inference.quantization import GROUP_SIZE, LLM_LINEAR, LM_HEAD, VIT_LINEAR
from support.training.flops import is_trained

TEXT_TOKENS, ANSWER_TOKENS = 44, 20         # of the example: a prompt's text, and its answer
METHODS = {                                 # --tune: a LoRA that it puts in
    "projector": None,
    "lora": LoRAConfig(),
    "moe-lora": MOE_LORA,
    "full": None,
}


def find_config(name: str) -> SkyEyeConfig:
    """Of a preset or a model folder. ModelError: neither."""
    if name in PRESETS:
        return PRESETS[name]
    if not Path(name).is_dir():
        raise ModelError(f"--explain {name}: neither a preset ({', '.join(PRESETS)}) nor a model "
                         "folder")
    return read_config(Path(name))


def on_meta(config: SkyEyeConfig) -> SkyEyeGPT:
    with torch.device("meta"):
        return SkyEyeGPT(config)


@cache
def shapes(config: SkyEyeConfig) -> dict[str, torch.Size]:
    """Of each parameter."""
    return {name: p.shape for name, p in on_meta(config).named_parameters()}


def all_steps(config: SkyEyeConfig) -> list[Step]:
    """The forward pass of the example. Without numbers all blocks of a stack are alike, so one of
    each runs."""
    small = replace(config, vit=replace(config.vit, depth=1), llama=replace(config.llama, depth=1))
    ids = torch.zeros(1, config.visual_tokens + TEXT_TOKENS, dtype=torch.long, device="meta")
    side = config.vit.image_size
    steps = []
    for step in watch_forward(on_meta(small), ids, torch.zeros(1, 3, side, side, device="meta")):
        stack = is_block(step.name)
        depth = 1 if not stack else (config.vit if "visual" in stack else config.llama).depth
        steps += [replace(step, name=f"{stack}.{i}") if i else step for i in range(depth)]
    return steps


# ---- weights and cache ---------------------------------------------------------------------------

def weight_bytes(config: SkyEyeConfig, bits: int = 16, float_bytes: int = 2) -> int:
    """Of all weights in so many bits, as --bits stores them; float_bytes: of a number that stays a
    float, and of a scale. LoRA is float32 only in training."""
    total = 0
    for name, shape in shapes(config).items():
        rule = ((LLM_LINEAR, bits, 0), (LM_HEAD, 8, 0), (VIT_LINEAR, 8, 128))
        found = [(own, group) for pattern, own, group in rule
                 if bits < 16 and re.search(pattern, name)]
        total += quantized_bytes(shape, *found[0], float_bytes) if found else (
            shape.numel() * float_bytes)
    return total


def quantized_bytes(shape: torch.Size, bits: int, group: int, float_bytes: int) -> int:
    """As support.inference.quantization.quantize stores it: rows are padded to whole groups."""
    m, n = shape
    group = group or (n if bits == 8 else GROUP_SIZE)
    width = n + -n % (group * 8 // bits)
    return m * (width * bits // 8 + width // group * float_bytes)


def cache_bytes(config: SkyEyeConfig, float_bytes: int = 2) -> int:
    """Of the keys and values of one token in all layers."""
    return 2 * config.llama.depth * config.llama.width * float_bytes


# ---- training ------------------------------------------------------------------------------------

@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step."""
    trained: int                # parameters, not bytes
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def with_method(config: SkyEyeConfig, tune: str) -> SkyEyeConfig:
    """The model that --tune trains. A LoRA that is there stays, unless one of the other kind is
    asked for."""
    wanted = METHODS[tune]
    alike = wanted and config.lora and bool(config.lora.experts) == bool(wanted.experts)
    return config if alike or not wanted else replace(config, lora=wanted)


def step_memory(config: SkyEyeConfig, tune: str, rows: int = 1, text: int = TEXT_TOKENS,
                answer: int = ANSWER_TOKENS, dtype: torch.dtype = torch.bfloat16) -> StepMemory:
    """rows: a picture with so many tokens of text each, of which `answer` are learned; dtype: of
    the arithmetic."""
    config = with_method(config, tune)
    narrow = tune != "full"                     # frozen weights may be stored in dtype
    trained = weights = 0
    for name, shape in shapes(config).items():
        own = is_trained(name, tune)
        trained += shape.numel() if own else 0
        weights += shape.numel() * (dtype.itemsize if narrow and not own else 4)
    return StepMemory(trained, weights, 4 * trained, 8 * trained,
                      activation_bytes(config, tune, rows, text, answer, dtype))


def activation_bytes(config: SkyEyeConfig, tune: str, rows: int, text: int, answer: int,
                     dtype: torch.dtype) -> int:
    """What autograd saves in the forward pass, the weights left out."""
    depth = config.llama.depth
    if depth <= 2:
        return fake_activations(config, tune, rows, text, answer, dtype)
    two, three = (fake_activations(replace(config, llama=replace(config.llama, depth=few)), tune,
                                   rows, text, answer, dtype) for few in (2, 3))
    return two + (depth - 2) * (three - two)


def fake_activations(config: SkyEyeConfig, tune: str, rows: int, text: int, answer: int,
                     dtype: torch.dtype) -> int:
    """As activation_bytes, every block run. The frozen vision encoder saves nothing: its output is
    made up."""
    with FakeTensorMode():
        model = SkyEyeGPT(replace(config, vit=replace(config.vit, depth=0))).train()
        for name, p in model.named_parameters():
            p.requires_grad = is_trained(name, tune)
            p.data = p.data.to(torch.float32 if p.requires_grad or tune == "full" else dtype)
        frozen = model.visual_encoder.pos_embed.dtype
        patches = torch.zeros(rows, config.vit.grid ** 2, config.vit.width, dtype=frozen)
        tokens = config.visual_tokens + text
        ids = torch.zeros(rows, tokens, dtype=torch.long)
        at = torch.zeros(rows, answer, dtype=torch.long)
        with count_saved(model) as saved, torch.autocast("cpu", dtype,
                                                         enabled=dtype != torch.float32):
            x = model.llama_model.model.embed_tokens(ids)                     # [rows, T, D]
            visual = model.llama_proj(patches).flatten(0, 1)
            x = x.masked_scatter((ids < 0)[..., None], visual.to(x.dtype))
            h = hidden_states_at(model.llama_model.model, x, at)              # [rows, answer, D]
            logits = model.llama_model.lm_head(h.flatten(0, 1))               # [learned, V]
            F.cross_entropy(logits.float(), torch.zeros(len(logits), dtype=torch.long))
        return saved()


@contextmanager
def count_saved(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Inside it, what autograd saves is counted -> a function that gives the bytes: each memory
    once, and none that belongs to a parameter."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        key = x.untyped_storage()._cdata
        if key not in own:
            saved[key] = x              # kept, so that no other memory gets its key
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        yield lambda: sum(x.untyped_storage().nbytes() for x in saved.values())


# ---- printing ------------------------------------------------------------------------------------

def explain(name: str) -> None:
    """Print it all. ModelError: there is no such model."""
    config = find_config(name)
    steps, side = all_steps(config), config.vit.image_size
    print(f"{name}: a picture of {side} x {side}, {config.visual_tokens} visual tokens and "
          f"{TEXT_TOKENS} tokens of text\n")
    print_steps(steps)
    print()
    print_columns(part_rows(config, steps))
    print()
    print_columns(memory_rows(config))
    print(f"\nbytes of a training step on one such row, {ANSWER_TOKENS} of its tokens learned, "
          "AdamW, arithmetic in bf16", flush=True)
    print_columns(training_rows(config))


def part_rows(config: SkyEyeConfig, steps: list[Step]) -> list[tuple[str, ...]]:
    rows = [("part", "parameters", "of LoRA", "FLOPs")]
    for part in ("visual_encoder", "llama_proj", "llama_model"):
        sizes = {name: shape.numel() for name, shape in shapes(config).items()
                 if name.startswith(f"{part}.")}
        lora = sum(size for name, size in sizes.items() if ".lora_" in name)
        flops = sum(step.flops for step in steps
                    if step.level == 0 and f"{step.name}.".startswith(f"{part}."))
        rows.append((part, f"{sum(sizes.values()):,}", f"{lora:,}", short(flops)))
    return rows


def memory_rows(config: SkyEyeConfig) -> list[tuple[str, ...]]:
    """Weights at every --bits, and what a token and a full context take in the KV cache."""
    full = cache_bytes(config) * config.llama.max_positions
    return [("memory", "bytes", ""),
            *((f"weights, --bits {bits}", short(weight_bytes(config, bits)), text)
              for bits, text in ((16, "bf16"), (8, "linear layers"), (
                  4, "those of the language model; head, vision encoder: 8"))),
            ("KV cache, a token", short(cache_bytes(config)),
             "bf16, on a GPU; float32 and twice that on a CPU"),
            (f"KV cache, {config.llama.max_positions:,}", short(full), "a full context, one row")]


def training_rows(config: SkyEyeConfig) -> list[tuple[str, ...]]:
    rows = [("--tune", "trained", "weights", "gradients", "optimizer", "activations", "sum")]
    for tune in METHODS:
        memory = step_memory(config, tune)
        rows.append((tune, f"{memory.trained:,}", *(short(size) for size in (
            memory.weights, memory.gradients, memory.optimizer, memory.activations,
            memory.total))))
    return rows
