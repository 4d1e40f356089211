"""All that is there for a GPU, run on one: is it correct, how fast is it, and what does it train.

    python tests/gpu.py [--part check|bench|train] [--minutes 14] [--out out/gpu/results.jsonl]
    python tests/gpu.py --tiny --device cpu         the same code at tiny sizes, in a minute

A result is a line of JSON, on standard output and at the end of the file --out as soon as it is
known, so that a run that is cut off keeps what it has found:

    {"name": "LLaMA, bf16: gradients", "value": 0.011, "unit": "relative norm", "passed": true,
     "card": "NVIDIA H100 80GB HBM3", "commit": "4ee3af9", "seconds": 0.41, "bound": 0.04}

check (2 minutes)   the GPU against float32 on the CPU, at random models with the true widths of a
                    head: outputs, gradients, tokens, training steps. `value` is a difference, and
                    the check is passed if it is at most `bound`
bench (4 minutes)   LLaMA-2-7B with EVA ViT-g at 448 px, random weights made on the GPU: decoding,
                    LoRA training, questions a second; beside transformers and peft where they are
                    installed, in turns
train (the rest)    weights/nano's recipe in three runs on a miniature world rendered for it; the
                    weights come into a folder beside --out

What fails becomes a line with "error", what cannot be done a line with "skipped" and the reason,
and the next one runs; each part has a process of its own. A part that is named gets all the
minutes. Exit code 1: something failed.
"""
import argparse
import contextlib
import copy
import functools
import gc
import importlib.util
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

# Of cuBLAS, for runs that are to give the same bits twice; read when it starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import bench_eval  # noqa: E402
import bench_train  # noqa: E402
import tiny  # noqa: E402
import train  # noqa: E402
from bench_decode import read_rate, step_bytes, theirs  # noqa: E402
from bench_train import LORA, build_ours, clock, peak, question_batches  # noqa: E402
from examples.miniworld import write_world  # noqa: E402
from llama import Llama, LlamaConfig  # noqa: E402
from lora import MOE_LORA, LoRAConfig, add_lora  # noqa: E402
from projector import DTYPES, SkyEyeConfig, SkyEyeGPT  # noqa: E402
from support.common import (  # noqa: E402
    UserError,
    commit,
    device_name,
    find_device,
    in_range,
    option,
    parse_config,
)
from support.inference.cuda_graphs import StaticStep, accelerate_decoding  # noqa: E402
from support.inference.generation import LOOKAHEAD, generate  # noqa: E402
from support.inference.quantization import quantize  # noqa: E402
from support.tools import convert  # noqa: E402
from support.training.checkpoints import newest_checkpoint  # noqa: E402
from support.training.distributed import wrap  # noqa: E402
from support.training.flops import count_flops  # noqa: E402
from vit import ViT, ViTConfig  # noqa: E402

NANO = ROOT / "weights" / "nano"
PARTS = ("check", "bench", "train")


@dataclass(frozen=True)
class GPUConfig:
    part: str = option("", "one part alone; empty: all three in turn", choices=("", *PARTS))
    minutes: float = option(14.0, "minutes for all parts", type=in_range(float, 0.1))
    tiny: bool = option(False, "tiny sizes, to try this script")
    device: str = option("cuda", "where it runs", choices=("cpu", "cuda"))
    out: Path = option(Path("out/gpu/results.jsonl"), "results are added to this file; the trained "
                       "weights go into a folder beside it", type=Path, metavar="FILE")


# ---- results -------------------------------------------------------------------------------------

