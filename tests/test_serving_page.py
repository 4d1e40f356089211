"""The page of chat.py --serve in a real browser, where there is one (Debian: chromium)."""
import io
import json
import time

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageColor

import tiny
from browser import EXECUTABLE, SHIFT, Browser
from data import parse_boxes
from serving import script, serving, tiny_model
from support.images.draw import COLORS
from test_serving_http import geotiff, wait_until

pytestmark = pytest.mark.skipif(not EXECUTABLE, reason="needs a browser: apt-get install chromium")
MODEL, TOKENIZER = tiny_model()
TWO = "<p>two planes</p> {<20><30><40><55>} <delim> {<60><10><89><84>} near a river"
SIZE = 300, 200
READY = "document.getElementById('state').textContent.includes('ready')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as own:
        own.saved = tmp_path_factory.mktemp("saved")
        yield own


@pytest.fixture(scope="module")
def server():
    with serving(MODEL, TOKENIZER, "--max_new_tokens", "150") as own:
        yield own


@pytest.fixture
def page(browser, server):
    browser.new_tab()
    browser.downloads(browser.saved)
    browser.prefer("light")
    browser.leaves = True
    for noted in (browser.errors, browser.requests, browser.dialogs):
        noted.clear()
    browser.open(server.url)
    browser.wait_for(READY)
    yield browser
    assert not browser.errors
    own = ("http://127.0.0.1:", "blob:http://127.0.0.1:", "data:")
    assert all(url.startswith(own) for url in browser.requests)     # nothing from elsewhere


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "gray.png"
    Image.new("RGB", SIZE, "#808080").save(path)
    return str(path)


def show(page, *paths):
    page.drop("#stage", list(paths))
    page.wait_for(f"current.pictures.length == {len(paths)} && svg.querySelector('image')")


def ask(page, text):
    before = page.run("current.turns.length")
    page.click("#text")
    page.type(text)
    page.press("Enter")
    page.wait_for(f"current.turns.length > {before} && !running")


def texts(page, selector):
    return page.run(f"[...document.querySelectorAll('{selector}')].map(e => e.textContent)")


def on_screen(page, box):
    """Where a box of the picture's pixels is to be seen, after `Fit`."""
    left, top, width, height = page.place("#stage")
    scale = min(width / SIZE[0], height / SIZE[1])
    x0, y0 = left + (width - scale * SIZE[0]) / 2, top + (height - scale * SIZE[1]) / 2
    return [x0 + scale * box[0], y0 + scale * box[1], x0 + scale * box[2], y0 + scale * box[3]]


def colored(shot, color, around):
    """Left, top, right, bottom of what has this color in a part of a screenshot."""
    part = shot.crop(around)
    plain = Image.new("RGB", part.size, ImageColor.getrgb(color))
    away = np.asarray(ImageChops.difference(part, plain)).max(2)
    rows, columns = np.nonzero(away < 30)
    assert len(rows) > 50
    return columns.min() + around[0], rows.min() + around[1], columns.max() + around[0], (
        rows.max() + around[1])


def screenshot(page, tmp_path):
    page.screenshot(tmp_path / "shot.png")
    return Image.open(tmp_path / "shot.png").convert("RGB")


def test_boxes_are_drawn_at_their_pixels_in_their_colors(page, server, picture, tmp_path,
                                                         monkeypatch):
    script(monkeypatch, server, TOKENIZER, TWO)
    show(page, picture)
    ask(page, "[detection] planes")
    page.wait_for("document.querySelectorAll('.box').length == 2")
    page.run("document.querySelectorAll('.label').forEach(label => label.remove())")
    page.mouse("mouseMoved", 5, 5)
    shot = screenshot(page, tmp_path)
    left, top, width, height = map(round, page.place("#stage"))
    for number, (_, box) in enumerate(parse_boxes(TWO, *SIZE)):
        expected = on_screen(page, box)
        found = colored(shot, COLORS[number], (left, top, left + width, top + height))
        assert np.abs(np.subtract(found, expected)).max() <= 3, (found, expected)
    assert texts(page, ".boxes button span")[0].startswith("two planes 1.00: x 62 to 122, y 61 to")
    assert texts(page, ".answer") == ["two planes 1 2 near a river"]


