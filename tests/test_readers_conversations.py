"""support/readers/conversations.py: LLaVA's and ms-swift's files, SkyEye-968k's folder."""
import json
import time

import pytest

import tiny
from data_folders import CONVERSATION, make_skyeye, read, real, row_error, touch, write
from support.common import ABSENT
from support.readers.conversations import (
    SKYEYE_FILES,
    describe_skyeye_fields,
    read_llava,
    read_skyeye,
)

# ---- conversations -------------------------------------------------------------------------------

def conversation(*texts, roles=("human", "gpt"), **more):
    turns = [{"from": roles[i % len(roles)], "value": text} for i, text in enumerate(texts)]
    return {"conversations": turns, **more}


def messages(*texts, roles=("user", "assistant"), **more):
    turns = [{"role": roles[i % len(roles)], "content": text} for i, text in enumerate(texts)]
    return {"messages": turns, **more}


def test_swift_rows_are_read_with_their_objects(tmp_path):
    file = write(tmp_path / "swift.jsonl", json.dumps(messages(
        "<image>where is <ref-object>?", "at <bbox>", "and <bbox>?", "<ref-object> of <ref-object>",
        images=["a.png"], objects={"ref": ["the ship", "a roof", "a house"], "bbox": [
            [1, 2, 3.5, 4], [5, 6, 7, 8]]})))
    (row,) = read("llava", file)
    assert row["turns"] == (("where is the ship?", "at <bbox>"),
                            ("and <bbox>?", "a roof of a house"))
    assert row["boxes"] == ((1, 2, 3.5, 4), (5, 6, 7, 8)) and row["images"] == ["a.png"]


@pytest.mark.parametrize("row,images", [
    (conversation("hello", "hi"), []), (messages("hello", "hi", images=[]), []),
    (conversation("<image>\nwhat?", "a ship", image="a.png"), ["a.png"]),
    (conversation("what?", "a ship", image=["a.png", "b.png"]), ["a.png", "b.png"]),
    (conversation("what?", "a ship", images=["a.png", "b.png"]), ["a.png", "b.png"]),
    (messages("<image><image>what?", "two ships", images=["a.png", "b.png"]), ["a.png", "b.png"]),
    ({"conversations": [{"value": "what?"}, {"value": "a ship"}], "image": "a.png"}, ["a.png"]),
    (conversation("", "hello", "hi", roles=("system", "human", "gpt")), []),
])
def test_pictures_may_be_none_one_or_a_list(tmp_path, row, images):
    (found,) = read("llava", write(tmp_path / "conversations.json", [row]))
    assert found["images"] == images and len(found["turns"]) == 1


def test_boxes_that_are_text_stay_text(tmp_path):
    turn = ("what is in {<9><51><50><82>} ?", "{<1><2><3><4>|<90>}")       # GeoChat's has an angle
    (row,) = read("llava", write(tmp_path / "conversations.json", [conversation(*turn)]))
    assert row["turns"] == (turn,) and row["boxes"] == ()


WRONG_CONVERSATIONS = {
    "1 turns": conversation("hello"), "3 turns": conversation("a", "b", "c"),
    "empty": conversation("hello", " "),
    "question is empty": conversation("<image>", "a ship", image="a.png"),
    "turn 2 is by 'human'": conversation("a", "b", roles=("human",)),
    "turn 1 is by 'gpt'": conversation("a", "b", roles=("gpt", "human")),
    "turn 1 is by 'system'": messages("be kind", "a", "b", roles=("system", "user", "assistant")),
    "turn 2 is by 'tool'": messages("a", "b", roles=("user", "tool")),
    "2 <image> for 1": conversation("<image><image> what?", "a ship", image="a.png"),
    "1 <image> for 0": conversation("<image> what?", "a ship"),
    '"conversations" must be a list': {"conversations": "hello"},
    '"messages" must be a list': {"messages": [{"role": "user"}]},
    '"conversations" must': {"image": "a.png"},
    "the pictures must be": conversation("a", "b", image={"path": "a.png"}),
    "the pictures": messages("a", "b", images=["a.png", 3]),
    "1 <bbox> in the texts for 0": conversation("a", "at <bbox>"),
    "0 <bbox> in the texts for 1": messages("a", "b", objects={"bbox": [[1, 2, 3, 4]]}),
    "2 <ref-object> in the texts for 1": messages("<ref-object>", "<ref-object>",
                                                  objects={"ref": ["x"]}),
    "four numbers": messages("a", "<bbox>", objects={"bbox": [[1, 2]]}),
    "must be four": messages("a", "<bbox>", objects={"bbox": [[1, 2, 3]]}),
    "bbox_type 'norm1'": messages("a", "<bbox>", objects={"bbox": [[0, 0, 1, 1]],
                                                          "bbox_type": "norm1"}),
    "image_id": messages("a", "<bbox>", objects={"bbox": [[0, 0, 1, 1]], "image_id": [1]}),
}


