"""Checkpoints: the parameters as trained, and the scale, which `load` folds in."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsae.profile.point import Point
from tsae.sae.architectures import make_architecture
from tsae.sae.sae import SAE, TABLES
from tsae.store.files import read_text, write_json
from tsae.store.tensors import load_tensors, save_tensors

COUNTS = ("last_fired", "bigrams")  # the tensors of whole numbers


def save(
    folder: Path,
    sae: SAE,
    metadata: dict[str, Any],
    last_fired: Tensor | None,
    table_dtype: torch.dtype = torch.float32,
) -> None:
    """Write a checkpoint: `sae.safetensors`, then `config.json`.

    Args:
        folder: where to write.
        sae: the SAE in the units that it was trained in.
        metadata: how it was made; must hold `scale` and `point`.
        last_fired: (F,) int64, training tokens seen when each feature last fired, -1 if it never did; None if unknown, because
            the SAE was trained elsewhere.
        table_dtype: how tables are stored; half precision halves checkpoints that are only evaluated.
    """
    tensors = dict(sae.state_dict()) | ({} if last_fired is None else {"last_fired": last_fired})
    for table in TABLES & tensors.keys():
        tensors[table] = tensors[table].to(table_dtype)
    save_tensors(folder / "sae.safetensors", tensors)
    write_json(folder / "config.json", metadata)


def name_of_step(step: int) -> str:
    """Folder of a checkpoint that training leaves on the way."""
    return f"step{step:08d}"


def load(folder: str | Path) -> SAE:
    """Load a trained SAE in units of raw residuals; its `metadata` says how it was made.

    Residuals, activations, biases and token-biases are multiplied by the scale; W_enc and W_dec stay. The centre is folded in first.

    Raises:
        ValueError: a file is missing or damaged, or the tensors do not fit together; the message names the file.
    """
    path = Path(folder) / "config.json"
    try:
        metadata = json.loads(read_text(path))
        scale, point = float(metadata["scale"]), Point.model_validate(metadata["point"])
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file, so {folder} holds no SAE") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: not the description of an SAE ({error!r})") from None
    if not 0 < scale < math.inf:
        raise ValueError(f"{path}: not the description of an SAE (scale is {scale})")
    tensors = _load_parameters(Path(folder) / "sae.safetensors", point)
    tensors.pop("last_fired", None)
    sae = SAE(
        point,
        *(tensors[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")),
        *(
            tensors[name].float() if name in tensors else None
            for name in ("W_lookup", "unigram_directions", "mean", "centre")
        ),
    )
    sae.bigrams = tensors.get("bigrams")
    sae.load_state_dict(tensors)
    sae.requires_grad_(False)
    sae.fold_centre_()
    for part in (sae.b_enc, sae.b_dec, sae.W_lookup, sae.mean):
        if part is not None:
            part.mul_(scale)
    sae.activation.rescale_(scale)
    sae.metadata = metadata
    return sae


def check_fits(sae: SAE, folder: Path, d_model: int, vocab_size: int) -> None:
    """Check that an SAE, loaded from `folder`, fits residuals of this width and a model of this vocabulary.

    Raises:
        ValueError: it does not.
    """
    if len(sae.b_dec) != d_model:
        raise ValueError(
            f"{folder}: an SAE of width {len(sae.b_dec)}, and residuals of width {d_model}; is it of another model?"
        )
    for table in (sae.token_table, sae.unigram_directions):
        if table is not None and len(table) != vocab_size:
            raise ValueError(
                f"{folder}: a table of {len(table)} tokens, and a model of {vocab_size}; is it of another model?"
            )


def _load_parameters(path: Path, point: Point) -> dict[str, Tensor]:
    tensors = load_tensors(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(shapes.get("W_enc", ())) != 2:
        raise ValueError(f"{path}: not the parameters of an SAE; it holds {shapes}, and no W_enc of two dimensions")
    n_features, d_model = shapes["W_enc"]
    expected = {
        "W_enc": (n_features, d_model),
        "W_dec": (n_features, d_model),
        "b_enc": (n_features,),
        "b_dec": (d_model,),
    } | ({"last_fired": (n_features,)} if "last_fired" in shapes else {})
    with torch.device("meta"):
        own = make_architecture(point, n_features).state_dict()
    expected |= {f"activation.{name}": tuple(tensor.shape) for name, tensor in own.items()}
    # SAEs trained here from a centred start have these; the authors' do not.
    constants = {"centre": point.start == "centred", "mean": point.encoder_input == "without_unigram"}
    expected |= {name: (d_model,) for name, has in constants.items() if has and name in shapes}
    tables = {"W_lookup": point.table != "none", "unigram_directions": point.encoder_input == "without_unigram"}
    expected |= {table: (*shapes.get(table, ())[:1], d_model) for table, has in tables.items() if has}
    if point.rows == "bigram" and point.table != "none":
        expected["bigrams"] = shapes.get("bigrams", ())[:1] or (0,)
    if shapes != expected:
        raise ValueError(
            f"{path}: not the parameters of this {point.architecture} SAE; it holds {shapes} instead of {expected}"
        )
    for name, tensor in tensors.items():
        # Checkpoints during training store tables in half precision.
        half = tensor.dtype == torch.float16 and name in TABLES
        if tensor.dtype != (torch.int64 if name in COUNTS else torch.float32) and not half:
            raise ValueError(f"{path}: not the parameters of an SAE; {name} holds {tensor.dtype}")
    if "bigrams" in tensors and not _are_bigrams(tensors["bigrams"], len(tensors["W_lookup"])):
        raise ValueError(f"{path}: not the parameters of an SAE; bigrams are not ascending keys of rows of its table")
    if not n_features >= (point.k or 1) or not d_model:
        raise ValueError(f"{path}: {n_features} features of width {d_model} are too few for {point.id}")
    return tensors


def _are_bigrams(keys: Tensor, n_rows: int) -> bool:
    vocab_size = n_rows - len(keys)
    return vocab_size > 0 and bool((keys.diff() > 0).all()) and bool(((keys >= 0) & (keys < vocab_size**2)).all())


def load_last_fired(folder: str | Path) -> Tensor:
    """Training tokens seen when each feature last fired, (F,) int64; -1 if it never did.

    Raises:
        ValueError: the checkpoint is damaged; the message names the file.
    """
    path = Path(folder) / "sae.safetensors"
    last_fired = load_tensors(path).get("last_fired")
    if last_fired is None:
        raise ValueError(f"{path}: not the parameters of an SAE; it holds no last_fired")
    return last_fired


def load_centre(folder: str | Path) -> Tensor | None:
    """What training subtracted from the encoder's input (d,), in units of raw residuals; None: b_dec.

    Raises:
        ValueError: the checkpoint is damaged; the message names the file.
    """
    centre = load_tensors(Path(folder) / "sae.safetensors").get("centre")
    return None if centre is None else centre * json.loads(read_text(Path(folder) / "config.json"))["scale"]
