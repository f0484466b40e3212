"""Fill README.md and docs/*.md with the numbers and figures of the last embedded run: `make docs`.

A block between `<!-- begin NAME -->` and `<!-- end NAME -->` is replaced by what the function NAME returns, of this file, of
performance.py, of cost.py, of definitions.py or of licences.py. Verdicts within sentences are those of the ledger: see verdicts.py.
"""

import contextlib
import itertools
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cost
import definitions
import licences
import pandas as pd
import performance
import verdicts
from run import (
    BASELINE,
    FIGURES,
    PROFILE,
    REMAINDER,
    RESULTS,
    ROOT,
    TOKENIZED,
    of_seeds,
    read,
    rows_of,
    write_json,
)

from tsae.claims.report import read_claims
from tsae.measure.prefixes import describe, read_prefixes
from tsae.profile import config
from tsae.profile.figures import FIGURES as NEEDS_OF
from tsae.profile.figures import title_of
from tsae.store.markdown import markdown_table


def chosen(metric: str, layer: int, subject: str, **where: object) -> pd.DataFrame:
    """Rows of one metric, layer and subject among all measurements."""
    return rows_of(read("metrics"), metric=metric, layer=layer, subject=subject, **where)


# A metric, how its number is written, and what it is multiplied by.
NMSE, FVU = ("nmse", "{:.4f}", 1.0), ("fvu", "{:.3f}", 1.0)
CE, DEAD = ("ce_added", "{:.2f}%", 100.0), ("dead_heldout", "{:.1f}%", 100.0)
L0 = ("l0", "{:.1f}", 1.0)
Columns = dict[str, tuple[str, str, float]]


def cells(rows: pd.DataFrame, columns: Columns) -> dict[str, object]:
    """Metrics with their intervals, by label."""
    return {
        label: of_seeds(rows_of(rows, metric=metric), form, scale) for label, (metric, form, scale) in columns.items()
    }


def headline() -> str:
    """Reconstruction of the headline SAEs by layer."""
    recovered = ("ce_recovered_mean", "{:.2f}%", 100.0)
    columns = {"NMSE": NMSE, "FVU": FVU, "CE added": CE, "CE recovered (mean abl.)": recovered, "dead, held-out": DEAD}
    return markdown_table(
        [
            {"layer, SAE": f"{layer}, {name}"} | cells(rows_of(read("metrics"), layer=layer, subject=subject), columns)
            for layer in PROFILE.residuals.layers
            for name, subject in (("baseline", BASELINE), ("tokenized", TOKENIZED), ("remainder", REMAINDER))
        ]
    )


def tables() -> str:
    """What tables say of the last token, by layer."""
    rows = []
    for layer in PROFILE.residuals.layers:
        row: dict[str, object] = {"layer": layer}
        for name, subject in (
            ("token-biases", TOKENIZED),
            ("unigram residuals", "unigram-residuals"),
            ("conditional means", "conditional-means"),
        ):
            row[f"detection, {name}"] = of_seeds(chosen("last_token_detection", layer, subject), "{:.1f}%", 100)
        row["FVU, unigram residuals alone"] = of_seeds(chosen("table_fvu", layer, "unigram-residuals"), "{:.3f}")
        row["FVU, conditional means alone"] = of_seeds(chosen("table_fvu", layer, "conditional-means"), "{:.3f}")
        rows.append(row)
    return markdown_table(rows)


def similarity() -> str:
    """How much features and token-biases resemble tokens, by layer."""
    rows = []
    for layer in PROFILE.residuals.layers:
        row: dict[str, object] = {"layer": layer}
        for name, subject in (("baseline", BASELINE), ("tokenized", TOKENIZED)):
            for target, target_name in (("token_bias", "token-bias"), ("unigram", "unigram residual")):
                label = f"alive {name} features similar to a {target_name} of a token seen in training"
                values = chosen(f"feature_{target}_similar_alive", layer, subject, min_count=1)
                row[label] = of_seeds(values, "{:.1f}%", 100)
        for label, metric in (
            ("token-bias to its unigram residual", "token_bias_unigram_cosine"),
            ("token-bias to the nearest other", "token_bias_neighbour_cosine"),
            ("token-bias to another token's unigram residual", "token_bias_other_cosine"),
            ("centred, token-bias to its unigram residual", "token_bias_unigram_cosine_centred"),
            ("centred, token-bias to the nearest other", "token_bias_neighbour_cosine_centred"),
            ("centred, token-bias to another token's unigram residual", "token_bias_other_cosine_centred"),
        ):
            count = max(PROFILE.evaluation.min_counts)
            row[f"{label} (median, seen ≥ {count} times)"] = of_seeds(
                chosen(metric, layer, TOKENIZED, min_count=count), "{:.3f}"
            )
        rows.append(row)
    transposed = pd.DataFrame(rows).set_index("layer").T.reset_index(names="measure")
    return markdown_table([{str(key): value for key, value in row.items()} for row in transposed.to_dict("records")])


