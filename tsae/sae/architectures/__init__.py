"""Architectures: how pre-activations become activations, and what their training adds to the loss.

An architecture is one module of this folder, named as in `sweep`. Its class computes. Its literal `ABOUT` describes it, and
`tsae.profile.architectures` reads that without running the module. All share the other parts of an SAE: W_enc, b_enc, W_dec, b_dec
and the table.
"""

import importlib

from tsae.profile.architectures import about
from tsae.profile.point import Point
from tsae.sae.architectures.base import Architecture


def make_architecture(point: Point, n_features: int) -> Architecture:
    """The architecture that a point names, for an SAE of `n_features`.

    Raises:
        ValueError: there is no such architecture.
    """
    module = importlib.import_module(f"{__name__}.{point.architecture}")
    made: Architecture = getattr(module, about(point.architecture).class_name)(point, n_features)
    return made