class Report:
    """Writes a line of JSON for each result, at once."""

    def __init__(self, file: Path, device: str):
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(file, "a", encoding="utf-8")
        self.where = {"card": device_name(device), "commit": commit()}
        self.failed = 0
        self.last = time.perf_counter()         # when the line before was written

    def write(self, name: str, value: float | None, unit: str, passed: bool | None, **more) -> None:
        now = time.perf_counter()
        if isinstance(value, float):
            value = float(f"{value:.4g}") if math.isfinite(value) else str(value)
        row = {"name": name, "value": value, "unit": unit, "passed": passed, **self.where,
               "seconds": round(now - self.last, 2), **more}
        self.last, self.failed = now, self.failed + (passed is False)
        for stream in (self.file, sys.stdout):
            print(json.dumps(row), file=stream, flush=True)

    def check(self, name: str, value: float, bound: float, unit: str, **more) -> None:
        """value: a difference, which NaN fails like a large one."""
        self.write(name, value, unit, value <= bound, bound=bound, **more)

    def measured(self, name: str, value: float, unit: str, **more) -> None:
        self.write(name, value, unit, True, **more)

    def skip(self, name: str, reason: str) -> None:
        self.write(name, None, "", None, skipped=reason)

    def run(self, name: str, work: Callable[[], None], seconds: float) -> None:
        """Whatever goes wrong in it becomes a line; so does running longer than `seconds`."""
        if seconds < 1:
            return self.skip(name, "no time was left")
        try:
            with time_limit(seconds):
                work()
        except (Exception, SystemExit) as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            self.write(name, None, "", False, error=text[:500])
        free_memory()


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TimeoutError after so many seconds, in the main thread."""
    def stop(*_) -> None:
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def free_memory() -> None:
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@dataclass(frozen=True)
class Setup:
    device: str
    tiny: bool
    folder: Path                # a temporary one
    out: Path                   # the folder of --out
    report: Report

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


Work = tuple[str, Callable[[], None]]           # the name of a check or measurement, and the call


# ---- check: numbers ------------------------------------------------------------------------------

# Heads are as wide as in the large models: 88 in ViT-g, 128 in LLaMA-2; one vocabulary with nano.
SMALL = SkyEyeConfig(ViTConfig(112, 14, width=352, depth=3, heads=4, mlp_width=1536),
                     LlamaConfig(2048, width=512, depth=3, heads=4, mlp_width=1376,
                                 max_positions=1024), lora=None)
SMALLER = SkyEyeConfig(ViTConfig(56, 14, width=176, depth=2, heads=2, mlp_width=352),
                       LlamaConfig(2048, width=256, depth=2, heads=2, mlp_width=640,
                                   max_positions=1024), lora=None)
LORAS = {"LoRA": LoRAConfig(r=8, alpha=2.0, dropout=0.0),
         "MoE-LoRA": replace(MOE_LORA, r=8, alpha=2.0, dropout=0.0)}

# Float32 in another order of summation differs by some 1e-6; a wrong mask, position or scale by
# some tens of percents. A number of bf16 is off by up to 2^-9, of fp16 by 2^-12 (weights have the
# same rounding on both sides, so they do not count); there are some ten roundings on the way
# through a block, which add up as random numbers do, and as many on the way back.
BOUNDS = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.015}


def check_work(setup: Setup) -> list[Work]:
    works = [(f"{part}, {dtype}", partial(check_numbers, setup, part, dtype))
             for part in ("ViT", "LLaMA", *LORAS) for dtype in DTYPES]
    works += [("greedy tokens", partial(check_tokens, setup)),
              ("no waiting in the token loop", partial(check_waiting, setup)),
              ("answers", partial(check_answers, setup))]
    works += [(f"{bits} bits", partial(check_bits, setup, bits)) for bits in (8, 4)]
    works += [("packed rows", partial(check_packed_rows, setup))]
    works += [(f"training step, {name}", partial(check_step, setup, name, *how))
              for name, how in STEPS.items()]
    return [*works, ("resume", partial(check_resume, setup)),
            ("chat.py", partial(check_chat, setup)),
            ("greedy tokens, --compile", partial(check_compiled_tokens, setup)),
            ("training step, --compile", partial(check_step, setup, "--compile", "lora", "fp32",
                                                 {"compile": True})),
            ("training step, --shard", partial(check_shard, setup))]


def small_config(setup: Setup) -> SkyEyeConfig:
    return SMALLER if setup.tiny else SMALL


def small_llama(setup: Setup) -> Llama:
    return tiny.randomize(Llama(small_config(setup).llama)).requires_grad_(False)


def difference(x: Tensor, reference: Tensor) -> float:
    """The relative norm of the difference."""
    x, reference = x.detach().double().cpu(), reference.detach().double().cpu()
    return ((x - reference).norm() / reference.norm()).item()


def build_part(part: str, config: SkyEyeConfig, dtype: torch.dtype) -> nn.Module:
    """On the CPU in float32, the numbers of frozen weights being numbers of `dtype`.

    In 16 bits the router weights all experts: a token whose two best are close may choose the other
    one, which is no fault and would hide one.
    """
    model = ViT(config.vit) if part == "ViT" else Llama(config.llama)
    if part in LORAS:
        model.requires_grad_(False)
        dense = part == "MoE-LoRA" and dtype != torch.float32
        add_lora(model, replace(LORAS[part], dense=dense))
    tiny.randomize(model)
    for name, p in model.named_parameters():
        if ".lora_" not in name:
            p.data = p.data.to(dtype).float()
    return model


def outputs_and_gradients(model: nn.Module, x: Tensor, device: str, autocast: torch.dtype
                          ) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients of a sum of all outputs with random factors, by the parameter's name."""
    with torch.autocast(device, autocast, enabled=autocast != torch.float32):
        y = model(x.to(device))
    factors = 0.05 * torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    (y.float() * factors.to(device)).sum().backward()
    return y, {name: p.grad.float().cpu() for name, p in model.named_parameters()
               if p.grad is not None}


def check_numbers(setup: Setup, part: str, dtype_name: str) -> None:
    """ViT and LLaMA with weights in 16 bits, as in inference; LoRA with autocast, as in training,
    itself in float32."""
    config, dtype = small_config(setup), DTYPES[dtype_name]
    reference = build_part(part, config, dtype)
    model = copy.deepcopy(reference).to(setup.device)
    for name, p in model.named_parameters():
        if ".lora_" not in name:
            p.data = p.data.to(dtype)
    side = config.vit.image_size
    x = tiny.ids(2, 48, config.llama.vocab_size)
    if part == "ViT":
        images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
        x = images.to(dtype)
    wanted, wanted_grads = outputs_and_gradients(
        reference, x.float() if part == "ViT" else x, "cpu", torch.float32)
    with full_float32():
        found, grads = outputs_and_gradients(model, x, setup.device,
                                             dtype if part in LORAS else torch.float32)
    assert grads.keys() == wanted_grads.keys(), "other parameters have gradients"
    bound, by_name = BOUNDS[dtype_name], {n: difference(grads[n], g)
                                          for n, g in wanted_grads.items()}
    setup.report.check(f"{part}, {dtype_name}: outputs", difference(found, wanted), bound,
                       "relative norm", compared=wanted.numel())
    all_grads, all_wanted = (torch.cat([g.flatten() for _, g in sorted(own.items())])
                             for own in (grads, wanted_grads))
    worst = max(by_name, key=by_name.get)
    setup.report.check(f"{part}, {dtype_name}: gradients", difference(all_grads, all_wanted), bound,
                       "relative norm", compared=len(all_wanted), worst=worst,
                       worst_value=float(f"{by_name[worst]:.4g}"))


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """By default cuDNN's convolutions round float32 to 10 bits (TF32), as much as the bound."""
    previous, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = previous


# ---- check: tokens -------------------------------------------------------------------------------

NEW = 40        # more than the 4 * LOOKAHEAD steps after which rows that have ended are dropped


