"""The full-size model for once: random weights in the released formats, converted and used.

    python tests/full_size.py FOLDER [--device cuda] [--bits 16|8|4] [--keep]

writes LLaMA-2-7B's two shards, eva_vit_g.pth and SkyEyeGPT.pth into FOLDER (16 GB; with the
converted encoder 18.5 GB are needed), runs `python projector.py` and `python chat.py` on them, and
prints what loading and answering take beside what the memory's bandwidth allows.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import layouts  # noqa: E402
from llama import Llama, LlamaConfig  # noqa: E402
from projector import DTYPES, PRESETS, SkyEyeGPT  # noqa: E402
from support.inference.cpu_kernels import pack_for_cpu  # noqa: E402
from vit import ViT, ViTConfig  # noqa: E402

PROMPT = "[caption] briefly describe the image"


# ---- writing -------------------------------------------------------------------------------------

def random_values(name, shape, block, at):
    """Values of one block of noise, another stretch for each tensor; norms are 1, biases 0."""
    count = int(np.prod(shape))
    if len(shape) == 1:
        return np.full(shape, "norm" in name and name.endswith("weight"), np.float16)
    values = np.resize(np.roll(block, at * 7919), count).reshape(shape)
    return values * np.float16(0.02)


def write_shard(file, shapes, block):
    """A safetensors file written as it is made, so that 10 GB need no memory."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for i, (name, shape) in enumerate(shapes.items()):
            random_values(name, shape, block, i).tofile(out)


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def write_llama(folder, block):
    with torch.device("meta"):
        shapes = shapes_of(Llama(LlamaConfig()))
    shapes |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": (64,) for i in range(32)}
    place, size = {}, 0
    for name, shape in shapes.items():                  # the first shard is 9.98 GB
        size += 2 * int(np.prod(shape))
        place[name] = f"model-0000{1 if size < 9.98e9 else 2}-of-00002.safetensors"
    folder.mkdir(parents=True)
    for file in sorted(set(place.values())):
        write_shard(folder / file, {k: s for k, s in shapes.items() if place[k] == file}, block)
    (folder / "model.safetensors.index.json").write_text(json.dumps(
        {"metadata": {"total_size": size}, "weight_map": place}))
    (folder / "config.json").write_text(json.dumps(layouts.hf_json(LlamaConfig())))
    (folder / "tokenizer.model").write_bytes(layouts.tokenizer(32000))


def write_vit(file, block):
    """224 px, and the 40th block that nobody uses."""
    with torch.device("meta"):
        shapes = shapes_of(ViT(ViTConfig(image_size=224, depth=40)))
    torch.save({name: torch.from_numpy(random_values(name, shape, block, i))
                for i, (name, shape) in enumerate(shapes.items())}, file)


def write_adapter(file, block):
    """Weights in float32 and AdamW's two moments, as the released file."""
    with torch.device("meta"):
        shapes = shapes_of(SkyEyeGPT(PRESETS["skyeyegpt"]))
    added = {name: torch.from_numpy(random_values(name, shape, block, i)).float()
             for i, (name, shape) in enumerate(shapes.items())
             if ".lora_" in name or "llama_proj" in name}
    content = layouts.minigpt_v2(added)
    content["config"]["model"] = {"lora_r": 64, "lora_alpha": 16}
    content["optimizer"]["state"] = {i: {"exp_avg": tensor, "exp_avg_sq": tensor.clone()}
                                     for i, tensor in enumerate(added.values())}
    torch.save(content, file)


def write_all(folder):
    block = np.random.default_rng(0).standard_normal(1 << 24, np.float32).astype(np.float16)
    write_llama(folder / "Llama-2-7b-chat-hf", block)
    write_vit(folder / "eva_vit_g.pth", block)
    write_adapter(folder / "SkyEyeGPT.pth", block)
    side = np.random.default_rng(1).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    Image.fromarray(side).save(folder / "picture.png")


# ---- measuring -----------------------------------------------------------------------------------

