"""What a frozen vision encoder makes of the pictures, computed once for each and kept in memory."""
import hashlib

import torch
from torch import Tensor

from projector import SkyEyeGPT


class FeatureCache:
    """Finds a picture by the content of its pixels, so a picture that has changed is another one.

    Each is encoded by itself: what it gives then does not depend on the others of a batch, and a
    resumed run, which starts without any, gets the same numbers.
    """

    def __init__(self, model: SkyEyeGPT, max_bytes: float, dtype: torch.dtype = torch.float32):
        """model: its vision encoder stays as it is; dtype: of the arithmetic."""
        self.model, self.max_bytes, self.dtype = model, max_bytes, dtype
        self.features: dict[bytes, Tensor] = {}
        self.bytes = 0

    def encode(self, batch: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
        """A batch as data.collate makes it -> the same with images: float[n, P, D], on the CPU."""
        if batch["images"] is None:
            return batch
        return batch | {"images": torch.stack([self.find(image) for image in batch["images"]])}

    def find(self, image: Tensor) -> Tensor:
        """float[3, H, W] -> float[P, D]"""
        key = hashlib.blake2b(image.numpy(), digest_size=16).digest()
        if key in self.features:
            return self.features[key]
        features = self.compute(image)
        if self.bytes + features.nbytes <= self.max_bytes:
            self.features[key] = features
            self.bytes += features.nbytes
        return features

    @torch.no_grad()
    def compute(self, image: Tensor) -> Tensor:
        vit = self.model.visual_encoder
        device, dtype = vit.pos_embed.device, vit.pos_embed.dtype
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            return vit(image[None].to(device, dtype))[0].cpu()                # [P, D]


def feature_cache(settings: dict, model: SkyEyeGPT, dtype: torch.dtype) -> FeatureCache | None:
    """None where the encoder's output for a picture changes, or a process has but a part of it.

    settings: the fields of train.TrainConfig.
    """
    if any(settings[name] for name in ("train_vit", "augment", "shard")):
        return None
    gigabytes = settings["feature_cache"]
    return FeatureCache(model, gigabytes * 1e9, dtype) if gigabytes else None
