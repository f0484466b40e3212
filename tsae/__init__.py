"""Tokenized sparse autoencoders, from public weights and text to every figure of the write-up.

`tsae.train` trains one SAE of your model, `tsae.load` reads a trained one, and `tsae --help` lists the commands.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tsae.api.calls import evaluate, heldout, train
    from tsae.profile.config import load as load_profile
    from tsae.sae.checkpoint import load
    from tsae.sae.sae import SAE

# Imported when they are asked for: a stage of the workflow starts without them.
_WHERE = {
    "train": ("tsae.api.calls", "train"),
    "evaluate": ("tsae.api.calls", "evaluate"),
    "heldout": ("tsae.api.calls", "heldout"),
    "load": ("tsae.sae.checkpoint", "load"),
    "load_profile": ("tsae.profile.config", "load"),
    "SAE": ("tsae.sae.sae", "SAE"),
}
__all__ = ["SAE", "evaluate", "heldout", "load", "load_profile", "train"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function = _WHERE[name]
    return getattr(importlib.import_module(module), function)
