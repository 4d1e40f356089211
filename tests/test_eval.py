"""Benchmarks by their own files: every row asked once and scored once, also when a run is stopped.
"""
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

import eval as evaluation
import tiny
from data import encode_conversation, load_images
from data_folders import FIXTURES, real, write
from eval import EVAL_PROMPTS, Group, answer_log_likelihoods
from prediction_rows import EXTERNAL_ROWS
from projector import SkyEyeGPT
from support.common import UserError
from support.evaluation.benchmarks import BENCHMARKS, Job
from support.readers import read_data
from support.readers.common import DataError, Sample


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.model_folder(tmp_path_factory.mktemp("model"))


def save_pictures(folder, *names):
    for seed, name in enumerate(names):
        tiny.picture(folder / name, 40 + seed, 30, seed)


# ---- each benchmark in the layout it was published in --------------------------------------------

def captions(folder, images="images"):
    write(folder / "dataset.json", {"images": [
        {"filename": f"{i}.png", "split": "test",
         "sentences": [{"raw": f"a river {k}"} for k in range(5)]} for i in range(3)]})
    save_pictures(folder / images, *(f"{i}.png" for i in range(3)))


def nwpu(folder):
    texts = {"raw" if k == 0 else f"raw_{k}": f"a plane {k} ." for k in range(5)}
    write(folder / "dataset_nwpu.json", {"airplane": [
        texts | {"filename": f"airplane_{i}.png", "split": "test"} for i in range(3)]})
    save_pictures(folder / "airplane", *(f"airplane_{i}.png" for i in range(3)))


def capera(folder):
    write(folder / "CapERA_DATASET_test.json", {"ERA_caption": [
        {"video_id": f"Fire_{i}.mp4",
         "annotation": {"English_caption": [f"a fire {k}" for k in range(5)]}} for i in range(2)]})
    for i in range(2):
        save_pictures(folder / "Videos" / f"Fire_{i}", *(f"{k}.png" for k in range(3)))


def rsvqa(folder, splits=("test",)):
    kinds = {"presence": "yes", "comp": "no", "count": "3", "rural_urban": "rural"}
    for split in splits:
        rows = [{"id": 4 * i + k, "img_id": i, "type": kind, "question": f"Is {kind} so?",
                 "answers_ids": [4 * i + k], "active": True}
                for i in range(2) for k, kind in enumerate(kinds)]
        answers = [{"id": 4 * i + k, "active": True, "answer": answer if i else
                    {"yes": "no", "no": "yes", "rural": "urban"}.get(answer, answer)}
                   for i in range(2) for k, answer in enumerate(kinds.values())]
        for what, found in (("images", [{"id": i, "active": True} for i in range(2)]),
                            ("questions", rows), ("answers", answers)):
            write(folder / f"LR_split_{split}_{what}.json", {what: found})
    for i in range(2):
        (folder / "Images_LR").mkdir(parents=True, exist_ok=True)
        Image.open(tiny.picture(folder / "p.png", seed=i)).save(folder / "Images_LR" / f"{i}.tif")


def rsivqa(folder):
    write(folder / "ucm_test.txt", "1.png:Is there a road?yes\n1.png:How many trees?one\n"
                                   "2.png:Is there a road?no\n")
    save_pictures(folder / "imgs", "1.png", "2.png")


def floodnet(folder):
    write(folder / "Questions/Test_Question.json", {
        str(i): {"Image_ID": f"{i % 2}.png", "Question": "Is it flooded?", "Ground_Truth": answer,
                 "Question_Type": "Yes_No"} for i, answer in enumerate(("Yes", "No", "Yes"))})
    save_pictures(folder / "Images/Test_Image", "0.png", "1.png")


def grounding(folder):
    """Two pictures, two expressions each; the test split has three of the four."""
    for i in range(2):
        objects = "".join(f"<object><name>ship</name><bndbox><xmin>{k}</xmin><ymin>2</ymin>"
                          "<xmax>30</xmax><ymax>20</ymax></bndbox>"
                          f"<description>the ship {i} {k}</description></object>" for k in range(2))
        write(folder / f"Annotations/{i}.xml", "<annotation>"
              f"<filename>{i}.png</filename>{objects}</annotation>")
    for split in ("val", "test"):
        write(folder / f"{split}.txt", "0\n1\n3\n")
    save_pictures(folder / "JPEGImages", "0.png", "1.png")


def phrases(folder):
    write(folder / "phrasegrounding/diorpg_test.json", [
        {"image": "0.png", "phrase": "ships", "bbox": [[1, 2, 9, 9], [11, 2, 29, 19]]},
        {"image": "0.png", "phrase": "a dam", "bbox": [[3, 4, 30, 20]]}])
    write(folder / "caption/caption_UCM_test.json", [{"image": "0.png", "caption": "a river"}])
    save_pictures(folder / "images", "0.png")


