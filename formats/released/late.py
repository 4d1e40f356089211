"""Words that a device is still computing, looked at a few steps late, so that it never waits."""
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

AHEAD = 4       # words that a GPU is asked for before the first of them is looked at


def until_all(words: Iterator[Tensor], stop: int, ahead: int) -> Iterator[Tensor]:
    """words: long[B] a step, on any device -> the same on the CPU, up to where all are `stop`."""
    for ids in in_advance(words, ahead):
        yield ids
        if ids.eq(stop).all():
            return


def in_advance(words: Iterator[Tensor], ahead: int) -> Iterator[Tensor]:
    """The words, each when `ahead` more have been asked for."""
    waiting = deque()
    for ids in words:
        waiting.append(send(ids))
        if len(waiting) > ahead:
            yield receive(*waiting.popleft())
    yield from (receive(*sent) for sent in waiting)


def send(ids: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Begin to copy them to the CPU."""
    if ids.device.type == "cpu":
        return ids, None
    copy, arrived = ids.to("cpu", non_blocking=True), torch.cuda.Event()
    arrived.record()
    return copy, arrived


def receive(ids: Tensor, arrived: torch.cuda.Event | None) -> Tensor:
    if arrived:
        arrived.synchronize()
    return ids
