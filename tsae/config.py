"""The configuration: one YAML file, checked whole before any work starts.

Every field says its meaning and unit once, here. `workflow/schemas/config.schema.json` is generated from these
models, and the Snakefile and the commands validate with them.
"""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from tsae.section import Layer, Name, Section
from tsae.sources import CorpusSource, FileCorpus, FolderModel, ModelSource, WheelFile
from tsae.sweep import WITHOUT_TABLE, Grid, Job


class Model(Section):
    """The language model whose residual stream is explained."""

    source: ModelSource
    n_layers: int = Field(
        ge=1, description="Blocks of the model; stated so that a configuration is checked before any download"
    )
    d_model: int = Field(ge=1, description="Width of the residual stream; stated for the same reason")
    vocab_size: int = Field(ge=2, description="Rows of the embedding; stated for the same reason [tokens]")
    compatibility_mode: bool = Field(
        False, description="Fold layer norms and centre residual-writing weights, as HookedTransformer did by default"
    )


class Corpus(Section):
    """The text."""

    sources: tuple[CorpusSource, ...] = Field(min_length=1, description="Sources, read in this order")


class Tokens(Section):
    """Sequences of fixed length, packed from documents, BOS first; no document is in both splits."""

    n_ctx: int = Field(ge=4, description="Length of a sequence, BOS included [tokens]")
    train: int = Field(
        ge=1, description="Size of the training split, BOS included, rounded up to whole sequences [tokens]"
    )
    heldout: int = Field(
        ge=1, description="Size of the held-out split, BOS included, rounded up to whole sequences [tokens]"
    )
    seed: int = Field(0, ge=0, description="Seed of the split by document and of the order of documents")


class Residuals(Section):
    """The cache of the residual stream."""

    layers: tuple[Layer, ...] = Field(
        min_length=1, description="Layers whose residuals are cached, in one forward pass"
    )
    batch_sequences: int = Field(16, ge=1, description="Sequences per forward pass [sequences]")
    shard_sequences: int = Field(256, ge=1, description="Sequences per shard file [sequences]")
    max_norm: float = Field(
        4.0,
        gt=0,
        description="Tokens whose norm exceeds this many times the layer's median are neither trained on nor scored",
    )
    include_bos: bool = Field(False, description="Train on and score position 0, as the authors' code did")


class Unigrams(Section):
    """Unigram residuals: the residual at the last token of the prompt [BOS, prefix, t], for every token t."""

    prefix: str = Field(
        "", description="Text between BOS and the token; a line feed lifts t out of the attention sink of some models"
    )
    batch_tokens: int = Field(512, ge=1, description="Vocabulary tokens per forward pass [tokens]")
    max_norm: float = Field(
        4.0, gt=0, description="Rows longer than this many times the median row are rescaled to the median"
    )


class Training(Section):
    """Training of every SAE of the profile."""

    tokens: int = Field(
        ge=1, description="Training tokens per SAE; more than the split holds means several epochs [tokens]"
    )
    batch_size: int = Field(ge=1, description="Batch size [tokens]")
    lr: float = Field(gt=0, description="Adam's learning rate at the start")
    lr_end: float = Field(ge=0, description="Learning rate at the end of the cosine schedule")
    table_lr: float = Field(gt=0, description="Learning rate of a learned table, on the same schedule in proportion")
    buffer_tokens: int = Field(ge=1, description="Tokens shuffled together, held in memory as float16 [tokens]")
    history_points: int = Field(20, ge=2, description="Points at which loss and held-out NMSE and FVU are recorded")
    history_tokens: int = Field(4096, ge=1, description="Held-out tokens that these use [tokens]")


