"""Does an answer get worse the later in a conversation it is asked for?

    python tests/bench_turns.py --model weights/nano --data out/miniworld --pictures 60

Of each test picture eight questions (short answers, boxes, identify) make eight conversations, each
beginning with another one, so that every question is asked once at every turn. The model's own
answers are the history. Printed: how many of a hundred answers are right at turn 1, 2, .. 8, a box
by IoU of 0.5, any other answer word for word.
"""
import argparse
import random
import sys
from collections import defaultdict
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from chat import Conversation  # noqa: E402
from data import Tokenizer, parse_boxes  # noqa: E402
from eval import EVAL_PROMPTS, write_turns  # noqa: E402
from projector import SkyEyeGPT  # noqa: E402
from support.metrics.boxes import iou  # noqa: E402
from support.readers import read_data  # noqa: E402
from support.readers.common import Sample  # noqa: E402

TURNS = 8
TASKS = ("vqa", "scene", "refer", "identify")


def is_right(sample: Sample, answer: str, size: tuple[int, int]) -> bool:
    if sample.task != "refer" or not sample.boxes:
        return answer.strip() == sample.turns[0][1]
    found = parse_boxes(answer, *size)
    return bool(found) and bool(iou(found[0][1], sample.boxes[0]) >= 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="weights/nano", help="model folder")
    parser.add_argument("--data", default="out/miniworld", help="data set with a test split")
    parser.add_argument("--pictures", type=int, default=60, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="random seed (default: %(default)s)")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    model = SkyEyeGPT.from_pretrained(args.model)
    tokenizer = Tokenizer(Path(args.model) / "tokenizer.model", model.config.llama.vocab_size)
    of_picture: dict[str, list[Sample]] = defaultdict(list)
    for sample in read_data(args.data, "test"):
        if sample.task in TASKS and len(sample.images) == 1:
            of_picture[sample.images[0]].append(sample)
    rng = random.Random(args.seed)
    enough = sorted(path for path, own in of_picture.items() if len(own) >= TURNS)
    chosen = rng.sample(enough, min(args.pictures, len(enough)))
    right = torch.zeros(TURNS)
    for path in tqdm(chosen, unit="picture", disable=None):
        own = rng.sample(of_picture[path], TURNS)
        for start in range(TURNS):
            conversation = Conversation(model, tokenizer, [path], {"max_new_tokens": 60})
            size = conversation.pictures[0].size
            for turn, sample in enumerate(own[start:] + own[:start]):
                [(question, _)] = write_turns(sample, EVAL_PROMPTS[sample.task][0], size,
                                              model.config.prompt)
                answer = "".join(conversation.ask(question))
                right[turn] += is_right(sample, answer, size)
    for turn, share in enumerate(right / len(chosen) / TURNS, 1):
        print(f"turn {turn}: {100 * share:.1f} of {len(chosen) * TURNS} answers")


if __name__ == "__main__":
    main()
