"""Benchmarks by their own files: every row asked once and scored once, also when a run is stopped.
"""
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

import eval as evaluation
import tiny
from data import encode_conversation, load_images
from eval import EVAL_PROMPTS, Group, answer_log_likelihoods
from projector import SkyEyeGPT
from support.checkpoints.files import ModelError
from support.common import UserError
from support.evaluation.benchmarks import BENCHMARKS, Job, plan_jobs
from support.evaluation.runs import (
    gather_predictions,
    group_by_picture,
    load_ahead,
    load_predictions,
    make_batches,
)
from support.metrics.answers import answer_candidates
from support.readers import read_data
from support.readers.common import DataError, Sample
from support.readers.questions import CLASS_QUESTION

FIXTURES = tiny.DATA / "fixtures"
NANO = tiny.ROOT / "weights" / "nano"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.model_folder(tmp_path_factory.mktemp("model"))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def paint(folder, *names):
    for seed, name in enumerate(names):
        tiny.picture(folder / name, 40 + seed, 30, seed)


# ---- each benchmark in the layout it was published in --------------------------------------------

def captions(place, folder="images"):
    write(place / "dataset.json", {"images": [
        {"filename": f"{i}.png", "split": "test",
         "sentences": [{"raw": f"a river {k}"} for k in range(5)]} for i in range(3)]})
    paint(place / folder, *(f"{i}.png" for i in range(3)))


def nwpu(place):
    texts = {"raw" if k == 0 else f"raw_{k}": f"a plane {k} ." for k in range(5)}
    write(place / "dataset_nwpu.json", {"airplane": [
        texts | {"filename": f"airplane_{i}.png", "split": "test"} for i in range(3)]})
    paint(place / "airplane", *(f"airplane_{i}.png" for i in range(3)))


def capera(place):
    write(place / "CapERA_DATASET_test.json", {"ERA_caption": [
        {"video_id": f"Fire_{i}.mp4",
         "annotation": {"English_caption": [f"a fire {k}" for k in range(5)]}} for i in range(2)]})
    for i in range(2):
        paint(place / "Videos" / f"Fire_{i}", *(f"{k}.png" for k in range(3)))


def rsvqa(place, splits=("test",)):
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
            write(place / f"LR_split_{split}_{what}.json", {what: found})
    for i in range(2):
        (place / "Images_LR").mkdir(parents=True, exist_ok=True)
        Image.open(tiny.picture(place / "p.png", seed=i)).save(place / "Images_LR" / f"{i}.tif")


def rsivqa(place):
    write(place / "ucm_test.txt", "1.png:Is there a road?yes\n1.png:How many trees?one\n"
                                  "2.png:Is there a road?no\n")
    paint(place / "imgs", "1.png", "2.png")


def floodnet(place):
    write(place / "Questions/Test_Question.json", {
        str(i): {"Image_ID": f"{i % 2}.png", "Question": "Is it flooded?", "Ground_Truth": answer,
                 "Question_Type": "Yes_No"} for i, answer in enumerate(("Yes", "No", "Yes"))})
    paint(place / "Images/Test_Image", "0.png", "1.png")


def grounding(place):
    """Two pictures, two expressions each; the test split has three of the four."""
    for i in range(2):
        objects = "".join(f"<object><name>ship</name><bndbox><xmin>{k}</xmin><ymin>2</ymin>"
                          "<xmax>30</xmax><ymax>20</ymax></bndbox>"
                          f"<description>the ship {i} {k}</description></object>" for k in range(2))
        write(place / f"Annotations/{i}.xml", "<annotation>"
              f"<filename>{i}.png</filename>{objects}</annotation>")
    for split in ("val", "test"):
        write(place / f"{split}.txt", "0\n1\n3\n")
    paint(place / "JPEGImages", "0.png", "1.png")


def phrases(place):
    write(place / "phrasegrounding/diorpg_test.json", [
        {"image": "0.png", "phrase": "ships", "bbox": [[1, 2, 9, 9], [11, 2, 29, 19]]},
        {"image": "0.png", "phrase": "a dam", "bbox": [[3, 4, 30, 20]]}])
    write(place / "caption/caption_UCM_test.json", [{"image": "0.png", "caption": "a river"}])
    paint(place / "images", "0.png")


