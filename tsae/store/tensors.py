"""Tensors in safetensors files: written whole, read only if they are what was written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    import torch
from tsae.store.files import NotOursError, check, replacing

METADATA_KEY = "tsae"


def save_tensors(path: Path, tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, Any] | None = None) -> None:
    """Write a whole safetensors file, or nothing, wherever the tensors are; metadata is stored as JSON.

    It goes under one key, since safetensors writes several in an order that changes from run to run.
    """
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
            temporary,
            {METADATA_KEY: json.dumps(metadata)} if metadata else None,
        )


def load_tensors(path: Path) -> dict[str, "torch.Tensor"]:
    """Read every tensor of a safetensors file; large ones are memory-mapped.

    Raises:
        ValueError: the file is missing, damaged, truncated or not safetensors.
    """
    check(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error


def load_as(
    path: Path, expected: "Mapping[str, tuple[tuple[int | None, ...], torch.dtype]]"
) -> dict[str, "torch.Tensor"]:
    """Read a safetensors file that must hold certain tensors, and no others.

    Args:
        path: the file.
        expected: name -> shape, where None is any length but 0, and dtype.

    Raises:
        ValueError: as `load_tensors`, or it holds something else.
    """
    tensors = load_tensors(path)
    fits = tensors.keys() == expected.keys() and all(
        tensor.dtype == expected[name][1]
        and tensor.ndim == len(expected[name][0])
        and all(
            length == wanted if wanted is not None else length > 0
            for length, wanted in zip(tensor.shape, expected[name][0], strict=True)
        )
        for name, tensor in tensors.items()
    )
    if not fits:
        found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        raise NotOursError(f"{path}: holds {described(found)} instead of {described(expected)}")
    return tensors


def described(tensors: "Mapping[str, tuple[tuple[int | None, ...], torch.dtype]]") -> str:
    """Shapes and dtypes in words, `W_enc (128, 32) float32`; what may have any length is `n`."""
    return (
        ", ".join(
            f"{name} ({', '.join('n' if length is None else str(length) for length in shape)}) {str(dtype).removeprefix('torch.')}"
            for name, (shape, dtype) in tensors.items()
        )
        or "nothing"
    )


def load_metadata(path: Path, checked: bool = True) -> dict[str, Any]:
    """Read the metadata that `save_tensors` stored; unless the whole file is to be checked, nothing else is read.

    Raises:
        ValueError: the file is missing, damaged, truncated, not safetensors, or its metadata are of another program.
    """
    if checked:
        check(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY, "{}")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotOursError(f"{path}: its metadata are not what was written here ({error})") from None
    if not isinstance(metadata, dict):
        raise NotOursError(f"{path}: its metadata are a {type(metadata).__name__}, and not what was written here")
    return metadata
