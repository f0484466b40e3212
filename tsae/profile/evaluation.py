"""How SAEs are evaluated."""

from typing import Annotated

from pydantic import Field, model_validator

from tsae.profile.section import Name, Section


class Features(Section):
    """Statistics of features on held-out tokens."""

    n_contexts: int = Field(10, ge=1, description="Top activating contexts kept per feature")
    context_before: int = Field(16, ge=0, description="Tokens shown before the active one [tokens]")
    context_after: int = Field(8, ge=0, description="Tokens shown after the active one [tokens]")


class Ngrams(Section):
    """Common n-grams of the training text; each is run through the model as a prompt of its own (C11, C12)."""

    common: int = Field(
        1000, ge=2, description="Most frequent unigrams, and as many bigrams, that features are compared with"
    )
    per_length: int = Field(200, ge=2, description="Most frequent n-grams of each length")
    max_length: int = Field(6, ge=2, le=32, description="Longest n-grams [tokens]")
    min_documents: int = Field(2, ge=1, description="Fewest documents that an n-gram occurs in [documents]")
    tokens: int = Field(
        1 << 22, ge=1, description="Training tokens that are searched for n-grams, in evenly spaced sequences [tokens]"
    )


class Simple(Section):
    """Simple features: most of their activation mass is on one token, or on one bigram."""

    threshold: float = Field(
        0.5, gt=0, le=1, description="A feature is simple if at least this share of its mass is on its top token"
    )
    min_firings: int = Field(
        10,
        ge=1,
        description="Features with fewer firings on held-out tokens are not judged: a single firing is always on one "
        "token",
    )

    @model_validator(mode="after")
    def _check_threshold(self) -> "Simple":
        if abs(self.threshold * 20 - round(self.threshold * 20)) > 1e-9:
            raise ValueError(f"threshold: shares are measured at multiples of 0.05, not at {self.threshold:g}")
        return self


class Phrases(Section):
    """Frequent phrases, on which the encoder's dependence on the last token is measured (C10)."""

    lengths: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        (2, 3, 4), min_length=1, description="Lengths of phrases [tokens]"
    )
    min_count: int = Field(15, ge=4, description="Fewest occurrences of a phrase in the training split")
    min_documents: int = Field(
        2,
        ge=2,
        description="Fewest documents that a phrase occurs in: features are chosen in some and scored in the others "
        "[documents]",
    )
    min_scored: int = Field(4, ge=1, description="Fewest occurrences of a phrase in either half of its documents")
    n_common: int = Field(
        100,
        ge=0,
        description="Number of tokens, those in the most documents, such as ' of', that no phrase may contain [tokens]",
    )
    n_phrases: int = Field(100, ge=1, description="Phrases that are measured")
    max_occurrences: int = Field(60, ge=4, description="Most occurrences of a phrase that are measured")
    base_tokens: int = Field(
        256,
        ge=2,
        description="Other tokens of its documents that base rates of features are measured on, for each phrase "
        "[tokens]",
    )
    example: str | None = Field(
        None, min_length=1, description="The phrase that is shown token by token; null: the highest-ranked one"
    )
    bootstrap: int = Field(1000, ge=10, description="Bootstrap samples over phrases, for 95% intervals")
    seed: int = Field(
        0, ge=0, description="Seed for the choice of occurrences, halves and tokens, and for the bootstrap"
    )


class Evaluation(Section):
    """Evaluation on held-out tokens."""

    token_biases: Name | None = Field(
        None,
        description="Id of the tokenized point whose token-biases all SAEs of the same layer and seed are compared with; "
        "null: the first one of sweep.headline in the paper's form",
    )
    batch_sequences: int = Field(8, ge=1, description="Sequences per forward pass [sequences]")
    ce_sequences: int | None = Field(
        None, ge=1, description="Held-out sequences that the loss is measured on, evenly spaced; null: all [sequences]"
    )
    kl_sequences: int = Field(
        8,
        ge=0,
        description="How many of the first of these sequences the divergence of predictions is measured on; 0: not "
        "measured [sequences]",
    )
    bootstrap: int = Field(1000, ge=10, description="Bootstrap samples over held-out documents, for 95% intervals")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap and of subsamples")
    dead_window: int = Field(
        100_000, ge=1, description="A feature is dead in training if it did not fire in this many last tokens [tokens]"
    )
    similarity_rows: int = Field(
        512,
        ge=1,
        description="Sample size: rows of a table whose nearest neighbours are searched, and features that are "
        "compared with random rows [rows]",
    )
    detection_tokens: int = Field(
        2048, ge=1, description="Held-out tokens sampled for last-token detection at any position [tokens]"
    )
    probe_tokens: int = Field(
        20_000,
        ge=0,
        description="Training tokens, evenly spaced in those of the mean residual (residuals.mean_tokens), that probes of "
        "the first letter are trained on; 0: they are not measured [tokens]",
    )
    min_counts: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 20),
        min_length=1,
        description="Table rows are summarised over tokens with at least this many training occurrences",
    )