def classes(place):
    for label in ("DenseResidential", "Pond", "Beach"):
        paint(place / label, "1.png", "2.png")


LAYOUTS = {"ucm": captions, "sydney": captions, "rsicd": captions, "rsitmd": captions,
           "nwpu": nwpu, "capera": capera, "rsvqa-lr": rsvqa,
           "rsvqa-hr": lambda place: rsvqa(place, ("test", "test_phili")), "rsivqa": rsivqa,
           "floodnet": floodnet, "rsvg": grounding, "dior-rsvg": grounding, "rspg": phrases,
           "aid": classes, "resisc45": classes, "rsscn7": classes, "ucm-scene": classes}


def run(*flags):
    evaluation.main([str(flag) for flag in flags])


def lines(folder):
    return [json.loads(text) for text in (folder / "predictions.jsonl").read_text().splitlines()]


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_asked_by_its_name(name, model, tmp_path, capsys):
    LAYOUTS[name](tmp_path / "data")
    split = BENCHMARKS[name].splits[-1]
    run("--model", model, "--benchmark", name, "--data", tmp_path / "data", "--split", split,
        "--output_dir", tmp_path / "out")
    known, [result] = BENCHMARKS[name], metrics(tmp_path / "out")["results"]
    assert (result["benchmark"], result["split"], result["task"]) == (name, split, known.task)
    samples = [s for s in read_data(tmp_path / "data", split) if s.task == known.task]
    rows = lines(tmp_path / "out")
    assert result["rows"] == len(rows) == len(samples)
    assert {row["source"] for row in rows} == {sample.source for sample in samples}
    prompt = EVAL_PROMPTS[known.task][0].split("{}")[0]
    assert all(row["question"].startswith(prompt) for row in rows)
    assert f"## {name} {split} {known.task}" in capsys.readouterr().out


def test_all_asks_what_is_there_names_what_is_not_and_goes_on_after_a_broken_one(
        model, tmp_path, capsys):
    for name in ("ucm", "rsvqa-hr"):
        LAYOUTS[name](tmp_path / BENCHMARKS[name].folder)
    write(tmp_path / "dior-rsvg/Annotations/0.xml", "<annotation><object><description>")
    with pytest.raises(DataError, match=r"dior-rsvg test: .*test\.txt"):
        run("--model", model, "--benchmark", "all", "--data", tmp_path, "--output_dir",
            tmp_path / "out")
    found = [(r["benchmark"], r["split"]) for r in metrics(tmp_path / "out")["results"]]
    assert found == [("ucm", "test"), ("rsvqa-hr", "test"), ("rsvqa-hr", "test2")]
    told = capsys.readouterr()
    absent = told.err.splitlines()[0]
    assert "sydney (Sydney_captions)" in absent and "ucm (" not in absent
    assert "## rsvqa-hr test2 vqa" in (tmp_path / "out/table.md").read_text()


def test_rsvqas_mean_leaves_out_counts_and_the_papers_rows_stand_above(model, tmp_path, capsys):
    rsvqa(tmp_path / "data")
    run("--model", model, "--benchmark", "rsvqa-lr", "--data", tmp_path / "data", "--rank",
        "--output_dir", tmp_path / "out")
    [result] = metrics(tmp_path / "out")["results"]
    figures = {name: figure["value"] for name, figure in result["figures"].items()}
    wanted = [figures[name] for name in ("presence", "comp", "rural_urban")]
    assert figures["mean of types"] == pytest.approx(sum(wanted) / 3) and "count" in figures
    assert "| SkyEyeGPT |" in capsys.readouterr().out
    assert "10,004 questions published, 8 found" in result["remarks"][0]


def test_a_llava_files_turns_are_questions_of_the_benchmarks_task(model, tmp_path):
    talk = [{"from": who, "value": text} for who, text in (
        ("human", "<image>\nIs it flooded?"), ("gpt", "Yes"), ("human", "Really?"), ("gpt", "No"))]
    write(tmp_path / "flood.json", [{"image": "0.png", "conversations": talk}])
    paint(tmp_path, "0.png")
    run("--model", model, "--benchmark", "floodnet", "--data", tmp_path / "flood.json",
        "--output_dir", tmp_path / "out")
    rows = lines(tmp_path / "out")
    assert [(row["question"], row["references"]) for row in rows] == [
        ("[vqa] is it flooded?", ["Yes"]), ("[vqa] really?", ["No"])]


