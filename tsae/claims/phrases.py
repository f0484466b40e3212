"""How changes of the encoder affect features of phrases, on the same phrases (C10)."""

from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from tsae.claims.criteria import NotMeasuredError, keep
from tsae.claims.replicates import Measured, Sample, estimate
from tsae.claims.selection import Run, refuse_failed, table_of
from tsae.profile.point import EncoderInput, TableName
from tsae.profile.section import Section

# Scores are means over phrases; counts of lost firings are shares of all firings.
Column = Literal[
    "score", "untrained_score", "mean_recall",
    "lost", "lost_control", "lost_matched", "lost_raw", "lost_raw_control", "lost_span", "lost_span_control",
]  # fmt: skip


class PhraseChange(Section):
    """How the second of two columns of the phrase tables differs from the first."""

    table: TableName | None = None
    encoder_input: EncoderInput | None = None
    column: Column | None = None


class PhraseColumn(PhraseChange):
    """A column of the phrase tables."""

    table: TableName
    encoder_input: EncoderInput = "residual"
    column: Column


class Phrases(Section):
    """Difference of two columns of the phrase tables, over the phrases that both have."""

    kind: Literal["phrases"]
    of: PhraseColumn
    to: PhraseChange = Field(description="The subtrahend; missing keys are those of `of`")

    @property
    def second(self) -> PhraseColumn:
        """The whole second column."""
        return self.of.model_copy(update={name: value for name, value in self.to if value is not None})


def measure_phrases(run: Run, measure: Phrases, layer: int) -> Measured:
    """Compute the difference at a layer. Every column has the same resamples of phrases.

    Raises:
        NotMeasuredError: an SAE is missing, or no phrase was measured with both.
    """
    # Every start of the workflow reads the ledger; importing torch takes a second.
    from tsae.measure.intervals import Bootstrap

    encoder = table_of(run, "encoder")
    for column in (measure.of, measure.second):
        refuse_failed(_of_saes(encoder, column, layer))
    phrases = table_of(run, "phrases")
    texts = pd.Index(sorted(phrases["text"].unique()))
    columns = [_column(phrases, column, layer) for column in (measure.of, measure.second)]
    both = columns[0].merge(columns[1], on=["seed", "text"])[["seed", "text"]]
    both = keep(both, both["text"].notna(), "no phrase was measured with both")
    weights = Bootstrap(len(texts), run.bootstrap, run.seed).weights.numpy()
    samples = [_sample(column.merge(both, on=["seed", "text"]), texts, weights) for column in columns]
    return estimate(run, lambda a, b: a - b, samples)


def _of_saes(rows: pd.DataFrame, column: PhraseColumn, layer: int) -> pd.DataFrame:
    chosen = (rows["table"] == column.table) & (rows["encoder_input"] == column.encoder_input)
    return rows[chosen & (rows["layer"] == layer)]


def _column(phrases: pd.DataFrame, column: PhraseColumn, layer: int) -> pd.DataFrame:
    """A row per seed and phrase: seed, text, numerator, denominator."""
    rows = _of_saes(phrases, column, layer)
    what = f"table {column.table} and encoder input {column.encoder_input}"
    rows = keep(rows, rows["text"].notna(), f"block 'encoder' has no phrases of {what}")
    if rows.duplicated(["seed", "text"]).any():
        raise NotMeasuredError(f"block 'encoder' has several SAEs with {what}")
    if missing := {column.column, *(["firings"] if column.column.startswith("lost") else [])} - {*rows.columns}:
        raise NotMeasuredError(f"the phrase tables have no column {min(missing)}")
    denominator = rows["firings"] if column.column.startswith("lost") else 1.0
    return rows[["seed", "text"]].assign(numerator=rows[column.column], denominator=denominator)


def _sample(rows: pd.DataFrame, texts: pd.Index, weights: np.ndarray) -> Sample:
    seeds, values, replicates = [], [], []
    for seed, of_seed in rows.groupby("seed"):
        sums = of_seed[["numerator", "denominator"]].to_numpy(float)
        drawn = weights[:, texts.get_indexer(pd.Index(of_seed["text"]))] @ sums
        seeds.append(int(str(seed)))
        with np.errstate(invalid="ignore"):
            values.append(sums[:, 0].sum() / sums[:, 1].sum())
            replicates.append(drawn[:, 0] / drawn[:, 1])
    return Sample(tuple(seeds), np.array(values), np.stack(replicates), ("phrases",))
