"""What the documents say of the configuration is what the code says."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_table_of_keys_is_up_to_date(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("fill", ROOT / "docs/fill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "config/README.md").read_text()
    copy = tmp_path / "README.md"
    copy.write_text(text.replace("sweep.<block>[].k", "sweep.k"))
    module.fill(copy)
    assert copy.read_text() == text, "run `make docs`"
    assert text.count("`sweep.<block>[].k`") == 1