def machine() -> str:
    """What the run was made with."""
    manifest = json.loads((RESULTS / "manifest.json").read_text())
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    about = manifest["machine"]
    return (
        f"{about['cores']} cores ({about['architecture']}, {about['system']}), commit "
        f"`{(manifest['git']['commit'] or 'unknown')[:12]}`, configuration `{manifest['config_sha256'][:12]}`.\n{versions}."
    )


def residuals() -> str:
    """What was cached and what was left out."""
    index = json.loads((RESULTS / "residuals/index.json").read_text())
    rows = [
        {
            "layer": layer,
            "median norm": f"{about['median_norm']:.1f}",
            "training tokens kept": about["train"]["kept"],
            "outliers left out, training": about["train"]["outliers"],
            "held-out tokens kept": about["heldout"]["kept"],
            "outliers left out, held-out": about["heldout"]["outliers"],
        }
        for layer, about in index["layers"].items()
    ]
    return markdown_table(rows)


def sweep(block: str, columns: Columns) -> str:
    """A row per SAE of a block of the sweep: its id, and metrics with their intervals."""
    table = read(f"tables/{block}")
    table = table[table["min_count"].isna() | (table["min_count"] == 1)]
    rows = [
        {"SAE": f"`{subject}`"} | cells(of_subject, columns)
        for subject, of_subject in table.groupby("subject", sort=False)
    ]
    layers = sorted(int(layer) for layer in table["layer"].unique())
    return f"Layer {', '.join(map(str, layers))}.\n\n{markdown_table(rows)}"


def pareto() -> str:
    """Every point of the Pareto sweep."""
    return sweep("pareto", {"L0": L0, "NMSE": NMSE, "CE added": CE, "dead, held-out": DEAD})


def expansion() -> str:
    """Every point of the expansion sweep."""
    similar = ("feature_token_bias_similar", "{:.1f}%", 100.0)
    return sweep(
        "expansion", {"NMSE": NMSE, "CE added": CE, "dead, held-out": DEAD, "features similar to a token-bias": similar}
    )


def init() -> str:
    """Every point of the sweep over the table's start."""
    return sweep("init", {"NMSE": NMSE, "CE added": CE, "dead, held-out": DEAD})


def encoder() -> str:
    """Every point of the encoder ablation."""
    columns = {
        "NMSE": NMSE,
        "CE added": CE,
        "phrase coverage": ("phrase_coverage", "{:.3f}", 1.0),
        "of an untrained encoder": ("phrase_coverage_untrained", "{:.3f}", 1.0),
        "recall on tokens of phrases": ("phrase_token_recall", "{:.3f}", 1.0),
        "firings lost": ("phrase_firings_lost", "{:.1f}%", 100.0),
        "moved as far": ("phrase_firings_lost_matched", "{:.1f}%", 100.0),
    }
    return sweep("encoder", columns)


def centre() -> str:
    """Every point of the sweep over what constant is left in the encoder's input."""
    offset = ("encoder_offset_at_start", "{:.3f}", 1.0)
    return sweep("centre", {"offset at the start": offset, "dead, held-out": DEAD, "NMSE": NMSE, "CE added": CE})


def controls() -> str:
    """Every point of the controls: tables that know less, and other learning rates of the table."""
    return sweep("controls", {"NMSE": NMSE, "CE added": CE, "dead, held-out": DEAD})


def ratios() -> str:
    """NMSE and CE added of both tokenized forms over the baseline's, by layer."""
    return by_layer(
        "C1",
        {
            f"{metric}, {form}": f"{metric}, headline SAEs, {form} / baseline"
            for form in ("tokenized", "encoder sees what the table leaves")
            for metric in ("NMSE", "CE added")
        },
    )


def claims() -> str:
    """What `claims.md` says: every claim with its checks."""
    text = (RESULTS / "claims.md").read_text()
    return text[text.index("\n- **reproduced**") :].strip().replace("\n## ", "\n### ")


