"""A conversation computes each turn once; the script answers line by line, errors are one line."""
import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import chat
import support.images.common as limits
import support.images.read as read
import tiny
from conversations import make_conversation, run_chat, script_answer
from data import encode_conversation, load_image, parse_boxes, preprocess
from pictures import save_tiff
from support.common import UserError
from support.readers import read_data

CONTEXT = tiny.SKYEYE.llama.max_positions


def prompt_ids(conversation, turns, **more):
    return encode_conversation(conversation.tokenizer, turns, tiny.N, **more)[0]


def generate(conversation, ids, max_new_tokens=5):
    """The ids that the model generates without a cache from before."""
    images = conversation.encode_images()
    return list(conversation.model.generate(torch.tensor(ids), images, max_new_tokens))


def record_lengths(conversation):
    """-> a list that grows by the number of tokens of each pass through the language model."""
    lengths = []
    conversation.model.llama_model.model.register_forward_pre_hook(
        lambda _, args: lengths.append(args[0].shape[1]))
    return lengths


def forbid_encoding(conversation):
    conversation.model.visual_encoder.register_forward_pre_hook(
        lambda *_: pytest.fail("the picture was encoded again"))


# ---- answers and the cache -----------------------------------------------------------------------

def test_an_answer_is_what_the_model_generates_after_the_prompt(folder, picture):
    conversation = make_conversation(folder, [picture])
    answer = "".join(conversation.ask("[vqa] is there a road ?"))
    ids = prompt_ids(conversation, [("[vqa] is there a road ?", None)])
    image = preprocess(load_image(picture), tiny.VIT.image_size)[None]
    expected = conversation.tokenizer.decode(
        conversation.model.generate(torch.tensor(ids), image, 5))
    assert answer == expected.rstrip("\ufffd") and conversation.turns == [
        ("[vqa] is there a road ?", answer)]


def test_text_without_a_picture_is_answered(folder):
    conversation = make_conversation(folder, [])
    for question in ("hello", "[vqa] why ?"):
        list(conversation.ask(question))
    ids = prompt_ids(conversation, [("hello", None)], num_images=0)
    answer = conversation.tokenizer.decode(generate(conversation, ids))
    assert conversation.turns[0] == ("hello", answer.rstrip("\ufffd"))
    assert len(conversation.turns) == 2


def test_later_turns_do_not_compute_the_picture_or_earlier_questions_again(folder, picture):
    conversation = make_conversation(folder, [picture])
    list(conversation.ask("a road ?"))
    first = prompt_ids(conversation, [("a road ?", None)])
    lengths = record_lengths(conversation)
    forbid_encoding(conversation)
    list(conversation.ask("a river ?"))
    assert sum(lengths) <= len(conversation.cached_ids) - len(first)


def test_an_answer_that_encodes_to_the_generated_tokens_is_not_computed_again(folder, picture):
    conversation = make_conversation(folder, [picture], 20)
    script_answer(conversation, "a green ship")
    list(conversation.ask("a road ?"))
    del conversation.model.generate
    lengths = record_lengths(conversation)
    list(conversation.ask("a river ?"))
    ids = prompt_ids(conversation, [("a road ?", "a green ship"), ("a river ?", None)])
    new = prompt_ids(conversation, [("a river ?", None)], num_images=0)
    assert lengths[0] <= len(new) + 3 and conversation.cached_ids[:len(ids)] == ids


@pytest.mark.parametrize("style", ["skyeye", "minigpt_v2", "vicuna_v1"])
def test_turns_over_one_cache_give_the_answers_of_a_fresh_start(folder, picture, style):
    conversation = make_conversation(folder, [picture])
    conversation.model.config = dataclasses.replace(conversation.model.config, prompt=style)
    conversation = conversation.about([picture])
    for question in ("a road ?", "many planes ?"):
        list(conversation.ask(question))
    before = list(conversation.turns)
    list(conversation.ask("and a river ?"))
    ids = prompt_ids(conversation, [*before, ("and a river ?", None)], style=style)
    assert conversation.cached_ids == ids + generate(conversation, ids)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_stopped_answer_stays_as_far_as_it_came_and_leaves_the_cache_valid(folder, picture,
                                                                             after):
    conversation = make_conversation(folder, [picture], 9)
    layer, calls = conversation.model.llama_model.model.layers[1], []

    def interrupt(*_):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt             # in the middle of a step: layer 0 has written

    hook = layer.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(conversation.ask("a road ?"))
    hook.remove()
    stopped = list(conversation.turns)
    assert len(stopped) == 1
    list(conversation.ask("a river ?"))
    ids = prompt_ids(conversation, [*stopped, ("a river ?", None)])
    assert conversation.cached_ids == ids + generate(conversation, ids, 9)


