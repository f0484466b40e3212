"""One HTML page to explore the features of a run's headline SAEs, without a server or a network.

The page is `page.html` with the styles, scripts and data of the run in it. Data that its first view does not need may
be in files beside it, which are scripts, because a browser does not let a page from a disk read other files.
"""

import base64
import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tsae.explore.blocks import Block, encode, json_in_html
from tsae.explore.collect import Collected, collect
from tsae.explore.run import Run, open_run
from tsae.explore.text import columns_of_text
from tsae.measure.definitions import DEFINITIONS
from tsae.store import layout
from tsae.store.files import remove, write_text

LOG = logging.getLogger(__name__)
HERE = Path(__file__).parent / "assets"
SCRIPTS = ("data", "elements", "charts", "feature", "token", "text", "overview", "search", "page")  # in this order
FEATURES_IN_PART = 4096
TOKENS_IN_PART = 1 << 15
METRICS = ("nmse", "fvu", "ce_added", "l0", "dead_heldout")  # of the first view


def explore(
    results: Path,
    page: Path | None = None,
    layer: int | None = None,
    baseline: str | None = None,
    tokenized: str | None = None,
    parts: Path | None = None,
) -> str:
    """Write a page to explore features in a browser.

    It shows the baseline and the tokenized SAE of the headline at one layer side by side, or the one of them that the
    run has.

    Args:
        results: the results of a finished run, results/PROFILE.
        page: the page; by default RESULTS/explorer.html.
        layer: a layer of the headline; by default the middle one.
        baseline: id of the baseline; by default the headline's first.
        tokenized: id of the tokenized SAE; by default the headline's first.
        parts: a folder in the page's own, for the text and the details of features; by default they are in the page.

    Returns:
        The path of the page.

    Raises:
        ValueError: the run is not finished, has no such layer or SAE, or `parts` is not in the folder of the page.
    """
    run = open_run(results)
    page = page or results / layout.EXPLORER
    if parts is not None and parts.parent.resolve() != page.parent.resolve():
        raise ValueError(f"{parts}: not in {page.parent}, the folder of the page; name a folder there")
    if layer is None:
        layer = run.layers[len(run.layers) // 2]
    if layer not in run.layers:
        raise ValueError(f"layer {layer} has no SAEs; the run has layers {', '.join(map(str, run.layers))}")
    given = {role: subject for role, subject in (("baseline", baseline), ("tokenized", tokenized)) if subject}
    subjects = given if given.keys() == {"baseline", "tokenized"} else run.headline | given
    collected = collect(run, layer, subjects)
    about = describe(run, layer, subjects, collected)
    text, beside = lay_out(about, collected, parts.name if parts is not None else None)
    if parts is not None:
        for path in sorted(parts.glob("*.js")):
            remove(path)
        for name, block in beside.items():
            write_text(parts / f"{name}.js", f'explorerPart("{name}","{block.text}")\n')
    write_text(page, text)
    LOG.info("%s: %.1f MB, layer %d, %s", page, page.stat().st_size / 1e6, layer, " and ".join(subjects.values()))
    return str(page)


def lay_out(about: Mapping[str, Any], collected: Collected, parts: str | None) -> tuple[str, dict[str, Block]]:
    """The page, and the blocks that are beside it.

    Args:
        about: of `describe`.
        collected: what the page tells.
        parts: name of the folder beside the page; None: everything is in the page.
    """
    blocks = dict(blocks_of(collected))
    beside = {name: block for name, block in blocks.items() if parts is not None and is_part(name)}
    about = {**about, "blocks": {name: block.columns for name, block in blocks.items()}, "parts": parts}
    return assemble(about, {name: block for name, block in blocks.items() if name not in beside}), beside


def is_part(name: str) -> bool:
    """Whether a block may be beside the page."""
    return name.startswith(("details-", "text-"))


def describe(run: Run, layer: int, subjects: Mapping[str, str], collected: Collected) -> dict[str, Any]:
    """What the page says of the run, and sizes that its script needs."""
    table = run.table("headline")
    saes = []
    for role, subject in subjects.items():
        rows = table[(table["subject"] == subject) & (table["layer"] == layer) & (table["seed"] == run.seed)]
        rows = rows[rows["at"].isna() & rows["min_count"].isna()]
        values = {row["metric"]: [row["value"], row["low"], row["high"]] for row in rows.to_dict("records")}
        saes.append(
            {
                "role": role,
                "id": subject,
                "features": len(collected.saes[role].columns.overview["firings"]),
                "metrics": {
                    name: [None if np.isnan(value) else float(value) for value in values[name]]
                    for name in METRICS
                    if name in values
                },
            }
        )
    return {
        "run": run.results.resolve().name,
        "layer": layer,
        "seed": run.seed,
        "saes": saes,
        "metrics": {name: DEFINITIONS[name] for name in METRICS},
        "contexts": collected.n_ctx,
        "sequences": collected.n_sequences,
        "kept": int(collected.text["kept"].sum()),
        "vocabulary": collected.n_vocabulary,
        "trained": int(collected.tokens["trained"].sum(dtype=np.int64)),
        "featuresInPart": FEATURES_IN_PART,
        "sequencesInPart": sequences_in_part(collected.n_ctx),
    }


def sequences_in_part(n_ctx: int) -> int:
    """Sequences whose text is in one block."""
    return max(1, TOKENS_IN_PART // n_ctx)


def blocks_of(collected: Collected) -> Iterator[tuple[str, Block]]:
    """The blocks of the page by name, one at a time."""
    yield "words", encode({"texts": collected.texts})
    yield "sequences", encode(collected.text)
    yield "tokens", encode(collected.tokens)
    if collected.neighbours is not None:
        yield "neighbours", encode(collected.neighbours)
    per_part = sequences_in_part(collected.n_ctx)
    for role, sae in collected.saes.items():
        yield f"features-{role}", encode(sae.columns.overview)
        yield f"on-{role}", encode(sae.on_tokens)
        n_features = len(sae.columns.overview["firings"])
        for number, start in enumerate(range(0, n_features, FEATURES_IN_PART)):
            rows = slice(start, min(start + FEATURES_IN_PART, n_features))
            yield f"details-{role}-{number}", encode(details_of(sae.columns.overview, sae.columns.details, rows))
        for number, first in enumerate(range(0, collected.n_sequences, per_part)):
            places = [sequence * collected.n_ctx for sequence in (first, min(first + per_part, collected.n_sequences))]
            yield f"text-{role}-{number}", encode(columns_of_text(sae.parts, n_features, *places))


def details_of(
    overview: Mapping[str, np.ndarray], details: Mapping[str, np.ndarray], rows: slice
) -> dict[str, np.ndarray]:
    """The details of some features. Ragged columns are cut at the ends of their contexts."""
    before, end = (int(overview["context_counts"][:stop].sum(dtype=np.int64)) for stop in (rows.start, rows.stop))
    near = details["near_counts"]
    first, last = (int(near[:stop].sum(dtype=np.int64)) for stop in (before, end))
    ragged = {"near_counts": slice(before, end), "near_tokens": slice(first, last), "near_values": slice(first, last)}
    return {name: column[ragged.get(name, rows)] for name, column in details.items()}


def assemble(about: Mapping[str, Any], blocks: Mapping[str, Block]) -> str:
    """The page with everything in it. Its policy lets no other script run and nothing be fetched."""
    style = (HERE / "page.css").read_text("utf-8")
    scripts = "\n".join((HERE / f"{name}.js").read_text("utf-8") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{scripts}}})();\n'
    sources = {name: f"'sha256-{_digest(text)}'" for name, text in (("style", style), ("script", script))}
    # A page from a disk has no origin that 'self' could stand for.
    beside = " 'self' file:" if about["parts"] else ""
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {sources['style']}; script-src {sources['script']}{beside}"
    )
    data = "\n".join(
        f'<script type="text/plain" id="block-{name}">{block.text}</script>' for name, block in blocks.items()
    )
    filled = {"policy": policy, "style": style, "script": script, "about": json_in_html(about), "data": data}
    page = (HERE / "page.html").read_text("utf-8")
    for name, text in filled.items():
        page = page.replace(f"<!-- {name} -->", text)
    return page


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
