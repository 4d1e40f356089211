"""A box that is begun can be read, and a constraint forbids nothing else."""
import random

import pytest
import torch

import tiny
from conversations import make_conversation
from data import Tokenizer, parse_boxes
from llama import sample
from support.inference.generation import (
    BoxConstraint,
    BoxGrammar,
    mask_logits,
    observe,
    unfinished_box,
)
from support.terminal.questions import confidences

NANO = tiny.ROOT / "weights" / "nano"
FOREST = tiny.ROOT / "examples" / "forest.png"
LLAMA = tiny.DATA / "fixtures" / "llama" / "tokenizer.model"
FILES = [NANO / "tokenizer.model", pytest.param(LLAMA, marks=pytest.mark.skipif(
    not LLAMA.is_file(), reason="LLaMA's tokenizer is not here"))]
WHERE = "[refer] where is the house with a blue roof ?"
EOS = 2


def grammar_of(tokenizer):
    return BoxGrammar([tokenizer.model.id_to_piece(i) for i in range(len(tokenizer))])


def scores_of(constraint):
    return confidences(constraint.texts, constraint.log_probs)


# ---- the grammar ---------------------------------------------------------------------------------

@pytest.fixture(scope="module", params=FILES, ids=["nano", "llama"])
def vocabulary(request):
    tokenizer = Tokenizer(request.param)
    return tokenizer, grammar_of(tokenizer)


def random_answer(grammar, enabled, seed, max_tokens=100):
    """Sampled from random logits that favor beginning a box and ending -> ids, the constraint."""
    constraint, ids = BoxConstraint(grammar, enabled), []
    generator = torch.Generator().manual_seed(seed)
    generated = torch.zeros(1, len(grammar.texts), dtype=torch.bool)
    while len(ids) < max_tokens and EOS not in ids:
        logits = torch.randn(generated.shape, generator=generator)
        logits[:, grammar.opening] += 2.5
        logits[:, EOS] += 2
        token = sample(mask_logits(logits, [constraint]), generated)
        observe([constraint], token, logits)
        ids.append(token.item())
    return ids, constraint


def test_every_box_that_is_begun_can_be_read_whatever_the_logits(vocabulary):
    tokenizer, grammar = vocabulary
    complete = broken = cut_off = 0
    for seed in range(20):
        ids, constraint = random_answer(grammar, True, seed)
        text, unfinished = tokenizer.decode(ids), constraint.open_text
        found = len(parse_boxes(text, 640, 480))
        assert found == text.count("{") - bool(unfinished) == len(scores_of(constraint))
        assert text.endswith(unfinished) and not (unfinished and constraint.ended)
        complete, cut_off = complete + found, cut_off + bool(unfinished)
        ids, _ = random_answer(grammar, False, seed)
        text = tokenizer.decode(ids)
        broken += text.count("{") - len(parse_boxes(text, 640, 480))
    assert complete > 15 and cut_off and broken > 100


def random_box(rng):
    numbers = [rng.choice((0, 1, 9, 10, 99, 100, rng.randint(0, 100))) for _ in range(4)]
    angle = rng.choice(("", "", f"|<{rng.randint(-180, 180)}>"))
    return "{<" + "><".join(map(str, numbers)) + ">" + angle + "}"


def test_no_token_of_a_well_formed_answer_is_ever_forbidden(vocabulary):
    tokenizer, grammar = vocabulary
    rng = random.Random(0)
    for _ in range(400):
        text = rng.choice(("", "it is ", "<p>two ships</p> ", "über 1 < 2 | \n")) + "<delim>".join(
            random_box(rng) for _ in range(rng.randint(1, 3))) + rng.choice(("", ".", ", <p>a</p>"))
        constraint = BoxConstraint(grammar)
        for token in [*tokenizer.encode(text), EOS]:
            assert constraint.allowed()[token], (text, constraint.open_text, grammar.texts[token])
            constraint.observe(token, 0.0)
        assert len(scores_of(constraint)) == text.count("{") and constraint.ended


