"""The folder of a language model: what its config.json says."""

from pathlib import Path
from typing import Any, NamedTuple


class ModelShape(NamedTuple):
    """What `config.json` says about a model's size."""

    n_layers: int
    d_model: int
    vocab_size: int


def quiet_transformers() -> None:
    """Keep the library from writing warnings and progress bars of its own."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def model_shape(folder: Path) -> ModelShape:
    """Read a model's size from its `config.json`.

    Raises:
        ValueError: the file is missing or describes no language model.
    """
    config = model_config(folder)
    try:
        return ModelShape(config.num_hidden_layers, config.hidden_size, config.vocab_size)
    except AttributeError as error:
        raise ValueError(f"{folder / 'config.json'}: not the configuration of a language model ({error})") from error


def model_config(folder: Path) -> Any:
    """The model's configuration as transformers reads it.

    Raises:
        ValueError: `config.json` is missing or describes no language model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: {folder} is not a model folder; prepare the model first")
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises what it trips over
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not the configuration of a language model ({reason})") from error
