"""How values of more than 8 bits become 8."""
import numpy as np
from PIL import Image

from formats.pictures.errors import PictureError

SAMPLE = 1_000_000          # values that percentiles are taken from


def without(values: np.ndarray, nodata: float | None) -> np.ndarray:
    """float32[H, W, C], changed in place: no-data, infinite and absurd values become NaN."""
    if nodata is not None:
        values[values == np.float32(nodata)] = np.nan       # as a float it is rounded alike
    values[~(np.abs(values) < 1e30)] = np.nan
    return values


def stretch(values: np.ndarray, kind: str) -> tuple[Image.Image, str]:
    """float32[H, W, 1 or 3] -> RGB and what was done; each channel by its own percentiles."""
    done = [stretch_channel(values[..., c]) for c in range(values.shape[2])]
    ranges = ", ".join(f"{low:.6g}..{high:.6g}" for _, low, high in done)
    image = Image.merge("RGB", [Image.fromarray(done[c % len(done)][0]) for c in range(3)])
    what = "gray, stretched" if len(done) == 1 else "colors, each band stretched on its own,"
    return image, f"{kind} {what} from {ranges} (2nd to 98th percentile)"


def stretch_channel(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """float32[H, W] -> uint8[H, W], low, high. Without data: black; all alike: middle gray."""
    valid = values[np.isfinite(values)]
    if not valid.size:
        raise PictureError("no pixel has a value: all are NaN or no-data; take another file")
    low, high = map(float, np.percentile(valid[::max(1, valid.size // SAMPLE)], (2, 98)))
    if not low < high:                          # mostly one value: the rest is what is to be seen
        low, high = float(valid.min()), float(valid.max())
    scaled = (values - low) * (255 / (high - low)) if low < high else values * 0 + 128
    np.nan_to_num(scaled, copy=False)
    return scaled.clip(0, 255, out=scaled).round(out=scaled).astype(np.uint8), low, high