@pytest.mark.parametrize("reason", WRONG_CONVERSATIONS)
def test_a_conversation_that_is_wrong_is_named_and_the_next_one_is_read(tmp_path, reason):
    file = write(tmp_path / "conversations.json", [
        conversation("a", "b"), WRONG_CONVERSATIONS[reason], conversation("c", "d")])
    error = row_error("llava", file)
    assert error.startswith(f"{file}:2: ") and reason in error
    assert len(list(read_llava(file, "train", []))) == 2


@real(tiny.DATA / "rsicd")
def test_the_real_conversations_are_read():
    rows = read("llava", tiny.DATA / "rsicd/textrs_vqa_val.json")
    assert len(rows) == 190 and {row["task"] for row in rows} == {"conversation"}
    assert all((tiny.DATA / "rsicd" / row["images"][0]).is_file() for row in rows)


# ---- SkyEye-968k ---------------------------------------------------------------------------------

RELEASED = {        # the 19 files of the release
    "caption": "ERA_train NWPU_train RSICD_train RSITMD_train Sydney_train UCM_train",
    "multitask_conversation": "DIOR_Conversa DOTA_Conversa Sydney_Conversa UCM_Conversa",
    "phrasegrounding": "diorpg_train", "vg": "rsvg DIORvg_train",
    "vqa": "DOTAvqa_train EARVqa RSVQAHR_train RSVQALR_train SydneyVqa UCMvqa"}
PICTURE_FOLDERS = {
    "ERA": "SingleFrames", "EAR": "SingleFrames", "NWPU": "NWPU-RESISC45/harbor",
    "RSICD": "RSICD_images", "RSITMD": "rsitmd/images", "Sydney": "Sydney/images",
    "UCM": "UCMerced/harbor", "DIOR": "DIOR/JPEGImages-trainval", "DOTA": "DOTA/images",
    "diorpg": "DIOR/JPEGImages-trainval", "rsvg": "RSVG/images",
    "RSVQAHR": "RSVQA_HR/Data", "RSVQALR": "RSVQA_LR/Images_LR"}
ROWS = {"caption": {"text": "a port ."}, "vqa": {"question": "how many ?", "answer": 4},
        "vg": {"expression": "the ship", "bbox": [1, 2, 3, 4]},
        "phrasegrounding": {"phrase": "ships", "bboxes": [[1, 2, 3, 4], [5, 6, 7, 8]]},
        "multitask_conversation": {"conversations": CONVERSATION}}


def make_release(place):
    """One row a file, and each picture under the same name in its data set's own folder alone."""
    for folder, names in RELEASED.items():
        for name in names.split():
            stem = f"caption_{name}" if folder == "caption" else name
            write(place / folder / f"{stem}.json", [{"image": "harbor_01.jpg", **ROWS[folder]}])
    touch(place, *(f"{folder}/harbor_01.jpg" for folder in PICTURE_FOLDERS.values()))