def prompts_of(setup: Setup) -> list[Tensor]:
    """Three, of which the first two are alike, so that most rows can end together."""
    ids = tiny.ids(2, 24, small_config(setup).llama.vocab_size)
    return [ids[0, :15], ids[0, :15], ids[1]]


def one_by_one(llama: Llama, prompts: Sequence[Tensor], stop: int) -> list[list[int]]:
    device = llama.lm_head.weight.device
    return [list(llama.generate(ids.to(device), NEW, stop)) for ids in prompts]


def in_a_batch(llama: Llama, prompts: Sequence[Tensor], stop: int) -> list[list[int]]:
    device = llama.lm_head.weight.device
    ids = nn.utils.rnn.pad_sequence(list(prompts), batch_first=True).to(device)     # [B, T]
    with torch.inference_mode():
        x = llama.model.embed_tokens(ids)                                     # [B, T, D]
    lengths = torch.tensor([len(row) for row in prompts], device=device)
    cache = llama.new_cache(len(prompts), ids.shape[1] + NEW)
    steps = list(generate(llama, x, lengths, cache, NEW, stop))
    rows = torch.stack(steps, dim=1).tolist()
    return [row[:row.index(stop)] if stop in row else row for row in rows]


def accelerate(llama: Llama, compile: bool = False) -> None:
    """On a CPU, where nothing is recorded, at least with the shapes that never change."""
    accelerate_decoding(llama, compile)
    if not llama.lm_head.weight.is_cuda and not compile:
        llama.decode_step = StaticStep(llama.decode_step)


@contextlib.contextmanager
def compiler(setup: Setup) -> Iterator[dict]:
    """-> what to note. On a CPU, where compiling takes minutes, graphs are only traced."""
    compile = torch.compile
    if not setup.on_gpu:
        torch.compile = partial(compile, backend="eager")
    try:
        yield {} if setup.on_gpu else {"note": "traced, and not compiled, on a CPU"}
    finally:
        torch.compile = compile


def count_differences(found: list[list[int]], wanted: list[list[int]]) -> int:
    return sum(abs(len(a) - len(b)) + sum(x != y for x, y in zip(a, b, strict=False))
               for a, b in zip(found, wanted, strict=True))


def check_same(setup: Setup, name: str, found: list[list[int]], wanted: list[list[int]], **more
               ) -> None:
    setup.report.check(name, count_differences(found, wanted), 0, "tokens that differ",
                       compared=sum(map(len, wanted)), **more)


def check_tokens(setup: Setup) -> None:
    llama, prompts = small_llama(setup), prompts_of(setup)
    free = one_by_one(llama, prompts, stop=-1)                      # on the CPU, each to its end
    stop = next(token for token in free[0][4:] if token not in free[2])
    stopped = [row[:row.index(stop)] if stop in row else row for row in free]
    llama.to(setup.device)
    note = {} if setup.on_gpu else {"note": "static shapes, no graph on a CPU"}
    check_same(setup, "greedy tokens, one by one", one_by_one(llama, prompts, -1), free)
    check_same(setup, "greedy tokens, a batch", in_a_batch(llama, prompts, -1), free)
    check_same(setup, "greedy tokens, rows that end", in_a_batch(llama, prompts, stop), stopped)
    accelerate(llama)
    check_same(setup, "greedy tokens, CUDA graph", in_a_batch(llama, prompts[2:], -1), free[2:],
               **note)
    check_same(setup, "greedy tokens, CUDA graph, a batch", in_a_batch(llama, prompts, -1), free,
               **note)
    check_same(setup, "greedy tokens, CUDA graph, rows that end",
               in_a_batch(llama, prompts, stop), stopped, **note)


def check_compiled_tokens(setup: Setup) -> None:
    llama, prompts = small_llama(setup), prompts_of(setup)[2:]
    wanted = one_by_one(llama, prompts, stop=-1)
    llama.to(setup.device)
    with compiler(setup) as note:
        accelerate(llama, compile=True)
        found = in_a_batch(llama, prompts, -1)
    check_same(setup, "greedy tokens, --compile", found, wanted, **note)


