"""The conversation computes each turn once, the commands do what /help says, errors are a line."""
import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import support.images.common as limits
import support.images.read as pillow
import tiny
from chat import Conversation, parse_args
from data import Tokenizer, encode_conversation, load_image, parse_boxes, preprocess
from projector import SkyEyeGPT
from support.images.draw import unused_name
from support.readers import read_data
from support.readers.common import DataError
from support.terminal.display import half_blocks, shows_color
from support.terminal.questions import (
    as_task,
    find_detections,
    referred_phrase,
    regions_to_text,
    sampling_for,
    task_of,
)
from support.terminal.session import (
    KEPT_CACHES,
    OpenConversations,
    Session,
    expand_paths,
    split_words,
)


@pytest.fixture
def folder(tmp_path):
    return tiny.model_folder(tmp_path / "model")


@pytest.fixture
def picture(tmp_path):
    return tiny.picture(tmp_path / "a picture.png", 61, 47)


def conversation(folder, paths, tokens=5, **more):
    model = SkyEyeGPT.from_pretrained(folder)
    return Conversation(model, Tokenizer(folder / "tokenizer.model"), paths,
                        {"max_new_tokens": tokens}, **more)


def session(folder, *args, live=False, **sampling):
    """As chat.py starts it, with a small model."""
    model, tokenizer = SkyEyeGPT.from_pretrained(folder), Tokenizer(folder / "tokenizer.model")
    sampling, seen = {"max_new_tokens": 5} | sampling, {}
    return Session(OpenConversations(lambda paths: Conversation(model, tokenizer, paths, sampling, seen=seen)),
                   parse_args([str(arg) for arg in args]), live)


