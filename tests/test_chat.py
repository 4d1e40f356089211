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

import chat
import tiny
from chat import Conversation, checked, free_name, referred
from data import DataError, Tokenizer, load_image, preprocess, render
from formats.pictures import limits, pillow
from projector import SkyEyeGPT


@pytest.fixture
def folder(tmp_path):
    return tiny.model_folder(tmp_path / "model")


@pytest.fixture
def picture(tmp_path):
    return tiny.picture(tmp_path / "a picture.png", 61, 47)


def conversation(folder, paths, tokens=5):
    model = SkyEyeGPT.from_pretrained(folder)
    return Conversation(model, Tokenizer(folder / "tokenizer.model"), paths,
                        {"max_new_tokens": tokens})


def run(*args, stdin=""):
    """chat.py as a user starts it."""
    return subprocess.run([sys.executable, "chat.py", *map(str, args)], input=stdin, text=True,
                          capture_output=True, cwd=tiny.ROOT,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_an_answer_is_what_the_model_says_to_the_rendered_prompt(folder, picture):
    talk = conversation(folder, [picture])
    spoken = "".join(talk.ask("[vqa] is there a road ?"))
    ids, _, _ = render(talk.tokenizer, [("[vqa] is there a road ?", None)], tiny.N)
    image = preprocess(load_image(picture), tiny.VIT.image_size)[None]
    expected = talk.tokenizer.decode(talk.model.generate(torch.tensor(ids), image, 5))
    assert spoken == expected.rstrip("\ufffd") and talk.turns == [
        ("[vqa] is there a road ?", spoken)]


def test_later_turns_do_not_compute_the_picture_or_earlier_questions_again(folder, picture):
    talk, lengths = conversation(folder, [picture]), []
    decoder, eye = talk.model.llama_model.model, talk.model.visual_encoder
    list(talk.ask("a road ?"))
    first, _, _ = render(talk.tokenizer, [("a road ?", None)], tiny.N)
    decoder.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    eye.register_forward_pre_hook(lambda *_: pytest.fail("the picture was encoded again"))
    list(talk.ask("a river ?"))
    assert sum(lengths) <= len(talk.ids) - len(first)


def test_what_was_said_is_not_computed_again_where_it_is_written_as_it_was_said(folder, picture):
    talk, lengths = conversation(folder, [picture]), []
    said = talk.tokenizer.encode("a green ship</s>")
    talk.model.generate = speaker(talk, said)
    list(talk.ask("a road ?"))
    del talk.model.generate
    talk.model.llama_model.model.register_forward_pre_hook(
        lambda _, args: lengths.append(args[0].shape[1]))
    list(talk.ask("a river ?"))
    ids, _, _ = render(talk.tokenizer, [("a road ?", "a green ship"), ("a river ?", None)], tiny.N)
    new = render(talk.tokenizer, [("a river ?", None)], pictures=0)[0]
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
    talk.open([picture])
    for question in ("a road ?", "many planes ?"):
        list(talk.ask(question))
        before = list(talk.turns)
    list(talk.ask("and a river ?"))
    ids, _, _ = render(talk.tokenizer, [*before, ("and a river ?", None)], tiny.N, style=style)
    answer = list(talk.model.generate(torch.tensor(ids), talk.images, 5))
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
    ids, _, _ = render(talk.tokenizer, [*stopped, ("a river ?", None)], tiny.N)
    assert talk.ids == ids + list(talk.model.generate(torch.tensor(ids), talk.images, 9))


def test_a_full_conversation_says_so_and_stays_usable(folder, picture):
    talk = conversation(folder, [picture])
    with pytest.raises(DataError, match="/reset"):
        for _ in range(99):
            list(talk.ask("is there a road in the harbor near the green ship ?"))
    turns = len(talk.turns)
    talk.reset()
    list(talk.ask("a road ?"))
    assert turns > 2 and len(talk.turns) == 1


def test_a_large_picture_is_reduced_and_its_boxes_are_in_full_pixels(folder, tmp_path,
                                                                     monkeypatch, capsys):
    monkeypatch.setattr(limits, "LARGE", 5000)
    for module in (limits, pillow):
        monkeypatch.setattr(module, "LONGEST", 40)
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
    talk = Conversation(*[getattr(conversation(folder, []), name) for name in
                          ("model", "tokenizer")], [str(tmp_path / "clip")], {}, frames=3)
    assert len(talk.pictures) == len(talk.images) == 3
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
    talk = conversation(folder, [picture])
    list(talk.ask("a road ?"))
    with pytest.raises(DataError):
        talk.open(["nowhere.png"])
    assert talk.paths == [picture] and len(talk.turns) == 1


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


def test_a_file_that_exists_is_never_written_over(picture):
    first = free_name(picture)
    first.touch()
    assert first.name == "a picture_boxes.png"
    assert free_name(picture).name == "a picture_boxes_2.png"


def test_commands_switch_task_and_picture(folder, picture, tmp_path, capsys):
    talk = conversation(folder, [picture])
    assert chat.command(talk, "/task refer", "") == "[refer] "
    assert chat.command(talk, "/task", "[refer] ") == ""
    with pytest.raises(DataError, match="unknown task"):
        chat.command(talk, "/task juggle", "")
    other = tiny.picture(tmp_path / "b.png", 20, 30, seed=1)
    assert chat.command(talk, f"/image {other}", "[vqa] ") == "[vqa] " and talk.paths == [other]
    chat.command(talk, "/what", "")
    assert "/reset" in capsys.readouterr().out


def test_only_known_tasks_may_begin_a_question():
    assert checked("[refer] x") and checked("plain words") and checked("[ not closed")
    with pytest.raises(DataError, match=r"\[juggle\].*\[refer\]"):
        checked("[juggle] x")


def test_what_a_refer_question_asks_for():
    assert referred("[refer] where is the largest ship ?") == "the largest ship"
    assert referred("[refer] the largest ship") == "the largest ship"
    assert referred("[vqa] how many ?") == ""


def test_prompts_are_answered_in_turn_on_standard_output(folder, picture):
    done = run(picture, "--model", folder, "--prompt", "a road ?", "--prompt", "a river ?",
               "--max-new-tokens", "4")
    assert done.returncode == 0 and done.stderr == ""
    assert len([line for line in done.stdout.split("\n") if not line.startswith("  ")]) == 3


def test_a_conversation_on_a_pipe_ends_with_its_input(folder, picture):
    done = run(picture, "--model", folder, "--max_new_tokens", "3",
               stdin="/help\n[juggle] x\n/image nowhere.png\na road ?\n")
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert "unknown task" in done.stdout and "nowhere.png: no such picture" in done.stdout


@pytest.mark.parametrize(("args", "named"), [
    (["nowhere.png"], "nowhere.png"),
    (["{tmp}/empty.png"], "empty.png: not a picture (the file is empty)"),
    (["{tmp}/text.png"], "text.png: not a picture"),
    (["{picture}", "--prompt", "[juggle] x"], "[juggle]: unknown task"),
    (["{picture}", "--model", "{tmp}"], "config.json: no such file"),
    (["{picture}", "--model", "{tmp}/broken"], "missing"),
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
