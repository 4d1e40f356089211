"""`python data.py --build`: what is built can be read, is clean of val and test, and depends on the
seed alone."""
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import built_oracle
import tiny
import train
from data_folders import MAKERS, make_dota, real, write
from examples.miniworld import write_world
from support.building import writing
from support.building.build import main
from support.building.clean import (
    HELD_OUT_BITS,
    MERGED_BITS,
    PrintIndex,
    as_numbers,
    find_copies,
    picture_print,
)
from support.building.writing import Sampler
from support.readers import read_data, read_split
from support.tools import check_data
from train import TrainConfig

CLASSES = ("ship", "harbor", "car")
SIZE = 96


def scene(seed, size=SIZE):
    """A picture with structure: smooth random patches."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    return small.resize((size, size), Image.Resampling.BICUBIC)


def copy_of(seed):
    """The same picture in another size and encoding."""
    return scene(seed).resize((70, 70), Image.Resampling.BILINEAR)


def coco(folder, seeds, start=0):
    """Pictures with boxes of CLASSES; without splits."""
    images, boxes = [], []
    for number, seed in enumerate(seeds):
        name = f"image_{start + number}.png"
        (folder / "images").mkdir(parents=True, exist_ok=True)
        scene(seed).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": SIZE, "height": SIZE})
        rng = np.random.default_rng(seed)
        for _ in range(6):
            x, y, w, h = (int(rng.integers(low, high)) for low, high in
                          ((0, 70), (0, 70), (5, 25), (5, 25)))
            boxes.append({"image_id": number, "category_id": int(rng.integers(3)),
                          "bbox": [x, y, w, h]})
    write(folder / "instances.json", {"images": images, "annotations": boxes, "categories": [
        {"id": i, "name": name} for i, name in enumerate(CLASSES)]})
    return folder


def rsicd(folder, train_seeds, val_seeds):
    """Pictures with captions, a class and a theme question; PNG of train, copies in val."""
    rows, classes, lines = [], {}, []
    (folder / "imgs").mkdir(parents=True)
    for split, seeds in (("train", train_seeds), ("val", val_seeds)):
        for seed in seeds:
            name = f"{split}_{seed}.{'png' if split == 'train' else 'jpg'}"
            (scene if split == "train" else copy_of)(seed).save(folder / "imgs" / name)
            texts = ["a place with water .", "a place with water .", f"number {seed} of many ."]
            rows.append({"filename": name, "split": split,
                         "sentences": [{"raw": text} for text in texts]})
            classes[name] = "port" if seed % 2 else "bare land"
            lines.append(f"{name}:what is the theme of this picture?{classes[name]}")
    write(folder / "dataset_mini.json", {"images": rows})
    write(folder / "scene_classes.json", classes)
    write(folder / "mini_vqa.txt", "\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Boxes of pictures 0 to 11, captions of 6 to 17 in train, and copies of 3, 4 and 20 in val."""
    folder = tmp_path_factory.mktemp("places")
    return [str(coco(folder / "boxes", range(12))),
            str(rsicd(folder / "texts", range(6, 18), (3, 4, 20)))]


def run(places, out, *flags):
    return main(["--build", str(out), "--data", *places, "--workers", "1", *map(str, flags)])


