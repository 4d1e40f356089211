"""Training, both stages.

    python train.py --stage 1                 nano from nothing, on a miniature world it renders
    torchrun --standalone --nproc_per_node 2 train.py --stage 2             goes on from stage 1
    torchrun --nproc_per_node 8 train.py --stage 1 --model FOLDER --data SkyEye-968k

Stage 1 learns single-task instructions, stage 2 multi-task conversations (SkyEyeGPT, arXiv
2401.09712 section 3.3). The loss of a step is the mean over every supervised token of the whole
batch: the same on one process as on many, with one large batch as with several small ones.
"""
import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data import TEMPLATES, PackedDataset, Tokenizer
from examples.miniworld import WORLD, ensure_world
from lora import MOE_LORA, LoRAConfig, add_lora
from projector import DTYPES, PRESETS, SkyEyeGPT, read_config
from support.checkpoints.load import load_vit
from support.common import (
    GracefulStop,
    UserError,
    find_device,
    given_flags,
    in_range,
    option,
    shipped,
)
from support.images.common import parse_bands
from support.readers import FORMATS, check_image_folder, parse_ratios, read_data
from support.readers.common import DataError, SampleTable
from support.training import checkpoints, muon, runs
from support.training.checks import TokenCounter
from support.training.data_sets import join_tables, read_rows
from support.training.distributed import (
    any_process,
    check_shardable,
    finish_processes,
    full_tensor,
    get_rank,
    get_world_size,
    start_processes,
    sum_over_processes,
    unwrap,
    wait_for_all,
    with_dummy_image,
    wrap,
)
from support.training.features import feature_cache
from support.training.flops import is_trained, matmul_rate
from support.training.log import (
    LOGGERS,
    Logger,
    NaNGuard,
    open_loggers,
    plot_loss,
    print_summary,
    warn_if_untrained,
)
from support.training.rows import BatchSchedule
from support.training.validation import Probe, Validation, describe_result
from support.training.watch import explain_failure

# ---- settings ------------------------------------------------------------------------------------

TAUGHT_VIT = "weights/vit_nano"
RESUME = "--resume auto goes on from the newest checkpoint"
LORA_METHODS = {"lora": LoRAConfig(), "moe-lora": MOE_LORA}     # values of --tune


