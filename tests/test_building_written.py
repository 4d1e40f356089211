"""`data.py --build --writer`: what a model says is in the training set where it is true."""
import json
import shutil

import pytest

from chat_server import ChatServer
from support.building.build import main
from support.tools import check_data
from test_building_build import coco


@pytest.fixture
def boxes(tmp_path, monkeypatch):
    monkeypatch.delenv("WRITER_API_KEY", raising=False)
    coco(tmp_path / "boxes", range(6))
    return tmp_path / "boxes"


def build(out, boxes, *flags):
    return main(list(map(str, ["--build", out, "--data", boxes, "--workers", "1",
                               "--conversations", "0", *flags])))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*.json*")}


@pytest.mark.parametrize("layout", ["skyeye", "llava"])
def test_what_the_model_writes_is_built_in_and_asked_for_once(boxes, tmp_path, layout):
    out = tmp_path / "out"
    with ChatServer() as server:
        flags = ["--writer", server.url, "--writer_model", "m", "--layout", layout]
        assert build(out, boxes, *flags) == 0 and server.asked.total() == 6
        first = contents(out)
        shutil.rmtree(out)
        assert build(out, boxes, *flags) == 0 and server.asked.total() == 6
    assert contents(out) == first
    manifest = json.loads(first["manifest.json"])
    print(json.dumps(manifest, indent=1))
    assert check_data.main(["--check", str(out)]) == 0
    text = b"".join(first.values()).decode()
    assert text.count("Why does it look so?") == 6 and text.count("The count of ") >= 12


def test_flags_of_the_writer_that_are_wrong_are_one_line(boxes, tmp_path, capsys):
    for flags in (["--writer", "http://localhost/v1"], ["--writer_model", "m"],
                  ["--writer", "ftp://a", "--writer_model", "m"]):
        assert build(tmp_path / "out", boxes, *flags) == 2
        assert capsys.readouterr().err.startswith("data.py: --writer")
