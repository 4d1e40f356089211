"""--explain and /explain tell of the answer that was given, with the tokens that were generated."""
import dataclasses
import json

import pytest
import torch
from PIL import Image

import chat
import tiny
from conversations import handle_line, make_conversation, make_session, run_chat, script_answer
from data import encode_conversation
from support.common import UserError
from support.explain.attention import without_lora
from support.explain.command import (
    compare_lora,
    explain_answer,
    explanation_to_json,
    first_difference,
    last_turn,
)
from support.terminal.each import check_flags

QUESTION = "[vqa] is there a road ?"


def prompt_ids(conversation, turns):
    return encode_conversation(conversation.tokenizer, turns, tiny.N)[0]


# ---- the turn ------------------------------------------------------------------------------------

def test_the_turn_is_the_prompt_and_the_tokens_that_were_generated(folder, picture):
    conversation = make_conversation(folder, [picture])
    "".join(conversation.ask(QUESTION))
    ids, tokens = last_turn(conversation)
    assert ids == prompt_ids(conversation, [(QUESTION, None)])
    images = conversation.encode_images()
    assert tokens == list(conversation.model.generate(torch.tensor(ids), images, 5))


def test_an_answer_that_the_model_ended_ends_in_the_end_token(folder, picture):
    conversation = make_conversation(folder, [picture], 20)
    script_answer(conversation, "a green ship")
    list(conversation.ask(QUESTION))
    conversation.constraints[-1].ended = True
    _, tokens = last_turn(conversation)
    assert tokens == [*conversation.tokenizer.encode("a green ship"), 2]


def test_later_turns_have_those_before_them_in_their_prompt(folder, picture):
    conversation = make_conversation(folder, [picture])
    for question in (QUESTION, "many planes ?"):
        list(conversation.ask(question))
    ids, tokens = last_turn(conversation)
    assert ids == prompt_ids(conversation, [conversation.turns[0], ("many planes ?", None)])
    assert conversation.cached_ids == [*ids, *tokens]
    conversation.undo()                         # the cache still holds the turn after it
    ids, tokens = last_turn(conversation)
    assert ids == prompt_ids(conversation, [(QUESTION, None)])
    assert conversation.tokenizer.decode(tokens) == conversation.turns[0][1]


def test_where_nothing_was_asked_there_is_nothing_to_explain(folder, picture):
    assert "nothing has been asked" in tiny.refusal(
        UserError, explain_answer, make_conversation(folder, [picture]))


def test_an_answer_without_a_picture_is_explained_without_a_sheet(folder, tmp_path):
    conversation = make_conversation(folder, [])
    list(conversation.ask("hello"))
    found, told = explain_answer(conversation)
    assert found.steps[0].name.endswith("embed_tokens") and not told
    assert "there is no sheet" in tiny.refusal(UserError, explain_answer, conversation,
                                               tmp_path / "a.png")


def test_to_explain_changes_nothing_in_the_conversation(folder, picture):
    one, other = (make_conversation(folder, [picture], sampling={"temperature": 30.0}.items())
                  for _ in range(2))
    for conversation in (one, other):
        conversation.sampling["generator"] = torch.Generator().manual_seed(3)
        for question in ("tell me about the road", "and the planes"):
            list(conversation.ask(question))
        if conversation is one:
            explain_answer(conversation, lora=False)
        list(conversation.ask("and the river"))
    assert one.turns == other.turns and one.cached_ids == other.cached_ids


# ---- LoRA on and off -----------------------------------------------------------------------------