def test_a_turn_takes_the_boxes_that_stand_in_it(tmp_path):
    talk = Sample(("a.png",), (("what is at <bbox>", "a ship"), ("where?", "<bbox><bbox>")),
                  "conversation", "", boxes=((0, 0, 1, 1), (2, 2, 3, 3), (4, 4, 5, 5)))
    first, second = evaluation.split_turns(talk, "refer")
    assert (first.boxes, second.boxes) == (talk.boxes[:1], talk.boxes[1:])
    assert (first.turns, second.task) == (talk.turns[:1], "refer")


def test_one_may_ask_in_other_words(model, tmp_path):
    rsivqa(tmp_path / "data")
    run("--model", model, "--data", tmp_path / "data", "--output-dir", tmp_path / "out",
        "--prompt", "{} Answer in a word.")
    assert lines(tmp_path / "out")[0]["question"] == "is there a road ? Answer in a word."


@pytest.mark.skipif(not FIXTURES.exists(), reason="needs the data beside the repository")
@pytest.mark.parametrize(("name", "folder", "count"), [
    ("ucm", "UCM_captions", 9), ("sydney", "Sydney_captions", 3), ("rsicd", "RSICD", 11)])
def test_the_real_files_are_asked(name, folder, count, model, tmp_path):
    run("--model", model, "--benchmark", name, "--data", FIXTURES / folder, "--split", "train",
        "--output_dir", tmp_path)
    [result] = metrics(tmp_path)["results"]
    assert result["rows"] == count and "published" in result["remarks"][0]


@pytest.mark.skipif(not FIXTURES.exists(), reason="needs the data beside the repository")
def test_the_real_questions_of_rsivqa_are_asked_about_their_pictures(model, tmp_path):
    shutil.copytree(FIXTURES / "UCM_captions/imgs", tmp_path / "data/imgs")
    text = (FIXTURES / "RSIVQA/ucm_res.head.txt").read_text().splitlines(keepends=True)
    numbers = [path.stem for path in (tmp_path / "data/imgs").iterdir()]
    kept = [line for line in text if line.split(".")[0] in numbers]
    write(tmp_path / "data/ucm_test.txt", "".join(kept))
    run("--model", model, "--benchmark", "rsivqa", "--data", tmp_path / "data",
        "--output_dir", tmp_path / "out")
    assert metrics(tmp_path / "out")["results"][0]["rows"] == len(kept) > 3


@pytest.mark.skipif(not FIXTURES.exists(), reason="needs the data beside the repository")
@pytest.mark.parametrize(("name", "folder", "lacks"), [
    ("rsvqa-lr", "RSVQA_LR", "split_test_images.json"), ("capera", "CapERA", "no such video"),
    ("dior-rsvg", "DIOR_RSVG", "in no layout")])
def test_what_the_real_files_lack_is_told_in_a_line(name, folder, lacks, model, tmp_path):
    with pytest.raises(DataError, match=lacks) as caught:
        run("--model", model, "--benchmark", name, "--data", FIXTURES / folder,
            "--output_dir", tmp_path)
    assert folder in str(caught.value) and "\n" not in str(caught.value)


# ---- groups and batches --------------------------------------------------------------------------

def asked(*pictures):
    return [Sample((picture,), (("?" * (i % 5), "yes"),), "vqa", "") for i, picture in
            enumerate(pictures)]


def test_every_question_is_in_one_group_with_its_picture_and_no_batch_is_too_large():
    samples = asked(*"abcabcabbbbbbbc")
    groups = group_by_picture(samples, range(1, 15), 4, lambda i: "")
    assert sorted(sum(groups, [])) == list(range(1, 15))
    assert all(len({samples[i].images for i in own}) == 1 and len(own) <= 4 for own in groups)
    assert sum(samples[own[0]].images == ("b",) for own in groups) == 3     # ten questions
    batches = list(make_batches(groups, 6, lambda i: ""))
    assert sum(batches, []) == groups
    assert all(sum(map(len, batch)) <= 6 for batch in batches)


