"""Boxes in answers: those that are begun can be read, and each has the model's own confidence."""
import json
import math
import random

import pytest
import torch

import tiny
from chat import Conversation
from data import Tokenizer, parse_boxes
from llama import sample
from projector import SkyEyeGPT
from support.inference.generation import (
    BoxConstraint,
    BoxGrammar,
    mask_logits,
    observe_tokens,
    unfinished_box,
)
from support.terminal.display import stream_answer

NANO = tiny.ROOT / "weights" / "nano"
FOREST = tiny.ROOT / "examples" / "forest.png"
LLAMA = tiny.DATA / "fixtures" / "llama" / "tokenizer.model"
FILES = [NANO / "tokenizer.model", pytest.param(LLAMA, marks=pytest.mark.skipif(
    not LLAMA.is_file(), reason="LLaMA's tokenizer is not here"))]
WHERE = "[refer] where is the house with a blue roof ?"


def grammar_of(tokenizer):
    return BoxGrammar([tokenizer.model.id_to_piece(i) for i in range(len(tokenizer))])


@pytest.fixture(scope="module", params=FILES, ids=["nano", "llama"])
def tongue(request):
    tokenizer = Tokenizer(request.param)
    return tokenizer, grammar_of(tokenizer)


def babble(grammar, free, seed, tokens=100):
    """What a model says that says anything, and often begins a box or ends -> ids, its guide."""
    guide, ids, generator = BoxConstraint(grammar, free), [], torch.Generator().manual_seed(seed)
    seen = torch.zeros(1, len(grammar.texts), dtype=torch.bool)
    while len(ids) < tokens and 2 not in ids:
        logits = torch.randn(seen.shape, generator=generator)
        logits[:, grammar.opening] += 2.5
        logits[:, 2] += 2
        token = sample(mask_logits(logits, [guide]), seen)
        observe_tokens([guide], token, logits)
        ids.append(token.item())
    return ids, guide


def test_every_box_that_is_begun_can_be_read_whatever_a_model_says(tongue):
    tokenizer, grammar = tongue
    whole = broken = cut = 0
    for seed in range(20):
        ids, guide = babble(grammar, False, seed)
        text = tokenizer.decode(ids)
        found = len(parse_boxes(text, 640, 480))
        assert found == text.count("{") - bool(guide.begun) == len(guide.confidences())
        assert text.endswith(guide.begun) and not (guide.begun and guide.ended)
        whole, cut = whole + found, cut + bool(guide.begun)
        ids, guide = babble(grammar, True, seed)
        text = tokenizer.decode(ids)
        broken += text.count("{") - len(parse_boxes(text, 640, 480))
    assert whole > 15 and cut and broken > 100


def some_box(rng):
    numbers = [rng.choice((0, 1, 9, 10, 99, 100, rng.randint(0, 100))) for _ in "1234"]
    turn = rng.choice(("", "", f"|<{rng.randint(-180, 180)}>"))
    return "{<" + "><".join(map(str, numbers)) + ">" + turn + "}"


def test_no_piece_of_a_well_formed_answer_is_ever_barred(tongue):
    tokenizer, grammar = tongue
    rng = random.Random(0)
    for _ in range(400):
        text = rng.choice(("", "it is ", "<p>two ships</p> ", "über 1 < 2 | \n")) + "<delim>".join(
            some_box(rng) for _ in range(rng.randint(1, 3))) + rng.choice(("", ".", ", <p>a</p>"))
        guide = BoxConstraint(grammar)
        for token in [*tokenizer.encode(text), 2]:
            assert guide.allowed()[token], (text, guide.begun, grammar.texts[token])
            guide.said(token, 0.0)
        assert len(guide.confidences()) == text.count("{") and guide.ended


@pytest.mark.parametrize("text", ["{ ", "{}", "{<}", "{<01", "{<00", "{<101", "{<1000", "{<-1",
                                  "{<1,", "{<1>}", "{<1> ", "{<1><2><3><4><", "{<1><2><3><4>|}",
                                  "{{", "{<1><2><3><4>|<0>|", "{<1><2><3><4>}{x", "a {b}", "{<٣>"])
def test_what_no_box_begins_with_is_seen(text):
    assert unfinished_box(text) is None
    assert unfinished_box("1 < 2, " + text) is None
    assert not parse_boxes("{<٣><1><2><3>}", 640, 480)


def test_every_beginning_of_a_box_is_one():
    rng = random.Random(1)
    for _ in range(300):
        box = some_box(rng)
        for cut in range(1, len(box)):
            assert unfinished_box("<p>{<0><1><2><3>}</p> " + box[:cut]) == box[:cut]
        assert unfinished_box(box) == unfinished_box(box + "}> ") == ""


def test_a_vocabulary_that_can_finish_no_box_is_not_held():
    grammar = BoxGrammar(["<unk>", "<s>", "</s>", "▁{", "<", "a"])
    assert grammar.allowed("{").tolist() == [False] * 4 + [True, False]
    assert grammar.allowed("{<").all()