def test_all_released_files_are_known_with_task_and_pictures(tmp_path):
    make_release(tmp_path)
    rows = {row["source"].split("/")[-1].split(".")[0]: row for row in read("skyeye", tmp_path)}
    assert len(rows) == 19 == len(SKYEYE_FILES)
    for stem, row in rows.items():
        names = [name for name in PICTURE_FOLDERS if stem.removeprefix("caption_").startswith(name)]
        assert row["images"] == [f"{PICTURE_FOLDERS[max(names, key=len)]}/harbor_01.jpg"]
    tasks = {stem: row["task"] for stem, row in rows.items()}
    assert tasks["caption_ERA_train"] == "video" and tasks["caption_RSICD_train"] == "caption"
    assert tasks["EARVqa"] == tasks["RSVQAHR_train"] == "vqa" and tasks["rsvg"] == "refer"
    assert tasks["diorpg_train"] == "detection" and tasks["UCM_Conversa"] == "conversation"
    assert rows["UCMvqa"]["turns"] == (("how many ?", "4"),)
    touch(tmp_path, "images/harbor_01.jpg")
    assert {row["images"][0] for row in read("skyeye", tmp_path)} == {"images/harbor_01.jpg"}


def test_an_empty_list_of_boxes_says_that_nothing_is_there(tmp_path):
    touch(tmp_path, "images/a.jpg")
    write(tmp_path / "vg/a_train.json", [{"image": "a.jpg", "expression": "the ship", "bbox": []}])
    write(tmp_path / "phrasegrounding/a_train.json",
          [{"image": "a.jpg", "phrase": "ships", "bboxes": []}])
    rows = {row["task"]: row for row in read("skyeye", tmp_path)}
    assert rows["refer"]["turns"] == (("the ship", ABSENT),)
    assert rows["detection"]["turns"] == (("ships", ABSENT),)
    assert not rows["refer"].get("boxes") and not rows["detection"].get("boxes")
    write(tmp_path / "vg/a_train.json", [{"image": "a.jpg", "task": "identify", "phrase": "ship",
                                          "bbox": []}])
    assert "no box" in row_error("skyeye", tmp_path)


def test_a_picture_of_the_release_may_be_a_number_or_have_no_suffix(tmp_path):
    write(tmp_path / "vqa/RSVQALR_train.json", [{"img_id": 12, **ROWS["vqa"]}])
    write(tmp_path / "vqa/DOTAvqa_train.json", [{"image": "P0001", **ROWS["vqa"]}])
    touch(tmp_path, "RSVQA_LR/Images_LR/12.tif", "DOTA/images/P0001.png")
    assert [row["images"] for row in read("skyeye", tmp_path)] == [
        ["DOTA/images/P0001.png"], ["RSVQA_LR/Images_LR/12.tif"]]


def test_the_fields_of_each_file_are_described(tmp_path):
    make_release(tmp_path)
    write(tmp_path / "caption/caption_RSICD_train.json", [{"image_id": "0.jpg", "text": "a port"}])
    write(tmp_path / "vqa/UCMvqa.json", [{"image": "0.jpg", "odd": 1}])
    lines = list(describe_skyeye_fields(tmp_path))
    assert len(lines) == 19
    assert "caption/caption_RSICD_train.json: image <- image_id, caption <- text" in lines
    assert "vg/rsvg.json: image <- image, expression <- expression, box <- bbox" in lines
    assert ("multitask_conversation/UCM_Conversa.json: conversations <- conversations") in lines
    assert "vqa/UCMvqa.json: no field for the question; it has image, odd" in lines


def test_a_released_box_may_be_text(tmp_path):
    box = "{<1><2><3><4>}"
    write(tmp_path / "vg/rsvg.json", [{"image": "a.jpg", "question": "a ship", "answer": box}])
    (row,) = read("skyeye", tmp_path)
    assert row["turns"] == (("a ship", box),) and row["boxes"] == ()


@pytest.mark.parametrize("task, turn", [
    ("refer", ("ships", "<bbox>")), ("identify", ("<bbox>", "ships")),
    ("detection", ("ships", "<p>ships</p> <bbox>"))])
def test_a_row_may_name_its_own_task(tmp_path, task, turn):
    write(tmp_path / "vg/rsvg.json", [{"image": "a.jpg", "text": "ships", "bbox": [1, 2, 3, 4],
                                       "task": task}])
    (row,) = read("skyeye", tmp_path)
    assert (row["task"], row["turns"], row["boxes"]) == (task, (turn,), ((1, 2, 3, 4),))