def test_kinds_are_never_asked_together():
    samples = asked(*"aaaabbbb")
    groups = group_by_picture(samples, range(8), 9, lambda i: i % 2)
    assert sorted(map(sorted, groups)) == [[0, 2], [1, 3], [4, 6], [5, 7]]
    for batch in make_batches(groups, 9, lambda i: i % 2):
        assert len({i % 2 for own in batch for i in own}) == 1


def test_of_what_is_loaded_ahead_nothing_is_lost_and_a_fault_comes_in_its_turn():
    assert list(load_ahead(lambda x: x + 1, [1, 2, 3])) == [2, 3, 4]
    coming = load_ahead(lambda x: 1 / x, [1, 0, 2])
    assert next(coming) == 1
    with pytest.raises(ZeroDivisionError):
        next(coming)


def test_a_picture_is_loaded_once_for_all_its_questions(model, tmp_path, monkeypatch):
    rsvqa(tmp_path / "data")
    loaded, load = Counter(), load_images
    monkeypatch.setattr(evaluation, "load_images",
                        lambda paths, *more, **other: loaded.update(paths) or load(paths, *more))
    run("--model", model, "--data", tmp_path / "data", "--output_dir", tmp_path / "out",
        "--batch_size", 3)
    assert len(loaded) == 2 and set(loaded.values()) == {1} and len(lines(tmp_path / "out")) == 8


# ---- choosing ------------------------------------------------------------------------------------

@pytest.mark.parametrize("count", [1, 3])
def test_the_score_of_a_text_is_its_log_probability_when_it_is_read_alone(count):
    model, tokenizer, image = tiny.skyeye(), tiny.tokenizer(), tiny.images(1)
    texts = ["a river", "yes", "some white cars near the river", "no", "a bridge"]
    prompts = [torch.tensor(encode_conversation(tokenizer, [("is there a road ?" * i + "[vqa]", None)],
                                   tiny.N)[0]) for i in range(1, count + 1)]
    group = Group(list(range(count)), (9, 9), image, [""] * count, prompts)
    scores = answer_log_likelihoods(model, tokenizer, group, texts, "cpu")
    for prompt, own in zip(prompts, scores, strict=True):
        for text, score in zip(texts, own, strict=True):
            end = torch.tensor(tokenizer.encode(text) + [tokenizer.eos])
            with torch.no_grad():
                logits = model(torch.cat([prompt, end])[None], image)[0, len(prompt) - 1:-1]
            alone = logits.log_softmax(-1).gather(1, end[:, None]).sum()
            torch.testing.assert_close(score, alone, rtol=1e-4, atol=1e-4)


def test_the_most_probable_text_is_the_answer(model, tmp_path, monkeypatch):
    rsvqa(tmp_path / "data")
    monkeypatch.setattr(evaluation, "answer_log_likelihoods", lambda model, tokenizer, group, texts, device:
                        torch.tensor([[0.0, 1.0]] * len(group.prompts)))
    run("--model", model, "--data", tmp_path / "data", "--rank", "--output_dir", tmp_path / "out")
    said = {row["type"]: row["answer"] for row in lines(tmp_path / "out")}
    assert (said["presence"], said["comp"], said["rural_urban"]) == ("yes", "yes", "urban")


def test_chosen_are_all_classes_that_are_named_and_the_two_answers_of_a_type():
    samples = [Sample(("a",), ((CLASS_QUESTION.format("pond, dense residential"), "pond"),), "scene", "",
                      kind="scene"),
               Sample(("a",), (("is it?", "Yes"),), "vqa", "", kind="presence"),
               Sample(("b",), (("is it?", "no."),), "vqa", "", kind="presence"),
               *(Sample(("b",), (("how many?", n),), "vqa", "", kind="count") for n in "123")]
    assert answer_candidates(samples) == {("scene", "scene"): ("dense residential", "pond"),
                                ("vqa", "presence"): ("no", "yes")}


def test_a_ranked_class_is_always_one_of_the_list(model, tmp_path):
    classes(tmp_path / "data")
    run("--model", model, "--benchmark", "aid", "--data", tmp_path / "data", "--rank",
        "--output_dir", tmp_path / "out")
    assert {row["answer"] for row in lines(tmp_path / "out")} <= {
        "beach", "dense residential", "pond"}