def test_the_words_come_one_after_the_other(page, server, picture, monkeypatch):
    script(monkeypatch, server, TOKENIZER, TWO, seconds=0.05)
    show(page, picture)
    page.click("#text")
    page.type("[vqa] what is there ?")
    page.click("#ask")
    seen = []
    while page.run("Boolean(running)"):
        seen += texts(page, ".answer")
    lengths = sorted({len(text) for text in seen})
    assert len(lengths) > 5 and lengths[0] < 5
    assert texts(page, ".question") == ["[vqa] what is there ?"]


def test_pointing_at_a_text_or_a_box_marks_both(page, server, picture, monkeypatch):
    script(monkeypatch, server, TOKENIZER, TWO)
    show(page, picture)
    ask(page, "[detection] planes")
    page.wait_for("document.querySelectorAll('.boxes button').length == 2")
    x, y, *_ = page.place(".boxes li:nth-child(2) button")
    page.mouse("mouseMoved", x + 20, y + 8)
    page.wait_for("document.querySelector('.box.hot')?.dataset.index == 1")
    x1, y1, x2, y2 = on_screen(page, parse_boxes(TWO, *SIZE)[0][1])
    page.mouse("mouseMoved", (x1 + x2) / 2, (y1 + y2) / 2)
    page.wait_for("document.querySelector('.boxes .hot')?.dataset.index == 0")
    page.run("document.querySelector('.chip[data-index=\"1\"]').focus()")
    page.wait_for("document.querySelector('.box.hot')?.dataset.index == 1")


def test_a_region_that_is_dragged_is_identified(page, server, picture, monkeypatch):
    script(monkeypatch, server, TOKENIZER, "a storage tank")
    show(page, picture)
    page.click("#mark")
    x1, y1, x2, y2 = on_screen(page, (60, 40, 151, 120))
    page.drag((x1, y1), (x2, y2))
    page.wait_for("current.turns.length == 1 && !running")
    asked = page.run("current.turns[0].asked")
    assert asked == "[identify] what is it in {<20><20><50><60>}"
    assert page.run("current.turns[0].boxes[0].phrase") == "a storage tank"
    page.wait_for("document.querySelectorAll('.box').length == 1")
    page.mouse("mouseWheel", (x1 + x2) / 2, (y1 + y2) / 2, deltaX=0, deltaY=-150)
    page.wait_for("view.zoom * 300 > 1.2 * stage.clientWidth")      # also when it is enlarged
    page.drag((x1 + 9, y2 - 9), (x1 + 30, y2 - 25))                 # and moved
    corners = page.run("[[60, 40], [151, 120]].map(([x, y]) => { const r = "
                       "stage.getBoundingClientRect(); return [r.x + (x - view.x) * view.zoom, "
                       "r.y + (y - view.y) * view.zoom]; })")
    page.click("#mark")
    page.drag(*corners)
    page.wait_for("current.turns.length == 2 && !running")
    assert page.run("current.turns[1].asked") == asked


def test_a_region_can_be_marked_with_the_keyboard(page, server, picture, monkeypatch):
    script(monkeypatch, server, TOKENIZER, "a river")
    show(page, picture)
    page.run("stage.focus()")
    page.press("r")
    page.press("ArrowRight")
    page.press("ArrowDown", SHIFT)
    assert "region: x 119 to 194, y 75 to 129" in page.run("$('state').textContent")
    page.press("Enter")
    page.wait_for("current.turns.length == 1 && !running")
    assert page.run("current.turns[0].question") == "[identify] what is it in 119 75 194 129 px"