def classes(folder):
    for label in ("DenseResidential", "Pond", "Beach"):
        save_pictures(folder / label, "1.png", "2.png")


LAYOUTS = {"ucm": captions, "sydney": captions, "rsicd": captions, "rsitmd": captions,
           "nwpu": nwpu, "capera": capera, "rsvqa-lr": rsvqa,
           "rsvqa-hr": lambda folder: rsvqa(folder, ("test", "test_phili")), "rsivqa": rsivqa,
           "floodnet": floodnet, "rsvg": grounding, "dior-rsvg": grounding, "rspg": phrases,
           "aid": classes, "resisc45": classes, "rsscn7": classes, "ucm-scene": classes}


def evaluate(*flags):
    evaluation.main([str(flag) for flag in flags])


def predictions(folder):
    return [json.loads(text) for text in (folder / "predictions.jsonl").read_text().splitlines()]


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_asked_by_its_name(name, model, tmp_path, capsys):
    LAYOUTS[name](tmp_path / "data")
    split = BENCHMARKS[name].splits[-1]
    evaluate("--model", model, "--benchmark", name, "--data", tmp_path / "data", "--split", split,
             "--output_dir", tmp_path / "out")
    known, [result] = BENCHMARKS[name], metrics(tmp_path / "out")["results"]
    assert (result["benchmark"], result["split"], result["task"]) == (name, split, known.task)
    samples = [s for s in read_data(tmp_path / "data", split) if s.task == known.task]
    rows = predictions(tmp_path / "out")
    assert result["rows"] == len(rows) == len(samples)
    assert {row["source"] for row in rows} == {
        sample.source.removeprefix(f"{tmp_path}/") for sample in samples}
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    prompt = EVAL_PROMPTS[known.task][0].split("{}")[0]
    assert all(row["question"].startswith(prompt) for row in rows)
    assert f"## {name} {split} {known.task}" in capsys.readouterr().out


def test_all_asks_what_is_there_names_what_is_missing_and_continues_after_a_broken_one(
        model, tmp_path, capsys):
    for name in ("ucm", "rsvqa-hr"):
        LAYOUTS[name](tmp_path / BENCHMARKS[name].folder)
    write(tmp_path / "dior-rsvg/Annotations/0.xml", "<annotation><object><description>")
    with pytest.raises(DataError, match=r"dior-rsvg test: .*test\.txt"):
        evaluate("--model", model, "--benchmark", "all", "--data", tmp_path, "--output_dir",
                 tmp_path / "out")
    found = [(r["benchmark"], r["split"]) for r in metrics(tmp_path / "out")["results"]]
    assert found == [("ucm", "test"), ("rsvqa-hr", "test"), ("rsvqa-hr", "test2")]
    missing = capsys.readouterr().err.splitlines()[0]
    assert "sydney (Sydney_captions)" in missing and "ucm (" not in missing
    assert "## rsvqa-hr test2 vqa" in (tmp_path / "out/table.md").read_text()


def test_rsvqas_mean_leaves_out_counts_and_the_papers_rows_stand_above(model, tmp_path, capsys):
    rsvqa(tmp_path / "data")
    evaluate("--model", model, "--benchmark", "rsvqa-lr", "--data", tmp_path / "data", "--rank",
             "--output_dir", tmp_path / "out")
    [result] = metrics(tmp_path / "out")["results"]
    figures = {name: figure["value"] for name, figure in result["figures"].items()}
    wanted = [figures[name] for name in ("presence", "comp", "rural_urban")]
    assert figures["mean of types"] == pytest.approx(sum(wanted) / 3) and "count" in figures
    assert "| SkyEyeGPT |" in capsys.readouterr().out
    assert "10,004 questions published, 8 found" in result["remarks"][0]


