"""What chat.py shows with --explain and /explain, after an answer: the walk of its prompt, the
tokens and their alternatives, the sheet, and what the LoRA changed.

Everything is computed again, from the pictures and the tokens that were generated.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from data import Tokenizer, encode_conversation, preprocess
from projector import SkyEyeGPT
from support.common import UserError
from support.explain.attention import Reading, patch_attention, read_answer, without_lora
from support.explain.sheet import answer_boxes, draw_sheet, middle_patch
from support.explain.walk import (
    Step,
    answer_rows,
    print_columns,
    print_steps,
    prompt_cells,
    reading_to_json,
    steps_to_json,
    walk,
)
from support.images.draw import save_picture
from support.images.read import Picture
from support.inference.generation import BoxConstraint, BoxGrammar
from support.terminal.questions import Detection, sampling_for
from support.tools.row_examples import print_tokens


class Conversation(Protocol):
    """What is used of chat.Conversation."""
    model: SkyEyeGPT
    tokenizer: Tokenizer
    sampling: Mapping
    grammar: BoxGrammar
    pictures: list[Picture]
    turns: list[tuple[str, str]]
    constraints: list[BoxConstraint]
    first_turn: int
    cached_ids: list[int]

    def encode_images(self) -> Tensor | None: ...
    def detections(self) -> list[Detection]: ...


@dataclass(frozen=True)
class LoRAChange:
    """What the model answers without its LoRA, and where the two answers part."""
    answer: str                 # without it
    place: int                  # the first token that differs; 0 where none does
    same: bool                  # no token differs
    differences: list[float]    # of each layer there: |h - h without| / |h without|
    said: list[tuple[str, str]]     # what each layer would say there, with it and without


@dataclass(frozen=True)
class Explanation:
    """All that was found out about one answer."""
    steps: list[Step]
    reading: Reading
    change: LoRAChange | None


# ---- the turn ------------------------------------------------------------------------------------

def last_turn(conversation: Conversation) -> tuple[list[int], list[int]]:
    """-> ids of the last prompt, and of its answer, </s> at the end where the model ended it.

    The answer's are those that were generated; after /undo or /image, where they are not kept, its
    text is encoded. UserError: nothing has been asked.
    """
    if not conversation.turns:
        raise UserError("nothing has been asked yet")
    config, tokenizer = conversation.model.config, conversation.tokenizer
    (question, answer), constraint = conversation.turns[-1], conversation.constraints[-1]
    turns = [*conversation.turns[conversation.first_turn:-1], (question, None)]
    ids, _, _ = encode_conversation(tokenizer, turns, config.visual_tokens,
                                    len(conversation.pictures), config.prompt)
    tokens = conversation.cached_ids[len(ids):]
    kept = tokenizer.decode(tokens).rstrip("\ufffd") == answer.rstrip("\ufffd")
    if not kept or conversation.cached_ids[:len(ids)] != ids:
        tokens = tokenizer.encode(answer)
    if constraint.ended or not tokens:
        tokens = [*tokens, tokenizer.eos]
    return ids, tokens


def images_of(conversation: Conversation) -> Tensor | None:
    """The pictures as the vision encoder gets them, float[n, 3, S, S], or None."""
    config = conversation.model.config
    images = [preprocess(picture.image, config.vit.image_size, style=config.prompt)
              for picture in conversation.pictures]
    return torch.stack(images) if images else None


# ---- the LoRA ------------------------------------------------------------------------------------

def compare_lora(conversation: Conversation, reading: Reading) -> LoRAChange:
    """UserError: the model has no LoRA."""
    model, tokenizer = conversation.model, conversation.tokenizer
    visual = conversation.encode_images()
    question = conversation.turns[-1][0]
    constraint = BoxConstraint.for_question(conversation.grammar, question)
    constraint.enabled = conversation.constraints[-1].enabled
    sampling = dict(sampling_for(question, conversation.sampling))
    if generator := sampling.get("generator"):          # the conversation's own stays untouched
        sampling["generator"] = torch.Generator(generator.device).manual_seed(
            generator.initial_seed())
    with without_lora(model) as layers:
        if not layers:
            raise UserError("--no-lora: the model has no LoRA, or it was merged into the weights")
        prompt = torch.tensor(reading.ids, device=model.llama_model.lm_head.weight.device)
        tokens = list(model.generate(prompt, visual, constraints=[constraint], **sampling))
        answer = tokenizer.decode(tokens)
        place = first_difference(reading.tokens, [*tokens, tokenizer.eos])
        same, place = place is None, place or 0
        base = read_answer(model, reading.ids, reading.tokens[:place + 1], visual)
    h, h0 = reading.hidden[:, place], base.hidden[:, place]                   # [L, D]
    pieces = [[tokenizer.model.id_to_piece(i) for i in one.lens_ids[:, place].tolist()]
              for one in (reading, base)]
    return LoRAChange(answer, place, same, ((h - h0).norm(dim=1) / h0.norm(dim=1)).tolist(),
                      list(zip(*pieces, strict=True)))


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first place at which they differ, as far as both go; None: nowhere."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)


# ---- the command ---------------------------------------------------------------------------------

def explain_answer(conversation: Conversation, sheet: Path | None = None, lora: bool = True
                   ) -> tuple[Explanation, str]:
    """The last answer explained, and what to tell of the sheet that was written, "" without one.
    lora=False: compare with the model without its LoRA. UserError: nothing has been asked, there
    is no LoRA, the sheet's name is not that of a picture, or there is no picture to draw."""
    ids, tokens = last_turn(conversation)
    model, images = conversation.model, images_of(conversation)
    if sheet and images is None:
        raise UserError(f"{sheet}: without a picture there is no sheet to draw")
    reading = read_answer(model, ids, tokens, conversation.encode_images())
    change = None if lora else compare_lora(conversation, reading)
    told = ""
    if sheet:
        save_picture(draw_answer(conversation, reading, images), sheet)
        told = f"saved {sheet}"
    return Explanation(walk(model, ids, images), reading, change), told


