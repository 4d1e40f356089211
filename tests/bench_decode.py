"""How fast an answer is generated: ours, transformers' and llama.cpp's, in one run.

    python tests/bench_decode.py [--size 15M|110M|1.1B|7B] [--device cpu|cuda] [--dtype fp32|bf16]
                                 [--bits 16 8 4] [--batch 1] [--prompt 320] [--new 25] [--steps 5]
                                 [--threads 2] [--compile] [--llama_cpp]

The language model alone, at the same random weights; a prompt as long as 256 visual tokens and 64
ids, then greedy tokens. Runs are interleaved; the table has medians, and medians of the ratios of
neighbors. In float32 all must give the same tokens before anything is timed. Theirs is the loop
over the model (`generate` adds to that), with a dynamic and a static cache; --compile adds both
sides compiled. --llama_cpp adds llama.cpp on the CPU (pip install llama-cpp-python gguf), at
one row, from files written here: layers in --dtype, Q8_0 or Q4_0, the head, as ours, in --dtype or,
where they have few bits, in 8. Without transformers ours runs alone.

The floor is the time to read what a token needs, weights once and the cache, at the rate at which
this machine reads; the last column is the floor over the step. Loading is from safetensors in the
page cache; ours includes quantizing and packing. On a GPU nothing is packed, and a step is one CUDA
graph.
"""
import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import gguf_files  # noqa: E402
import layouts  # noqa: E402
from bench_train import clock, table  # noqa: E402
from llama import Llama, LlamaConfig  # noqa: E402
from projector import DTYPES  # noqa: E402
from support.checkpoints.load import load_llama  # noqa: E402
from support.inference.cpu_kernels import pack_for_cpu  # noqa: E402
from support.inference.cuda_graphs import accelerate_decoding  # noqa: E402
from support.inference.generation import generate  # noqa: E402
from support.inference.quantization import quantize  # noqa: E402

SIZES = {"15M": LlamaConfig(width=288, depth=6, heads=6, mlp_width=768),
         "110M": LlamaConfig(width=768, depth=12, heads=12, mlp_width=2048),
         "1.1B": LlamaConfig(width=2048, depth=22, heads=32, mlp_width=5632),
         "7B": LlamaConfig()}
THEIRS = "transformers, dynamic cache"
CHECKED = "llama.cpp, its cache in F32"                   # compared once, not timed
Steps = Iterator[Tensor]                        # the ids of a step, long[B]


# ---- the sides: each yields a step's ids ---------------------------------------------------------