WRONG_ROWS = {
    "no field for the caption": ("caption", {"image": "a.jpg", "odd": 1}),
    "no field for the image": ("caption", {"caption": "a port"}),
    "must be a text, not ['a', 'b']": ("caption", {"image": "a.jpg", "caption": ["a", "b"]}),
    "must be a text, not ''": ("vqa", {"image": "a.jpg", "question": "what ?", "answer": ""}),
    "no picture": ("caption", {"image": [], "caption": "a port"}),
    "must be four numbers": ("vg", {"image": "a.jpg", "expression": "x", "bbox": [1, 2, 3]}),
    "2 boxes where one": ("vg", {"image": "a.jpg", "expression": "x", "bbox": [[1, 2, 3, 4]] * 2}),
    "four numbers, not 'left'": ("phrasegrounding", {"image": "a", "phrase": "x", "bbox": "left"}),
    "no field for the conversations": ("multitask_conversation", {"image": "a.jpg"}),
    "conversations; it has image, task": ("vg", {"image": "a.jpg", "task": "sing"}),
    "1 turns": ("multitask_conversation", {"conversations": CONVERSATION[:1], "image": "a.jpg"}),
}


@pytest.mark.parametrize("reason", WRONG_ROWS)
def test_a_released_row_that_is_wrong_is_named_and_the_others_are_read(tmp_path, reason):
    make_skyeye(tmp_path)
    folder, row = WRONG_ROWS[reason]
    file = write(tmp_path / folder / "more.json", [{"image": "a.jpg", **ROWS[folder]}, row])
    error = row_error("skyeye", tmp_path)
    assert error.startswith(f"{file}:2: ") and reason in error
    assert len(list(read_skyeye(tmp_path, "train", []))) == 3


# ---- rows as other systems write them ------------------------------------------------------------

@pytest.mark.parametrize("key", ["video", "videos"])
def test_clips_are_read_like_pictures(tmp_path, key):
    turn = conversation("<video>\nwhat happens?", "a fire")
    (row,) = read("llava", write(tmp_path / "a.json", [turn | {key: ["clip.mp4"]}]))
    assert row["images"] == ["clip.mp4"] and row["turns"] == (("what happens?", "a fire"),)


@pytest.mark.parametrize("key, value", [
    *((key, "a.jpg") for key in ("image_path", "images_path", "audio", "imagePath", "file_name",
                                 "frames", "image_url", "image_id", "imageUrl", "img", "url", "x",
                                 "\u56fe\u7247")),
    ("image_url", {"url": "http://x.org/a"}), ("images_url", ["http://x.org/a.jpg?size=3"]),
    ("image_id", "P0001"), ("attachments", [{"path": "a.jpg"}]), ("x", {"bytes": [{"b": "a.TIF"}]}),
    ("data", "data:image/jpeg;base64,AAAA"), ("cloud", "scene.ply"), ("before", "a.NPY")])
def test_a_key_of_media_that_is_not_read_is_named(tmp_path, key, value):
    row = conversation("what?", "a ship", **{key: value})
    assert repr(key) in row_error("llava", write(tmp_path / "a.json", [row]))


@pytest.mark.parametrize("more", [{"image_id": 7}, {"video_id": None}, {"image_size": [3, 4]},
                                  {"frames": 8}, {"image_path": ""}, {"type": None},
                                  {"source": "rsicd"}, {"id": "a.jpg"}])
def test_what_only_describes_media_is_no_media(tmp_path, more):
    (row,) = read("llava", write(tmp_path / "a.json", [conversation("what?", "yes", **more)]))
    assert row["images"] == [] and row["kind"] == ""


@pytest.mark.parametrize("layout", ["llava", "skyeye"])
@pytest.mark.parametrize("value, kind", [(None, ""), (7, "7"), (0.5, "0.5"), ("count", "count"),
                                         ([1], None), ({"a": 1}, None)])
def test_a_type_is_a_text_or_nothing_or_a_fault_of_its_row(tmp_path, layout, value, kind):
    row = {"image": "a.jpg", "question": "what?", "answer": "yes", "type": value}
    file = tmp_path / "vqa/A_vqa_train.json"
    if layout == "llava":
        row, file = conversation("what?", "yes", type=value), tmp_path / "a.json"
    place = write(file, [row]) if layout == "llava" else write(file, [row]).parent.parent
    if kind is None:
        assert ": 'type' must be a text" in row_error(layout, place)
    else:
        assert [row["kind"] for row in read(layout, place)] == [kind]