@pytest.mark.parametrize("text", ["{ ", "{}", "{<}", "{<01", "{<00", "{<101", "{<1000", "{<-1",
                                  "{<1,", "{<1>}", "{<1> ", "{<1><2><3><4><", "{<1><2><3><4>|}",
                                  "{{", "{<1><2><3><4>|<0>|", "{<1><2><3><4>}{x", "a {b}", "{<٣>"])
def test_what_no_box_begins_with_is_recognized(text):
    assert unfinished_box(text) is None
    assert unfinished_box("1 < 2, " + text) is None
    assert not parse_boxes("{<٣><1><2><3>}", 640, 480)


def test_every_beginning_of_a_box_is_one():
    rng = random.Random(1)
    for _ in range(300):
        box = random_box(rng)
        for cut in range(1, len(box)):
            assert unfinished_box("<p>{<0><1><2><3>}</p> " + box[:cut]) == box[:cut]
        assert unfinished_box(box) == unfinished_box(box + "}> ") == ""


def test_a_vocabulary_that_can_finish_no_box_is_not_constrained():
    grammar = BoxGrammar(["<unk>", "<s>", "</s>", "▁{", "<", "a"])
    assert grammar.allowed("{").tolist() == [False] * 4 + [True, False]
    assert grammar.allowed("{<").all()


# ---- constrained generation ----------------------------------------------------------------------

@pytest.fixture(scope="module")
def box_lover():
    """A random model that favors beginning boxes and ending, its tokenizer and its grammar."""
    model, tokenizer = tiny.skyeye(), tiny.tokenizer()
    grammar, preferred = grammar_of(tokenizer), torch.zeros(tiny.VOCAB)
    preferred[grammar.opening], preferred[EOS] = 5.0, 3.0
    model.llama_model.lm_head.register_forward_hook(lambda _, args, out: out + preferred)
    return model, tokenizer, grammar


def prompts(tokenizer):
    return [torch.tensor(tokenizer.encode(text)) for text in
            ("a road ?", "many planes and a river", "[refer] where is the leftmost airplane ?",
             "yes", "a green ship in a harbor", "white cars")]


def batch_answers(box_lover, constraints, **sampling):
    model, tokenizer, _ = box_lover
    return model.answer_batch([prompts(tokenizer)], None, 0, 60, constraints=constraints,
                              **sampling)


def test_constrained_rows_of_a_batch_give_what_each_gives_alone(box_lover):
    model, tokenizer, grammar = box_lover
    constraints = [BoxConstraint(grammar) for _ in range(6)]
    answers = batch_answers(box_lover, constraints)
    assert any("{" in text for constraint in constraints for text in constraint.texts)
    for prompt, answer, constraint in zip(prompts(tokenizer), answers, constraints, strict=True):
        alone = BoxConstraint(grammar)
        assert list(model.generate(prompt, None, 60, constraints=[alone])) == answer
        assert scores_of(alone) == pytest.approx(scores_of(constraint), rel=1e-3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_constraint_that_is_not_enabled_changes_nothing(box_lover, temperature):
    def answers(constraints):
        return batch_answers(box_lover, constraints, temperature=temperature,
                             generator=torch.Generator().manual_seed(3))

    def constraints(enabled):
        return [BoxConstraint(box_lover[2], enabled) for _ in range(6)]

    assert answers(()) == answers(constraints(False)) != answers(constraints(True))


def test_a_greedy_answer_that_is_well_formed_anyway_stays_the_same():
    constrained = make_conversation(NANO, [FOREST], 60)
    free = make_conversation(NANO, [FOREST], 60, unconstrained=True)
    for question in (WHERE, "[detection] tree", "[caption] briefly describe the image", "a { b"):
        for conversation in (constrained, free):
            conversation.reset()
        assert "".join(constrained.ask(question)) == "".join(free.ask(question))
        assert [constraint.enabled for constraint in constrained.constraints] == [
            question[:4] in ("[ref", "[det")]
        assert len(constrained.boxes()) == len(scores_of(constrained.constraints[0]))


def test_a_box_cut_off_by_the_limit_has_no_confidence():
    conversation = make_conversation(NANO, [FOREST], 3)
    list(conversation.ask(WHERE))
    assert conversation.constraints[0].open_text
    assert conversation.boxes() == scores_of(conversation.constraints[0]) == []
