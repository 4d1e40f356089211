"""Train the small model's tokenizer: 2,048 sentencepiece pieces, from its training data's texts.

    python examples/train_tokenizer.py weights/nano/tokenizer.model out/miniworld FOLDER ..

The settings are LLaMA's (BPE, byte fallback, digits split), with one piece added for each box
number <0> .. <100>: a box is the same text as before, but takes seven tokens instead of twenty.
"""
import argparse
import io
import sys
from pathlib import Path

import sentencepiece

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import PROMPTS, TEMPLATES  # noqa: E402
from support.readers import read_data  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="tokenizer.model to write")
    parser.add_argument("data", nargs="+", help="data sets, of which the training splits are read")
    parser.add_argument("--vocab_size", type=int, default=2048,
                        help="pieces of the tokenizer (default: %(default)s)")
    args = parser.parse_args()
    style = PROMPTS["skyeye"]
    samples = [sample for place in args.data for sample in read_data(place)]
    texts = [text.replace("{}", "").strip() for pool in TEMPLATES.values() for text in pool] * 200
    texts += [text.replace("<bbox>", "{").lower() if "Classify" not in text else text
              for sample in samples for turn in sample.turns for text in turn if text]
    texts += [style.user_prefix_first, style.image_start, style.image_end, style.user_suffix] * 1000
    write_tokenizer(texts, args.out, args.vocab_size)


def write_tokenizer(texts: list[str], out: Path, vocab_size: int) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=vocab_size,
        model_type="bpe", character_coverage=1.0, byte_fallback=True, split_digits=True,
        split_by_unicode_script=False, normalization_rule_name="identity",
        remove_extra_whitespaces=False, minloglevel=2, num_threads=2,
        user_defined_symbols=[f"<{i}>" for i in range(101)] + ["</p>", "<delim>"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(model.getvalue())


if __name__ == "__main__":
    main()