def check_waiting(setup: Setup) -> None:
    """Between two looks at which rows have ended, the CPU waits for a token that was asked for
    earlier, and for nothing else."""
    name = "no waiting in the token loop"
    if not setup.on_gpu:
        return setup.report.skip(name, "a CPU has nothing to wait for; "
                                 "tests/test_inference_cuda_graphs.py shows it on meta tensors")
    llama = small_llama(setup).to(setup.device)
    accelerate(llama)
    count = 4 * LOOKAHEAD - 1
    x, lengths = torch.randn(3, 9, llama.config.width).cuda(), torch.full((3,), 9).cuda()
    cache, steps = llama.new_cache(3, 9 + count), 0
    for watched in (False, True):                       # the first time the graph is recorded
        cache.length = 0
        torch.cuda.set_sync_debug_mode("error" if watched else "default")
        try:
            steps = len(list(generate(llama, x, lengths, cache, count, stop=-1)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    setup.report.check(name, count - steps, 0, "steps that waited", compared=count)


def check_answers(setup: Setup) -> None:
    """Two pictures, three questions each: answer_batch against generate on the CPU."""
    config = small_config(setup)
    model = tiny.randomize(SkyEyeGPT(config)).requires_grad_(False)
    side, vocab = config.vit.image_size, config.llama.vocab_size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    prefix = torch.tensor([1, 5, *[-1] * config.visual_tokens, 6])
    groups = [[torch.cat([prefix, tiny.ids(1, length, vocab, seed)[0]])
               for length, seed in ((9, 3 * g), (5, 3 * g + 1), (12, 3 * g + 2))] for g in (0, 1)]

    def singles(device: str) -> list[list[int]]:
        return [list(model.generate(ids.to(device), images[g:g + 1].to(device), 20, stop=-1))
                for g, group in enumerate(groups) for ids in group]

    def batched(device: str) -> list[list[int]]:
        own = [[ids.to(device) for ids in group] for group in groups]
        return model.answer_batch(own, images.to(device), len(prefix), 20, stop=-1)

    wanted = singles("cpu")
    model.to(setup.device)
    with full_float32():
        check_same(setup, "answers, one by one", singles(setup.device), wanted)
        check_same(setup, "answers, answer_batch", batched(setup.device), wanted)
        accelerate(model.llama_model)
        check_same(setup, "answers, answer_batch, CUDA graph", batched(setup.device), wanted)


# 8 bits lose 0.9 % of a weight, 4 bits 8.6 %, at random; there are seven matrices a layer.
BITS_BOUNDS = {8: 0.08, 4: 0.6}


@torch.no_grad()
def check_bits(setup: Setup, bits: int) -> None:
    folder, ids = model_folder(setup), tiny.ids(2, 48, small_config(setup).llama.vocab_size)
    near = SkyEyeGPT.from_pretrained(folder)(ids)
    wanted = SkyEyeGPT.from_pretrained(folder, bits=bits)(ids)
    model = SkyEyeGPT.from_pretrained(folder, setup.device, bits=bits)
    found = model(ids.to(setup.device))
    setup.report.check(f"{bits} bits: as on the CPU", difference(found, wanted), 1e-3,
                       "relative norm", compared=found.numel())
    setup.report.check(f"{bits} bits: near 16", difference(found, near), BITS_BOUNDS[bits],
                       "relative norm", compared=found.numel())


# ---- check: training -----------------------------------------------------------------------------

Flags = dict[str, object]                       # fields of train.TrainConfig
STEPS: dict[str, tuple[str, str, Flags]] = {    # which model (LORAS, lower case), type, flags
    "--tune full": ("", "fp32", {"tune": "full", "train_vit": True}),
    "--tune lora": ("lora", "fp32", {}),
    "--tune moe-lora": ("moe-lora", "fp32", {}),
    "--tune projector": ("", "fp32", {"tune": "projector"}),
    "--tune full, bf16": ("", "bf16", {"tune": "full", "train_vit": True}),
    "--tune lora, bf16": ("lora", "bf16", {}),
    "--tune moe-lora, bf16": ("moe-lora", "bf16", {}),
    "--tune full, fp16": ("", "fp16", {"tune": "full", "train_vit": True}),
    "--tune lora, fp16": ("lora", "fp16", {}),
    "--grad_checkpoint": ("lora", "fp32", {"grad_checkpoint": True}),
    "--bits 8": ("lora", "fp32", {"bits": 8}),
    "--bits 4": ("lora", "fp32", {"bits": 4}),
}


def model_folder(setup: Setup, lora: str = "") -> Path:
    """A small model with random weights, and a LoRA that is not zero: the folder."""
    folder = setup.folder / (lora or "base")
    if not folder.exists():
        loras = {name.lower(): config for name, config in LORAS.items()}
        config = replace(small_config(setup), lora=loras.get(lora))
        tiny.randomize(SkyEyeGPT(config)).save_pretrained(folder)
        shutil.copyfile(NANO / "tokenizer.model", folder / "tokenizer.model")
    return folder


def packed_batches(setup: Setup, device: str, questions: int, together: int) -> list[dict]:
    """So many questions about each of two pictures, `together` of them in a row; two batches."""
    args = argparse.Namespace(questions=questions, pictures=2, rows=questions, device=device)
    return question_batches(small_config(setup), args, together)


@torch.no_grad()
def check_packed_rows(setup: Setup) -> None:
    model = SkyEyeGPT.from_pretrained(model_folder(setup), setup.device)

    def loss(together: int) -> float:
        batches = packed_batches(setup, setup.device, 12, together)
        counts = [bench_train.supervised(batch) for batch in batches]
        return sum(model(**batch).item() * count
                   for batch, count in zip(batches, counts, strict=True)) / sum(counts)

    wanted = loss(1)
    for together in (4, 12):
        setup.report.check(f"packed rows, {together} questions: loss as of one a row",
                           abs(loss(together) / wanted - 1), 1e-4, "relative difference",
                           compared=24)


def losses_and_norms(setup: Setup, lora: str, dtype: str, device: str, shard: bool = False,
                     **flags) -> Tensor:
    """Two steps of train.py -> [loss, norm, loss, norm]; those not counted whose gradients in fp16
    were infinite, after which the scaler lowers its scale."""
    settings = {"model": str(model_folder(setup, lora)), "tune": lora, "dtype": dtype, "lr": 1e-3}
    config = train.TrainConfig(**settings | flags)
    built_on = "cpu" if shard else device
    model, _ = train.build_model(config, built_on, DTYPES[dtype])
    model = wrap(model, device, DTYPES[dtype], shard=shard, compile=config.compile, init_sync=True)
    model.train()
    optimizer = train.make_optimizer(model, config)
    scaler = torch.amp.GradScaler(device, enabled=dtype == "fp16")
    batches, numbers = packed_batches(setup, "cpu", 4, 2), []
    for _ in range(20):
        loss, norm, _ = train.train_step(model, batches, optimizer, scaler, config)
        numbers += [loss, norm] if math.isfinite(norm) else []
        if len(numbers) == 4:
            break
    return torch.tensor(numbers)


@functools.cache
def wanted_steps(setup: Setup, lora: str, flags: tuple) -> Tensor:
    """The same on the CPU in float32."""
    return losses_and_norms(setup, lora, "fp32", "cpu", **dict(flags))


def check_step(setup: Setup, name: str, lora: str, dtype: str, flags: Flags) -> None:
    same = ("tune", "train_vit", "bits")                # what changes the numbers
    wanted = wanted_steps(setup, lora, tuple((k, v) for k, v in flags.items() if k in same))
    with full_float32(), compiler(setup) as note:
        found = losses_and_norms(setup, lora, dtype, setup.device, **flags)
    compare_steps(setup, name, dtype, found, wanted, **(note if "compile" in flags else {}))


def compare_steps(setup: Setup, name: str, dtype: str, found: Tensor, wanted: Tensor, **more
                  ) -> None:
    assert wanted[0] > wanted[2], "the loss does not fall"
    setup.report.check(f"training step, {name}", (found / wanted - 1).abs().max().item(),
                       BOUNDS[dtype], "relative difference", compared=len(wanted),
                       losses=[float(f"{loss:.6g}") for loss in found[::2].tolist()], **more)


def check_shard(setup: Setup) -> None:
    """FSDP in a world of one, with NCCL on a GPU; train.py asks for two processes."""
    backend = "nccl" if setup.on_gpu else "gloo"
    dist.init_process_group(backend, init_method=f"file://{setup.folder}/rendezvous", rank=0,
                            world_size=1)
    try:
        for dtype in ("fp32", "bf16"):
            found = losses_and_norms(setup, "lora", dtype, setup.device, shard=True)
            compare_steps(setup, f"--shard, {dtype}", dtype, found, wanted_steps(setup, "lora", ()))
    finally:
        dist.destroy_process_group()


def check_resume(setup: Setup) -> None:
    """Four steps; and two, a checkpoint, two more. With PyTorch's deterministic kernels; and, only
    to know it, with the default ones, which may add in another order each time."""
    data = setup.folder / "conversations"
    data.mkdir()
    tiny.conversations(data, count=6, texts=3)
    flags = ["--model", str(model_folder(setup)), "--tune", "full", "--train_vit", "--data",
             str(data / "conversations.json"), "--max_steps", "4", "--batch_size", "2",
             "--save_steps", "2", "--lr", "1e-3", "--warmup_steps", "1", "--device", setup.device,
             "--num_workers", "1"]

    def weights(name: str, *more: str) -> dict[str, Tensor]:
        out = setup.folder / name
        train.train(train.parse_args([*flags, "--output_dir", str(out), *more]))
        return load_file(out / "model.safetensors")

    def unbroken_and_resumed(kind: str) -> tuple[dict[str, Tensor], int]:
        """-> the weights of the unbroken run; how many numbers are others in the resumed one."""
        unbroken = weights(kind)
        resumed = weights(f"{kind}-resumed", "--resume", str(setup.folder / kind / "checkpoint-2"))
        return unbroken, sum(int((unbroken[name] != resumed[name]).sum()) for name in unbroken)

    unbroken, differing = unbroken_and_resumed("default")
    count = sum(tensor.numel() for tensor in unbroken.values())
    setup.report.measured("resume with the default kernels", differing, "numbers that differ",
                          compared=count)
    torch.use_deterministic_algorithms(True)
    try:
        unbroken, differing = unbroken_and_resumed("deterministic")
    finally:
        torch.use_deterministic_algorithms(False)
    setup.report.check("resume, the same bits", differing, 0, "numbers that differ",
                       compared=count)
    start = load_file(model_folder(setup) / "model.safetensors")
    setup.report.check("resume, weights that four steps left as they were",
                       sum(unbroken[name].equal(start[name]) for name in start), 0, "tensors",
                       compared=len(start))


QUESTIONS = ("[caption] briefly describe the image", "[refer] where is the largest ship ?")


def check_chat(setup: Setup) -> None:
    """The second question goes on in the first one's cache, with the graph recorded for it."""
    command = [sys.executable, "chat.py", "examples/harbor.png"]
    for question in QUESTIONS:
        command += ["--prompt", question]
    runs = [subprocess.Popen([*command, "--device", device], cwd=ROOT, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
            for device in ("cpu", setup.device)]
    (wanted, _), (found, errors) = (run.communicate() for run in runs)
    assert not any(run.returncode for run in runs), errors
    setup.report.check("chat.py, the CPU's answers", int(found != wanted), 0, "texts that differ",
                       compared=len(wanted.splitlines()), answer=found.splitlines()[0])


# ---- bench: what is measured ---------------------------------------------------------------------

@dataclass(frozen=True)
class Plan:
    label: str
    config: SkyEyeConfig
    text: int = 64              # tokens of a prompt beside the picture
    new: int = 64               # tokens of an answer
    answer: int = 64            # supervised tokens of a training row
    rounds: int = 4
    questions: int = 60         # about a picture
    rows: tuple[int, ...] = (1, 2, 4)           # of a training step
    batch: int = 8              # rows of a decoding batch
    product: int = 8192         # side of the matrices
    numbers: int = 1 << 30      # float32, that are copied

    def batch_for(self, rows: int, device: str) -> dict[str, Tensor]:
        """Rows of one picture and text each, for training or, without labels, as a prompt."""
        vit, N = self.config.vit, self.config.visual_tokens
        batch = bench_train.text_batch(rows, self.config.llama.vocab_size, device,
                                       N + self.text + self.answer, self.answer)
        batch["ids"][:, 4:4 + N] = -1
        images = torch.randn(rows, 3, vit.image_size, vit.image_size,
                             generator=torch.Generator().manual_seed(2))
        return batch | {"images": images.to(device, torch.bfloat16)}


FULL = Plan("7B", SkyEyeConfig(lora=None))
TINY = Plan("tiny", SMALLER, text=16, new=8, answer=16, rounds=2, questions=6, rows=(1, 2), batch=2,
            product=512, numbers=1 << 22)
MISSING = [name for name in ("transformers", "peft") if not importlib.util.find_spec(name)]
THEIRS = "transformers"


def bench_work(setup: Setup) -> list[Work]:
    plan = TINY if setup.tiny else FULL
    decoding = [(plan.batch, 16, False), (1, 8, False), (1, 4, False)]
    training = [(rows, checkpointing) for checkpointing in (False, True) for rows in plan.rows]
    compiled = [(1, 16, True), (1, 8, True), (1, 4, True)]
    return [("ceilings", partial(bench_ceilings, setup, plan)),
            ("decoding", partial(bench_decoding, setup, plan, 1, 16, False)),
            *[(f"training, batch {rows}{', --grad_checkpoint' * checkpointing}",
               partial(bench_training, setup, plan, rows, checkpointing))
              for rows, checkpointing in training],
            ("questions", partial(bench_questions, setup, plan)),
            *[(f"decoding, batch {rows}, {bits} bits{', --compile' * compile}",
               partial(bench_decoding, setup, plan, rows, bits, compile))
              for rows, bits, compile in [*decoding, *compiled]]]


@functools.cache
def product_rate(device: str, size: int) -> float:
    """-> FLOPs a second of a bf16 product of squares."""
    return bench_train.matmul_rate(device, torch.bfloat16, size)


@functools.cache
def memory_rates(device: str, numbers: int) -> tuple[float, float]:
    """-> bytes a second: read and written by a copy, read by a sum."""
    x = torch.ones(numbers, device=device)
    y, best = torch.empty_like(x), math.inf
    for _ in range(6):
        start = clock(device)
        y.copy_(x)
        best = min(best, clock(device) - start)
    return 2 * x.nbytes / best, read_rate(device, numbers)


def bench_ceilings(setup: Setup, plan: Plan) -> None:
    copied, read = memory_rates(setup.device, plan.numbers)
    setup.report.measured(f"ceiling: bf16 product of {plan.product} x {plan.product}",
                          product_rate(setup.device, plan.product) / 1e12, "TFLOP/s")
    setup.report.measured("ceiling: copy, bytes read and written", copied / 1e9, "GB/s")
    setup.report.measured("ceiling: sum, bytes read", read / 1e9, "GB/s")


def frozen_model(setup: Setup, plan: Plan, bits: int = 16) -> SkyEyeGPT:
    """For inference in bf16, random weights made on the device."""
    model = build_ours(plan.config, setup.device, torch.bfloat16)
    model.merge()
    model.to(torch.bfloat16).requires_grad_(False).eval()
    if bits < 16:
        quantize_in_place(model, bits)
    free_memory()
    return model


# ---- bench: decoding -----------------------------------------------------------------------------

def quantize_in_place(model: SkyEyeGPT, bits: int) -> None:
    """As quantize_checkpoint does to a folder's tensors."""
    def put(layers: nn.Module, own_bits: int, group: int = 0) -> None:
        for layer in layers.modules():
            if isinstance(layer, nn.Linear):
                own = quantize(layer.weight, own_bits, group=group)
                layer.weight = nn.Parameter(own, requires_grad=False)

    put(model.llama_model.model.layers, bits)
    put(model.llama_model.lm_head, 8)
    put(model.visual_encoder.blocks, 8, 128)


Answer = Callable[[int], Iterator[object]]      # new tokens -> something for each of them


def time_answer(answer: Answer, new: int, device: str) -> tuple[float, float, float]:
    """-> seconds of an answer of one token; until the first token of a longer one is here; for each
    further token."""
    start = clock(device)
    list(answer(1))
    short = clock(device) - start
    start, first = clock(device), 0.0
    for _ in answer(new):
        first = first or time.perf_counter() - start
    return short, first, (clock(device) - start - short) / (new - 1)


def our_answer(model: SkyEyeGPT, step: Callable, batch: dict[str, Tensor], new: int) -> Answer:
    """Every answer is written into the same cache, so that a graph is recorded once."""
    llama, ids = model.llama_model, batch["ids"]
    cache = llama.new_cache(len(ids), ids.shape[1] + new)
    lengths = torch.full((len(ids),), ids.shape[1], device=ids.device)

    def answer(count: int) -> Iterator[Tensor]:
        cache.length, llama.decode_step = 0, step
        with torch.inference_mode():
            x = model.embed(ids, batch["images"])                             # [B, T, D]
        return generate(llama, x, lengths, cache, count, stop=-1)
    return answer


def their_answer(model: SkyEyeGPT, batch: dict[str, Tensor]) -> Answer:
    language, _ = bench_eval.their_model(model)
    with torch.inference_mode():
        x = model.embed(batch["ids"], batch["images"])
    return lambda count: theirs(language, x, count, static=False)


def bench_decoding(setup: Setup, plan: Plan, rows: int, bits: int, compile: bool) -> None:
    """In turns: with the graph, and at 16 bits also without it and theirs; or compiled."""
    model = frozen_model(setup, plan, bits)
    llama, batch = model.llama_model, plan.batch_for(rows, setup.device)
    batch["ids"] = batch["ids"][:, :-plan.answer]
    plain = llama.decode_step
    accelerate(llama, compile)
    fast = llama.decode_step
    sides = {"--compile" if compile else "CUDA graph": our_answer(model, fast, batch, plan.new)}
    if bits == 16 and not compile:
        sides["without a graph"] = our_answer(model, plain, batch, plan.new)
        if "transformers" in MISSING:
            setup.report.skip(f"{plan.label}, {THEIRS}, batch {rows}", f"{THEIRS}: not installed")
        else:
            sides[THEIRS] = their_answer(model, batch)
    for side, answer in sides.items():
        start = clock(setup.device)
        with compiler(setup) as note:
            time_answer(answer, plan.new, setup.device)
        setup.report.measured(f"{plan.label}, {bits} bits, batch {rows}, {side}: warm-up, "
                              "with recording or compiling", clock(setup.device) - start, "s",
                              **(note if compile else {}))
    found: dict[str, list[tuple[float, float, float]]] = {side: [] for side in sides}
    for _ in range(plan.rounds):
        for side, answer in sides.items():
            found[side].append(time_answer(answer, plan.new, setup.device))
    args = argparse.Namespace(dtype="bf16", device=setup.device, prompt=batch["ids"].shape[1],
                              new=plan.new, batch=rows)
    floor = step_bytes(plan.config.llama, bits, args) / max(memory_rates(setup.device,
                                                                         plan.numbers))
    for side, times in found.items():
        short, first, step = map(statistics.median, zip(*times, strict=True))
        name = f"{plan.label}, {bits} bits, batch {rows}, {side}"
        if side != THEIRS:                              # which is given the picture's tokens
            setup.report.measured(f"{name}: picture and prompt", 1e3 * short, "ms")
            setup.report.measured(f"{name}: first token of {plan.new}", 1e3 * first, "ms")
        setup.report.measured(f"{name}: each further token", 1e3 * step, "ms",
                              of_the_bandwidth_floor=round(floor / step, 3))
    setup.report.measured(f"{plan.label}, {bits} bits, batch {rows}"
                          f"{', --compile' * compile}: memory at most",
                          peak(setup.device) / 1e9, "GB")


# ---- bench: training, questions ------------------------------------------------------------------

def bench_training(setup: Setup, plan: Plan, rows: int, checkpointing: bool) -> None:
    """LoRA with r = 64 on q and v, frozen weights in bf16, a picture and text in each row."""
    model = build_ours(plan.config, setup.device, torch.bfloat16)
    model.llama_model.model.gradient_checkpointing = checkpointing
    batch = plan.batch_for(rows, setup.device)
    sides = {"ours": bench_train.our_side(model)}
    run_step = partial(bench_train.step, batches=[batch], device=setup.device,
                       dtype=torch.bfloat16)
    name = f"{plan.label}, LoRA, batch {rows}{', --grad_checkpoint' * checkpointing}"
    run_step(sides["ours"])
    setup.report.measured(f"{name}, ours: memory at most", peak(setup.device) / 1e9, "GB")
    if MISSING and not checkpointing:
        setup.report.skip(f"{name}, {bench_train.THEIRS}",
                          f"{' and '.join(MISSING)}: not installed")
    elif not checkpointing:
        sides[bench_train.THEIRS] = bench_train.their_side(model, setup.device)
        run_step(sides[bench_train.THEIRS])
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(plan.rounds):
        for side, own in seconds.items():
            own.append(run_step(sides[side])[0])
    flops = count_flops(replace(plan.config, lora=LORA), batch, "lora")
    for side, own in seconds.items():
        step = statistics.median(own)
        setup.report.measured(
            f"{name}, {side}: step", step, "s", tokens_per_s=round(batch["ids"].numel() / step, 1),
            of_the_product=round(flops / step / product_rate(setup.device, plan.product), 3))


def bench_questions(setup: Setup, plan: Plan) -> None:
    """Two pictures, answers of four tokens: SkyEyeGPT.answer_batch, and generate with a picture for
    each question, as evaluation kits do it."""
    model = frozen_model(setup, plan)
    args = argparse.Namespace(questions=plan.questions, pictures=2, device=setup.device, new=4,
                              batch=20)
    groups, prefix_len = bench_eval.make_prompts(model, args)
    images = plan.batch_for(args.pictures, setup.device)["images"]
    runs = {"ours": lambda: bench_eval.ours(model, groups, prefix_len, images, args.new)}
    if "transformers" in MISSING:
        setup.report.skip(f"{plan.label}, questions, {THEIRS}", f"{THEIRS}: not installed")
    else:
        modules = bench_eval.their_model(model)
        runs[THEIRS] = lambda: bench_eval.theirs(modules, model, groups, images, args)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(plan.rounds + 1):                 # the first one warms up
        for name, run in runs.items():
            start = clock(setup.device)
            run()
            seconds[name] += [clock(setup.device) - start] if turn else []
    for name, own in seconds.items():
        setup.report.measured(f"{plan.label}, {plan.questions} questions a picture, {name}",
                              args.pictures * plan.questions / statistics.median(own),
                              "questions/s")


# ---- train ---------------------------------------------------------------------------------------

# As weights/nano was trained: short answers and boxes, then everything, then conversations.
RUNS: tuple[tuple[str, float, list[str]], ...] = (      # name, share of the time left, flags
    ("answers and boxes", 0.5, ["--stage", "1", "--tasks", "vqa", "refer", "detection", "identify",
                                "--lr", "1e-3", "--min_lr", "2e-4"]),
    ("all tasks", 0.7, ["--stage", "1", "--tune", "full", "--lr", "5e-4"]),
    ("conversations", 0.7, ["--stage", "2", "--lr", "3e-4"]),
)
BASE_BATCH = 16                                         # for which these rates are


class Training:
    """The works of the last part, which build on each other; `end`: when it has to be over."""

    def __init__(self, setup: Setup, end: float):
        self.setup, self.end, self.report = setup, end, setup.report
        self.world = setup.folder / "world"
        self.workers = max(1, min(16, (os.cpu_count() or 1) - 1))
        self.sizes = (1, 2) if setup.tiny else (16, 64, 256)
        self.batch_size, self.steps_per_s = self.sizes[0], 0.0
        self.latest: Path | None = None                 # the model that the next run goes on with

    def works(self) -> list[Work]:
        return [("world", self.render), ("batch size", self.choose_batch_size),
                *[(f"training, {name}", partial(self.run, name, share, flags))
                  for name, share, flags in RUNS], ("weights", self.export)]

    def render(self) -> None:
        """As many pictures as the CPU's cores paint in about a minute."""
        count = 40 if self.setup.tiny else 4000 * (self.workers + 1)
        start = time.perf_counter()
        write_world(self.world, train=count, val=2, test=2, clips=2 if self.setup.tiny else 300)
        self.report.measured("world: pictures rendered", count / (time.perf_counter() - start),
                             "pictures/s", pictures=count)

    def flags(self, batch_size: int) -> list[str]:
        return ["--data", str(self.world), "--questions_per_image", "8", "--augment",
                "--num_workers", str(self.workers), "--device", self.setup.device,
                "--batch_size", str(batch_size)]

    def choose_batch_size(self) -> None:
        """A larger one as long as it trains 1.5 times as many rows a second."""
        best = 0.0
        for size in self.sizes:
            speed = self.measure_steps(size)
            self.report.measured(f"training, batch {size}: speed", speed, "steps/s",
                                 rows_per_s=round(speed * size, 1))
            if speed * size < 1.5 * best:
                break
            best, self.batch_size, self.steps_per_s = speed * size, size, speed

    def measure_steps(self, batch_size: int) -> float:
        """A short run of train.py -> the steps a second of its second half."""
        steps, times, train_step = 1 if self.setup.tiny else 30, [], train.train_step

        def timed(*args) -> tuple[float, float, bool]:
            result = train_step(*args)                      # waits for the device
            times.append(time.perf_counter())
            return result

        out = self.setup.folder / f"batch-{batch_size}"
        train.train_step = timed
        try:
            train.train(train.parse_args([*self.flags(batch_size), *RUNS[0][2], "--max_steps",
                                          str(2 * steps), "--output_dir", str(out)]))
        finally:
            train.train_step = train_step
        return steps / (times[-1] - times[-1 - steps])

    def run(self, name: str, share: float, flags: list[str]) -> None:
        """One run of train.py, of as many steps as its share of the time holds."""
        out, left = self.setup.folder / name.replace(" ", "-"), self.end - time.perf_counter()
        steps = 2 if self.setup.tiny else max(1, int(share * left * self.steps_per_s))
        more = ["--max_steps", str(steps), "--output_dir", str(out), "--save_total_limit", "1",
                "--save_steps", str(max(1, steps // 4)), "--log_steps", str(max(1, steps // 200))]
        more += ["--model", str(self.latest)] if self.latest else []
        config = train.parse_args([*self.flags(self.batch_size), *flags, *more])
        config = replace(config, lr=config.lr * min(2.0, (self.batch_size / BASE_BATCH) ** 0.5))
        start = time.perf_counter()
        try:
            train.train(config)
            self.latest = out
        except TimeoutError:
            self.latest = newest_checkpoint(out)[0] or self.latest
            raise
        seconds = time.perf_counter() - start
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        losses = [row["loss"] for row in rows[-10:]]
        self.report.measured(f"training, {name}: loss", sum(losses) / len(losses), "nats a token",
                             steps=steps, batch_size=self.batch_size,
                             steps_per_s=round(steps / seconds, 2), mfu=rows[-1]["mfu"],
                             first_loss=rows[0]["loss"])

    def export(self) -> None:
        """The last run's model, LoRA merged, in bf16 as it is shipped."""
        assert self.latest, "no run has left a model"
        folder = Path(tempfile.mkdtemp(prefix="nano-", dir=self.setup.out))
        convert.main(["--model", str(self.latest), "--out", str(folder)])
        size = sum(file.stat().st_size for file in folder.iterdir())
        self.report.measured("weights: size", size / 1e6, "MB", folder=str(folder))



# ---- the run -------------------------------------------------------------------------------------

SECONDS = {"check": 120.0, "bench": 240.0, "train": math.inf}      # of a part, where all run
RESERVE = 10.0                                  # that writing the weights may take


def run_part(part: str, setup: Setup, end: float) -> None:
    """Until `end`. In check and bench no work may take more than half of what is left, in train
    none what writing the weights takes."""
    works = {"check": check_work, "bench": bench_work,
             "train": lambda setup: Training(setup, end).works()}[part](setup)
    for name, work in works:
        left = end - time.perf_counter()
        reserve = 0 if name == "weights" else RESERVE
        setup.report.run(name, work, left - reserve if part == "train" else left / 2)


def run_apart(part: str, config: GPUConfig, seconds: float, report: Report) -> None:
    """In a process of its own, as a GPU that has once failed in one fails in all that follows."""
    command = [sys.executable, __file__, "--part", part, "--minutes", str(seconds / 60), "--device",
               config.device, "--out", str(config.out), *["--tiny"] * config.tiny]
    try:
        code = subprocess.run(command, timeout=seconds + 30).returncode
    except subprocess.TimeoutExpired:
        code = "none: it was stopped"
    if code == 1:                               # and a line says what
        report.failed += 1
    elif code:
        report.write(part, None, "", False, error=f"exit code {code}")


def main(argv: Sequence[str] | None = None) -> int:
    config = parse_config(GPUConfig, argv, __doc__)
    end = time.perf_counter() + 60 * config.minutes
    device = find_device(config.device).type
    report = Report(config.out, device)
    if config.part:
        with tempfile.TemporaryDirectory() as folder:
            run_part(config.part, Setup(device, config.tiny, Path(folder),
                                        config.out.resolve().parent, report), end)
    for part in () if config.part else PARTS:
        left = min(end - time.perf_counter(), SECONDS[part])
        if left < 10:
            report.skip(part, "no time was left")
        else:
            run_apart(part, config, left, report)
    return 1 if report.failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        sys.exit(2)
