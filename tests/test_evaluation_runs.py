"""What a run wrote is read again, every question is in one batch, and hashes name what was used."""
import hashlib
import json
import re
from types import SimpleNamespace

import pytest

import support.evaluation.runs as runs
from data_folders import write
from prediction_rows import EXTERNAL_ROWS
from support.common import UserError, device_name, load_ahead
from support.evaluation.runs import (
    gather_predictions,
    group_by_picture,
    hash_samples,
    hash_texts,
    hash_weights,
    load_predictions,
    make_batches,
    provenance,
    provenance_line,
    read_jsonl,
    read_record,
)
from support.readers.common import Sample

# ---- predictions ---------------------------------------------------------------------------------

def test_what_processes_wrote_is_merged_in_order_once_without_a_cut_off_line(tmp_path):
    write(tmp_path / "predictions.jsonl", '{"row": 4}\n{"row": 1}\n')
    write(tmp_path / "predictions.rank0.jsonl", '{"row": 1}\n{"row": 0}\n{"row": 2, "ans')
    write(tmp_path / "predictions.rank3.jsonl", '{"row": 3}\n')
    assert [row["row"] for row in gather_predictions(tmp_path)] == [0, 1, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]
    assert gather_predictions(tmp_path) == read_jsonl(tmp_path / "predictions.jsonl")
    write(tmp_path / "predictions.jsonl", '{"row": 4}\n{"row"\n{"row": 5}\n')
    with pytest.raises(UserError, match=r"predictions\.jsonl:2"):
        gather_predictions(tmp_path)


@pytest.mark.parametrize(("change", "message"), [
    ({"task": "poem"}, "poem"), ({"answer": None}, "a text is expected"),
    ({"answer": ...}, "no 'answer'"), ({"size": ...}, "size is the width"),
    ({"size": [5]}, "size is the width"), ({"boxes": [[1, 2, 3]]}, "four numbers"),
    ({"boxes": []}, "no references"), ({"boxes": [["a", 2, 3, 4]]}, "could not convert"),
    ({"boxes": [[300, 2, 400, 4]]}, "is not in a picture of 100 x 200")])
def test_a_row_that_cannot_be_scored_is_named(change, message, tmp_path):
    row = {k: v for k, v in (EXTERNAL_ROWS[0] | change).items() if v is not ...}
    file = write(tmp_path / "theirs.jsonl", json.dumps(EXTERNAL_ROWS[0]) + "\n" + json.dumps(row))
    with pytest.raises(UserError, match=message) as error:
        load_predictions(file)
    assert f"{file}:2: " in str(error.value)


@pytest.mark.parametrize("line", [
    "42", '["a", "list"]', "null", '{"row"', "INFO 12:00 loaded the model", "[" * 100_000,
    '{"task": "vqa", "answer": "yes", "references": [true]}',
    '{"task": "vqa", "answer": {"text": "yes"}, "references": ["yes"]}',
    '{"task": "vqa", "answer": "yes", "references": ["yes"], "type": ["a"]}',
    '{"task": ["vqa"], "answer": "yes", "references": ["yes"]}',
    '{"task": "refer", "answer": "", "boxes": [[1, 2, 3, 4]], "size": [100, 100], "pad": "no"}',
    '{"task": "refer", "answer": "", "boxes": [[1, 2, 3, 4]], "size": [100, Infinity]}',
    '{"task": "refer", "answer": "", "boxes": [[1, 2, 3, %s]], "size": [9, 9]}' % ("9" * 400)])
def test_a_foreign_line_is_named_by_its_number_blank_lines_counted(line, tmp_path):
    file = write(tmp_path / "theirs.jsonl", f"{json.dumps(EXTERNAL_ROWS[0])}\n\n{line}\n"
                 f"{json.dumps(EXTERNAL_ROWS[1])}\n")
    with pytest.raises(UserError) as error:
        load_predictions(file)
    assert str(error.value).startswith(f"{file}:3: ") and "\n" not in str(error.value)


def test_null_is_as_if_the_name_were_missing_and_a_number_is_a_text(tmp_path):
    rows = [{"task": "vqa", "answer": 3, "references": [3], "type": None, "question": None},
            {"task": "vqa", "answer": "x\u2028y\x85z", "references": "\ud800", "image": None}]
    text = "\n".join(json.dumps(row, ensure_ascii=i == 1) for i, row in enumerate(rows))
    found = load_predictions(write(tmp_path / "theirs.jsonl", text))
    assert [(row["answer"], row["references"], row["type"]) for row in found] == [
        ("3", ["3"], ""), ("x\u2028y\x85z", ["\ud800"], "")]
    assert found[1]["image"] == ["row 1"]


def test_a_line_of_another_program_in_our_answers_is_named(tmp_path):
    for line in ('{"loss": 1}', '{"row": "3"}', '{"row": -1}', '{"row": true}'):
        write(tmp_path / "predictions.jsonl", f'{{"row": 1}}\n{line}\n')
        with pytest.raises(UserError, match=r"predictions\.jsonl:2: "):
            gather_predictions(tmp_path)


@pytest.mark.parametrize("entries", [
    {"model": 5}, {"limit": [1]}, {"limit": "9"}, {"left_out": {}}, {"benchmark": ["rsvg"]},
    {"split": 3}, {"sample": []}])