def run(*args, stdin=""):
    """chat.py as a user starts it."""
    return subprocess.run([sys.executable, "chat.py", *map(str, args)], input=stdin, text=True,
                          capture_output=True, cwd=tiny.ROOT,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_an_answer_is_what_the_model_says_to_the_rendered_prompt(folder, picture):
    talk = conversation(folder, [picture])
    spoken = "".join(talk.ask("[vqa] is there a road ?"))
    ids, _, _ = encode_conversation(talk.tokenizer, [("[vqa] is there a road ?", None)], tiny.N)
    image = preprocess(load_image(picture), tiny.VIT.image_size)[None]
    expected = talk.tokenizer.decode(talk.model.generate(torch.tensor(ids), image, 5))
    assert spoken == expected.rstrip("\ufffd") and talk.turns == [
        ("[vqa] is there a road ?", spoken)]


def test_later_turns_do_not_compute_the_picture_or_earlier_questions_again(folder, picture):
    talk, lengths = conversation(folder, [picture]), []
    decoder, eye = talk.model.llama_model.model, talk.model.visual_encoder
    list(talk.ask("a road ?"))
    first, _, _ = encode_conversation(talk.tokenizer, [("a road ?", None)], tiny.N)
    decoder.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    eye.register_forward_pre_hook(lambda *_: pytest.fail("the picture was encoded again"))
    list(talk.ask("a river ?"))
    assert sum(lengths) <= len(talk.ids) - len(first)


def test_what_was_said_is_not_computed_again_where_it_is_written_as_it_was_said(folder, picture):
    talk, lengths = conversation(folder, [picture], tokens=20), []
    said = talk.tokenizer.encode("a green ship</s>")
    talk.model.generate = speaker(talk, said)
    list(talk.ask("a road ?"))
    del talk.model.generate
    talk.model.llama_model.model.register_forward_pre_hook(
        lambda _, args: lengths.append(args[0].shape[1]))
    list(talk.ask("a river ?"))
    ids, _, _ = encode_conversation(talk.tokenizer, [("a road ?", "a green ship"), ("a river ?", None)], tiny.N)
    new = encode_conversation(talk.tokenizer, [("a river ?", None)], pictures=0)[0]
    assert lengths[0] <= len(new) + 3 and talk.ids[:len(ids)] == ids


def speaker(talk, said):
    """A generate that says just this, and fills the cache as the real one does."""
    def generate(ids, images, cache, **_):
        x = talk.model.embed(ids[None, cache.used:], images)
        talk.model.llama_model.model(x, cache=cache)
        for token in said[:-1]:
            yield token
            position = torch.tensor([[cache.used]])
            talk.model.llama_model.model(torch.tensor([[token]]), position, cache=cache)
    return torch.inference_mode()(generate)


@pytest.mark.parametrize("style", ["skyeye", "minigpt_v2", "vicuna_v1"])
def test_turns_over_one_cache_say_what_a_fresh_start_says(folder, picture, style):
    talk = conversation(folder, [picture])
    talk.model.config = dataclasses.replace(talk.model.config, prompt=style)
    talk = Conversation(talk.model, talk.tokenizer, [picture], talk.sampling)
    for question in ("a road ?", "many planes ?"):
        list(talk.ask(question))
        before = list(talk.turns)
    list(talk.ask("and a river ?"))
    ids, _, _ = encode_conversation(talk.tokenizer, [*before, ("and a river ?", None)], tiny.N, style=style)
    answer = list(talk.model.generate(torch.tensor(ids), talk.look(), 5))
    assert talk.ids == ids + answer


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_stopped_answer_is_kept_as_far_as_it_went_and_spoils_nothing(folder, picture, after):
    talk = conversation(folder, [picture], tokens=9)
    layer, calls = talk.model.llama_model.model.layers[1], []

    def interrupt(*_):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt             # half way through a step: layer 0 is written

    hook = layer.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(talk.ask("a road ?"))
    hook.remove()
    stopped = list(talk.turns)
    assert len(stopped) == 1
    list(talk.ask("a river ?"))
    ids, _, _ = encode_conversation(talk.tokenizer, [*stopped, ("a river ?", None)], tiny.N)
    assert talk.ids == ids + list(talk.model.generate(torch.tensor(ids), talk.look(), 9))


def test_a_full_context_loses_the_oldest_questions_and_never_the_picture(folder, picture, capsys):
    talk = conversation(folder, [picture])
    talk.look()
    talk.model.visual_encoder.register_forward_pre_hook(
        lambda *_: pytest.fail("the picture was encoded again"))
    limit = tiny.TALKER.max_positions
    for _ in range(12):
        before = list(talk.turns)
        list(talk.ask("is there a road in the harbor near the green ship ?"))
        assert talk.ids.count(-1) == tiny.N and len(talk.ids) <= limit
        longer = [*before[max(talk.first - 1, 0):], (talk.turns[-1][0], None)]
        longer = len(encode_conversation(talk.tokenizer, longer, tiny.N)[0])
        assert not talk.first or longer + 5 > limit     # no more was forgotten than had to be
    assert len(talk.turns) == 12 and talk.first > 0
    assert capsys.readouterr().err.count("the oldest questions are forgotten") == 1
    ids, _, _ = encode_conversation(talk.tokenizer, [*before[talk.first:], (talk.turns[-1][0], None)], tiny.N)
    assert talk.ids == ids + list(talk.model.generate(torch.tensor(ids), talk.look(), 5))
    with pytest.raises(DataError, match="do not fit the context of 256"):
        list(talk.ask("is there a road " * 60))
    assert len(talk.turns) == 12


def test_the_cache_grows_with_the_conversation_and_not_at_once(folder, picture):
    talk, slots = conversation(folder, [picture]), []
    for _ in range(4):
        list(talk.ask("a road ?"))
        slots.append(talk.cache.slots)
        assert talk.cache.used <= talk.cache.slots
    assert slots[0] < 60 < slots[-1] < tiny.TALKER.max_positions and sorted(slots) == slots
    assert all(b in (a, 2 * a) for a, b in zip(slots, slots[1:], strict=False))


def test_a_large_picture_is_reduced_and_its_boxes_are_in_full_pixels(folder, tmp_path,
                                                                     monkeypatch, capsys):
    monkeypatch.setattr(limits, "LARGE_PIXELS", 5000)
    for module in (limits, pillow):
        monkeypatch.setattr(module, "MAX_SIDE", 40)
    talk = conversation(folder, [tiny.picture(tmp_path / "mosaic.png", 120, 80)])
    assert talk.pictures[0].size == (120, 80) and talk.pictures[0].image.size == (40, 27)
    assert "reduced 3 times" in capsys.readouterr().err
    talk.turns = [("where ?", "{<50><50><99><99>}")]
    (_, box), = talk.boxes()
    assert box == pytest.approx((60.6, 40.4, 119.4, 79.6))
    talk.save(tmp_path / "out.png")
    drawn = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    rows, columns = (abs(drawn - (255, 59, 48)).sum(axis=2) == 0).nonzero()
    assert drawn.shape == (27, 40, 3) and 19 <= columns.min() <= 21 and 12 <= rows.min() <= 15


def test_a_clip_is_shown_as_its_frames(folder, tmp_path):
    for i in range(12):
        tiny.picture(tmp_path / "clip" / f"frame{i}.png", seed=i)
    talk = conversation(folder, [str(tmp_path / "clip")], frames=3)
    assert len(talk.pictures) == len(talk.look()) / tiny.N == 3
    wanted = np.asarray(Image.open(tmp_path / "clip" / "frame2.png"))       # middle of 0 .. 3
    assert (np.asarray(talk.pictures[0].image) == wanted).all()


def test_pictures_with_many_bands_need_to_be_told_which(folder, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (9, 8, 6), dtype=np.uint8)
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "six.tif", pixels, photometric="minisblack", planarconfig="contig")
    with pytest.raises(DataError, match="six.tif: 6 bands .* --bands"):
        conversation(folder, [str(tmp_path / "six.tif")])
    done = run(tmp_path / "six.tif", "--bands", "4,3,2", "--model", folder, "--prompt", "hi",
               "--max_new_tokens", 2)
    assert done.returncode == 0 and "bands 4, 3, 2 of 6" in done.stderr


