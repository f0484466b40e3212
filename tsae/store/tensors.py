"""Tensors in safetensors files, written whole and checked before they are read."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from tsae.store.files import NotOursError, check, replacing

if TYPE_CHECKING:
    import numpy as np
    import torch

METADATA_KEY = "tsae"
COPIED_BYTES = 1 << 24  # at a time


def save_tensors(path: Path, tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, Any] | None = None) -> None:
    """Write a complete safetensors file, or nothing. Tensors may be on any device; metadata is stored as JSON.

    Metadata has one key, because safetensors writes several keys in an order that changes between runs.
    """
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
            temporary,
            {METADATA_KEY: json.dumps(metadata)} if metadata else None,
        )


class Column(NamedTuple):
    """The numbers of a tensor, in a file of their own."""

    file: IO[bytes]
    dtype: str
    """As safetensors names it."""
    shape: tuple[int, ...]


def save_columns(path: Path, columns: Mapping[str, Column], metadata: Mapping[str, Any]) -> None:
    """Write the file that `save_tensors` would write of these tensors, all of one dtype, without having them in memory.

    The format is that of https://huggingface.co/docs/safetensors: the length of a header, the header, and the tensors.
    """
    header: dict[str, Any] = {"__metadata__": {METADATA_KEY: json.dumps(metadata)}}
    end = 0
    for name, column in sorted(columns.items()):
        start, end = end, end + column.file.seek(0, os.SEEK_END)
        header[name] = {"dtype": column.dtype, "shape": column.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, column in sorted(columns.items()):
            column.file.seek(0)
            shutil.copyfileobj(column.file, file, COPIED_BYTES)


def load_tensors(path: Path, checked: bool = True) -> dict[str, "torch.Tensor"]:
    """Read every tensor of a safetensors file; large ones are memory-mapped. Without `checked` the caller has checked the file.

    Raises:
        ValueError: the file is missing, damaged, truncated or not safetensors.
    """
    if checked:
        check(path)
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def load_rows(path: Path, names: Sequence[str], rows: slice) -> "list[np.ndarray]":
    """Read some rows of tensors whose file has been checked. They are copies: nothing of the file stays in memory.

    Raises:
        ValueError: the file is missing or not safetensors.
    """
    with _opened(path, "np") as file:
        return [file.get_slice(name)[rows] for name in names]


@contextmanager
def _opened(path: Path, framework: str = "pt") -> Iterator[Any]:
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error


def load_as(
    path: Path, expected: "Mapping[str, tuple[tuple[int | None, ...], torch.dtype]]"
) -> dict[str, "torch.Tensor"]:
    """Read a safetensors file that must hold exactly these tensors.

    Args:
        path: the file.
        expected: name -> shape and dtype; None in a shape is any length but 0.

    Raises:
        ValueError: as `load_tensors`, or it holds other tensors.
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
        raise NotOursError(f"{path}: holds {_described(found)} instead of {_described(expected)}")
    return tensors


def _described(tensors: "Mapping[str, tuple[tuple[int | None, ...], torch.dtype]]") -> str:
    """Shapes and dtypes as text: `W_enc (128, n) float32`, where n is any length."""
    words = [
        f"{name} ({', '.join('n' if n is None else str(n) for n in shape)}) {str(dtype).removeprefix('torch.')}"
        for name, (shape, dtype) in tensors.items()
    ]
    return ", ".join(words) or "nothing"


def load_metadata(path: Path, checked: bool = True) -> dict[str, Any]:
    """Read the metadata that `save_tensors` stored; without `checked` the tensors are neither read nor checked.

    Raises:
        ValueError: the file is missing, damaged, truncated or not safetensors, or another program wrote its metadata.
    """
    if checked:
        check(path)
    with _opened(path) as file:
        text = (file.metadata() or {}).get(METADATA_KEY, "{}")
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotOursError(f"{path}: its metadata are not this project's ({error})") from None
    if not isinstance(metadata, dict):
        raise NotOursError(f"{path}: its metadata are a {type(metadata).__name__}, not this project's")
    return metadata