@dataclass
class TrainConfig:
    """The defaults are MiniGPT-v2's recipe for fine-tuning; a small model gets others, below."""
    # --- data ---
    stage: int = option(1, "1: single-task instructions, 2: multi-task conversations",
                        choices=(1, 2))
    data: tuple[str, ...] = option((WORLD,), "data sets: folders, or LLaVA .json and .jsonl files")
    ratio: tuple[str, ...] = option((), "how large a part of a data set's rows an epoch has: "
                                    "NAME=NUMBER for some, or a number for each, also above 1; "
                                    "empty: every row once")
    tasks: tuple[str, ...] = option((), "train on these tasks only, of " + " ".join(TEMPLATES)
                                    + "; empty: all tasks")
    limit: int = option(0, "use only so many rows of each data set, drawn at random; 0: all")
    val_data: tuple[str, ...] = option((), "data sets to measure the model on, not to train on: "
                                       "files, or folders with a split val", metavar="PATH")
    val_part: float = option(0.0, "hold out this part of the rows, picture by picture, to measure "
                             "the model on", type=in_range(float, 0, 0.9))
    format: str = option("", "layout of the data, one of " + " ".join(FORMATS)
                         + "; empty: recognized from the files")
    image_folder: str = option("", "folder of the pictures that a .json or .jsonl of --data names; "
                               "empty: the file's own", metavar="FOLDER")
    bands: tuple[int, ...] = option((), "which bands of a multispectral picture are red, green and "
                                    "blue, as in 4,3,2", type=parse_bands, nargs=None)
    frames: int = option(8, "frames taken from a clip; 1: the paper's single frame")
    questions_per_image: int = option(1, "questions about one picture packed into a row; 1: the "
                                      "layout of MiniGPT-v2")
    augment: bool = option(False, "crop, mirror and rotate pictures where no word forbids it, and "
                           "change their brightness")
    max_tokens: int = option(1024, "tokens of text that a sample may have, its pictures not "
                             "counted; a longer one is an error")
    skip_bad: bool = option(False, "leave out faulty rows and unreadable pictures, count them, and "
                            "name those met in training in log.jsonl; over 10 % end the run")
    # --- model ---
    model: str = option("", "model folder to start from; empty: a new model in stage 1, out/stage1 "
                        "in stage 2")
    preset: str = option("nano", "size of a new model", choices=tuple(PRESETS))
    tokenizer: str = option("weights/nano/tokenizer.model", "tokenizer of a new model",
                           is_shipped=True)
    tune: str = option("", "what is trained beside the projector; empty: full for a new or small "
                       "model, else lora", choices=("", *LORA_METHODS, "full", "projector"))
    vit: str = option("", "vision encoder to start with, a file or folder in EVA's layout; none: "
                      "a new one, trained too", default_text=f"{TAUGHT_VIT} "
                      "for nano, none for any other")
    train_vit: bool = option(False, "train the vision encoder too")
    bits: int = option(16, "8 or 4: quantize the frozen weights", choices=(16, 8, 4))
    lora_r: int = option(0, "rank of a new LoRA",
                         default_text=f"{LoRAConfig.r}, with --tune moe-lora {MOE_LORA.r}")
    lora_alpha: float = option(0.0, "a new LoRA is scaled by alpha / r",
                               default_text=f"{LoRAConfig.alpha:g}, with --tune moe-lora "
                               f"{MOE_LORA.alpha:g}")
    lora_dropout: float = option(LoRAConfig.dropout, "dropout on the input of a new LoRA")
    lora_targets: tuple[str, ...] = option(
        (), "linear layers that get a new LoRA", default_text=" ".join(LoRAConfig.targets)
        + ", with --tune moe-lora " + " ".join(MOE_LORA.targets))
    # --- optimization ---
    max_steps: int = option(50_000, "optimizer steps")
    batch_size: int = option(6, "rows of a process and micro-step")
    grad_accum: int = option(1, "micro-steps whose gradients are accumulated in a step")
    optimizer: str = option("adamw", "muon: the matrices of a model that is trained in full learn "
                            f"with Muon, at {muon.RATE} x the learning rate",
                            choices=("adamw", "muon"))
    lr: float = option(1e-5, "peak learning rate")
    min_lr: float = option(1e-6, "learning rate at the end")
    warmup_lr: float = option(1e-6, "learning rate at the start")
    warmup_steps: int = option(1000, "steps of linear warm-up, before the cosine")
    weight_decay: float = option(0.05, "weight decay of matrices; biases and norms have none")
    beta2: float = option(0.999, "AdamW's second beta")
    clip: float = option(0.0, "clip the gradient to this norm; 0: no clipping")
    seed: int = option(42, "random seed of weights, row order, templates, dropout, augmentation")
    # --- run ---
    output_dir: str = option("", "folder for checkpoints, log.jsonl and the trained model; empty: "
                             "out/stage1 or out/stage2")
    device: str = option("auto", "cpu, cuda, mps or xpu; auto: a GPU if there is one")
    dtype: str = option("auto", "type of the arithmetic; auto: bf16 on a GPU, fp32 on a CPU",
                        choices=("auto", *DTYPES))
    compile: bool = option(False, "torch.compile the blocks: faster after a minute")
    grad_checkpoint: bool = option(False, "gradient checkpointing: compute decoder layers twice, "
                                   "slower in less memory")
    shard: bool = option(False, "shard model, gradients and optimizer over torchrun's processes "
                         "(FSDP), for a model that is too large for one device")
    num_workers: int = option(0, "processes that load pictures")
    feature_cache: float = option(2.0, "GB of memory for what a frozen vision encoder makes of "
                                  "pictures, without --augment; 0: it is computed every time")
    save_steps: int = option(1000, "steps between checkpoints")
    save_total_limit: int = option(2, "checkpoints to keep; 0: all")
    log_steps: int = option(10, "steps between lines of log.jsonl")
    val_steps: int = option(0, "steps between measurements on held-out rows; 0: a tenth of all")
    overfit_one_batch: bool = option(False, "train on the first batch alone, as a check of new "
                                     "data: its answers should come out word for word")
    log_to: tuple[str, ...] = option((), "send the numbers of log.jsonl here too; wandb uses the "
                                     "network unless WANDB_MODE=offline", choices=tuple(LOGGERS))
    resume: str = option("", "a checkpoint folder to resume from, or auto: the newest one in "
                         "output_dir")
    force: bool = option(False, "resume even if settings, data or weights have changed")
    overwrite: bool = option(False, "replace another run's checkpoints and result in output_dir")