@pytest.fixture(scope="module")
def built(places, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "out"
    assert run(places, out, "--describe", "--conversations", 1) == 0
    return out


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def rows_of(out):
    return [row for file in sorted(out.glob("*/*.json")) for row in json.loads(file.read_text())]


def manifest(out):
    return json.loads((out / "manifest.json").read_text())


# ---- what is built -------------------------------------------------------------------------------

def test_what_is_built_passes_the_check_and_has_all_tasks(built, capsys):
    assert check_data.main(["--check", str(built)]) == 0
    assert "duplicate" not in capsys.readouterr().out
    single, conversations, errors = read_split(built, "train")
    assert not errors
    tasks = Counter(sample.task for sample in [*single, *conversations])
    assert all(tasks[task] for task in ("caption", "vqa", "scene", "refer", "detection",
                                        "identify", "grounding", "conversation"))
    assert tasks == sum(map(Counter, manifest(built)["samples"].values()), Counter())


@pytest.mark.parametrize("layout", ["skyeye", "llava"])
def test_all_that_is_built_is_true_to_the_annotations(built, places, tmp_path, layout):
    """Every sample, by a program of its own: captions, boxes, counts, relations, negatives,
    descriptions, and talks in which no answer was given away."""
    out = built
    if layout == "llava":
        out = tmp_path / "out"
        assert run(places, out, "--describe", "--conversations", 1, "--layout", "llava") == 0
    compared, faults = built_oracle.check(out)
    assert faults == []
    assert compared.total() == sum(map(Counter.total, map(Counter, manifest(out)["samples"]
                                                          .values())))
    assert compared["conversation", "talk" if layout == "skyeye" else "conversation"] > 10


def world_objects(world, folder):
    """The objects of the miniature world's pictures of train, as COCO, the pictures as they are."""
    rows = json.loads((world / "objects_train.json").read_text())
    names = sorted({thing["class"] for row in rows for thing in row["objects"]})
    shutil.copytree(world / "images/train", folder / "images/train")
    write(folder / "instances.json", {
        "images": [{"id": i, "file_name": row["image"]} for i, row in enumerate(rows)],
        "annotations": [{"image_id": i, "category_id": names.index(thing["class"]),
                         "bbox": [x1, y1, x2 - x1, y2 - y1]} for i, row in enumerate(rows)
                        for thing in row["objects"] for x1, y1, x2, y2 in [thing["box"]]],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)]})
    return folder


@pytest.mark.parametrize("with_objects", [False, True])
def test_what_is_built_from_the_miniature_world_is_true(tmp_path, with_objects):
    """Whose captions count, and whose questions are about colors."""
    world = write_world(tmp_path / "world", train=60, val=4, test=4, clips=2, size=64, workers=1)
    places = [str(world)]
    if with_objects:
        places.append(str(world_objects(world, tmp_path / "objects")))
    assert run(places, tmp_path / "out", "--describe", "--conversations", 1, "--turns", 2, 9) == 0
    compared, faults = built_oracle.check(tmp_path / "out")
    assert faults == [] and compared["conversation", "talk"] > 50


@real(tiny.DATA / "simd_rsvg")
def test_what_is_built_from_real_boxes_is_true(tmp_path):
    """200 samples, of each kind."""
    place = tiny.DATA / "simd_rsvg"
    objects = json.loads((place / "objects.json").read_text())
    names = sorted({thing["class"] for things in objects.values() for thing in things})
    coco = write(tmp_path / "simd.json", {
        "images": [{"id": name, "file_name": name} for name in objects],
        "annotations": [{"image_id": name, "category_id": names.index(thing["class"]),
                         "bbox": [x1, y1, x2 - x1, y2 - y1]} for name, things in objects.items()
                        for thing in things for x1, y1, x2, y2 in [thing["box"]]],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)]})
    assert run([str(place), str(coco)], tmp_path / "out", "--describe", "--copy", "--image_folder",
               place / "JPEGImages", "--conversations", 0.5) == 0
    compared, faults = built_oracle.check(tmp_path / "out", count=200)
    assert faults == [] and compared.total() == 200 and len(compared) >= 10


def test_what_is_built_is_drawn_and_trained_from(built, tmp_path):
    assert check_data.main(["--show", str(built), "--out", str(tmp_path / "sheet.png")]) == 0
    model = str(tiny.model_folder(tmp_path / "model"))
    for stage in (1, 2):
        train.train(TrainConfig(stage=stage, model=model, data=(str(built),), max_steps=2,
                               batch_size=2, device="cpu", warmup_steps=1, num_workers=0,
                               max_tokens=2000, skip_bad=True,
                               output_dir=str(tmp_path / f"stage{stage}")))
        assert (tmp_path / f"stage{stage}" / "log.jsonl").is_file()


