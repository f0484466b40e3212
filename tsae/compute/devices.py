"""The device of a process: the CPU, or one GPU that no other process of the user has claimed."""

import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tsae.store.locks import lock_one

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger(__name__)

# The device of a stage, which its command claims. On a Float32Device matrix products are always in full float32.
Device = Annotated["torch.device | str", "TF32 or float32"]
Float32Device = Annotated["torch.device | str", "float32"]


def claim(n_gpus: int, tf32: bool = False) -> "torch.device":
    """Claim a device until this process ends, and set PyTorch up for it.

    On a GPU PyTorch uses deterministic operators where it has them.

    Args:
        n_gpus: 0 for the CPU, 1 for a visible GPU; waits while other processes of this user have claimed all of them.
        tf32: whether matrix products on the GPU may round float32 factors to TF32, a mantissa of 10 bits.

    Raises:
        ValueError: PyTorch sees no GPU, or more than one GPU is asked for.
    """
    import torch

    if n_gpus == 0:
        return torch.device("cpu")
    if n_gpus != 1:
        raise ValueError(f"--gpus {n_gpus}: a job computes on one GPU or on none")
    # cuBLAS reads this at its first product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not torch.cuda.is_available():
        why = f"PyTorch {torch.__version__} is built for the CPU alone"
        if torch.backends.cuda.is_built():
            why = f"PyTorch sees none here (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')})"
        raise ValueError(f"compute.gpu: true, but {why}; set compute.gpu: false or run with --resources gpu=0")
    uuids = [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]
    index = lock_one(uuids, Path(tempfile.gettempdir()) / f"tsae-gpus-{os.getuid()}")
    torch.cuda.set_device(index)
    # Only warn where there is no deterministic operator: the result is as good, but not reproducible to the bit.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    LOG.info("on %s, %s%s", torch.cuda.get_device_name(index), uuids[index], ", in TF32" if tf32 else "")
    return torch.device("cuda", index)


def describe(device: "torch.device | str") -> dict[str, Any]:
    """The GPU, as the description of an SAE states it; empty for a CPU."""
    import torch

    if torch.device(device).type != "cuda":
        return {}
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return {"gpu": {"name": torch.cuda.get_device_name(device), "tf32": tf32}}