def claims_summary() -> str:
    """The first table of `claims.md`."""
    lines = (RESULTS / "claims.md").read_text().splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("| claim |"))
    return "\n".join(itertools.takewhile(lambda line: line.startswith("|"), lines[first:]))


def speedup() -> str:
    """Speed-ups by layer: of trainings with schedules of their own, and on one schedule."""
    return by_layer(
        "C2",
        {
            "NMSE, own schedules": "speed-up at equal NMSE, schedules of their own",
            "CE added, own schedules": "speed-up at equal CE added, schedules of their own",
            "NMSE, one schedule": "speed-up to the baseline's NMSE, one schedule",
            "CE added, one schedule": "speed-up to the baseline's CE added, one schedule",
        },
    )


def by_layer(claim: str, columns: dict[str, str]) -> str:
    """What was measured for checks of a claim, with its interval: a row per layer, and a column per check, by label."""
    found = {label: rows_of(run_claims(), id=claim, check=name) for label, name in columns.items()}
    texts = {label: rows.set_index("layer")["text"] for label, rows in found.items()}
    return markdown_table(
        [
            {"layer": layer} | {label: of.get(str(layer), "-") for label, of in texts.items()}
            for layer in PROFILE.residuals.layers
        ]
    )


def run_claims() -> pd.DataFrame:
    """The rows of the run's `claims.csv`."""
    return read_claims(RESULTS / "claims.csv")


def check(claim: str, name: str) -> str:
    """What was measured for a check of the ledger at each layer, with its interval."""
    rows = rows_of(run_claims(), id=claim, check=name)
    return "; ".join(f"{row['text']} at layer {row['layer']}" for _, row in rows.iterrows())


def of_block(block: str, metric: str, subject: str, form: str, scale: float = 1.0, **where: object) -> str:
    """A metric of one subject in a block, with its interval."""
    return of_seeds(rows_of(read(f"tables/{block}"), metric=metric, subject=subject, **where), form, scale)


# What the findings say of claims, and of checks where a claim says less or more.
STATED: tuple[tuple[str, str | None], ...] = (
    ("C1", None),
    ("C1", "NMSE, headline SAEs, encoder sees what the table leaves / baseline"),
    ("C2", None),
    ("C3", None),
    ("C10", "firings lost, own unigram direction - as far along another token's, tokenized"),
    ("C11", None),
)


