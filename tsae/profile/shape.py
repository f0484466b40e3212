"""The size of a language model, read from its config.json."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from tsae.profile.sources import HubModel
from tsae.store.reasons import reason_of

# What configurations call the sizes, most of them by the first name.
NAMES = (
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    ("hidden_size", "n_embd", "d_model", "dim"),
    ("vocab_size",),
)
LONGEST = ("max_position_embeddings", "n_positions")


class Shape(NamedTuple):
    """A model's size."""

    n_layers: int
    d_model: int
    vocab_size: int


def shape_of(config: Any) -> Shape | None:
    """The size that a configuration states, itself or in its part for text; None if it states none."""
    for part in _parts(config):
        found = [next((part[name] for name in names if name in part), None) for names in NAMES]
        sizes = [size for size in found if isinstance(size, int)]
        if len(sizes) == len(NAMES):
            return Shape(*sizes)
    return None


def read_shape(path: Path, where: str) -> Shape:
    """Read a model's size from its config.json.

    Args:
        path: the file.
        where: the key of the configuration that names it.

    Raises:
        ValueError: there is no such file, or it is not the configuration of a language model.
    """
    sizes = "state model.n_layers, model.d_model and model.vocab_size"
    shape = shape_of(_read(path, where, f"correct the path, or {sizes}"))
    if shape is None:
        raise ValueError(f"{where}: {path} does not state the size of a language model; {sizes}")
    return shape


def check_context(path: Path, where: str, n_ctx: int) -> None:
    """Check that a model takes sequences of `n_ctx` tokens.

    Args:
        path: its config.json, which may state no limit.
        where: what names the file.
        n_ctx: length of a sequence, BOS included [tokens].

    Raises:
        ValueError: the model takes fewer tokens, or there is no such file.
    """
    parts = _parts(_read(path, where, "give a folder with a language model"))
    stated = [part[name] for part in parts for name in LONGEST if isinstance(part.get(name), int)]
    if stated and n_ctx > stated[0]:
        raise ValueError(
            f"tokens.n_ctx: sequences of {n_ctx} tokens, and the model takes at most {stated[0]} (by {path}); lower it"
        )


def fetch_shape(source: HubModel) -> Shape:
    """Fetch config.json of a model of the hub, once, and read its size.

    Raises:
        ValueError: the hub is out of reach, or has no such model.
    """
    from huggingface_hub import hf_hub_download

    where = f"model.source.id: {source.id}"
    try:
        path = hf_hub_download(source.id, "config.json", revision=source.revision)
    except Exception as error:  # of any type
        raise ValueError(
            f"{where}: its config.json cannot be fetched ({reason_of(error, 200)}); check the network, or state model.n_layers, "
            "model.d_model and model.vocab_size"
        ) from None
    return read_shape(Path(path), where)


def _read(path: Path, where: str, remedy: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{where}: {path} cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {path} is not JSON ({error})") from None


def _parts(config: Any) -> list[dict[str, Any]]:
    """A configuration, and its part for text if it has one."""
    found = (config, config.get("text_config")) if isinstance(config, dict) else ()
    return [part for part in found if isinstance(part, dict)]
