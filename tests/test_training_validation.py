"""Held-out rows, the model's answers on the way, and one batch learned by heart."""
import dataclasses
import json
import shutil

import pytest
import torch

import tiny
import train
from data import PROMPTS, Tokenizer, collate, encode_conversation
from lora import LoRAConfig
from support.common import UserError
from support.readers.common import Sample, SampleTable
from support.training.answers import Answered, count_right, rates, split_row
from support.training.data_sets import hold_out, limit_rows
from support.training.validation import Probe, Validation, describe_batch, without_markup
from test_training_distributed import start

MODEL = dataclasses.replace(tiny.SKYEYE, lora=LoRAConfig(r=7, alpha=11.0, dropout=0.3))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model folder with dropout, and 12 rows about pictures with 2 without one."""
    place = tmp_path_factory.mktemp("place")
    tiny.model_folder(place / "model", MODEL)
    tiny.conversations(place, count=12, texts=2)
    (place / "held").mkdir()
    tiny.conversations(place / "held", count=5, texts=1)
    return place


def run(place, out, *flags):
    """-> log.jsonl, and the trained weights."""
    assert train.train(train.parse_args([
        "--model", str(place / "model"), "--data", str(place / "conversations.json"), "--tune",
        "lora", "--max_steps", "6", "--batch_size", "2", "--lr", "1e-2", "--log_steps", "1",
        "--device", "cpu", "--output_dir", str(out), *flags])) == 0
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return log, (out / "adapter.safetensors").read_bytes()


# ---- which rows ----------------------------------------------------------------------------------

def table(*rows):
    """Samples of these pictures, () for none."""
    return SampleTable(vars(Sample(tuple(paths), (("q", f"answer {i}"),), "vqa", f"row {i}"))
                       for i, paths in enumerate(rows))


def pictures(samples):
    return {path for sample in samples for path in sample.images}


def test_no_picture_is_both_trained_on_and_held_out():
    """Questions about one picture stay together, also in another data set or beside another one."""
    one = table(*[[f"/{i // 3}.png"] for i in range(60)], ["/1.png", "/2.png"], [], [])
    two = table(["/3.png"], ["/30.png"], ["/31.png"], ["/2.png", "/5.png"])
    for seed in range(20):
        (a, b), held = hold_out([one, two], 0.2, seed, ["one", "two"])
        assert not (pictures(a) | pictures(b)) & pictures(held)
        assert len(a) + len(b) + len(held) == len(one) + len(two)
        assert 13 <= len(held) <= 13 + 13       # a fifth, and what shares its last picture
    again = hold_out([one, two], 0.2, 19, ["one", "two"])[1]
    assert list(again) == list(held) != list(hold_out([one, two], 0.2, 0, ["one", "two"])[1])


def test_without_val_part_every_row_is_trained_on():
    samples = table(["/1.png"], [])
    assert hold_out([samples], 0.0, 42, ["a"])[0] == [samples]


def test_a_part_that_leaves_nothing_to_train_on_is_one_line():
    samples = table(["/1.png"], ["/1.png"])
    line = tiny.refusal(UserError, hold_out, [samples], 0.1, 42, ["mine.json"])
    assert line.startswith("--val_part 0.1: all rows of mine.json") and "--val_data" in line


def test_limit_draws_so_many_rows_in_their_order():
    samples = table(*[[f"/{i}.png"] for i in range(50)])
    some, others = limit_rows(samples, 10, 1), limit_rows(samples, 10, 2)
    numbers = [int(sample.source[4:]) for sample in some]
    assert len(some) == 10 and numbers == sorted(set(numbers)) and list(some) != list(others)
    assert limit_rows(samples, 0, 1) is samples and limit_rows(samples, 99, 1) is samples


# ---- a run with held-out rows --------------------------------------------------------------------

def test_held_out_rows_change_no_bit_of_the_training_and_a_resumed_run_measures_the_same(
        place, tmp_path):
    flags = ("--val_data", str(place / "held/conversations.json"), "--val_steps", "2",
             "--save_steps", "3")
    plain_log, plain = run(place, tmp_path / "plain")
    log, weights = run(place, tmp_path / "out", *flags)
    assert weights == plain
    steps = [row for row in log if "loss" in row]
    assert [row["loss"] for row in steps] == [row["loss"] for row in plain_log]
    measured = [row for row in log if "val_loss" in row]
    assert [row["step"] for row in measured] == [0, 2, 4, 6]
    assert all(row["val_rows"] == 6 and 0 <= row["val_exact"] <= 1 for row in measured)
    assert len({row["val_loss"] for row in measured}) == 4
    shutil.copytree(tmp_path / "out/checkpoint-3", tmp_path / "again/checkpoint-3")
    resumed, again = run(place, tmp_path / "again", "--resume", "auto", *flags)
    assert again == weights and [row for row in resumed if "val_loss" in row] == measured[2:]


def test_a_held_out_part_is_left_out_of_the_rows(place, tmp_path, capsys):
    log, _ = run(place, tmp_path, "--val_part", "0.25")
    told = capsys.readouterr().err
    assert "10 samples in 10 rows an epoch" in told
    measured = [row for row in log if "val_loss" in row]
    assert measured[0]["val_rows"] == 4 and measured[-1]["step"] == 6
    last = told.splitlines()[-2 if "matplotlib" in told.splitlines()[-1] else -1]
    assert last.startswith(f"learned: loss {log[1]['loss']:.3f} -> ")
    assert f"held out (4 rows): loss {measured[0]['val_loss']:.3f} -> " in last
    assert "answers to training rows" in last


def test_pictures_of_val_data_that_are_trained_on_are_told(place, tmp_path, capsys):
    run(place, tmp_path, "--val_data", str(place / "conversations.json"), "--max_steps", "1")
    assert "note: 12 pictures of --val_data are trained on too" in capsys.readouterr().err


def test_the_loss_of_held_out_rows_is_the_mean_over_their_supervised_tokens(place):
    rows = tiny.rows(tiny.captions(place / "captions", 5), questions_per_row=1)
    model = tiny.skyeye(MODEL).train()
    probe = Probe(model, tiny.tokenizer(), "cpu", torch.float32, batch_size=2)
    found = Validation(probe, rows, 1, 9).measure()
    assert model.training
    with torch.no_grad():
        wanted = model.eval()(**collate([rows[0, i] for i in range(5)])).item()
    assert found["val_loss"] == pytest.approx(wanted, rel=1e-5) and found["val_rows"] == 5


def test_two_processes_measure_what_one_does_also_with_a_part_of_the_model_each(place, tmp_path):
    """Of five rows with batches of two, one process has none left in the last round."""
    base = tiny.model_folder(tmp_path / "model", dataclasses.replace(tiny.SKYEYE, lora=None))
    flags = ["--model", str(base), "--data", str(place / "conversations.json"), "--val_data",
             str(place / "held/conversations.json"), "--max_steps", "1", "--batch_size", "2",
             "--device", "cpu", "--feature_cache", "0", "--lora_dropout", "0", "--tune", "lora"]
    runs = [[*flags, "--output_dir", str(tmp_path / name), *more]
            for name, *more in (("plain",), ("sharded", "--shard"))]
    done = start("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                 "tests/processes.py", json.dumps(runs))
    assert done.returncode == 0, done.stderr
    train.train(train.parse_args([*flags, "--batch_size", "4", "--output_dir",
                                  str(tmp_path / "one")]))
    logs = {name: [row for row in map(json.loads, (tmp_path / name / "log.jsonl").open())
                   if "val_loss" in row] for name in ("one", "plain", "sharded")}
    assert [row["step"] for row in logs["one"]] == [0, 1]
    for name in ("plain", "sharded"):
        for row, wanted in zip(logs[name], logs["one"], strict=True):
            assert row["val_loss"] == pytest.approx(wanted["val_loss"], rel=1e-4)
            assert row["val_rows"] == wanted["val_rows"] == 6
            assert row.get("val_exact", 0) == wanted["val_exact"] or name == "sharded"
    assert "val_exact" not in logs["sharded"][0]        # nobody has the whole model


# ---- answers -------------------------------------------------------------------------------------

def test_the_questions_of_a_row_are_those_that_are_asked_later(tmp_path):
    """Several questions packed in a row, and the turns of a conversation after the true answers."""
    path, tokenizer = tiny.picture(tmp_path / "a.png"), tiny.tokenizer()
    turns = [("is there a road ?", "yes"), ("where is the ship ?", "in the harbor")]
    packed = tiny.rows([Sample((path,), (turn,), "conversation", "a") for turn in turns],
                       questions_per_row=2)
    talk = tiny.rows([Sample((path,), tuple(turns), "conversation", "a")])
    asked = {tuple(question.prompt.tolist()): tokenizer.decode(question.truth.tolist())
             for question in split_row(packed[0, 0])}
    assert asked == {tuple(encode_conversation(tokenizer, [(question, None)], tiny.N)[0]): answer
                     for question, answer in turns}
    first, second = split_row(talk[0, 0])
    assert first.prompt.tolist() == encode_conversation(tokenizer, [(turns[0][0], None)], tiny.N)[0]
    assert second.prompt.tolist() == encode_conversation(
        tokenizer, [turns[0], (turns[1][0], None)], tiny.N)[0]
    assert second.truth[-1] == tokenizer.eos


def test_texts_count_where_they_are_exact_and_boxes_where_they_overlap_by_half():
    box, near, far = "{<10><10><50><50>}", "{<12><10><52><50>}", "{<60><60><80><80>}"
    two = f"<p>ships</p> {box}<delim>{far}"
    pairs = [("yes", "yes"), ("yes", "no"), ("there is none", box), (box, near), (box, far),
             (box, "there is none"), (two, f"<p>ships</p> {near}")]
    found = rates(count_right([Answered(b"", "", *pair) for pair in pairs]))
    assert found == {"exact": 0.3333, "pr_50": 0.3333, "f1_50": 0.6667}
    assert rates(count_right([])) == {}
    point = "{<10><10><10><10>}"
    assert Answered(b"", "", point, point).right        # a box without an area, word for word


# ---- one batch -----------------------------------------------------------------------------------

def overfit(place, out, data, capsys, *flags):
    train.train(train.parse_args([
        "--model", str(place / "model"), "--data", str(data), "--overfit_one_batch", "--tune",
        "full", "--optimizer", "adamw", "--batch_size", "4", "--device", "cpu", "--clip", "1",
        "--output_dir", str(out), *flags]))
    lines = capsys.readouterr().err.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("one batch: "))
    return [line for line in lines[first:] if "matplotlib" not in line]


def test_one_batch_is_learned_by_heart_and_what_that_means_is_told(place, tmp_path, capsys):
    data = place / "conversations.json"
    lines = overfit(place, tmp_path / "a", data, capsys, "--lr", "1e-2", "--max_steps", "120")
    assert lines[0].endswith("in 120 steps; 4 of 4 answers word for word")
    assert lines[1].startswith("data, model and training fit together") and len(lines) == 2
    lines = overfit(place, tmp_path / "b", data, capsys, "--lr", "1e-6", "--max_steps", "3")
    assert "the loss has hardly fallen" in lines[-1] and "the first wrong one: " in lines[1]


@pytest.mark.parametrize("style", PROMPTS)
def test_a_question_is_told_without_what_its_prompt_puts_around_it(place, style):
    tokenizer = Tokenizer(place / "model" / "tokenizer.model")
    for turns in ([("what is it ?", "a ship")], [("why ?", "so"), ("what is it ?", "a ship")]):
        ids, _, prefix = encode_conversation(tokenizer, [*turns[:-1], (turns[-1][0], None)], 3,
                                             style=style)
        told = without_markup(tokenizer.decode(ids[prefix:]))
        assert told.endswith("what is it ?") and not set("<>[]") & set(told)
        assert len(turns) > 1 or told == "what is it ?"


def test_rows_that_contradict_each_other_are_found_in_the_batch():
    answers = [Answered(b"1", "what ?", truth, "a ship") for truth in ("a ship", "a car")]
    lines = describe_batch(3.0, 0.7, 200, answers)
    assert lines[0] == ("one batch: loss 3.000 -> 0.7000 in 200 steps; 1 of 2 answers word for "
                        "word")
    assert lines[1] == "the first wrong one: 'what ?' is answered 'a ship', not 'a car'"
    assert lines[2].startswith("what it means: 1 questions of the batch")
    apart = [Answered(bytes([i]), *found[1:]) for i, found in enumerate(answers)]
    assert "still falling" in describe_batch(3.0, 0.7, 200, apart)[-1]
    assert "near 0" in describe_batch(3.0, 0.01, 200, apart)[-1]


def test_every_step_of_one_batch_has_the_rows_of_the_first(tmp_path):
    rows = tiny.rows(tiny.captions(tmp_path, 6))
    schedule = train.BatchSchedule(rows, 2, 2, 5, one_batch=True)
    assert list(schedule.keys(0)) == [[(0, 0), (0, 1)], [(0, 2), (0, 3)]] * 5
    assert list(schedule.keys(3)) == list(schedule.keys(0))[6:]
