"""Columns inside a page."""

import json
from typing import Any

import numpy as np
import pytest
from fixtures.explored import read_block

from tsae.explore.blocks import encode, json_in_html, rounded, smallest


def test_columns_come_back() -> None:
    columns: dict[str, Any] = {
        "bytes": np.array([1, 255, 0], np.uint8),
        "numbers": np.array([[-1, 5], [70_000, 2]], np.int32),
        "floats": np.array([0.5, -2.0, np.nan, 0.0], np.float32),
        "texts": ["", "</script>", "\u2028\0\ufffd", "مرحبا", "😀"],
        "last": np.array([300], np.uint16),
    }
    block = encode(columns)
    found = read_block(block.columns, block.text)
    assert list(found) == list(columns) and found["texts"] == columns["texts"]
    for name in ("bytes", "numbers", "floats", "last"):
        np.testing.assert_array_equal(found[name], columns[name].ravel())
    assert encode(columns) == block


def test_floats_keep_three_digits() -> None:
    values = np.array([1 / 3, 1e-30, 123456.789, -7.77777, np.inf, 3.4e38], np.float32)
    np.testing.assert_allclose(rounded(values), values, rtol=3e-4)
    assert not (rounded(values).view(np.uint32)[:4] & 0xFFF).any()


def test_wide_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="activations: a page holds no numbers of the type float64"):
        encode({"activations": np.zeros(2)})
    assert [smallest(np.zeros(1), most).dtype.itemsize for most in (255, 256, 65536)] == [1, 2, 4]


def test_json_does_not_end_its_script() -> None:
    value = {"run": "</script><!--\u2028\u2029 &amp;", "b": 'q"'}
    text = json_in_html(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_in_html(float("nan"))