def test_turns_go_on_and_are_taken_back(page, server, picture, monkeypatch):
    script(monkeypatch, server, TOKENIZER, "yes")
    show(page, picture)
    ask(page, "is there a road?")
    assert page.run("current.turns[0].asked") == "[vqa] is there a road ?"
    seen = []
    prepare = type(server.service).prepare
    monkeypatch.setattr(server.service, "prepare", lambda request: (
        seen.append(request.turns), prepare(server.service, request))[1])
    ask(page, "is there a river?")
    assert seen[-1] == [("is there a road?", "yes"), ("is there a river?", None)]
    page.click("#again")
    page.wait_for("!running && current.turns.length == 2")
    assert seen[-1] == seen[-2]
    page.click("#undo")
    assert page.run("$('text').value") == "is there a river?"
    assert texts(page, ".question") == ["is there a road?"]


def test_an_answer_can_be_stopped_and_its_beginning_stays(page, server, picture, monkeypatch):
    script(monkeypatch, server, TOKENIZER, "a green ship near the river " * 9, seconds=0.1)
    show(page, picture)
    page.click("#text")
    page.type("[vqa] what is there ?")
    page.press("Enter")
    page.wait_for("current.turns.length && current.turns[0].text.length > 3")
    page.click("#stop")
    page.wait_for("!running")
    wait_until(lambda: not any(server.engine.load().values()), 3)
    assert texts(page, ".small") == ["stopped"] and "a gr" in texts(page, ".answer")[0]
    assert page.run("$('ask').disabled") is False


def test_a_page_that_is_loaded_anew_stops_its_answer_and_goes_on(page, server, picture,
                                                                 monkeypatch):
    with monkeypatch.context() as slow:
        script(slow, server, TOKENIZER, "a green ship near the river " * 9, seconds=0.1)
        show(page, picture)
        page.click("#text")
        page.type("[vqa] what is there ?")
        page.press("Enter")
        page.wait_for("current.turns.length && current.turns[0].text.length > 3")
        page.open(server.url)
        wait_until(lambda: not any(server.engine.load().values()), 3)
    script(monkeypatch, server, TOKENIZER, "yes")
    page.wait_for(READY)
    assert texts(page, ".small") == ["stopped"] and "a gr" in texts(page, ".answer")[0]
    ask(page, "is there a road?")
    assert texts(page, ".answer")[1] == "yes" and texts(page, ".small")[0] == "stopped"


def test_a_page_that_is_loaded_anew_shows_what_it_showed(page, server, tmp_path, monkeypatch):
    """Both conversations, pictures of any format, boxes, the question that is being written."""
    script(monkeypatch, server, TOKENIZER, TWO)
    first = tiny.picture(tmp_path / "first.png", 40, 30)
    (tmp_path / "scene.tif").write_bytes(geotiff())
    show(page, str(first))
    ask(page, "[detection] planes")
    page.drop("#stage", [str(tmp_path / "scene.tif")])
    page.wait_for("conversations.length == 2 && current.pictures.length == 1")
    ask(page, "[detection] planes")
    page.wait_for("document.querySelectorAll('.box').length == 2")
    page.type("how many <b>")
    shown = "[log.innerHTML, svg.querySelectorAll('rect').length, $('note').textContent, " \
            "$('conversations').textContent, $('text').value, shownPicture().coordinates]"
    drawn = "[...svg.querySelectorAll('.edge')].map(e => e.getBoundingClientRect().toJSON())"
    before = page.run(shown), page.run(drawn)
    for _ in range(2):
        page.open(server.url)
        page.wait_for(READY)
        assert (page.run(shown), page.run(drawn)) == before
    assert page.run("(async () => { const i = new Image(); i.src = shownPicture().url; "
                    "await i.decode(); return i.naturalWidth > 0; })()")
    seen = []
    prepare = type(server.service).prepare
    monkeypatch.setattr(server.service, "prepare", lambda request: (
        seen.append(request), prepare(server.service, request))[1])
    ask(page, " planes ?")
    assert seen[0].turns == [("[detection] planes", TWO), ("how many <b> planes ?", None)]
    assert page.run("current.turns[1].question") == "how many <b> planes ?"
    page.run("$('conversations').value = 0; "
             "$('conversations').dispatchEvent(new Event('change'))")
    page.click("#save-picture")
    assert Image.open(io.BytesIO(saved_file(page, "first_boxes.png"))).size == (40, 30)
    assert not page.dialogs


