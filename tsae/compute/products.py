"""Products of float32 matrices on a CPU, with the library that is faster there.

PyTorch multiplies with MKL, which uses its AVX-512 kernels only on Intel's processors. On AMD's it has half the speed
of oneDNN, which every x86 build of PyTorch contains. For float32 PyTorch calls oneDNN only through an operator of its
compiler. `benchmarks/kernels.py` times both.
"""

import torch
from llvmlite.binding import get_host_cpu_name
from torch import Tensor
from torch.nn.functional import linear

ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and get_host_cpu_name().startswith("znver")
)


def onednn(x: Tensor, W: Tensor, bias: Tensor | None = None) -> Tensor:
    """`product` with oneDNN, for float32 on a CPU that it supports."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, W, bias, "none", [], "")
    return out


def product(x: Tensor, W: Tensor, bias: Tensor | None = None) -> Tensor:
    """Product x W^T + bias (..., F) without gradient, from x (..., d), W (F, d) and bias (F,)."""
    if ONEDNN and x.is_cpu and x.dtype == W.dtype == torch.float32:
        return onednn(x, W, bias)
    return linear(x, W, bias)
