"""The saved state from which an interrupted training resumes: parameters, moments of both optimizers, and progress.

Learning rates and the order of the data follow from the step.
"""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tsae.store.code import digest_of
from tsae.store.tensors import load_metadata, load_tensors, save_tensors

LOG = logging.getLogger(__name__)
DIVERGED = "the SAE has diverged: lower training.lr or training.table_lr, or the point's lookup_scale"


class NotFiniteError(FloatingPointError):
    """A number in a training became infinite or NaN."""

    def __init__(self, step: int, why: str):
        """Take the step and the cause."""
        super().__init__(f"stopped at step {step}: {why}")
        self.step, self.why = step, why


def check_finite(tensors: Mapping[str, Tensor], step: int) -> None:
    """Check parameters and moments after a step.

    Raises:
        NotFiniteError: one is infinite or NaN.
    """
    if bad := sorted(name for name, tensor in tensors.items() if not tensor.isfinite().all()):
        raise NotFiniteError(step, f"{bad[0]} is not finite after it; {DIVERGED}")


class Progress(NamedTuple):
    """The progress of a training after a step."""

    step: int  # steps done
    history: list[dict[str, float]]  # one row per recorded step
    losses: list[float]  # of the steps since the last recorded one
    active_per_token: list[float]  # of the same steps
    last_fired: Tensor  # (F,) int64, training tokens seen when each feature last fired; -1 if it never did


class Saved:
    """The file of a saved state, which only a training of the same settings, inputs and code accepts."""

    def __init__(self, path: Path, made_from: Mapping[str, Any], every_s: float):
        """Take the path, what the training is made from, and the interval between writes [s]."""
        self.path, self.every_s = path, every_s
        described = [made_from, digest_of("tsae.training.train"), torch.get_num_threads()]
        self.fingerprint = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        self._written = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time to write again."""
        return time.monotonic() - self._written >= self.every_s

    def write(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        """Write the state after a step.

        Raises:
            NotFiniteError: a number is not finite; the previous file stays.
        """
        check_finite(tensors, progress.step)
        known = {name: value for name, value in progress._asdict().items() if name != "last_fired"}
        save_tensors(self.path, {**tensors, "last_fired": progress.last_fired}, {"made_from": self.fingerprint} | known)
        self._written = time.monotonic()

    def read(self) -> tuple[dict[str, Tensor], Progress] | None:
        """The saved state; None if it is missing, damaged, or of another training."""
        if not self.path.is_file():
            return None
        try:
            metadata, tensors = load_metadata(self.path), load_tensors(self.path)
            if metadata.pop("made_from") != self.fingerprint:
                raise ValueError("it is of other settings, inputs, code or another number of threads")
            return tensors, Progress(**metadata, last_fired=tensors.pop("last_fired"))
        except (ValueError, KeyError, TypeError) as error:
            LOG.warning("%s: training starts from step 0 (%s)", self.path, error)
            return None
