"""What the documents say of the configuration is what the code says."""

from pathlib import Path

import fill

ROOT = Path(__file__).parent.parent


def test_the_table_of_keys_is_up_to_date(tmp_path: Path) -> None:
    text = (ROOT / "config/README.md").read_text()
    copy = tmp_path / "README.md"
    copy.write_text(text.replace("sweep.<block>[].k", "sweep.k"))
    fill.fill(copy)
    assert copy.read_text() == text, "run `make docs`"
    assert text.count("`sweep.<block>[].k`") == 1
