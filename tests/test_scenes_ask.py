"""chat.py --tiles: what is asked, what is written, and runs that are killed and continued."""
import csv
import importlib.util
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import chat
import tiny
from conversations import make_session
from data import Tokenizer, preprocess
from projector import SkyEyeGPT
from support.common import UserError
from support.scenes import ask, journal, layers
from support.scenes.answers import TiledScene, TileSettings, phrase_of, scene_question
from support.scenes.georeference import signed_area
from support.scenes.raster import open_scene
from support.terminal.answers import readable_text
from support.terminal.each import answer_rows
from support.terminal.session import run_command

HAS_RASTERIO = importlib.util.find_spec("rasterio") is not None
needs_rasterio = pytest.mark.skipif(not HAS_RASTERIO, reason="rasterio is optional")
QUESTIONS = ("[detection] ships", "[vqa] is there a road ?")
SIDE = 40
FLAGS = ("--tiles", SIDE, "--overlap", 8, "--batch_size", 3, "--max_new_tokens", 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny.model_folder(tmp_path_factory.mktemp("model") / "model")
    model = SkyEyeGPT.from_pretrained(folder)
    model.llama_model.lm_head.weight.data[2] *= 1.5             # some answers end early
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def scene(tmp_path):
    """130 x 90 pixels with a black part, in 4 x 3 tiles of which one is empty."""
    pixels = np.random.default_rng(0).integers(1, 256, (90, 130, 3), dtype=np.uint8)
    pixels[50:, 90:] = 0
    Image.fromarray(pixels).save(tmp_path / "scene.png")
    return str(tmp_path / "scene.png")


@pytest.fixture(autouse=True)
def streams_of_pytest(monkeypatch):
    monkeypatch.setattr(chat, "prepare_streams", lambda: None)


def with_boxes(model, tokenizer, rows, *more):
    """As answer_rows; but of a tiny model, which never comes to a box, each request for boxes has
    two, which depend on the tile's pixels."""
    answer_rows(model, tokenizer, rows, *more)
    for row in rows:
        if row.question.startswith("[detection]"):
            x, y = (int(1e4 * abs(float(part))) % 60 for part in row.images.mean((0, 2, 3))[:2])
            row.answer = f"{{<{x}><{y}><{x + 20}><{y + 30}>}}<delim>{{<80><85><99><99>}}"
            row.scores = [0.2 + row.probability ** 0.05 / 2, 0.4]


@pytest.fixture(autouse=True)
def boxes_in_answers(monkeypatch):
    monkeypatch.setattr("support.scenes.answers.answer_rows", with_boxes)


def run(*args):
    return chat.main([str(argument) for argument in args])


def asked(scene, folder, *more, questions=QUESTIONS):
    prompts = [word for question in questions for word in ("--prompt", question)]
    return run(scene, "--model", folder, *FLAGS, *prompts, *more)


# ---- what is asked -------------------------------------------------------------------------------

@pytest.mark.parametrize(("line", "question", "kind"), [
    ("find all ships", "[detection] ships", "boxes"),
    ("[refer] where is the ship ?", "[refer] where is the ship ?", "boxes"),
    ("how many ships are there?", "[detection] ships", "count"),
    ("[vqa] how many white cars are on the road ?", "[detection] white cars", "count"),
    ("how many storage tanks?", "[detection] storage tanks", "count"),
    ("is there a road?", "[vqa] is there a road ?", "value"),
    ("[vqa] what is the theme of this picture ?", "[vqa] what is the theme of this picture ?",
     "value"),
    ("describe it", "[caption] briefly describe the image", "value")])
def test_a_line_is_a_request_for_boxes_or_for_a_value_a_tile(line, question, kind):
    found = scene_question(line)
    assert (found.question, found.kind) == (question, kind)


@pytest.mark.parametrize("line", ["what is in 20 30 40 50 px", "[identify] {<1><2><30><40>}",
                                  "[vqa] is {<1><2><30><40>} a ship ?"])
def test_a_question_about_a_region_is_refused(line):
    with pytest.raises(UserError, match="crop"):
        scene_question(line)


def test_the_phrase_of_a_question_is_what_it_asks_for():
    assert phrase_of("[detection] white ships") == "white ships"
    assert phrase_of("[refer] where is the ship ?") == "where is the ship"


@pytest.mark.parametrize(("flags", "why"), [
    (["--geojson", "a.kml"], ".geojson, .gpkg or .shp"), (["--csv", "a.txt"], "as .csv"),
    (["--save", "a.doc"], "a picture is written"), (["--overlap", "40"], "less than --tiles 40"),
    (["--save", "scene.png", "--overwrite"], "a picture of the conversation")])
def test_flags_that_do_not_fit_are_refused(flags, why, scene, folder, monkeypatch):
    monkeypatch.chdir(Path(scene).parent)
    with pytest.raises(UserError, match=why):
        asked("scene.png", folder, *flags)
    assert not list(Path().glob("*.tiles*"))


@pytest.mark.parametrize(("flags", "why"), [
    ("--each --tiles 99", "leave out one"), ("--tiles 99 --compile", "leave out --compile"),
    ("--tiles 99 --conversation", "leave out --conversation"),
    ("--geojson a.geojson", "--geojson goes with --tiles"), ("--csv a.csv", "--csv goes with"),
    ("--fresh", "--fresh goes with"), ("--rank yes no", "--rank goes with"),
    ("--overlap 0", "--overlap goes with"), ("--scale 0.5", "--scale goes with")])
def test_flags_that_would_do_nothing_are_refused_before_the_model_is_read(flags, why):
    with pytest.raises(UserError, match=why):
        run("a.png", "--model", "nowhere", "--prompt", "is it?", *flags.split())


# ---- the tiles -----------------------------------------------------------------------------------

def tiled(scene, folder, **more):
    model, tokenizer = SkyEyeGPT.from_pretrained(folder), Tokenizer(folder / "tokenizer.model")
    sampling = {"max_new_tokens": 9, "stop": 2, "temperature": None, "repetition_penalty": None,
                "generator": torch.Generator().manual_seed(7), "top_p": 0.9, "top_k": 50}
    settings = TileSettings(**{"side": SIDE, "overlap": 8, "batch_size": 3} | more)
    return TiledScene(model, tokenizer, [open_scene(scene)], settings, sampling)


def test_a_tile_is_answered_as_the_picture_that_is_cut_out(scene, folder, tmp_path):
    whole = tiled(scene, folder)
    lines = ("[vqa] is there a road ?", "[caption] briefly describe the image")
    questions = [scene_question(line) for line in lines]
    answers = whole.ask(questions, {}, lambda answers: None)
    assert len(whole.tiles) == 12 and [i for i in answers if answers[i] is None] == [11]
    for number in (0, 2, 7):
        tile = whole.tiles[number]
        path = tmp_path / f"{number}.png"
        Image.open(scene).crop(tile.window).save(path)
        session = make_session(folder, path, max_new_tokens=9, sampling={
            "temperature": 0.0, "stop": 2, "repetition_penalty": 1.0})
        for question, entry in zip(lines, answers[number], strict=True):
            session.conversation.reset()
            answer = "".join(session.conversation.ask(question))
            log_probs = session.conversation.constraints[-1].log_probs
            assert entry["answer"] == " ".join(readable_text(answer)[0].split())
            assert entry["probability"] == pytest.approx(math.exp(sum(log_probs)), abs=1e-4)
        image = whole.read_tile(tile)
        assert torch.equal(image[0], preprocess(Image.open(path), tiny.VIT.image_size))


def test_boxes_of_a_tile_lie_where_it_lies(scene, folder, monkeypatch):
    whole, [asked] = tiled(scene, folder), [scene_question("[detection] ships")]

    def answer_all(model, tokenizer, rows, *more):
        for row in rows:
            row.answer, row.scores = "<p>ship</p> {<50><50><59><74>}", [0.7123456]

    monkeypatch.setattr("support.scenes.answers.answer_rows", answer_all)
    answers = whole.ask([asked], {}, lambda answers: None)
    for tile in whole.tiles[:11]:
        [[phrase, *box, confidence, picture]] = answers[tile.number][0]["boxes"]
        left, top = tile.window[:2]
        wanted = (left + .505 * SIDE, top + .505 * SIDE, left + .595 * SIDE, top + .745 * SIDE)
        assert np.allclose(box, wanted, atol=0.006)
        assert (phrase, confidence, picture) == ("ship", 0.7123, 0)
    [result] = whole.put_together([asked], answers)
    assert result.tiles == 11 and result.empty == 1 and len(result.boxes) == 11


def test_a_ranked_answer_is_one_of_the_choices_with_its_probability_among_them(scene, folder):
    choices = ("yes", "no", "a green ship")
    ranked = tiled(scene, folder, choices=choices)
    asked = [scene_question("[vqa] is there a road ?")]
    answers = ranked.ask(asked, {}, lambda answers: None)
    ids, prefix_len = ranked.encode(asked)
    row = ranked.read_rows(4, asked, ids, prefix_len)[0]
    log_probs = []
    for text in choices:
        target = ranked.tokenizer.encode(text) + [2]
        with torch.no_grad():
            logits = ranked.model(torch.tensor([ids[0] + target]), row.images)
        own = logits[0, len(ids[0]) - 1:-1].log_softmax(-1)
        log_probs.append(own[range(len(target)), target].sum())
    shares = torch.stack(log_probs).softmax(0)
    entry = answers[4][0]
    assert entry["answer"] == choices[int(shares.argmax())]
    assert entry["probability"] == pytest.approx(float(shares.max()), abs=2e-4)


# ---- what is written -----------------------------------------------------------------------------

def check_rfc_7946(layer):
    """What the RFC asks of the kinds of objects that are written here."""
    assert layer["type"] == "FeatureCollection" and "crs" not in layer
    for feature in layer["features"]:
        assert feature["type"] == "Feature" and isinstance(feature["properties"], dict)
        geometry = feature["geometry"]
        assert geometry["type"] in ("Polygon", "MultiPolygon")
        polygons = geometry["coordinates"]
        for [ring] in [polygons] if geometry["type"] == "Polygon" else polygons:
            assert len(ring) >= 4 and ring[0] == ring[-1] and signed_area(ring[:-1]) > 0
            assert all(len(point) == 2 and all(isinstance(number, float) for number in point)
                       for point in ring)


def test_without_coordinates_the_layer_the_table_and_the_lines_have_the_pixels(scene, folder,
                                                                               tmp_path, capsys):
    files = [tmp_path / "out" / name for name in ("a.geojson", "a.csv", "a.png")]
    flags = [word for flag, file in zip(("--geojson", "--csv", "--save"), files, strict=True)
             for word in (flag, file)]
    assert asked(scene, folder, *flags, "--json") == 0
    out, err = capsys.readouterr()
    boxes, values = map(json.loads, out.splitlines())
    assert values["tiles"] == 11 and values["empty"] == 1 and len(values["values"]) == 11
    layer = json.loads(files[0].read_text())
    check_rfc_7946(layer)
    assert "no coordinate system" in layer["note"] and "no coordinate system" in err
    features = layer["features"]
    assert len(features) == len(boxes["boxes"]) + 11 > 11
    rows = list(csv.DictReader(files[1].open()))
    assert len(rows) == len(features)
    for feature, row in zip(features, rows, strict=True):
        own = feature["properties"]
        x1, y1, x2, y2 = own["pixels"]
        [ring] = feature["geometry"]["coordinates"]
        xs, ys = zip(*ring, strict=True)
        assert np.allclose((min(xs), -max(ys), max(xs), -min(ys)), (x1, y1, x2, y2), atol=0.01)
        assert [float(row[name]) for name in ("x1", "y1", "x2", "y2")] == own["pixels"]
        assert row["tile"].split() == list(map(str, own["tile"])) and row["longitude"] == ""
        assert own["model"] == "model" and own["prompt"] in QUESTIONS and own["scale"] == 1
        assert ("answer" in own) == (own["prompt"] == QUESTIONS[1])
    assert Image.open(files[2]).size[0] == 130                  # its tiles, with a legend below


@needs_rasterio
def test_a_layer_lies_on_its_scene_and_is_read_back_by_others(scene, folder, tmp_path, capsys):
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.warp import transform
    pixels = np.moveaxis(np.asarray(Image.open(scene)), -1, 0)
    path = tmp_path / "scene.tif"
    with rasterio.open(path, "w", driver="GTiff", height=90, width=130, count=3, dtype="uint8",
                       crs="EPSG:32633", transform=from_origin(4e5, 5e6, .5, .5)) as out:
        out.write(pixels)
    layer_file = tmp_path / "a.geojson"
    assert asked(path, folder, "--geojson", layer_file, "--csv", tmp_path / "a.csv") == 0
    layer = json.loads(layer_file.read_text())
    check_rfc_7946(layer)
    assert "note" not in layer and layer["features"]
    for feature in layer["features"]:
        [ring] = feature["geometry"]["coordinates"]
        xs, ys = transform("OGC:CRS84", "EPSG:32633", *zip(*ring, strict=True))
        columns, rows = (np.array(xs) - 4e5) / .5, (5e6 - np.array(ys)) / .5
        found = columns.min(), rows.min(), columns.max(), rows.max()
        assert np.abs(np.subtract(found, feature["properties"]["pixels"])).max() < 0.5
    [first, *_] = csv.DictReader((tmp_path / "a.csv").open())
    assert 13 < float(first["longitude"]) < 15 and 44 < float(first["latitude"]) < 46
    shapely = pytest.importorskip("shapely")
    for feature in layer["features"]:
        outline = shapely.geometry.shape(feature["geometry"])
        assert outline.is_valid and outline.exterior.is_ccw and outline.area > 0
        assert shapely.geometry.box(-180, -90, 180, 90).contains(outline)
    geopandas = pytest.importorskip("geopandas")
    table = geopandas.read_file(layer_file)
    assert len(table) == len(layer["features"]) and table.crs == "EPSG:4326"
    assert table.geometry.is_valid.all()
    pytest.importorskip("fiona")
    for suffix in (".gpkg", ".shp"):
        assert asked(path, folder, "--geojson", tmp_path / f"b{suffix}") == 0
        other = geopandas.read_file(tmp_path / f"b{suffix}")
        assert len(other) == len(table) and other.crs == "EPSG:4326"
        for a, b in zip(table.geometry, other.geometry, strict=True):
            assert a.symmetric_difference(b).area <= 1e-9 * a.area
    assert not [name for name in os.listdir(tmp_path) if name.startswith("tmp")]


def test_gpkg_without_fiona_is_refused_in_one_line_that_names_it(monkeypatch):
    monkeypatch.setattr(layers, "is_installed", lambda package: False)
    with pytest.raises(UserError, match="pip install fiona"):
        layers.check_layer(Path("a.gpkg"))


@needs_rasterio
def test_two_dates_are_asked_together_and_the_second_lies_on_the_grid_of_the_first(scene, folder,
                                                                                  tmp_path):
    import rasterio
    from rasterio.transform import from_origin
    pixels = np.moveaxis(np.asarray(Image.open(scene)), -1, 0)
    for name, shift in (("a", 0), ("b", 10)):
        with rasterio.open(tmp_path / f"{name}.tif", "w", driver="GTiff", height=90,
                           width=130 - shift, count=3, dtype="uint8", crs="EPSG:32633",
                           transform=from_origin(4e5 + shift / 2, 5e6, .5, .5)) as out:
            out.write(pixels[:, :, shift:])
    assert run(tmp_path / "a.tif", tmp_path / "b.tif", "--model", folder, *FLAGS, "--prompt",
               "[vqa] what is new ?", "--geojson", tmp_path / "a.geojson") == 0
    layer = json.loads((tmp_path / "a.geojson").read_text())
    assert layer["scene"] == ["a.tif", "b.tif"] and len(layer["features"]) == 11


# ---- runs that are killed and continued ----------------------------------------------------------

def in_a_process(scene, folder, kill_after, *more, seconds=None):
    """chat.py in a child process, which kills itself in the middle of writing a batch, or is killed
    from outside after so many seconds -> how it ended."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            if kill_after is not None:
                kill_in_the_middle(*kill_after)
            os._exit(asked(scene, folder, *more))
        except BaseException:
            os._exit(9)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)                          # one that has ended feels nothing
    return os.waitpid(child, 0)[1]


def kill_in_the_middle(batches, part):
    """After so many batches, when this part of the next one's text is in the file."""
    write, count = journal.Journal.write, [0]

    def write_or_die(self, answers):
        count[0] += 1
        if count[0] <= batches:
            return write(self, answers)
        before = self.file.tell()
        write(self, answers)
        os.truncate(self.file.fileno(), before + int(part * (self.file.tell() - before)))
        os.kill(os.getpid(), signal.SIGKILL)

    journal.Journal.write = write_or_die


def test_twenty_kills_change_no_byte_of_the_layer(scene, folder, tmp_path):
    torch.set_num_threads(1)
    whole, broken = tmp_path / "whole.geojson", tmp_path / "broken.geojson"
    assert in_a_process(scene, folder, None, "--geojson", whole) == 0
    rng, kills = random.Random(0), 0
    for _ in range(20):
        status = in_a_process(scene, folder, (rng.choice((0, 0, 0, 0, 1)), rng.random()),
                              "--geojson", broken)
        kills += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if status == 0:                                         # it had come to its end
            broken.unlink()
            journal.journal_file(broken).unlink()
    assert kills >= 12
    assert in_a_process(scene, folder, None, "--geojson", broken) == 0
    assert broken.read_bytes() == whole.read_bytes() and whole.stat().st_size > 2000


def test_twenty_kills_from_outside_at_any_moment_change_no_byte_of_the_layer(scene, folder,
                                                                            tmp_path):
    torch.set_num_threads(1)
    whole, broken = tmp_path / "whole.geojson", tmp_path / "broken.geojson"
    start = time.monotonic()
    assert in_a_process(scene, folder, None, "--geojson", whole) == 0
    span, rng, kills = time.monotonic() - start, random.Random(1), 0
    for _ in range(20):
        status = in_a_process(scene, folder, None, "--geojson", broken,
                              seconds=rng.uniform(0, span))
        kills += os.WIFSIGNALED(status)
        if broken.exists():                                     # it had come to its end
            assert broken.read_bytes() == whole.read_bytes()
            broken.unlink()
            journal.journal_file(broken).unlink(missing_ok=True)
    assert in_a_process(scene, folder, None, "--geojson", broken) == 0
    assert broken.read_bytes() == whole.read_bytes() and kills


def test_tiles_that_are_answered_are_not_asked_again(scene, folder, tmp_path, monkeypatch):
    out = tmp_path / "a.geojson"
    asked(scene, folder, "--geojson", out)
    first = out.read_bytes()
    monkeypatch.setattr(SkyEyeGPT, "answer_batch", None)
    asked(scene, folder, "--geojson", out)
    assert out.read_bytes() == first
    lines = journal.journal_file(out).read_text().splitlines(keepends=True)
    assert len(lines) == 14                     # the settings, the files, and each tile
    journal.journal_file(out).write_text("".join(lines[:-1]))
    with pytest.raises(TypeError):                              # the last batch is asked again
        asked(scene, folder, "--geojson", out)


@pytest.mark.parametrize(("change", "told"), [
    (["--overlap", "9"], "overlap 8 -> 9"), (["--scale", "1", "0.5"], "scale 1.0 -> 1.0 0.5"),
    (["--prompt", "find all cars"], "questions"), (["--batch_size", "4"], "batch_size 3 -> 4"),
    (["--rank", "yes", "no"], "rank (empty) -> yes no"), ("scene", "scene scene.png"),
    ("model", "model config.json")])
def test_other_settings_another_scene_or_another_model_are_refused(scene, folder, tmp_path, change,
                                                                   told):
    out, model = tmp_path / "a.geojson", folder
    asked(scene, folder, "--geojson", out)
    if change == "scene":
        tiny.picture(Path(scene), 130, 90, seed=5)
    if change == "model":
        model = tiny.model_folder(tmp_path / "other", seed=3)
    more = change if isinstance(change, list) else []
    with pytest.raises(UserError) as caught:
        asked(scene, model, *more, "--geojson", out)
    assert told in str(caught.value) and "--fresh deletes them" in str(caught.value)
    assert asked(scene, model, *more, "--geojson", out, "--fresh") == 0


def test_a_file_that_is_there_is_written_over_only_when_told(scene, folder, tmp_path):
    out = tmp_path / "a.geojson"
    out.write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        asked(scene, folder, "--geojson", out)
    assert out.read_text() == "mine"
    assert asked(scene, folder, "--geojson", out, "--overwrite") == 0
    (tmp_path / "a.csv").write_text("mine")             # the run's own layer is, another file not
    with pytest.raises(UserError, match="a.csv: exists"):
        asked(scene, folder, "--geojson", out, "--csv", tmp_path / "a.csv")
    assert asked(scene, folder, "--geojson", out, "--csv", tmp_path / "b.csv", "--fresh") == 0
    assert asked(scene, folder, "--geojson", out, "--csv", tmp_path / "b.csv") == 0


def test_what_cannot_be_written_is_told_and_the_answers_so_far_are_kept(scene, folder, tmp_path,
                                                                        monkeypatch):
    def full(self, answers):
        raise OSError(28, "No space left on device")

    out = tmp_path / "a.geojson"
    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "write", full)
        with pytest.raises(UserError, match="No space left .* the same command continues"):
            asked(scene, folder, "--geojson", out)
    assert asked(scene, folder, "--geojson", out) == 0


