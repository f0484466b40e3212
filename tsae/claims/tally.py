"""How many claims have each verdict, in a sentence."""

from collections import Counter

import pandas as pd

from tsae.claims.ledger import is_ours
from tsae.claims.report import claim_verdicts
from tsae.claims.verdicts import NOT_COMPARABLE

# Of one claim, and of several.
WORDS = {
    "reproduced": ("is reproduced", "are reproduced"),
    "direction holds": ("holds in direction", "hold in direction"),
    "inconclusive": ("is inconclusive", "are inconclusive"),
    "does not hold": ("does not hold", "do not hold"),
    NOT_COMPARABLE: ("is not comparable here", "are not comparable here"),
}


def tally_sentence(checks: pd.DataFrame) -> str:
    """How many claims of the paper have each verdict, from the rows of `claims.csv`; claims of ours do not count."""
    counts = Counter(verdict for claim, verdict in claim_verdicts(checks).items() if not is_ours(claim))
    *others, last = (
        f"{counts[verdict]} {words[counts[verdict] > 1]}" for verdict, words in WORDS.items() if counts[verdict]
    )
    return f"Of {counts.total()} claims, {', '.join([*others, f'and {last}' if others else last])}."
