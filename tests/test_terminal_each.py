"""chat.py --each: a picture gets the answer it gets alone; one that is damaged stops no other."""
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import chat
import tiny
from conversations import make_conversation, run_chat
from data import Tokenizer
from projector import SkyEyeGPT
from support.common import UserError
from support.images.read import Picture
from support.inference.generation import BoxGrammar
from support.terminal.each import (
    answer_rows,
    batches_of,
    check_flags,
    picture_files,
    picture_notes,
    read_lines,
    read_rows,
)

QUESTIONS = ("[vqa] is there a road ?", "find all ships", "tell me about the river and the planes",
             "what is in 2 2 15 15 px")


@pytest.fixture
def folder(tmp_path):
    return tiny.model_folder(tmp_path / "model")


@pytest.fixture
def pictures(tmp_path):
    return [tiny.picture(tmp_path / "pictures" / f"{i}.png", 20 + i, 30, seed=i) for i in range(12)]


def ask(folder, paths, questions=QUESTIONS, **more):
    """-> the rows with their answers, asked as chat.py --each asks."""
    config = chat.parse_args(["--each"])
    model, tokenizer = SkyEyeGPT.from_pretrained(folder), Tokenizer(folder / "tokenizer.model")
    model.llama_model.lm_head.weight.data[2] *= 1.5             # some answers end before others
    grammar = BoxGrammar(tokenizer.model.id_to_piece(list(range(len(tokenizer)))))
    sampling = {"max_new_tokens": 30, "stop": 2, "temperature": 0.0, "top_p": 0.9, "top_k": 50,
                "repetition_penalty": None, "generator": torch.Generator().manual_seed(7)} | more
    rows, size = [], sampling.pop("size", 16)
    for batch in batches_of((read_rows(path, questions, tokenizer, model.config, config)
                             for path in paths), size):
        answer_rows(model, tokenizer, batch, sampling, size, grammar)
        rows += batch
    return rows, model, tokenizer, sampling


def alone(model, tokenizer, sampling, path, question):
    """-> the answer of a conversation that has just begun, and the confidences of its boxes."""
    sampling["generator"].manual_seed(7)
    conversation = chat.Conversation(model, tokenizer, [path], sampling)
    answer = "".join(conversation.ask(question))
    return answer, [found.confidence for found in conversation.detections()
                    if found.confidence is not None]


# ---- answers -------------------------------------------------------------------------------------

@pytest.mark.parametrize("temperature", [0.0, None])
def test_an_answer_of_a_batch_is_the_one_that_the_question_gets_alone(folder, pictures, tmp_path,
                                                                      temperature):
    (tmp_path / "clip").mkdir()
    frames = [Image.open(path).resize((20, 20)) for path in pictures[:3]]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:])
    paths = [*pictures, str(tmp_path / "clip.gif")]             # a clip has more visual tokens
    rows, *shared = ask(folder, paths, temperature=temperature)
    assert [(row.path, row.line) for row in rows] == [(p, q) for p in paths for q in QUESTIONS]
    assert rows[1].question == "[detection] ships" and "{<" in rows[3].question
    for row in rows:
        answer, scores = alone(*shared, row.path, row.question)
        assert row.answer == answer and row.scores == pytest.approx(scores, rel=1e-4)
    assert len({len(row.answer) for row in rows}) > 3 and len({row.answer for row in rows}) > 20


@pytest.mark.parametrize("size", [1, 5, 100])
def test_the_size_of_the_batches_changes_no_answer(folder, pictures, size):
    wanted = [row.answer for row in ask(folder, pictures)[0]]
    assert [row.answer for row in ask(folder, pictures, size=size)[0]] == wanted


def test_near_the_end_of_the_context_an_answer_is_cut_off_where_it_is_alone(folder, pictures):
    long = "is there a road in the harbor near the green ship " * 6
    questions = [f"[vqa] {long}", f"[vqa] {long} and a river", "[vqa] a road ?"]
    rows, *shared = ask(folder, pictures[:2], questions, max_new_tokens=200)
    limit = tiny.SKYEYE_LLAMA.max_positions
    assert limit - 200 < len(rows[0].ids) < len(rows[1].ids) < limit
    for row in rows:
        assert row.answer == alone(*shared, row.path, row.question)[0]


# ---- what is asked -------------------------------------------------------------------------------

