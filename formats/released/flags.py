"""What `python projector.py` is told."""
import argparse
from pathlib import Path

from formats.released.export import FORMS

DTYPES = ("fp32", "bf16", "fp16")
FLAGS = {
    "llama": "folder: LLaMA-2-7B-chat, Vicuna or LLaVA-1.5, Hugging Face's or Meta's",
    "vit": "EVA ViT-g or CLIP: a file, or a folder of shards",
    "adapter": "SkyEyeGPT.pth, MiniGPT-v2's .pth, a peft or LLaVA LoRA folder",
    "model": "or: a model folder, to be written in another form",
    "out": "folder to write",
}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Downloaded weights to a "
                                     "model folder, or a model folder to what others read.")
    source = parser.add_mutually_exclusive_group(required=True)
    for flag, text in FLAGS.items():
        (source if flag in ("llama", "model") else parser).add_argument(
            f"--{flag}", type=Path, help=text, required=flag == "out")
    parser.add_argument("--copy", action="store_true", help="write the language model to --out too")
    parser.add_argument("--prompt", default="", help="a style of data.py (default: what fits)")
    parser.add_argument("--form", choices=FORMS, default="merged",
                        help="; ".join(f"{form}: {text}" for form, text in FORMS.items()))
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of merged weights")
    return parser.parse_args(argv)
