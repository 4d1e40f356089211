"""Answers are printed with their boxes, pictures previewed and saved, no file is overwritten."""
import json
from pathlib import Path

import pytest
from PIL import Image

import chat
import tiny
from chat import print_answer
from conversations import handle_line, make_conversation, make_session, script_answer
from data import load_images
from support.common import UserError
from support.images.draw import unused_name
from support.terminal.answers import LEFT_OUT
from support.terminal.display import (
    half_blocks,
    print_json_answer,
    print_json_error,
    save_beside,
    save_boxes,
    save_conversation,
    supports_color,
)
from support.terminal.questions import Detection, confidences, find_detections
from support.terminal.session import Session

NANO = tiny.ROOT / "weights" / "nano"
FOREST = tiny.ROOT / "examples" / "forest.png"


# ---- answers -------------------------------------------------------------------------------------

def test_the_answer_is_followed_by_each_box_and_its_confidence_which_is_saved(capsys, tmp_path):
    (tmp_path / "forest.png").write_bytes(FOREST.read_bytes())
    conversation = make_conversation(NANO, [tmp_path / "forest.png"], 60)
    session = Session(conversation)
    for question in ("[caption] briefly describe the image",
                     "[refer] where is the house with a blue roof ?"):
        print_answer(session, question)
    (score,) = confidences(conversation.constraints[1].texts, conversation.constraints[1].log_probs)
    assert 0 < score < 1 and capsys.readouterr().out.rstrip().endswith(f" pixels ({score:.2f})")
    conversation.save(tmp_path / "talk.json")
    (row,) = json.loads((tmp_path / "talk.json").read_text())
    saved = [turn.get("confidence") for turn in row["conversations"]]
    assert saved == [None] * 3 + [[round(score, 4)]]


@pytest.mark.parametrize("interactive", [True, False])
def test_boxes_are_drawn_beside_each_picture_when_asked_and_only_then(interactive, folder, picture,
                                                                      tmp_path, capsys):
    other = tiny.picture(tmp_path / "b.png", 20, 30)
    session = make_session(folder, picture, other, max_new_tokens=90, interactive=interactive)
    script_answer(session.conversation, "{<10><10><60><60>} picture 2 {<20><20><90><90>}")
    handle_line(session, "[refer] a ship")
    handle_line(session, "/again")
    shown = capsys.readouterr()
    assert f"pixels of {other}" in shown.out
    assert shown.err.count("/save draws the boxes") == interactive          # told once
    assert {file.name for file in tmp_path.glob("*.*")} == {"a picture.png", "b.png"}
    for _ in range(2):
        handle_line(session, "/save")
    for name, size in (("a picture", (61, 47)), ("b", (20, 30))):
        assert Image.open(tmp_path / f"{name}_boxes.png").size == size
        assert (tmp_path / f"{name}_boxes_2.png").exists()
    assert f"saved {tmp_path / 'b_boxes_2.png'}\n" in capsys.readouterr().err
    handle_line(session, f"/save {tmp_path / 'one.png'}")
    told = capsys.readouterr().err
    assert told == f"saved {tmp_path / 'one.png'}; 1 more with boxes: /save alone writes each\n"


def test_a_person_is_shown_no_tags_and_told_when_they_were_broken(folder, picture, capsys):
    session = make_session(folder, picture, max_new_tokens=60)
    script_answer(session.conversation, "<p>a ship</p> {<1><1><6><6>} yes")
    handle_line(session, "[refer] a ship")
    shown = capsys.readouterr()
    assert shown.out.startswith("a ship {<1><1><6><6>} yes\n") and shown.err == ""
    script_answer(session.conversation, "yes</p> <38> no")
    handle_line(session, "[refer] a ship")
    shown = capsys.readouterr()
    assert shown.out == "yes no\n" and shown.err == f"{LEFT_OUT}\n"
    assert session.conversation.turns[-1][1] == "yes</p> <38> no"


def test_with_previews_boxes_have_their_color_and_stand_below_their_picture(folder, picture,
                                                                            capsys):
    session = make_session(folder, picture, max_new_tokens=60, preview=True)
    script_answer(session.conversation, "{<10><10><60><60>}<delim>{<20><20><90><90>}")
    handle_line(session, "[detection] ships")
    answer, *drawn, first, second = capsys.readouterr().out.splitlines()
    assert answer.startswith("{<10>") and len(drawn) > 1 and all("▀" in line for line in drawn)
    assert first.startswith("  \x1b[38;2;255;59;48m■\x1b[0m box: x 6 to ")
    assert second.startswith("  \x1b[38;2;255;204;0m■\x1b[0m box: x 13 to ")


def test_ctrl_c_stops_the_answer_at_a_terminal_and_the_program_elsewhere(folder, picture, capsys):
    for interactive in (True, False):
        session = make_session(folder, picture, interactive=interactive)
        conversation = session.conversation
        conversation.model.generate = stopped(conversation.tokenizer.encode("a ship"))
        if interactive:
            print_answer(session, "what ?")
            assert capsys.readouterr().out == "a ship (stopped)\n"
        else:
            with pytest.raises(KeyboardInterrupt):
                print_answer(session, "what ?")
        assert conversation.turns == [("what ?", "a ship")]


def stopped(tokens):
    """A generate that Ctrl-C stops after these tokens."""
    def generate(*_, **__):
        yield from tokens
        raise KeyboardInterrupt

    return generate