def test_settings_that_eval_py_does_not_write_are_named(entries, tmp_path):
    record = {"model": "nano", "limit": 9, "benchmark": "", "weights": {}}
    write(tmp_path / "p.settings.json", json.dumps(record) + "\n")
    assert read_record(tmp_path / "p.jsonl") == record
    write(tmp_path / "p.settings.json", json.dumps(record | entries) + "\n")
    with pytest.raises(UserError, match=f"not the settings of a run .*{[*entries][0]} is"):
        read_record(tmp_path / "p.jsonl")


# ---- groups and batches --------------------------------------------------------------------------

def questions_about(*pictures):
    return [Sample((picture,), (("?" * (i % 5), "yes"),), "vqa", "")
            for i, picture in enumerate(pictures)]


def test_every_question_is_in_one_group_with_its_picture_and_no_batch_is_too_large():
    samples, kinds = questions_about(*"abcabcabbbbbbbc"), dict.fromkeys(range(15), "vqa")
    groups = group_by_picture(samples, range(1, 15), 4, kinds)
    assert sorted(sum(groups, [])) == list(range(1, 15))
    assert all(len({samples[i].images for i in own}) == 1 and len(own) <= 4 for own in groups)
    assert sum(samples[own[0]].images == ("b",) for own in groups) == 3     # ten questions
    batches = list(make_batches(groups, 6, kinds))
    assert sum(batches, []) == groups
    assert all(sum(map(len, batch)) <= 6 for batch in batches)


def test_kinds_are_never_in_one_batch():
    samples, kinds = questions_about(*"aaaabbbb"), {i: i % 2 for i in range(8)}
    groups = group_by_picture(samples, range(8), 9, kinds)
    assert sorted(map(sorted, groups)) == [[0, 2], [1, 3], [4, 6], [5, 7]]
    for batch in make_batches(groups, 9, kinds):
        assert len({i % 2 for own in batch for i in own}) == 1


def test_loading_ahead_loses_nothing_and_an_error_comes_in_its_turn():
    assert list(load_ahead(x + 1 for x in (1, 2, 3))) == [2, 3, 4] and not list(load_ahead([]))
    coming = load_ahead(1 / x for x in (1, 0, 2))
    assert next(coming) == 1
    with pytest.raises(ZeroDivisionError):
        next(coming)


# ---- provenance ----------------------------------------------------------------------------------

def test_weights_are_hashed_as_sha256sum_does_and_large_ones_of_a_base_have_their_size(
        tmp_path, monkeypatch):
    base, model = tmp_path / "base", tmp_path / "model"
    base.mkdir()
    model.mkdir()
    (base / "llama.safetensors").write_bytes(b"x" * 5000)
    (base / "notes.txt").write_text("not weights")
    (model / "adapter.safetensors").write_bytes(b"y" * 5000)
    (model / "config.json").write_text(json.dumps({"base": "../base"}))
    found = hash_weights(model)
    own = hashlib.sha256(b"y" * 5000).hexdigest()[:16]
    inner = "../base/llama.safetensors"
    assert found.keys() == {"adapter.safetensors", "config.json", inner}
    assert found["adapter.safetensors"] == own
    assert found[inner] == hashlib.sha256(b"x" * 5000).hexdigest()[:16]
    monkeypatch.setattr(runs, "LARGE_FILE", 4000)
    assert hash_weights(model) == found | {inner: "5,000 bytes"}


def test_the_hash_of_texts_depends_on_each_their_order_and_where_each_ends():
    texts = [["ab", "c"], ["a", "bc"], ["c", "ab"], ["ab", "c", ""], ["ab", "d"]]
    assert len({hash_texts(text) for text in texts}) == len(texts)
    assert hash_texts(iter(texts[0])) == hash_texts(texts[0])


def test_the_hash_of_the_data_stays_when_their_folder_moves():
    def sample(**more):
        return SimpleNamespace(**{"images": ("/here/a.png",), "turns": (("where ?", "<bbox>"),),
                                  "kind": "", "boxes": ((1, 2, 3, 4),), "references": ()} | more)
    samples = [sample(), sample(images=("/there/a.png",)), sample(images=("/here/b.png",)),
               sample(boxes=((1, 2, 3, 5),)), sample(references=("x",)), sample(kind="area"),
               sample(turns=(("where ?", "<bbox>."),))]
    found = [hash_samples([one]) for one in samples]
    assert found[0] == found[1] and len(set(found)) == len(found) - 1


def test_the_provenance_is_one_line_that_names_everything(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    record = provenance(tmp_path, "cpu", split="test", rows=210, dtype="bf16", seed=0, note="",
                        limit=None, decoding={"greedy": "up to 60 tokens"})
    text = provenance_line(json.loads(json.dumps(record)))
    assert text.startswith(f"model {tmp_path.name}; ") and record["device"] == device_name("cpu")
    assert re.search("; split test; rows 210; dtype bf16; seed 0; decoding greedy up to 60 tokens; "
                     "weights model.safetensors [0-9a-f]{16}$", text)
    for name in ("python", "torch", "numpy", "pillow", "safetensors", "sentencepiece", "device"):
        assert f"; {name} {record[name]}" in text
    assert "note" not in text and "limit" not in text and "\n" not in text