WARMUP_PART = 10                # a warm-up that is not given is at most a tenth of all steps
SMALL_WIDTH = 1024              # a language model narrower than this is small
SMALL_MODEL_DEFAULTS = {        # its defaults, by stage
    1: dict(lr=5e-4, min_lr=1e-5, warmup_steps=100, max_steps=1150, batch_size=16, clip=1.0,
            beta2=0.98, questions_per_image=8),
    2: dict(lr=5e-4, min_lr=1e-5, warmup_steps=20, max_steps=200, batch_size=16, clip=1.0,
            beta2=0.98),
}
SMALL_LORA_LR = 2e-3            # of stage 2 with --tune lora or moe-lora


def parse_args(argv: list[str] | None = None) -> TrainConfig:
    lines = [__doc__, f"Other defaults of a language model narrower than {SMALL_WIDTH}, as nano's:"]
    for stage, defaults in SMALL_MODEL_DEFAULTS.items():
        flags = [f"--{name}" if value is True else f"--{name} {value}"
                 for name, value in defaults.items()]
        lines.append(f"    stage {stage}: {' '.join(flags)}")
    return resolve_defaults(given_flags(TrainConfig, argv, description="\n".join(lines)))


def resolve_defaults(given: dict) -> TrainConfig:
    """The fields that are given, and for the others defaults that fit them."""
    config = TrainConfig(**given)
    config.model = config.model or ("out/stage1" if config.stage == 2 else "")
    name = "overfit_one_batch" if config.overfit_one_batch else f"stage{config.stage}"
    config.output_dir = config.output_dir or f"out/{name}"
    if not config.model and config.preset == "nano":
        config.vit = config.vit or shipped(TAUGHT_VIT)
    config.vit = "" if config.vit == "none" else config.vit
    model_config = read_config(Path(config.model)) if config.model else PRESETS[config.preset]
    is_small = model_config.llama.width < SMALL_WIDTH
    config.tune = config.tune or ("lora" if config.model and not is_small else "full")
    if is_small:
        small = dict(SMALL_MODEL_DEFAULTS[config.stage])
        if config.tune == "full":
            small |= {"optimizer": "adamw" if config.shard or config.stage == 2 else "muon",
                      "train_vit": not (config.model or config.vit)}
        elif config.stage == 2:
            small["lr"] = SMALL_LORA_LR
        config = replace(config, **{name: value for name, value in small.items()
                                    if name not in given})
    if config.overfit_one_batch:
        config.max_steps = given.get("max_steps", 200)
    if "warmup_steps" not in given:     # a longer one would end where the cosine has fallen far
        config.warmup_steps = min(config.warmup_steps, max(1, config.max_steps // WARMUP_PART))
    return config


# ---- model ---------------------------------------------------------------------------------------

def build_model(config: TrainConfig, device: str, dtype: torch.dtype = torch.float32
                ) -> tuple[SkyEyeGPT, Tokenizer]:
    """-> the model, in which just those parameters require a gradient that --tune names.

    Those are in float32. The frozen ones are in `dtype` where only adapters are trained.
    """
    adapters_only = config.tune != "full" and not config.train_vit
    if config.model and config.vit and adapters_only:
        raise DataError(f"--vit {config.vit}: with --model only where all of it is saved, with "
                        "--tune full or --train_vit")
    if config.optimizer == "muon" and (config.tune != "full" or config.shard):
        raise DataError("--optimizer muon: only with --tune full, and without --shard")
    if config.bits < 16 and not (adapters_only and config.model):
        raise DataError(f"--bits {config.bits}: only of a --model that stays as it is: with --tune "
                        "lora, moe-lora or projector, and --no-train_vit")
    # 1. Load, or start from random weights
    if config.model:
        load_dtype = dtype if adapters_only else torch.float32
        model = SkyEyeGPT.from_pretrained(config.model, device, load_dtype, config.bits)
        tokenizer_path = Path(config.model) / "tokenizer.model"
        tokenizer = Tokenizer(tokenizer_path, model.config.llama.vocab_size)
        if config.vit:
            model.visual_encoder = load_vit(config.vit, model.config.vit, device)
    else:
        model = SkyEyeGPT(PRESETS[config.preset])
        model.init_weights()
        if config.vit:
            model.visual_encoder = load_vit(config.vit, model.config.vit)
        model.to(device)
        tokenizer = Tokenizer(config.tokenizer, model.config.llama.vocab_size)
        number_ids = tokenizer.model.piece_to_id([f"<{i}>" for i in range(101)])
        if 0 not in number_ids:                     # each number of a box is one token
            init_number_tokens(model.llama_model, number_ids)
    # 2. LoRA
    if config.tune in LORA_METHODS and not model.config.lora:
        lora = new_lora(config)
        add_lora(model.llama_model, lora)
        model.config = replace(model.config, lora=lora)
    # 3. Freeze
    for name, parameter in model.named_parameters():
        parameter.requires_grad = is_trained(name, config.tune, config.train_vit)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    model.llama_model.model.gradient_checkpointing = config.grad_checkpoint
    return model, tokenizer


def new_lora(config: TrainConfig) -> LoRAConfig:
    """--tune's LoRA, with what the flags change of it."""
    default = LORA_METHODS[config.tune]
    return replace(default, r=config.lora_r or default.r, alpha=config.lora_alpha or default.alpha,
                   dropout=config.lora_dropout, targets=config.lora_targets or default.targets)


@torch.no_grad()
def init_number_tokens(llama: nn.Module, ids: list[int]) -> None:
    """Start the tokens of 0, 1, 2, .. so that those of near values are similar.

    Sines and cosines of the value, as of a position (Attention Is All You Need, section 3.5), so
    their order need not be learned from examples. Widths are even.
    """
    embedding, head = llama.model.embed_tokens.weight, llama.lm_head.weight   # 2 x [V, D]
    D, values = embedding.shape[1], torch.arange(len(ids))[:, None]
    angles = 2 * torch.pi * values / torch.logspace(0.6, 2.5, D // 2)         # periods 4 .. 316
    code = torch.cat([angles.sin(), angles.cos()], dim=1) * 2 ** 0.5          # [ids, D], rms 1
    embedding[ids] = 0.5 * code.to(head)
    head[ids] = D ** -0.5 * code.to(head)


# ---- data ----------------------------------------------------------------------------------------

def build_dataset(config: TrainConfig, model: SkyEyeGPT, tokenizer: Tokenizer,
                  ratios: Sequence[float]
                  ) -> tuple[PackedDataset, PackedDataset | None, list[SampleTable], list[str]]:
    """-> the rows; those held out, if any; the samples of each data set; what is wrong with those
    left out.

    ratios: of each data set, as parse_ratios gives them; () for every row once.
    """
    if get_rank() == 0:
        ensure_world(config.data)
    wait_for_all()
    skipped: list[str] | None = [] if config.skip_bad else None
    check_image_folder(config.image_folder, config.data)
    counter = TokenCounter(tokenizer, model.config.prompt, model.config.visual_tokens,
                           config.max_tokens, model.config.llama.max_positions, config.frames)
    read = partial(read_data, stage=config.stage, tasks=config.tasks, format_name=config.format,
                   skipped=skipped, image_folder=config.image_folder, bands=config.bands)
    data_sets, held_out = read_rows(read, config.data, config.val_data, counter, skipped,
                                    limit=config.limit, val_part=config.val_part, seed=config.seed)
    shares = zip(map(len, data_sets), ratios, strict=True) if ratios else ()
    pack = partial(
        PackedDataset, tokenizer=tokenizer, image_size=model.config.vit.image_size,
        visual_tokens=model.config.visual_tokens, style=model.config.prompt,
        questions_per_row=config.questions_per_image, seed=config.seed, bands=config.bands,
        frames=config.frames, max_tokens=config.max_tokens,
        max_positions=model.config.llama.max_positions)
    dataset = pack(join_tables(data_sets), augment=config.augment, ratios=list(shares),
                   bucket_size=config.batch_size * config.grad_accum * get_world_size())
    return dataset, pack(held_out) if held_out else None, data_sets, skipped or []


# ---- optimizer -----------------------------------------------------------------------------------

def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Weight decay on matrices; none on vectors, biases and norms."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden = [p for name, p in trained if muon.is_hidden_matrix(name, p)
              ] if config.optimizer == "muon" else []
    by_muon = set(map(id, hidden))
    decay = [p for name, p in trained
             if p.ndim >= 2 and "bias" not in name and id(p) not in by_muon]
    no_decay = [p for name, p in trained if p.ndim < 2 or "bias" in name]
    groups = [{"params": decay, "weight_decay": config.weight_decay},
              {"params": no_decay, "weight_decay": 0.0}]
    settings = dict(lr=config.lr, betas=(0.9, config.beta2))
    if not hidden:
        return torch.optim.AdamW(groups, **settings)
    groups = [group | {"muon": False} for group in groups]
    groups.append({"params": hidden, "weight_decay": config.weight_decay, "muon": True})
    return muon.Muon(groups, **settings)


def learning_rate(step: int, config: TrainConfig) -> float:
    """MiniGPT-v2's schedule; its cosine counts from step 0, so there is a tiny jump.

    https://github.com/Vision-CAIR/MiniGPT-4/blob/d94738a/minigpt4/common/optims.py
    """
    # 1. Linear warm-up
    if step < config.warmup_steps:
        increase = (config.lr - config.warmup_lr) * step / config.warmup_steps
        return min(config.lr, config.warmup_lr + increase)
    # 2. Cosine
    cosine = 0.5 * (1 + math.cos(math.pi * step / config.max_steps))
    return config.min_lr + (config.lr - config.min_lr) * cosine


# ---- one step ------------------------------------------------------------------------------------

def train_step(model: nn.Module, batches: Sequence[dict], optimizer: torch.optim.Optimizer,
               scaler: torch.amp.GradScaler, config: TrainConfig) -> tuple[float, float, bool]:
    """One optimizer step over this process's micro-batches -> loss, norm of the gradient, skipped.

    A step whose loss or gradient is not finite is skipped: the parameters stay as they are.
    """
    device = next(model.parameters()).device
    dtype = pick_dtype(config, device.type)
    model_config = unwrap(model).config
    # The loss is the mean over all supervised tokens of the step, on all processes. The model gives
    # the mean over those of one micro-batch, so each counts by its share of the tokens, count /
    # total. The sum of these is exact; a mean of means would favor the tokens of short answers.
    counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
    total = sum_over_processes(torch.tensor(float(sum(counts)), device=device))
    loss_sum = torch.zeros((), device=device)
    for i, (batch, count) in enumerate(zip(batches, counts, strict=True)):
        batch = with_dummy_image(batch, model_config.vit.image_size, model_config.visual_tokens)
        batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        # DDP exchanges gradients after the last micro-batch only. A sharded model does so after
        # each, as no process has room for all gradients. Both divide by the number of processes.
        exchange = i == len(batches) - 1 or not isinstance(model, DistributedDataParallel)
        with nullcontext() if exchange else model.no_sync():
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = model(**batch) * (count / total)
            scaler.scale(loss * get_world_size()).backward()
        loss_sum += loss.detach()
    scaler.unscale_(optimizer)
    trained = [p for p in model.parameters() if p.requires_grad]
    norm = full_tensor(nn.utils.clip_grad_norm_(trained, config.clip or math.inf)).item()
    loss = sum_over_processes(loss_sum).item()
    # With fp16 the scaler skips an infinite gradient by itself, and lowers its scale.
    skipped = not math.isfinite(loss) or not (scaler.is_enabled() or math.isfinite(norm))
    if not skipped:
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm, skipped


# ---- the run -------------------------------------------------------------------------------------

def pick_device(config: TrainConfig) -> str:
    """-> "cpu", "cuda", ..; makes the GPU the current one, with torchrun that of this process."""
    if config.device in ("auto", "cuda") and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    device = find_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device.type


def pick_dtype(config: TrainConfig, device: str) -> torch.dtype:
    auto = "bf16" if device == "cuda" else "fp32"
    return DTYPES[auto if config.dtype == "auto" else config.dtype]


def train(config: TrainConfig) -> int:
    """-> the exit code: 0; 130 or 143 where a signal ended the run, after a checkpoint."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    runs.check_places(config.output_dir, config.model)
    with runs.lock_folder(Path(config.output_dir), rank):
        return run(config, rank, world_size)


def run(config: TrainConfig, rank: int, world_size: int) -> int:
    # 1. Processes and devices
    device = pick_device(config)
    dtype = pick_dtype(config, device)
    if config.shard:
        check_shardable(world_size, device, dtype, config.bits)
    ratios = parse_ratios(config.ratio, config.data)
    out = Path(config.output_dir)
    if not config.resume and rank == 0:
        runs.refuse_other_run(out, checkpoints.checkpoint_folders(out), None, config.overwrite)
    settings = dataclasses.asdict(config)
    loggers = open_loggers(config.log_to, out, settings) if rank == 0 else []
    start_processes(device, world_size, RESUME)
    torch.manual_seed(config.seed)

    # 2. Model
    model, tokenizer = build_model(config, "cpu" if config.shard else device, dtype)
    parallel_model = wrap(model, device, dtype, shard=config.shard, compile=config.compile,
                          init_sync=config.bits == 16)
    parallel_model.train()

    # 3. Data
    dataset, held_out, data_sets, skipped = build_dataset(config, model, tokenizer, ratios)
    schedule = BatchSchedule(dataset, config.batch_size, config.grad_accum, config.max_steps, rank,
                             world_size, config.skip_bad, device, config.overfit_one_batch)
    sources = runs.describe_sources(data_sets, (config.model, config.vit),
                                    checkpoints.tokenizer_file(settings), world_size)

    # 4. Optimizer, state, resume
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    state = checkpoints.TrainState(model, optimizer, scaler, settings, sources)
    start = checkpoints.begin(state)
    if rank == 0:
        print_summary(model, dataset, config.stage, config.tune, device, dtype)
    log = Logger(out / "log.jsonl", model, tune=config.tune, train_vit=config.train_vit,
                 every=config.log_steps, loggers=loggers, max_steps=config.max_steps,
                 peak_flops=matmul_rate(device, dtype) if rank == 0 else math.inf)
    if not start:
        log.add_left_out(0, skipped)

    # 5. The loop
    features = feature_cache(settings, model, dtype)
    probe = Probe(model, tokenizer, device, dtype, config.batch_size, features, config.shard)
    validation = Validation(probe, held_out, config.val_steps, config.max_steps, config.skip_bad)
    if not start:
        validation.run(0, log)
    nan_guard = NaNGuard()
    last_checkpoint = None
    interrupted = False
    with GracefulStop(quiet=rank > 0) as stop, tqdm(
            total=config.max_steps, initial=start, unit="step", disable=rank > 0 or None
            ) as bar, checkpoints.saved_on_error(state):
        rows = schedule.steps(start, config.num_workers)
        for step, (batches, left_out) in enumerate(rows, start + 1):
            torch.manual_seed(config.seed + step * world_size + rank)   # dropout; also when resumed
            lr = learning_rate(step - 1, config)
            for group in optimizer.param_groups:
                group["lr"] = lr
            batches = [features.encode(batch) for batch in batches] if features else batches
            loss, norm, skipped = train_step(parallel_model, batches, optimizer, scaler, config)
            state.step = step
            if step == 1 and config.model:
                warn_if_untrained(loss, model)
            bar.update()
            bar.set_postfix_str(log.add(
                step, loss=loss, lr=lr, norm=norm, batches=batches,
                skipped_rows=schedule.sources(step) if skipped else (), left_out=left_out))
            validation.run(step, log)
            last = step == config.max_steps
            interrupted = any_process(stop.signal > 0, device) and not last
            if interrupted:
                last_checkpoint = checkpoints.save(state, step)
            elif step % config.save_steps == 0 and not last:
                last_checkpoint = checkpoints.try_save(state, last_checkpoint)
            nan_guard.check(step, skipped, last_checkpoint)
            if interrupted:
                break

    saved = last_checkpoint if interrupted else checkpoints.save_result(state)
    finish_processes()
    if rank == 0:
        print(f"saved {saved}", file=sys.stderr)
        if log.left_out:
            print(f"{log.left_out:,} faulty rows were left out; {out / 'log.jsonl'} names them",
                  file=sys.stderr)
        if not interrupted:
            print(*describe_result(out / "log.jsonl", probe, schedule), sep="\n", file=sys.stderr)
            plot_loss(out / "log.jsonl", out / "loss.png")
    return (stop.code or 143) if interrupted else 0     # 143: another process got the signal


def main() -> int:
    try:
        return train(parse_args())
    except UserError as error:
        line = str(error)
    except (MemoryError, RuntimeError) as error:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        line = explain_failure(error, device, RESUME)
    if line:                                    # "": another process says it
        print(f"train.py: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
