"""The way of a picture and a question through the model, watched: one line a step.

Forward hooks look at what every part gives: its shape, its mean and spread, the time since the step
before. The textbook forward pass runs (SkyEyeGPT.forward, no cache, logits at every place), on real
tensors or, without weights and numbers, on PyTorch's meta device.

    level 0     the stages: their parameters and FLOPs add up to those of the model
    level 1     what happens inside a block
    level 2     inside the attention and the MLP of the first block of each kind

FLOPs are those of the matrix products, 2 n m for each vector times a matrix; attention counts all
pairs of tokens, also those that the causal mask hides, as PyTorch's own counter does.

Shapes: B images, P patches, N visual tokens of an image, T tokens, D width, H heads, V vocabulary.
"""
import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

import data
import llama
import vit
from data import Tokenizer
from lora import ExpertMLP, LoRAConfig
from projector import SkyEyeConfig, SkyEyeGPT
from support.explain.attention import (
    Reading,
    causal,
    llama_heads,
    softmax_attention,
    vit_heads,
)
from support.tools.model_examples import count
from support.training.flops import FlopCounter

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Step:
    name: str                       # as in the state dict, where it is a module
    level: int                      # 0 a stage, 1 inside a block, 2 inside attention or MLP
    shape: tuple[int, ...]          # of what comes out
    what: str                       # what was done
    where: str                      # "vit.py:78"
    parameters: int | None = None   # None: counted in the line of the whole
    flops: float | None = None
    seconds: float | None = None    # None: not measured
    mean: float | None = None       # None: no numbers, on the meta device
    std: float | None = None


@cache
def line_of(function: Callable, text: str = "") -> str:
    """"vit.py:136": the first line of a function that holds this text; "": the function itself.
    ValueError: no line does."""
    lines, start = inspect.getsourcelines(function)
    found = next((i for i, line in enumerate(lines) if text in line), None)
    if found is None:
        raise ValueError(f"{function.__qualname__} has no line with {text!r}")
    file = Path(inspect.getsourcefile(function)).resolve()
    return f"{file.relative_to(ROOT)}:{start + found}"


# ---- watching ------------------------------------------------------------------------------------

class Watch:
    """Collects steps. Its clock stands still while it looks at a tensor."""

    def __init__(self, device: torch.device):
        self.steps: list[Step] = []
        self.handles: list = []
        self.device = device
        self.paused = 0.0
        self.last: dict[int, float] = {}        # when the last step of a level was done

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - self.paused

    def add(self, name: str, level: int, x: Tensor, what: str, where: str, **more) -> None:
        """A step that ends now with the tensor x. more: fields of Step."""
        now = self.now()
        seconds = None
        if self.device.type != "meta" and level < 2:
            seconds = now - self.last[level] if self.last else None
            numbers = x.float()
            more |= {"mean": numbers.mean().item(), "std": numbers.std().item()}
        self.steps.append(Step(name, level, tuple(x.shape), what, where, seconds=seconds, **more))
        for lower in range(level, 2):
            self.last[lower] = now
        self.paused += self.now() - now

    def after(self, module: nn.Module, name: str, level: int, what: str, where: str, **more
              ) -> None:
        """Add a step each time the module has run."""
        self.handles.append(module.register_forward_hook(
            lambda own, inputs, output: self.add(name, level, output, what, where, **more)))

    def before(self, module: nn.Module, look: Callable[..., None]) -> None:
        """Call look(*inputs) each time before the module runs; that takes no time on the clock."""
        def pause(own: nn.Module, inputs: tuple) -> None:
            start = self.now()
            look(*inputs)
            self.paused += self.now() - start
        self.handles.append(module.register_forward_pre_hook(pause))

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


def flops_of(lora: LoRAConfig | None, call: Callable[[FlopCounter], object]) -> float:
    """What a call adds to a counter of forward passes."""
    counter = FlopCounter(lora)
    call(counter)
    return counter.total


