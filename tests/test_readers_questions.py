"""support/readers/questions.py: RSVQA, RSIVQA, FloodNet, one folder a class."""
import json

import pytest

import tiny
from data_folders import (
    FIXTURES,
    make_class_folders,
    make_floodnet,
    make_rsivqa,
    make_rsvqa,
    read,
    real,
    replace_once,
    row_error,
    row_errors,
    write,
)
from support.readers.questions import (
    CLASS_QUESTION,
    QUESTION_TYPES,
    class_question,
    listed_classes,
    question_type,
    read_question_lines,
)

# ---- RSVQA ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("name,splits,folder", [
    ("LR", ("train", "val", "test"), "Images_LR"),
    ("USGS", ("train", "val", "test", "test_phili"), "Data"), ("USGS", ("train",), "Images_HR")])
def test_rsvqa_has_what_is_active_and_nothing_else(tmp_path, name, splits, folder):
    make_rsvqa(tmp_path, name, splits, folder)
    for split in splits:
        rows = read("rsvqa", tmp_path, split)
        assert [(row["turns"], row["kind"]) for row in rows] == [
            ((("Is a road present?", "yes"),), "presence"), ((("How many roads?", "12"),), "count")]
        assert [row["images"] for row in rows] == [[f"{folder}/0.tif"], [f"{folder}/7.tif"]]
    if "test_phili" in splits:
        assert read("rsvqa", tmp_path, "test2") == read("rsvqa", tmp_path, "test_phili")


def test_of_several_active_answers_the_first_is_learned_and_all_are_references(tmp_path):
    make_rsvqa(tmp_path)
    file = tmp_path / "LR_split_train_questions.json"
    replace_once(file, '"answers_ids": [0]', '"answers_ids": [4, 1, 0]')       # 4 is not active
    row = read("rsvqa", tmp_path)[0]
    assert row["turns"][0][1] == "12" and row["references"] == ("12", "yes")


@real(FIXTURES)
def test_the_real_heads_of_rsvqa_are_read(tmp_path):
    """The pictures of its train, the answers of its test, questions written here."""
    images = json.loads((FIXTURES / "RSVQA_LR/LR_split_train_images.head.json").read_text())
    answers = json.loads((FIXTURES / "RSVQA_LR/LR_split_test_answers.head.json").read_text())
    questions = [{"id": a["id"], "img_id": images["images"][i % 5]["id"], "type": "comp",
                  "question": f"question {i}?", "answers_ids": [a["id"]], "active": True}
                 for i, a in enumerate(answers["answers"])]
    for table, rows in (("images", images), ("questions", {"questions": questions}),
                        ("answers", answers)):
        write(tmp_path / f"LR_split_train_{table}.json", rows)
    (tmp_path / "Images_LR").symlink_to(FIXTURES / "RSVQA_LR/Images_LR")
    rows = read("rsvqa", tmp_path)
    assert len(rows) == 20 and rows[2]["turns"] == (("question 2?", "403"),)
    assert all((tmp_path / row["images"][0]).is_file() for row in rows)
    assert rows[3]["images"] == ["Images_LR/52.tif"]


# ---- RSIVQA --------------------------------------------------------------------------------------

def test_a_picture_of_rsivqa_is_found_by_its_stem_in_its_own_set(tmp_path):
    make_rsivqa(tmp_path)
    rows = read("rsivqa", tmp_path)
    assert {row["images"][0]: row["turns"][0] for row in rows} == {
        "DOTA/P0000.png": ("how many planes are there in this picture ?", "21"),
        "UCM/imgs/1.tif": ("How many trees in the picture ?", "one")}
    (row,) = read("rsivqa", tmp_path, "val")
    assert row["images"] == ["DOTA/P0003.jpg"] and row["kind"] == "presence"
    (tmp_path / "UCM").rename(tmp_path / "other")
    assert "ucm_res.txt" in row_errors("rsivqa", tmp_path)[-1]      # 1.tif is in several sets


@real(FIXTURES)
def test_the_real_lines_of_rsivqa_are_read():
    rows = read("rsivqa", FIXTURES / "RSIVQA")
    assert len(rows) == 80
    assert [row["turns"][0] for row in rows[40:45]] == [
        ("What is the theme of this picture ?", "farmland"),
        ("Does this picture contain an airplane ?", "no"),
        ("Does this picture contain trees ?", "yes"), ("How many trees in the picture ?", "one"),
        ("What is the location of the trees in this picture ?", "top left corner")]
    assert [row["kind"] for row in rows[40:45]] == ["theme", "presence", "presence", "count",
                                                    "location"]


