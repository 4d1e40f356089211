"""What 16 and fewer bits do to a model's numbers: against float32, on the example pictures.

    python tests/bench_bits.py [--model weights/nano]

Each picture's caption and questions are given to the model together with their true answers. The
table has the distance of the logits that predict them (the root of the mean square of the
differences over that of float32's, the mean of each position subtracted), and how often the most
probable token is float32's.
"""
import argparse
import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from bench_train import table  # noqa: E402
from data import Tokenizer, encode_conversation, load_images, preprocess  # noqa: E402
from projector import DTYPES, SkyEyeGPT  # noqa: E402
from support.inference.cpu_kernels import pack_for_cpu  # noqa: E402

KINDS = [("fp32", 16), ("bf16", 16), ("fp32", 8), ("fp32", 4), ("bf16", 8), ("bf16", 4)]


def turns(truth: dict) -> list[tuple[str, str]]:
    questions = [("[vqa] " + row["question"], row["answer"]) for row in truth["vqa"]]
    return [("[caption] briefly describe the image", truth["captions"][0]), *questions]


@torch.inference_mode()
def logits(model: SkyEyeGPT, tokenizer: Tokenizer) -> torch.Tensor:
    """-> float32[positions, V] of all answers"""
    config, found = model.config, []
    dtype = model.llama_model.lm_head.weight.dtype
    for file in sorted((ROOT / "examples").glob("*.json")):
        (picture,) = load_images([file.with_suffix(".png")])
        picture = preprocess(picture.image, config.vit.image_size, style=config.prompt)
        visual_tokens = model.encode_images(picture[None].to(dtype))
        for turn in turns(json.loads(file.read_text())):
            ids, labels, _ = encode_conversation(tokenizer, [turn], config.visual_tokens, 1,
                                                 config.prompt)
            supervised = torch.tensor(labels[1:]) != -100
            x = model.embed(torch.tensor([ids]), visual_tokens)
            found.append(model.llama_model(x)[0, :-1][supervised])
    found = torch.cat(found).float()
    return found - found.mean(-1, keepdim=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "weights" / "nano")
    args = parser.parse_args()
    rows, exact = [], None
    for dtype, bits in KINDS:
        model = pack_for_cpu(SkyEyeGPT.from_pretrained(args.model, "cpu", DTYPES[dtype], bits))
        own = logits(model, Tokenizer(args.model / "tokenizer.model",
                                      model.config.llama.vocab_size))
        exact = own if exact is None else exact
        off = ((own - exact).square().mean() / exact.square().mean()).sqrt().item()
        same = (own.argmax(-1) == exact.argmax(-1)).float().mean().item()
        rows.append([f"{dtype}, {bits} bits", str(len(own)), f"{off:.2%}", f"{same:.1%}"])
    table(["", "positions", "distance of the logits", "most probable token the same"], rows)


if __name__ == "__main__":
    main()