def test_folders_and_patterns_are_their_pictures_in_natural_order(tmp_path, monkeypatch, capsys):
    for name in ("f10.png", "f2.png", "b.jpg", ".hidden.png"):
        tiny.picture(tmp_path / "a" / name)
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / "clip.mp4").write_text("x")
    (tmp_path / "a" / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    files = ["a/b.jpg", "a/clip.mp4", "a/f2.png", "a/f10.png"]
    assert picture_files(["a"]) == files
    assert capsys.readouterr().err == "a: left out, not named as pictures: notes.txt\n"
    assert picture_files(["a/f*.png", "a", "nowhere.png"]) == [*files[2:], *files, "nowhere.png"]
    for name, why in (("a/below", "no pictures in this folder"), ("g*.png", "no such picture")):
        with pytest.raises(UserError, match=why):
            picture_files([name])


def test_a_note_names_its_picture_and_a_folder_that_is_shown_as_a_clip(pictures):
    deep, plain = Picture(None, (20, 30), "stretched"), Picture(None, (20, 30), "")
    assert picture_notes(pictures[0], [plain], 16) == []
    assert picture_notes(pictures[0], [deep, deep], 16) == [f"{pictures[0]}: stretched"]
    clip = str(Path(pictures[0]).parent)
    told, note = picture_notes(clip, [plain, deep], 16)
    assert f"{clip}: " in told and "2 frames" in told and "--each" in told
    assert note == f"{clip}: stretched"


@pytest.mark.parametrize(("flags", "why"), [
    ("", "name pictures"), ("a --conversation", "leave out --conversation"),
    ("a --compile", "leave out --compile"), ("a --save x.png", "with --each it is a folder")])
def test_flags_that_do_not_fit_are_refused_before_the_model_is_read(flags, why, monkeypatch):
    monkeypatch.setattr(chat, "prepare_streams", lambda: None)
    with pytest.raises(UserError, match=why):
        chat.main(["--each", "--model", "nowhere", *flags.split()])
    check_flags(chat.parse_args("--each a --no-conversation --save boxes".split()))


def test_without_a_question_or_with_a_command_nothing_is_asked(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UserError, match="--prompt TEXT"):
        read_lines(chat.parse_args(["--each", "a"]))
    with pytest.raises(UserError, match="/undo: with --each"):
        read_lines(chat.parse_args(["--each", "a", "--prompt", " /undo"]))


# ---- the script ----------------------------------------------------------------------------------

def test_each_picture_has_a_line_and_one_that_cannot_be_read_stops_no_other(folder, pictures,
                                                                            tmp_path):
    (tmp_path / "pictures" / "3.png").write_text("no picture")
    flags = ("--each", tmp_path / "pictures", "--model", folder, "--max_new_tokens", 8, "--json")
    done = run_chat(*flags, "--prompt", "[vqa] is there a road ?", "--prompt",
                    "[identify] what is in 2 2 22 15 px", "--batch_size", 5)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 2 and [line["picture"] for line in lines] == [
        path for path in pictures for _ in range(2)]
    wrong = [i for i, line in enumerate(lines) if "error" in line]
    assert wrong == [1, 3, 6, 7]                # pictures of 20 and 21 pixels end before the region
    assert done.stderr.count("\n") == 4 and "3.png: not a picture" in done.stderr
    single = make_conversation(folder, [pictures[5]], 8)
    assert lines[10]["answer"] == "".join(single.ask("[vqa] is there a road ?"))
    piped = run_chat(*flags, stdin="[vqa] is there a road ?\n")
    assert [json.loads(line) for line in piped.stdout.splitlines()] == lines[::2]


def test_as_text_the_picture_stands_before_its_answer_and_boxes_are_drawn_where_asked(tmp_path):
    names = [tiny.ROOT / "examples" / f"{name}.png" for name in ("forest", "sports")]
    done = run_chat("--each", *names, "--prompt", "find all tennis courts")
    first, second, *boxes = done.stdout.splitlines()
    assert done.returncode == 0 and done.stderr == "([detection] tennis courts)\n"
    assert first.startswith(f"{names[0]}: ")
    assert second.startswith(f"{names[1]}: tennis courts {{<") and "<p>" not in second
    assert boxes and all(line.startswith("  tennis courts: x ") for line in boxes)
    done = run_chat("--each", *names, "--prompt", "find all tennis courts", "--save",
                    tmp_path / "boxes", "--json")
    drawn = tmp_path / "boxes" / "sports_boxes.png"
    assert done.stderr == f"saved {drawn}\n" and list(drawn.parent.iterdir()) == [drawn]
    assert Image.open(drawn).size == (512, 512)


def test_what_is_to_know_about_a_large_picture_is_in_its_line(folder, tmp_path):
    large = tiny.picture(tmp_path / "large.png", 400, 300)
    flags = ("--each", large, "--model", folder, "--prompt", "[vqa] a ?", "--prompt", "[vqa] b ?")
    done = run_chat(*flags, "--json")
    first, second = map(json.loads, done.stdout.splitlines())
    assert "the model sees its 400 x 300 pixels as 30 x 30" in first["note"]
    assert "note" not in second and done.stderr == ""
    assert run_chat(*flags).stderr == first["note"] + "\n"
