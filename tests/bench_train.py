"""How fast a LoRA training step is, ours and transformers' with peft, in one run.

    python tests/bench_train.py [--size 15M|110M|7B] [--device cpu|cuda] [--dtype fp32|bf16]
                                [--steps 5] [--pictures 4] [--questions 60] [--rows 20]

LoRA (r = 64, alpha 16) on q and v of a frozen model, one step of AdamW included, at the same random
weights; the first losses must agree before anything is timed. Two workloads, their steps
interleaved, medians, and medians of the ratios of neighbors:

    text        the language model alone, 384 tokens a row, of which the last 64 are the answer
    questions   60 short ones about each picture: with transformers a row has one, and the picture
                and its visual tokens are computed for each; ours puts K of them into a row

Theirs is used as it comes: sdpa attention, `labels=`, and no mask, as padding is on the right.
Memory is what the process grows by in its first two steps, each side in a process of its own. The
utilization counts what the step needs: two FLOPs a parameter and token forward, two for gradients
that pass a frozen one, two for those of LoRA and projector; attention for the keys that a token
attends to; the head where there is a label. It is a part of what a 2048 x 2048 product reaches.
Without transformers and peft (pip install transformers peft) ours runs alone.
"""
import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import layouts  # noqa: E402
from data import PackedDataset, Tokenizer, collate  # noqa: E402
from llama import LlamaConfig  # noqa: E402
from lora import LoRAConfig, add_lora  # noqa: E402
from projector import DTYPES, SkyEyeConfig, SkyEyeGPT  # noqa: E402
from support.readers.common import Sample  # noqa: E402
from support.training.flops import count_flops  # noqa: E402
from vit import ViTConfig  # noqa: E402

THEIRS = "transformers + peft"
MISSING = [name for name in ("transformers", "peft") if not importlib.util.find_spec(name)]
LORA = LoRAConfig(r=64, alpha=16.0, dropout=0.0)
VIT = ViTConfig(image_size=224, patch_size=14, width=192, depth=6, heads=3, mlp_width=768)
LLAMA_15M = LlamaConfig(width=288, depth=6, heads=6, mlp_width=768)
LLAMA_110M = LlamaConfig(width=768, depth=12, heads=12, mlp_width=2048)
SIZES = {       # the model, rows of the text step
    "15M": (SkyEyeConfig(VIT, LLAMA_15M, lora=None), 4),
    "110M": (SkyEyeConfig(VIT, LLAMA_110M, lora=None), 4),
    "7B": (SkyEyeConfig(lora=None), 1),
}


# ---- the two sides -------------------------------------------------------------------------------

@dataclass
class Side:
    model: nn.Module
    loss: Callable[[dict], Tensor]              # of a batch, the mean over its supervised tokens

    def __post_init__(self):
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)


def build_ours(config: SkyEyeConfig, device: str, dtype: torch.dtype) -> SkyEyeGPT:
    """Frozen weights in dtype, trained ones in float32; none is ever held in another type."""
    with torch.device("meta"):
        model = SkyEyeGPT(config).to(dtype)
        model.llama_proj.float()
    model.to_empty(device=device)
    add_lora(model.llama_model, LORA)
    generator = torch.Generator(device).manual_seed(0)
    for name, p in model.named_parameters():
        std = p[0].numel() ** -0.5 if p.ndim > 1 and "embed." not in name else 0.1
        mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        p.data.normal_(mean, std, generator=generator)
        p.requires_grad = ".lora_" in name or name.startswith("llama_proj.")
    return model


def our_side(model: SkyEyeGPT) -> Side:
    return Side(model, lambda batch: model(**batch))


