"""What the fuzzer reads: a sound input for every reader of files, and how a command reads it.

A Target's files are made once; of one mutation, one of them is damaged. Its steps read them, each
as a command does; they may raise UserError alone. Nothing here depends on which optional packages
are installed.
"""
import dataclasses
import functools
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

import data_folders
import eval as evaluation
import layouts
import pictures
import tiny
from data import Tokenizer, load_images, preprocess
from projector import SkyEyeGPT
from support.checkpoints.files import open_checkpoint
from support.checkpoints.load import load_llama, read_adapter, read_vit
from support.common import FolderLock, UserError
from support.evaluation.rows import draw_rows
from support.evaluation.runs import begin_run
from support.images.clips import fault_of_pixels, is_clip
from support.images.read import read_header, read_note, read_picture
from support.readers import find_format, read_data
from support.terminal.questions import find_detections, regions_to_text, task_of
from support.tools import check_data
from support.training import checkpoints
from support.training.checks import TokenCounter
from support.training.log import read_log
from train import TrainConfig, build_model, make_optimizer

SPLITS = ("train", "val", "test")


class Target(NamedTuple):
    name: str
    files: dict[str, bytes]             # all of the folder, by their paths in it
    kinds: dict[str, str]               # of those that are damaged: their format, of OF_FORMAT
    steps: tuple[Callable[[Path], object], ...]     # of the folder
    pixels: Callable[[Path], int] = lambda _: 0     # that reading it has to decode


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def made_by(make: Callable[[Path], object]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        return files_of(Path(folder))


# ---- data sets -----------------------------------------------------------------------------------

KIND_OF_SUFFIX = {".json": "json", ".jsonl": "json", ".txt": "text", ".xml": "text"}


def read_data_set(place: Path, format_name: str, split: str) -> None:
    """What is read becomes rows of a training and questions of an evaluation."""
    skipped: list[str] = []
    try:
        samples = read_data(place, split, format_name=format_name, skipped=skipped)
    finally:
        for line in skipped:
            check_message(line)
    draw_rows(samples, range(len(samples)), 1, seed=0)
    for sample in samples[:20]:
        try:
            tiny.rows([sample])[0, 0]
        except UserError as error:
            check_message(error)


def check_data_set(place: Path, format_name: str) -> None:
    config = check_data.CheckConfig(format=format_name)
    splits = check_data.read_splits(place, config)
    counter = TokenCounter(tiny.tokenizer(), config.prompt, tiny.N, config.max_tokens)
    report = check_data.check_data(splits, counter)
    report.text().encode()
    report.json()


def data_steps(format_name: str, file: str = "") -> tuple[Callable[[Path], object], ...]:
    """file: what is read, where it is not the folder."""
    read = [lambda place, split=split: read_data_set(place / file, format_name, split)
            for split in SPLITS]
    return (lambda place: find_format(place / file), *read,
            lambda place: check_data_set(place / file, format_name))


def check_message(message: object) -> None:
    """One line, that can be written, of a length that can be read."""
    text = str(message)
    assert text and "\n" not in text and "\r" not in text, f"more than one line: {text[:300]!r}"
    text.encode("utf-8")
    assert len(text) < 5000, f"a message of {len(text)} letters: {text[:300]!r}"


@functools.cache
def small_png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(pictures.BYTES).resize((80, 90)).save(file, "png")
    return file.getvalue()


def make_conversations(place: Path) -> None:
    turns = data_folders.CONVERSATION
    parts = [{"role": "user", "content": [{"type": "image", "image": "0.png"},
                                          {"type": "text", "text": "where is <ref-object>?"}]},
             {"role": "assistant", "content": "at <bbox>"}]
    rows = [{"id": 1, "image": "0.png", "conversations": turns, "type": "presence"},
            {"image": ["0.png", "1.png"], "conversations": turns * 2},
            {"video": "0.png", "conversations": turns},
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": 3}]},
            {"messages": parts, "objects": {"ref": ["the ship"], "bbox": [[1, 2, 30, 40]]}}]
    data_folders.write(place / "rows.json", rows)
    data_folders.write(place / "rows.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    data_folders.touch(place, "0.png", "1.png")


def make_world(place: Path) -> None:
    """Rows as the miniature world and SkyEye-968k have them."""
    data_folders.make_skyeye(place)
    box = {"image": "0.jpg", "bbox": [1, 2, 30, 40]}
    data_folders.write(place / "vg/rsvg_train.json", [box | {"sents": "the left ship"}])
    data_folders.write(place / "phrasegrounding/diorpg_train.json", [
        box | {"phrase": "ships", "bbox": [[1, 2, 30, 40], [5, 6, 7, 8]]}])
    data_folders.write(place / "multitask_conversation/UCM_Conversation_train.json", [
        {"image": "1.tif", "conversations": data_folders.CONVERSATION}])
    data_folders.touch(place, "RSVG/images/0.jpg", "images/0.jpg")


def make_scenes(place: Path) -> None:
    data_folders.make_class_folders(place)
    for split in SPLITS:
        data_folders.write(place / f"{split}.txt", "Pond/1.jpg\nDenseResidential/1.jpg\n")


def make_rsicd(place: Path) -> None:
    data_folders.make_rsicd(place)
    data_folders.write(place / "scene_classes.json", {"0.jpg": "port", "1.jpg": "pond"})


def make_voc(place: Path) -> None:
    data_folders.make_voc(place)
    data_folders.write(place / "ImageSets/Main/train.txt", "P1\nP2.png\n")
    data_folders.write(place / "ImageSets/Main/val.txt", "P2\n")


def data_targets() -> list[Target]:
    makers = data_folders.MAKERS | {"skyeye": make_world, "class_folder": make_scenes,
                                    "rsicd": make_rsicd, "voc": make_voc}
    targets = []
    for name, make in makers.items():
        files = {path: content or small_png() for path, content in made_by(make).items()}
        kinds = {path: KIND_OF_SUFFIX[Path(path).suffix] for path in files
                 if Path(path).suffix in KIND_OF_SUFFIX}
        targets.append(Target(name, files, kinds, data_steps(name)))
    files = {path: content or small_png()
             for path, content in made_by(make_conversations).items()}
    for path in ("rows.json", "rows.jsonl"):
        targets.append(Target(f"llava{Path(path).suffix}", files, {path: "json"},
                              data_steps("llava", path)))
    return targets


# ---- pictures ------------------------------------------------------------------------------------

def picture_files() -> dict[str, bytes]:
    """One small picture in every format and layout that is read."""
    found: dict[str, bytes] = {}

    def save(name: str, image: Image.Image | np.ndarray, **options) -> None:
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        file = io.BytesIO()
        image.save(file, {"jpg": "jpeg", "tif": "tiff", "jp2": "jpeg2000"}.get(
            name.rpartition(".")[2], name.rpartition(".")[2]), **options)
        found[name] = file.getvalue()

    color, gray = Image.fromarray(pictures.BYTES), Image.fromarray(pictures.GRAY16)
    exif = Image.Exif()
    exif[274], exif[270] = 6, "a ship"
    clear = color.copy()
    clear.putalpha(Image.fromarray(pictures.BYTES[..., 0]))
    frames = [Image.fromarray(np.roll(pictures.BYTES, i, 0)) for i in range(4)]
    animation = {"save_all": True, "append_images": frames[1:], "duration": 50}
    save("rgb.png", color, exif=exif)
    save("alpha.png", clear)
    save("palette.png", color.quantize(16), transparency=3)
    save("gray16.png", gray)
    save("rgb.jpg", color, exif=exif)
    save("progressive.jpg", color, progressive=True)
    save("cmyk.jpg", color.convert("CMYK"))
    save("still.gif", color)
    save("animated.gif", frames[0], **animation)
    save("lossy.webp", color, exif=exif)
    save("alpha.webp", clear, lossless=True)
    save("animated.webp", frames[0], **animation)
    save("rgb.bmp", color)
    save("palette.bmp", color.quantize(16))
    save("rgb.jp2", color)
    save("gray.jp2", color.convert("L"), irreversible=True)
    for name in ("raw", "tiff_lzw", "jpeg", "packbits", "tiff_deflate"):
        save(f"{name}.tif", color, compression=name)
    save("fax.tif", color.convert("1"), compression="group4")
    save("palette.tif", color.quantize(16))
    with tempfile.TemporaryDirectory() as folder:
        file = pictures.save_png16(Path(folder, "a.png"),
                                   (pictures.scene() * 60000).astype(np.uint16))
        found["rgb16.png"] = file.read_bytes()
    deep = (pictures.scene() * 4000).astype(np.uint16)
    bands = (pictures.scene(bands=6) * 4000).astype(np.uint16)
    heights = pictures.scene(bands=1).astype(np.float32) * 100
    rgb, apart = {"photometric": "rgb", "rowsperstrip": 16}, np.moveaxis(deep, -1, 0)
    packed, small = {"compression": "zlib"}, pictures.BYTES[::4, ::4]
    tiff = pictures.tiff_bytes
    found |= {"rgb16.tif": tiff((deep, rgb | packed)),
              "planar.tif": tiff((apart, rgb | {"planarconfig": "separate"})),
              "tiles.tif": tiff((deep, rgb | packed | {"tile": (16, 16)})),
              "bands.tif": tiff((bands, rgb | {"extrasamples": [0] * 3}), order=">"),
              "float.tif": tiff((heights, {"tags": {42113: "-9999"}})),
              "big.tif": tiff((deep, rgb), big=True),
              "pages.tif": tiff((small, rgb | {"tags": {254: [1]}}), (pictures.BYTES, rgb),
                                order=">"),
              "int16.tif": tiff((heights.astype(np.int16), {"tags": {42113: "nan"}}), order=">")}
    return found


KIND_OF_PICTURE = {".jpg": "jpeg", ".tif": "tiff"}


def picture_steps(name: str) -> tuple[Callable[[Path], object], ...]:
    """As the start of a training, a deep check, and training, evaluation and chat read it."""
    def header(folder: Path) -> None:
        found = read_header(str(folder / name))
        check_message(found.fault or "none")
        check_message(read_note(str(folder / name)) or "none")

    def deep(folder: Path) -> None:
        check_message(fault_of_pixels(str(folder / name), (), 8) or "none")

    def whole(folder: Path) -> None:
        found, picture = read_header(str(folder / name)), read_picture(folder / name)
        check_message(picture.note or "none")
        assert found.fault or found[:2] == picture.size or is_clip(folder / name)

    return (header, deep, whole, lambda folder: read_picture(folder / name, (3, 2, 1), 16),
            lambda folder: preprocess(load_images([folder / name], frames=1)[0].image, 32))


def pixels_of(path: Path) -> int:
    """What the header says; of all frames of a clip, at most four are made from it here."""
    header = read_header(str(path))
    return header.width * header.height * (4 if is_clip(path) else 1)


def picture_targets() -> list[Target]:
    targets = []
    for name, content in picture_files().items():
        suffix = Path(name).suffix
        kind = KIND_OF_PICTURE.get(suffix, suffix[1:])
        targets.append(Target(name, {name: content}, {name: kind}, picture_steps(name),
                              lambda folder, name=name: pixels_of(folder / name)))
    return targets


# ---- models --------------------------------------------------------------------------------------

SMALL = dataclasses.replace(tiny.SKYEYE, llama=dataclasses.replace(tiny.SKYEYE_LLAMA, depth=1),
                            vit=dataclasses.replace(tiny.VIT, depth=1))
KIND_OF_WEIGHTS = {".safetensors": "safetensors", ".pth": "zip", ".bin": "zip", ".pt": "zip"} | \
    KIND_OF_SUFFIX


def read_model(folder: Path) -> None:
    SkyEyeGPT.from_pretrained(folder)


def read_all(place: Path) -> None:
    for tensor in open_checkpoint(place).values():
        tensor.read()


def read_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(folder / "tokenizer.model")
    tokenizer.decode(tokenizer.encode("is there a <s> green ship\n {<12><34><56><78>} ?"))


def model_targets() -> list[Target]:
    model = tiny.skyeye(SMALL)

    def peft_folder(folder: Path) -> None:
        tensors = layouts.minigpt_v2(model.state_dict())["model"]
        lora = {name.removeprefix("llama_model."): tensor for name, tensor in tensors.items()
                if ".lora_" in name}
        torch.save(lora, folder / "adapter_model.bin")
        (folder / "adapter_config.json").write_text(json.dumps(
            {"peft_type": "LORA", "r": 7, "lora_alpha": 11, "lora_dropout": 0.05, "bias": "none",
             "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}))

    def adapter_and_base(folder: Path) -> None:
        tiny.model_folder(folder / "base", SMALL)
        model.save_pretrained(folder, base=folder / "base")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"base": "base"}))

    language = {k.removeprefix("llama_model."): v for k, v in model.state_dict().items()
                if k.startswith("llama_model.") and ".lora_" not in k}
    encoder = {k.removeprefix("visual_encoder."): v for k, v in model.state_dict().items()
               if k.startswith("visual_encoder.")}

    def meta_folder(folder: Path) -> None:
        (folder / "params.json").write_text(json.dumps(layouts.params_json(SMALL.llama)))
        torch.save(layouts.meta(language, SMALL.llama.heads), folder / "consolidated.00.pth")

    def old_file(folder: Path) -> None:
        torch.save(layouts.eva(encoder, 1), folder / "a.pth", _use_new_zipfile_serialization=False)

    makers: dict[str, tuple[Callable, Callable]] = {
        "model": (lambda folder: tiny.model_folder(folder, SMALL), read_model),
        "adapter": (adapter_and_base, read_model),
        "llama": (lambda folder: layouts.llama_folder(folder, layouts.hf(language), SMALL.llama),
                  load_llama),
        "meta": (meta_folder, load_llama),
        "peft": (peft_folder, read_adapter),
        "skyeyegpt.pth": (lambda folder: torch.save(layouts.minigpt_v2(model.state_dict()),
                                                    folder / "a.pth"),
                          lambda folder: read_adapter(folder / "a.pth")),
        "vit.pth": (old_file, lambda folder: read_vit(folder / "a.pth")),
    }
    targets = []
    for name, (make, read) in makers.items():
        files = made_by(make)
        kinds = {path: KIND_OF_WEIGHTS[Path(path).suffix] for path in files
                 if Path(path).suffix in KIND_OF_WEIGHTS}
        if name == "adapter":
            kinds = {"config.json": "json", "base/config.json": "json"}
        targets.append(Target(name, files, kinds, (read,)))
    name = "tokenizer.model"
    files = {name: tiny.tokenizer_bytes()}
    return [*targets, Target(name, files, {name: "bytes"}, (read_tokenizer,))]


# ---- runs ----------------------------------------------------------------------------------------

RECORD = {"model": "nano", "benchmark": "", "split": "test", "limit": None, "data": "0123",
          "left_out": 0, "weights": {"model.safetensors": "0123456789abcdef"}}
PREDICTIONS = [
    {"row": 0, "source": "a.json:1", "image": ["a.png"], "task": "vqa", "type": "presence",
     "size": [256, 256], "question": "is there a road ?", "pad": False, "answer": "yes",
     "boxes": [], "references": ["yes"]},
    {"row": 1, "image": ["b.png"], "task": "refer", "type": "", "size": [256, 128],
     "question": "the ship", "pad": True, "answer": "{<10><20><30><40>}",
     "boxes": [[10, 20, 80, 90]], "references": ["<bbox>"]},
    {"row": 2, "image": ["c.png"], "task": "caption", "answer": "a river in the woods",
     "references": ["a green river", "a river &amp; a road"]},
    {"row": 3, "image": ["d.png"], "task": "detection", "size": [99, 88],
     "answer": "<p>ships</p> {<1><2><30><40>}<delim>{<5><6><7><8>}",
     "boxes": [[1, 2, 30, 40]], "references": ["<p>ships</p> <bbox>"]},
    {"row": 4, "image": "e.png", "task": "scene", "answer": "port", "references": ["port"]},
]


def score_predictions(folder: Path) -> None:
    """As another system's."""
    config = evaluation.EvalConfig(score=folder / "predictions.jsonl", data=(str(folder),))
    options = evaluation.ScoringOptions
    evaluation.ScoringOptions = functools.partial(options, samples=20, java=False)
    try:
        results, record = evaluation.score(config.score, config)
        evaluation.write_report(folder / "report", results, record)
    finally:
        evaluation.ScoringOptions = options


def continue_predictions(folder: Path) -> None:
    begin_run(folder, RECORD, fresh=False, rank=0)


def read_run(out: Path) -> None:
    """Resumed, its log drawn."""
    read_log(out / "log.jsonl")
    with FolderLock(out):
        state = new_state(out)
        checkpoints.resume(state)


@functools.cache
def trained_model(folder: str) -> tuple:
    config = TrainConfig(model=folder, tune="lora")
    torch.manual_seed(0)
    model, _ = build_model(config, "cpu")
    return model, config


@functools.cache
def model_on_disk() -> tuple[str, tempfile.TemporaryDirectory]:
    folder = tempfile.TemporaryDirectory()
    tiny.model_folder(Path(folder.name), dataclasses.replace(SMALL, lora=None))
    return folder.name, folder


def new_state(out: Path) -> checkpoints.TrainState:
    """Of a run that has taken one step of gradient 1."""
    model, config = trained_model(model_on_disk()[0])
    config = dataclasses.replace(config, output_dir=str(out), resume="auto", model="model",
                                 tokenizer="tokenizer.model")
    optimizer = make_optimizer(model, config)
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    optimizer.step()
    return checkpoints.TrainState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False),
                                  dataclasses.asdict(config))