def test_unknown_pictures_change_nothing(folder, picture):
    run = session(folder, picture)
    run.read("a road ?")
    for name in ("nowhere.png", "nowhere*.png"):
        with pytest.raises((DataError, ValueError), match="no such picture"):
            run.read(f"/image {name}")
    assert run.talk.paths == [picture] and len(run.talk.turns) == 1


def test_more_pictures_than_the_context_holds_are_refused(folder, picture):
    with pytest.raises(DataError, match="25 pictures take 225 of 256 tokens: show 24 at most"):
        conversation(folder, [picture] * 25)


def test_boxes_are_in_pixels_of_the_full_picture_and_named(folder, picture):
    talk = conversation(folder, [picture])
    talk.turns = [("[refer] where is the green ship ?", "{<0><50><100><99>}")]
    (name, box), = talk.boxes()
    assert name == "the green ship" and box == pytest.approx((0.305, 23.735, 61, 46.765))
    talk.turns = [("[detection] ships", "<p>ships</p> {<0><0><9><9>}<delim>{<5><5><9><9>}")]
    assert [name for name, _ in talk.boxes()] == ["ships", "ships"]


def test_save_writes_the_drawn_picture_and_the_conversation(folder, picture, tmp_path):
    talk = conversation(folder, [picture])
    talk.turns = [("[refer] a ship", "{<10><10><60><60>}")]
    talk.save(tmp_path / "out.png")
    talk.save(tmp_path / "out.json")
    assert Image.open(tmp_path / "out.png").size == (61, 47)
    assert Image.open(tmp_path / "out.png").tobytes() != load_image(picture).tobytes()
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert [turn["value"] for turn in row["conversations"]] == list(talk.turns[0])


def test_a_saved_conversation_is_data_to_learn_from(folder, picture, tmp_path):
    other = tiny.picture(tmp_path / "below" / "b.png", 20, 30)
    talk = conversation(folder, [picture, other])
    talk.turns = [("[refer] a ship", "{<10><10><60><60>}"), ("stopped", ""), ("why ?", "a road")]
    talk.save(tmp_path / "talk.json")
    (sample,) = read_data(tmp_path / "talk.json")
    assert sample.images == (picture, other) and sample.turns == (talk.turns[0], talk.turns[2])
    batch = tiny.rows([sample])[0, 0]
    assert len(batch["images"]) == 2 and (batch["labels"] != -100).any()
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ValueError, match=f"save it in {tmp_path} or above"):
        talk.save(tmp_path / "elsewhere" / "talk.json")
    talk.reset()
    with pytest.raises(ValueError, match="nothing has been said"):
        talk.save(tmp_path / "talk.json")
    with pytest.raises(ValueError, match="out.txt: a picture is written as .png"):
        talk.save(tmp_path / "out.txt")
    with pytest.raises(ValueError, match="there is no picture"):
        conversation(folder, []).save(tmp_path / "out.png")
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["a picture.png", "talk.json"]