def their_language(model: SkyEyeGPT, device: str) -> nn.Module:
    """LlamaForCausalLM in peft: the frozen weights are ours, not copied; its LoRA is a copy."""
    import peft
    import transformers
    with torch.device("meta"):
        language = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**layouts.hf_json(model.config.llama)))
    lora = peft.LoraConfig(r=LORA.r, lora_alpha=LORA.alpha, target_modules=list(LORA.targets),
                           lora_dropout=LORA.dropout, task_type="CAUSAL_LM")
    language = peft.get_peft_model(language, lora, low_cpu_mem_usage=True)
    state = {}
    for name, tensor in model.llama_model.state_dict().items():
        if ".lora_" in name:
            name, tensor = name.replace(".weight", ".default.weight"), tensor.clone()
        elif name.split(".")[-2] in LORA.targets:
            name = name.replace(".weight", ".base_layer.weight")
        state["base_model.model." + name] = tensor
    language.load_state_dict(state, assign=True)
    decoder = language.base_model.model.model
    with torch.device(device):
        decoder.rotary_emb = type(decoder.rotary_emb)(decoder.config)      # is in no state dict
    return language.train()


def their_vit(model: SkyEyeGPT) -> nn.Module:
    """Blip2VisionModel with the last norm that SkyEyeGPT has, one without weights."""
    import transformers
    config = model.config.vit
    with torch.device("meta"):
        vit = transformers.Blip2VisionModel(transformers.Blip2VisionConfig(
            hidden_size=config.width, num_hidden_layers=config.depth,
            intermediate_size=config.mlp_width, num_attention_heads=config.heads,
            patch_size=config.patch_size, image_size=config.image_size, layer_norm_eps=1e-6))
    vit.post_layernorm = nn.LayerNorm(config.width, eps=1e-5, elementwise_affine=False)
    theirs = {name.removeprefix("vision_model."): tensor for name, tensor in
              layouts.blip2(model.visual_encoder.state_dict(), config.depth).items()}
    vit.load_state_dict({name: theirs[name] for name in vit.state_dict()}, assign=True)
    return vit.requires_grad_(False)


def their_side(model: SkyEyeGPT, device: str) -> Side:
    """The model as one puts it together from the libraries."""
    language, vit = their_language(model, device), their_vit(model)
    projector = nn.Linear(model.llama_proj.in_features, model.config.llama.width).to(device)
    projector.load_state_dict(model.llama_proj.state_dict())
    embed = language.get_input_embeddings()

    def loss(batch: dict) -> Tensor:
        ids, images = batch["ids"], batch["images"]
        if images is None:
            return language(input_ids=ids, labels=batch["labels"], use_cache=False).loss
        with torch.no_grad():
            patches = vit(images.to(embed.weight.dtype)).last_hidden_state[:, 1:]
        visual = projector(patches.reshape(len(images), -1, projector.in_features))
        x = embed(ids.clamp(min=0))
        x = x.masked_scatter((ids < 0)[..., None], visual.to(x.dtype))
        return language(inputs_embeds=x, labels=batch["labels"], use_cache=False).loss

    return Side(nn.ModuleList([language, projector]), loss)


def supervised(batch: dict) -> int:
    return int((batch["labels"][:, 1:] != -100).sum())


def step(side: Side, batches: list[dict], device: str, dtype: torch.dtype, lr: float = 1e-4
         ) -> tuple[float, float]:
    """One step over micro-batches -> seconds, and the loss over all supervised tokens."""
    total = sum(map(supervised, batches))
    loss_sum = torch.zeros((), device=device)
    for group in side.optimizer.param_groups:
        group["lr"] = lr
    start = clock(device)
    for batch in batches:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = side.loss(batch) * (supervised(batch) / total)
        loss.backward()
        loss_sum += loss.detach()
    side.optimizer.step()
    side.optimizer.zero_grad(set_to_none=True)
    return clock(device) - start, loss_sum.item()


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# ---- the two workloads ---------------------------------------------------------------------------

def text_batch(rows: int, vocab: int, device: str, length: int = 384, answer: int = 64) -> dict:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, vocab, (rows, length), generator=generator)
    labels = torch.where(torch.arange(length) < length - answer, -100, ids)
    return {"ids": ids.to(device), "labels": labels.to(device), "images": None}


