"""The configuration: one YAML file, checked whole before any work starts.

Every field says its meaning and unit once, here. `workflow/schemas/config.schema.json` is generated from these
models, and the Snakefile and the commands validate with them.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from tsae.figures import FIGURE_NAMES, check_points
from tsae.section import Layer, LocalPath, Name, Section
from tsae.sources import CorpusSource, FileCorpus, FolderModel, HubCorpus, ModelSource, WheelFile
from tsae.sweep import EncoderInput, Grid, Job
from tsae.validation import describe_errors, read_yaml


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
    heldout_documents: int = Field(
        100,
        ge=20,
        description="Documents that the held-out split comes from at least, a piece of each; intervals resample documents, and of "
        "few they mean nothing [documents]",
    )
    heldout_share: float = Field(
        0.03, gt=0, le=1, description="Of the text of the held-out split at most this share is from one document"
    )
    seed: int = Field(
        0, ge=0, description="Seed of the split by document, of the pieces held out, and of the order of documents"
    )

    @property
    def heldout_text(self) -> int:
        """Size of the held-out split without BOS [tokens]."""
        return -(-self.heldout // self.n_ctx) * (self.n_ctx - 1)

    @property
    def heldout_longest(self) -> int:
        """Longest piece that is held out of one document [tokens]."""
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
                f"heldout_documents: {self.heldout_documents} documents, and heldout = {self.heldout} holds {self.heldout_text} tokens "
                "of text; raise heldout, or lower heldout_documents"
            )
        return self


# Folders and files below results/ that belong to no profile.
RESERVED = {"sources", "tiny", "bench", "readme.md"}
MOST_FEATURES = 1 << 31  # of an SAE; no machine holds more
MOST_SAES = 10_000  # of a profile; a sweep of more is a mistake, and to spell it out would take forever

# Of a token in a shard, beside its residual: its id, position and norm.
TOKEN_BYTES = 12


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
    mean_tokens: int = Field(
        1 << 20,
        ge=1,
        description="The mean residual is taken over at most so many training tokens, in whole shards, evenly spaced; "
        "over one shard at least [tokens]",
    )
    disk_gb: float | None = Field(
        None,
        gt=0,
        description="Training residuals are kept on disk if the cache takes at most so much; else every training gets them "
        "from the model anew. null: always kept [GB]",
    )
    jobs: int = Field(
        1,
        ge=1,
        le=10_000,
        description="Jobs that the forward passes are spread over. A change later makes anew all that follows them [jobs]",
    )


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
    table_adam: Literal["rows", "dense"] = Field(
        "rows", description="Rows of a learned table that a step moves: those of the batch's tokens, or all by momentum"
    )
    clip_norm: float | None = Field(
        1.0,
        gt=0,
        description="Gradients of all but the table are scaled down to this norm, together, where they exceed it; null: never. "
        "Where the mean residual norm is sqrt(d_model) a norm of 1 is always exceeded",
    )
    l1_warmup: float = Field(
        0.05,
        ge=0,
        le=1,
        description="The sparsity penalty grows from zero to its coefficient over this share of training",
    )
    buffer_tokens: int = Field(ge=1, description="Tokens shuffled together, held in memory as float16 [tokens]")
    save_minutes: float = Field(
        5,
        ge=0,
        description="A training that is interrupted goes on from where it was at most so long before; changes no result [minutes]",
    )
    history_points: int = Field(20, ge=2, description="Points at which loss and held-out NMSE and FVU are recorded")
    history_tokens: int = Field(4096, ge=1, description="Held-out tokens that these use [tokens]")


class Curves(Section):
    """Training curves: checkpoints of the headline SAEs on the way, each evaluated like the final one."""

    checkpoints: int = Field(
        8, ge=2, le=1000, description="Checkpoints, evenly spaced in log; the last is the trained SAE"
    )
    first: float = Field(1 / 32, gt=0, lt=1, description="The first checkpoint, as a share of training")
    ce_sequences: int | None = Field(
        None,
        ge=1,
        description="Of those of evaluation.ce_sequences, on how many the loss is measured; null: all [sequences]",
    )


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


class Compute(Section):
    """What jobs compute on. Nothing runs again when it changes: results of one machine are gone on with on another."""

    gpu: bool = Field(False, description="Each job that runs the model, trains or evaluates an SAE takes a GPU")
    tf32: bool = Field(
        False,
        description="On a GPU, residuals are cached and SAEs trained with matrix products in TF32; never evaluated so",
    )


WithoutO = Literal["relu", "topk"]


class Released(Section):
    """SAEs that the authors released, evaluated beside ours."""

    folder: LocalPath = Field(
        description="Folder that holds their files, such as gpt2_resid_pre_8_ot30.pt, or folders of them; relative to the "
        "working directory. Files that do not end in .pt are ignored"
    )
    without_o: WithoutO = Field(
        "relu",
        description="Activation of SAEs whose names lack the o of TopK, such as gpt2_resid_pre_8_t8; topk reads the number as "
        "k. An assumption: the files do not say. Gated SAEs are recognised by their tensors",
    )
    encoder_input: dict[str, EncoderInput] = Field(
        {".": "without_unigram", "old": "without_unigram"},
        description="What the encoder of a tokenized SAE without an o sees, by the name of its folder (. is released.folder "
        "itself); in folders not named here, residual. An assumption: the files do not say",
    )


class Headline(NamedTuple):
    """Ids of the points that a profile compares everywhere."""

    baseline: str
    """Without a table."""
    tokenized: str
    """With a table, in the paper's form: the encoder sees the whole residual."""
    remainder: str | None
    """With a table, its encoder seeing what the table leaves; None if the profile has none."""