def findings() -> str:
    """What the page opens with.

    Raises:
        ValueError: a finding says of a claim what this run does not.
    """
    for claim, name in STATED:
        verdicts.require(run_claims(), claim, name)
    smallest, largest = "topk-k32-x2-learned", "topk-k32-x16-none"
    layer = PROFILE.residuals.layers[-1]
    topk, topk_ce, relu = (
        check("C1", f"{of}, tokenized / baseline, equal L0") for of in ("NMSE, TopK", "CE added, TopK", "NMSE, ReLU")
    )
    paper, ours = (
        check("C1", f"NMSE, headline SAEs, {form} / baseline")
        for form in ("tokenized", "encoder sees what the table leaves")
    )
    sooner, one_schedule = (
        check("C2", f"speed-up {of}")
        for of in ("at equal NMSE, schedules of their own", "to the baseline's NMSE, one schedule")
    )
    lost, matched = (
        of_block("encoder", f"phrase_firings_{name}", TOKENIZED, "{:.0f}%", 100) for name in ("lost", "lost_matched")
    )

    def share(metric: str, subject: str, **where: object) -> str:
        return of_block("headline", metric, subject, "{:.1f}%", 100, layer=layer, **where)

    def pointing(subject: str) -> str:
        return share("feature_token_bias_similar_alive", subject, min_count=1)

    def firing(subject: str) -> str:
        return share("simple_unigram", subject, at=PROFILE.simple.threshold)

    def dead(subject: str) -> str:
        return of_block("centre", "dead_heldout", subject, "{:.1f}%", 100)

    found = [
        f"**At equal sparsity a table lowers the error.** NMSE of a tokenized TopK SAE over its baseline's at equal L0: {topk}; CE "
        f"added: {topk_ce}. NMSE of ReLU SAEs: {relu}. ([`pareto`](figures/pareto.png))",
        "**It lowers it further when the encoder sees what the table leaves.** NMSE over the baseline's at k = 32, in the paper's "
        f"form: {paper}. With the token's row taken out of the encoder's input as well: {ours}. "
        "([`reconstruction_by_layer`](figures/reconstruction_by_layer.png))",
        "**A constant in the encoder's input kills features, with a table or without.** With the mean residual left in, "
        f"{dead(f'{BASELINE}-centre0')} of a baseline's features are dead and {dead(f'{TOKENIZED}-centre0')} of a tokenized SAE's. With "
        f"half of it left in: {dead(f'{BASELINE}-centre0.5')} and {dead(f'{TOKENIZED}-centre0.5')}. With all of it taken away: "
        f"{dead(BASELINE)} and {dead(TOKENIZED)}. ([`encoder_offset`](figures/encoder_offset.png))",
        "**A tokenized SAE reconstructs better than a baseline of eight times its features.** With 2 features per dimension its NMSE is "
        f"{of_block('expansion', 'nmse', smallest, '{:.4f}')} in the paper's form and "
        f"{of_block('expansion', 'nmse', f'{smallest}-remainder', '{:.4f}')} with what the table leaves; that of the baseline with 16 is "
        f"{of_block('expansion', 'nmse', largest, '{:.4f}')}. Parameters, the first over the last: "
        f"{check('C3', 'parameters, smallest learned / largest baseline')}; FLOPs per token: "
        f"{check('C3', 'FLOPs per token, smallest learned / largest baseline')}. ([`expansion`](figures/expansion.png))",
        "**A tokenized SAE is as good as its baseline after a fraction of the training, and most so in early layers.** Tokens that the "
        f"baseline needs over those of a tokenized SAE as good in NMSE, each with a whole schedule of its own: {sooner}. To the first "
        f"crossing on one schedule, as the authors count: {one_schedule}. ([`speedup`](figures/speedup.png))",
        f"**Features stop pointing at tokens, but not firing on them.** At layer {layer}, {pointing(BASELINE)} of the baseline's alive "
        f"features point along a token-bias, and {pointing(TOKENIZED)} of the tokenized SAE's. Features with half of their activation "
        f"mass on one token are {firing(BASELINE)} of the baseline's and {firing(TOKENIZED)} of the tokenized SAE's. "
        "([`simple_features`](figures/simple_features.png), [`token_bias_similarity`](figures/token_bias_similarity.png))",
        f"**A feature of a phrase owes part of its firings to the token itself.** Taking the unigram direction out of the input loses {lost} of a "
        f"tokenized SAE's firings on phrases; moving the input as far along another token's direction loses {matched}. "
        "([`encoder_ablation`](figures/encoder_ablation.png))",
    ]
    return "\n".join(f"{number}. {text}" for number, text in enumerate(found, start=1))


def figures() -> str:
    """Every figure, what it shows, and the claims that it speaks for, in the order of these."""

    def order(figure: str) -> tuple[float, str]:
        claims = NEEDS_OF[figure].claims
        return (int(claims[0].removeprefix("C")) if claims else math.inf, figure)

    def link(figure: str) -> str:
        path = f"docs/figures/{figure}.png"
        return f"[`{figure}`]({path})" if (ROOT / path).is_file() else f"`{figure}`"

    rows: list[dict[str, object]] = [
        {"figure": link(name), "what it shows": title_of(name), "claim": ", ".join(NEEDS_OF[name].claims)}
        for name in sorted(NEEDS_OF, key=order)
    ]
    return markdown_table(rows, others="---")


def prefixes() -> str:
    """Unigram prefixes of the embedded model."""
    path = RESULTS / "prefixes.json"
    if not path.is_file():
        raise performance.NotMeasuredError(path.relative_to(ROOT))
    return describe(read_prefixes(path))


def _fields(schema: dict[str, Any], node: dict[str, Any], prefix: str) -> Iterator[dict[str, object]]:
    """Every key below a node of the JSON schema, with its type, default and description."""
    for key, field in node["properties"].items():
        name = f"{prefix}{key}"
        described = field
        if "$ref" in field:
            described = schema["$defs"][field["$ref"].rsplit("/", 1)[-1]]
            if described.get("type") == "object":
                yield from _fields(schema, described, f"{name}.")
                continue
        if (union := field if "discriminator" in field else field.get("items", {})) and "discriminator" in union:
            for kind, reference in union["discriminator"]["mapping"].items():
                below = schema["$defs"][reference.rsplit("/", 1)[-1]]
                listed = "[]" if union is not field else ""
                yield from _fields(schema, below, f"{name}{listed} ({kind}).")
            continue
        blocks = field.get("additionalProperties", field.get("patternProperties"))
        if blocks and "enum" not in blocks:
            listed = blocks if "items" in blocks else next(iter(blocks.values()))
            below = schema["$defs"][listed["items"]["$ref"].rsplit("/", 1)[-1]]
            yield from _fields(schema, below, f"{name}.<block>[].")
            continue
        default = "required" if key in node.get("required", []) else f"`{json.dumps(field.get('default'))}`"
        if "const" in field:
            default = f"`{field['const']}`"
        yield {
            "key": f"`{name}`",
            "default": default,
            "meaning": field.get("description", described.get("description", "")),
        }
        for option in field.get("anyOf", ()):  # a section that may be null
            if "$ref" in option:
                yield from _fields(schema, schema["$defs"][option["$ref"].rsplit("/", 1)[-1]], f"{name}.")


