"""The pictures of benchmarks, from made-up files in their format."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from fixtures import ROOT


def contender(name: str, ratio: float) -> dict[str, Any]:
    return {"contender": name, "ms": 10 * ratio, "ratio": ratio, "ratio_low": ratio - 0.1, "ratio_high": ratio + 0.1}


def test_pictures_are_drawn_from_the_files_of_benchmarks(tmp_path: Path) -> None:
    shape = {"n_tokens": 512, "d_model": 8, "n_features": 64, "k": 4}
    rows = [
        {"axis": axis, **shape, axis: size, "contender": name, "ms": ms * size}
        for axis in ("n_tokens", "n_features", "k")
        for size in (8, 16)
        for name, ms in (("encoder product", 1.0), ("ours", 2.0), ("sparsify, fused Adam", 3.0))
    ]
    contenders = [contender("encoder product", 1), contender("SAELens", 7.2), contender("ours", 0.64)]
    contenders.append({"contender": "dictionary_learning", "error": "ImportError: none"})
    other = {"shape": shape | {"k": 2}, "contenders": [contender("ours", 1.9)]}
    (tmp_path / "growth.json").write_text(json.dumps({"rows": rows}))
    (tmp_path / "training_step.json").write_text(
        json.dumps({"shapes": [{"shape": shape, "contenders": contenders}, other]})
    )
    command = [sys.executable, str(ROOT / "benchmarks/pictures.py"), "--output", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT)
    growth, peers = (
        re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / f"{name}.svg").read_text()) for name in ("growth", "peers")
    )
    # Contenders that were not measured are left out, and the others named beside their lines.
    assert {"ours", "sparsify, fused Adam", "encoder product"} <= set(growth)
    assert not {"dense PyTorch", "SAELens, sparse", "95% interval"} & set(growth)
    names = [text for text in peers if text in ("ours", "SAELens", "dictionary_learning", "encoder product")]
    assert names == ["ours", "SAELens", "dictionary_learning"]  # the fastest first, what failed last
    assert [text for text in peers if re.fullmatch(r"\d\.\d\d", text)] == ["0.64", "7.20", "1.90"]
    assert [text.strip() for text in peers].count("failed") == 1
    assert [text.strip() for text in peers].count("not measured") == 2
    assert {"a", "b", "c"} <= set(growth) and {"a", "b"} <= set(peers)
