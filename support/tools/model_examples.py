"""What `python vit.py`, `python llama.py` and `python lora.py` print: the model's shapes in one
example, and its parameters. Like these three it needs PyTorch alone.

Shapes are those of tensors that a forward pass has made, sums those of the model's own parameters.
"""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

import llama
import lora
import vit

Row = Sequence[object]


def print_table(rows: Iterable[Row]) -> None:
    """In columns as wide as their widest text, the last one as it is."""
    columns = list(zip(*([str(cell) for cell in row] for row in rows), strict=True))
    widths = [max(map(len, column)) for column in columns[:-1]] + [0]
    for row in zip(*columns, strict=True):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def shape_of(x: Tensor) -> str:
    """float[1, 64, 192]"""
    return f"{'float' if x.is_floating_point() else 'long'}{list(x.shape)}"


def watch(modules: dict[str, nn.Module], run: Callable[[], object]) -> dict[str, Tensor]:
    """Run something -> what each module's latest call gave."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable:
        return lambda module, inputs, output: found.update({name: output})

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    run()
    for handle in handles:
        handle.remove()
    return found


def count(*modules: nn.Module | nn.Parameter) -> int:
    """Parameters in all."""
    return sum(p.numel() for module in modules
               for p in ([module] if isinstance(module, nn.Parameter) else module.parameters()))


def print_parameters(parts: Callable[[nn.Module], dict[str, int]], models: dict[str, nn.Module]
                     ) -> None:
    """A line a part, a column a model, and the sum."""
    columns = [parts(model) | {"all": count(model)} for model in models.values()]
    lines = [(name, *(f"{column[name]:,}" for column in columns)) for name in columns[0]]
    print()
    print_table([("parameters", *models), *lines])


# ---- vit.py --------------------------------------------------------------------------------------

def vit_parts(model: vit.ViT) -> dict[str, int]:
    return {"patch_embed": count(model.patch_embed),
            "class token, positions": count(model.cls_token, model.pos_embed),
            "one block": count(model.blocks[0]), "all blocks": count(model.blocks)}


@torch.no_grad()
def show_vit() -> None:
    config = vit.PRESETS["nano"]
    torch.manual_seed(0)
    model = vit.ViT(config)
    model.init_weights()
    image, block = torch.randn(1, 3, config.image_size, config.image_size), model.blocks[0]
    seen = watch({"patches": model.patch_embed, "qkv": block.attn, "mlp": block.mlp.fc1,
                  "block": block, "out": model}, lambda: model(image))
    side, heads = config.patch_size, config.heads
    print(f"vit.py: the preset nano on a picture of {config.image_size} x {config.image_size}\n")
    print_table([
        ("picture", shape_of(image), "noise, here"),
        ("patch_embed", shape_of(seen["patches"]), f"{config.grid} x {config.grid} patches of "
         f"{side} x {side} pixels: {3 * side * side} numbers -> {config.width}"),
        ("block", shape_of(seen["block"]), f"{config.depth} times; with the class token in front"),
        ("  attention", shape_of(seen["qkv"]), f"{heads} heads of {config.width // heads}; "
         "every patch sees every patch"),
        ("  MLP, inside", shape_of(seen["mlp"]), f"{config.width} -> {config.mlp_width} -> "
         f"{config.width}"),
        ("features", shape_of(seen["out"]), "after the last norm, without the class token")])
    with torch.device("meta"):
        print_parameters(vit_parts, {"nano": model, "eva_vit_g": vit.ViT(vit.PRESETS["eva_vit_g"])})


# ---- llama.py ------------------------------------------------------------------------------------

def llama_parts(model: llama.Llama) -> dict[str, int]:
    block = model.model.layers[0]
    return {"embed_tokens": count(model.model.embed_tokens),
            "one block's attention": count(block.self_attn), "one block's MLP": count(block.mlp),
            "all blocks": count(model.model.layers), "lm_head": count(model.lm_head)}


@torch.no_grad()
def show_llama() -> None:
    config = llama.PRESETS["nano"]
    torch.manual_seed(0)
    model = llama.Llama(config)
    model.init_weights()
    ids = torch.tensor([[1, 17, 5, 290, 33]])
    body, block = model.model, model.model.layers[0]
    whole = model(ids)
    seen = watch({"x": body.embed_tokens, "q": block.self_attn.q_proj, "gate": block.mlp.gate_proj,
                  "block": block}, lambda: model(ids))
    cos, _ = llama.rope_angles(torch.arange(ids.shape[1])[None], config)
    cache = model.new_cache(1, ids.shape[1])
    steps = [model(ids[:, i:i + 1], torch.tensor([[i]]), cache=cache) for i in range(ids.shape[1])]
    apart = (torch.cat(steps, 1) - whole).abs().max().item()
    probabilities = whole[0, -1].softmax(-1)
    kept = cache.k.numel() + cache.v.numel()
    print("llama.py: the preset nano, start values, five tokens\n")
    print_table([
        ("ids", shape_of(ids), f"{ids[0].tolist()}, of {config.vocab_size:,}"),
        ("embed_tokens", shape_of(seen["x"]), ""),
        ("RoPE", shape_of(cos), "cosines of a turn for each position and pair of numbers"),
        ("q, k, v", shape_of(seen["q"]), f"{config.heads} heads of "
         f"{config.width // config.heads}; a token sees itself and those before it"),
        ("MLP, inside", shape_of(seen["gate"]), "silu(gate) * up"),
        ("block", shape_of(seen["block"]), f"{config.depth} times"),
        ("logits", shape_of(whole), "a score for each token that may come next"),
        ("next token", str(probabilities.argmax().item()), "the most probable: "
         f"{100 * probabilities.max():.2f} %, as nothing has been learned"),
        ("KV cache", shape_of(cache.k), f"keys, and as many values: {kept:,} numbers"),
        ("", f"within {apart:.0e}", "are the logits with it, token by token, those above")])
    with torch.device("meta"):
        print_parameters(llama_parts, {
            "nano": model, "llama2_7b": llama.Llama(llama.PRESETS["llama2_7b"])})


# ---- lora.py -------------------------------------------------------------------------------------

@torch.no_grad()
def show_lora() -> None:
    config = lora.LoRAConfig()
    torch.manual_seed(0)
    base = lora.Linear(192, 512, bias=False)
    nn.init.normal_(base.weight, std=0.02)
    layer = lora.LoRALinear(base, replace(config, dropout=0.0))
    x = torch.randn(5, 192)
    fresh = (layer(x) - base(x)).abs().max().item()
    nn.init.normal_(layer.lora_B.weight, std=0.02)          # as if it had been trained
    trained = (layer(x) - base(x)).abs().max().item()
    merged = (layer.merged()(x) - layer(x)).abs().max().item()
    print(f"lora.py: rank {config.r}, alpha {config.alpha:g}, beside one matrix of 192 x 512\n")
    print_table([
        ("weight", shape_of(layer.weight), f"{layer.weight.numel():,} numbers, frozen"),
        ("lora_A", shape_of(layer.lora_A.weight), "x -> its rank numbers"),
        ("lora_B", shape_of(layer.lora_B.weight), f"times alpha / r = {layer.scale:g}; "
         "zero at the start"),
        ("learned", f"{count(layer.lora_A, layer.lora_B):,}", "numbers of A and B"),
        ("B is zero", f"{fresh:.0e}", "largest difference from the matrix alone"),
        ("B has learned", f"{trained:.3f}", "the same, with random numbers in B"),
        ("merged", f"{merged:.0e}", "largest difference of W + (alpha / r) B A in one matrix")])
    with torch.device("meta"):
        models = {name: llama.Llama(llama.PRESETS[name]) for name in ("nano", "llama2_7b")}
        for model in models.values():
            lora.add_lora(model, config)
    print_parameters(lambda model: {
        f"LoRA on {', '.join(config.targets)} of all blocks": sum(
            tensor.numel() for tensor in lora.lora_state_dict(model).values())}, models)