def test_conversations_join_what_two_data_sets_know(built):
    """Pictures 6 to 11 are in both, under different names."""
    talks = json.loads((built / "multitask_conversation/boxes_Conversa_train.json").read_text())
    tasks = Counter()
    for row in talks:
        texts = [turn["value"] for turn in row["conversations"]]
        own = {word for word in ("caption", "vqa", "refer", "detection", "identify")
               if any(f"[{word}]" in text for text in texts)}
        tasks.update({tuple(sorted(own))})
    assert any({"caption", "refer"} <= set(own) or {"caption", "detection"} <= set(own)
               for own in tasks)


def test_the_layout_of_llava_is_read_with_the_same_number_of_samples(places, built, tmp_path):
    out = tmp_path / "out"
    assert run(places, out, "--describe", "--conversations", 1, "--layout", "llava") == 0
    assert manifest(out)["samples"] == manifest(built)["samples"]
    samples = read_data(out)
    assert len(samples) == sum(map(Counter.total, map(Counter,
                                                      manifest(out)["samples"].values())))
    assert any("{<" in text for sample in samples for turn in sample.turns for text in turn)
    assert not any("<bbox>" in text for sample in samples for turn in sample.turns
                   for text in turn)
    assert check_data.main(["--check", str(out)]) == 0


# ---- clean ---------------------------------------------------------------------------------------

def test_nothing_of_a_picture_in_val_appears_whatever_its_name(built, places):
    """Pictures 3 and 4 of `boxes` are in the val split of `texts`, in another size and encoding."""
    names = {Path(row["image"]).name for row in rows_of(built)}
    assert names == ({f"image_{i}.png" for i in range(12)} - {"image_3.png", "image_4.png"}
                     | {f"train_{i}.png" for i in range(12, 18)})
    held = [as_numbers([picture_print(copy_of(seed))]) for seed in (3, 4, 20)]
    for path in (built / "images").rglob("*.png"):
        print_ = as_numbers([picture_print(Image.open(path).convert("RGB"))])
        assert all(np.bitwise_count(print_ ^ other).sum() > HELD_OUT_BITS for other in held)
    left_out = manifest(built)["rejected"]["picture: a copy is in texts's val split"]
    assert left_out["rows"] > 2 and len(left_out["examples"]) == 2


def test_a_picture_in_train_and_val_of_one_data_set_is_left_out(tmp_path):
    """As in DIOR-RSVG, whose splits are of objects."""
    place = rsicd(tmp_path / "texts", range(3), (9,))
    data = json.loads((place / "dataset_mini.json").read_text())
    data["images"].append(data["images"][0] | {"split": "test"})
    write(place / "dataset_mini.json", data)
    assert run([str(place)], tmp_path / "out") == 0
    names = {Path(row["image"]).name for row in rows_of(tmp_path / "out")}
    assert names == {"train_1.png", "train_2.png"}
    assert manifest(tmp_path / "out")["rejected"]["picture: in texts's test split"]["rows"] == 5


def test_the_same_picture_is_one_and_repeated_rows_are_one(built):
    """Captions that repeat, and pictures 6 to 11 in both data sets."""
    captions = Counter((row["image"], row["caption"]) for row in rows_of(built)
                       if row.get("task") == "caption")
    assert set(captions.values()) == {1} and len(captions) == 24
    assert len([path for path in (built / "images").rglob("*") if path.is_file()]) == 16
    assert manifest(built)["rejected"]["repeated"]["rows"] >= 12


def test_copies_of_pictures_are_found_and_other_pictures_are_not():
    prints = [picture_print(scene(seed)) for seed in range(60)]
    index = PrintIndex(prints, range(60))
    for seed in range(60):
        owner, bits = index.nearest(picture_print(copy_of(seed)))
        assert (owner, bits <= HELD_OUT_BITS) == (seed, True)
        owner, bits = index.nearest(picture_print(scene(1000 + seed)))
        assert bits > HELD_OUT_BITS
    assert picture_print(Image.new("RGB", (50, 50), "gray")) == b""


