"""Training, both stages.

    python train.py --stage 1                 nano from nothing, on a miniature world it renders
    torchrun --standalone --nproc_per_node 2 train.py --stage 2             goes on from stage 1
    torchrun --nproc_per_node 8 train.py --stage 1 --model FOLDER --data SkyEye-968k

Stage 1 learns single-task instructions, stage 2 multi-task conversations (SkyEyeGPT, arXiv
2401.09712 section 3.3). The loss of a step is the mean over every supervised token of the whole
batch: the same on one process as on many, with one large batch as with several small ones.
"""
import argparse
import dataclasses
import math
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data import TEMPLATES, PackedDataset, Tokenizer, collate
from examples.miniworld import WORLD, ensure_world
from lora import MOE_LORA, LoRAConfig, add_lora, expert_load
from projector import DTYPES, PRESETS, SkyEyeGPT, read_config
from support.checkpoints.files import ModelError
from support.common import GracefulStop, UserError, explain_out_of_memory, is_out_of_memory
from support.images.common import parse_bands
from support.readers import FORMATS, parse_ratios, read_data
from support.readers.common import DataError, SampleTable
from support.training.checkpoints import TrainState
from support.training.distributed import (
    BatchSchedule,
    check_shardable,
    gather_full,
    shard_model,
    with_dummy_image,
)
from support.training.flops import count_flops, matmul_rate
from support.training.log import (
    LOGGERS,
    NaNGuard,
    TrainLog,
    is_untrained_loss,
    open_loggers,
    plot_loss,
    print_summary,
)


def option(default, text: str, choices: tuple = ()):
    return field(default=default, metadata={"help": text, "choices": choices or None})


@dataclass
class TrainConfig:
    """Defaults are MiniGPT-v2's fine-tuning recipe; RECIPES has what a small model needs."""
    stage: int = option(1, "1: single-task instructions, 2: multi-task conversations", (1, 2))
    data: tuple[str, ...] = option((WORLD,), "folders or LLaVA json files")
    ratio: tuple[str, ...] = option((), "NAME=NUMBER, or a number for each data set: so large a "
                                    "part of its rows in an epoch, also above 1; empty: all once")
    tasks: tuple[str, ...] = option((), "tasks to learn, of " + " ".join(TEMPLATES) + "; empty: all")
    format: str = option("", "layout of the data, of " + " ".join(FORMATS) + "; empty: seen")
    bands: tuple[int, ...] = option((), "which are shown as red, green, blue of more: 4,3,2")
    frames: int = option(8, "of a clip; 1: the paper's single frame")
    skip_bad: bool = option(False, "leave out rows and pictures that are wrong, and count them")
    model: str = option("", "model folder to start from; stage 1: a new model, 2: out/stage1")
    preset: str = option("nano", "what a new model looks like", tuple(PRESETS))
    tokenizer: str = option("weights/nano/tokenizer.model", "of a new model")
    output_dir: str = option("", "for checkpoints, log.jsonl and the result; empty: out/stageN")
    tune: str = option("", "what learns beside the projector; empty: full for a new model, else "
                       "lora", ("", "lora", "moe-lora", "full", "projector"))
    bits: int = option(16, "8 or 4: of the frozen language model's weights", (16, 8, 4))
    train_vit: bool = option(False, "let the vision encoder learn too")
    max_steps: int = option(50_000, "optimizer steps")
    batch_size: int = option(6, "rows a process and micro-step")
    grad_accum: int = option(1, "micro-steps a step")
    questions_per_image: int = option(1, "questions of a picture in a row; 1: upstream's layout")
    augment: bool = option(False, "crops, mirrors and turns that contradict no word, brightness")
    lr: float = option(1e-5, "peak learning rate")
    min_lr: float = option(1e-6, "learning rate at the end")
    warmup_lr: float = option(1e-6, "learning rate at the start")
    warmup_steps: int = option(1000, "steps of linear warm-up; cosine after it")
    weight_decay: float = option(0.05, "on matrices; none on biases and norms")
    beta2: float = option(0.999, "AdamW's second beta")
    clip: float = option(0.0, "largest gradient norm; 0: no clipping")
    lora_r: int = option(64, "rank of the LoRA")
    lora_alpha: float = option(16.0, "the LoRA is scaled by alpha / r")
    lora_dropout: float = option(0.05, "dropout on the LoRA's input")
    lora_targets: tuple[str, ...] = option(LoRAConfig.targets, "layers that get a LoRA")
    grad_checkpoint: bool = option(False, "keep less of the language model's layers, compute them "
                                   "twice: slower, in less memory")
    max_tokens: int = option(1024, "longest sample; a longer one is an error")
    dtype: str = option("auto", "arithmetic; auto: bf16 on a GPU, fp32 on a CPU",
                        ("auto", *DTYPES))
    device: str = option("auto", "auto, cpu, cuda, ..")
    compile: bool = option(False, "torch.compile the blocks: a minute's wait, then faster")
    shard: bool = option(False, "share model, gradients and optimizer out among torchrun's "
                         "processes: for what no single device holds")
    seed: int = option(42, "of weights, order, templates and moves")
    num_workers: int = option(0, "processes that load pictures")
    save_steps: int = option(1000, "steps between checkpoints")
    save_total_limit: int = option(2, "checkpoints kept; 0: all")
    log_steps: int = option(10, "steps between lines of log.jsonl")
    log_to: tuple[str, ...] = option((), "who is told the numbers of log.jsonl too; wandb goes on "
                                     "the network unless WANDB_MODE=offline", tuple(LOGGERS))
    resume: str = option("", "a checkpoint folder, or auto: the newest in output_dir")
    force: bool = option(False, "resume although the settings have changed")


