"""The most surprising results beyond the paper, with their numbers from docs/beyond.json."""

from beyond import claims_of, measured
from verdicts import require

OLD, FROZEN = "the paper's learned table", "fixed conditional means with the remainder"


def surprises() -> str:
    """Three results, each with its numbers, its figure and what was done to refute it."""
    return "\n\n".join((frozen(), everywhere(), directions()))


def frozen() -> str:
    """A table that nobody trains is as good as one that is trained."""
    for check in (f"NMSE, {FROZEN} / {OLD}", f"CE added, {FROZEN} / {OLD}"):
        require(claims_of("beyond"), "B1", check, "docs/surprises.py")
    return (
        "**1. A table that is never trained beats the paper's trained one.** Its rows are the mean training residuals of the tokens, "
        "they stay as they are, and the encoder sees what the table leaves. NMSE over the baseline's is "
        f"{measured('B1', f'NMSE, {FROZEN} / baseline')}, and CE added over the baseline's {measured('B1', f'CE added, {FROZEN} / baseline')}; "
        f"the paper's form has {measured('B1', f'CE added, {OLD} / baseline')} of the baseline's CE added. Frozen over the paper's form it is "
        f"{measured('B1', f'NMSE, {FROZEN} / {OLD}')} in NMSE and {measured('B1', f'CE added, {FROZEN} / {OLD}')} in CE added. "
        "([figure](#what-a-table-should-hold-b1)). *Tried to refute:* perhaps the encoder's input does it alone. With the same input, rows from unigram residuals are worse: "
        "conditional means over unigram residuals, both frozen, is "
        f"{measured('B1', 'NMSE, fixed table, encoder sees the remainder, conditional means / unigram residuals')} in NMSE. Perhaps a frozen "
        "table only lacks training: learned over frozen is "
        f"{measured('B1', 'NMSE, learned / fixed table, conditional means, encoder sees the remainder')} in NMSE. Perhaps rows differ in length: "
        "where the encoder sees the residual, rows of both kinds were compared at half and at whole length "
        f"({measured('B1', 'NMSE, fixed table, encoder sees the residual, rows at half length, conditional means / unigram residuals')} and "
        f"{measured('B1', 'NMSE, fixed table, encoder sees the residual, rows at whole length, conditional means / unigram residuals')} in NMSE, frozen). "
        "Means come from training text alone, and are measured on other documents. One layer of one model."
    )


def everywhere() -> str:
    """The gain is the same at all positions but the first, and shrinks slowly."""
    return (
        "**2. The gain is as large far into a sequence as near its start, and more text uses it up slowly.** A table knows nothing "
        "of the context, so we expected that it helps less where there is more of it (B2). NMSE over the baseline's is "
        f"{measured('B2', 'NMSE, tokenized / baseline, third and fourth tokens')} at the third and fourth token and "
        f"{measured('B2', 'NMSE, tokenized / baseline, last positions')} at positions 65 to 127; only the first token has no gain "
        f"({measured('B2', 'NMSE, tokenized / baseline, first token')}). Each doubling of the training text multiplies the ratio by "
        f"{measured('B3', 'NMSE, tokenized / baseline, factor for each doubling of the training text, one epoch')}: it is "
        f"{measured('B3', 'NMSE, tokenized / baseline, an eighth of the text, one epoch')} after an eighth of the text, "
        f"{measured('B3', 'NMSE, tokenized / baseline, all of the text, one epoch')} after all of it, and "
        f"{measured('B3', 'NMSE, tokenized / baseline, all of the text, two epochs')} after two epochs (figures by [position](#where-the-gain-is-b2) and by [text](#does-it-last-b3)). "
        "*Tried to refute:* each amount of text has its own whole schedule, and both arms the same tokens in the same order. What does cost "
        "part of the gain is repetition: after eight epochs of an eighth of the text the ratio is "
        f"{measured('B3', 'NMSE, tokenized / baseline, an eighth of the text, eight epochs')}. Why is not known. Beyond 1.1 million tokens "
        "nothing is measured."
    )


def directions() -> str:
    """Features for tokens stay, and their directions go."""
    return (
        "**3. The token's direction leaves the features, and features for one token stay.** Of features that fire on 0.1 to 0.3% of tokens, the share "
        "along a unigram residual changes by "
        f"{measured('B5', 'features along a unigram residual that fire on 0.1 to 0.3% of tokens, learned table - baseline')} with a learned table. "
        "We expected fewer simple features, too, those with half of their activation on one token. At equal firing rate their share changes by "
        f"{measured('B5', 'simple features that fire on 0.1 to 0.3% of tokens, learned table - baseline')} (0.1 to 0.3% of tokens), "
        f"{measured('B5', 'simple features that fire on 0.3 to 1% of tokens, learned table - baseline')} (0.3 to 1%) and "
        f"{measured('B5', 'simple features that fire on 3 to 10% of tokens, learned table - baseline')} (3 to 10%). So a count of simple features alone does "
        "not say what moved. What one feature tells of the token's first letter does: balanced accuracy falls from "
        f"{measured('B5', 'first-letter accuracy of 1 feature, baseline')} to {measured('B5', 'first-letter accuracy of 1 feature, learned table')}, and beside "
        f"frozen conditional means to {measured('B5', 'first-letter accuracy of 1 feature, fixed conditional means, encoder sees the remainder')}, "
        "where 0.5 is chance ([figure](#what-moves-into-the-table-b5)). *Tried to refute:* the probe is tested on tokens of the vocabulary that it was not trained on, and rows of the table, "
        "probed in the same way, tell the letter better than one feature beside them by "
        f"{measured('B5', 'first-letter accuracy, rows of the learned table - 1 feature beside it')}."
    )


BLOCKS = (surprises,)