def test_all_pairs_of_near_prints_are_found():
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 256, (40, 32), dtype=np.uint8)
    prints, expected = [row.tobytes() for row in numbers], set()
    for i in range(40):
        flipped = np.unpackbits(numbers[i])
        places = rng.choice(256, i % 12, replace=False)
        flipped[places] ^= 1
        prints.append(np.packbits(flipped).tobytes())
        if len(places) <= MERGED_BITS:
            expected.add((i, 40 + i))
    assert set(find_copies(prints)) == expected


# ---- the same again ------------------------------------------------------------------------------

def test_one_process_and_three_write_the_same_files(places, built, tmp_path):
    out = tmp_path / "out"
    assert run(places, out, "--describe", "--conversations", 1, "--workers", 3) == 0
    some, same = tree(built), tree(out)
    assert some.keys() == same.keys() and all(some[name] == same[name] for name in some)


def test_another_seed_draws_others(places, built, tmp_path):
    assert run(places, tmp_path / "out", "--describe", "--conversations", 1, "--seed", 7) == 0
    assert rows_of(tmp_path / "out") != rows_of(built)


# ---- settings ------------------------------------------------------------------------------------

def test_limit_is_exact_and_a_ratio_takes_a_part(places, tmp_path):
    assert run(places, tmp_path / "a", "--limit", 37) == 0
    assert len(rows_of(tmp_path / "a")) == 37
    assert run(places, tmp_path / "b", "--ratio", "boxes=0", "--conversations", 0) == 0
    assert set(manifest(tmp_path / "b")["samples"]["boxes"]) == set()
    assert {row.get("task") for row in rows_of(tmp_path / "b")} == {"caption", "vqa"}


def test_balance_leaves_as_many_yes_as_no_and_no_class_over_twice_the_median(tmp_path):
    rows = [{"image": f"{i}.png", "question": f"is there a road {i} ?", "type": "presence",
             "answer": "yes" if i < 9 else "no"} for i in range(12)]
    rows += [{"image": f"{i % 12}.png", "question": f"which class {i} ?", "type": "theme",
              "answer": "port" if i < 20 else "pond" if i < 22 else "lake"} for i in range(24)]
    write(tmp_path / "in/vqa/a_train.json", rows)
    (tmp_path / "in/caption").mkdir()
    for i in range(12):
        (tmp_path / "in/images").mkdir(exist_ok=True)
        scene(i).save(tmp_path / f"in/images/{i}.png")
    assert run([str(tmp_path / "in")], tmp_path / "out", "--balance", "--conversations", 0) == 0
    answers = Counter(row["answer"] for row in rows_of(tmp_path / "out"))
    assert answers == {"yes": 3, "no": 3, "port": 4, "pond": 2, "lake": 2}
    assert manifest(tmp_path / "out")["rejected"]["left out by --balance"]["rows"] == 22


def test_a_sampler_draws_exactly_what_is_wanted():
    for wanted in (0, 1, 7, 30):
        sampler = Sampler(30, wanted, "x")
        assert sum(sampler.take() for _ in range(30)) == wanted


def test_pictures_are_links_or_copies(places, built, tmp_path):
    assert all(path.stat().st_nlink > 1 for path in (built / "images").rglob("*.png"))
    assert run(places, tmp_path / "out", "--copy") == 0
    assert all(path.stat().st_nlink == 1 for path in (tmp_path / "out/images").rglob("*.png"))


def test_a_dry_run_writes_nothing(places, tmp_path, capsys):
    assert run(places, tmp_path / "out", "--dry_run") == 0
    assert os.listdir(tmp_path) == [] and "SkyEye-968k" in capsys.readouterr().out


