"""Checks across the sections of a configuration."""

from typing import TYPE_CHECKING

from tsae.profile.figures import check_points
from tsae.profile.inputs import COLUMN_BYTES
from tsae.profile.sweep import Job

if TYPE_CHECKING:
    from tsae.profile.config import Config

# Names below results/ that no profile may have.
RESERVED = {"sources", "tiny", "bench", "readme.md"}
MOST_FEATURES = 1 << 31  # in an SAE; no machine holds more
MOST_SAES = 10_000  # in a sweep; more are a mistake, and listing them could take forever


def check_consistency(config: "Config") -> None:
    """Check a configuration whose sections are each valid.

    Raises:
        ValueError: the first mistake; the message names the key.
    """
    for check in (
        _check_profile,
        _check_lists,
        _check_sources,
        _check_layers,
        _check_training,
        _check_points,
        _check_names,
        _check_disk,
        _check_headline,
        _check_released,
        _check_figures,
    ):
        check(config)


def _check_profile(config: "Config") -> None:
    """No other files are in results/{profile}."""
    if config.profile.lower() in RESERVED:
        raise ValueError(f"profile: results/{config.profile} is for something else; rename the profile")


def _check_lists(config: "Config") -> None:
    """No list has a value twice."""
    for key, listed in (
        ("residuals.layers", config.residuals.layers),
        ("figures", config.figures or ()),
        ("phrases.lengths", config.phrases.lengths),
        ("evaluation.min_counts", config.evaluation.min_counts),
    ):
        if len(set(listed)) < len(listed):
            raise ValueError(f"{key} names a value twice: {list(listed)}")


def _check_sources(config: "Config") -> None:
    """Files inside wheels are stored under their names, so the names must differ."""
    members: dict[str, str] = {}
    for source in config.wheel_files():
        if members.setdefault(source.filename, source.sha256) != source.sha256:
            raise ValueError(f"corpus.sources: two wheel files are both named {source.filename}; only one can be kept")


def _check_layers(config: "Config") -> None:
    """The model has the layers."""
    for layer in config.residuals.layers:
        if layer >= config.model.n_layers:
            raise ValueError(
                f"residuals.layers: there is no layer {layer}; the model has layers 0 to {config.model.n_layers - 1}"
            )


def _check_training(config: "Config") -> None:
    """There are enough tokens for a step."""
    if config.training.batch_size > config.tokens.train:
        raise ValueError(
            f"training.batch_size ({config.training.batch_size}) is larger than tokens.train ({config.tokens.train})"
        )
    if config.training.tokens < config.training.batch_size:
        raise ValueError(
            f"training.tokens ({config.training.tokens}) is smaller than training.batch_size "
            f"({config.training.batch_size})"
        )


def _check_points(config: "Config") -> None:
    """Every point of the sweep can be trained."""
    layers = config.residuals.layers
    n_saes = sum(grid.size(len(layers)) for _, _, grid in config.grids())
    if n_saes > MOST_SAES:
        raise ValueError(
            f"sweep: the products of its lists have {n_saes} SAEs, more than {MOST_SAES}; shorten the lists"
        )
    for name, place, grid in config.grids():
        where = f"sweep.{name}.{place}"
        if "bigram" in grid.rows and name in ("headline", "encoder"):
            raise ValueError(
                f"{where}: rows: bigram gives rows to pairs of tokens, and the SAEs of this block are read token by token; put "
                "it into another block"
            )
        for point in grid.points():
            n_features = point.n_features(config.model.d_model)
            if not 1 <= n_features <= MOST_FEATURES:
                raise ValueError(
                    f"{where}: expansion {point.expansion:g} x d_model {config.model.d_model} gives {n_features} "
                    f"features; an SAE has 1 to {MOST_FEATURES}"
                )
            if point.initial_encoder_scale <= 0:
                raise ValueError(
                    f"{where}: with start: authors, lookup_scale {point.lookup_scale:g} leaves W_enc = "
                    f"{1 - point.lookup_scale:g} x W_dec's transpose at the start; set encoder_scale too"
                )
            if point.budget < 1 and round(point.budget * config.training.tokens) < config.training.batch_size:
                raise ValueError(
                    f"{where}: budget {point.budget:g} of training.tokens ({config.training.tokens}) is less than "
                    f"training.batch_size ({config.training.batch_size}); raise the budget"
                )
            if point.distinct < 1 and round(point.distinct * config.tokens.train) < config.training.batch_size:
                raise ValueError(
                    f"{where}: distinct {point.distinct:g} of tokens.train ({config.tokens.train}) is less than "
                    f"training.batch_size ({config.training.batch_size}); raise the share"
                )
            if (point.k or 1) > n_features:
                raise ValueError(
                    f"{where}: k = {point.k} active features of {n_features} "
                    f"(expansion {point.expansion:g} x d_model {config.model.d_model}); lower k or raise the expansion"
                )
        for layer in grid.layers or ():
            if layer not in layers:
                raise ValueError(f"{where}.layers: layer {layer} is not in residuals.layers {list(layers)}")


def _check_names(config: "Config") -> None:
    """The token count that claims use is measured, and SAEs have different ids."""
    if 1 not in config.evaluation.min_counts:
        raise ValueError("evaluation.min_counts: 1 is needed, since claims and figures use the tokens seen in training")
    called: dict[str, Job] = {}
    for job in config.jobs():
        if called.setdefault(job.id, job) != job:
            raise ValueError(
                f"sweep: two SAEs would both be called {job.id}, since ids have six digits of a number; leave one out"
            )


def _check_disk(config: "Config") -> None:
    """The cache fits `residuals.disk_gb`, at least streamed."""
    limit = config.residuals.disk_gb
    if limit is not None and config.streams and (least := config.cache_bytes(streamed=True)) > limit * 1e9:
        raise ValueError(
            f"residuals.disk_gb: {limit:g} GB are too few: the held-out residuals, the sample of the mean and "
            f"{COLUMN_BYTES} bytes for every token and layer, at model.d_model {config.model.d_model}, take "
            f"{least / 1e9:.3g} GB (all residuals take {config.cache_bytes(streamed=False) / 1e9:.3g} GB); raise it, "
            "or lower tokens.heldout, tokens.train, residuals.mean_tokens or the number of residuals.layers"
        )


def _check_headline(config: "Config") -> None:
    """Blocks are not called like other tables, and the block `headline` has the point that SAEs are compared with."""
    if reserved := {"baselines", "curves", "phrases", "released"} & config.sweep.keys():
        raise ValueError(f"sweep: {min(reserved)!r} is the name of another table; rename the block")
    chosen, tokenized = config.evaluation.token_biases, sorted(config.tokenized_points())
    if chosen is not None and chosen not in tokenized:
        raise ValueError(
            f"evaluation.token_biases: {chosen!r} is no tokenized point of sweep.headline in the paper's form "
            f"(encoder_input: residual); there are {tokenized}"
        )


def _check_released(config: "Config") -> None:
    """The authors' SAEs need the residuals they were trained on."""
    if config.released is not None and not config.model.compatibility_mode:
        raise ValueError(
            "released: the authors' SAEs were trained on residuals with layer norms folded and residual-writing "
            "weights centred; set model.compatibility_mode: true"
        )


def _check_figures(config: "Config") -> None:
    """The sweep has the points that figures show."""
    jobs_of = config.jobs_by_block()
    for figure in config.figures or ():
        check_points(figure, jobs_of)
