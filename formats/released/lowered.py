"""Which weights have fewer bits: those of the linear layers, frozen, which are almost all of them.

The language model's in `bits`, its head in 8. The vision encoder's in 8, and 128 neighbors share a
scale: some of its activations are a hundred times the others, so that they must not be rounded
(integers.py does), and 4 bits would blur what all answers are made of. Embeddings, norms and all
that is trained stay floats.
"""
import re

import torch

from formats.released.quantize import quantize
from formats.released.tensors import Stored

SPEAKER = r"\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight$"
HEAD = r"^llama_model\.lm_head\.weight$"
EYE = r"^visual_encoder\.blocks\.\d+\.(attn|mlp)\.\w+\.weight$"


def lowered(tensors: dict[str, Stored], bits: int, device: str, dtype: torch.dtype
            ) -> dict[str, Stored]:
    """16: as they are."""
    if bits == 16:
        return tensors
    kinds = ((SPEAKER, bits, 0), (HEAD, 8, 0), (EYE, 8, 128))
    low = {name: stored.then(stored.shape, lambda w, own=own, group=group: quantize(
               w.to(device), own, dtype, group))
           for pattern, own, group in kinds for name, stored in tensors.items()
           if re.search(pattern, name)}
    return tensors | low