class Evaluation(Section):
    """Evaluation on held-out tokens."""

    token_biases: Name = Field(
        description="Id of the tokenized point whose token-biases every SAE of the same layer and seed is compared with"
    )
    batch_sequences: int = Field(8, ge=1, description="Sequences per forward pass [sequences]")
    ce_sequences: int | None = Field(
        None, ge=1, description="Held-out sequences on which the loss is measured, evenly spaced; null: all [sequences]"
    )
    bootstrap: int = Field(1000, ge=10, description="Bootstrap samples over held-out sequences, for 95% intervals")
    seed: int = Field(0, ge=0, description="Seed of bootstrap and of subsamples")
    dead_window: int = Field(
        ge=1, description="A feature is dead in training if it fired in none of this many last tokens [tokens]"
    )
    similarity_rows: int = Field(
        4096, ge=1, description="Token-biases sampled as queries for nearest-neighbour similarity [rows]"
    )
    detection_tokens: int = Field(
        4096, ge=1, description="Held-out tokens sampled for last-token detection at any position [tokens]"
    )
    min_counts: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 20),
        min_length=1,
        description="Table rows are summarised over tokens with at least so many training occurrences",
    )


class Config(Section):
    """A profile: everything that `results/{profile}` and `figures/{profile}` depend on."""

    profile: Name = Field(description="Name of the folders below results/ and figures/")
    model: Model
    corpus: Corpus
    tokens: Tokens
    residuals: Residuals
    unigrams: Unigrams
    training: Training
    sweep: dict[Name, Grid] = Field(min_length=1, description="Named blocks; their union is trained, each SAE once")
    evaluation: Evaluation

    @model_validator(mode="after")
    def _check_across_sections(self) -> "Config":
        layers = self.residuals.layers
        if len(set(layers)) < len(layers):
            raise ValueError(f"residuals.layers names a layer twice: {list(layers)}")
        wheel_files = [s for s in (self.model.source, *self.corpus.sources) if isinstance(s, WheelFile)]
        members: dict[str, str] = {}
        for source in wheel_files:
            if members.setdefault(source.filename, source.sha256) != source.sha256:
                raise ValueError(
                    f"corpus.sources: two wheel files are both named {source.filename}; only one can be kept"
                )
        for layer in layers:
            if layer >= self.model.n_layers:
                raise ValueError(
                    f"residuals.layers: there is no layer {layer}; the model has layers 0 to {self.model.n_layers - 1}"
                )
        for name, grid in self.sweep.items():
            for point in grid.points():
                n_features = point.n_features(self.model.d_model)
                if point.table != "none" and point.initial_encoder_scale <= 0:
                    raise ValueError(
                        f"sweep.{name}: lookup_scale {point.lookup_scale:g} leaves W_enc = {1 - point.lookup_scale:g} x W_dec's "
                        "transpose at the start; set encoder_scale too"
                    )
                if point.k > n_features:
                    raise ValueError(
                        f"sweep.{name}: k = {point.k} active features of {n_features} "
                        f"(expansion {point.expansion:g} x d_model {self.model.d_model}); lower k or raise the expansion"
                    )
            for layer in grid.layers or ():
                if layer not in layers:
                    raise ValueError(f"sweep.{name}.layers: layer {layer} is not in residuals.layers {list(layers)}")
        if self.training.batch_size > self.tokens.train:
            raise ValueError(
                f"training.batch_size ({self.training.batch_size}) is larger than tokens.train ({self.tokens.train})"
            )
        if self.training.tokens < self.training.batch_size:
            raise ValueError(
                f"training.tokens ({self.training.tokens}) is smaller than training.batch_size ({self.training.batch_size})"
            )
        tokenized = sorted({job.point.id for job in self.jobs() if job.point.table != "none"})
        if self.evaluation.token_biases not in tokenized:
            raise ValueError(
                f"evaluation.token_biases: {self.evaluation.token_biases!r} is no tokenized point of the sweep, "
                f"which has {tokenized}"
            )
        for headline in self.headline():
            trained = {job.layer for job in self.jobs() if job.point.id == headline}
            for layer in sorted({job.layer for job in self.jobs()} - trained):
                raise ValueError(
                    f"sweep: every figure compares {' and '.join(self.headline())}, but {headline} is missing at layer {layer}"
                )
        return self

    def jobs(self) -> list[Job]:
        """Every SAE of the sweep, once, in the order of the configuration."""
        jobs = (
            Job(layer=layer, point=point, seed=seed)
            for grid in self.sweep.values()
            for point in grid.points()
            for layer in grid.layers or self.residuals.layers
            for seed in grid.seeds
        )
        return list(dict.fromkeys(jobs))

    def headline(self) -> tuple[str, str]:
        """Ids of the baseline and of the tokenized point that are compared where nothing else is swept.

        The tokenized one is `evaluation.token_biases`; the baseline has the same k and expansion.
        """
        tokenized = next(job.point for job in self.jobs() if job.point.id == self.evaluation.token_biases)
        baseline = tokenized.model_copy(update={"table": "none", "encoder_scale": None} | WITHOUT_TABLE)
        return baseline.id, tokenized.id

    def token_bias_reference(self, layer: int, seed: int) -> Job:
        """The tokenized SAE whose table SAEs at a layer and seed are compared with: the same seed's, else the lowest."""
        candidates = [job for job in self.jobs() if job.layer == layer and job.point.id == self.evaluation.token_biases]
        return next((job for job in candidates if job.seed == seed), min(candidates, key=lambda job: job.seed))


