"""How SAEs are evaluated."""

from typing import Annotated

from pydantic import Field, model_validator

from tsae.profile.section import Name, Section


class Features(Section):
    """The statistics of features, on held-out tokens."""

    n_contexts: int = Field(10, ge=1, description="Top activating contexts kept per feature")
    context_before: int = Field(16, ge=0, description="Tokens shown before the active one [tokens]")
    context_after: int = Field(8, ge=0, description="Tokens shown after the active one [tokens]")


class Ngrams(Section):
    """Common n-grams of the training text, whose residuals are made with nothing else in the prompt (C11, C12)."""

    common: int = Field(
        1000, ge=2, description="Unigrams, and bigrams, that features are compared with, the most frequent ones"
    )
    per_length: int = Field(200, ge=2, description="N-grams of each length, the most frequent ones")
    max_length: int = Field(6, ge=2, le=32, description="Longest n-grams [tokens]")
    min_documents: int = Field(2, ge=1, description="Documents that an n-gram must occur in at least [documents]")
    tokens: int = Field(
        1 << 22, ge=1, description="Training tokens in which they are sought, evenly spaced sequences [tokens]"
    )


class Simple(Section):
    """What a simple feature is: one whose activation mass lies on one token (or on one bigram)."""

    threshold: float = Field(
        0.5, gt=0, le=1, description="A feature is simple if at least this share of its mass is on its top token"
    )
    min_firings: int = Field(
        10,
        ge=1,
        description="Features that fire on fewer held-out tokens are not judged: one firing is always on one token",
    )

    @model_validator(mode="after")
    def _check_threshold(self) -> "Simple":
        if abs(self.threshold * 20 - round(self.threshold * 20)) > 1e-9:
            raise ValueError(f"threshold: shares are measured at multiples of 0.05, not at {self.threshold:g}")
        return self


class Phrases(Section):
    """Frequent phrases of several tokens, on which the encoder's dependence on the last token is measured (C10)."""

    lengths: tuple[Annotated[int, Field(ge=2)], ...] = Field((2, 3, 4), min_length=1, description="Lengths [tokens]")
    min_count: int = Field(15, ge=4, description="Occurrences in the training split that a phrase needs at least")
    min_documents: int = Field(
        2,
        ge=2,
        description="Documents that a phrase must occur in at least: features are chosen in some and scored in others [documents]",
    )
    min_scored: int = Field(
        4, ge=1, description="Occurrences that a phrase needs at least in either half of its documents"
    )
    n_common: int = Field(
        100, ge=0, description="Tokens that occur in the most documents, such as ' of', are in no phrase [tokens]"
    )
    n_phrases: int = Field(100, ge=1, description="Phrases measured")
    max_occurrences: int = Field(60, ge=4, description="Occurrences of a phrase that are measured")
    base_tokens: int = Field(
        256,
        ge=2,
        description="Other tokens of a phrase's documents on which base rates of features are taken, for each phrase [tokens]",
    )
    example: str | None = Field(
        None, min_length=1, description="The phrase that is shown token by token; null: the one ranked highest"
    )
    bootstrap: int = Field(1000, ge=10, description="Bootstrap samples over phrases, for 95% intervals")
    seed: int = Field(0, ge=0, description="Seed of the choice of occurrences, halves and tokens, and of the bootstrap")


class Evaluation(Section):
    """Evaluation on held-out tokens."""

    token_biases: Name = Field(
        description="Id of the tokenized point whose token-biases every SAE of the same layer and seed is compared with"
    )
    batch_sequences: int = Field(8, ge=1, description="Sequences per forward pass [sequences]")
    ce_sequences: int | None = Field(
        None, ge=1, description="Held-out sequences on which the loss is measured, evenly spaced; null: all [sequences]"
    )
    bootstrap: int = Field(1000, ge=10, description="Bootstrap samples over held-out documents, for 95% intervals")
    seed: int = Field(0, ge=0, description="Seed of bootstrap and of subsamples")
    dead_window: int = Field(
        ge=1, description="A feature is dead in training if it fired in none of this many last tokens [tokens]"
    )
    similarity_rows: int = Field(
        512,
        ge=1,
        description="Rows of a table whose nearest neighbours are sought, and features that are compared with random rows; "
        "a sample [rows]",
    )
    detection_tokens: int = Field(
        2048, ge=1, description="Held-out tokens sampled for last-token detection at any position [tokens]"
    )
    min_counts: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 20),
        min_length=1,
        description="Table rows are summarised over tokens with at least so many training occurrences",
    )