def test_each_picture_with_boxes_is_drawn_beside_itself(folder, picture, tmp_path, capsys):
    other = tiny.picture(tmp_path / "b.png", 20, 30)
    run = session(folder, picture, other, live=True, max_new_tokens=90)
    run.talk.model.generate = speaker(run.talk, run.talk.tokenizer.encode(
        "{<10><10><60><60>} picture 2 {<20><20><90><90>}</s>"))
    run.read("[refer] a ship")
    run.read("/again")
    for name, size in (("a picture", (61, 47)), ("b", (20, 30))):
        assert Image.open(tmp_path / f"{name}_boxes.png").size == size
        assert (tmp_path / f"{name}_boxes_2.png").exists()
    assert f"pixels of {other}" in capsys.readouterr().out
    quiet = session(folder, picture, max_new_tokens=60)
    said = quiet.talk.tokenizer.encode("{<1><1><6><6>}</s>")
    quiet.talk.model.generate = speaker(quiet.talk, said)
    quiet.read("[refer] a ship")
    assert not (tmp_path / "a picture_boxes_3.png").exists()


def test_a_file_that_exists_is_never_written_over(picture):
    first = unused_name(picture)
    first.touch()
    assert first.name == "a picture_boxes.png"
    assert unused_name(picture).name == "a picture_boxes_2.png"


def test_commands_switch_task_and_picture(folder, picture, tmp_path, capsys):
    run = session(folder, picture)
    run.read("/task refer")
    assert run.asked("a ship") == "[refer] a ship" and run.asked("[vqa] why ?") == "[vqa] why ?"
    with pytest.raises(ValueError, match="unknown task"):
        run.read("/task juggle")
    run.read("/task")
    assert run.asked("a ship") == "a ship"
    other = tiny.picture(tmp_path / "b.png", 20, 30, seed=1)
    run.read(f"/image {other}")
    assert run.talk.paths == [other]
    run.read(f"/image '{picture}' {other}")
    assert run.talk.paths == [picture, other]
    run.read("/what")
    run.read("/help")
    run.read("/images")
    told = capsys.readouterr().err
    assert "/what: no command" in told and "/reset" in told
    assert f"* 3  {picture} 61 x 47, {other} 20 x 30" in told
    with pytest.raises(EOFError):
        run.read("/quit")


def test_going_back_to_a_picture_computes_nothing_that_was_said_about_it_again(folder, tmp_path):
    paths = [tiny.picture(tmp_path / f"{i}.png", seed=i) for i in range(KEPT_CACHES + 1)]
    run, encoded, lengths = session(folder, paths[0]), [], []
    model = run.talk.model
    model.visual_encoder.register_forward_pre_hook(lambda _, args: encoded.append(len(args[0])))
    run.read("is there a road in the harbor ?")
    for path in paths[1:KEPT_CACHES]:
        run.read(f"/image {path}")
        run.read("a ship ?")
    model.llama_model.model.register_forward_pre_hook(
        lambda _, args: lengths.append(args[0].shape[1]))
    run.read("/image 1")
    turns, known = list(run.talk.turns), len(run.talk.ids)
    run.read("a ship ?")
    assert turns == run.talk.turns[:1] and sum(lengths) <= len(run.talk.ids) - known + 9
    run.read(f"/image {paths[KEPT_CACHES]}")                       # one too many: the cache of the
    run.read("a ship ?")                                    # conversation that was left first goes
    assert [bool(talk.bytes) for talk in run.shelf.talks.values()] == [True, False] + [True] * 2
    run.read("/image 2")
    run.read("a river ?")
    run.read(f"/image {paths[0]} {paths[1]}")
    run.read("a river ?")
    assert encoded == [1] * (KEPT_CACHES + 1)                      # each picture once in all


