"""Families: the kinds of SAE that figures tell apart, each with one colour, marker and line style everywhere."""

BASELINE, FIXED, LEARNED, REMAINDER = (
    "baseline",
    "tokenized, fixed table",
    "tokenized, learned table",
    "tokenized, remainder",
)
# By table and encoder_input, in the order in which they are drawn. With a learned table and the residual it is the paper's form; with
# the remainder the encoder sees what the table leaves.
FAMILIES = {
    ("none", "residual"): BASELINE,
    ("fixed", "residual"): FIXED,
    ("learned", "residual"): LEARNED,
    ("learned", "remainder"): REMAINDER,
}


def family_of(table: str, encoder_input: str, rows: str = "unigram") -> str | None:
    """The family of an SAE by the settings of its point; None for what has none, such as a control."""
    return FAMILIES.get((table, encoder_input)) if rows == "unigram" else None