SMALL_MODEL_DEFAULTS = {     # what a model this small needs instead, by stage; a flag that is given wins
    1: dict(lr=1e-3, min_lr=1e-5, warmup_steps=100, max_steps=1600, batch_size=16, clip=1.0,
            beta2=0.98, questions_per_image=4, train_vit=True),
    2: dict(lr=5e-4, min_lr=1e-5, warmup_steps=20, max_steps=200, batch_size=16, clip=1.0,
            beta2=0.98),
}
SMALL_WIDTH = 1024    # a language model narrower than this is small


def parse_args(argv: list[str] | None = None) -> TrainConfig:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for f in dataclasses.fields(TrainConfig):
        several = isinstance(f.default, tuple)
        small = " / ".join(f"{r[f.name]:g}" for r in SMALL_MODEL_DEFAULTS.values() if f.name in r)
        text = (f"{f.metadata['help']} (default {' '.join(f.default) if several else f.default}"
                f"{f'; small models {small}' if small else ''})")
        names = dict.fromkeys(["--" + f.name, "--" + f.name.replace("_", "-")])
        if isinstance(f.default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        elif f.name == "bands":
            kind = {"type": parse_bands}
        elif several:
            kind = {"nargs": "+", "choices": f.metadata["choices"]}
        else:
            kind = {"type": type(f.default), "choices": f.metadata["choices"]}
        parser.add_argument(*names, default=None, help=text.replace("%", "%%"), **kind)
    return resolve_defaults({k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None})


def resolve_defaults(given: dict) -> TrainConfig:
    """The flags given, and defaults that fit them."""
    config = TrainConfig(**given)
    config.model = config.model or ("out/stage1" if config.stage == 2 else "")
    config.output_dir = config.output_dir or f"out/stage{config.stage}"
    config.tune = config.tune or ("lora" if config.model else "full")
    shape = read_config(Path(config.model)) if config.model else PRESETS[config.preset]
    if shape.llama.width >= SMALL_WIDTH:
        return config
    recipe = {k: v for k, v in SMALL_MODEL_DEFAULTS[config.stage].items() if k not in given}
    return dataclasses.replace(config, **recipe)


# ---- model, optimizer, schedule ------------------------------------------------------------------

def build_model(config: TrainConfig, device: str, dtype: torch.dtype = torch.float32
                ) -> tuple[SkyEyeGPT, Tokenizer]:
    """The model with just those parameters trainable, in float32, that --tune names; where they
    are few, the frozen ones are kept in the type that is computed with."""
    place, few = config.tokenizer, config.tune != "full" and not config.train_vit
    if config.bits < 16 and not (few and config.model):
        raise DataError(f"--bits {config.bits}: only of a --model that stays as it is: with --tune "
                        "lora, moe-lora or projector, and --no-train_vit")
    if config.model:
        dtype = dtype if few else torch.float32
        model = SkyEyeGPT.from_pretrained(config.model, device, dtype, config.bits)
        place = Path(config.model) / "tokenizer.model"
    else:
        model = SkyEyeGPT(PRESETS[config.preset]).to(device)
    tokenizer = Tokenizer(place, model.config.llama.vocab_size)
    numbers = tokenizer.model.piece_to_id([f"<{i}>" for i in range(101)])
    if not config.model and 0 not in numbers:           # each number of a box is one piece
        init_number_tokens(model.llama_model, numbers)
    if "lora" in config.tune and not model.config.lora:
        own = LoRAConfig(config.lora_r, config.lora_alpha, config.lora_dropout, config.lora_targets)
        lora = MOE_LORA if config.tune == "moe-lora" else own
        add_lora(model.llama_model, lora)
        model.config = dataclasses.replace(model.config, lora=lora)
    model.llama_model.model.recompute = config.grad_checkpoint
    for name, parameter in model.named_parameters():
        parameter.requires_grad = is_trained(name, config)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model, tokenizer


@torch.no_grad()
def init_number_tokens(llama: nn.Module, ids: list[int]) -> None:
    """For ids that stand for 0, 1, 2, ..: what is near in value starts near.

    Sines and cosines of the value, as of a position (Attention Is All You Need, section 3.5), so
    their order need not be learned from examples. Widths are even."""
    embedding, head = llama.model.embed_tokens.weight, llama.lm_head.weight   # 2 x [V, D]
    D, values = embedding.shape[1], torch.arange(len(ids))[:, None]
    angles = 2 * torch.pi * values / torch.logspace(0.6, 2.5, D // 2)         # periods 4 .. 316
    code = torch.cat([angles.sin(), angles.cos()], dim=1) * 2 ** 0.5          # [ids, D], rms 1
    embedding[ids] = 0.5 * code.to(head)
    head[ids] = D ** -0.5 * code.to(head)


def is_trained(name: str, config: TrainConfig) -> bool:
    if name.startswith("visual_encoder."):
        return config.train_vit
    lora = "lora" in config.tune and ".lora_" in name
    return lora or config.tune == "full" or name.startswith("llama_proj.")


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Weight decay on matrices; none on vectors, biases and norms."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [{"params": [p for n, p in trained if (p.ndim < 2 or "bias" in n) == plain],
               "weight_decay": 0.0 if plain else config.weight_decay} for plain in (False, True)]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2))