def test_a_second_run_beside_the_first_is_refused(scene, folder, tmp_path):
    out = tmp_path / "a.geojson"
    asked(scene, folder, "--geojson", out)
    with journal.open_journal(out), pytest.raises(UserError, match="another run is writing it"):
        asked(scene, folder, "--geojson", out)


def test_a_file_of_answers_that_is_none_is_refused_and_lines_that_are_none_are_asked_again(
        scene, folder, tmp_path):
    out = tmp_path / "a.geojson"
    file = journal.journal_file(out)
    file.write_text('{"tile": 1}\n')
    with pytest.raises(UserError, match="not answers of chat.py"):
        asked(scene, folder, "--geojson", out)
    file.unlink()
    asked(scene, folder, "--geojson", out)
    whole = out.read_bytes()
    lines = file.read_text().splitlines()
    lines[4:7] = ['{"tile": 2, "answers": [{"boxes": [["a", 1, 2, 3]]}, {"answer": 5}]}',
                  '{"tile": "3", "answers": 7}', "[]"]
    file.write_text("\n".join(lines))
    asked(scene, folder, "--geojson", out)
    assert out.read_bytes() == whole


def test_torchrun_shares_the_tiles(scene, folder, tmp_path):
    one, two = tmp_path / "one.geojson", tmp_path / "two.geojson"
    flags = [str(flag) for flag in (scene, "--model", folder, *FLAGS, "--prompt", QUESTIONS[1])]
    asked(scene, folder, "--geojson", one, questions=QUESTIONS[1:])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port",
         "29731", "chat.py", *flags, "--geojson", str(two)], cwd=tiny.ROOT, text=True,
        capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert one.read_bytes() == two.read_bytes()
    assert len(journal.journal_files(two)) == 2
    shares = [len(journal.read_lines(file)) for file in journal.journal_files(two)]
    assert sum(shares) == 14 and min(shares) >= 6
    assert done.stdout.count("tiles") == 1                      # told once


