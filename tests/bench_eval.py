"""How many questions a second an evaluation answers, ours and transformers', in one run.

    python tests/bench_eval.py [--size 15M|110M|7B] [--device cpu|cuda] [--dtype fp32|bf16]
                               [--steps 5] [--pictures 2] [--questions 60] [--new 4] [--batch 20]

RSVQA-like: 60 short questions about each picture, which is 448 pixels and so 256 visual tokens, as
at full size; answers of 4 tokens, greedy, with the same random weights. All answers must agree, in
float32, before anything is timed. Theirs is what evaluation kits do: a row for each question, its
picture encoded with it, rows padded on the left, `generate` on --batch rows at a time. Ours is
SkyEyeGPT.answer_batch on one picture at a time: the prefix with the picture, which all questions
share, is computed once. Runs are interleaved; printed are medians, and the median of the ratios of
neighboring runs. Without transformers (pip install transformers) ours runs alone.
"""
import argparse
import importlib.util
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import layouts  # noqa: E402
from bench_train import FORMS, SIZES, THINGS, build_ours, clock, table, their_vit  # noqa: E402
from data import Tokenizer, encode_conversation  # noqa: E402
from projector import DTYPES, SkyEyeGPT  # noqa: E402

THEIRS = "transformers"


def make_prompts(model: SkyEyeGPT, args: argparse.Namespace) -> tuple[list[list[Tensor]], int]:
    """-> the prompts about each picture, and the length of the prefix that they share."""
    tokenizer = Tokenizer(ROOT / "weights" / "nano" / "tokenizer.model")
    questions = ["[vqa] " + FORMS[i % 4].format(THINGS[i // 4 % 8]) for i in range(args.questions)]
    encoded = [encode_conversation(tokenizer, [(question, None)], model.config.visual_tokens)
               for question in questions]
    group = [torch.tensor(ids, device=args.device) for ids, _, _ in encoded]
    return [group] * args.pictures, encoded[0][2]


@torch.inference_mode()
def ours(model: SkyEyeGPT, groups: list[list[Tensor]], prefix_len: int, images: Tensor,
         max_new_tokens: int) -> list[list[int]]:
    return [answer for i, group in enumerate(groups)
            for answer in model.answer_batch([group], images[i:i + 1], prefix_len, max_new_tokens,
                                             stop=-1)]


def their_model(model: SkyEyeGPT) -> tuple[nn.Module, nn.Module]:
    """-> LlamaForCausalLM and the vision encoder; the weights are ours, not copied."""
    import transformers
    with torch.device("meta"):
        language = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**layouts.hf_json(model.config.llama)))
    language.load_state_dict(model.llama_model.state_dict(), assign=True)
    with torch.device(model.llama_model.lm_head.weight.device):
        language.model.rotary_emb = type(language.model.rotary_emb)(language.config)
    return language.eval(), their_vit(model).eval()


@torch.inference_mode()
def theirs(modules: tuple[nn.Module, nn.Module], model: SkyEyeGPT, groups: list[list[Tensor]],
           images: Tensor, args: argparse.Namespace) -> list[list[int]]:
    language, vision = modules
    rows = [(ids, images[i]) for i, group in enumerate(groups) for ids in group]
    answers = []
    for start in range(0, len(rows), args.batch):
        prompts, pictures = zip(*rows[start:start + args.batch], strict=True)
        ids = nn.utils.rnn.pad_sequence(prompts, True, padding_side="left")
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in prompts], True,
                                         padding_side="left")
        patches = vision(torch.stack(pictures)).last_hidden_state[:, 1:]
        visual = model.llama_proj(patches)
        x = language.get_input_embeddings()(ids.clamp(min=0))
        x = x.masked_scatter((ids < 0)[..., None], visual.flatten(0, 1).to(x.dtype))
        generated = language.generate(inputs_embeds=x, attention_mask=mask, do_sample=False,
                                      max_new_tokens=args.new, min_new_tokens=args.new,
                                      pad_token_id=0, eos_token_id=None)
        answers += generated.tolist()
    return answers


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="15M")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--new", type=int, default=4, help="tokens of an answer")
    parser.add_argument("--batch", type=int, default=20, help="rows of theirs at a time")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(2)
    config, _ = SIZES[args.size]
    config = replace(config, vit=replace(config.vit, image_size=448))
    model = build_ours(config, args.device, DTYPES[args.dtype])
    model.merge()
    model.llama_proj.to(DTYPES[args.dtype])
    groups, prefix_len = make_prompts(model, args)
    side = config.vit.image_size
    images = torch.randn(args.pictures, 3, side, side, generator=torch.Generator().manual_seed(2))
    images = images.to(args.device, DTYPES[args.dtype])
    runs = {"ours": lambda: ours(model, groups, prefix_len, images, args.new)}
    if importlib.util.find_spec("transformers"):
        modules = their_model(model)
        runs = {THEIRS: lambda: theirs(modules, model, groups, images, args)} | runs
    else:
        print(f"{THEIRS}: not installed, ours runs alone", file=sys.stderr)
    first = {name: run() for name, run in runs.items()}
    if args.dtype == "fp32":
        assert all(answers == first["ours"] for answers in first.values()), "answers differ"
    seconds = {name: [] for name in runs}
    for _ in range(args.steps):
        for name, run in runs.items():
            start = clock(args.device)
            run()
            seconds[name].append(clock(args.device) - start)
    count, rows = args.pictures * args.questions, []
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(seconds.get(THEIRS, own), own, strict=True)]
        rows.append([name, f"{statistics.median(own):.2f}",
                     f"{count / statistics.median(own):.1f}", f"{statistics.median(ratios):.2f}"])
    place = torch.cuda.get_device_name() if args.device == "cuda" else "cpu, 2 threads"
    print(f"{args.size}, {args.dtype}, {place}; {args.pictures} pictures, {args.questions} "
          f"questions each, {args.new} tokens an answer; medians of {args.steps}\n")
    table(["", "s", "questions/s", "times theirs"], rows)


if __name__ == "__main__":
    main()