def draw_answer(conversation: Conversation, reading: Reading, images: Tensor
                ) -> Image.Image:
    """The sheet of the picture that the answer's first box lies in, or of the first one."""
    config, question = conversation.model.config, conversation.turns[-1][0]
    found = conversation.detections()
    picture = found[0].picture if found else 0
    patch = middle_patch(answer_boxes(conversation.tokenizer.decode(reading.tokens)), config)
    patches = patch_attention(conversation.model.visual_encoder, images[picture], patch)
    return draw_sheet(conversation.pictures[picture].image, question, reading, patches,
                      conversation.tokenizer, config, picture)


def print_explanation(tokenizer: Tokenizer, explanation: Explanation) -> None:
    reading = explanation.reading
    pieces, numbers = prompt_cells(tokenizer, reading.ids)
    print(f"\nthe prompt, {len(reading.ids)} tokens")
    print_tokens({"": pieces, "ids": numbers})
    print("\nthe forward pass of the prompt")
    print_steps(explanation.steps)
    print("\nthe answer, token by token")
    print_columns(answer_rows(tokenizer, reading))
    if explanation.change:
        print_change(tokenizer, explanation.change, reading)


def print_change(tokenizer: Tokenizer, change: LoRAChange, reading: Reading) -> None:
    print(f"\nwith the LoRA     {tokenizer.decode(reading.tokens)}")
    print(f"without the LoRA  {change.answer}")
    where = "the two answers are the same; at their first token" if change.same else (
        f"they part at token {change.place + 1}; there")
    print(where)
    rows = [("layer", "difference", "with", "without")]
    rows += [(str(layer), f"{difference:.4f}", *said) for layer, (difference, said) in enumerate(
        zip(change.differences, change.said, strict=True), 1)]
    print_columns(rows)


def explanation_to_json(tokenizer: Tokenizer, explanation: Explanation) -> dict:
    found = reading_to_json(tokenizer, explanation.reading)
    found["steps"] = steps_to_json(explanation.steps)
    if change := explanation.change:
        found["without_lora"] = {
            "answer": change.answer, "same": change.same, "token": change.place,
            "layers": [{"difference": round(difference, 6), "with": one, "without": other}
                       for difference, (one, other) in zip(change.differences, change.said,
                                                           strict=True)]}
    return found
