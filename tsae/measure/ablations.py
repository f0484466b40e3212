"""The model's loss with a layer's residuals intact, zero, and at their mean."""

from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from tsae.compute.devices import Float32Device
from tsae.measure.sequences import Sequences, load_sequences, spread
from tsae.model.language_model import load_model
from tsae.model.losses import next_token_losses
from tsae.profile.evaluation import Evaluation
from tsae.residuals.read import open_residuals
from tsae.store.arguments import Folder
from tsae.store.files import REMEDY
from tsae.store.tensors import load_as, save_tensors

ABLATIONS = ("clean", "zero", "mean")


def measure_ablations(
    model: Folder,
    residuals: Path,
    heldout: Path,
    layer: int,
    settings: Evaluation,
    compatibility_mode: bool,
    output: Path,
    device: Float32Device = "cpu",
) -> None:
    """Measure the loss with a layer intact and ablated.

    The output holds `clean`, `zero` and `mean`, each (n_seq, n_ctx - 1) float32 [nats], and the mask `scored` of the
    same shape. A prediction is scored if the token that it is made from is kept. Residuals of BOS and of outlying
    tokens stay.

    Args:
        model: the language model.
        residuals: index of the residual cache.
        heldout: the held-out split.
        layer: the layer.
        settings: number of sequences, in total and per forward pass.
        compatibility_mode: fold layer norms and centre residual-writing weights.
        output: where the losses go.
        device: where to compute.
    """
    language_model = load_model(model, compatibility_mode, device)
    cache = open_residuals(residuals, "train", layer)
    sequences = spread(load_sequences(open_residuals(residuals, "heldout", layer), heldout), settings.ce_sequences)
    replacements = {"zero": torch.zeros(cache.d_model, device=device), "mean": cache.mean().to(device)}
    losses: dict[str, list[Tensor]] = {name: [] for name in ABLATIONS}
    progress = tqdm(
        total=sequences.tokens.numel(), desc=f"ablations of layer {layer}", unit="tok", unit_scale=True, disable=None
    )
    for batch in zip(*(part.split(settings.batch_sequences) for part in sequences[:3]), strict=True):
        x, tokens, kept = (part.to(device) for part in batch)
        x = x.float()
        for name in ABLATIONS:
            patched = x if name == "clean" else torch.where(kept[..., None], replacements[name], x)
            losses[name].append(next_token_losses(language_model, patched, tokens, layer).cpu())
        progress.update(tokens.numel())
    progress.close()
    save_tensors(
        output, {"scored": sequences.kept[:, :-1], **{name: torch.cat(parts) for name, parts in losses.items()}}
    )


def load_ablations(path: Path, sequences: Sequences) -> dict[str, Tensor]:
    """Read the output of `measure_ablations`: `clean`, `zero`, `mean`, each (n_seq, n_ctx - 1) float32 [nats].

    Raises:
        ValueError: the file is missing, damaged, or of other sequences.
    """
    scored = sequences.kept[:, :-1]
    shape = tuple(scored.shape)
    found = load_as(path, {"scored": (shape, torch.bool), **dict.fromkeys(ABLATIONS, (shape, torch.float32))})
    if not torch.equal(found.pop("scored"), scored):
        raise ValueError(f"{path}: the losses of other tokens; {REMEDY}")
    return found