@pytest.fixture(scope="module")
def talker():
    """A random model that likes to begin boxes and to stop, its tokenizer and its grammar."""
    model, tokenizer = tiny.skyeye(), tiny.tokenizer()
    grammar, liked = grammar_of(tokenizer), torch.zeros(tiny.VOCAB)
    liked[grammar.opening], liked[2] = 5.0, 3.0
    model.llama_model.lm_head.register_forward_hook(lambda _, args, out: out + liked)
    return model, tokenizer, grammar


def prompts(tokenizer):
    return [torch.tensor(tokenizer.encode(text)) for text in
            ("a road ?", "many planes and a river", "[refer] where is the leftmost airplane ?",
             "yes", "a green ship in a harbor", "white cars")]


def spoken(talker, guides, **sampling):
    model, tokenizer, _ = talker
    return model.answer([prompts(tokenizer)], None, 0, 60, guides=guides, **sampling)


def test_a_confidence_is_the_geometric_mean_of_the_models_own_probabilities(talker):
    model, tokenizer, grammar = talker
    guides, checked = [BoxConstraint(grammar) for _ in range(6)], 0
    answers = spoken(talker, guides, temperature=1.5, generator=torch.Generator().manual_seed(0))
    for prompt, answer, guide in zip(prompts(tokenizer), answers, guides, strict=True):
        ids = torch.cat([prompt, torch.tensor(answer, dtype=torch.long)])
        with torch.no_grad():
            own = model(ids[None])[0, len(prompt) - 1:-1].softmax(-1)
        own = own[range(len(answer)), answer].tolist()
        expected, box = [], []
        for token, probability in zip(answer, own, strict=True):
            if box or "{" in grammar.texts[token]:
                box.append(probability)
            if box and "}" in grammar.texts[token]:
                expected.append(math.prod(box) ** (1 / len(box)))
                box = []
        assert guide.confidences() == pytest.approx(expected, rel=1e-3)
        checked += len(expected)
    assert checked > 3 and len({len(answer) for answer in answers}) > 2


def test_guided_rows_of_a_batch_say_what_each_says_alone(talker):
    model, tokenizer, grammar = talker
    guides = [BoxConstraint(grammar) for _ in range(6)]
    answers = spoken(talker, guides)
    assert any("{" in text for guide in guides for text in guide.texts)
    for prompt, answer, guide in zip(prompts(tokenizer), answers, guides, strict=True):
        alone = BoxConstraint(grammar)
        assert list(model.generate(prompt, None, 60, guides=[alone])) == answer
        assert alone.confidences() == pytest.approx(guide.confidences(), rel=1e-3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_free_guide_changes_nothing(talker, temperature):
    def said(guides):
        return spoken(talker, guides, temperature=temperature,
                      generator=torch.Generator().manual_seed(3))

    bare, free = said(None), said([BoxConstraint(talker[2], free=True) for _ in range(6)])
    assert bare == free != said([BoxConstraint(talker[2]) for _ in range(6)])


def nano(tokens=60, picture=FOREST, **more):
    model = SkyEyeGPT.from_pretrained(NANO)
    return Conversation(model, Tokenizer(NANO / "tokenizer.model"),
                        [str(picture)], {"max_new_tokens": tokens}, **more)


def test_a_well_formed_greedy_answer_is_the_same_when_it_is_kept_well_formed():
    kept, free = nano(), nano(free=True)
    for question in (WHERE, "[detection] tree", "[caption] briefly describe the image", "a { b"):
        for talk in (kept, free):
            talk.reset()
        assert "".join(kept.ask(question)) == "".join(free.ask(question))
        assert [guide.free for guide in kept.guides] == [question[:4] not in ("[ref", "[det")]
        assert len(kept.boxes()) == len(kept.guides[0].confidences())


def test_the_conversation_shows_each_boxs_confidence_and_saves_it(capsys, tmp_path):
    (tmp_path / "forest.png").write_bytes(FOREST.read_bytes())
    talk = nano(picture=tmp_path / "forest.png")
    for question in ("[caption] briefly describe the image", WHERE):
        stream_answer(talk, question, live=False, as_json=False, preview=False)
    (sure,) = talk.guides[1].confidences()
    assert 0 < sure < 1 and capsys.readouterr().out.rstrip().endswith(f" pixels ({sure:.2f})")
    talk.save(tmp_path / "talk.json")
    (row,) = json.loads((tmp_path / "talk.json").read_text())
    assert [turn.get("confidence") for turn in row["conversations"]] == [None] * 3 + [[sure]]


def test_a_box_cut_off_by_the_limit_has_no_confidence():
    talk = nano(tokens=3)
    list(talk.ask(WHERE))
    assert talk.guides[0].begun and talk.boxes() == talk.guides[0].confidences() == []