def test_a_picture_that_has_changed_on_disk_is_another_one(folder, tmp_path):
    run = session(folder, tiny.picture(tmp_path / "a.png", 20, 30))
    run.read("a ship ?")
    path = tiny.picture(tmp_path / "a.png", 30, 20, seed=1)
    os.utime(path, ns=(1, 1))
    run.read(f"/image {path}")
    assert run.talk.pictures[0].size == (30, 20) and run.talk.turns == []


def test_undo_and_again_leave_what_a_fresh_start_would_say(folder, picture):
    run = session(folder, picture)
    for question in ("a road ?", "many planes ?", "a river ?"):
        run.read(question)
    said = list(run.talk.turns)
    run.read("/again")
    assert run.talk.turns == said
    run.read("/undo")
    run.read("/undo")
    run.read("a river ?")
    fresh = session(folder, picture)
    fresh.read("a road ?")
    fresh.read("a river ?")
    assert run.talk.turns == fresh.talk.turns and run.talk.ids == fresh.talk.ids
    fresh.talk.reset()
    with pytest.raises(DataError, match="nothing has been asked"):
        fresh.read("/again")


def test_again_draws_anew_where_answers_are_drawn_and_a_seed_repeats_them(folder, picture):
    def answers():
        run = session(folder, picture, temperature=1.5, max_new_tokens=9,
                      generator=torch.Generator().manual_seed(7))
        run.read("a road ?")
        first = run.talk.turns[-1]
        run.read("/again")
        return first, run.talk.turns[-1]

    first, second = answers()
    assert first != second and answers() == (first, second)


def test_named_tasks_are_answered_with_the_likeliest_words_and_free_ones_as_upstream_draws_them():
    told = {"temperature": None, "repetition_penalty": None, "top_p": 0.9}
    for name in ("refer", "vqa", "identify", "detection", "grounding", "caption"):
        assert sampling_for(f"[{name}] x", told) == told | {"temperature": 0, "repetition_penalty": 1}
    assert sampling_for("x", told) == {"temperature": 0.6, "repetition_penalty": 1.05, "top_p": 0.9}
    assert sampling_for("[vqa] x", told | {"temperature": 0.3})["temperature"] == 0.3
    args = parse_args([])
    assert (args.temperature, args.top_p, args.top_k, args.seed) == (None, 0.9, 50, 42)


def test_only_known_tasks_may_begin_a_question():
    assert task_of("[refer] x") == "refer" and task_of("plain words") == task_of("[ open") == ""
    with pytest.raises(ValueError, match=r"\[juggle\].*\[refer\]"):
        task_of("[juggle] x")


@pytest.mark.parametrize(("request_", "asked"), [
    ("Where is the largest ship?", "[refer] where is the largest ship ?"),
    ("please locate the red car.", "[refer] where is the red car ?"),
    ("find all the ships", "[detection] ships"),
    ("Where are the storage tanks?", "[detection] storage tanks"),
    ("How many airplanes are there?", "[vqa] how many airplanes are there ?"),
    ("is there a road ?", "[vqa] is there a road ?"),
    ("what is in {<1><2><30><40>} ?", "[identify] what is it in {<1><2><30><40>}"),
    ("describe {<1><2><30><40>}", "[identify] what is it in {<1><2><30><40>}"),
    ("Describe the image", "[caption] briefly describe the image"),
    ("describe this picture in detail", "[grounding] describe this image in detail"),
    ("tell me about the harbor", "tell me about the harbor"),
    ("describe how ships are built", "describe how ships are built"),
])
def test_a_plain_request_takes_its_task(request_, asked):
    assert as_task(request_) == asked and task_of(asked) in ("", asked[1:].split("]")[0])


def test_requests_take_their_task_in_a_terminal_or_where_it_is_asked_for(folder, picture, capsys):
    for args, live, asked in (([], False, "find all ships"), ([], True, "[detection] ships"),
                              (["--auto_task"], False, "[detection] ships"),
                              (["--no-auto_task"], True, "find all ships")):
        run = session(folder, picture, *args, live=live)
        assert run.asked("find all ships") == asked
        assert run.asked("[vqa] find all ships") == "[vqa] find all ships"
        assert ("([detection] ships)" in capsys.readouterr().err) == (asked != "find all ships")


