"""The cost of the stages that measure residuals and SAEs, computed from a configuration alone."""

from collections.abc import Iterator

from tsae.plan.cost import GPU_PROCESS_BYTES, MODEL_PROCESS_BYTES, PROCESS_BYTES, Cost
from tsae.plan.passes import read_bytes, shard_bytes, streaming_bytes, training_pass
from tsae.plan.sizes import (
    encoder_flops,
    heldout_bytes,
    layers,
    logits_bytes,
    mean_bytes,
    n_active,
    n_sampled,
    n_scored,
    n_seen,
    n_table,
    sae_bytes,
    split_tokens,
    tested_bytes,
    upper_flops,
    weights,
)
from tsae.profile.config import Config
from tsae.profile.sweep import Job

SAMPLED_TOKEN_BYTES = 32  # per sampled training token while those of first letters are chosen: places, ids, letters


def evaluation_costs(config: Config) -> Iterator[Cost]:
    """The stages in the order of the workflow."""
    yield _letter_tokens(config)
    yield _ablate(config)
    yield _measure_baselines(config)
    yield _evaluate(config)
    if config.curve_jobs():
        yield _measure_curve(config)


def _letter_tokens(config: Config) -> Cost:
    n_layers, d, probed = len(layers(config)), config.model.d_model, config.evaluation.probe_tokens
    # One shard as it is stored, and residuals of the probe as read, in float32, centred and weighted.
    work = SAMPLED_TOKEN_BYTES * n_sampled(config) + shard_bytes(config) / 8 + 14 * d * probed
    return Cost(
        "letter_tokens",
        n_layers,
        read_bytes=read_bytes(config, n_sampled(config)),
        dense_flops=2 * probed * d**2 * n_layers,
        memory=PROCESS_BYTES + heldout_bytes(config) / 5 + work,
    )


def _ablate(config: Config) -> Cost:
    scored = n_scored(config, config.evaluation.ce_sequences)
    held = 4 * weights(config) + logits_bytes(config)
    return Cost(
        "ablate",
        len(layers(config)),
        loads_model=True,
        on_gpu=True,
        model_tokens=3 * scored * len(layers(config)),
        model_flops=sum(3 * scored * upper_flops(config, layer) for layer in layers(config)),
        memory=MODEL_PROCESS_BYTES + held + heldout_bytes(config) / 5 + mean_bytes(config),
        gpu_memory=GPU_PROCESS_BYTES + held,
    )


def _measure_baselines(config: Config) -> Cost:
    settings, n_layers = config.evaluation, len(layers(config))
    detection = settings.detection_tokens + split_tokens(config)[1] // config.tokens.n_ctx
    # Neighbours among the unigram residuals, and the ranks of a quarter of the tokens.
    queries = 2 * detection + (len(settings.min_counts) + 1) * settings.similarity_rows + settings.detection_tokens // 4
    heldout, d = split_tokens(config)[1], config.model.d_model
    # Suffixes have sums of every order, and rows of two.
    work = max(12 * 1024 * config.model.vocab_size, 8 * 4 * heldout * d + shard_bytes(config))
    return Cost(
        "measure_baselines",
        n_layers,
        **training_pass(config),
        dense_flops=2 * (queries * n_table(config) + heldout * d**2) * n_layers,
        memory=PROCESS_BYTES + tested_bytes(config) + 16 * n_table(config) + work + streaming_bytes(config),
    )


def _evaluate(config: Config) -> Cost:
    jobs, settings, table = config.jobs(), config.evaluation, n_table(config)
    heldout, scored = split_tokens(config)[1], n_scored(config, settings.ce_sequences)
    # The divergence runs its sequences with and without the SAE.
    run = scored + 2 * min(scored, settings.kl_sequences * config.tokens.n_ctx)

    def compared(job: Job) -> float:
        """Products that compare features with tables and controls, and a table's rows with each other and residuals."""
        n_features = job.point.n_features(config.model.d_model)
        rows = 2.0 * n_features
        if job.point.table != "none":
            samples = (len(settings.min_counts) + 1) * settings.similarity_rows + 1.25 * settings.detection_tokens
            rows += samples + heldout // config.tokens.n_ctx
        seen = n_features + 2 * min(settings.similarity_rows, n_features)
        return 2.0 * (rows * table + seen * n_seen(config) * config.model.d_model)

    held = (
        4 * weights(config)
        + max(logits_bytes(config), 12 * 1024 * config.model.vocab_size)
        + max(sae_bytes(config, job.point) for job in jobs)
    )
    firings, encoded = heldout * max(n_active(job.point) for job in jobs), heldout + settings.probe_tokens
    return Cost(
        "evaluate",
        len(jobs),
        loads_model=True,
        on_gpu=True,
        model_tokens=run * len(jobs),
        model_flops=sum(run * upper_flops(config, job.layer) for job in jobs),
        # The loss takes the reconstructions of the one pass over held-out tokens.
        dense_flops=sum(encoded * encoder_flops(config, job.point) + compared(job) for job in jobs),
        sparse_flops=sum(heldout * 2 * config.model.d_model * n_active(job.point) for job in jobs),
        memory=MODEL_PROCESS_BYTES + held + tested_bytes(config) + 64 * firings,
        gpu_memory=GPU_PROCESS_BYTES + held,
    )


def _measure_curve(config: Config) -> Cost:
    jobs, n_checkpoints = config.curve_jobs(), len(config.checkpoint_steps())
    limits = (config.evaluation.ce_sequences, config.curves.ce_sequences)
    scored = min(n_scored(config, limit) for limit in limits)
    heldout = split_tokens(config)[1]
    held = 4 * weights(config) + logits_bytes(config) + max(sae_bytes(config, job.point) for job in jobs)
    # A sample of features is compared with one table, or with two.
    compared = 2 * config.evaluation.similarity_rows * n_seen(config) * config.model.d_model
    similarity = sum(compared * (1 + (job.point.table == "none")) for job in jobs)
    return Cost(
        "measure_curve",
        len(jobs),
        loads_model=True,
        on_gpu=True,
        model_tokens=n_checkpoints * scored * len(jobs),
        model_flops=sum(n_checkpoints * scored * upper_flops(config, job.layer) for job in jobs),
        dense_flops=n_checkpoints * (similarity + sum(heldout * encoder_flops(config, job.point) for job in jobs)),
        sparse_flops=sum(n_checkpoints * heldout * 2 * config.model.d_model * n_active(job.point) for job in jobs),
        memory=MODEL_PROCESS_BYTES + held + heldout_bytes(config),
        gpu_memory=GPU_PROCESS_BYTES + held,
    )
