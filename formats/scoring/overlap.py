"""Intersection over union, as it is usual and as MiniGPT-v2's evaluation has it."""
import numpy as np

from formats.boxes import Box
from formats.scoring.score import Options, share

# (pixels added to each side; whether IoU must be above a threshold, or may be equal to it). A box
# 4 pixels beside another of 10 has an IoU of 0.43 or, with the pixel, 0.47. Upstream's is
# https://github.com/Vision-CAIR/MiniGPT-4/blob/081fb02/minigpt4/common/eval_utils.py
CONVENTIONS = {"standard": (0, False), "upstream": (1, True)}


def conventions(options: Options) -> list[tuple[str, int, bool]]:
    """-> [(what the names of its figures end in, extra pixels, strict)]; KeyError: unknown."""
    names = tuple(CONVENTIONS) if options.convention == "both" else (options.convention,)
    return [(" upstream" if name == "upstream" else "", *CONVENTIONS[name]) for name in names]


def overlap(a: np.ndarray | Box, b: np.ndarray | Box, extra: int = 0
            ) -> tuple[np.ndarray, np.ndarray]:
    """Boxes float[.., 4] -> intersection and union, float[..]."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + extra
    inter = np.maximum(sides, 0).prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2] + extra).prod(axis=-1) for box in (a, b)]
    return inter, areas[0] + areas[1] - inter


def iou(a: np.ndarray | Box, b: np.ndarray | Box, extra: int = 0) -> np.ndarray:
    """0 where both boxes are points or lines."""
    return np.nan_to_num(share(*overlap(a, b, extra)))


def reaches(values: np.ndarray, at: float, strict: bool) -> np.ndarray:
    return values > at if strict else values >= at