def test_wrong_rows_and_pictures_are_left_out_and_counted(tmp_path):
    place = coco(tmp_path / "boxes", range(4))
    data = json.loads((place / "instances.json").read_text())
    data["annotations"].append({"image_id": 0, "category_id": 0, "bbox": [500, 500, 9, 9]})
    data["annotations"].append({"image_id": 1, "category_id": 77, "bbox": [1, 1, 9, 9]})
    write(place / "instances.json", data)
    (place / "images/image_2.png").write_bytes(b"<html>")
    assert run([str(place)], tmp_path / "out", "--license", "boxes=CC BY 4.0") == 0
    rejected = manifest(tmp_path / "out")["rejected"]
    assert rejected["a class with a box that is none"]["rows"] == 1
    assert rejected["a wrong row"]["rows"] == 1
    assert "a web page" in rejected["picture: cannot be read"]["examples"][0]
    assert {Path(row["image"]).name for row in rows_of(tmp_path / "out")} == {
        "image_0.png", "image_3.png"}
    for row in rows_of(tmp_path / "out"):       # nothing is said of the class that lacks a box
        if Path(row["image"]).name == "image_0.png":
            assert "ship" not in json.dumps(row)
    [source] = manifest(tmp_path / "out")["sources"]
    assert source["license"] == "CC BY 4.0" and source["format"] == "coco"


# ---- errors --------------------------------------------------------------------------------------

def refusal(capsys, *argv):
    assert main(list(map(str, argv))) == 2
    message = capsys.readouterr().err.strip().split("\n")[-1]
    assert message.startswith("data.py: ")
    return message


def test_mistakes_are_one_line_that_names_the_flag(places, built, tmp_path, capsys):
    out, data = tmp_path / "out", places[0]
    assert "--data" in refusal(capsys, "--build", out)
    assert "exists" in refusal(capsys, "--build", built, "--data", data)
    assert "--turns 4 2" in refusal(capsys, "--build", out, "--data", data, "--turns", 4, 2)
    assert "at most 1" in refusal(capsys, "--build", out, "--data", data, "--ratio", "boxes=2")
    assert "twice" in refusal(capsys, "--build", out, "--data", data, data + "/")
    assert "no such" in refusal(capsys, "--build", out, "--data", tmp_path / "missing")
    assert "NAME=TEXT" in refusal(capsys, "--build", out, "--data", data, "--license", "x=MIT")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["rsvqa", "floodnet", "dota"])
def test_a_data_set_without_val_and_test_is_built_from(name, tmp_path):
    """Their readers name no file of a split that is not there."""
    if name == "dota":
        make_dota(tmp_path / "in/train")
    else:
        MAKERS[name](tmp_path / "in")
    for file in ("Valid Question.json", "Test_Question.json"):
        (tmp_path / "in/Questions" / file).unlink(missing_ok=True)
    for seed, path in enumerate(sorted((tmp_path / "in").rglob("*.[tpJ][inP][fgG]"))):
        scene(seed).save(path)
    assert run([str(tmp_path / "in")], tmp_path / "out") == 0
    assert rows_of(tmp_path / "out")


def test_a_failed_build_leaves_nothing(places, tmp_path, capsys, monkeypatch):
    def link(*_):
        raise OSError(18, "Invalid cross-device link")
    monkeypatch.setattr(writing.os, "link", link)
    assert "--copy" in refusal(capsys, "--build", tmp_path / "out", "--data", places[0],
                               "--workers", 1)
    assert os.listdir(tmp_path) == []


def test_the_command_is_reached_through_data_py(places, tmp_path):
    done = subprocess.run([sys.executable, "data.py", "--build", tmp_path / "out", "--data",
                           *places, "--workers", "2"], cwd=tiny.ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0 and (tmp_path / "out/report.md").is_file(), done.stderr
    shutil.rmtree(tmp_path / "out")
    done = subprocess.run([sys.executable, "data.py", "--build", "--help"], cwd=tiny.ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "--conversations" in done.stdout
