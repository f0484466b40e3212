"""The ways to compute each sparse part of a training step: those in tsae/compute/kernels.py and the alternatives.

    python benchmarks/kernels.py [--rounds 10] [--threads N] [--output results/bench]

Each result is first compared with that of the first way of its part. Ratios are to the encoder's product, run just before.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measure import arguments_of_steps, compare, describe_machine, in_words, table
from numba import njit, prange
from steps import Shape, products_by
from torch import Tensor

from tsae.compute import kernels, loops, narrow
from tsae.compute.products import onednn, product
from tsae.store.files import write_json

SHAPES = [Shape(4096, 576, 9216, 32), Shape(512, 576, 2304, 32)]
OPTIONS: dict[str, Any] = {"parallel": True, "error_model": "numpy", "nogil": True, "fastmath": {"contract", "reassoc"}}

Way = Callable[[None], Tensor]


@njit(**OPTIONS)
def numba_decode(values: Any, features: Any, k: int, matrix: Any, out: Any) -> None:
    """Sum k weighted rows per token."""
    for token in prange(len(out)):
        row = out[token]
        row[:] = 0
        for slot in range(token * k, token * k + k):
            weight, other = values[slot], matrix[features[slot]]
            for column in range(len(row)):
                row[column] += weight * other[column]


@njit(**OPTIONS)
def numba_dots(grad: Any, features: Any, k: int, matrix: Any, out: Any) -> None:
    """Inner product of every active feature's row and its token's gradient."""
    for token in prange(len(grad)):
        row = grad[token]
        for slot in range(token * k, token * k + k):
            other, total = matrix[features[slot]], np.float32(0)
            for column in range(len(row)):
                total += row[column] * other[column]
            out[slot] = total


@njit(**OPTIONS)
def numba_gradient(weights: Any, slots: Any, offsets: Any, k: int, matrix: Any, out: Any) -> None:
    """Sum the weighted rows of tokens per feature."""
    for feature in prange(len(out)):
        row = out[feature]
        row[:] = 0
        end = offsets[feature + 1] if feature + 1 < len(offsets) else len(slots)
        for place in range(offsets[feature], end):
            slot = slots[place]
            weight, other = weights[slot], matrix[slot // k]
            for column in range(len(row)):
                row[column] += weight * other[column]


def ways(shape: Shape) -> dict[str, dict[str, Way]]:
    """Part of the step -> name of a way -> function; the project uses the first."""
    n_tokens, d_model, n_features, k = shape
    generator = torch.Generator().manual_seed(0)
    x, grad, W, bias = (
        torch.randn(size, generator=generator)
        for size in ((n_tokens, d_model), (n_tokens, d_model), (n_features, d_model), (n_features,))
    )
    products = x @ W.T
    pre = products + bias
    threads = torch.get_num_threads()
    values, found = pre.topk(k, dim=-1, sorted=False)
    values, features = values.flatten().contiguous(), found.flatten().contiguous()
    offsets = torch.arange(0, n_tokens * k, k)
    indices = kernels.Indices(features, offsets, n_features)
    rows, (slots, starts, _) = indices.rows, indices.groups
    by_token = torch.sparse_csr_tensor(torch.arange(0, n_tokens * k + 1, k), features, values, (n_tokens, n_features))
    arrays = {"values": values.numpy(), "features": features.numpy(), "W": W.numpy(), "grad": grad.numpy()}
    out_d, out_m, out_w = (np.empty(size, np.float32) for size in ((n_tokens, d_model), len(features), W.shape))

    def grouped_topk(_: None) -> Tensor:
        """The k groups of features with the largest maxima, then the k largest of their members."""
        size = 12
        groups = pre.view(n_tokens, size, -1).amax(1).topk(k, sorted=False).indices
        members = (groups[:, None] + torch.arange(size)[:, None] * (n_features // size)).view(n_tokens, -1)
        return members.gather(1, pre.gather(1, members).topk(k, sorted=False).indices)

    def settled() -> Tensor:
        chosen = narrow.largest(x, W, bias, k)
        assert chosen is not None
        return chosen[0]

    def gradient_csr(_: None) -> Tensor:
        places = torch.cat([starts, starts.new_tensor([len(slots)])])
        matrix = torch.sparse_csr_tensor(
            places, rows.index_select(0, slots), values.index_select(0, slots), (n_features, n_tokens)
        )
        return matrix @ grad

    def gradient_dense(_: None) -> Tensor:
        return torch.zeros(n_tokens, n_features).scatter_(1, found, values.view(n_tokens, k)).T @ grad

    def numba_decoded(_: None) -> Tensor:
        numba_decode(arrays["values"], arrays["features"], k, arrays["W"], out_d)
        return torch.from_numpy(out_d)

    def numba_dotted(_: None) -> Tensor:
        numba_dots(arrays["grad"], arrays["features"], k, arrays["W"], out_m)
        return torch.from_numpy(out_m)

    def numba_graded(_: None) -> Tensor:
        numba_gradient(arrays["values"], slots.numpy(), starts.numpy(), k, arrays["grad"], out_w)
        return torch.from_numpy(out_w)

    x_int8, W_int8 = ((matrix * 30).clamp(-127, 127).to(torch.int8) for matrix in (x, W))
    x_bf16, W_bf16 = x.bfloat16(), W.bfloat16()
    compiled_decode = torch.compile(
        lambda values, found, W: (values.view(n_tokens, k, 1) * W[found]).sum(1), dynamic=False
    )
    compiled_dots = torch.compile(lambda grad, found, W: (grad[:, None] * W[found]).sum(-1).flatten(), dynamic=False)

    def multiplied(way: Callable[[Tensor, Tensor], Tensor]) -> Way:
        return lambda _: way(x, W)

    return {
        "encoder product": {
            f"as taken here, by {products_by()}": multiplied(product),
            "torch.mm": multiplied(lambda x, W: torch.mm(x, W.t())),
            "oneDNN": multiplied(onednn),
        },
        "k largest": {
            "loops.largest (numba)": lambda _: torch.from_numpy(
                loops.largest(products.numpy(), bias.numpy(), k, threads)
            ),
            "add the bias, then torch.topk": lambda _: (products + bias).topk(k, sorted=False).indices,
            "torch.topk of groups": grouped_topk,
        },
        # Of other numbers than float32, so their results are not compared.
        "product in narrow numbers": {
            "8-bit integers": lambda _: torch._int_mm(x_int8, W_int8.T)[:0],
            "bfloat16": lambda _: (x_bf16 @ W_bf16.T)[:0],
        },
        "encoder product and k largest": {
            "8-bit product, settled in float32 (numba)": lambda _: settled(),
            "float32 product, then loops.largest (numba)": lambda _: torch.from_numpy(
                loops.largest(product(x, W).numpy(), bias.numpy(), k, threads)
            ),
        },
        "group by feature": {
            "loops.group (numba)": lambda _: torch.from_numpy(loops.group(arrays["features"], n_features)[0]),
            "torch.argsort": lambda _: torch.argsort(features, stable=True),
        },
        "decode": {
            "embedding bag": lambda _: kernels.decode(values, indices, W),
            "numba": numba_decoded,
            "CSR product": lambda _: by_token @ W,
            "torch.compile of gather and sum": lambda _: compiled_decode(values, found, W),
            "gather and einsum": lambda _: torch.einsum("nk,nkd->nd", values.view(n_tokens, k), W[found]),
        },
        "gradient of the activations": {
            "embedding bag's backward": lambda _: torch.ops.aten._embedding_bag_per_sample_weights_backward(
                grad, W, features, offsets, rows, 0
            ),
            "numba": numba_dotted,
            "torch.compile of gather and sum": lambda _: compiled_dots(grad, found, W),
            "gather and einsum": lambda _: torch.einsum("nd,nkd->nk", grad, W[found]).flatten(),
        },
        "gradient of a weight, grouping included": {
            "embedding bag": lambda _: kernels._sum_tokens_by_feature(
                grad, values, kernels.Indices(features, offsets, n_features)
            ),
            "numba, grouping not included": numba_graded,
            "CSR product, grouping not included": gradient_csr,
            "index_add_": lambda _: torch.zeros_like(W).index_add_(
                0, features, grad.index_select(0, rows) * values[:, None]
            ),
            "dense": gradient_dense,
        },
    }


def check(part: str, found: Tensor, expected: Tensor) -> None:
    """Check that two ways compute the same.

    Raises:
        ValueError: they do not.
    """
    if not found.is_floating_point():
        found, expected = found.view(len(found), -1).sort(-1).values, expected.view(len(expected), -1).sort(-1).values
    if (found - expected).double().norm() > 1e-4 * expected.double().norm():
        raise ValueError(f"{part}: two ways differ")


def measure_shape(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """One row per way; a failed one has its error in place of numbers."""
    x, W = torch.randn(shape.n_tokens, shape.d_model), torch.randn(shape.n_features, shape.d_model)
    rows = []
    for part, of_part in ways(shape).items():
        expected = next(iter(of_part.values()))(None).clone()
        for name, way in of_part.items():
            row: dict[str, Any] = {"part": part, "way": name}
            try:
                check(part, way(None), expected)
                timing = compare({name: way}, lambda _: torch.mm(x, W.t()), [None], rounds, shape.repeats)[name]
                rows.append(row | timing.summary(shape.n_tokens))
            except Exception as error:  # that a machine lacks a way is a result
                rows.append(row | {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"})
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    """The rows of a shape as a table."""
    return table(
        {
            "part of the step": row["part"],
            "way": row["way"],
            "time [ms]": "failed" if "error" in row else f"{row['ms']:.2f}",
            "/ product": row["error"] if "error" in row else f"{row['ratio']:.3f}",
        }
        for row in rows
    )


def main() -> None:
    """Run the comparison."""
    arguments = arguments_of_steps(__doc__).parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message="Sparse")
    machine = describe_machine()
    print(f"{in_words(machine)}; {arguments.rounds} rounds", flush=True)
    measured = []
    for shape in SHAPES:
        rows = measure_shape(shape, arguments.rounds)
        print(f"\n{shape}\n\n{show(rows)}", flush=True)
        measured.append({"shape": shape._asdict(), "ways": rows})
    write_json(arguments.output / "kernels.json", {"machine": machine, "rounds": arguments.rounds, "shapes": measured})


if __name__ == "__main__":
    main()