@pytest.mark.parametrize("kind", ["conversations", "metadata", "coco"])
def test_data_in_one_file_are_evaluated_with_their_pictures_elsewhere(kind, model, tmp_path):
    """Of the two folders' names only what is below the one that both are in is written."""
    tiny.picture(tmp_path / "home/pictures/a.png")
    turns = [{"from": "human", "value": "<image>\na road ?"}, {"from": "gpt", "value": "yes"}]
    talks = [{"image": "a.png", "conversations": turns}]
    file, text, task = {
        "conversations": ("a.json", json.dumps(talks), "vqa"),
        "metadata": ("metadata.csv", "file_name,text\na.png,a sea\na.png,a road", "caption"),
        "coco": ("boxes.json", json.dumps({
            "images": [{"id": 0, "file_name": "a.png"}], "categories": [{"id": 1, "name": "ship"}],
            "annotations": [{"image_id": 0, "category_id": 1, "bbox": [3, 2, 9, 9]}]}), "refer"),
    }[kind]
    place = write(tmp_path / "home/texts" / file, text)
    benchmark = {"vqa": "floodnet", "caption": "ucm", "refer": "rsvg"}[task]
    evaluate("--model", model, "--data", place, "--benchmark", benchmark, "--split", "test",
             "--image_folder", tmp_path / "home/pictures", "--output_dir", tmp_path / "out",
             "--sheet", tmp_path / "sheet.png")
    [row] = predictions(tmp_path / "out")
    assert row["task"] == task and row["image"] == ["pictures/a.png"]
    assert len(row["references"]) == (2 if task == "caption" else 1)
    assert str(tmp_path) not in json.dumps(row) and (tmp_path / "sheet.png").exists()


def test_a_llava_files_turns_are_questions_of_the_benchmarks_task(model, tmp_path):
    turns = [{"from": who, "value": text} for who, text in (
        ("human", "<image>\nIs it flooded?"), ("gpt", "Yes"), ("human", "Really?"), ("gpt", "No"))]
    write(tmp_path / "flood.json", [{"image": "0.png", "conversations": turns}])
    save_pictures(tmp_path, "0.png")
    evaluate("--model", model, "--benchmark", "floodnet", "--data", tmp_path / "flood.json",
             "--output_dir", tmp_path / "out")
    rows = predictions(tmp_path / "out")
    assert [(row["question"], row["references"]) for row in rows] == [
        ("[vqa] is it flooded?", ["Yes"]), ("[vqa] really?", ["No"])]


def test_a_turn_takes_the_boxes_that_stand_in_it(tmp_path):
    sample = Sample(("a.png",), (("what is at <bbox>", "a ship"), ("where?", "<bbox><bbox>")),
                    "conversation", "", boxes=((0, 0, 1, 1), (2, 2, 3, 3), (4, 4, 5, 5)))
    first, second = evaluation.split_turns(sample, "refer")
    assert (first.boxes, second.boxes) == (sample.boxes[:1], sample.boxes[1:])
    assert (first.turns, second.task) == (sample.turns[:1], "refer")


def test_the_prompt_can_be_replaced(model, tmp_path):
    rsivqa(tmp_path / "data")
    evaluate("--model", model, "--data", tmp_path / "data", "--output-dir", tmp_path / "out",
             "--prompt", "{} Answer in a word.")
    assert predictions(tmp_path / "out")[0]["question"] == "is there a road ? Answer in a word."


@real(FIXTURES)
@pytest.mark.parametrize(("name", "folder", "count"), [
    ("ucm", "UCM_captions", 9), ("sydney", "Sydney_captions", 3), ("rsicd", "RSICD", 11)])
def test_the_real_files_are_asked(name, folder, count, model, tmp_path):
    evaluate("--model", model, "--benchmark", name, "--data", FIXTURES / folder, "--split", "train",
             "--output_dir", tmp_path)
    [result] = metrics(tmp_path)["results"]
    assert result["rows"] == count and "published" in result["remarks"][0]


@real(FIXTURES)
def test_the_real_questions_of_rsivqa_are_asked_about_their_pictures(model, tmp_path):
    shutil.copytree(FIXTURES / "UCM_captions/imgs", tmp_path / "data/imgs")
    text = (FIXTURES / "RSIVQA/ucm_res.head.txt").read_text().splitlines(keepends=True)
    numbers = [path.stem for path in (tmp_path / "data/imgs").iterdir()]
    lines = [line for line in text if line.split(".")[0] in numbers]
    write(tmp_path / "data/ucm_test.txt", "".join(lines))
    evaluate("--model", model, "--benchmark", "rsivqa", "--data", tmp_path / "data",
             "--output_dir", tmp_path / "out")
    assert metrics(tmp_path / "out")["results"][0]["rows"] == len(lines) > 3


@real(FIXTURES)
@pytest.mark.parametrize(("name", "folder", "lacks"), [
    ("rsvqa-lr", "RSVQA_LR", "split_test_images.json"), ("capera", "CapERA", "no such video"),
    ("dior-rsvg", "DIOR_RSVG", "in no layout")])
def test_what_the_real_files_lack_is_named_in_one_line(name, folder, lacks, model, tmp_path):
    with pytest.raises(DataError, match=lacks) as caught:
        evaluate("--model", model, "--benchmark", name, "--data", FIXTURES / folder,
                 "--output_dir", tmp_path)
    assert folder in str(caught.value) and "\n" not in str(caught.value)


