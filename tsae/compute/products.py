"""Products of float32 matrices on a CPU, by the library that is fast there.

PyTorch multiplies by MKL, which keeps its AVX-512 kernels for Intel's processors: on AMD's it runs at half the speed of oneDNN,
which every x86 build of PyTorch holds too. For float32 PyTorch reaches oneDNN only through an operator of its compiler.
`benchmarks/kernels.py` times both.
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
    """`product` by oneDNN; float32 on a CPU that it is built for."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, W, bias, "none", [], "")
    return out


def product(x: Tensor, W: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product x W^T + bias, of which no gradient is wanted: x (..., d), W (F, d) and bias (F,) give (..., F)."""
    if ONEDNN and x.is_cpu and x.dtype == W.dtype == torch.float32:
        return onednn(x, W, bias)
    return linear(x, W, bias)
