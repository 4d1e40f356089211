"""What the README says is so."""
import json
import re

import pytest
import torch

import chat
import eval as evaluation
import tiny
import train
from chat import Conversation
from data import Tokenizer
from projector import PRESETS, SkyEyeGPT
from support.metrics.boxes import iou
from support.tools.check_data import parse_args as parse_data_args
from support.tools.convert import parse_args

README = (tiny.ROOT / "README.md").read_text(encoding="utf-8")
NANO = tiny.ROOT / "weights" / "nano"
CARD = (NANO / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted({line.removeprefix("$ ") for line in (README + CARD).splitlines()
                   if re.match(r"(\$ )?(python|torchrun) .*\.py", line)})


def test_every_link_leads_to_a_file():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 10
    assert [link for link in links if "://" not in link and not (tiny.ROOT / link).exists()] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_script_that_knows_its_flags(command, capsys):
    script = re.search(r"(\S+)\.py", command)[1]
    assert (tiny.ROOT / f"{script}.py").exists()
    given = re.findall(r"(--\w+)", command.split(".py", 1)[1])
    parse = {"train": train.parse_args, "chat": chat.parse_args, "eval": evaluation.parse_args,
             "projector": parse_args, "data": parse_data_args}
    if script in parse:
        with pytest.raises(SystemExit):
            parse[script](["--help"])
        known = capsys.readouterr().out
        assert all(flag in known for flag in given)


def test_the_parameter_counts_are_those_of_the_presets():
    with torch.device("meta"):
        nano = SkyEyeGPT(PRESETS["nano"])
    assert f"{sum(p.numel() for p in nano.parameters()):,}" in README


def test_the_file_map_names_every_module():
    for path in tiny.ROOT.glob("*.py"):
        assert f"[{path.name}]({path.name})" in README


@pytest.fixture(scope="module")
def nano():
    return SkyEyeGPT.from_pretrained(NANO), Tokenizer(NANO / "tokenizer.model")


def test_the_shipped_weights_are_small_and_fit_their_tokenizer(nano):
    model, tokenizer = nano
    size = sum(path.stat().st_size for path in NANO.iterdir())
    assert size < 25e6 and sum(p.numel() for p in model.parameters()) <= 12e6
    assert len(tokenizer) == model.config.llama.vocab_size


def test_the_shipped_model_says_what_the_readme_shows(nano):
    picture = tiny.ROOT / "examples" / "parking.png"
    truth = json.loads(picture.with_suffix(".json").read_text())
    talk = Conversation(*nano, [str(picture)], {"max_new_tokens": 60})
    assert "".join(talk.ask("[caption] briefly describe the image")) in README
    assert "".join(talk.ask("[vqa] what is the theme of this picture ?")) == truth["class"]


def test_the_box_that_the_readme_draws_lies_on_what_was_asked_for(nano):
    name, expression = re.search(r'chat.py (\S+).* --prompt "\[refer\] where is (.+) \?" --save',
                                 README).groups()
    truth = json.loads((tiny.ROOT / name).with_suffix(".json").read_text())
    box = {row["expression"]: row["bbox"] for row in truth["refer"]}[expression]
    talk = Conversation(*nano, [str(tiny.ROOT / name)], {"max_new_tokens": 60})
    assert "".join(talk.ask(f"[refer] where is {expression} ?")) in README
    [(phrase, found)] = talk.boxes()
    assert phrase == expression and iou(found, box) > 0.5
