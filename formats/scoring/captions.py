"""Caption figures of raw texts: both sides are tokenized here."""
from collections.abc import Sequence

from formats.scoring.bleu import bleu
from formats.scoring.cider import cider_items
from formats.scoring.coco import java_score
from formats.scoring.ptb import ptb_tokenize
from formats.scoring.rouge import rouge_l_items
from formats.scoring.score import Options, Score, empty, mean


def caption_figures(hypotheses: Sequence[str], references: Sequence[Sequence[str]],
                    java: bool = False) -> list[Score]:
    tokens = {text: ptb_tokenize(text)          # references repeat: five of RSICD's may be the same
              for text in set(hypotheses).union(*references)}
    hyps = [tokens[text] for text in hypotheses]
    refs = [[tokens[text] for text in item] for item in references]
    found = [bleu(hyps, refs), mean("rouge_l", rouge_l_items(hyps, refs)),
             mean("cider", cider_items(hyps, refs))]
    if java:
        found[1:1] = [java_score("meteor", hyps, refs)]
        found += [java_score("spice", hyps, refs)]
    return found


def caption_scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]]
                   ) -> dict[str, float]:
    """bleu1..bleu4, rouge_l (0..1) and cider of raw captions."""
    return {name: float(value) for score in caption_figures(hypotheses, references)
            for name, value in zip(score.names, score.value(score.stats.sum(axis=0)), strict=True)}


def scores(rows: Sequence[dict], options: Options) -> list[Score]:
    return [*caption_figures([row["answer"] for row in rows], [row["references"] for row in rows],
                             options.java), empty(rows)]
