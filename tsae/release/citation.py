"""How a release is cited: CITATION.cff, and the same for Zenodo and for codemeta."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tsae import __version__
from tsae.store.files import read_text

CONTEXT = "https://doi.org/10.5063/schema/codemeta-2.0"


class Citation(NamedTuple):
    """What CITATION.cff says."""

    title: str
    version: str
    date: str
    """`YYYY-MM-DD`."""
    licence: str
    """Of SPDX."""
    authors: list[Mapping[str, str]]
    references: list[Mapping[str, Any]]
    url: str | None


def read_citation(path: Path) -> Citation:
    """Read CITATION.cff.

    Raises:
        ValueError: it is missing, lacks an entry, or is of another version than this package.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run this in the folder of the project")
    data = yaml.safe_load(read_text(path))
    try:
        found = Citation(
            data["title"],
            str(data["version"]),
            datetime.date.fromisoformat(str(data["date-released"])).isoformat(),
            data["license"],
            data["authors"],
            data.get("references", []),
            data.get("repository-code") or data.get("url"),
        )
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]} is missing; add it") from None
    if found.version != __version__:
        raise ValueError(f"{path}: version {found.version}, and the package is {__version__}; make them equal")
    return found


def zenodo(citation: Citation, title: str, description: str) -> dict[str, Any]:
    """The content of `.zenodo.json`, the metadata of a deposit at Zenodo."""
    links = [reference["url"] for reference in citation.references if "url" in reference]
    return {
        "title": title,
        "upload_type": "dataset",
        "description": description,
        "version": citation.version,
        "publication_date": citation.date,
        "license": citation.licence.lower(),
        "creators": [{"name": _name(author)} for author in citation.authors],
        "related_identifiers": [{"identifier": link, "relation": "references"} for link in links],
    }


def codemeta(citation: Citation) -> dict[str, Any]:
    """The content of `codemeta.json`, which describes the software."""
    return {
        "@context": CONTEXT,
        "@type": "SoftwareSourceCode",
        "name": citation.title,
        "version": citation.version,
        "datePublished": citation.date,
        "license": f"https://spdx.org/licenses/{citation.licence}",
        **({"codeRepository": citation.url} if citation.url else {}),
        "programmingLanguage": "Python",
        "author": [_person(author) for author in citation.authors],
        "referencePublication": [
            {
                "@type": "ScholarlyArticle",
                "name": reference["title"],
                **({"url": reference["url"]} if "url" in reference else {}),
            }
            for reference in citation.references
        ],
    }


def _name(author: Mapping[str, str]) -> str:
    return author["name"] if "name" in author else f"{author['family-names']}, {author['given-names']}"


def _person(author: Mapping[str, str]) -> dict[str, str]:
    if "name" in author:
        return {"@type": "Organization", "name": author["name"]}
    return {"@type": "Person", "familyName": author["family-names"], "givenName": author["given-names"]}