class Config(Section):
    """A profile: everything that `results/{profile}` and `figures/{profile}` depend on."""

    profile: Name = Field(description="Name of the folders below results/ and figures/")
    model: Model
    corpus: Corpus
    tokens: Tokens
    residuals: Residuals
    unigrams: Unigrams
    training: Training
    sweep: dict[Name, Annotated[tuple[Grid, ...], Field(min_length=1)]] = Field(
        description="Named blocks, each a list of grids; the union of all is trained, each SAE once"
    )
    curves: Curves = Curves()
    evaluation: Evaluation
    features: Features = Features()
    ngrams: Ngrams = Ngrams()
    simple: Simple = Simple()
    phrases: Phrases = Phrases()
    compute: Compute = Compute()
    released: Released | None = Field(None, description="SAEs that the authors released; null: none")
    figures: tuple[Literal[FIGURE_NAMES], ...] = Field(FIGURE_NAMES, description="Figures to draw")  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _check_across_sections(self) -> "Config":
        if self.profile.lower() in RESERVED:
            raise ValueError(f"profile: results/{self.profile} is for something else; call the profile otherwise")
        for key, listed in (
            ("figures", self.figures),
            ("phrases.lengths", self.phrases.lengths),
            ("evaluation.min_counts", self.evaluation.min_counts),
        ):
            if len(set(listed)) < len(listed):
                raise ValueError(f"{key} names a value twice: {list(listed)}")
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
        n_saes = sum(grid.size(len(layers)) for _, _, grid in self._grids())
        if n_saes > MOST_SAES:
            raise ValueError(
                f"sweep: its grids are products of lists, and spell {n_saes} SAEs, more than {MOST_SAES}; shorten the lists"
            )
        for name, place, grid in self._grids():
            where = f"sweep.{name}.{place}"
            for point in grid.points():
                n_features = point.n_features(self.model.d_model)
                if not 1 <= n_features <= MOST_FEATURES:
                    raise ValueError(
                        f"{where}: expansion {point.expansion:g} x d_model {self.model.d_model} gives {n_features} features, "
                        f"and an SAE has 1 to {MOST_FEATURES}; change expansion"
                    )
                if point.initial_encoder_scale <= 0:
                    raise ValueError(
                        f"{where}: with start: authors, lookup_scale {point.lookup_scale:g} leaves W_enc = "
                        f"{1 - point.lookup_scale:g} x W_dec's transpose at the start; set encoder_scale too"
                    )
                if point.budget < 1 and round(point.budget * self.training.tokens) < self.training.batch_size:
                    raise ValueError(
                        f"{where}: budget {point.budget:g} of training.tokens ({self.training.tokens}) is less than "
                        f"training.batch_size ({self.training.batch_size}); raise the budget"
                    )
                if (point.k or 1) > n_features:
                    raise ValueError(
                        f"{where}: k = {point.k} active features of {n_features} "
                        f"(expansion {point.expansion:g} x d_model {self.model.d_model}); lower k or raise the expansion"
                    )
            for layer in grid.layers or ():
                if layer not in layers:
                    raise ValueError(f"{where}.layers: layer {layer} is not in residuals.layers {list(layers)}")
        if self.training.batch_size > self.tokens.train:
            raise ValueError(
                f"training.batch_size ({self.training.batch_size}) is larger than tokens.train ({self.tokens.train})"
            )
        if self.training.tokens < self.training.batch_size:
            raise ValueError(
                f"training.tokens ({self.training.tokens}) is smaller than training.batch_size ({self.training.batch_size})"
            )
        if 1 not in self.evaluation.min_counts:
            raise ValueError(
                "evaluation.min_counts: 1 is needed, the tokens seen in training, which claims and figures take"
            )
        called: dict[str, Job] = {}
        for job in self.jobs():
            if called.setdefault(job.id, job) != job:
                raise ValueError(
                    f"sweep: two SAEs would both be called {job.id}, since names take six digits of a number; leave one out"
                )
        self._check_disk()
        self._check_headline()
        if self.released is not None and not self.model.compatibility_mode:
            raise ValueError(
                "released: the authors' SAEs are of residuals with layer norms folded and residual-writing weights centred; set "
                "model.compatibility_mode: true"
            )
        jobs_of = {block: self.jobs(block) for block in self.sweep}
        for figure in self.figures:
            check_points(figure, jobs_of)
        return self

    def _grids(self) -> Iterator[tuple[str, int, Grid]]:
        for name, grids in self.sweep.items():
            for place, grid in enumerate(grids):
                yield name, place, grid

    def _check_disk(self) -> None:
        limit = self.residuals.disk_gb
        if limit is not None and self.streams and (least := self.cache_bytes(streamed=True)) > limit * 1e9:
            raise ValueError(
                f"residuals.disk_gb: {limit:g} GB are too few: the held-out residuals, the sample of the mean and {TOKEN_BYTES} "
                f"bytes for every token and layer, at model.d_model {self.model.d_model}, take {least / 1e9:.3g} GB (all residuals take "
                f"{self.cache_bytes(streamed=False) / 1e9:.3g} GB); raise it, or lower tokens.heldout, tokens.train, "
                "residuals.mean_tokens or the number of residuals.layers"
            )

    def _check_headline(self) -> None:
        if reserved := {"baselines", "curves", "phrases", "released"} & self.sweep.keys():
            raise ValueError(f"sweep: {min(reserved)!r} is the name of another table; call the block otherwise")
        if "headline" not in self.sweep:
            raise ValueError(
                "sweep: there is no block `headline`: the baseline and the tokenized SAE that are compared everywhere"
            )
        tokenized = sorted(
            {
                p.id
                for p in (job.point for job in self.jobs("headline"))
                if p.table != "none" and p.encoder_input != "remainder"
            }
        )
        if self.evaluation.token_biases not in tokenized:
            raise ValueError(
                f"evaluation.token_biases: {self.evaluation.token_biases!r} is no tokenized point of sweep.headline in the "
                f"paper's form (encoder_input: residual), which has {tokenized}"
            )
        compared = [point for point in self.headline() if point is not None]
        for headline in compared:
            trained = {job.layer for job in self.jobs("headline") if job.point.id == headline}
            for layer in sorted({job.layer for job in self.jobs()} - trained):
                raise ValueError(
                    f"sweep.headline: {' and '.join(compared)} are compared everywhere, but {headline} is missing "
                    f"at layer {layer}"
                )

    @property
    def streams(self) -> bool:
        """Whether every training gets its residuals from the model anew, since the cache does not fit `residuals.disk_gb`."""
        limit = self.residuals.disk_gb
        return limit is not None and self.cache_bytes(streamed=False) > limit * 1e9

    def cache_bytes(self, streamed: bool) -> int:
        """Size of the residual cache on disk [bytes]: with all residuals, or streamed, with no more than that needs."""
        n_ctx = self.tokens.n_ctx
        train, heldout = (-(-size // n_ctx) * n_ctx for size in (self.tokens.train, self.tokens.heldout))
        kept = (
            min(train, max(self.residuals.mean_tokens, self.residuals.shard_sequences * n_ctx)) if streamed else train
        )
        per_layer = (train + heldout) * TOKEN_BYTES + (kept + heldout) * 2 * self.model.d_model
        return len(self.residuals.layers) * per_layer

    def jobs(self, block: str | None = None) -> list[Job]:
        """Every SAE of one block of the sweep, or of all, once, in the order of the configuration."""
        jobs = (
            Job(layer=layer, point=point, seed=seed)
            for name, _, grid in self._grids()
            if block in (None, name)
            for point in grid.points()
            for layer in grid.layers or self.residuals.layers
            for seed in grid.seeds
        )
        return list(dict.fromkeys(jobs))

    def headline(self) -> Headline:
        """Ids of the points that are compared where nothing else is swept.

        The tokenized one is `evaluation.token_biases`; the baseline has the same k and expansion; the remainder is the tokenized
        one but for its encoder, which sees what the table leaves, if the block has it.
        """
        points = {job.point.id: job.point for job in self.jobs("headline")}
        tokenized = points[self.evaluation.token_biases]
        remainder = tokenized.model_copy(update={"encoder_input": "remainder"}).id
        return Headline(tokenized.without_table().id, tokenized.id, remainder if remainder in points else None)

    def checkpoint_steps(self) -> list[int]:
        """Training steps, counted from 1, at which the curves have a checkpoint; the last is the end of training."""
        n_steps = self.training.tokens // self.training.batch_size
        n, first = self.curves.checkpoints, self.curves.first
        return sorted({max(1, round(n_steps * first ** (1 - place / (n - 1)))) for place in range(n)})

    def token_bias_reference(self, layer: int, seed: int) -> Job:
        """The tokenized SAE whose table SAEs at a layer and seed are compared with: the same seed's, else the lowest."""
        return self._headline_job(self.evaluation.token_biases, layer, seed)

    def baseline_reference(self, layer: int, seed: int) -> Job:
        """The baseline whose features token-biases on the way are compared with: the same seed's, else the lowest."""
        return self._headline_job(self.headline().baseline, layer, seed)

    def _headline_job(self, point: str, layer: int, seed: int) -> Job:
        candidates = [job for job in self.jobs("headline") if job.layer == layer and job.point.id == point]
        return next((job for job in candidates if job.seed == seed), min(candidates, key=lambda job: job.seed))


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
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a mapping of sections at the top level")
    return parse(data, str(path))


def check_local_sources(config: Config) -> None:
    """Check that local files which the configuration names are there, and that sources have documents enough to hold out.

    Raises:
        ValueError: a file is missing, or there are too few documents; the message names the key.
    """
    wanted: list[tuple[str, Path]] = []
    if isinstance(config.model.source, FolderModel):
        wanted.append(("model.source.path", config.model.source.path / "config.json"))
    for place, source in enumerate(config.corpus.sources):
        if isinstance(source, FileCorpus):
            wanted += [(f"corpus.sources.{place}.paths", path) for path in source.files or source.paths]
    for key, path in wanted:
        if not path.is_file():
            raise ValueError(f"{key}: there is no file {path} (in {Path.cwd()})")
    n_least = config.tokens.heldout_documents
    numbers = [_count_documents(source, 2 * n_least) for source in config.corpus.sources]
    known = [number for number in numbers if number is not None]
    if len(known) == len(numbers) and sum(number // 2 for number in known) < n_least:
        raise ValueError(
            f"tokens.heldout_documents: {n_least} documents are to be held out, at most half of each source's, and corpus.sources "
            f"have {', '.join(map(str, known))}; lower it, or add to corpus.sources"
        )


def _count_documents(source: CorpusSource, enough: int) -> int | None:
    """Documents of a source, counted up to `enough`; None: not known before the source is read."""
    match source:
        case HubCorpus():
            return min(source.documents, enough)
        case FileCorpus(format="text"):
            return min(len(source.files), enough)
        case FileCorpus():
            n_documents = 0
            try:
                for path in source.files:
                    with path.open("rb") as file:
                        for line in file:
                            n_documents += bool(line.strip())
                            if n_documents == enough:
                                return enough
            except OSError:  # which the stage that reads it reports
                return None
            return n_documents
    return None


def to_json(section: BaseModel, exclude: Collection[str] = ()) -> str:
    """A part of the configuration as one line of JSON, as commands take it; the same settings give the same text.

    Args:
        section: the part.
        exclude: fields to leave out; a command that reads the text takes their defaults.
    """
    return json.dumps(section.model_dump(mode="json", exclude=set(exclude)), sort_keys=True)


def json_schema() -> str:
    """The JSON schema of a configuration file, as text."""
    return json.dumps(TypeAdapter(Config).json_schema(), indent=2) + "\n"