@real(tiny.DATA / "vqa_text.json")
def test_every_real_question_of_rsivqa_is_a_line_and_has_a_type(tmp_path):
    for name, rows in json.loads((tiny.DATA / "vqa_text.json").read_text())["rsivqa"].items():
        rows, errors = rows[:3000], []
        file = write(tmp_path / f"{name}.txt", "".join(f"{p}:{q}{a}\n" for p, q, a in rows))
        found = read_question_lines(file, errors)
        for (picture, row), (name, question, answer) in zip(found, rows, strict=True):
            assert (picture, row["turns"][0][1]) == (name, answer.strip())
            assert row["turns"][0][0] == question.strip().removesuffix("?").strip() + " ?"
            assert row["kind"] in QUESTION_TYPES
        assert errors == []


def test_a_line_is_split_at_its_first_colon_and_last_question_mark(tmp_path):
    text = "a.tif:at 10:30? is it day?yes: it is\nb:of what color is it?red\n"
    file = write(tmp_path / "q.txt", text)
    (first, row), (second, _) = read_question_lines(file, [])
    assert (first, second) == ("a.tif", "b")
    assert row["turns"] == (("at 10:30? is it day ?", "yes: it is"),)
    assert question_type("of what color is it") == "color" and question_type("why") == ""


# ---- FloodNet ------------------------------------------------------------------------------------

def test_floodnets_questions_go_with_the_pictures_of_their_split(tmp_path):
    make_floodnet(tmp_path)
    rows = read("floodnet", tmp_path, "test")
    assert {row["images"][0] for row in rows} == {"Images/Test_Image/10168.JPG"}
    assert [(row["turns"][0][1], row["kind"]) for row in rows] == [
        ("flooded", "Condition_Recognition"), ("4", "Simple_Counting")]
    write(tmp_path / "Questions/Test_Question.json", {"7": {"Image_ID": "1.JPG", "Question": "a?",
                                                            "Question_Type": "Yes_No"}})
    assert "Test_Question.json:7: no 'Ground_Truth'" in row_error("floodnet", tmp_path, "test")


def test_floodnets_names_may_differ_in_capitals_from_its_files(tmp_path):
    make_floodnet(tmp_path)
    before = read("floodnet", tmp_path, "test")
    for name, other in (("Questions/Test_Question.json", "Questions/test_question.JSON"),
                        ("Images/Test_Image/10168.JPG", "Images/Test_Image/10168.jpg")):
        (tmp_path / name).rename(tmp_path / other)
    after = read("floodnet", tmp_path, "test")
    assert [row["images"] for row in after] == [["Images/Test_Image/10168.jpg"]] * 2
    assert [row["turns"] for row in after] == [row["turns"] for row in before]


# ---- class folders -------------------------------------------------------------------------------

def test_a_missing_list_of_a_split_is_never_all_pictures(tmp_path):
    make_class_folders(tmp_path)
    assert len(read("class_folder", tmp_path, "val")) == 3          # no lists at all
    write(tmp_path / "train.txt", "Pond/1.jpg\nLake/1.jpg\n")
    assert "val.txt" in row_error("class_folder", tmp_path, "val")
    assert "train.txt:2: Lake/1.jpg" in row_error("class_folder", tmp_path)


def test_the_classes_that_a_question_lists_are_those_it_was_written_with():
    classes = {"pond", "dense residential", "st. moritz", "bare land"}
    question = class_question(classes)
    assert question == CLASS_QUESTION.format("bare land, dense residential, pond, st. moritz")
    assert listed_classes(question) == sorted(classes)
    assert listed_classes("[vqa] " + question) == sorted(classes)


@pytest.mark.parametrize("question, classes", [
    ("Classify the image within one of the given classes: a b, c. Answer with one word.",
     ["a b", "c"]),
    ("What is the theme of this picture ?", []), ("Which classes are given ? Answer.", []),
    ("", [])])
def test_only_a_question_that_lists_classes_has_some(question, classes):
    assert listed_classes(question) == classes
