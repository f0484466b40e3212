"""What a stage costs that reads the training residuals of every layer once, in order."""

from typing import Any

from tsae.plan.cost import GPU_PROCESS_BYTES
from tsae.plan.sizes import block_flops, layers, split_tokens, weights
from tsae.profile.config import Config
from tsae.profile.inputs import TOKEN_BYTES

IN_ORDER = 5  # sequential reads measured 5 times faster than shuffled batches


def training_pass(config: Config) -> dict[str, Any]:
    """Fields of the stage's `Cost`: reading the residuals, and the model that computes those that are not on disk."""
    train = split_tokens(config)[0]
    read = {"read_bytes": read_bytes(config, train)}
    if not config.streams:
        return read
    return read | {
        "loads_model": True,
        "on_gpu": True,
        "model_tokens": train * len(layers(config)),
        "model_flops": sum(train * layer * block_flops(config) for layer in layers(config)),
        "gpu_memory": GPU_PROCESS_BYTES + streaming_bytes(config),
    }


def read_bytes(config: Config, tokens: int) -> float:
    """Residuals of so many training tokens of every layer that are read in order, as the `read_bytes` of a `Cost` [bytes]."""
    return tokens * (2 * config.model.d_model + TOKEN_BYTES) * len(layers(config)) / IN_ORDER


def shard_bytes(config: Config) -> float:
    """Memory of a shard's residuals and of what is computed from them [bytes]."""
    return 16 * config.residuals.shard_sequences * config.tokens.n_ctx * config.model.d_model


def streaming_bytes(config: Config) -> float:
    """Memory of the model, if it computes residuals that are not on disk [bytes]."""
    return 4 * weights(config) if config.streams else 0