# ---- in a conversation ---------------------------------------------------------------------------

def test_tiles_can_be_turned_on_in_a_conversation(scene, folder, tmp_path, capsys):
    session = make_session(folder, scene, sampling={
        "temperature": 0.0, "stop": 2, "repetition_penalty": 1.0, "top_p": 1.0, "top_k": 0})
    config = chat.parse_args(["--model", str(folder), "--overlap", "8"])
    for line in ("/tiles x", "/tiles 3"):
        with pytest.raises(UserError, match="at least 16"):
            run_command(session, line)
    run_command(session, f"/tiles {SIDE}")
    ask.ask_in_session(session, session.to_question("[detection] ships"), config)
    out, err = capsys.readouterr()
    assert " in 11 tiles, 1 empty ones left out" in out and f"tiles of {SIDE}, 8 in common" in err
    run_command(session, f"/save {tmp_path / 'a.geojson'}")
    run_command(session, f"/save {tmp_path / 'a.jpg'}")
    check_rfc_7946(json.loads((tmp_path / "a.geojson").read_text()))
    assert Image.open(tmp_path / "a.jpg").size == (130, 90)
    with pytest.raises(UserError, match="--overwrite"):
        run_command(session, f"/save {tmp_path / 'a.jpg'}")
    with pytest.raises(UserError, match="no picture"):
        ask.ask_in_session(make_session(folder), "[detection] ships", config)
    run_command(session, "/tiles 0")
    assert session.tiles == 0 and session.save_scene is None


def test_memory_does_not_grow_with_the_scene(folder, tmp_path):
    """Of what is held at once: a scene is read by windows, and no more than a batch is kept."""
    Image.new("RGB", (900, 900), "red").save(tmp_path / "a.png")
    whole = tiled(str(tmp_path / "a.png"), folder, side=60, overlap=0)
    read, answered = [], []
    read_tile = whole.read_tile

    def counted(tile):
        read.append(tile.number)
        assert len(read) - len(answered) <= 3 * whole.settings.batch_size
        return read_tile(tile)

    whole.read_tile = counted
    whole.ask([scene_question("[vqa] a road ?")], {}, answered.extend)
    assert len(answered) == len(read) == 225