def write_folder(folder: Path, config: LlamaConfig, dtype: torch.dtype) -> None:
    """Random weights as Hugging Face publishes them."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    with torch.device("meta"):
        names = Llama(config).state_dict()
    for name, like in names.items():
        std = like.shape[-1] ** -0.5 if "proj" in name or "lm_head" in name else 0.5
        tensors[name] = torch.ones(like.shape, dtype=dtype) if "norm" in name else \
            torch.empty(like.shape, dtype=dtype).normal_(0, std, generator=generator)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(layouts.hf_json(config)))


def prompt(folder: Path, config: LlamaConfig, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """-> ids: long[B, T], and their embeddings, [B, T, D], which all but llama.cpp are given"""
    ids = torch.randint(3, config.vocab_size, (args.batch, args.prompt),
                        generator=torch.Generator().manual_seed(1))
    with safe_open(folder / "model.safetensors", "pt") as source:
        return ids, source.get_tensor("model.embed_tokens.weight")[ids].to(args.device)


def load_ours(folder: Path, bits: int, args: argparse.Namespace, compiled: bool = False) -> Llama:
    model = load_llama(folder, args.device, DTYPES[args.dtype])
    for part in model.modules() if bits < 16 else ():
        if isinstance(part, nn.Linear):
            own = quantize(part.weight, 8 if part is model.lm_head else bits)
            part.weight = nn.Parameter(own, requires_grad=False)
    model = model if compiled else pack_for_cpu(model, args.batch)
    accelerate_decoding(model, compiled)
    return model


def ours(model: Llama, x: Tensor, new: int) -> Steps:
    B, T, _ = x.shape
    lengths = torch.full((B,), T, device=x.device)
    return generate(model, x, lengths, model.new_cache(B, T + new), new, stop=-1)


def load_theirs(folder: Path, args: argparse.Namespace) -> nn.Module:
    import transformers
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=DTYPES[args.dtype])
    return model.to(args.device).eval().requires_grad_(False)


@torch.inference_mode()
def theirs(model: nn.Module, x: Tensor, new: int, static: bool, step: Callable | None = None
           ) -> Steps:
    from transformers import DynamicCache, StaticCache
    T, options = x.shape[1], {"use_cache": True, "logits_to_keep": 1}
    cache = StaticCache(model.config, max_cache_len=T + new) if static else DynamicCache()
    logits = model(inputs_embeds=x, past_key_values=cache, **options).logits
    for i in range(new):
        ids = logits[:, -1].argmax(-1)
        yield ids
        if i + 1 < new:
            at = torch.full((len(x), 1), T + i, device=x.device)
            run = model if step is None else step
            logits = run(input_ids=ids[:, None], past_key_values=cache,
                         position_ids=at, **options).logits


def llama_cpp_loads(folder: Path, config: LlamaConfig, args: argparse.Namespace
                    ) -> dict[str, Callable]:
    """Writes its files. For the same tokens it needs a cache in float32, which is slower."""
    if gguf_files.MISSING or args.batch > 1 or args.device != "cpu":
        why = "to time it too: pip install " + " ".join(gguf_files.MISSING) \
            if gguf_files.MISSING else "it is timed at --batch 1 on a CPU only"
        print(f"llama.cpp: left out, {why}", file=sys.stderr)
        return {}
    dtype, loads = DTYPES[args.dtype], {}
    load = partial(gguf_files.load_gguf, prompt=args.prompt, new=args.new, threads=args.threads)
    gguf_files.write_gguf(folder, config, folder / "16.gguf")
    for bits in args.bits:
        file, kind = folder / f"{bits}.gguf", gguf_files.KINDS[dtype if bits == 16 else bits]
        if bits < 16:
            gguf_files.quantize_gguf(folder / "16.gguf", bits, dtype, file)
        loads[f"llama.cpp, {kind}"] = partial(load, file)
    if args.dtype == "fp32" and 16 in args.bits:
        loads[CHECKED] = partial(load, folder / "16.gguf", exact=True)
    return loads


# ---- measurements --------------------------------------------------------------------------------

def timed(run: Callable[[], Steps], device: str) -> tuple[float, float, list[list[int]]]:
    """-> seconds to the first token, and for each further one; the tokens."""
    start, tokens = clock(device), []
    for ids in run():
        tokens.append(ids)
        if len(tokens) == 1:
            first = clock(device)
    return (first - start, (clock(device) - first) / (len(tokens) - 1),
            torch.stack(tokens, dim=1).tolist())


def read_rate(device: str, numbers: int = 1 << 28) -> float:
    """-> bytes a second that a sum over a GiB reads, the best of five."""
    x, best = torch.ones(numbers, device=device), float("inf")
    for _ in range(5):
        start = clock(device)
        x.sum()
        best = min(best, clock(device) - start)
    return x.nbytes / best


def step_bytes(config: LlamaConfig, bits: int, args: argparse.Namespace) -> float:
    """What a step reads: layers in `bits`, the head, in 8 if they are few, and the cache as of the
    middle token."""
    size = DTYPES[args.dtype].itemsize
    layer = config.depth * (4 * config.width ** 2 + 3 * config.width * config.mlp_width)
    stored = {16: size, 8: 1, 4: 0.5 + size / 32}[bits]
    length = args.prompt + args.new / 2
    cache = 2 * config.depth * config.width * length * args.batch
    return layer * stored + config.vocab_size * config.width * (size if bits == 16 else 1) + \
        cache * (4 if args.device == "cpu" else size)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="15M")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--bits", type=int, nargs="+", choices=(16, 8, 4), default=[16, 8, 4])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=320, help="tokens")
    parser.add_argument("--new", type=int, default=25, help="tokens of an answer")
    parser.add_argument("--steps", type=int, default=5, help="answers of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="both with torch.compile too")
    parser.add_argument("--llama_cpp", action="store_true", help="llama.cpp too")
    return parser.parse_args()


def sides(folder: Path, config: LlamaConfig, args: argparse.Namespace
          ) -> tuple[dict[str, Callable[[], Steps]], dict[str, float]]:
    """-> what is to be timed, and the seconds that loading took."""
    loads = {f"ours, {bits} bits": lambda bits=bits: load_ours(folder, bits, args)
             for bits in args.bits}
    if args.compile:
        loads |= {f"ours, {bits} bits, compiled": lambda bits=bits: load_ours(
            folder, bits, args, compiled=True) for bits in args.bits}
    if importlib.util.find_spec("transformers"):
        loads = {THEIRS: lambda: load_theirs(folder, args)} | loads
    else:
        print("transformers: not installed, ours runs alone", file=sys.stderr)
    if args.llama_cpp:
        loads |= llama_cpp_loads(folder, config, args)
    ids, x = prompt(folder, config, args)
    runs, loaded = {}, {}
    for name, load in loads.items():
        load()                                                      # imports, and the page cache
        start = clock(args.device)
        model = load()
        loaded[name] = clock(args.device) - start
        if name.startswith("llama.cpp"):
            runs[name] = lambda model=model: gguf_files.tokens(model, ids[0].tolist(), args.new)
            continue
        if name != THEIRS:
            runs[name] = lambda model=model: ours(model, x, args.new)
            continue
        runs[name] = lambda model=model: theirs(model, x, args.new, static=False)
        runs["transformers, static cache"] = lambda model=model: theirs(model, x, args.new, True)
        if args.compile:
            step = torch.compile(model, mode="reduce-overhead" if x.is_cuda else "default")
            runs["transformers, compiled"] = lambda model=model, step=step: theirs(
                model, x, args.new, True, step)
    return runs, loaded


def report(runs: dict[str, Callable[[], Steps]], loaded: dict[str, float], floors: dict[str, float],
           args: argparse.Namespace) -> None:
    first = {name: timed(run, args.device)[2] for name, run in runs.items()}        # and warm up
    for name, tokens in first.items():
        same = name.startswith(("transformers", "ours, 16 bits")) or name == CHECKED
        if same and args.dtype == "fp32" and 16 in args.bits:
            assert tokens == first["ours, 16 bits"], f"{name}: other tokens"
    found = {name: [] for name in runs if name != CHECKED}
    for _ in range(args.steps):
        for name in found:
            prefill, step, _ = timed(runs[name], args.device)
            found[name].append((prefill, step, prefill + (args.new - 1) * step))
    rows = []
    for name, own in found.items():
        base = found.get(THEIRS, own)
        middle = [statistics.median(part) for part in zip(*own, strict=True)]
        times = [statistics.median(a[i] / b[i] for a, b in zip(base, own, strict=True))
                 for i in range(3)]
        rows.append([name, f"{loaded[name]:.2f}" if name in loaded else "",
                     f"{middle[0] * 1e3:.1f}", f"{middle[1] * 1e3:.2f}",
                     f"{args.batch / middle[1]:.1f}", *(f"{ratio:.2f}" for ratio in times),
                     f"{floors[name] / middle[1]:.0%}" if name in floors else ""])
    table(["", "load s", "first token ms", "ms/step", "tokens/s", "times theirs: first token",
           "step", "whole answer", "of the floor"], rows)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    config, rate = SIZES[args.size], read_rate(args.device)
    config = replace(config, max_positions=max(config.max_positions, args.prompt + args.new))
    floors = {f"ours, {bits} bits": step_bytes(config, bits, args) / rate for bits in args.bits}
    floors |= {THEIRS: step_bytes(config, 16, args) / rate}
    cpu = f"cpu, {args.threads} threads"
    place = torch.cuda.get_device_name() if args.device == "cuda" else cpu
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), config, DTYPES[args.dtype])
        runs, loaded = sides(Path(folder), config, args)
        print(f"{args.size}, {args.dtype}, batch {args.batch}, {place}; prompt {args.prompt}, "
              f"{args.new} tokens; reads {rate / 1e9:.1f} GB/s; medians of {args.steps}; floor "
              + ", ".join(f"{floors[f'ours, {bits} bits'] * 1e3:.2f} ms at {bits} bits"
                          for bits in args.bits) + "\n")
        report(runs, loaded, floors, args)


if __name__ == "__main__":
    main()
