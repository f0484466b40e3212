"""A release without a run: what is refused, how it is cited, and the archive. tests/fixtures/finished.py packs a whole run."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import yaml
from fixtures import ROOT

import tsae
from tsae.profile import config
from tsae.profile.config import to_json
from tsae.release.check import check_sums
from tsae.release.citation import codemeta, read_citation, zenodo
from tsae.release.pack import release, write_archive, write_sums
from tsae.store.manifest import config_sha256

SMOKE = ROOT / "config/smoke.yaml"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the smoke profile would have its results, of a run that says it is finished."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results/smoke"
    folder.mkdir(parents=True)
    settings = json.loads(to_json(config.load(SMOKE), exclude=["compute"]))
    (folder / "manifest.json").write_text(json.dumps({"config": settings, "config_sha256": config_sha256(settings)}))
    (folder / "verified.txt").touch()
    return folder


@pytest.mark.parametrize("missing", ["manifest.json", "verified.txt"])
def test_an_unfinished_run_is_refused(results: Path, missing: str) -> None:
    (results / missing).unlink()
    message = f"results/smoke: not a finished run, as {missing} is missing; run: make reproduce CONFIGFILE={SMOKE}"
    with pytest.raises(ValueError, match=f"^{message}$"):
        release(configfile=SMOKE, project=ROOT)
    assert not (results / "release").exists()


def test_another_configuration_than_that_of_the_run_is_refused(results: Path) -> None:
    settings = yaml.safe_load(SMOKE.read_text())
    settings["training"]["lr"] = 1e-3
    Path("changed.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(
        ValueError, match=r"results/smoke: changed\.yaml has changed since this run; run: make reproduce"
    ):
        release(configfile=Path("changed.yaml"), project=ROOT)


def test_a_source_that_there_is_not_is_refused(results: Path) -> None:
    with pytest.raises(ValueError, match=r"--text book: no source of this profile; its sources are corpus\.txt"):
        release(configfile=SMOKE, text=["book"], project=ROOT)


def test_the_citation_is_of_this_version() -> None:
    citation = read_citation(ROOT / "CITATION.cff")
    assert citation.version == tsae.__version__
    assert citation.licence == "MIT" and (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_a_citation_of_another_version_or_without_a_date_is_refused(tmp_path: Path) -> None:
    text = (ROOT / "CITATION.cff").read_text()
    path = tmp_path / "CITATION.cff"
    path.write_text(text.replace(f"version: {tsae.__version__}", "version: 0.0.9"))
    with pytest.raises(ValueError, match=r"version 0\.0\.9, and the package is"):
        read_citation(path)
    path.write_text(text.replace("date-released", "date"))
    with pytest.raises(ValueError, match=r"CITATION\.cff: date-released is missing; add it"):
        read_citation(path)
    with pytest.raises(ValueError, match=r"no such file; run this in the folder of the project"):
        read_citation(tmp_path / "none/CITATION.cff")


def test_archives_are_told_the_same_as_people(tmp_path: Path) -> None:
    citation = read_citation(ROOT / "CITATION.cff")
    person = {"family-names": "Curie", "given-names": "Marie"}
    citation = citation._replace(authors=[*citation.authors, person], url="https://example.org/tsae")
    deposit, software = zenodo(citation, "title", "about"), codemeta(citation)
    assert [each["name"] for each in deposit["creators"]] == ["the tsae maintainers", "Curie, Marie"]
    assert (deposit["version"], deposit["publication_date"], deposit["license"]) == (
        citation.version,
        citation.date,
        "mit",
    )
    assert (software["version"], software["datePublished"]) == (citation.version, citation.date)
    assert software["license"].endswith("/MIT") and software["codeRepository"] == citation.url
    assert [each["@type"] for each in software["author"]] == ["Organization", "Person"]
    assert "codeRepository" not in codemeta(citation._replace(url=None))
    (link,) = deposit["related_identifiers"]
    assert link["identifier"] == software["referencePublication"][0]["url"] == "https://arxiv.org/abs/2502.17332"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    folder = tmp_path / "a/release"
    for name in ("b.txt", "a/c.txt", ".hidden"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    write_sums(folder)
    return folder


def test_the_same_files_are_the_same_archive(packed: Path, tmp_path: Path) -> None:
    again = tmp_path / "b/release"
    shutil.copytree(packed, again, copy_function=shutil.copyfile)
    (again / "b.txt").chmod(0o600)
    archives = [tmp_path / f"{number}.tar" for number in range(2)]
    for folder, archive in zip((packed, again), archives, strict=True):
        write_archive(folder, archive)
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with tarfile.open(archives[0]) as tar:
        assert tar.getnames() == [f"release/{name}" for name in (".hidden", "SHA256SUMS", "a/c.txt", "b.txt")]
        assert {(member.mtime, member.uid, member.mode) for member in tar} == {(0, 0, 0o644)}


def test_a_file_that_is_missing_damaged_or_too_many_is_named(packed: Path) -> None:
    assert check_sums(packed) == 3
    (packed / "b.txt").write_text("other")
    (packed / "a/c.txt").rename(packed / "a/d.txt")
    message = r"a/c\.txt is missing; a/d\.txt is not in SHA256SUMS; b\.txt is damaged; get the release again"
    with pytest.raises(ValueError, match=message):
        check_sums(packed)
    with pytest.raises(ValueError, match="no such file; name the folder of an unpacked release"):
        check_sums(packed / "a")
