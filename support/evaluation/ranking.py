"""Answers chosen from a list: how probable each of them is to the model."""
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from data import Tokenizer
from projector import SkyEyeGPT


class Asked(Protocol):
    """Questions about the same pictures."""
    prompts: list[Tensor]           # long[T] each, which begin with the same prefix_len ids
    images: Tensor                  # float[n, 3, H, W]
    prefix_len: int


@torch.inference_mode()
def answer_log_likelihoods(model: SkyEyeGPT, tokenizer: Tokenizer, group: Asked,
                           candidates: Sequence[str], device: str) -> Tensor:
    """The log-probability of each candidate as the answer to each question, float[Q, C].

    It is the sum over the candidate's tokens and </s>, so of exactly this answer; a mean over them
    would prefer long names. One row holds the prefix, then a segment for each question with each
    candidate; segments attend to the prefix and to themselves (llama.packed_mask):

        prefix | question 1, candidate 1 </s> | question 1, candidate 2 </s> | question 2, ..
    """
    targets = [torch.tensor(tokenizer.encode(text) + [tokenizer.eos]) for text in candidates]
    prefix_len = group.prefix_len
    ids, positions = [group.prompts[0][:prefix_len]], [torch.arange(prefix_len)]
    segments, target_pos = [torch.zeros(prefix_len)], []
    length = prefix_len                                     # of the row so far
    for prompt in group.prompts:
        for target in targets:
            segment = torch.cat([prompt[prefix_len:], target])
            length += len(segment)
            ids.append(segment)
            positions.append(torch.arange(prefix_len, prefix_len + len(segment)))
            segments.append(torch.full((len(segment),), len(segments)))
            target_pos.append(torch.arange(length - len(target), length))
    ids, positions, segments = (torch.cat(blocks).long()[None].to(device)
                                for blocks in (ids, positions, segments))   # [1, T]
    at = torch.cat(target_pos).to(device)                   # [W], the places of target tokens
    h = model.hidden_states(ids, group.images.to(device), at[None] - 1, positions, segments)
    logits = model.llama_model.lm_head(h[0]).float()        # [W, V], each from the token before
    log_probs = logits.log_softmax(-1).gather(1, ids[0, at][:, None])[:, 0]             # [W]
    sums = [own.sum() for own in log_probs.split([len(places) for places in target_pos])]
    return torch.stack(sums).view(len(group.prompts), len(candidates))