def configuration() -> str:
    """Every key of the configuration."""
    schema = json.loads(config.json_schema())
    rows = [{key: str(value).replace("|", "\\|") for key, value in row.items()} for row in _fields(schema, schema, "")]
    return markdown_table([dict(row) for row in rows], others="---")


def rulegraph() -> str:
    """The DAG of rules, as mermaid."""
    command = ["snakemake", "--rulegraph", "mermaid-js", "--forceall"]
    # Without it the order of nodes and edges changes from call to call.
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    graph = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment).stdout
    return f"```mermaid\n{graph[graph.index('---') :].strip()}\n```"


def faults() -> str:
    """What the fault suite did."""
    path = ROOT / "results/faults.json"
    if not path.is_file():
        raise performance.NotMeasuredError(path.relative_to(ROOT))
    rows = [
        {
            "fault": row["fault"],
            "tried": row["tried"],
            "detected": "survived" if row["detected"] is None else row["detected"],
            "work lost": row["work_lost"],
            "outputs equal": "" if row["outputs_equal"] is None else row["outputs_equal"],
        }
        for row in json.loads(path.read_text())
    ]
    return markdown_table(rows)


BLOCKS: dict[str, Callable[[], str]] = {
    block.__name__: block
    for block in (
        claims,
        claims_summary,
        configuration,
        encoder,
        centre,
        controls,
        expansion,
        faults,
        figures,
        findings,
        headline,
        init,
        machine,
        pareto,
        prefixes,
        ratios,
        speedup,
        residuals,
        rulegraph,
        similarity,
        tables,
        *performance.BLOCKS,
        *cost.BLOCKS,
        *definitions.BLOCKS,
        *licences.BLOCKS,
    )
}


def fill(path: Path) -> None:
    """Replace every block and every verdict of a file; a block that nothing was measured for stays as it is."""

    def replace(match: re.Match[str]) -> str:
        try:
            return f"{match[1]}\n{BLOCKS[match[2]]()}\n{match[3]}"
        except performance.NotMeasuredError as error:
            print(f"{path.name}: {match[2]} stays as it is: there is no {error}")
            return match[0]

    text = re.sub(r"(<!-- begin (\w+) -->).*?(<!-- end \2 -->)", replace, path.read_text(), flags=re.DOTALL)
    path.write_text(verdicts.fill_verdicts(text, run_claims()) if verdicts.MARKER.search(text) else text)


if __name__ == "__main__":
    (ROOT / "workflow/schemas/config.schema.json").write_text(config.json_schema())
    if (RESULTS / "manifest.json").is_file():
        with contextlib.suppress(performance.NotMeasuredError):
            cost.write_record()
    for profile in cost.profiles():
        profile.write_text(cost.with_plan(profile))
    for document in (
        ROOT / "config/README.md",
        *(ROOT / "docs" / f"{name}.md" for name in ("licences", "methods", "reliability", "scale")),
    ):
        fill(document)
    if not (RESULTS / "manifest.json").is_file():
        raise SystemExit(f"error: no finished run in {RESULTS}; run make reproduce first")
    (ROOT / "docs/figures").mkdir(exist_ok=True)
    for figure in sorted(FIGURES.glob("*.png")):
        shutil.copyfile(figure, ROOT / "docs/figures" / figure.name)
    if (growth := performance.BENCH / "growth.png").is_file():
        shutil.copyfile(growth, ROOT / "docs/figures" / growth.name)
    record = run_claims()[["id", "check", "layer", "measured", "low", "high", "verdict", "claim_verdict"]]
    manifest = json.loads((RESULTS / "manifest.json").read_text())
    write_json(
        ROOT / "docs/record.json",
        {"config_sha256": manifest["config_sha256"], "claims": json.loads(record.to_json(orient="records"))},
    )
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        fill(document)
