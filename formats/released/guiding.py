"""Between the numbers of a step and what follows each answer, formats.talking.guide.Guide."""
import torch
from torch import Tensor


def allowed(logits: Tensor, guides: list) -> Tensor:
    """float[B, V] -> the same, -inf where a row's guide does not allow the id."""
    if not guides:
        return logits
    may = torch.stack([torch.from_numpy(guide.allowed()) for guide in guides])    # [B, V]
    return logits.masked_fill(~may.to(logits.device), -torch.inf)


def told(guides: list, ids: Tensor, logits: Tensor) -> None:
    """Each guide hears its row's id, ids: long[B], and how likely it was among all, not only the
    allowed ones."""
    if guides:
        logs = logits.float().log_softmax(-1).gather(1, ids[:, None])[:, 0]       # [B]
        for guide, token, log in zip(guides, ids.tolist(), logs.tolist(), strict=True):
            guide.said(token, log)