def watch_vit(watch: Watch, model: vit.ViT, images: int) -> None:
    config, embed = model.config, model.patch_embed
    attention = flops_of(None, lambda c: c.vision_attention(config, images))
    mlp = flops_of(None, lambda c: c.vision_mlp(config, images))
    watch.after(embed, "visual_encoder.patch_embed", 0,
                f"{config.patch_size} x {config.patch_size} squares -> vectors",
                line_of(vit.PatchEmbed.forward, "self.proj("), parameters=count(embed),
                flops=flops_of(None, lambda c: c.patch_embed(config, images)))
    watch.after(model.norm_pre, "visual_encoder.pos_embed", 0, "+ class token, + positions",
                line_of(vit.ViT.forward, "self.pos_embed"), flops=0.0,
                parameters=count(model.cls_token, model.pos_embed, model.norm_pre))
    for i, block in enumerate(model.blocks):
        name = f"visual_encoder.blocks.{i}"
        if not i:
            watch.before(block.attn, partial(see_vit_attention, watch, block.attn, name))
            watch.before(block.mlp.fc2, lambda x: watch.add(
                "visual_encoder.blocks.0.mlp.fc1", 2, x, "wider, then GELU",
                line_of(vit.MLP.forward, "self.fc1(")))
        watch.after(block.norm1, f"{name}.norm1", 1, "LayerNorm",
                    line_of(vit.Block.forward, "self.norm1"), parameters=count(block.norm1),
                    flops=0.0)
        watch.after(block.attn, f"{name}.attn", 1, "weights v, heads joined, proj",
                    line_of(vit.Attention.forward, "self.proj("), parameters=count(block.attn),
                    flops=attention)
        watch.after(block.norm2, f"{name}.norm2", 1, "LayerNorm",
                    line_of(vit.Block.forward, "self.norm2"), parameters=count(block.norm2),
                    flops=0.0)
        watch.after(block.mlp, f"{name}.mlp", 1, "narrow again",
                    line_of(vit.MLP.forward, "self.fc2("), parameters=count(block.mlp), flops=mlp)
        watch.after(block, name, 0, "x + attn, then x + mlp",
                    line_of(vit.ViT.forward, "x = block("), parameters=count(block),
                    flops=attention + mlp)
    last = "F.layer_norm" if config.variant == "eva" else "return"
    watch.after(model, "visual_encoder", 0, "last norm, class token dropped",
                line_of(vit.ViT.forward, last), parameters=0, flops=0.0)


def see_vit_attention(watch: Watch, layer: vit.Attention, name: str, x: Tensor) -> None:
    q, k, v = vit_heads(layer, x)
    watch.add(f"{name}.attn.q", 2, q, "k (without bias) and v alike",
              line_of(vit.Attention.forward, "q, k, v ="))
    weights, _ = softmax_attention(q, k, v)
    watch.add(f"{name}.attn.weights", 2, weights, "softmax(q k^T / sqrt(d))",
              line_of(vit.Attention.forward, "scaled_dot_product"))


def watch_llama(watch: Watch, model: llama.Llama, lora: LoRAConfig | None, tokens: int) -> None:
    config = model.config
    D, T = config.width, tokens
    attention = flops_of(lora, lambda c: c.attention(D, T, T, T * T, False))
    mlp = flops_of(lora, lambda c: c.mlp(D, config.mlp_width, T, False))
    for i, block in enumerate(model.model.layers):
        name = f"llama_model.model.layers.{i}"
        attn, norms = block.self_attn, (block.input_layernorm, block.post_attention_layernorm)
        if not i:
            watch.before(attn, partial(see_llama_attention, watch, attn, name))
            watch.before(block.mlp.down_proj, lambda x, *_: watch.add(
                "llama_model.model.layers.0.mlp.gate_up", 2, x, "silu(gate) * up",
                line_of(llama.MLP.forward, "F.silu")))
        watch.after(norms[0], f"{name}.input_layernorm", 1, "RMSNorm",
                    line_of(llama.Block.forward, "self.input_layernorm"),
                    parameters=count(norms[0]), flops=0.0)
        watch.after(attn, f"{name}.self_attn", 1, "weights v, heads joined, o_proj",
                    line_of(llama.Attention.forward, "self.o_proj("), parameters=count(attn),
                    flops=attention)
        watch.after(norms[1], f"{name}.post_attention_layernorm", 1, "RMSNorm",
                    line_of(llama.Block.forward, "self.post_attention"),
                    parameters=count(norms[1]), flops=0.0)
        source = ExpertMLP if isinstance(block.mlp, ExpertMLP) else llama.MLP
        watch.after(block.mlp, f"{name}.mlp", 1, "narrow again",
                    line_of(source.forward, "self.down_proj("), parameters=count(block.mlp),
                    flops=mlp)
        watch.after(block, name, 0, "h + attn, then h + mlp",
                    line_of(llama.Transformer.forward, "self.run(block"), parameters=count(block),
                    flops=attention + mlp)
    watch.after(model.model.norm, "llama_model.model.norm", 0, "RMSNorm",
                line_of(llama.Transformer.forward, "self.norm("),
                parameters=count(model.model.norm), flops=0.0)
    watch.after(model.lm_head, "llama_model.lm_head", 0, "a score of each next token",
                line_of(llama.Llama.forward, "self.lm_head("), parameters=count(model.lm_head),
                flops=flops_of(None, lambda c: c.linear("lm_head", D, config.vocab_size, T, False)))