def test_json_lines_hold_the_answer_with_its_boxes_or_the_error(capsys):
    found = find_detections("[refer] a ship", "{<10><10><20><20>}", [(100, 100)], False,
                            [0.123456])
    print_json_answer("[refer] a ship", "<p>{<10><10><20><20>}", found, ["a.png"])
    print_json_error("[juggle] x", UserError("unknown task"))
    answer, error = map(json.loads, capsys.readouterr().out.splitlines())
    assert answer == {"question": "[refer] a ship", "answer": "<p>{<10><10><20><20>}",
                      "text": "{<10><10><20><20>}", "boxes": [
        {"phrase": "a ship", "pixels": [10.5, 10.5, 20.5, 20.5], "confidence": 0.1235,
         "picture": "a.png"}]}
    assert error == {"question": "[juggle] x", "error": "unknown task"}


# ---- previews ------------------------------------------------------------------------------------

def test_half_blocks_show_each_pixel_and_the_boxes_in_their_colors():
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    lines = half_blocks(image, (80, 80), [(30, 30, 79, 79)], 8, 99).split("\n")
    assert len(lines) == 4 and all(line.count("▀") == 8 for line in lines)
    assert lines[0].startswith("\x1b[38;2;1;2;3;48;2;1;2;3m▀") and lines[0].endswith("\x1b[0m")
    assert lines[1].split("▀")[3] == "\x1b[38;2;1;2;3;48;2;255;59;48m"     # row 3 is the box's top
    assert lines[1].split("▀")[2] == "\x1b[38;2;1;2;3;48;2;1;2;3m"
    wide = half_blocks(Image.new("RGB", (400, 100)), (400, 100), [], 20, 24).split("\n")
    assert len(wide) == 2 and wide[0].count("▀") == 20
    assert half_blocks(Image.new("RGB", (1, 4000)), (1, 4000), [], 20, 5).count("▀") == 5


def test_a_box_at_the_very_edge_is_still_drawn():
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    lines = half_blocks(image, (80, 80), [(80, 80, 80, 80)], 8, 99).split("\n")
    assert lines[3].split("▀")[7] == "\x1b[38;2;1;2;3;48;2;255;59;48m"


@pytest.mark.parametrize(("change", "shown"), [
    ({}, True), ({"COLORTERM": "24bit"}, True), ({"COLORTERM": "256"}, False),
    ({"TERM": "dumb"}, False), ({"LC_ALL": "C"}, False), ({"LC_ALL": "", "LANG": ""}, False),
])
def test_pictures_are_shown_only_where_the_terminal_announces_color(change, shown, monkeypatch):
    class Screen:
        encoding = "UTF-8"

        def isatty(self):
            return True

    environment = {"COLORTERM": "truecolor", "TERM": "xterm", "LC_ALL": "", "LANG": "de_DE.UTF-8"}
    monkeypatch.setattr("sys.stdout", Screen())
    assert supports_color(environment | change) is shown
    monkeypatch.setattr(Screen, "isatty", lambda _: False)
    assert not supports_color(environment)


# ---- files ---------------------------------------------------------------------------------------

def test_a_file_that_exists_is_never_written_over(picture):
    first = unused_name(picture)
    first.touch()
    assert first.name == "a picture_boxes.png"
    pictures, detections = load_images([picture]), [Detection("", (1, 1, 9, 9))]
    second = first.with_stem("a picture_boxes_2")
    assert save_beside([picture], pictures, detections) == [f"saved {second}"]
    (told,) = save_beside([picture], pictures, [])
    assert first.stat().st_size == 0 and "_3.png, without a box" in told
    with pytest.raises(UserError, match="there is no picture"):
        save_beside([], [], [])


def test_what_cannot_be_saved_is_an_error_and_leaves_no_file(picture, tmp_path):
    with pytest.raises(UserError, match="out.txt: a picture is written as .png"):
        save_boxes(tmp_path / "out.txt", load_images([picture]), [])
    with pytest.raises(UserError, match="there is no picture"):
        save_boxes(tmp_path / "out.png", [], [])
    for turns in ([], [("stopped", " ")]):
        with pytest.raises(UserError, match="no answer to save"):
            save_conversation(tmp_path / "talk.json", [picture], turns)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UserError, match=f"save it in {tmp_path} or above"):
        save_conversation(tmp_path / "elsewhere" / "talk.json", [picture], [("why ?", "a road")])
    assert [file.name for file in tmp_path.rglob("*.*")] == [Path(picture).name]


def test_pictures_are_named_from_the_folder_of_the_file(tmp_path):
    (tmp_path / "below").mkdir()
    save_conversation(tmp_path / "below" / ".." / "talk.json", [str(tmp_path / "below" / "a.png")],
                      [("why ?", "a road"), ("stopped", ""), ("and ?", "yes")], [[0.5], [], []])
    save_conversation(tmp_path / "text.json", [], [("why ?", "a road")])
    (row,) = json.loads((tmp_path / "talk.json").read_text())
    assert list(row) == ["image", "conversations"] and row["image"] == ["below/a.png"]
    assert row["conversations"] == [
        {"from": "human", "value": "why ?"},
        {"from": "gpt", "value": "a road", "confidence": [0.5]},
        {"from": "human", "value": "and ?"}, {"from": "gpt", "value": "yes"}]
    (row,) = json.loads((tmp_path / "text.json").read_text())
    assert list(row) == ["conversations"]


@pytest.mark.parametrize("name", ["red", "red.txt", "red.jsonl"])
def test_a_name_that_nothing_is_written_under_is_refused_before_the_model_is_read(
        name, tmp_path, monkeypatch):
    monkeypatch.setattr(chat, "prepare_streams", lambda: None)
    flags = ["--model", "nowhere", "--prompt", "a ship"]
    with pytest.raises(UserError, match="a conversation as .json"):
        chat.main([*flags, "--save", str(tmp_path / name)])
    for good in ("red.png", "red.json"):
        with pytest.raises(UserError, match="nowhere/config.json"):
            chat.main([*flags, "--save", str(tmp_path / good)])
