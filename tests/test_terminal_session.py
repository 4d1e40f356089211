"""Commands do what /help says, and a conversation that is resumed continues where it was left."""
import io
import os
from pathlib import Path

import pytest

import chat
import tiny
from conversations import handle_line, make_conversation, make_session, script_answer
from support.common import UserError
from support.terminal.session import (
    KEPT_CACHES,
    Session,
    expand_paths,
    piped_lines,
    run_command,
    split_arguments,
    typed_lines,
)

# ---- names of pictures ---------------------------------------------------------------------------

def test_patterns_name_pictures_in_natural_order(tmp_path, monkeypatch):
    for name in ("f10.png", "f2.png", "a b.png", "odd[1].png"):
        tiny.picture(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_paths(["f*.png", "a b.png"]) == ["f2.png", "f10.png", "a b.png"]
    assert expand_paths(["odd[1].png"]) == ["odd[1].png"]
    assert expand_paths(["~/f2.png"]) == [str(tmp_path / "f2.png")]
    with pytest.raises(UserError, match=r"g\*.png: no such picture"):
        expand_paths(["f2.png", "g*.png"])
    for name, why in (("https://a.org/b.png", "an address"), ("what is this?", "behind --prompt")):
        with pytest.raises(UserError, match=f"{why}"):
            expand_paths(["f2.png", name])


def test_a_file_that_is_typed_as_a_question_is_told_and_an_empty_question_is_none(folder, picture):
    session = make_session(folder, picture, interactive=True)
    for line in (picture, f"'{picture}'"):
        with pytest.raises(UserError, match="a file, no question; /image"):
            session.to_question(line)
    assert session.to_question(f"what is {picture}") == f"what is {picture}"
    assert make_session(folder, picture).to_question(picture) == picture        # of a script
    with pytest.raises(UserError, match="empty"):
        session.to_question(" ")


def test_arguments_are_split_as_a_shell_does():
    assert split_arguments("'a b.png' a\\ b.png \"f2.png\"") == ["a b.png", "a b.png", "f2.png"]
    assert split_arguments("/image harbor's.png") == ["/image", "harbor's.png"]


# ---- commands ------------------------------------------------------------------------------------

def test_commands_switch_task_and_picture(folder, picture, tmp_path, capsys):
    session = make_session(folder, picture)
    handle_line(session, "/task refer")
    assert session.to_question("a ship") == "[refer] a ship"
    assert session.to_question("[vqa] why ?") == "[vqa] why ?"
    with pytest.raises(UserError, match="unknown task"):
        handle_line(session, "/task juggle")
    assert session.to_question("a ship") == "[refer] a ship"
    handle_line(session, "/task")
    assert session.to_question("a ship") == "a ship"
    other = tiny.picture(tmp_path / "b.png", 20, 30, seed=1)
    handle_line(session, f"/image {other}")
    assert session.conversation.paths == [other]
    handle_line(session, f"/image '{picture}' {other}")
    assert session.conversation.paths == [picture, other]
    handle_line(session, "/what")
    handle_line(session, "/help")
    handle_line(session, "/images")
    shown = capsys.readouterr().err
    assert "/what: unknown command" in shown and "/reset" in shown
    assert f"* 3  {picture} 61 x 47, {other} 20 x 30" in shown
    for command in ("/quit", "/exit"):
        with pytest.raises(EOFError):
            handle_line(session, command)


def test_a_plain_request_gets_its_task_where_that_is_wanted(folder, picture, capsys):
    for auto_task, asked in ((False, "find all ships"), (True, "[detection] ships")):
        session = make_session(folder, picture, auto_task=auto_task)
        assert session.to_question("find all ships") == asked
        assert session.to_question("[vqa] find all ships") == "[vqa] find all ships"
        assert ("([detection] ships)" in capsys.readouterr().err) == auto_task


def test_a_region_in_pixels_counts_in_the_first_picture(folder, picture, tmp_path):
    session = make_session(folder, picture, tiny.picture(tmp_path / "b.png", 20, 30))
    asked = session.to_question("[vqa] what is in 0 0 30 40 px")
    assert asked == "[vqa] what is in {<0><0><49><85>}"
    with pytest.raises(UserError, match="needs a picture"):
        make_session(folder).to_question("what is in 0 0 30 40 px")


def test_undo_and_again_leave_what_a_fresh_start_would_answer(folder, picture):
    session = make_session(folder, picture)
    for question in ("a road ?", "many planes ?", "a river ?"):
        handle_line(session, question)
    turns = list(session.conversation.turns)
    handle_line(session, "/again")
    assert session.conversation.turns == turns
    handle_line(session, "/undo")
    handle_line(session, "/undo")
    handle_line(session, "a river ?")
    fresh = make_session(folder, picture)
    handle_line(fresh, "a road ?")
    handle_line(fresh, "a river ?")
    assert session.conversation.turns == fresh.conversation.turns
    assert session.conversation.cached_ids == fresh.conversation.cached_ids
    handle_line(fresh, "/reset")
    with pytest.raises(UserError, match="nothing has been asked"):
        handle_line(fresh, "/again")


def test_save_takes_a_name_or_finds_one_beside_the_picture(folder, picture, tmp_path):
    session = make_session(folder, picture)
    handle_line(session, "a road ?")
    handle_line(session, "/save")
    handle_line(session, f"/save '{tmp_path / 'a talk.json'}'")
    assert (tmp_path / "a picture_boxes.png").exists() and (tmp_path / "a talk.json").exists()


# ---- several conversations -----------------------------------------------------------------------

def test_unknown_pictures_change_nothing(folder, picture):
    session = make_session(folder, picture)
    handle_line(session, "a road ?")
    for name in ("nowhere.png", "nowhere*.png"):
        with pytest.raises(UserError, match="no such picture"):
            handle_line(session, f"/image {name}")
    assert session.conversation.paths == [picture] and len(session.conversation.turns) == 1


def test_going_back_to_a_picture_computes_nothing_again(folder, tmp_path):
    paths = [tiny.picture(tmp_path / f"{i}.png", seed=i) for i in range(KEPT_CACHES + 1)]
    session, encoded, lengths = make_session(folder, paths[0]), [], []
    model = session.conversation.model
    model.visual_encoder.register_forward_pre_hook(lambda _, args: encoded.append(len(args[0])))
    handle_line(session, "is there a road in the harbor ?")
    for path in paths[1:KEPT_CACHES]:
        handle_line(session, f"/image {path}")
        handle_line(session, "a ship ?")
    model.llama_model.model.register_forward_pre_hook(
        lambda _, args: lengths.append(args[0].shape[1]))
    handle_line(session, "/image 1")
    conversation = session.conversation
    turns, known = list(conversation.turns), len(conversation.cached_ids)
    handle_line(session, "a ship ?")
    assert turns == conversation.turns[:1]
    assert sum(lengths) <= len(conversation.cached_ids) - known + 9
    # One too many: the cache of the conversation that was left first is released.
    handle_line(session, f"/image {paths[KEPT_CACHES]}")
    handle_line(session, "a ship ?")
    kept = [other.cache_bytes > 0 for other in session.conversations.values()]
    assert kept == [True, False, True, True]
    handle_line(session, "/image 2")
    handle_line(session, "a river ?")
    handle_line(session, f"/image {paths[0]} {paths[1]}")
    handle_line(session, "a river ?")
    assert encoded == [1] * (KEPT_CACHES + 1)           # each picture once in all


def test_a_picture_that_has_changed_on_disk_is_another_one(folder, tmp_path):
    session = make_session(folder, tiny.picture(tmp_path / "a.png", 20, 30))
    handle_line(session, "a ship ?")
    path = tiny.picture(tmp_path / "a.png", 30, 20, seed=1)
    os.utime(path, ns=(1, 1))
    handle_line(session, f"/image {path}")
    assert session.conversation.pictures[0].size == (30, 20) and session.conversation.turns == []


def test_at_a_terminal_the_pictures_are_named_and_two_of_them_shown(folder, picture, capsys):
    conversation = make_conversation(folder, [picture] * 3)
    Session(conversation, interactive=True, preview=True)
    shown = capsys.readouterr()
    assert shown.err == f"looking at 3 pictures of {picture} 61 x 47\n"
    lines = shown.out.splitlines()
    assert len(lines) % 2 == 0 and lines[:len(lines) // 2] == lines[len(lines) // 2:]
    assert all("▀" in line for line in lines)


# ---- lines ---------------------------------------------------------------------------------------

def test_typed_lines_end_with_ctrl_d_and_survive_ctrl_c(folder, monkeypatch, capsys):
    session, prompts = make_session(folder), []
    typed = iter([" a road ? ", "", KeyboardInterrupt, "a ship ?", EOFError])

    def type_line(prompt):
        prompts.append(prompt)
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", type_line)
    lines = typed_lines(session)
    assert next(lines) == "a road ?"
    handle_line(session, "/task refer")
    assert list(lines) == ["a ship ?"] and prompts == ["> "] + ["[refer] > "] * 4
    assert "Ctrl-D leaves" in capsys.readouterr().err


def test_quit_and_help_need_no_slash_where_they_are_the_whole_line(folder, monkeypatch):
    typed = iter(["Help", "exit", "quit ", "q", "help me find a ship", EOFError])

    def type_line(prompt):
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", type_line)
    lines = list(typed_lines(make_session(folder)))
    assert lines == ["/help", "/quit", "/quit", "/quit", "help me find a ship"]


def test_piped_lines_leave_out_empty_ones(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)                      # closed
    assert list(piped_lines()) == []
    monkeypatch.setattr("sys.stdin", io.StringIO(" a \n\nb\n"))
    assert list(piped_lines()) == ["a", "b"]


# ---- saving --------------------------------------------------------------------------------------

def test_a_file_that_exists_is_written_over_only_when_told_and_an_input_never(tmp_path):
    folder = tiny.model_folder(tmp_path / "model")
    picture = tiny.picture(tmp_path / "a.png", 61, 47)
    (tmp_path / "clip").mkdir()
    frame = tiny.picture(tmp_path / "clip/0.png", 61, 47)
    (tmp_path / "link.png").symlink_to(picture)
    before, kept = Path(picture).read_bytes(), tmp_path / "kept.json"
    kept.write_text("mine")
    session = make_session(folder, picture)
    script_answer(session.conversation, "yes")
    handle_line(session, "[VQA] is there a road ?")
    assert session.conversation.turns == [("[vqa] is there a road ?", "yes")]
    for name in (kept, picture):
        with pytest.raises(UserError):
            run_command(session, f"/save {name}")
    for name in (picture, tmp_path / "link.png"):
        with pytest.raises(UserError, match="a picture of the conversation"):
            run_command(session, f"/save {name} --overwrite")
    run_command(session, f"/image {tmp_path / 'clip'}")
    for name in (frame, picture):               # also one that was shown before
        with pytest.raises(UserError, match="a picture of the conversation"):
            run_command(session, f"/save {name} --overwrite")
    assert kept.read_text() == "mine" and Path(picture).read_bytes() == before
    run_command(session, "/image 1")
    run_command(session, f"/save {kept} --overwrite")
    assert "is there a road" in kept.read_text() and str(tmp_path) not in kept.read_text()


def test_save_is_refused_before_the_model_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(chat, "prepare_streams", lambda: None)
    picture = tiny.picture(tmp_path / "a.png", 61, 47)
    (tmp_path / "talk.json").write_text("mine")
    for name, more, why in ((picture, [], "a picture of the conversation"),
                            (picture, ["--overwrite"], "a picture of the conversation"),
                            (tmp_path / "talk.json", [], "exists; --overwrite")):
        with pytest.raises(UserError, match=why):
            chat.main([str(picture), "--model", "nowhere", "--prompt", "x", "--save", str(name),
                       *more])
    assert (tmp_path / "talk.json").read_text() == "mine"