def test_a_region_in_pixels_is_written_in_hundredths():
    size, wanted = (512, 256), "[identify] {<23><31><58><97>}"
    for written in ("120 80 300 250 px", "120,80,300,250 px", "{120, 80, 300, 250} pixels",
                    "300 250 120 80px"):
        assert regions_to_text(f"[identify] {written}", size) == wanted
    (_, box), = parse_boxes(wanted, *size)
    assert all(abs(a - b) <= side / 100 for a, b, side in
               zip(box, (120, 80, 300, 250), size * 2, strict=True))
    assert regions_to_text(wanted, size) == wanted
    assert regions_to_text("in 1999 2000 2001 2002 there", size) == "in 1999 2000 2001 2002 there"
    for wrong, why in (("[identify] 120 80 300 250", "px in pixels"),
                       ("{<1><2><3><400>}", "over 100"),
                       ("[identify] 900 900 990 990 px", "not in a picture of 512 x 256")):
        with pytest.raises(ValueError, match=why):
            regions_to_text(wrong, size)
    with pytest.raises(ValueError, match="no picture"):
        regions_to_text("1 2 3 4 px", None)


def test_boxes_lie_in_the_first_picture_unless_the_answer_names_another():
    sizes, box = [(100, 100), (200, 400)], "{<10><10><20><20>}"
    def owners(answer):
        return [mark.picture for mark in find_detections("[detection] x", answer, sizes)]

    assert owners(f"<p>a</p> {box}<delim>{box}") == [0, 0]
    assert owners(f"{box} and in picture 2 {box}, in the first image {box}") == [0, 1, 0]
    assert owners(f"image 7 {box} the second photo {box}") == [0, 1]
    (_, mark) = find_detections("x", f"{box} picture 2 <p>ship</p> {box}", sizes)
    assert mark.phrase == "ship" and mark.box == pytest.approx((21, 42, 41, 82))
    assert mark.told(["a.png", "b.png"]) == "ship: x 21 to 41, y 42 to 82 pixels of b.png"
    assert find_detections("x", box, []) == [] and owners("{<10><10><20><200>}") == []


def test_the_region_that_was_asked_about_is_marked_with_the_answer():
    question = "[identify] what is it in {<10><10><20><20>}"
    (mark,) = find_detections(question, "a ship", [(100, 100)])
    assert mark.phrase == "a ship" and mark.box == (10.5, 10.5, 20.5, 20.5)
    assert find_detections("[vqa] what is in {<10><10><20><20>}", "a ship", [(100, 100)]) == []


