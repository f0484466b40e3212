"""The folder of a language model: its config.json and source.json."""

import json
from pathlib import Path
from typing import Any

from tsae.profile.shape import Shape
from tsae.store import files
from tsae.store.reasons import reason_of


def quiet_transformers() -> None:
    """Silence the library's warnings and progress bars."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def model_shape(folder: Path) -> Shape:
    """Read a model's size from its `config.json`; of a model of images and text, the size of its language model.

    Raises:
        ValueError: the file is missing or describes no language model.
    """
    config = model_config(folder).get_text_config()
    try:
        return Shape(config.num_hidden_layers, config.hidden_size, config.vocab_size)
    except AttributeError as error:
        raise ValueError(f"{folder / 'config.json'}: not the configuration of a language model ({error})") from error


def model_source(folder: Path) -> Any:
    """Read `source.json`: where the model came from, and the sha256 of every file.

    Raises:
        ValueError: the file is missing.
    """
    path = folder / "source.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: {folder} is not a whole model folder; prepare the model first")
    return json.loads(files.read_text(path))


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
    except Exception as error:  # of any type
        raise ValueError(f"{path}: not the configuration of a language model ({reason_of(error)})") from error


def auto_class(config: Any) -> Any:
    """The class of transformers that loads a language model, alone or with the vision model around it."""
    import transformers

    alone = transformers.AutoModelForCausalLM
    return alone if type(config) in alone._model_mapping else transformers.AutoModelForImageTextToText