def make_run(out: Path) -> None:
    state = new_state(out)
    state.settings["model"] = model_on_disk()[0]
    for step in (3, 7):
        checkpoints.save(state, step)
    for folder in out.glob("checkpoint-*"):             # as of an earlier version, so that damage
        (folder / "checksums.json").unlink()            # is not found by its checksum
        trainer = torch.load(folder / "trainer.pt", weights_only=True)
        trainer["config"]["model"] = "model"
        torch.save(trainer, folder / "trainer.pt")
    (out / "log.jsonl").write_text("".join(
        json.dumps({"step": i, "loss": 1 / i, "lr": 0.1}) + "\n" for i in range(1, 8)))
    (out / "run.lock").write_text("")


def run_targets() -> list[Target]:
    lines = "".join(json.dumps(row) + "\n" for row in PREDICTIONS)
    predictions = {"predictions.jsonl": lines.encode(),
                   "predictions.settings.json": json.dumps(RECORD).encode() + b"\n"}
    run = made_by(make_run)
    kinds = {"checkpoint-7/trainer.pt": "zip", "checkpoint-7/config.json": "json",
             "checkpoint-7/adapter.safetensors": "safetensors", "checkpoint-7/run.json": "json",
             "log.jsonl": "json", "run.lock": "text"}
    return [Target("predictions", predictions, dict.fromkeys(predictions, "json"),
                   (score_predictions, continue_predictions)),
            Target("run", run, kinds, (read_run,))]


# ---- texts that are typed or generated -----------------------------------------------------------

TEXT = ("[refer] where is the <p>green ship</p> in {<10><20><30><40>} at 120 80 300 260 px ?\n"
        "[identify] what is [0.2, 0.3, 0.6, 0.7] in 2 or at [100, 146, 182, 238]\n"
        "<p>two ships</p> {<1><2><3><4>}<delim>{<5><6><7><8>|<-30>}\n")


def read_texts(folder: Path) -> None:
    text = (folder / "text.txt").read_bytes().decode("utf-8", "replace")
    size = (640, 480)
    for line in text.split("\n"):
        task_of(line)
        try:
            regions_to_text(line, size)
        except (UserError, ValueError) as error:
            check_message(str(error).replace("\r", " "))
    find_detections(text, "{<1><2><3><4>}", [size])


def all_targets() -> list[Target]:
    texts = {"text.txt": TEXT.encode()}
    return [*data_targets(), *picture_targets(), *model_targets(), *run_targets(),
            Target("texts", texts, {"text.txt": "text"}, (read_texts,))]
