"""What `python data.py` and `python projector.py` print without arguments: a training row in words,
and the way of a picture and its question through the shipped model."""
import json
from pathlib import Path

import torch

from data import PackedDataset, Tokenizer, encode_conversation, load_image, preprocess
from lora import lora_state_dict
from projector import PRESETS, SkyEyeGPT, supervised_positions
from support.readers.common import Sample
from support.tools.model_examples import count, print_parameters, print_table, shape_of

ROOT = Path(__file__).resolve().parents[2]
MODEL, PICTURE = ROOT / "weights/nano", ROOT / "examples/parking.png"
WIDTH = 96                                  # letters of a line


def print_tokens(names: dict[str, list[str]]) -> None:
    """Lines of cells below each other, as many cells beside each other as fit."""
    columns = list(zip(*names.values(), strict=True))
    head, start = max(map(len, names)) + 2, 0
    while start < len(columns):
        end, used = start, head
        while end < len(columns) and used + max(map(len, columns[end])) + 1 <= WIDTH:
            used += max(map(len, columns[end])) + 1
            end += 1
        for i, name in enumerate(names):
            cells = (column[i].rjust(max(map(len, column))) for column in columns[start:end])
            print(name.ljust(head) + " ".join(cells))
        start = end


# ---- data.py -------------------------------------------------------------------------------------

def show_data() -> None:
    tokenizer = Tokenizer(MODEL / "tokenizer.model")
    truth, config = json.loads(PICTURE.with_suffix(".json").read_text()), PRESETS["nano"]
    asked, found = truth["vqa"][0], truth["refer"][0]
    samples = [Sample((str(PICTURE),), ((asked["question"], asked["answer"]),), "vqa", "the first"),
               Sample((str(PICTURE),), ((found["expression"], "<bbox>"),), "refer", "the second",
                      boxes=(tuple(found["bbox"]),))]
    dataset = PackedDataset(samples, tokenizer, config.vit.image_size, config.visual_tokens,
                            questions_per_row=2)
    row = dataset[0, 0]
    print(f"data.py: two questions about {PICTURE.relative_to(ROOT)} in one row\n")
    print_table([("vqa", f"{asked['question']!r} -> {asked['answer']!r}"),
                 ("refer", f"{found['expression']!r} -> pixels {found['bbox']} of "
                  f"{load_image(PICTURE).size}"),
                 ("images", shape_of(row["images"]))])
    for segment in range(row["segments"].max() + 1):
        own = row["segments"] == segment
        ids, labels, positions = (row[name][own].tolist()
                                  for name in ("ids", "labels", "positions"))
        shared = "shared by all questions" if not segment else "sees segment 0 and itself"
        print(f"\nsegment {segment}, positions {positions[0]} to {positions[-1]}: {shared}")
        print_tokens({"": ["(image)" if i < 0 else tokenizer.model.id_to_piece(i) for i in ids],
                      "ids": list(map(str, ids)),
                      "labels": ["." if label == -100 else str(label) for label in labels]})
    learned = (row["labels"] != -100).sum()
    print(f"\n{len(row['ids'])} tokens, {learned} of them learned; . is -100, no label; the model "
          "puts visual tokens where ids are -1")


# ---- projector.py --------------------------------------------------------------------------------

def model_parts(model: SkyEyeGPT) -> dict[str, int]:
    lora = sum(tensor.numel() for tensor in lora_state_dict(model.llama_model).values())
    return {"visual_encoder": count(model.visual_encoder), "llama_proj": count(model.llama_proj),
            "llama_model": count(model.llama_model) - lora, "its LoRA": lora}


@torch.inference_mode()
def show_projector() -> None:
    model, tokenizer = SkyEyeGPT.from_pretrained(MODEL), Tokenizer(MODEL / "tokenizer.model")
    config, question, truth = model.config, "[vqa] is there a car ?", "yes"
    images = preprocess(load_image(PICTURE), config.vit.image_size)[None]
    ids, labels, _ = encode_conversation(tokenizer, [(question, truth)], config.visual_tokens)
    ids, labels = torch.tensor([ids]), torch.tensor([labels])
    patches = model.visual_encoder(images)
    tokens = model.encode_images(images)
    at, _ = supervised_positions(labels)
    asked, _, _ = encode_conversation(tokenizer, [(question, None)], config.visual_tokens)
    answer = tokenizer.decode(model.generate(torch.tensor(asked), images, max_new_tokens=20))
    joined = config.patches_per_token
    print(f"projector.py: {MODEL.relative_to(ROOT)} on {PICTURE.relative_to(ROOT)}, "
          f"{question!r} -> {truth!r}\n")
    print_table([
        ("picture", shape_of(images), f"resized to {config.vit.image_size} x "
         f"{config.vit.image_size}"),
        ("visual_encoder", shape_of(patches), f"{config.vit.grid} x {config.vit.grid} patches"),
        ("llama_proj", shape_of(tokens), f"{joined} neighbors of a row joined: {joined} x "
         f"{config.vit.width} numbers -> {config.llama.width}"),
        ("ids", shape_of(ids), f"{(ids < 0).sum()} image slots, {(ids >= 0).sum()} of text"),
        ("embeddings", shape_of(model.embed(ids, images)), "visual tokens in the slots"),
        ("logits", shape_of(model(ids, images)), "one of each token that may come next"),
        ("labels", shape_of(labels), f"{at.shape[1]} of them learned: the answer and </s>"),
        ("loss", f"{model(ids, images, labels).item():.4f}", "mean cross-entropy of those"),
        ("answer", repr(answer), "generated")])
    with torch.device("meta"):
        print_parameters(model_parts, {"nano": model, "skyeyegpt": SkyEyeGPT(
            PRESETS["skyeyegpt"])})