def _known_keys(model: Any, location: tuple[int | str, ...]) -> list[str]:
    """Keys allowed beside the unknown one at `location`, for the suggestion in the error message."""
    schema = model.model_json_schema()
    node = schema
    for part in location[:-1]:
        while "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        if "discriminator" in node and part in node["discriminator"]["mapping"]:
            node = {"$ref": node["discriminator"]["mapping"][part]}
        elif isinstance(part, int):
            node = node.get("items", {})
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        else:
            node = node.get("additionalProperties") or next(iter(node.get("patternProperties", {}).values()), {})
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return list(node.get("properties", {}))


def describe_errors(error: ValidationError, model: Any, where: str) -> str:
    """One line per mistake: the file, the key, what is wrong, and for a misspelt key the one that was probably meant."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(item["loc"][-1]), _known_keys(model, item["loc"]), n=1)
            message = "unknown key" + (f"; did you mean {close[0]!r}?" if close else "")
        elif item["type"] == "missing":
            message = "this key is required"
        elif not isinstance(item["input"], dict | list):
            message += f" (got {item['input']!r})"
        lines.append(f"{where}: {key}: {message}" if key else f"{where}: {message}")
    return "\n".join(lines)


def parse(data: Mapping[str, Any], where: str = "config") -> Config:
    """Validate a configuration that is already a mapping.

    Raises:
        ValueError: one line per mistake, each naming `where` and the key.
    """
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ValueError(describe_errors(error, Config, where)) from None


def load(path: Path) -> Config:
    """Read and validate a configuration file.

    Raises:
        ValueError: not YAML, or one line per mistake, each naming the file and the key.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a mapping of sections at the top level")
    return parse(data, str(path))


def check_local_sources(config: Config) -> None:
    """Check that local files which the configuration names are there.

    Raises:
        ValueError: one is missing; the message names it and its key.
    """
    wanted: list[tuple[str, Path]] = []
    if isinstance(config.model.source, FolderModel):
        wanted.append(("model.source.path", config.model.source.path / "config.json"))
    for place, source in enumerate(config.corpus.sources):
        if isinstance(source, FileCorpus):
            wanted += [(f"corpus.sources.{place}.paths", path) for path in source.paths]
    for key, path in wanted:
        if not path.is_file():
            raise ValueError(f"{key}: there is no file {path} (in {Path.cwd()})")


def to_json(section: BaseModel) -> str:
    """A part of the configuration as one line of JSON, as commands take it; the same settings give the same text."""
    return json.dumps(section.model_dump(mode="json"), sort_keys=True)


def json_schema() -> str:
    """The JSON schema of a configuration file, as text."""
    return json.dumps(TypeAdapter(Config).json_schema(), indent=2) + "\n"