def test_a_picture_is_loaded_once_for_all_its_questions(model, tmp_path, monkeypatch):
    rsvqa(tmp_path / "data")
    loaded, load = Counter(), load_images
    monkeypatch.setattr(evaluation, "load_images",
                        lambda paths, *more, **other: loaded.update(paths) or load(paths, *more))
    evaluate("--model", model, "--data", tmp_path / "data", "--output_dir", tmp_path / "out",
             "--batch_size", 3)
    assert len(loaded) == 2 and set(loaded.values()) == {1}
    assert len(predictions(tmp_path / "out")) == 8


# ---- ranking -------------------------------------------------------------------------------------

CANDIDATES = ["a river", "yes", "some white cars near the river", "no", "a bridge"]


def group_of(count):
    """`count` questions of different lengths about one picture."""
    questions = ["is there a road ?" * i + "[vqa]" for i in range(1, count + 1)]
    encoded = [encode_conversation(tiny.tokenizer(), [(question, None)], tiny.N)
               for question in questions]
    return Group(list(range(count)), (9, 9), tiny.images(1), questions,
                 [torch.tensor(ids) for ids, _, _ in encoded], encoded[0][2])


@pytest.mark.parametrize("count", [1, 3])
def test_the_score_of_a_candidate_is_its_log_probability_after_the_prompt_alone(count):
    model, tokenizer, group = tiny.skyeye(), tiny.tokenizer(), group_of(count)
    scores = answer_log_likelihoods(model, tokenizer, group, CANDIDATES, "cpu")
    for prompt, own in zip(group.prompts, scores, strict=True):
        for text, score in zip(CANDIDATES, own, strict=True):
            target = torch.tensor(tokenizer.encode(text) + [tokenizer.eos])
            ids = torch.cat([prompt, target])[None]
            with torch.no_grad():
                logits = model(ids, group.images)[0, len(prompt) - 1:-1]
            alone = logits.log_softmax(-1).gather(1, target[:, None]).sum()
            torch.testing.assert_close(score, alone, rtol=1e-4, atol=1e-4)


def test_ranking_computes_logits_where_they_are_read_and_they_are_those_of_all_places(monkeypatch):
    model, tokenizer, group = tiny.skyeye(), tiny.tokenizer(), group_of(3)
    head, rows = model.llama_model.lm_head, []
    head.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    scores = answer_log_likelihoods(model, tokenizer, group, CANDIDATES, "cpu")
    assert rows == [3 * sum(len(tokenizer.encode(text)) + 1 for text in CANDIDATES)]

    def at_all_places(ids, images, at, positions, segments):
        logits = model(ids, images, positions=positions, segments=segments)     # [1, T, V]
        return logits[:, at[0]]

    monkeypatch.setattr(model, "hidden_states", at_all_places)
    monkeypatch.setattr(model.llama_model, "lm_head", torch.nn.Identity())
    monkeypatch.setattr(model, "forward", tiny.skyeye().forward)
    wanted = answer_log_likelihoods(model, tokenizer, group, CANDIDATES, "cpu")
    torch.testing.assert_close(scores, wanted, rtol=1e-5, atol=1e-5)


def test_the_most_probable_candidate_is_the_answer(model, tmp_path, monkeypatch):
    rsvqa(tmp_path / "data")
    monkeypatch.setattr(
        evaluation, "answer_log_likelihoods", lambda model, tokenizer, group, candidates, device:
        torch.tensor([[0.0, 1.0]] * len(group.prompts)))
    evaluate("--model", model, "--data", tmp_path / "data", "--rank",
             "--output_dir", tmp_path / "out")
    answers = {row["type"]: row["answer"] for row in predictions(tmp_path / "out")}
    assert (answers["presence"], answers["comp"], answers["rural_urban"]) == ("yes", "yes", "urban")


def test_a_ranked_class_is_always_one_of_the_list(model, tmp_path):
    classes(tmp_path / "data")
    evaluate("--model", model, "--benchmark", "aid", "--data", tmp_path / "data", "--rank",
             "--output_dir", tmp_path / "out")
    assert {row["answer"] for row in predictions(tmp_path / "out")} <= {
        "beach", "dense residential", "pond"}


# ---- stopped and continued -----------------------------------------------------------------------

