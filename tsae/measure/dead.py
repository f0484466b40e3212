"""Dead features, and the offset of the encoder's input."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from tsae.measure.intervals import share
from tsae.measure.measurement import Measurement
from tsae.measure.sequences import Sequences
from tsae.profile.evaluation import Evaluation
from tsae.sae.checkpoint import load_centre
from tsae.sae.offset import offset_of
from tsae.sae.sae import SAE

DEAD_WINDOW_ORIGINAL = 3 * 4096  # the authors' "dead": silent for three of their batches [tokens]
METRICS = {
    "dead_heldout": "share of features that fire on no held-out token",
    "dead_training": "share of features that did not fire in the last `evaluation.dead_window` tokens of training",
    "dead_training_original": "share of features that did not fire in the last 12 288 tokens of training, three of the authors' batches",
    "encoder_offset_at_start": "length of the mean of the encoder's input at the start, over the root mean squared distance of inputs to it",
    "encoder_offset": "that ratio for the input of the trained encoder, on held-out tokens",
}


def measure_dead_on_heldout(fired: Tensor, settings: Evaluation) -> Measurement:
    """Share of features that fired on no held-out token; `fired` (F,) counts tokens."""
    return share("dead_heldout", fired == 0, settings.bootstrap, settings.seed)


def measure_start(sae: SAE) -> list[Measurement]:
    """The offset of the encoder's input at the start of training; nothing for an SAE trained elsewhere."""
    offset = sae.metadata.get("encoder_offset_at_start")
    return [] if offset is None else [Measurement("encoder_offset_at_start", offset)]


def measure_offset(sae: SAE, folder: Path, sequences: Sequences) -> list[Measurement]:
    """The offset of the trained encoder's input on held-out tokens; nothing for an SAE trained elsewhere.

    The centre is fixed at the start. The mean of the remainder moves with the table.
    """
    if "tokens_trained" not in sae.metadata:
        return []
    centre = load_centre(folder)
    # `load` folds the centre into b_enc, and the encoder subtracts b_dec instead.
    moved = torch.zeros_like(sae.b_dec) if centre is None else sae.b_dec - centre.to(sae.device)

    def inputs() -> Iterator[Tensor]:
        for chosen in torch.arange(len(sequences.tokens)).split(64):
            kept = sequences.kept[chosen]
            x = sequences.residuals[chosen][kept].to(sae.device).float()
            yield sae.encoder_input(x, sae.rows_of(sequences.tokens[chosen])[kept].to(sae.device)) + moved

    return [Measurement("encoder_offset", offset_of(inputs()).share)]


def measure_dead_in_training(sae: SAE, last_fired: Tensor, settings: Evaluation) -> list[Measurement]:
    """Shares of features silent in the last tokens of training, in the configured window and in the authors'."""
    silent_for = sae.metadata["tokens_trained"] - last_fired
    never = last_fired < 0
    return [
        share(metric, never | (silent_for >= window), settings.bootstrap, settings.seed)
        for metric, window in (
            ("dead_training", settings.dead_window),
            ("dead_training_original", DEAD_WINDOW_ORIGINAL),
        )
    ]