FORMS = ("Is a {} present?", "What is the number of {}s?", "Is there a {} next to a road?",
         "Are there more {}s than roads?")
THINGS = ("building", "road", "water area", "residential building", "commercial building",
          "grass area", "farmland", "forest")


def question_batches(config: SkyEyeConfig, args: argparse.Namespace, together: int) -> list[dict]:
    """Rows of `together` questions about one picture, in micro-batches of args.rows questions."""
    tokenizer = Tokenizer(ROOT / "weights" / "nano" / "tokenizer.model")
    turns = [("", [("[vqa] " + FORMS[i % 4].format(THINGS[i // 4 % 8]), ("yes", "no")[i % 2])])
             for i in range(args.questions)]
    maker = PackedDataset([Sample(("",), (("", "yes"),), "vqa", "")], tokenizer,
                          config.vit.image_size, config.visual_tokens)
    side, generator, rows = config.vit.image_size, torch.Generator().manual_seed(2), []
    for _ in range(args.pictures):
        image = torch.randn(1, 3, side, side, generator=generator)
        rows += [maker.pack(turns[i:i + together], 1) | {"images": image}
                 for i in range(0, args.questions, together)]
    size = max(1, args.rows // together)
    batches = [collate(rows[i:i + size]) for i in range(0, len(rows), size)]
    return [{k: v.to(args.device) for k, v in batch.items()} for batch in batches]


# ---- measurements --------------------------------------------------------------------------------

def measure(sides: dict[str, tuple[Side, list[dict]]], args: argparse.Namespace
            ) -> tuple[dict[str, list[float]], dict[str, float]]:
    """-> the seconds of each side's steps, and the losses of the first, which learned nothing."""
    dtype, tolerance = DTYPES[args.dtype], 1e-4 if args.dtype == "fp32" else 5e-2
    losses = {name: step(side, batches, args.device, dtype, lr=0.0)[1]
              for name, (side, batches) in sides.items()}
    assert max(losses.values()) - min(losses.values()) < tolerance, losses
    seconds = {name: [] for name in sides}
    for _ in range(args.steps):
        for name, (side, batches) in sides.items():
            seconds[name].append(step(side, batches, args.device, dtype)[0])
    return seconds, losses


def flops(config: SkyEyeConfig, batch: dict) -> float:
    """What a step of ours cannot do without."""
    return count_flops(replace(config, lora=LORA), batch, "lora")


def matmul_rate(device: str, dtype: torch.dtype, size: int = 2048) -> float:
    """-> FLOPs a second of a product of squares, the best of five."""
    a = torch.randn(size, size, device=device).to(dtype)
    a @ a
    best = float("inf")
    for _ in range(5):
        start = clock(device)
        a @ a
        best = min(best, clock(device) - start)
    return 2 * size ** 3 / best


def growth(args: argparse.Namespace) -> int:
    """Bytes that the text step adds to the model, in this process."""
    config, rows = SIZES[args.size]
    model = build_ours(config, args.device, DTYPES[args.dtype])
    side = our_side(model) if args.memory == "ours" else their_side(model, args.device)
    del model
    batch = text_batch(rows, config.llama.vocab_size, args.device)
    before = peak(args.device)
    for _ in range(2):
        step(side, [batch], args.device, DTYPES[args.dtype])
    return peak(args.device) - before


def peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_growth(side: str, args: argparse.Namespace) -> int:
    flags = [f"--{name}={getattr(args, name)}" for name in ("size", "device", "dtype")]
    run = subprocess.run([sys.executable, __file__, *flags, "--memory", side], check=True,
                         stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout.splitlines()[-1])


# ---- tables --------------------------------------------------------------------------------------

def table(head: list[str], rows: list[list[str]]) -> None:
    for cells in [head, ["---"] * len(head), *rows]:
        print("| " + " | ".join(cells) + " |")
    print()


def over(seconds: dict[str, list[float]], name: str) -> float:
    """The median of how many times as fast as theirs a side is, step by step."""
    pairs = zip(seconds[THEIRS], seconds[name], strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def text_table(sides: dict[str, Side], grown: dict[str, int], rate: float,
               args: argparse.Namespace) -> None:
    config, rows = SIZES[args.size]
    batch = text_batch(rows, config.llama.vocab_size, args.device)
    seconds, losses = measure({name: (side, [batch]) for name, side in sides.items()}, args)
    found = []
    for name in sides:
        median = statistics.median(seconds[name])
        used = f"{flops(config, batch) / median / rate:.0%}" if name == "ours" else ""
        times = f"{over(seconds, name):.2f}" if THEIRS in sides else ""
        found.append([name, f"{median:.3f}", f"{batch['ids'].numel() / median:,.0f}", times,
                      f"{grown[name] / 1e6:,.0f}", used, f"{losses[name]:.5f}"])
    print(f"Text step, {rows} x 384 tokens, 64 answer tokens a row:\n")
    table(["", "s/step", "tokens/s", "times theirs", "MB above the model", "utilization",
           "first loss"], found)


def question_table(sides: dict[str, Side], rate: float, args: argparse.Namespace) -> None:
    config, _ = SIZES[args.size]
    batches = {k: question_batches(config, args, k) for k in (1, 4, 15, 60) if k <= args.questions}
    runs = {THEIRS: (sides[THEIRS], batches[1])} if THEIRS in sides else {}
    runs |= {f"ours, K = {k}": (sides["ours"], own) for k, own in batches.items()}
    seconds, losses = measure(runs, args)
    found = []
    for name, (_, own) in runs.items():
        median = statistics.median(seconds[name])
        tokens = sum(int((batch["ids"] != 0).sum()) for batch in own)
        used = f"{sum(flops(config, b) for b in own) / median / rate:.0%}" if name != THEIRS else ""
        times = f"{over(seconds, name):.2f}" if THEIRS in sides else ""
        found.append([name, f"{tokens:,}", f"{sum(len(b['images']) for b in own):,}",
                      f"{median:.2f}", f"{args.pictures * args.questions / median:,.1f}", times,
                      used, f"{losses[name]:.5f}"])
    print(f"{args.pictures} pictures, {args.questions} questions each:\n")
    table(["", "tokens", "pictures encoded", "s/step", "samples/s", "times theirs", "utilization",
           "first loss"], found)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="15M")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--rows", type=int, default=0, help="questions a micro-batch (20; 7B: 4)")
    parser.add_argument("--memory", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    big = args.size == "7B"
    args.dtype = args.dtype or ("bf16" if big else "fp32")
    args.rows = args.rows or (4 if big else 20)
    if big and (args.device, args.dtype) != ("cuda", "bf16"):
        parser.error("--size 7B needs --device cuda --dtype bf16")
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(2)
    warnings.simplefilter("ignore", FutureWarning)              # transformers' about itself
    if args.memory:
        print(growth(args))
        return
    if MISSING:
        print(f"{' and '.join(MISSING)}: not installed, ours runs alone", file=sys.stderr)
    # First, while this process is small: a child starts with its parent's peak as its own.
    grown = {"ours": measure_growth("ours", args)}
    if not MISSING:
        grown[THEIRS] = measure_growth("theirs", args)
    config, _ = SIZES[args.size]
    rate = matmul_rate(args.device, DTYPES[args.dtype])
    model = build_ours(config, args.device, DTYPES[args.dtype])
    sides = {} if MISSING else {THEIRS: their_side(model, args.device)}
    sides["ours"] = our_side(model)
    place = torch.cuda.get_device_name() if args.device == "cuda" else "cpu, 2 threads"
    print(f"{args.size}, {args.dtype}, {place}; a 2048 x 2048 product: {rate / 1e9:,.0f} GFLOP/s; "
          f"medians of {args.steps} steps\n")
    text_table(sides, grown, rate, args)
    question_table(sides, rate, args)


if __name__ == "__main__":
    main()
