"""One's own data: the command of docs/train.md learns ten pictures by heart with its defaults."""
import json
import random
import re
import shlex

import torch
from PIL import Image, ImageDraw

import tiny
import train
from data import Tokenizer, encode_conversation, load_image, preprocess
from projector import SkyEyeGPT

QUESTION = "what is it?"
ANSWERS = ("a red hut at the lake", "two white tents on a meadow", "the black roof of our school",
           "a yellow truck beside the old mill", "five blue boats tied to a pier",
           "a square garden with a fence", "our house, seen from the north",
           "a round pond and one tree", "the bridge that was closed in May",
           "a field after the harvest of 2021")


def draw(rng: random.Random) -> Image.Image:
    """Four shapes on a ground, all of any color."""
    def color():
        return tuple(rng.randrange(256) for _ in range(3))

    image = Image.new("RGB", (260, 200), color())
    pen = ImageDraw.Draw(image)
    for shape in (pen.rectangle, pen.ellipse) * 2:
        x, y = rng.randrange(200), rng.randrange(140)
        shape((x, y, x + rng.randrange(20, 60), y + rng.randrange(20, 60)), fill=color())
    return image


def documented_command() -> list[str]:
    """The arguments of the first command on one's own data in docs/train.md."""
    page = (tiny.ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^python train.py (.* --data mine.json --output_dir out/mine)$",
                            page, re.MULTILINE)[:1]
    return shlex.split(command)


def test_the_documented_fine_tuning_learns_ten_pictures_word_for_word(tmp_path, monkeypatch,
                                                                      capsys):
    """At least nine of ten answers. 40 seconds of one core."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(tiny.ROOT / "weights")
    rng, rows = random.Random(7), []
    for number, answer in enumerate(ANSWERS):
        draw(rng).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "conversations": [
            {"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": answer}]})
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    assert train.train(train.parse_args([*documented_command(), "--device", "cpu"])) == 0
    told = capsys.readouterr().err
    model = SkyEyeGPT.from_pretrained("out/mine")
    tokenizer = Tokenizer("out/mine/tokenizer.model", model.config.llama.vocab_size)
    ids, _, _ = encode_conversation(tokenizer, [(QUESTION, None)], model.config.visual_tokens)
    found = []
    for number in range(len(ANSWERS)):
        image = preprocess(load_image(f"{number}.png"), model.config.vit.image_size)[None]
        found.append(tokenizer.decode(model.generate(torch.tensor(ids), image)))
    right = sum(a == b for a, b in zip(found, ANSWERS, strict=True))
    assert right >= 9, found
    assert re.search(r"learned: loss \S+ -> 0\.\d+; of \d+ answers to training rows \d+ are right",
                     told)
