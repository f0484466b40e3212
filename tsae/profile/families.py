"""Families: the kinds of SAE that figures distinguish, each with one colour, marker and line style."""

BASELINE, FIXED, LEARNED, REMAINDER = (
    "baseline",
    "tokenized, fixed table",
    "tokenized, learned table",
    "tokenized, remainder",
)
# By table and encoder_input, in drawing order. LEARNED is the paper's form; in REMAINDER the encoder sees what the
# table leaves.
FAMILIES = {
    ("none", "residual"): BASELINE,
    ("fixed", "residual"): FIXED,
    ("learned", "residual"): LEARNED,
    ("learned", "remainder"): REMAINDER,
}


def family_of(table: str, encoder_input: str, rows: str = "unigram") -> str | None:
    """The family of an SAE by the settings of its point; None if it has none, like a control."""
    return FAMILIES.get((table, encoder_input)) if rows == "unigram" else None
