"""The README of a release, filled from the run."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from tsae.claims.tally import tally_sentence
from tsae.explore.stored import name_of
from tsae.profile.config import Config
from tsae.profile.sources import (
    CorpusSource,
    FileCorpus,
    FolderModel,
    HubCorpus,
    HubModel,
    ModelSource,
    PartedGgufModel,
    WheelFile,
)
from tsae.release.citation import Citation
from tsae.release.contents import CITATION, CODEMETA, CONFIG, LICENCE, REPORT, SUMS_FILE, ZENODO
from tsae.store import layout
from tsae.store.markdown import markdown_table


class Contents(NamedTuple):
    """What a README says of its release."""

    name: str
    """Of the folder."""
    config: Config
    manifest: Mapping[str, Any]
    """Of the run."""
    claims: pd.DataFrame
    """The rows of claims.csv."""
    figures: Sequence[str]
    notebooks: Sequence[str]
    saes: Sequence[str]
    """Subfolders."""
    report: bool
    """Whether Snakemake's report is there."""
    quoted: Sequence[str]
    """Names of the sources of text that are quoted."""
    left_out: Sequence[str]
    """Names of those that are not."""
    licence_of_saes: str | None


def describe(contents: Contents) -> str:
    """What the release is, in one sentence."""
    model = describe_source(contents.config.model.source)
    return (
        f"Results of the profile {contents.config.profile} of tsae, a reproduction of the Tokenized SAE paper: metrics, "
        f"claims, figures, notebooks and {len(contents.saes)} sparse autoencoders of {model}."
    )


def readme(contents: Contents, citation: Citation) -> str:
    """The README as Markdown."""
    git, machine = contents.manifest["git"], contents.manifest["machine"]
    commit = f"`{git['commit']}`" if git["commit"] else "unknown, as it did not run in a git repository"
    changed = " with changes that were not committed" if git["modified"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in contents.manifest["versions"].items())
    paragraphs = [
        f"# {contents.name}",
        describe(contents),
        tally_sentence(contents.claims),
        "## The run",
        markdown_table(
            [
                {"what": what, "of this run": value}
                for what, value in {
                    "commit": f"{commit}{changed}",
                    "configuration": f"`{CONFIG}`, sha256 of its settings `{contents.manifest['config_sha256']}`",
                    "language model": describe_source(contents.config.model.source),
                    "text": ", ".join(map(describe_source, contents.config.corpus.sources)),
                    "machine": f"{machine['cores']} cores, {machine['architecture']}, {machine['system']}",
                    "versions": versions,
                }.items()
            ],
            others="---",
        ),
        "## What is here",
        markdown_table(_files(contents), others="---"),
        "## Check it without a run",
        f"```sh\nsha256sum --check --quiet {SUMS_FILE}\npython -m tsae check-release --folder .\n```",
        f"The second command needs tsae {citation.version} and no model, text or GPU. It computes every check of every claim again "
        f"from `tables/` and `sums/`, compares them with `{layout.CLAIMS}`, and loads the SAEs.",
        "## Licence",
        f"{citation.licence}, see [{LICENCE}]({LICENCE}), for the figures and numbers. "
        + (
            f"The SAEs are under the licence {contents.licence_of_saes}. "
            if contents.licence_of_saes
            else "No licence of the SAEs is stated. "
        )
        + "The language model and the text have terms of their own.",
        _of_text(contents),
        f"To cite: [{CITATION}]({CITATION}).",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _files(contents: Contents) -> list[dict[str, str]]:
    about = {
        f"`{layout.METRICS}`": "every measurement with its 95% interval, one a row",
        f"`{layout.CLAIMS}`, `{layout.CLAIMS_PAGE}`": "every check of every claim: published, measured, verdict",
        "`tables/`, `sums/`, `ledger/`": "what the claims are computed from",
        "`figures/`": f"{len(contents.figures)} figures, each as svg, pdf and png",
        "`notebooks/`": f"{len(contents.notebooks)} executed notebooks, each as .ipynb and .html",
        **({f"`{REPORT}`": "Snakemake's report"} if contents.report else {}),
        "`saes/`": f"{', '.join(f'`{name}`' for name in contents.saes)}, with a model card",
        f"`{layout.MANIFEST}`, `{CONFIG}`": "commit, machine, versions, sha256 of results; the whole configuration",
        f"`{CITATION}`, `{ZENODO}`, `{CODEMETA}`": "how to cite, for people and for archives",
    }
    return [{"file": name, "what": what} for name, what in about.items()]


def _of_text(contents: Contents) -> str:
    sentences = []
    if contents.quoted:
        sentences.append(f"Notebooks quote short contexts from {', '.join(contents.quoted)}, with their titles.")
    if contents.left_out:
        sentences.append(
            f"Contexts from {', '.join(contents.left_out)} are left out, and so is a report that quotes them."
        )
    return " ".join(sentences)


def describe_source(source: ModelSource | CorpusSource) -> str:
    """Where a model or text comes from, without folders of this machine."""
    match source:
        case WheelFile():
            return f"{source.filename} of {source.requirement}"
        case PartedGgufModel():
            return f"parts of {', '.join(part.requirement for part in source.parts)}"
        case HubModel() | HubCorpus():
            return f"{source.id} at revision {source.revision[:12]}"
        case FolderModel():
            return f"a model in the local folder {source.path.name}"
        case FileCorpus():
            return f"{name_of(source)} of local files"