def see_llama_attention(watch: Watch, layer: llama.Attention, name: str, x: Tensor,
                        rope: tuple[Tensor, Tensor], *_: object) -> None:
    q, k, v = llama_heads(layer, x, rope)
    watch.add(f"{name}.self_attn.q", 2, q, "rotated by RoPE, so is k, not v",
              line_of(llama.Attention.forward, "apply_rope(q"))
    T = x.shape[1]
    weights, _ = softmax_attention(q, k, v, causal(torch.arange(T, device=x.device), T))
    watch.add(f"{name}.self_attn.weights", 2, weights, "the same, of those before",
              line_of(llama.attention, "scaled_dot_product"))


def watch_forward(model: SkyEyeGPT, ids: Tensor, images: Tensor | None) -> list[Step]:
    """ids: long[1, T], image slots < 0; images: float[n, 3, H, W] or None -> the steps of a forward
    pass in order. On the meta device the slots stay unfilled: what is in a tensor is not known."""
    device, dtype = model.llama_model.lm_head.weight.device, model.visual_encoder.pos_embed.dtype
    config, n, T = model.config, 0 if images is None else len(images), ids.shape[1]
    watch = Watch(device)
    lora = config.lora
    watch_llama(watch, model.llama_model, lora, T)
    watch_vit(watch, model.visual_encoder, n)
    try:
        visual = None
        if images is not None:
            watch.add("picture", 0, images, "resized, normalized",
                      line_of(data.preprocess, "torch.tensor(MEAN)"), parameters=0, flops=0.0)
            patches = model.visual_encoder(images.to(device, dtype))          # [n, P, D_vit]
            visual = model.llama_proj(patches)                                # [n, N, D]
            watch.add("llama_proj", 0, visual, joined(config),
                      line_of(type(model.llama_proj).forward, "reshape")
                      if config.projector == "linear" else
                      line_of(type(model.llama_proj).forward, "self.linear_2"),
                      parameters=count(model.llama_proj),
                      flops=flops_of(None, lambda c: c.projector(config, n)))
            visual = visual.flatten(0, 1)                                     # [n * N, D]
        if device.type == "meta":
            x = model.llama_model.model.embed_tokens(ids)                     # [1, T, D]
        else:
            x = model.embed(ids, visual)                                      # [1, T, D]
        watch.add("llama_model.model.embed_tokens", 0, x, "ids -> vectors, slots filled",
                  line_of(SkyEyeGPT.embed, "masked_scatter"), flops=0.0,
                  parameters=count(model.llama_model.model.embed_tokens))
        model.llama_model(x)                                                  # [1, T, V]
    finally:
        watch.close()
    return watch.steps


def joined(config: SkyEyeConfig) -> str:
    if config.patches_per_token == 1:
        return "as many visual tokens"
    return f"{config.patches_per_token} of a row -> a visual token"


@torch.inference_mode()
def walk(model: SkyEyeGPT, ids: Sequence[int], images: Tensor | None) -> list[Step]:
    """The steps of a prompt; of a second pass where the first took less than a second, as the first
    one of a process is slower."""
    given = torch.tensor([list(ids)], device=model.llama_model.lm_head.weight.device)
    steps = watch_forward(model, given, images)
    if sum(step.seconds or 0.0 for step in steps if step.level == 0) < 1:
        steps = watch_forward(model, given, images)
    return steps


# ---- printing ------------------------------------------------------------------------------------

def short(number: float | None) -> str:
    """1234567 -> "1.23M", of at most five characters; "" for None."""
    if number is None:
        return ""
    for unit in ("", "K", "M", "G", "T", "P"):
        if abs(number) < 999.5 or unit == "P":
            break
        number /= 1000
    return f"{number:.0f}" if not unit else f"{number:.3g}{unit}"


