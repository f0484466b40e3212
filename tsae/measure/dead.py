"""Dead features, and how far off centre the encoder's input is."""

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
    """Share of features that fired on no held-out token: `fired` (F,) counts the tokens."""
    return _share("dead_heldout", fired == 0, settings)


def measure_start(sae: SAE) -> list[Measurement]:
    """How far off centre the encoder's input started, of an SAE that was trained here."""
    share = sae.metadata.get("encoder_offset_at_start")
    return [] if share is None else [Measurement("encoder_offset_at_start", share)]


def measure_offset(sae: SAE, folder: Path, sequences: Sequences) -> list[Measurement]:
    """How far off centre the input of the trained encoder is on held-out tokens, of an SAE that was trained here.

    Of an encoder that sees what the table leaves, the mean moves with the table, and the centre does not.
    """
    if "tokens_trained" not in sae.metadata:
        return []
    centre = load_centre(folder)
    # `load` has folded the centre into b_enc, and b_dec is taken away instead.
    moved = torch.zeros_like(sae.b_dec) if centre is None else sae.b_dec - centre.to(sae.device)

    def inputs() -> Iterator[Tensor]:
        for chosen in torch.arange(len(sequences.tokens)).split(64):
            kept = sequences.kept[chosen]
            x = sequences.residuals[chosen][kept].to(sae.device).float()
            yield sae.encoder_input(x, sequences.tokens[chosen][kept].to(sae.device)) + moved

    return [Measurement("encoder_offset", offset_of(inputs()).share)]


def measure_dead_in_training(sae: SAE, last_fired: Tensor, settings: Evaluation) -> list[Measurement]:
    """Share of features that did not fire in the last tokens of training: in the configured window and in the authors'."""
    silent_for = sae.metadata["tokens_trained"] - last_fired
    never = last_fired < 0
    return [
        _share(metric, never | (silent_for >= window), settings)
        for metric, window in (
            ("dead_training", settings.dead_window),
            ("dead_training_original", DEAD_WINDOW_ORIGINAL),
        )
    ]


def _share(
    metric: str,
    hits: Tensor,
    settings: Evaluation,
    at: float | None = None,
    min_count: int | None = None,
    over: str = "features",
) -> Measurement:
    return share(metric, hits, settings.bootstrap, settings.seed, at, min_count, over)