def test_what_the_browser_cannot_keep_is_not_lost_without_a_question(page, server, picture,
                                                                     tmp_path, monkeypatch):
    script(monkeypatch, server, TOKENIZER, "yes")
    show(page, picture)
    page.open(server.url)                               # this much is kept
    page.wait_for("current.pictures.length == 1")
    noise = np.random.default_rng(0).integers(0, 256, (1300, 1300, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    page.drop("#stage", [str(tmp_path / "large.png")])
    page.wait_for("current.pictures[0].name == 'large.png'")
    ask(page, "is there a road?")
    page.leaves = False
    page.send("Page.navigate", url=server.url)
    assert page.dialogs == ["beforeunload"] and texts(page, ".answer") == ["yes"]
    page.leaves = True
    page.open(server.url)
    page.wait_for(READY)
    assert len(page.dialogs) == 2 and page.run("conversations.length") == 1
    assert not page.run("current.turns.length + current.pictures.length")


def test_another_tab_begins_without_what_this_one_keeps(page, server, picture, monkeypatch):
    script(monkeypatch, server, TOKENIZER, "yes")
    show(page, picture)
    ask(page, "is there a road?")
    page.open(server.url)
    page.wait_for("current.turns.length == 1")
    page.new_tab()
    page.open(server.url)
    page.wait_for(READY)
    assert not page.run("current.turns.length + current.pictures.length")


def test_the_buttons_of_the_tasks_ask_for_them(page, server, picture, monkeypatch):
    script(monkeypatch, server, TOKENIZER, "a river")
    show(page, picture)
    page.click("#tasks button")
    page.wait_for("current.turns.length == 1 && !running")
    assert page.run("current.turns[0].asked") == "[caption] briefly describe the image"
    page.click("#tasks button:nth-child(5)")
    assert page.run("$('tasks').children[4].getAttribute('aria-pressed')") == "true"
    ask(page, "ships")
    assert page.run("current.turns[1].asked") == "[detection] ships"


def test_several_pictures_are_one_conversation_and_others_another(page, server, tmp_path,
                                                                  monkeypatch):
    script(monkeypatch, server, TOKENIZER, "in picture 2 {<20><30><40><55>}")
    paths = [tiny.picture(tmp_path / f"{i}.png", 40 + i, 30, seed=i) for i in range(3)]
    show(page, *paths[:2])
    ask(page, "[refer] where is the river ?")
    page.wait_for("document.querySelectorAll('.box').length == 1")
    assert page.run("current.picture") == 1
    assert page.run("current.turns[0].boxes[0].picture") == 1
    page.drop("#stage", paths[2:])
    page.wait_for("conversations.length == 2 && current.pictures.length == 1")
    assert texts(page, ".question") == []
    page.run("$('conversations').value = 0; "
             "$('conversations').dispatchEvent(new Event('change'))")
    assert texts(page, ".question") == ["[refer] where is the river ?"]


def test_nothing_that_is_said_becomes_markup(page, server, tmp_path, monkeypatch):
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    script(monkeypatch, server, TOKENIZER, f"<p>{evil}</p> {{<20><30><40><55>}}")
    path = tiny.picture(tmp_path / "<b>&a.png")
    show(page, path)
    ask(page, f"[detection] {evil}")
    page.wait_for("document.querySelectorAll('.box').length == 1")
    assert evil in texts(page, ".question")[0] and evil in texts(page, ".boxes span")[0]
    assert page.run("document.querySelectorAll('#log img, #log script, #log b').length") == 0
    assert "<b>&a.png" in texts(page, "#note")[0]
    with pytest.raises(RuntimeError, match="TrustedHTML"):
        page.run("document.body.innerHTML = '<b>a</b>'")
    assert page.run("(() => { const s = document.createElement('style'); s.textContent = "
                    "'body {display: none}'; document.head.append(s); return "
                    "getComputedStyle(document.body).display; })()") == "flex"
    page.errors.clear()                                 # what the policy forbade


def saved_file(page, name):
    wait_until(lambda: (page.saved / name).exists())
    time.sleep(0.1)
    content = (page.saved / name).read_bytes()
    (page.saved / name).unlink()
    return content


def test_what_is_saved_is_what_is_shown(page, server, picture, monkeypatch):
    script(monkeypatch, server, TOKENIZER, TWO)
    show(page, picture)
    ask(page, "[detection] planes")
    page.click("#save-picture")
    saved = Image.open(io.BytesIO(saved_file(page, "gray_boxes.png"))).convert("RGB")
    assert saved.size == SIZE
    for number, (_, (x1, y1, x2, y2)) in enumerate(parse_boxes(TWO, *SIZE)):
        color = ImageColor.getrgb(COLORS[number])
        for x, y in (((x1 + x2) / 2, y2), (x1 - 1, (y1 + y2) / 2), (x2, (y1 + y2) / 2)):
            near = np.asarray(saved.crop((int(x) - 2, int(y) - 2, int(x) + 3, int(y) + 3)))
            assert np.abs(near.astype(int) - color).max(-1).min() < 25
    page.click("#save-talk")
    [row] = json.loads(saved_file(page, "conversation.json"))
    human, gpt = row["conversations"]
    assert row["image"] == ["gray.png"]
    assert human == {"from": "human", "value": "[detection] planes"}
    assert gpt["value"] == TWO and len(gpt["confidence"]) == 2
    page.click("#save-boxes")
    first, _ = json.loads(saved_file(page, "boxes.json"))
    assert first["picture"] == "gray.png" and first["pixels"] == [61.5, 61.0, 121.5, 111.0]


def test_boxes_of_a_geotiff_are_saved_in_its_coordinates(page, server, tmp_path, monkeypatch):
    script(monkeypatch, server, TOKENIZER, "{<0><0><49><99>}")
    (tmp_path / "scene.tif").write_bytes(geotiff())
    show(page, str(tmp_path / "scene.tif"))
    ask(page, "[refer] where is the river ?")
    page.click("#save-boxes")
    layer = json.loads(saved_file(page, "scene.geojson"))
    assert layer["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32650"
    [[low, _, high, *_]] = layer["features"][0]["geometry"]["coordinates"]
    assert low == [500.1, 892.54] or np.allclose(low, [500.1, 892.54], atol=0.05)
    assert np.allclose(high, [509.9, 899.96], atol=0.05)
    assert layer["features"][0]["properties"]["phrase"] == "the river"


def test_a_photograph_that_lies_on_its_side_is_shown_as_the_model_sees_it(page, server, tmp_path,
                                                                         monkeypatch):
    script(monkeypatch, server, TOKENIZER, "{<0><0><49><99>}")
    exif = Image.Exif()
    exif[274] = 6
    pixels = Image.new("RGB", (200, 300), "#0000ff")    # turned: the lower half becomes the left
    pixels.paste("#00ff00", (0, 150, 200, 300))
    pixels.save(tmp_path / "a.jpg", exif=exif, quality=95)
    show(page, str(tmp_path / "a.jpg"))
    assert page.run("[shownPicture().width, shownPicture().height]") == [300, 200]
    shot = screenshot(page, tmp_path)
    x1, y1, x2, y2 = on_screen(page, (0, 0, *SIZE))
    assert shot.getpixel((round(x1 + 40), round(y1 + 40)))[1] > 200
    assert shot.getpixel((round(x2 - 40), round(y1 + 40)))[2] > 200


@pytest.mark.parametrize("look", ["light", "dark"])
def test_texts_can_be_read_in_both_looks_and_on_a_phone(page, server, picture, look, monkeypatch):
    script(monkeypatch, server, TOKENIZER, TWO)
    page.prefer(look)
    show(page, picture)
    ask(page, "[detection] planes")
    for width, height in ((1200, 800), (390, 844), (320, 600)):
        page.resize(width, height, mobile=width < 500)
        assert page.run("document.documentElement.scrollWidth") <= width
        contrasts = page.run(CONTRASTS)
        assert len(contrasts) > 15 and min(contrasts) >= 4.5
    page.click("#look")
    assert page.run("document.documentElement.dataset.look") != look
    assert min(page.run(CONTRASTS)) >= 4.5


# Of every text that can be seen and is not of a button that is disabled: WCAG's contrast.
CONTRASTS = """(() => {
  const numbers = color => color.match(/[\\d.]+/g).map(Number);
  const light = color => { const [r, g, b] = numbers(color).map(v => v / 255).map(v =>
    v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = element => { for (; element; element = element.parentElement) {
    const color = getComputedStyle(element).backgroundColor;
    if ((numbers(color)[3] ?? 1) > 0.9) return color; } return 'rgb(255, 255, 255)'; };
  const shown = [...document.querySelectorAll('body *:not(svg *)')].filter(e => !e.disabled
    && e.offsetWidth > 2 && e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3
    && n.data.trim()));
  return shown.map(e => { const [a, b] = [getComputedStyle(e).color, behind(e)].map(light);
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); }); })()"""


def test_everything_has_a_name_and_is_reached_with_the_keyboard(page, server, picture, monkeypatch):
    script(monkeypatch, server, TOKENIZER, TWO)
    show(page, picture)
    ask(page, "[detection] planes")
    tree = page.send("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "combobox", "textbox", "list", "log", "application", "region")
    named = [(node["role"]["value"], node.get("name", {}).get("value", ""))
             for node in tree if not node["ignored"] and node["role"]["value"] in roles]
    nameless = [role for role, name in named if not name and role not in ("list",)]
    assert not nameless and ("application", "Picture gray.png") in named
    page.run("document.activeElement.blur()")
    reached = set()
    for _ in range(40):
        page.press("Tab")
        reached.add(page.run("document.activeElement.id || document.activeElement.textContent"))
    wanted = {"open", "add", "examples", "mark", "fit", "stage", "text", "ask", "again", "undo",
              "save-picture", "save-boxes", "save-talk", "look", "Caption", "Identify"}
    assert wanted <= reached, wanted - reached


def test_what_goes_wrong_is_told_and_the_question_is_kept(page, server, picture, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    page.drop("#stage", [str(tmp_path / "bad.png")])
    page.wait_for("$('state').textContent.includes('not a picture')")
    show(page, picture)
    ask(page, "[rever] a ship")
    assert "unknown task" in texts(page, ".wrong")[0]
    assert page.run("$('text').value") == "[rever] a ship"
    page.errors.clear()                                 # the two refusals, in the console


def test_a_token_is_asked_for_once(browser, tmp_path):
    (tmp_path / "token").write_text("a-token-of-24-characters")
    with serving(MODEL, TOKENIZER, "--token", str(tmp_path / "token")) as own:
        browser.open(own.url)
        browser.wait_for("$('login').open")
        browser.click("#token")
        browser.type("a-token-of-24-characters")
        browser.press("Enter")
        browser.wait_for(READY)
        browser.open(own.url)
        browser.wait_for(READY)
        assert not browser.run("$('login').open")


def test_while_the_model_is_loaded_the_page_says_so(browser):
    with serving(None, None) as own:
        browser.open(own.url)
        browser.wait_for("$('state').textContent == 'the model is being loaded'")
        own.attach(MODEL, TOKENIZER)
        browser.wait_for(READY)


def test_who_waits_for_others_is_told(page, server, picture, monkeypatch):
    monkeypatch.setattr("support.serving.http.POLL_SECONDS", 0.02)
    show(page, picture)
    step, held = type(server.engine).step, [True]
    monkeypatch.setattr(server.engine, "admit", lambda: time.sleep(0.05) if held[0] else
                        type(server.engine).admit(server.engine))
    page.click("#text")
    page.type("hello")
    page.press("Enter")
    page.wait_for("$('state').textContent.startsWith('waiting: 1')")
    held[0] = False
    page.wait_for("!running")
    assert texts(page, ".answer") != [""] and step
