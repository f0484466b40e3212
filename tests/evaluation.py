"""What the tests of evaluation share: one layer with trained SAEs, SAEs by hand, and the loss of the whole model."""

from pathlib import Path
from typing import NamedTuple

import torch
from test_train import LAYER, Prepared, train_point
from torch import Tensor
from transformers import AutoModelForCausalLM

from tsae.baselines import Sequences, load_sequences, measure_ablations, spread
from tsae.config import Evaluation
from tsae.evaluate import measure_dead_on_heldout, measure_loss, measure_reconstruction
from tsae.evolution import TrainedPaths
from tsae.features import Firings
from tsae.metrics import Measurement
from tsae.models import LanguageModel, load_model
from tsae.residuals import ResidualCache, open_residuals
from tsae.sae import SAE
from tsae.sums import DocumentSums
from tsae.sweep import Point

SETTINGS = Evaluation(
    token_biases="topk-k4-x2-learned", batch_sequences=16, ce_sequences=20, bootstrap=50, dead_window=4000
)


class Evaluated(NamedTuple):
    """What SAEs of a layer are measured with."""

    model: LanguageModel
    bare: torch.nn.Module  # the same model, without anything of this package
    train: ResidualCache
    heldout: ResidualCache
    whole: Sequences  # all held-out ones
    sequences: Sequences  # those of the loss
    ablations: Path
    saes: dict[str, Path]  # trained ones, by their table
    trained_ones: TrainedPaths  # the same, as checkpoints are compared with them


def open_evaluated(prepared: Prepared) -> Evaluated:
    """Measure the ablations and train the SAEs."""
    folder = prepared.residuals.parents[1]
    ablations = folder / "ablations.safetensors"
    measure_ablations(prepared.model, prepared.residuals, prepared.heldout_tokens, LAYER, SETTINGS, False, ablations)
    train, heldout = (open_residuals(prepared.residuals, split, LAYER) for split in ("train", "heldout"))
    saes = {table: train_point(prepared, folder / f"sae-{table}", table) for table in ("none", "learned")}
    whole = load_sequences(heldout, prepared.heldout_tokens)
    return Evaluated(
        load_model(prepared.model),
        AutoModelForCausalLM.from_pretrained(prepared.model).eval(),
        train,
        heldout,
        whole,
        spread(whole, SETTINGS.ce_sequences),
        ablations,
        saes,
        TrainedPaths(saes["none"], saes["learned"], prepared.unigrams),
    )


def reconstruction(
    sae: SAE, sequences: Sequences, settings: Evaluation = SETTINGS, firings: list[Firings] | None = None
) -> tuple[list[Measurement], Tensor]:
    """Measurements of an SAE's reconstructions, and how many tokens each feature fired on."""
    sums = DocumentSums(sequences.documents)
    fired = measure_reconstruction(sae, sequences, settings, sums, firings)
    return [*sums.measure(settings.bootstrap, settings.seed), measure_dead_on_heldout(fired, settings)], fired


def losses(
    sae: SAE, evaluated: Evaluated, ablations: dict[str, Tensor], sequences: Sequences | None = None
) -> list[Measurement]:
    """Measurements of the loss with an SAE in place, by default on the sequences whose ablations are measured."""
    sequences = sequences or evaluated.sequences
    sums = DocumentSums(evaluated.whole.documents)
    measure_loss(sae, evaluated.model, sequences, ablations, LAYER, SETTINGS, sums)
    return sums.measure(SETTINGS.bootstrap, SETTINGS.seed)


def by_name(measured: list[Measurement]) -> dict[str, Measurement]:
    """Measurements that have a name each."""
    named = {m.metric: m for m in measured}
    assert len(named) == len(measured)
    return named


def whole_model_losses(bare: torch.nn.Module, tokens: Tensor, layer: int, residuals: Tensor | None) -> Tensor:
    """Losses (batch, pos - 1) of the whole model, every block run, its residual entering `layer` replaced by a hook."""

    def replace(_module: torch.nn.Module, inputs: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return (residuals, *inputs[1:]), kwargs

    blocks = next(module for module in bare.modules() if isinstance(module, torch.nn.ModuleList))
    handle = blocks[layer].register_forward_pre_hook(replace, with_kwargs=True) if residuals is not None else None
    with torch.no_grad():
        logits = bare(tokens).logits.double()
    if handle is not None:
        handle.remove()
    log_probabilities = logits.log_softmax(-1)[:, :-1]
    return -log_probabilities.gather(2, tokens[:, 1:, None]).squeeze(2)


def make_sae(W_enc: Tensor, W_dec: Tensor, k: int, relu: bool = True, W_lookup: Tensor | None = None) -> SAE:
    """A TopK SAE without biases."""
    point = Point(k=k, expansion=1, table="none" if W_lookup is None else "learned", topk_relu=relu)
    sae = SAE(point, W_enc, W_dec, torch.zeros(len(W_enc)), torch.zeros(W_enc.shape[1]), W_lookup)
    return sae.requires_grad_(False)


def identity_sae(d_model: int) -> SAE:
    """An SAE that reconstructs everything."""
    return make_sae(torch.eye(d_model), torch.eye(d_model), k=d_model, relu=False)