def learning_rate(step: int, config: TrainConfig) -> float:
    """MiniGPT-v2's schedule: linear warm-up, then a cosine counted from step 0 (a tiny jump).

    https://github.com/Vision-CAIR/MiniGPT-4/blob/d94738a/minigpt4/common/optims.py
    """
    if step < config.warmup_steps:
        rise = (config.lr - config.warmup_lr) * step / config.warmup_steps
        return min(config.lr, config.warmup_lr + rise)
    wave = 0.5 * (1 + math.cos(math.pi * step / config.max_steps))
    return config.min_lr + (config.lr - config.min_lr) * wave


def save_model(model: SkyEyeGPT, config: TrainConfig, folder: Path, state: dict) -> None:
    """Whole, or beside its base what learned: the projector and the LoRA."""
    whole = config.tune == "full" or config.train_vit
    model.save_pretrained(folder, base="" if whole else config.model, state=state)
    source = Path(config.model) / "tokenizer.model" if config.model else Path(config.tokenizer)
    shutil.copyfile(source, folder / "tokenizer.model")


# ---- the loop ------------------------------------------------------------------------------------

def prepare_data(config: TrainConfig, model: SkyEyeGPT, tokenizer: Tokenizer, rank: int,
                 ratio: Sequence[float]) -> PackedDataset:
    if rank == 0:
        ensure_world(config.data)
    if dist.is_initialized():
        dist.barrier()
    samples, skipped = SampleTable(), [] if config.skip_bad else None
    sets = [read_data(place, "train", config.stage, config.tasks, config.format, skipped)
            for place in config.data]
    ratios = list(zip(map(len, sets), ratio, strict=True)) if ratio else []
    for own in sets:
        samples.join(own)
    if skipped and rank == 0:
        print(f"left out {len(skipped):,}: {skipped[0]}, ..", file=sys.stderr)
    world = dist.get_world_size() if dist.is_initialized() else 1
    return PackedDataset(samples, tokenizer, model.config.vit.image_size, model.config.visual_tokens,
                model.config.prompt, config.questions_per_image, config.augment, config.seed,
                config.max_tokens, ratios, config.batch_size * config.grad_accum * world,
                config.bands, config.frames)