@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A run that was not stopped: its data and its results."""
    folder = tmp_path_factory.mktemp("finished")
    rsvqa(folder / "data")
    evaluate("--model", model, "--data", folder / "data", "--output_dir", folder / "out",
             "--batch_size", 3)
    return folder


def start(model, finished, out, *more):
    evaluate("--model", model, "--data", finished / "data", "--output_dir", out,
             "--batch_size", 3, *more)


RESULTS = ("predictions.jsonl", "metrics.json", "table.md")


def same(one, other):
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in RESULTS)


@pytest.mark.parametrize("cut", [0, 1, 400, 900, -1])
def test_a_run_that_was_killed_continues_and_ends_as_if_it_had_not_been(
        cut, model, finished, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    text = (out / "predictions.jsonl").read_bytes()
    (out / "predictions.jsonl").write_bytes(text[:cut])
    complete_lines = text[:cut].count(b"\n") + (cut == -1)      # -1: only the line break is lost
    answered, answer_groups = [], evaluation.answer_groups

    def counting(model, tokenizer, groups, *more):
        answered.extend(i for group in groups for i in group.numbers)
        return answer_groups(model, tokenizer, groups, *more)

    monkeypatch.setattr(evaluation, "answer_groups", counting)
    start(model, finished, out)
    assert same(finished / "out", out) and len(answered) == 8 - complete_lines


@pytest.mark.parametrize(("flags", "message"), [
    (["--limit", 2], "limit None -> 2"), (["--rank"], "decoding greedy -> ranked"),
    (["--prompt", "{}?"], "prompt (empty) -> {}?"), (["--dtype", "bf16"], "dtype fp32 -> bf16"),
    (["--tasks", "vqa"], "tasks (empty) -> vqa")])
def test_other_settings_are_refused_and_named(flags, message, model, finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    with pytest.raises(UserError, match="--fresh") as error:
        start(model, finished, out, *flags)
    assert message in str(error.value) and same(finished / "out", out)


def test_other_data_another_model_and_unknown_answers_are_refused(model, finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    other = tiny.model_folder(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="weights"):
        start(other, finished, out)
    rsivqa(tmp_path / "data")
    with pytest.raises(UserError, match="data"):
        evaluate("--model", model, "--data", tmp_path / "data", "--output_dir", out)
    (out / "predictions.settings.json").unlink()
    with pytest.raises(UserError, match="an unknown run"):
        start(model, finished, out)


def test_fresh_deletes_earlier_answers(model, finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    write(out / "predictions.rank7.jsonl", '{"row": 99}\n')
    write(out / "predictions_gpt4.jsonl", "theirs")
    start(model, finished, out, "--fresh", "--limit", 4)
    assert {row["type"] for row in predictions(out)} == {"presence", "comp", "count", "rural_urban"}
    assert len(predictions(out)) == 4 and not (out / "predictions.rank7.jsonl").exists()
    assert (out / "predictions_gpt4.jsonl").read_text() == "theirs"
    remark = "only 4 rows, drawn with seed 42 over classes and types"
    assert remark in (out / "table.md").read_text()
    with pytest.raises(UserError, match="sample drawn with seed 42 .* -> drawn with seed 7"):
        start(model, finished, out, "--limit", 4, "--seed", 7)
    (out / "predictions.settings.json").unlink()
    with pytest.raises(UserError, match="deletes only what eval.py wrote"):
        start(model, finished, out, "--fresh")
    assert len(predictions(out)) == 4


def test_files_that_are_none_of_eval_pys_are_refused_before_the_weights_are_read(
        model, tmp_path, finished):
    shutil.copy(model / "config.json", tmp_path)
    for name in ("table.md", "metrics.json"):
        write(tmp_path / name / name, "thesis")
        with pytest.raises(UserError, match=f"{name}: not written by eval.py"):
            start(tmp_path, finished, tmp_path / name)
        assert (tmp_path / name / name).read_text() == "thesis"
    with pytest.raises(UserError, match="a file, not a folder"):
        start(tmp_path, finished, tmp_path / "table.md/table.md/out")
    for sheet, why in ((tmp_path / "table.md/table.md", "written as .png"),
                       (finished / "data/Images_LR/0.tif", "--overwrite"),
                       (tmp_path / "nowhere/s.png", "no such folder")):
        with pytest.raises(UserError, match=why):
            start(tmp_path, finished, tmp_path / "new", "--sheet", sheet)


def test_a_folder_that_another_run_uses_is_refused_and_one_left_behind_is_taken_over(
        model, finished, tmp_path, capsys):
    code = (f"from support.common import FolderLock\nwith FolderLock({str(tmp_path)!r}):\n"
            " print('held', flush=True); input()")
    other = subprocess.Popen([sys.executable, "-c", code], cwd=tiny.ROOT, text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"another run uses it .process {other.pid} on "):
        start(model, finished, tmp_path)
    other.kill()
    other.wait()
    start(model, finished, tmp_path)
    assert "left behind by a run that has ended" in capsys.readouterr().err
    assert same(finished / "out", tmp_path) and not (tmp_path / "run.lock").exists()
    write(tmp_path / "run.lock", "process 7 on another-machine\n")
    with pytest.raises(UserError, match="a run on another machine"):
        start(model, finished, tmp_path)


def test_questions_can_be_asked_raw(model, tmp_path):
    rsivqa(tmp_path / "data")
    evaluate("--model", model, "--data", tmp_path / "data", "--output_dir", tmp_path / "out",
             "--raw_questions")
    assert predictions(tmp_path / "out")[0]["question"] == "[vqa] Is there a road ?"
    with pytest.raises(UserError, match="questions raw"):
        evaluate("--model", model, "--data", tmp_path / "data", "--output_dir", tmp_path / "out")


def test_truth_without_a_box_is_left_out_and_counted(model, tmp_path):
    rows = [{"image": "0.png", "conversations": [{"from": "human", "value": "<image>\nthe ship"},
                                                 {"from": "gpt", "value": value}]}
            for value in ("{<12><34><56><78>}", "not visible")]
    write(tmp_path / "d.json", rows)
    save_pictures(tmp_path, "0.png")
    flags = ("--model", model, "--benchmark", "rsvg", "--split", "test", "--data",
             tmp_path / "d.json", "--output_dir", tmp_path / "out")
    with pytest.raises(UserError, match=r"d\.json:2: no box can be read in the truth 'not vis"):
        evaluate(*flags)
    assert not (tmp_path / "out/predictions.jsonl").exists()
    evaluate(*flags, "--skip_bad")
    [result] = metrics(tmp_path / "out")["results"]
    assert result["rows"] == 1 and any("1 rows left out" in text for text in result["remarks"])


def test_a_picture_that_cannot_be_read_is_named_and_the_answers_so_far_are_stored(
        model, finished, tmp_path, monkeypatch):
    load = load_images

    def broken(paths, *more, **other):
        if paths[0].endswith("1.tif"):
            raise DataError(f"{paths[0]}: cut off")
        return load(paths, *more, **other)

    monkeypatch.setattr(evaluation, "load_images", broken)
    with pytest.raises(DataError, match=r"1\.tif: cut off"):
        start(model, finished, tmp_path)
    assert 0 < len((tmp_path / "predictions.jsonl").read_text().splitlines()) <= 4
    monkeypatch.undo()
    start(model, finished, tmp_path)
    assert same(finished / "out", tmp_path)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_rows(world_size, model, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "begin_run", lambda *_: set())
    config = evaluation.parse_args(["--device", "cpu", "--batch_size", "3"])
    job = Job("", "test", (str(finished / "data"),), tmp_path)
    run = partial(evaluation.run, job, evaluation.read_questions(job), {},
                  SkyEyeGPT.from_pretrained(model), tiny.tokenizer(), config, world_size=world_size)
    for rank in reversed(range(1, world_size)):
        run(rank=rank)
    own = [[json.loads(line)["row"] for line in file.read_text().splitlines()]
           for file in tmp_path.glob("predictions.rank*.jsonl")]
    assert len(own) == world_size - 1 and all(own)
    run(rank=0)
    first = set(range(8)) - set(sum(own, []))
    assert len(sum(own, [])) == 8 - len(first) and first
    assert same_rows(finished / "out", tmp_path)


def same_rows(one, other):
    return (one / "predictions.jsonl").read_bytes() == (other / "predictions.jsonl").read_bytes()


def test_two_real_processes_continue_where_others_were_killed(model, finished, tmp_path):
    """One process, and the last of three."""
    out, first = tmp_path / "out", (finished / "out/predictions.jsonl").read_text().splitlines(True)
    shutil.copytree(finished / "out", out)
    write(out / "predictions.jsonl", first[0])
    write(out / "predictions.rank2.jsonl", first[5] + first[6][:40])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
               "2", "eval.py", "--model", model, "--data", finished / "data", "--output_dir", out,
               "--batch_size", "3", "--device", "cpu"]
    done = subprocess.run(list(map(str, command)), cwd=tiny.ROOT, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert same(finished / "out", out) and done.stdout.count("## test vqa") == 1
    assert not list(out.glob("predictions.rank*"))


# ---- scoring without a model ---------------------------------------------------------------------

def test_scored_again_without_a_model_the_figures_are_the_same(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "SkyEyeGPT", None)
    shutil.copytree(finished / "out", tmp_path / "out")
    evaluate("--score", tmp_path / "out/predictions.jsonl", "--output_dir", tmp_path / "again")
    for name in RESULTS[1:]:
        assert (tmp_path / "again" / name).read_bytes() == (finished / "out" / name).read_bytes()


def test_another_systems_rows_are_scored_also_two_expressions_on_one_picture(tmp_path):
    file = write(tmp_path / "theirs.jsonl", "\n".join(map(json.dumps, EXTERNAL_ROWS)))
    evaluate("--score", file)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.jsonl"]       # it was not told
    evaluate("--score", file, "--output_dir", tmp_path)
    found = {r["task"]: {name: f["value"] for name, f in r["figures"].items()}
             for r in metrics(tmp_path)["results"]}
    assert found["refer"]["Pr@0.5"] == 0.5 and found["refer"]["unparseable"] == 1
    assert found["vqa"]["presence"] == 1 and found["caption"]["bleu1"] == pytest.approx(1)
    assert "**theirs**" in (tmp_path / "table.md").read_text()


def test_with_a_benchmark_their_rows_need_no_task_and_stand_below_the_papers(tmp_path, capsys):
    file = write(tmp_path / "theirs.jsonl", json.dumps({"answer": "a", "references": ["a", "b"]}))
    evaluate("--score", file, "--benchmark", "ucm", "--output_dir", tmp_path)
    assert "| SkyEyeGPT |" in capsys.readouterr().out
    assert metrics(tmp_path)["results"][0]["task"] == "caption"


def test_one_convention_of_iou_can_be_chosen(tmp_path):
    file = write(tmp_path / "theirs.jsonl", json.dumps(EXTERNAL_ROWS[0]))
    evaluate("--score", file, "--convention", "upstream", "--corner",
             "--output_dir", tmp_path)
    figures = metrics(tmp_path)["results"][0]["figures"]
    assert "Pr@0.5 upstream" in figures and "Pr@0.5" not in figures


def test_the_sheet_shows_rows(finished, tmp_path):
    evaluate("--score", finished / "out/predictions.jsonl", "--output_dir", tmp_path, "--sheet",
             tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width > 400


# ---- a user's mistakes ---------------------------------------------------------------------------

@pytest.mark.parametrize(("flags", "message"), [
    (["--data", "nowhere"], "nowhere: no such file or folder"),
    (["--data", "{data}", "--split", "tset"], "tset"),
    (["--data", "{data}", "--benchmark", "rsvg"], "has no refer"),
    (["--data", "{data}", "--benchmark", "all"], "no folder in it has a benchmark's name"),
    (["--data", "{empty}"], "in no layout"),
    (["--score", "{empty}"], "no such file"),
    (["--data", "{data}", "--model", "{empty}"], "config.json: no such file")])
def test_a_mistake_is_one_line(flags, message, model, finished, tmp_path):
    names = {"data": finished / "data", "empty": tmp_path}
    with pytest.raises(UserError) as error:
        evaluate("--model", model, "--output_dir", tmp_path / "out",
                 *(flag.format(**names) for flag in flags))
    assert re.search(message, str(error.value)) and "\n" not in str(error.value)


def test_no_world_is_rendered_for_a_model_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="nowhere/config.json: no such file"):
        evaluation.main(["--model", "nowhere"])
    assert not list(tmp_path.iterdir())


def test_flags_have_both_spellings_and_can_be_switched_off():
    config = evaluation.parse_args("--batch-size 3 --output_dir out --well-formed --no-fresh "
                                   "--bands 4,3,2 --tasks vqa refer --data a b".split())
    assert (config.batch_size, config.output_dir, config.well_formed) == (3, Path("out"), True)
    assert (config.bands, config.tasks, config.data) == ((4, 3, 2), ("vqa", "refer"), ("a", "b"))
    assert not evaluation.parse_args(["--rank", "--no-rank"]).rank
    with pytest.raises(SystemExit):
        evaluation.parse_args(["--benchmark", "imagenet"])


def test_a_mistake_ends_with_exit_code_2():
    done = subprocess.run([sys.executable, "eval.py", "--data", "nowhere"], cwd=tiny.ROOT,
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "eval.py: nowhere: no such file or folder\n"


def test_a_question_too_long_for_the_context_and_one_without_a_picture_are_named(model, tmp_path):
    turns = [{"from": "human", "value": "is it?"}, {"from": "gpt", "value": "a"}]
    rows = [{"image": "0.png", "conversations": turns}, {"conversations": turns}]
    save_pictures(tmp_path, "0.png")
    flags = ("--model", model, "--benchmark", "floodnet", "--data", tmp_path / "f.json",
             "--output_dir", tmp_path / "out")
    write(tmp_path / "f.json", rows)
    with pytest.raises(DataError, match=r"f\.json:2: no picture"):
        evaluate(*flags)
    write(tmp_path / "f.json", rows[:1])
    with pytest.raises(DataError, match=r"f\.json:1: \d+ tokens, and the model's"):
        evaluate(*flags, "--prompt", "{} is it" * 300)


# ---- one's own conversations ---------------------------------------------------------------------

def own_rows(folder):
    """Two pictures; six answers with identifiers, of a conversation of three turns among them."""
    def talk(name, *texts):
        who = ("human", "gpt") * (len(texts) // 2)
        return {"image": name, "conversations": [
            {"from": one, "value": text} for one, text in zip(who, texts, strict=True)]}

    save_pictures(folder, "a.png", "b.png")
    return write(folder / "mine.json", [
        talk("a.png", "<image>\n[vqa] a road ?", "yes", "[refer] the ship", "{<1><2><30><40>}",
             "and now ?", "a sea"),
        talk("b.png", "<image>\n[caption] briefly", "a river with a bridge"),
        talk("b.png", "<image>\n[caption] briefly", "a bridge over a river"),
        talk("b.png", "<image>\n[refer] the car", "there is none")])


def test_each_turn_of_ones_own_file_is_asked_after_the_true_turns_before_it(
        model, tmp_path, monkeypatch, capsys):
    place, asked = own_rows(tmp_path), {}
    answer_groups = evaluation.answer_groups

    def listening(model, tokenizer, groups, *more):
        asked.update((question, [i for i in prompt.tolist() if i >= 0]) for group in groups
                     for question, prompt in zip(group.questions, group.prompts, strict=True))
        return ["Yes." for group in groups for _ in group.numbers]

    monkeypatch.setattr(evaluation, "answer_groups", listening)
    evaluate("--model", model, "--data", place, "--output_dir", tmp_path / "out")
    rows = predictions(tmp_path / "out")
    assert [(row["type"], row["turn"], row["references"]) for row in rows] == [
        ("[vqa]", 1, ["yes"]), ("[refer]", 2, ["{<1><2><30><40>}"]), ("", 3, ["a sea"]),
        ("[caption]", 1, ["a river with a bridge", "a bridge over a river"]),
        ("[refer]", 1, ["there is none"])]
    turns = [("[vqa] a road ?", "yes"), ("[refer] the ship", "{<1><2><30><40>}"),
             ("and now ?", None)]
    whole, _, _ = encode_conversation(tiny.tokenizer(), turns, 0)
    assert asked["and now ?"] == whole and answer_groups is not listening
    [result] = metrics(tmp_path / "out")["results"]
    found = {name: figure["value"] for name, figure in result["figures"].items()}
    assert (found["[vqa]: exact match"], found["total: exact match"]) == (1, 1 / 4)
    assert (found["[refer]: Pr@0.5"], found["[refer]: unparseable"]) == (0, 1)
    assert found["[refer]: false boxes"] == 0 and found["[caption]: bleu1"] < 1e-6
    assert "## test conversation, 5 rows" in capsys.readouterr().out


def test_answers_to_turns_in_a_batch_are_those_that_the_model_gives_alone(
        model, tmp_path, monkeypatch):
    monkeypatch.setitem(EVAL_PROMPTS, "conversation", ("{}", 6))
    evaluate("--model", model, "--data", own_rows(tmp_path), "--output_dir", tmp_path / "out")
    network = SkyEyeGPT.from_pretrained(model)
    turns = [("[vqa] a road ?", "yes"), ("[refer] the ship", "{<1><2><30><40>}"),
             ("and now ?", "a sea")]
    image = evaluation.preprocess(load_images([tmp_path / "a.png"])[0].image, 30)[None]
    for number, row in enumerate(predictions(tmp_path / "out")[:3]):
        asked = [*turns[:number], (turns[number][0], None)]
        ids, _, _ = encode_conversation(tiny.tokenizer(), asked, tiny.N)
        alone = list(network.generate(torch.tensor(ids), image, max_new_tokens=6))
        alone = alone[:alone.index(2)] if 2 in alone else alone
        assert row["answer"] == tiny.tokenizer().decode(alone)


def test_conversations_beside_other_tasks_are_asked_where_they_are_named(model, tmp_path, capsys):
    phrases(tmp_path)
    talk = [{"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": "a sea"}]
    write(tmp_path / "multitask_conversation/UCM_Conversa_test.json",
          [{"image": "0.png", "conversations": talk}])
    flags = ("--model", model, "--data", tmp_path, "--limit", 1, "--output_dir")
    evaluate(*flags, tmp_path / "out")
    assert "--tasks conversation asks them" in capsys.readouterr().err
    evaluate(*flags, tmp_path / "talks", "--tasks", "conversation")
    assert [r["task"] for r in metrics(tmp_path / "out")["results"]] == ["caption", "detection"]
    assert [r["task"] for r in metrics(tmp_path / "talks")["results"]] == ["conversation"]
    assert "conversations are not asked" not in capsys.readouterr().err