def test_patterns_and_quotes_name_pictures_in_the_order_of_their_numbers(tmp_path, monkeypatch):
    for name in ("f10.png", "f2.png", "a b.png", "odd[1].png"):
        tiny.picture(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert expand_paths(["f*.png", "a b.png"]) == ["f2.png", "f10.png", "a b.png"]
    assert expand_paths(["odd[1].png"]) == ["odd[1].png"]
    assert split_words("'a b.png' a\\ b.png \"f2.png\"") == ["a b.png", "a b.png", "f2.png"]
    assert split_words("/image harbor's.png") == ["/image", "harbor's.png"]


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


@pytest.mark.parametrize(("change", "shown"), [
    ({}, True), ({"COLORTERM": "24bit"}, True), ({"COLORTERM": "256"}, False),
    ({"TERM": "dumb"}, False), ({"LC_ALL": "C"}, False), ({"LC_ALL": "", "LANG": ""}, False),
])
def test_pictures_are_shown_only_where_the_terminal_says_it_can(change, shown, monkeypatch):
    class Screen:
        encoding = "UTF-8"

        def isatty(self):
            return True

    told = {"COLORTERM": "truecolor", "TERM": "xterm", "LC_ALL": "", "LANG": "de_DE.UTF-8"}
    monkeypatch.setattr("sys.stdout", Screen())
    assert shows_color(told | change) is shown
    monkeypatch.setattr(Screen, "isatty", lambda _: False)
    assert not shows_color(told)


def test_what_a_refer_question_asks_for():
    assert referred_phrase("[refer] where is the largest ship ?") == "the largest ship"
    assert referred_phrase("[refer] the largest ship") == "the largest ship"
    assert referred_phrase("[vqa] how many ?") == ""


def test_prompts_are_answered_in_turn_on_standard_output(folder, picture):
    done = run(picture, "--model", folder, "--prompt", "a road ?", "--prompt", "a river ?",
               "--max-new-tokens", "4")
    assert done.returncode == 0 and done.stderr == ""
    assert len([line for line in done.stdout.split("\n") if not line.startswith("  ")]) == 3


def test_questions_on_a_pipe_are_answered_line_by_line_and_mistakes_told_beside(folder, picture):
    done = run(picture, "--model", folder, "--max_new_tokens", "3",
               stdin="/help\n\n[juggle] x\n/image nowhere.png\n[vqa] a road ?\n/quit\nunread\n")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "unknown task" in done.stderr and "nowhere.png: no such picture" in done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_json_is_one_object_a_line(picture):
    harbor = "examples/harbor.png"
    done = run(harbor, "--json", stdin="[refer] where is the largest ship ?\n[juggle] x\n"
               "/image examples/forest.png\n[vqa] how many cars are there ?\n")
    found, wrong, count = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 2 and found["question"] == "[refer] where is the largest ship ?"
    (box,) = found["boxes"]
    (_, pixels), = parse_boxes(found["answer"], 512, 512)
    assert box["phrase"] == "the largest ship" and box["picture"] == harbor
    assert box["pixels"] == pytest.approx(pixels, abs=0.05)
    assert box["confidence"] is None or 0 <= box["confidence"] <= 1
    assert wrong["question"] == "[juggle] x" and "unknown task" in wrong["error"]
    assert count["boxes"] == [] and count["answer"].isdigit()


def test_text_without_a_picture_is_answered(folder):
    run = session(folder)
    run.read("hello")
    run.read("[vqa] why ?")
    ids, _, _ = encode_conversation(run.talk.tokenizer, [("hello", None)], pictures=0)
    answer = run.talk.tokenizer.decode(run.talk.model.generate(torch.tensor(ids), None, 5))
    assert run.talk.turns[0] == ("hello", answer.rstrip("\ufffd")) and len(run.talk.turns) == 2


def test_a_reader_that_leaves_ends_it_silently(folder, picture):
    with subprocess.Popen([sys.executable, "chat.py", picture, "--model", str(folder)],
                          cwd=tiny.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        process.stdin.write("[vqa] a road ?\n" * 3)
        process.stdin.close()
        assert process.stderr.read() == "" and process.wait() in (0, 141)


@pytest.mark.parametrize(("args", "named"), [
    (["nowhere.png"], "nowhere.png"),
    (["{tmp}/empty.png"], "empty.png: not a picture (the file is empty)"),
    (["{tmp}/text.png"], "text.png: not a picture"),
    (["{picture}", "--prompt", "[juggle] x"], "[juggle]: unknown task"),
    (["{picture}", "--model", "{tmp}"], "config.json: no such file"),
    (["{picture}", "--model", "{tmp}/broken"], "missing"),
    (["{picture}", "--device", "juggler"], "--device juggler: "),
])
def test_mistakes_end_with_one_line_and_exit_code_2(args, named, folder, picture, tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    broken = tiny.model_folder(tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    model = [] if "--model" in args else ["--model", folder]
    done = run(*(arg.format(tmp=tmp_path, picture=picture) for arg in args), *model,
               *([] if "--prompt" in args else ["--prompt", "x"]))
    assert done.returncode == 2 and named in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr


def test_compile_without_a_compiler_is_told_in_a_line(folder, picture, monkeypatch):
    monkeypatch.setenv("CXX", "nowhere-c++")
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    done = run(picture, "--model", folder, "--prompt", "a road ?", "--compile")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("chat.py: --compile: InvalidCxxCompiler")


def test_a_full_gpu_is_told_in_a_line():
    done = subprocess.run([sys.executable, "-c", """
import runpy, sys, torch, projector
def full(*args):
    raise torch.OutOfMemoryError("CUDA out of memory.")
projector.SkyEyeGPT.from_pretrained = full
sys.argv = ["chat.py"]
runpy.run_path("chat.py", run_name="__main__")"""], cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "GPU's memory is full; try --dtype bf16, --bits 8" in done.stderr