def test_a_full_context_loses_the_oldest_questions_and_never_the_picture(folder, picture, capsys):
    conversation = make_conversation(folder, [picture])
    conversation.encode_images()
    forbid_encoding(conversation)
    for _ in range(12):
        before = list(conversation.turns)
        list(conversation.ask("is there a road in the harbor near the green ship ?"))
        assert conversation.cached_ids.count(-1) == tiny.N
        assert len(conversation.cached_ids) <= CONTEXT
        question = (conversation.turns[-1][0], None)
        longer = prompt_ids(conversation, [*before[max(conversation.first_turn - 1, 0):], question])
        # No more was forgotten than had to be.
        assert not conversation.first_turn or len(longer) + 5 > CONTEXT
    assert len(conversation.turns) == 12 and conversation.first_turn > 0
    assert capsys.readouterr().err.count("the oldest questions are forgotten") == 1
    ids = prompt_ids(conversation, [*before[conversation.first_turn:], question])
    assert conversation.cached_ids == ids + generate(conversation, ids)
    with pytest.raises(UserError, match=f"do not fit the context of {CONTEXT}"):
        list(conversation.ask("is there a road " * 60))
    assert len(conversation.turns) == 12


def test_the_cache_grows_with_the_conversation_and_not_at_once(folder, picture):
    conversation, capacities = make_conversation(folder, [picture]), []
    for _ in range(4):
        list(conversation.ask("a road ?"))
        capacities.append(conversation.cache.capacity)
        assert conversation.cache.length <= conversation.cache.capacity
    assert capacities[0] < 60 < capacities[-1] < CONTEXT and sorted(capacities) == capacities
    assert all(b in (a, 2 * a) for a, b in zip(capacities, capacities[1:], strict=False))


# ---- pictures ------------------------------------------------------------------------------------

def test_a_large_picture_is_reduced_and_its_boxes_are_in_full_pixels(folder, tmp_path,
                                                                     monkeypatch, capsys):
    monkeypatch.setattr(limits, "LARGE_PIXELS", 5000)
    for module in (limits, read):
        monkeypatch.setattr(module, "MAX_SIDE", 40)
    conversation = make_conversation(folder, [tiny.picture(tmp_path / "mosaic.png", 120, 80)])
    (mosaic,) = conversation.pictures
    assert mosaic.size == (120, 80) and mosaic.image.size == (40, 27)
    assert "reduced 3 times" in capsys.readouterr().err
    conversation.turns = [("where ?", "{<50><50><99><99>}")]
    (_, box), = conversation.boxes()
    assert box == pytest.approx((60.6, 40.4, 119.4, 79.6))
    conversation.save(tmp_path / "out.png")
    drawn = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    rows, columns = (abs(drawn - (255, 59, 48)).sum(axis=2) == 0).nonzero()
    assert drawn.shape == (27, 40, 3) and 19 <= columns.min() <= 21 and 12 <= rows.min() <= 15


def test_a_clip_is_shown_as_its_frames(folder, tmp_path):
    for i in range(12):
        tiny.picture(tmp_path / "clip" / f"frame{i}.png", seed=i)
    conversation = make_conversation(folder, [tmp_path / "clip"], frames=3)
    assert len(conversation.pictures) == len(conversation.encode_images()) / tiny.N == 3
    wanted = np.asarray(Image.open(tmp_path / "clip" / "frame2.png"))       # middle of 0 .. 3
    assert (np.asarray(conversation.pictures[0].image) == wanted).all()


def test_pictures_with_many_bands_need_a_choice_of_bands(folder, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (9, 8, 6), dtype=np.uint8)
    pytest.importorskip("rasterio")
    save_tiff(tmp_path / "six.tif", pixels)
    with pytest.raises(UserError, match="six.tif: 6 bands .* --bands"):
        make_conversation(folder, [tmp_path / "six.tif"])
    done = run_chat(tmp_path / "six.tif", "--bands", "4,3,2", "--model", folder, "--prompt", "hi",
                    "--max_new_tokens", 2)
    assert done.returncode == 0 and "bands 4, 3, 2 of 6" in done.stderr


