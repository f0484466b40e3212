"""Columns of numbers as text inside a page: the bytes of typed arrays, deflated, in base64.

The page's script reads a block with `DecompressionStream("deflate")` and one typed array per column. The same columns
give the same text.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

KINDS = {
    "u1": "Uint8Array", "u2": "Uint16Array", "u4": "Uint32Array", "i2": "Int16Array", "i4": "Int32Array", "f4": "Float32Array",
}  # fmt: skip
MANTISSA_DROPPED = 12  # of float32's 23 bits; leaves three significant digits, and compresses


class Block(NamedTuple):
    """Columns in a form that a page can hold."""

    columns: list[dict[str, Any]]
    """Name, name of the typed array and length of each column, in order; that of texts is `JSON`, with its bytes."""
    text: str
    """The columns' little-endian bytes, each padded to a multiple of 4, deflated, in base64."""


def encode(columns: Mapping[str, np.ndarray | Sequence[str]]) -> Block:
    """Encode columns: arrays of at most 32 bits, flattened, with floats rounded to three digits; or lists of texts.

    Raises:
        ValueError: an array has another type.
    """
    described, parts = [], []
    for name, column in columns.items():
        if isinstance(column, np.ndarray):
            kind = column.dtype.str[1:]
            if kind not in KINDS:
                raise ValueError(f"{name}: a page holds no numbers of the type {column.dtype}")
            values = rounded(column) if kind == "f4" else column
            data = np.ascontiguousarray(values, dtype=f"<{kind}").tobytes()
            described.append({"name": name, "type": KINDS[kind], "length": column.size})
        else:
            data = json.dumps(list(column), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
            described.append({"name": name, "type": "JSON", "length": len(data)})
        parts.append(data + bytes(-len(data) % 4))
    return Block(described, base64.b64encode(zlib.compress(b"".join(parts), 9)).decode("ascii"))


def rounded(values: np.ndarray) -> np.ndarray:
    """Floats rounded to 11 significant bits; those that are not finite stay."""
    exact = np.ascontiguousarray(values, dtype=np.float32)
    with np.errstate(all="ignore"):
        bits = exact.view(np.uint32).astype(np.uint64) + (1 << (MANTISSA_DROPPED - 1))
    kept = (bits >> MANTISSA_DROPPED << MANTISSA_DROPPED).astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(exact) & np.isfinite(kept), kept, exact)


def smallest(values: np.ndarray, most: int) -> np.ndarray:
    """Whole numbers from 0 to `most` in the smallest unsigned type that holds them."""
    kind = np.uint8 if most < 1 << 8 else np.uint16 if most < 1 << 16 else np.uint32
    return values.astype(kind)


def json_in_html(value: Any) -> str:
    """JSON that neither ends a script element nor a line of script early."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
