"""Questions about what is not there: from scenes and captions, true by what these say."""
import tiny
from examples import absent_rows as rows
from support.common import ABSENT
from support.readers import read_data


def test_a_thing_is_mentioned_by_any_of_its_words_in_either_number():
    assert rows.mentioned(["Two boats near a Bridge.", "many cars"]) == {"ship", "bridge", "car"}
    assert rows.mentioned(["a carport and a tanker"]) == set()


def test_only_what_no_caption_of_a_scene_mentions_is_asked_for(monkeypatch):
    monkeypatch.setattr(rows, "MIN_PICTURES", 2)
    pictures = {"a": ("beach", {"ship"}), "b": ("beach", {"house"}), "c": ("desert", set())}
    absent = rows.never_seen(pictures)
    assert set(absent) == {"beach"}             # one desert says little
    assert set(absent["beach"]) == rows.THINGS.keys() - {"ship", "house"}
    asked = rows.absent_things({"d": ("beach", {"car"}), "e": ("desert", set())}, absent, seed=1)
    assert [path for path, _ in asked] == ["d"]
    assert asked[0][1] in set(absent["beach"]) - {"car"}
    assert asked == rows.absent_things({"d": ("beach", {"car"})}, absent, seed=1)


def test_what_is_written_is_read_as_questions_without_a_box(tmp_path):
    picture = tmp_path / "deserts" / "a.jpg"
    picture.parent.mkdir()
    tiny.picture(picture)
    rows.write_split(tmp_path / "out", "train", [(str(picture), "ship")])
    samples = {sample.task: sample for sample in read_data(tmp_path / "out")}
    assert samples["refer"].turns == (("the ship", ABSENT),) and samples["refer"].boxes == ()
    assert samples["detection"].turns == (("ships", ABSENT),)


def test_a_folder_without_data_is_refused_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["absent_rows.py", str(tmp_path / "out"), str(tmp_path)])
    assert rows.main() == 2
    assert str(tmp_path) in capsys.readouterr().err