def test_more_pictures_than_the_context_holds_are_refused(folder, picture):
    with pytest.raises(UserError, match="25 pictures take 225 of 256 tokens: show 24 at most"):
        make_conversation(folder, [picture] * 25)


# ---- boxes and files -----------------------------------------------------------------------------

def test_boxes_are_in_pixels_of_the_full_picture_and_named(folder, picture):
    conversation = make_conversation(folder, [picture])
    assert conversation.boxes() == []
    conversation.turns = [("[refer] where is the green ship ?", "{<0><50><100><99>}")]
    (name, box), = conversation.boxes()
    assert name == "the green ship" and box == pytest.approx((0.305, 23.735, 61, 46.765))
    conversation.turns = [("[detection] ships", "<p>ships</p> {<0><0><9><9>}<delim>{<5><5><9><9>}")]
    assert [name for name, _ in conversation.boxes()] == ["ships", "ships"]
    assert conversation.boxes(1) == []


def test_save_writes_the_drawn_picture_and_the_conversation(folder, picture, tmp_path, capsys):
    conversation = make_conversation(folder, [picture])
    conversation.turns = [("[refer] a ship", "{<10><10><60><60>}")]
    conversation.save(tmp_path / "out.png")
    conversation.save(tmp_path / "out.json")
    assert Image.open(tmp_path / "out.png").size == (61, 47)
    assert Image.open(tmp_path / "out.png").tobytes() != load_image(picture).tobytes()
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert [turn["value"] for turn in row["conversations"]] == list(conversation.turns[0])
    assert f"saved {tmp_path / 'out.json'}" in capsys.readouterr().err
    conversation.turns = [("[vqa] a ship", "yes")]
    conversation.save(tmp_path / "none.png")
    told = capsys.readouterr().err
    assert told == f"saved {tmp_path / 'none.png'}, without a box: the last answer has none\n"


def test_a_saved_conversation_is_training_data(folder, picture, tmp_path):
    other = tiny.picture(tmp_path / "below" / "b.png", 20, 30)
    conversation = make_conversation(folder, [picture, other])
    first, last = ("[refer] a ship", "{<10><10><60><60>}"), ("why ?", "a road")
    conversation.turns = [first, ("stopped", ""), last]
    conversation.save(tmp_path / "talk.json")
    (sample,) = read_data(tmp_path / "talk.json")
    assert sample.images == (picture, other) and sample.turns == (first, last)
    batch = tiny.rows([sample])[0, 0]
    assert len(batch["images"]) == 2 and (batch["labels"] != -100).any()


# ---- sampling ------------------------------------------------------------------------------------

def test_a_seed_repeats_the_answers_and_asking_again_samples_anew(folder, picture):
    def answers():
        conversation = make_conversation(folder, [picture], 9, {
            "temperature": 1.5, "generator": torch.Generator().manual_seed(7)})
        first = "".join(conversation.ask("a road ?"))
        return first, "".join(conversation.ask(conversation.undo()))

    first, second = answers()
    assert first != second and answers() == (first, second)


# ---- flags ---------------------------------------------------------------------------------------

def test_flags_without_a_value_have_the_documented_defaults():
    config = chat.parse_args([])
    assert (config.temperature, config.top_p, config.top_k, config.seed) == (None, 0.9, 50, 42)
    assert config.images == config.prompt == config.bands == ()
    assert config.conversation is config.preview is None and not config.free
    assert config.auto_task and not config.each


def test_every_flag_is_read():
    config = chat.parse_args("a.png b.png --prompt x --prompt y --bands 4,3,2 --frames 3 --free "
                             "--no-auto-task --no-preview --max-new-tokens 7 --save out.png --json "
                             "--temperature 0.3 --bits 8 --dtype bf16 --compile".split())
    assert config.images == ("a.png", "b.png") and config.prompt == ("x", "y")
    assert config.bands == (4, 3, 2) and config.frames == 3 and config.max_new_tokens == 7
    assert config.auto_task is config.preview is False and config.save.name == "out.png"
    assert config.free and config.json and config.compile and config.temperature == 0.3
    assert (config.bits, config.dtype) == (8, "bf16")