@pytest.mark.parametrize("more", [{"image_id": "a.jpg"}, {"image_url": "http://x.org/a.jpg"},
                                  {"source": "b.jpg"}])
def test_beside_a_picture_its_id_and_address_are_no_media(tmp_path, more):
    row = conversation("what?", "yes", image="a.jpg", **more)
    (row,) = read("llava", write(tmp_path / "a.json", [row]))
    assert row["images"] == ["a.jpg"]
    row = conversation("what?", "yes", image="a.jpg", mask="b.png")
    assert "'mask'" in row_error("llava", write(tmp_path / "a.json", [row]))


@pytest.mark.parametrize("tag", [
    "<img>a.jpg</img>", '<img src="a.jpg">', "![a ship](a.jpg)", "<|image_1|>", "<ImageHere>",
    "<Image>", "<audio>", "<image_placeholder>", "<|vision_start|>", "[IMG]", "< image >"])
@pytest.mark.parametrize("images", [[], ["a.jpg"]])
def test_another_programs_sign_for_a_picture_is_named_and_never_learned_as_text(
        tmp_path, tag, images):
    for turns in ((f"{tag} what?", "a ship"), ("what?", f"a ship {tag}")):
        row = conversation(*turns, images=images)
        assert "is not read" in row_error("llava", write(tmp_path / "a.json", [row]))
    start = time.perf_counter()
    row_error("llava", write(tmp_path / "a.json", [conversation(tag[:-1] * 20_000 + tag, "x")]))
    row = conversation("<" + " " * 99_000 + "![" * 50_000, "x", images=images)
    read("llava", write(tmp_path / "b.json", [row]))
    assert time.perf_counter() - start < 2


def test_a_picture_in_a_part_of_text_or_in_a_row_of_the_release_is_named(tmp_path):
    parts = [{"type": "text", "text": "what?", "image": "a.jpg"}]
    assert "'image'" in row_error("llava", write(tmp_path / "a.json", [messages(parts, "x")]))
    make_skyeye(tmp_path)
    write(tmp_path / "vqa/UCMvqa.json", [
        {"image": "1.tif", "question": "what?", "answer": 1, "video": "a.mp4", "height": 5}])
    assert "'video'" in row_error("skyeye", tmp_path)


def test_a_system_text_is_named_wherever_it_stands(tmp_path):
    for row in (conversation("what?", "a ship", system="be brief"),
                conversation("be brief", "what?", "a ship", roles=("system", "human", "gpt"))):
        assert "system" in row_error("llava", write(tmp_path / "a.json", [row]))


def test_answers_may_be_numbers_and_contents_lists_of_parts(tmp_path):
    parts = [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "how\n\nmany?"}]
    (row,) = read("llava", write(tmp_path / "a.json", [messages(parts, 6)]))
    assert row["images"] == ["a.jpg"] and row["turns"] == (("how\n\nmany?", "6"),)
    for wrong in (None, [], {"a": 1}, float("nan"), True):
        row_error("llava", write(tmp_path / "a.json", [messages("how many?", wrong)]))


def test_lines_of_json_may_be_called_json_and_a_wrong_one_is_named(tmp_path):
    lines = "\n".join(json.dumps(conversation("what\u2028is?", answer), ensure_ascii=False)
                      for answer in ("a", "b"))
    file = tmp_path / "A.JSON"
    file.write_bytes(("\ufeff" + lines + "\n").encode())
    assert [row["turns"][0][1] for row in read("llava", file)] == ["a", "b"]
    file = write(tmp_path / "b.jsonl", lines + "\n{\n")
    assert "b.jsonl:3: not valid JSON" in row_error("llava", file)


def test_a_json_that_is_too_deep_or_a_number_too_long_is_one_line(tmp_path):
    for text in ("[" * 100_000, '[{"a": ' + "[" * 200 + "]" * 200 + "}]", "[" + "1" * 5000 + "]"):
        row_error("llava", write(tmp_path / "a.json", text))
