"""The command that packs a finished run as a folder and an archive to publish. The same run gives the same bytes."""

import json
import shutil
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from tsae.claims.replicates import paths_of_sums
from tsae.claims.report import read_claims
from tsae.explore.stored import as_html, as_ipynb, names_of_sources, stored
from tsae.measure.table import read_table
from tsae.profile import config
from tsae.profile.config import Config, to_json
from tsae.profile.shown import notebooks_of, shown_of
from tsae.release import contents as place
from tsae.release.citation import Citation, codemeta, read_citation, zenodo
from tsae.release.readme import Contents, describe, readme
from tsae.sae.exchange.repository import find_trained, put_folder, write_repository
from tsae.store import layout
from tsae.store.arguments import Files
from tsae.store.files import check, known_sha256, naming, read_text, replacing, sha256, temporary_of
from tsae.store.manifest import config_sha256

FORMATS = ("svg", "pdf", "png")


def release(
    saes: Files = (),
    configfile: Path = Path("config/config.yaml"),
    text: Sequence[str] = (),
    license: str | None = None,
    project: Path = Path(),
) -> str:
    """Pack a finished run as a folder and an archive to publish.

    Both are in results/PROFILE/release. They hold the numbers, claims, figures, notebooks and some SAEs of the run, how to cite
    them, and the sha256 of every file. `check-release` checks them without the run.

    Args:
        saes: folders of the SAEs to pack, such as results/PROFILE/saes/layer12/topk-k32-x4-learned-s0; by default the
            headline's baseline and tokenized SAE at its middle layer.
        configfile: the profile.
        text: name of a source of the text that may be passed on; notebooks leave out contexts from others.
        license: licence of the SAEs for their model card, such as mit.
        project: folder of CITATION.cff, LICENSE and config/.

    Returns:
        The archive and its sha256.

    Raises:
        ValueError: the run is not finished, or a file differs from what the run wrote.
    """
    profile = config.load(configfile)
    results, figures = layout.results_of(profile.profile), layout.figures_of(profile.profile)
    sources = names_of_sources(profile)
    if unknown := sorted(set(text) - set(sources)):
        raise ValueError(f"--text {unknown[0]}: no source of this profile; its sources are {', '.join(sources)}")
    manifest = _finished(profile, configfile, results)
    citation = read_citation(project / place.CITATION)
    chosen = [*saes] or [results / layout.SAE.format(job=job) for job in _default_saes(profile)]
    names = [trained.name for trained in find_trained(chosen)]
    name = f"tsae-{citation.version}-{profile.profile}"
    folder, archive = (results / layout.RELEASE / each for each in (name, f"{name}.tar"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(folder)
    report = results / place.REPORT
    contents = Contents(
        name,
        profile,
        manifest,
        read_claims(results / layout.CLAIMS),
        profile.drawn(),
        notebooks_of(profile),
        names,
        report.is_file() and set(text) == set(sources),
        sorted(text),
        sorted(set(sources) - set(text)),
        license,
    )
    try:
        with naming(folder):
            temporary.mkdir()
            for source, target in _copied(profile, results, figures, project, contents.report):
                _copy(source, temporary / target, manifest)
            for notebook in contents.notebooks:
                node = stored(results / layout.NOTEBOOK.format(notebook=notebook), sources, text)
                _write(temporary / place.NOTEBOOKS / f"{notebook}.ipynb", as_ipynb(node))
                _write(temporary / place.NOTEBOOKS / f"{notebook}.html", as_html(node))
            write_repository(chosen, temporary / place.SAES, license=license)
            _describe(temporary, contents, citation)
            write_sums(temporary)
            put_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    with replacing(archive) as unfinished:
        write_archive(folder, unfinished)
    return f"{archive}\nsha256 {known_sha256(archive)}, {archive.stat().st_size / 1e6:.0f} MB"


def _finished(profile: Config, configfile: Path, results: Path) -> dict[str, Any]:
    """The manifest of a finished run.

    Raises:
        ValueError: the run is not finished, or the configuration has changed since.
    """
    again = f"run: make reproduce CONFIGFILE={configfile}"
    for name in (layout.MANIFEST, layout.VERIFIED):
        if not (results / name).is_file():
            raise ValueError(f"{results}: not a finished run, as {name} is missing; {again}")
    manifest: dict[str, Any] = json.loads(read_text(results / layout.MANIFEST))
    if manifest["config_sha256"] != config_sha256(json.loads(to_json(profile, exclude=["compute"]))):
        raise ValueError(f"{results}: {configfile} has changed since this run; {again}")
    return manifest


def _default_saes(profile: Config) -> list[str]:
    shown = shown_of(profile)
    if not shown.explored:
        raise ValueError(f"{profile.profile}: no headline SAE; name the folders of the SAEs to pack")
    return [shown.saes[role] for role in shown.explored]


def _copied(
    profile: Config, results: Path, figures: Path, project: Path, report: bool
) -> Iterable[tuple[Path, str | Path]]:
    """Files that are in a release as they are, and where."""
    for name in (
        layout.METRICS,
        layout.CLAIMS,
        layout.CLAIMS_PAGE,
        layout.MANIFEST,
        *([place.REPORT] if report else []),
    ):
        yield results / name, name
    curves = bool(profile.curve_jobs())
    blocks = [*profile.sweep, "baselines", *(["curves"] if curves else []), *(["released"] if profile.released else [])]
    for block in [*blocks, *(["phrases"] if "encoder" in profile.sweep else [])]:
        table = layout.TABLE.format(table=block)
        yield results / table, table
    sums = paths_of_sums(results, read_table(results / layout.METRICS))
    if curves:
        of_curves = read_table(results / layout.TABLE.format(table="curves"))
        sums += paths_of_sums(results, of_curves, layout.CURVE_SUMS)
    for path in dict.fromkeys(sums):
        yield path, path.relative_to(results)
    for figure in profile.drawn():
        for ending in FORMATS:
            yield figures / f"{figure}.{ending}", f"{place.FIGURES}/{figure}.{ending}"
    for name in (place.CITATION, place.LICENCE):
        yield project / name, name
    for name in (place.LEDGER, place.PUBLISHED):
        yield project / "config" / Path(name).name, name


def _copy(source: Path, target: Path, manifest: dict[str, Any]) -> None:
    """Copy a file after comparing it with its record and with the manifest."""
    if not source.is_file():
        raise ValueError(f"{source}: no such file; run again")
    check(source)
    stated = manifest["sha256"].get(str(source))
    if stated is not None and known_sha256(source) != stated:
        raise ValueError(f"{source}: not the file of the manifest; run again")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _describe(folder: Path, contents: Contents, citation: Citation) -> None:
    """Write the README, the configuration and the metadata."""
    _write(folder / place.README, readme(contents, citation))
    _write(folder / place.CONFIG, yaml.safe_dump(contents.manifest["config"], sort_keys=False))
    description = describe(contents)
    deposit = zenodo(citation, f"{citation.title}: {contents.name}", description)
    for name, metadata in ((place.ZENODO, deposit), (place.CODEMETA, codemeta(citation))):
        _write(folder / name, json.dumps(metadata, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def write_sums(folder: Path) -> None:
    """Write the sha256 of every file in a folder, in the format of `sha256sum --check`."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {place.SUMS_FILE}
    _write(folder / place.SUMS_FILE, "".join(f"{sha256(folder / name)}  {name}\n" for name in sorted(names)))


def write_archive(folder: Path, archive: Path) -> None:
    """Write a folder as a tar file: sorted names, no times, no owners, and uncompressed, since weights hardly compress."""
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            member = tarfile.TarInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}")
            member.size = path.stat().st_size
            with path.open("rb") as file:
                tar.addfile(member, file)