@pytest.mark.parametrize("flags", ["--top_p 1.5", "--top_k -1", "--frames 0", "--temperature nan",
                                   "--max_new_tokens 0", "--repetition_penalty -1", "--bands 0",
                                   "--seed x", "--pro x", "--bits 5"])
def test_a_value_out_of_range_is_refused(flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        chat.parse_args(flags.split())
    assert flags.split()[0] in capsys.readouterr().err


# ---- the script ----------------------------------------------------------------------------------

@pytest.mark.parametrize(("flags", "interactive", "asked"), [
    ([], False, "[detection] ships"), ([], True, "[detection] ships"),
    (["--no-auto_task"], False, "find all ships"), (["--no-auto_task"], True, "find all ships")])
def test_requests_get_their_task_everywhere_unless_a_flag_says_no(
        folder, picture, flags, interactive, asked, monkeypatch, capsys):
    monkeypatch.setattr(chat, "is_interactive", lambda: interactive)
    monkeypatch.setattr(chat, "prepare_streams", lambda: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO("find all ships\n[vqa] find all ships\n/undo\n"
                                                  "/undo\n"))
    assert chat.main([picture, "--model", str(folder), "--max_new_tokens", "3", *flags]) == 0
    shown = capsys.readouterr().err
    assert "taken back: [vqa] find all ships" in shown and f"taken back: {asked}\n" in shown
    assert shown.count("([") == shown.count("([detection] ships)") == (asked != "find all ships")


def test_the_questions_of_a_script_are_answered_alone_unless_they_are_a_conversation(
        folder, picture):
    asked = ["tell me about it", "[vqa] a road ?", "tell me about it"]
    prompts = [word for question in asked for word in ("--prompt", question)]
    first = make_conversation(folder, [picture], 6, {
        "temperature": 1.5, "generator": torch.Generator().manual_seed(42)})
    turns = ["".join(first.ask(question)) for question in asked]
    flags = (picture, "--model", folder, "--max_new_tokens", 6, "--temperature", 1.5, "--top_p", 1,
             "--top_k", 0, "--repetition_penalty", 1, "--json")

    def answers(*more, stdin=""):
        done = run_chat(*flags, *more, stdin=stdin)
        assert done.returncode == 0 and done.stderr == ""
        return [json.loads(line)["answer"] for line in done.stdout.splitlines()]

    alone = answers(stdin="\n".join(asked))
    assert alone == answers(*prompts) and alone[0] == alone[2] == turns[0]
    assert answers(stdin="\n".join(reversed(asked))) == alone[::-1]
    assert answers("--prompt", asked[1]) == alone[1:2]
    assert answers("--conversation", stdin="\n".join(asked)) == turns != alone


def test_questions_asked_alone_are_saved_as_a_row_each(folder, picture, tmp_path):
    for flag, rows in ((), 2), (("--conversation",), 1):
        file = tmp_path / f"{rows}.json"
        assert run_chat(picture, "--model", folder, "--prompt", "a road ?", "--prompt", "a ship ?",
                        "--save", file, *flag).returncode == 0
        samples = read_data(file)
        assert len(samples) == rows and sum(len(sample.turns) for sample in samples) == 2


def test_a_picture_much_larger_than_the_model_sees_is_told_once(folder, tmp_path, capsys):
    large = tiny.picture(tmp_path / "large.png", 8 * tiny.VIT.image_size + 1, 20)
    fits = tiny.picture(tmp_path / "fits.png", 8 * tiny.VIT.image_size, 20)
    conversation = make_conversation(folder, [large, fits])
    told = capsys.readouterr().err
    assert told.startswith(f"{large}: the model sees its 241 x 20 pixels as 30 x 30")
    assert told.count("\n") == 1
    assert "smaller than about 16 pixels: ask about it in tiles (--tiles 60" in told
    assert "of up to 240 pixels" in told
    list(conversation.ask("a road ?"))
    conversation.about([large])
    assert capsys.readouterr().err == ""


def test_prompts_are_answered_in_order_on_standard_output(folder, picture):
    done = run_chat(picture, "--model", folder, "--prompt", "a road ?", "--prompt", "a river ?",
                    "--max-new-tokens", "4", "--no-auto_task")
    assert done.returncode == 0 and done.stderr == ""
    assert len([line for line in done.stdout.split("\n") if not line.startswith("  ")]) == 3


def test_piped_questions_are_answered_line_by_line_and_errors_go_to_stderr(folder, picture):
    done = run_chat(picture, "--model", folder, "--max_new_tokens", "3",
                    stdin="/help\n\n[juggle] x\n/image nowhere.png\n[vqa] a road ?\n/quit\nx\n")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "chat.py: [juggle]: unknown task" in done.stderr
    assert "nowhere.png: no such picture" in done.stderr
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("text, asked, refused", [
    (b"\xef\xbb\xbf[vqa] a road ?\n", ["[vqa] a road ?"], ""),
    (b"\xef\xbb\xbf\r\n[vqa] a ?\r\n[vqa] b ?\r\n", ["[vqa] a ?", "[vqa] b ?"], ""),
    ("[vqa] a\u2028b\x85c\x0cd ?\n[vqa] \u6e2f ?".encode(),
     ["[vqa] a\u2028b\x85c\x0cd ?", "[vqa] \u6e2f ?"], ""),
    (b"[vqa] a\rb ?\n", ["[vqa] a\rb ?"], ""),
    ("[vqa] caf\u00e9 ?\n[vqa] b ?\n".encode("latin-1"), ["[vqa] b ?"], "iconv -f WINDOWS-1252"),
    ("[vqa] a ?\n".encode("utf-16"), [], "iconv -f UTF-16"),
    ("[vqa] a ?\n".encode("utf-16-le") + b"\n[vqa] b ?\n", ["[vqa] b ?"], "iconv -f UTF-16"),
    (b"[vqa] " + b"a road " * 100_000 + b"\n[vqa] b ?\n", ["[vqa] b ?"], "ask shorter")])
def test_any_bytes_on_a_pipe_are_a_question_or_a_refusal_in_a_line(
        text, asked, refused, folder, picture, monkeypatch, capsys):
    """Lines end in \n or \r\n alone; the first may begin with a byte-order mark."""
    pipe = io.TextIOWrapper(io.BytesIO(text), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", pipe)
    for name in ("stdout", "stderr"):                           # main sets how they are encoded
        monkeypatch.setattr(getattr(sys, name), "reconfigure", lambda **_: None, raising=False)
    code = chat.main([picture, "--model", str(folder), "--max_new_tokens", "2", "--json"])
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["question"] for row in rows if "answer" in row] == asked
    errors = printed.err.splitlines()
    assert code == (2 if refused else 0) and bool(errors) == bool(refused)
    assert all(refused in line and len(line) < 300 for line in errors[:1])
    assert all(len(row["question"]) <= 1000 for row in rows)


def test_json_is_one_object_a_line():
    harbor = "examples/harbor.png"
    done = run_chat(harbor, "--json", stdin="[refer] where is the largest ship ?\n[juggle] x\n"
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
    (["{picture}", "--model", "{tmp}/broken"], "model.safetensors"),
    (["{picture}", "--device", "juggler"], "--device juggler: "),
])
def test_mistakes_end_with_one_line_and_exit_code_2(args, named, folder, picture, tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    broken = tiny.model_folder(tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    model = [] if "--model" in args else ["--model", folder]
    done = run_chat(*(arg.format(tmp=tmp_path, picture=picture) for arg in args), *model,
                    *([] if "--prompt" in args else ["--prompt", "x"]))
    assert done.returncode == 2 and named in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr


def test_compile_without_a_compiler_is_one_line(folder, picture, monkeypatch):
    monkeypatch.setenv("CXX", "nowhere-c++")
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    done = run_chat(picture, "--model", folder, "--prompt", "a road ?", "--compile")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("chat.py: --compile: InvalidCxxCompiler")


def test_a_full_gpu_is_one_line():
    done = subprocess.run([sys.executable, "-c", """
import runpy, sys, torch, projector
def full(*args):
    raise torch.OutOfMemoryError("CUDA out of memory.")
projector.SkyEyeGPT.from_pretrained = full
sys.argv = ["chat.py"]
runpy.run_path("chat.py", run_name="__main__")"""], cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "GPU's memory is full; try --dtype bf16, --bits 8" in done.stderr