@pytest.mark.parametrize("size, later", [(1, False), (0.02, True)])
def test_the_answer_without_the_lora_is_that_of_the_base_model(folder, picture, size, later):
    """A small LoRA changes a later token first."""
    conversation = make_conversation(folder, [picture], 20)
    for name, p in conversation.model.named_parameters():
        if "lora_B" in name:
            p.data.mul_(size)
    list(conversation.ask(QUESTION))
    found, _ = explain_answer(conversation, lora=False)
    change = found.change
    with without_lora(conversation.model):
        base = conversation.about([picture])
        assert change.answer == "".join(base.ask(QUESTION))
    _, tokens = last_turn(conversation)
    _, base_tokens = last_turn(base)
    place = first_difference(tokens, base_tokens)
    assert not change.same and change.place == place is not None and bool(place) == later
    depth = conversation.model.config.llama.depth
    assert len(change.differences) == len(change.said) == depth
    assert min(change.differences) > 0 and change.said[-1] == tuple(
        conversation.tokenizer.model.id_to_piece(ids[place]) for ids in (tokens, base_tokens))
    shown = explanation_to_json(conversation.tokenizer, found)["without_lora"]
    assert shown["token"] == place and len(shown["layers"]) == depth


def test_a_fresh_lora_changes_nothing(folder, picture):
    conversation = make_conversation(folder, [picture])
    for name, p in conversation.model.named_parameters():
        if "lora_B" in name:
            p.data.zero_()
    list(conversation.ask(QUESTION))
    found, _ = explain_answer(conversation, lora=False)
    assert found.change.same and max(found.change.differences) == 0
    assert found.change.answer == conversation.turns[-1][1]


def test_a_model_without_a_lora_is_refused(tmp_path, picture):
    folder = tiny.model_folder(tmp_path / "plain", dataclasses.replace(tiny.SKYEYE, lora=None))
    conversation = make_conversation(folder, [picture])
    list(conversation.ask(QUESTION))
    reading = explain_answer(conversation)[0].reading
    assert "the model has no LoRA" in tiny.refusal(UserError, compare_lora, conversation, reading)


# ---- in a session and on the command line --------------------------------------------------------

def test_the_command_prints_the_walk_and_draws_the_sheet(folder, picture, tmp_path, capsys):
    session = make_session(folder, picture)
    handle_line(session, QUESTION)
    capsys.readouterr()
    sheet = tmp_path / "sheet.png"
    handle_line(session, f"/explain '{sheet}' --no-lora")
    out, err = capsys.readouterr()
    for text in ("the prompt, ", f"{tiny.N} x image", "in all ", "the answer, token by token",
                 "without the LoRA", "layer  difference"):
        assert text in out
    assert f"saved {sheet}" in err and Image.open(sheet).width > 300
    assert "exists; --overwrite" in tiny.refusal(UserError, handle_line, session,
                                                 f"/explain {sheet}")
    handle_line(session, f"/explain {sheet} --overwrite")
    assert "a picture of the conversation" in tiny.refusal(
        UserError, handle_line, session, f"/explain '{picture}' --overwrite")


def test_each_answer_of_a_script_is_explained_on_its_own_line_of_json(folder, picture, tmp_path):
    done = run_chat(picture, "--model", folder, "--max_new_tokens", 4, "--json", "--explain",
                    tmp_path / "s.png", "--prompt", QUESTION, "--prompt", "[caption] what is it",
                    "--no_lora")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 2
    for line in lines:
        found = line["explanation"]
        assert {"steps", "prompt", "tokens", "without_lora"} <= set(found)
        assert found["steps"][0]["name"] == "picture" and found["steps"][0]["shape"][1] == 3
    assert {path.name for path in tmp_path.glob("s*.png")} == {"s.png", "s_2.png"}


def test_flags_that_do_not_go_together_are_refused(folder, picture, tmp_path):
    for flags in (["--explain"], ["--no-lora"]):
        assert "leave out --each" in tiny.refusal(UserError, check_flags, chat.parse_args(
            [str(picture), "--each", *flags]))
    with pytest.raises(UserError, match="a picture of the conversation"):
        make_session(folder, picture, explain=picture)
    with pytest.raises(UserError, match="a picture is written as .png"):
        make_session(folder, picture, explain=str(tmp_path / "a.txt"))
    with pytest.raises(UserError, match="exists; --overwrite"):
        make_session(folder, explain=picture)
