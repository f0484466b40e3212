"""A stand-in for a GPU: tensors whose numbers are in main memory, but which say that they are on another device.

What PyTorch refuses on a GPU is refused here too: tensors of two devices in one operator, and reading one as an array.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

# Of the devices that PyTorch has names for, one that is no GPU and is known on every machine.
DEVICE = torch.device("meta")
# Tensors on a GPU take indices on the CPU.
INDEXING = {"index", "index_put", "index_put_"}
COPYING = {"_to_copy", "copy_"}


class Elsewhere(Tensor):
    """A tensor on the stand-in device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        made: Elsewhere = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        return made

    def __init__(self, held: Tensor):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})


class StandIn(TorchDispatchMode):
    """While it is entered, `DEVICE` is the stand-in."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _is_there(value: Any) -> bool:
    # torch.tensor([], device=DEVICE) cannot be caught, and holds nothing that would be missing.
    return isinstance(value, Elsewhere) or (isinstance(value, Tensor) and value.is_meta and value.numel() == 0)


def _held(value: Any) -> Any:
    if isinstance(value, Elsewhere):
        return value.held
    return torch.empty(value.shape, dtype=value.dtype) if _is_there(value) else value


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    name = func._schema.name.partition("::")[2]
    if name == "_has_compatible_shallow_copy_type":
        return False  # so that a module makes new parameters of those it moves
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    there = [value for value in tensors if _is_there(value)]
    # A tensor of no dimensions counts as a number, as on a GPU.
    here = [value for value in tensors if not _is_there(value) and value.ndim]
    if there and here and name not in COPYING and not (name in INDEXING and _is_there(args[0])):
        raise RuntimeError(f"{name}: tensors on two devices, of shapes {[tuple(value.shape) for value in tensors]}")
    device = kwargs.get("device")
    goes_there = (
        torch.device(device) == DEVICE if device is not None else _is_there(args[0]) if name in COPYING else there
    )
    held_args, held_kwargs = tree_map(_held, (args, kwargs))
    if device is not None:
        held_kwargs["device"] = torch.device("cpu")
    found = func(*held_args, **held_kwargs)
    if not goes_there:
        return found.clone() if name == "_to_copy" else found
    moved = tree_map(lambda value: Elsewhere(value) if isinstance(value, Tensor) else value, found)
    return return_and_correct_aliasing(func, args, kwargs, moved) if there else moved