def step_rows(steps: Sequence[Step]) -> list[tuple[str, ...]]:
    """A row a stage, and of the first block of each kind what is inside it; blocks that are all
    alike, on the meta device, are one row."""
    rows: list[tuple[str, ...]] = []
    timed = any(step.seconds is not None for step in steps)
    head = ("", "shape", "params", "FLOPs", *(("ms", "mean", "std") if timed else ()), "line", "")
    rows.append(head)
    for step in steps:
        first = "blocks.0" in step.name or "layers.0" in step.name
        block = is_block(step.name)
        if step.level and not first or not timed and block and not first:
            continue
        repeats = sum(is_block(other.name) == block for other in steps) if block else 1
        what = step.what if timed or repeats == 1 else f"{step.what}; {repeats} such blocks"
        numbers = () if not timed else (
            "" if step.seconds is None else f"{1000 * step.seconds:.2f}",
            "" if step.mean is None else f"{step.mean:.3f}",
            "" if step.std is None else f"{step.std:.3f}")
        rows.append(("  " * step.level + short_name(step.name), str(list(step.shape)),
                     short(step.parameters), short(step.flops), *numbers, step.where, what))
    return rows


def is_block(name: str) -> str:
    """"visual_encoder.blocks" for its blocks, "" for other steps."""
    stack, _, number = name.rpartition(".")
    return stack if number.isdecimal() else ""


def short_name(name: str) -> str:
    """Without what stands in the lines around it."""
    for prefix in ("visual_encoder.", "llama_model.model.", "llama_model."):
        name = name.removeprefix(prefix)
    parts = name.split(".")
    inside = parts[2:] if len(parts) > 2 and parts[1].isdecimal() else parts
    return inside[-1] if len(inside) > 1 and not inside[-1].isdecimal() else ".".join(inside)


def token_text(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.model.id_to_piece(token)


def prompt_cells(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[list[str], list[str]]:
    """-> the pieces of a prompt and their ids as text; a row of image slots is one cell."""
    pieces, numbers, i = [], [], 0
    while i < len(ids):
        end = i + 1
        while ids[i] < 0 and end < len(ids) and ids[end] < 0:
            end += 1
        pieces.append(f"{end - i} x image" if ids[i] < 0 else token_text(tokenizer, ids[i]))
        numbers.append(str(ids[i]))
        i = end
    return pieces, numbers


def answer_rows(tokenizer: Tokenizer, reading: Reading) -> list[tuple[str, ...]]:
    """A row for each token of an answer: its id, its probability, and the likeliest in its place
    with theirs, itself among them where it is."""
    rows = [("answer", "id", "p", "the likeliest in its place")]
    for i, token in enumerate(reading.tokens):
        others = "  ".join(
            f"{token_text(tokenizer, other)} {p:.3f}" for other, p in
            zip(reading.likeliest[i].tolist(), reading.probabilities[i].tolist(), strict=True))
        rows.append((token_text(tokenizer, token), str(token),
                     f"{reading.probability[i].item():.3f}", others))
    return rows


def steps_to_json(steps: Sequence[Step]) -> list[dict]:
    return [asdict(step) for step in steps]


def reading_to_json(tokenizer: Tokenizer, reading: Reading) -> dict:
    """Of a prompt the ids with the pieces, of an answer its tokens with their alternatives and what
    each layer would say."""
    return {
        "prompt": [[i, None if i < 0 else token_text(tokenizer, i)] for i in reading.ids],
        "tokens": [{
            "id": token, "piece": token_text(tokenizer, token),
            "probability": round(reading.probability[i].item(), 6),
            "likeliest": [[token_text(tokenizer, other), round(p, 6)] for other, p in zip(
                reading.likeliest[i].tolist(), reading.probabilities[i].tolist(), strict=True)],
            "layers": [[token_text(tokenizer, said), round(p, 6)] for said, p in zip(
                reading.lens_ids[:, i].tolist(), reading.lens[:, i].tolist(), strict=True)],
        } for i, token in enumerate(reading.tokens)]}


def print_steps(steps: Sequence[Step]) -> None:
    print_columns(step_rows(steps))
    stages = [step for step in steps if step.level == 0]
    seconds = [step.seconds for step in stages if step.seconds is not None]
    times = f", {1000 * sum(seconds):.1f} ms" if seconds else ""
    print(f"in all {sum(step.parameters for step in stages):,} parameters, "
          f"{short(sum(step.flops for step in stages))} FLOPs{times}")


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Texts to the left, numbers to the right; the last column as it is."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    for row in rows:
        cells = [cell.rjust(width) if is_number(columns[i][1:]) else cell.ljust(width)
                 for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())


def is_number(column: Sequence[str]) -> bool:
    """Whether a column holds numbers and blanks alone."""
    return all(not cell or cell[0] in "-0123456789" for cell in column) and any(column)
