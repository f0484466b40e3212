"""Tables of what the run measured, SAE by SAE and layer by layer."""

import json

import pandas as pd
from run import (
    BASELINE,
    PROFILE,
    REMAINDER,
    TOKENIZED,
    manifest,
    of_run,
    of_seeds,
    read,
    rows_of,
)

from tsae.measure.prefixes import describe, read_prefixes
from tsae.store import layout
from tsae.store.markdown import markdown_table


def chosen(metric: str, layer: int, subject: str, **where: object) -> pd.DataFrame:
    """Rows of one metric, layer and subject among all measurements."""
    return rows_of(read(layout.METRICS), metric=metric, layer=layer, subject=subject, **where)


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
            {"layer, SAE": f"{layer}, {name}"}
            | cells(rows_of(read(layout.METRICS), layer=layer, subject=subject), columns)
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
    made = manifest()
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    about = made["machine"]
    return (
        f"{about['cores']} cores ({about['architecture']}, {about['system']}), commit "
        f"`{(made['git']['commit'] or 'unknown')[:12]}`, configuration `{made['config_sha256'][:12]}`.\n{versions}."
    )


def residuals() -> str:
    """What was cached and what was left out."""
    index = json.loads(of_run(layout.RESIDUALS).read_bytes())
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
    table = read(layout.TABLE.format(table=block))
    table = table[table["min_count"].isna() | (table["min_count"] == 1)]
    rows = [
        {"SAE": f"`{subject}`", "seeds": of_subject["seed"].nunique()} | cells(of_subject, columns)
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


def prefixes() -> str:
    """Unigram prefixes of the embedded model."""
    return describe(read_prefixes(of_run(layout.PREFIXES)))


BLOCKS = (
    headline,
    tables,
    similarity,
    machine,
    residuals,
    pareto,
    expansion,
    init,
    encoder,
    centre,
    controls,
    prefixes,
)
