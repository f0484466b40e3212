"""A folder of trained SAEs to share, one subfolder each, as a repository of the Hugging Face hub holds it.

README.md                                  the model card, for all SAEs
layer12/topk-k32-x4-learned-s0/
    sae.safetensors, config.json           the SAE as `checkpoint.load` reads it
    history.csv                            its training, if it was trained here
    metrics.json                           its measurements on held-out tokens
    sparsity.safetensors                   `sparsity` (F,): log10 of each feature's firing rate, as SAELens keeps it
    cfg.json, sae_weights.safetensors,     the same SAE as SAELens loads it, if SAELens can express it
    token_biases.safetensors
    .*.sha256                              the sha256 of each of these files
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from tsae.sae.checkpoint import load
from tsae.sae.exchange.card import Shared, card
from tsae.sae.exchange.saelens import inexpressible, write_saelens
from tsae.store import layout
from tsae.store.files import check, naming, read_text, record, record_of, temporary_of
from tsae.store.tensors import save_tensors

CARD = "README.md"
LEAST_RATE = 1e-10  # added before the logarithm, as in SAELens
SUBFOLDER = re.compile(r"layer\d+/[A-Za-z0-9][A-Za-z0-9._-]*")
# What `pull` fetches: all but the copy for SAELens.
PULLED = ("sae.safetensors", "config.json", "history.csv", "metrics.json", "sparsity.safetensors")


class Trained(NamedTuple):
    """The files of an evaluated SAE in the results of a profile."""

    sae: Path
    metrics: Path
    features: Path
    name: str
    """Its subfolder: `layer12/topk-k32-x4-learned-s0`."""


def write_repository(
    saes: Sequence[Path],
    folder: Path,
    repo: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write a folder to share, whole or not at all; the same SAEs give the same bytes.

    Args:
        saes: SAEs as `results/PROFILE/saes/layer12/topk-k32-x4-learned-s0`, or `results/PROFILE` for all of a profile.
        folder: the folder to write.
        repo: `USER/NAME` of the hub, for the examples in the model card.
        base_model: hub id of the language model; by default the one that the profile names, if it does.
        license: licence of the SAEs, for the model card.
        overwrite: replace a folder that an earlier call wrote.

    Returns:
        The subfolders.

    Raises:
        ValueError: an SAE is not finished, not evaluated or damaged, or there is something in `folder`.
    """
    found = find_trained(saes)
    check_free(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(folder)
    try:
        with naming(folder):
            shared = [_write_sae(trained, temporary / trained.name, base_model) for trained in found]
            (temporary / CARD).write_text(card(shared, repo, base_model, license), encoding="utf-8")
            put_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [trained.name for trained in found]


def find_trained(paths: Sequence[Path]) -> list[Trained]:
    """The SAEs that paths name, by layer and name.

    Raises:
        ValueError: one is not finished or not evaluated, or two have the same subfolder.
    """
    folders = [
        folder
        for path in paths
        for folder in (sorted((path / "saes").glob("layer*/*")) if (path / "saes").is_dir() else [path])
    ]
    if not folders:
        raise ValueError("no SAE to share; name the folder of one, or results/PROFILE for all SAEs of a profile")
    found: dict[str, Trained] = {}
    for folder in folders:
        trained = trained_in(folder)
        if trained.name in found:
            raise ValueError(
                f"{folder}: {found[trained.name].sae} has the same name, {trained.name}; share one of them"
            )
        found[trained.name] = trained
    return sorted(found.values(), key=lambda trained: (int(trained.name.split("/")[0][5:]), trained.name))


def trained_in(folder: Path) -> Trained:
    """The files of one SAE; errors as of `find_trained`."""
    folder = folder.absolute()
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder}: not a finished SAE, it has no config.json; finish its training (`make reproduce`, `tsae train`)"
        )
    name = f"{folder.parent.name}/{folder.name}"
    if not SUBFOLDER.fullmatch(name):
        raise ValueError(
            f"{folder}: not the folder of an SAE in a profile's results (results/PROFILE/saes/layerL/NAME)"
        )
    results = folder.parent.parent.parent
    metrics, features = (results / path.format(job=name) for path in (layout.MEASUREMENTS, layout.FEATURES))
    for path in (metrics, features):
        if not path.is_file():
            raise ValueError(
                f"{folder}: not evaluated, {path} is missing; evaluate it (`make reproduce`, `tsae evaluate`)"
            )
    return Trained(folder, metrics, features, name)


def put_folder(temporary: Path, folder: Path) -> None:
    """Rename a complete folder to `folder`, in place of what is there."""
    before = folder.with_name(f".{folder.name}.before")
    if folder.exists():
        folder.replace(before)
    try:
        temporary.replace(folder)
    except OSError:
        if before.exists():
            before.replace(folder)
        raise
    shutil.rmtree(before, ignore_errors=True)


def check_free(folder: Path, overwrite: bool) -> None:
    """See that a folder can be written.

    Raises:
        ValueError: there is something, and it may not be replaced or no `push` wrote it.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder}: a file; name a folder")
    entries = sorted(path.name for path in folder.iterdir())
    if entries and not overwrite:
        raise ValueError(f"{folder}: not empty; give --overwrite to replace it")
    if foreign := [name for name in entries if name != CARD and not re.fullmatch(r"layer\d+", name)]:
        raise ValueError(f"{folder}: holds {foreign[0]}, which `push` does not write; name another folder")


def _write_sae(trained: Trained, folder: Path, base_model: str | None) -> Shared:
    sae = load(trained.sae)
    if "failed" in sae.metadata:
        raise ValueError(
            f"{trained.sae}: its training failed at step {sae.metadata['failed']['step']}; share another SAE"
        )
    rows: list[dict[str, Any]] = json.loads(read_text(trained.metrics))
    in_saelens = inexpressible(sae) is None
    folder.mkdir(parents=True)
    if in_saelens:
        write_saelens(sae, folder, base_model)
    for path in [*(trained.sae / name for name in PULLED[:3]), trained.metrics]:
        if path.is_file():
            check(path)
            shutil.copyfile(path, folder / ("metrics.json" if path == trained.metrics else path.name))
    save_tensors(folder / "sparsity.safetensors", {"sparsity": _log_rates(trained.features, sae.n_features)})
    for path in sorted(folder.iterdir()):
        if path.name[0] != ".":
            record(path)
    return Shared(trained.name, sae.metadata, sae.W_lookup is not None, in_saelens, rows)


def _log_rates(features: Path, n_features: int) -> torch.Tensor:
    """(F,) float32, log10 of the share of held-out tokens that a feature fires on."""
    check(features)
    rates = pd.read_parquet(features, columns=["firing_rate"])["firing_rate"].to_numpy()
    if len(rates) != n_features:
        raise ValueError(f"{features}: {len(rates)} features, and the SAE has {n_features}; evaluate it again")
    return torch.from_numpy(rates + LEAST_RATE).log10().float()


def check_records(folder: Path) -> None:
    """Compare a pulled SAE with the sha256 that was recorded when it was written.

    Raises:
        ValueError: a file is missing, has no record or differs from it.
    """
    for name in PULLED:
        path = folder / name
        if not path.is_file():
            if name == "history.csv":
                continue
            raise ValueError(f"{path}: no such file, so {folder} holds no SAE that `push` wrote")
        if not record_of(path).is_file():
            raise ValueError(f"{path}: its sha256 {record_of(path).name} is missing, so it cannot be verified")
        try:
            check(path)
        except ValueError:
            raise ValueError(f"{path}: damaged, its sha256 is not the recorded one; push or pull it again") from None