def run(*command):
    """-> seconds, peak memory in GB, what was printed."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE)
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(map(str, command))}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9, printed


def bandwidth(device):
    """GB/s of reading 2 GB, the best of five."""
    data, best = torch.ones(1 << 28, device=device, dtype=torch.int64), 1e9
    for _ in range(5):
        start = time.perf_counter()
        data.sum().item()
        best = min(best, time.perf_counter() - start)
    return data.nbytes / best / 1e9


def measure(folder, device, dtype, bits):
    """What one process needs to load the model and to answer, as a JSON line."""
    found = {"bandwidth": bandwidth(device)}
    start = time.perf_counter()
    model = pack_for_cpu(SkyEyeGPT.from_pretrained(folder, device, DTYPES[dtype], bits))
    found["load_s"] = time.perf_counter() - start
    low = bits / 16 + (bits == 4) / 32                      # a scale for each 32 numbers
    layers = sum(p.nbytes for name, p in model.named_parameters() if "self_attn." in name
                 or "llama_model" in name and ".mlp." in name)
    encoder = sum(p.nbytes for _, p in model.visual_encoder.blocks.named_parameters()
                  if p.ndim == 2)
    saved = (1 - low) * layers + (bits < 16) * 63 / 128 * encoder   # 8.125 bits of 16
    found["weights_gb"] = (sum(p.nbytes for p in model.parameters()) - saved) / 1e9
    size, N = model.config.vit.image_size, model.config.visual_tokens
    ids = torch.cat([torch.arange(3, 13), torch.full((N,), -1), torch.arange(13, 43)]).to(device)
    picture = torch.randn(1, 3, size, size).to(device)
    times = [time.perf_counter()]
    for _ in model.generate(ids, picture, max_new_tokens=16, stop=-1):
        times.append(time.perf_counter())
    found["first_token_s"] = times[1] - times[0]
    found["token_s"] = float(np.median(np.diff(times[1:])))
    read = sum(p.nbytes for name, p in model.llama_model.named_parameters() if "embed" not in name)
    found["floor_s"] = (read - (1 - low) * layers) / 1e9 / found["bandwidth"]
    if device == "cuda":
        found["peak_gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
    print(json.dumps(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--bits", type=int, default=16, choices=(16, 8, 4))
    parser.add_argument("--keep", action="store_true", help="do not delete the weights")
    parser.add_argument("--measure", action="store_true", help="the inner process")
    args = parser.parse_args()
    if args.measure:
        return measure(args.folder, args.device, args.dtype, args.bits)
    downloads, out = args.folder / "downloads", args.folder / "skyeyegpt"
    if not downloads.exists():
        write_all(downloads)
    if out.exists():
        shutil.rmtree(out)
    seconds, peak, _ = run("projector.py", "--llama", downloads / "Llama-2-7b-chat-hf", "--vit",
                           downloads / "eva_vit_g.pth", "--adapter", downloads / "SkyEyeGPT.pth",
                           "--out", out)
    print(f"projector.py: {seconds:.1f} s, peak memory {peak:.2f} GB", flush=True)
    seconds, peak, printed = run("tests/full_size.py", out, "--measure", "--device", args.device,
                              "--dtype", args.dtype, "--bits", args.bits)
    found = json.loads(printed)
    print(f"loading {found['weights_gb']:.2f} GB: {found['load_s']:.1f} s, "
          f"peak memory {peak:.2f} GB")
    print(f"first token after {found['first_token_s']:.1f} s, then {found['token_s']:.3f} s each; "
          f"floor {found['floor_s']:.3f} s at {found['bandwidth']:.1f} GB/s", flush=True)
    if "peak_gpu_gb" in found:
        print(f"peak GPU memory {found['peak_gpu_gb']:.2f} GB")
    seconds, peak, printed = run("chat.py", downloads / "picture.png", "--model", out, "--prompt",
                              PROMPT, "--max_new_tokens", "8", "--dtype", args.dtype,
                              "--device", args.device, "--bits", args.bits)
    print(f"chat.py: {seconds:.1f} s for 8 tokens, peak memory {peak:.2f} GB: {printed.strip()!r}")
    if not args.keep:
        shutil.rmtree(downloads)
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