# ---- stopped and going on ------------------------------------------------------------------------

@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """A run that was not stopped: its data and its results."""
    place = tmp_path_factory.mktemp("whole")
    rsvqa(place / "data")
    run("--model", model, "--data", place / "data", "--output_dir", place / "out",
        "--batch_size", 3)
    return place


def start(model, whole, out, *more):
    run("--model", model, "--data", whole / "data", "--output_dir", out, "--batch_size", 3, *more)


RESULTS = ("predictions.jsonl", "metrics.json", "table.md")


def same(one, other):
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in RESULTS)


@pytest.mark.parametrize("cut", [0, 1, 400, 900, -1])
def test_a_run_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(cut, model, whole, tmp_path,
                                                                      monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(whole / "out", out)
    text = (out / "predictions.jsonl").read_bytes()
    (out / "predictions.jsonl").write_bytes(text[:cut])
    left, counted, answer = text[:cut].count(b"\n") + (cut == -1), [], evaluation.answer_groups
    monkeypatch.setattr(evaluation, "answer_groups", lambda model, tokenizer, groups, *more: (
        counted.extend(i for group in groups for i in group.numbers)
        or answer(model, tokenizer, groups, *more)))
    start(model, whole, out)
    assert same(whole / "out", out) and len(counted) == 8 - left


@pytest.mark.parametrize(("flags", "told"), [
    (["--limit", 2], "limit None -> 2"), (["--rank"], "decoding greedy -> ranked"),
    (["--prompt", "{}?"], "prompt  -> {}?"), (["--dtype", "bf16"], "dtype fp32 -> bf16"),
    (["--tasks", "vqa"], "tasks  -> vqa")])
def test_other_settings_are_refused_and_named(flags, told, model, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole / "out", out)
    with pytest.raises(UserError, match="--fresh") as error:
        start(model, whole, out, *flags)
    assert told in str(error.value) and same(whole / "out", out)


def test_other_data_another_model_and_unknown_answers_are_refused(model, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole / "out", out)
    other = tiny.model_folder(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="weights"):
        start(other, whole, out)
    rsivqa(tmp_path / "data")
    with pytest.raises(UserError, match="data"):
        run("--model", model, "--data", tmp_path / "data", "--output_dir", out)
    (out / "predictions.settings.json").unlink()
    with pytest.raises(UserError, match="no known run"):
        start(model, whole, out)


def test_fresh_starts_anew(model, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole / "out", out)
    write(out / "predictions.rank7.jsonl", '{"row": 99}\n')
    start(model, whole, out, "--fresh", "--limit", 3)
    assert len(lines(out)) == 3 and not (out / "predictions.rank7.jsonl").exists()
    assert "only the first 3 rows" in (out / "table.md").read_text()


def test_a_picture_that_breaks_on_the_way_is_named_and_what_was_answered_stays(
        model, whole, tmp_path, monkeypatch):
    load = load_images

    def broken(paths, *more, **other):
        if paths[0].endswith("1.tif"):
            raise DataError(f"{paths[0]}: cut off")
        return load(paths, *more, **other)

    monkeypatch.setattr(evaluation, "load_images", broken)
    with pytest.raises(DataError, match=r"1\.tif: cut off"):
        start(model, whole, tmp_path)
    assert 0 < len((tmp_path / "predictions.jsonl").read_text().splitlines()) <= 4
    monkeypatch.undo()
    start(model, whole, tmp_path)
    assert same(whole / "out", tmp_path)


def test_what_processes_wrote_is_gathered_once_in_order_and_half_a_line_is_none(tmp_path):
    write(tmp_path / "predictions.jsonl", '{"row": 4}\n{"row": 1}\n')
    write(tmp_path / "predictions.rank0.jsonl", '{"row": 1}\n{"row": 0}\n{"row": 2, "ans')
    write(tmp_path / "predictions.rank3.jsonl", '{"row": 3}\n')
    assert [row["row"] for row in gather_predictions(tmp_path)] == [0, 1, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]
    assert gather_predictions(tmp_path) == lines(tmp_path)
    write(tmp_path / "predictions.jsonl", '{"row": 4}\n{"row"\n{"row": 5}\n')
    with pytest.raises(UserError, match=r"predictions\.jsonl:2"):
        gather_predictions(tmp_path)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_rows(world, model, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "begin_run", lambda *_: set())
    args = evaluation.parse_args(["--model", str(model), "--batch_size", "3"])
    job = Job("", "test", (str(whole / "data"),), tmp_path)
    parts = [{}, SkyEyeGPT.from_pretrained(model), tiny.tokenizer(), args]
    for rank in reversed(range(1, world)):
        evaluation.answer_job(job, evaluation.read_samples(job, ""), *parts, rank, world)
    own = [[json.loads(line)["row"] for line in file.read_text().splitlines()]
           for file in tmp_path.glob("predictions.rank*.jsonl")]
    assert len(own) == world - 1 and all(own)
    evaluation.answer_job(job, evaluation.read_samples(job, ""), *parts, 0, world)
    first = set(range(8)) - set(sum(own, []))
    assert len(sum(own, [])) == 8 - len(first) and first
    assert same_rows(whole / "out", tmp_path)


def same_rows(one, other):
    return (one / "predictions.jsonl").read_bytes() == (other / "predictions.jsonl").read_bytes()


def test_two_real_processes_go_on_where_others_were_killed(model, whole, tmp_path):
    """One process, and the last of three."""
    out, first = tmp_path / "out", (whole / "out/predictions.jsonl").read_text().splitlines(True)
    shutil.copytree(whole / "out", out)
    write(out / "predictions.jsonl", first[0])
    write(out / "predictions.rank2.jsonl", first[5] + first[6][:40])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
               "2", "eval.py", "--model", model, "--data", whole / "data", "--output_dir", out,
               "--batch_size", "3", "--device", "cpu"]
    done = subprocess.run(list(map(str, command)), cwd=tiny.ROOT, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert same(whole / "out", out) and done.stdout.count("## test vqa") == 1
    assert not list(out.glob("predictions.rank*"))


# ---- scoring without a model ---------------------------------------------------------------------

def test_scored_again_without_a_model_the_figures_are_the_same(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "SkyEyeGPT", None)
    shutil.copytree(whole / "out", tmp_path / "out")
    run("--score", tmp_path / "out/predictions.jsonl", "--output_dir", tmp_path / "again")
    for name in RESULTS[1:]:
        assert (tmp_path / "again" / name).read_bytes() == (whole / "out" / name).read_bytes()


FOREIGN = [
    {"task": "refer", "answer": "{<10><10><20><20>}", "boxes": [[10, 20, 21, 42]],
     "size": [100, 200], "image": "a.png"},
    {"task": "refer", "answer": "somewhere", "boxes": [[10, 20, 21, 42]], "size": [100, 200],
     "image": "a.png"},
    {"task": "caption", "answer": "a river", "references": ["a river", "a green river"]},
    {"task": "vqa", "answer": "Yes.", "references": "yes", "type": "presence"},
]


def test_another_systems_rows_are_scored_also_two_expressions_on_one_picture(tmp_path):
    file = write(tmp_path / "theirs.jsonl", "\n".join(map(json.dumps, FOREIGN)))
    run("--score", file)
    found = {r["task"]: {name: f["value"] for name, f in r["figures"].items()}
             for r in metrics(tmp_path)["results"]}
    assert found["refer"]["Pr@0.5"] == 0.5 and found["refer"]["unparseable"] == 1
    assert found["vqa"]["presence"] == 1 and found["caption"]["bleu1"] == pytest.approx(1)
    assert "**theirs**" in (tmp_path / "table.md").read_text()


def test_with_a_benchmark_their_rows_need_no_task_and_stand_below_the_papers(tmp_path, capsys):
    file = write(tmp_path / "theirs.jsonl", json.dumps({"answer": "a", "references": ["a", "b"]}))
    run("--score", file, "--benchmark", "ucm")
    assert "| SkyEyeGPT |" in capsys.readouterr().out
    assert metrics(tmp_path)["results"][0]["task"] == "caption"


def test_one_convention_of_iou_can_be_asked_for(tmp_path):
    file = write(tmp_path / "theirs.jsonl", json.dumps(FOREIGN[0]))
    run("--score", file, "--convention", "upstream", "--corner")
    figures = metrics(tmp_path)["results"][0]["figures"]
    assert "Pr@0.5 upstream" in figures and "Pr@0.5" not in figures


@pytest.mark.parametrize(("change", "told"), [
    ({"task": "poem"}, "poem"), ({"answer": None}, "a text is expected"),
    ({"answer": ...}, "no 'answer'"), ({"size": ...}, "size is the width"),
    ({"size": [5]}, "size is the width"), ({"boxes": [[1, 2, 3]]}, "four numbers"),
    ({"boxes": []}, "no references"), ({"boxes": [["a", 2, 3, 4]]}, "could not convert"),
    ({"boxes": [[300, 2, 400, 4]]}, "is not in a picture of 100 x 200")])
def test_a_row_that_cannot_be_scored_is_named(change, told, tmp_path):
    row = {k: v for k, v in (FOREIGN[0] | change).items() if v is not ...}
    file = write(tmp_path / "theirs.jsonl", json.dumps(FOREIGN[0]) + "\n" + json.dumps(row))
    with pytest.raises(UserError, match=told) as error:
        load_predictions(file, EVAL_PROMPTS)
    assert f"{file}:2: " in str(error.value)


def test_the_sheet_shows_rows(whole, tmp_path):
    run("--score", whole / "out/predictions.jsonl", "--output_dir", tmp_path, "--sheet",
        tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width > 400


# ---- a user's mistakes ---------------------------------------------------------------------------

@pytest.mark.parametrize(("flags", "told"), [
    (["--data", "nowhere"], "nowhere: no such file or folder"),
    (["--data", "{data}", "--split", "tset"], "tset"),
    (["--data", "{data}", "--benchmark", "rsvg"], "has no refer"),
    (["--data", "{data}", "--benchmark", "all"], "no folder in it is called"),
    (["--data", "{empty}"], "in no layout"),
    (["--score", "{empty}"], "no such file"),
    (["--data", "{data}", "--model", "{empty}"], "config.json: no such file")])
def test_a_mistake_is_one_line(flags, told, model, whole, tmp_path):
    names = {"data": whole / "data", "empty": tmp_path}
    with pytest.raises((DataError, ModelError, UserError)) as error:
        run("--model", model, "--output_dir", tmp_path / "out",
            *(flag.format(**names) for flag in flags))
    assert re.search(told, str(error.value)) and "\n" not in str(error.value)


def test_a_mistake_ends_with_exit_code_2():
    done = subprocess.run([sys.executable, "eval.py", "--data", "nowhere"], cwd=tiny.ROOT,
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "eval.py: nowhere: no such file or folder\n"


def test_a_question_that_no_context_holds_and_one_without_a_picture_are_named(model, tmp_path):
    talk = [{"from": "human", "value": "is it?"}, {"from": "gpt", "value": "a"}]
    rows = [{"image": "0.png", "conversations": talk}, {"conversations": talk}]
    paint(tmp_path, "0.png")
    flags = ("--model", model, "--benchmark", "floodnet", "--data", tmp_path / "f.json",
             "--output_dir", tmp_path / "out")
    write(tmp_path / "f.json", rows)
    with pytest.raises(DataError, match=r"f\.json:2: no picture"):
        run(*flags)
    write(tmp_path / "f.json", rows[:1])
    with pytest.raises(DataError, match=r"f\.json:1: \d+ tokens, and the model's"):
        run(*flags, "--prompt", "{} is it" * 300)


def test_jobs_go_where_they_are_told(tmp_path):
    for name in ("UCM-Captions", "rsvg"):
        (tmp_path / name).mkdir()
    jobs, absent = plan_jobs("all", "", [str(tmp_path)], None, BENCHMARKS)
    assert [str(job.folder) for job in jobs] == [
        "out/eval/ucm-test", "out/eval/rsvg-val", "out/eval/rsvg-test"]
    assert len(absent) == len(BENCHMARKS) - 2
    [job], _ = plan_jobs("ucm", "", [str(tmp_path)], tmp_path / "out", BENCHMARKS)
    assert (job.folder, job.split, job.name) == (tmp_path / "out", "test", "ucm test")
    [job], _ = plan_jobs("", "", [str(tmp_path)], None, BENCHMARKS)
    assert job.folder == Path("out/eval")
