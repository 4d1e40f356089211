"""Does the model look at what it is asked for while it writes where that is?

    python examples/miniworld.py out/miniworld
    python tests/measure_attention.py --model weights/nano --data out/miniworld

Every expression of the test split is asked for ("[refer] where is the house with a blue roof ?"),
and its true box is given as the answer. For each of the four numbers of the box, at the place that
it is predicted from, printed layer by layer: the share of the attention to the picture that lies
inside the true box, by the mean over heads. Beside it two shares to compare with: the part of the
picture that the box covers, which even attention would give, and what lies in the box of another
expression of the same picture, which attention to anything that stands out would give.

The first number comes before anything of the box is written, so it is as in the model's own answer.
The three others are predicted behind the true numbers before them.
"""
import argparse
import random
import sys
from collections import defaultdict
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import Tokenizer, encode_box, encode_conversation, load_image, preprocess  # noqa: E402
from eval import EVAL_PROMPTS, write_turns  # noqa: E402
from projector import SkyEyeGPT  # noqa: E402
from support.common import commit  # noqa: E402
from support.explain.attention import over_patches, read_answer, share_inside  # noqa: E402
from support.explain.sheet import answer_words  # noqa: E402
from support.readers import read_data  # noqa: E402
from support.readers.common import Sample  # noqa: E402

NUMBERS = ("x1", "y1", "x2", "y2")


def shares_of_picture(model: SkyEyeGPT, tokenizer: Tokenizer, path: str, samples: list[Sample]
                      ) -> list[torch.Tensor]:
    """-> of each expression float[3, L, 4]: the share inside the true box, that inside the box of
    the next expression, and the part of the picture that the true box covers."""
    config, image = model.config, load_image(path)
    pixels = preprocess(image, config.vit.image_size, style=config.prompt)
    visual = model.encode_images(pixels[None])
    found = []
    for sample, other in zip(samples, samples[1:] + samples[:1], strict=True):
        [(question, _)] = write_turns(sample, EVAL_PROMPTS["refer"][0], image.size, config.prompt)
        ids, _, _ = encode_conversation(tokenizer, [(question, None)], config.visual_tokens,
                                        style=config.prompt)
        tokens = tokenizer.encode(encode_box(sample.boxes[0], *image.size))
        reading = read_answer(model, ids, tokens, visual)
        places = [own[0] for _, own in answer_words(tokenizer, tokens)]       # of the four numbers
        heat = over_patches(reading.attention, [i < 0 for i in (*ids, *tokens)], config)
        inside, elsewhere = (share_inside(heat[:, places], one.boxes[0], *image.size)
                             for one in (sample, other))                      # [L, 4] each
        x1, y1, x2, y2 = sample.boxes[0]
        area = torch.full_like(inside, (x2 - x1) * (y2 - y1) / image.width / image.height)
        found.append(torch.stack([inside, elsewhere, area]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="weights/nano", help="model folder")
    parser.add_argument("--data", default="out/miniworld", help="data set with a test split")
    parser.add_argument("--pictures", type=int, default=0, help="only so many, drawn at random")
    parser.add_argument("--seed", type=int, default=42, help="random seed (default: %(default)s)")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    model = SkyEyeGPT.from_pretrained(args.model)
    tokenizer = Tokenizer(Path(args.model) / "tokenizer.model", model.config.llama.vocab_size)
    of_picture: dict[str, list[Sample]] = defaultdict(list)
    for sample in read_data(args.data, "test"):
        if sample.task == "refer" and len(sample.images) == len(sample.boxes) == 1:
            of_picture[sample.images[0]].append(sample)
    chosen = sorted(path for path, own in of_picture.items()        # two things to find, at least
                    if len({sample.boxes for sample in own}) > 1)
    if args.pictures:
        chosen = random.Random(args.seed).sample(chosen, min(args.pictures, len(chosen)))
    rows = []
    for path in tqdm(chosen, unit="picture", disable=None):
        own = list({sample.boxes: sample for sample in of_picture[path]}.values())
        rows += shares_of_picture(model, tokenizer, path, own)
    shares = torch.stack(rows)                                                # [n, 3, L, 4]
    print(f"{len(shares):,} expressions in {len(chosen)} pictures, {args.model}, commit {commit()}")
    print("share of the attention to the picture, in percent, mean over expressions; > area: of "
          "how many expressions it is over the box's part of the picture\n")
    print(f"{'layer':7}" + "".join(f"{name:>7}{'other':>7}{'> area':>8}" for name in NUMBERS))
    for layer in [*range(shares.shape[2]), None]:
        at = shares.mean(2) if layer is None else shares[:, :, layer]         # [n, 3, 4]
        print(f"{'mean' if layer is None else layer + 1!s:7}" + "".join(
            f"{100 * at[:, 0, i].mean():7.1f}{100 * at[:, 1, i].mean():7.1f}"
            f"{100 * (at[:, 0, i] > at[:, 2, i]).float().mean():8.1f}" for i in range(4)))
    area = shares[:, 2, 0, 0]
    print(f"\na true box covers {100 * area.mean():.1f} % of its picture in the mean")


if __name__ == "__main__":
    main()