def pick_device(config: TrainConfig) -> tuple[str, torch.dtype]:
    device = config.device.replace("auto", "cuda" if torch.cuda.is_available() else "cpu")
    if device.split(":")[0] not in ("cpu", "cuda", "mps", "xpu"):
        raise DataError(f"--device {device}: unknown; cpu, cuda, mps or xpu")
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    kind = ("bf16" if device == "cuda" else "fp32") if config.dtype == "auto" else config.dtype
    return device, DTYPES[kind]


def train_step(model: nn.Module, batches: Sequence[dict], optimizer: torch.optim.Optimizer,
               scaler: torch.amp.GradScaler, config: TrainConfig, device: str, dtype: torch.dtype,
               watch: NaNGuard) -> tuple[float, float]:
    """-> the loss over all processes' supervised tokens, and the gradient's norm; a step without
    a finite one is skipped, and counted by `watch`."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]    # supervised
    total = torch.tensor(float(sum(counts)), device=device)
    if world > 1:
        dist.all_reduce(total)
    trained = [p for p in model.parameters() if p.requires_grad]
    loss_sum = torch.zeros((), device=device)
    for i, (batch, count) in enumerate(zip(batches, counts, strict=True)):
        batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        # DDP adds up once a step; sharded, each time, as no process has room for whole gradients.
        at_once = config.shard or world == 1 or i == len(batches) - 1
        with nullcontext() if at_once else model.no_sync():
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                loss = model(**batch) * (count / total)
            scaler.scale(loss * world).backward()       # the mean of the processes is taken
        loss_sum += loss.detach()
    if world > 1:
        dist.all_reduce(loss_sum)
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(trained, config.clip or math.inf)
    loss, norm = loss_sum.item(), (norm.full_tensor() if config.shard else norm).item()
    if not watch.look(loss, 0.0 if scaler.is_enabled() else norm):      # it skips infinities itself
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm


def stop_requested(stop: GracefulStop, device: str) -> bool:
    if not dist.is_initialized():
        return stop.signal > 0
    asked = torch.tensor(float(stop.signal), device=device)
    dist.all_reduce(asked, dist.ReduceOp.MAX)
    return asked.item() > 0


def train(config: TrainConfig) -> int:
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device, dtype = pick_device(config)
    ratio, out = parse_ratios(config.ratio, config.data), Path(config.output_dir)
    if config.shard:
        check_shardable(world, device, dtype, config.bits)
    outside = open_loggers(config.log_to, out, dataclasses.asdict(config)) if rank == 0 else []
    if world > 1:
        dist.init_process_group("nccl" if device == "cuda" else "gloo",
                                timeout=timedelta(hours=2))     # while rank 0 writes, all wait
    torch.manual_seed(config.seed)
    model, tokenizer = build_model(config, "cpu" if config.shard else device, dtype)
    if config.shard:
        shard_model(model, device, dtype)
    rows = prepare_data(config, model, tokenizer, rank, ratio)
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    parts = TrainState(model, optimizer, scaler, dataclasses.asdict(config))
    start = parts.load(out, config.resume, config.force) if config.resume else 0
    if config.compile:
        for block in [*model.visual_encoder.blocks, *model.llama_model.model.layers]:
            block.compile(dynamic=True)
    wrapped = model
    if world > 1 and not config.shard:
        wrapped = DistributedDataParallel(model, init_sync=config.bits == 16)
    wrapped.train()
    if rank == 0:
        print_summary(model, rows, config.stage, config.tune, device, dtype)
    used = partial(count_flops, model.config, tune=config.tune, train_vit=config.train_vit)
    log = TrainLog(out / "log.jsonl", config.log_steps, rank, partial(expert_load, model), used,
              matmul_rate(device, dtype) if rank == 0 else math.inf, outside)
    feed = BatchSchedule(rows, config.batch_size, config.grad_accum, config.max_steps, rank, world)
    watch, good, ends = NaNGuard(), None, False
    with GracefulStop(quiet=rank > 0) as stop, tqdm(total=config.max_steps, initial=start, unit="step",
                                            disable=rank > 0 or None) as bar:
        for step, batches in enumerate(feed.batches(start, collate, config.num_workers), start + 1):
            torch.manual_seed(config.seed + step * world + rank)    # dropout, also when resumed
            lr = learning_rate(step - 1, config)
            for group in optimizer.param_groups:
                group["lr"] = lr
            given = [with_dummy_image(batch, rows.image_size, rows.visual_tokens) for batch in batches]
            loss, norm = train_step(wrapped, given, optimizer, scaler, config, device, dtype, watch)
            bar.update()
            if step == 1 and config.model and is_untrained_loss(loss, model.config.llama.vocab_size):
                bar.write(f"the first loss, {loss:.2f}, is that of guessing: is the model trained?")
            bad = feed.sources(step) if watch.bad else []
            bar.set_postfix_str(log.add(step, loss, lr, norm, batches, world, bad))
            ends = stop_requested(stop, device) and step < config.max_steps
            if ends or step % config.save_steps == 0 and step < config.max_steps:
                good = parts.save(out, step, partial(save_model, model, config),
                                  config.save_total_limit)
            watch.check(step, good)
            if ends:
                break
    state = {} if ends else gather_full(model.state_dict())
    if rank == 0 and not ends:
        save_model(model, config, out, state)
        plot_loss(out / "log.jsonl", out / "loss.png")
    if rank == 0:
        print(f"saved {good if ends else out}", file=sys.stderr)
    if world > 1:
        dist.barrier()              # nobody leaves before rank 0 has written
        dist.destroy_process_group()
    return (stop.code or 143) if ends else 0


if __name__ == "__main__":
    try:
        sys.exit(train(parse_args()))
    except (DataError, ModelError, UserError) as error:
        line = str(error).splitlines()[-1]              # a loader process puts a traceback in front
        print(f"train.py: {line.removeprefix('data.DataError: ')}", file=sys.stderr)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            line = explain_out_of_memory(error, "cuda" if torch.cuda.is_available() else "cpu")
        elif isinstance(error, torch._dynamo.exc.TorchDynamoException):
            line = f"--compile: {str(error).splitlines()[0]}"
        else:
            raise
        print(f"train.py: {line}", file=sys.stderr)
    sys.exit(2)
