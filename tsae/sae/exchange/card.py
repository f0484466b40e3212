"""The model card of shared SAEs: YAML that the hub reads, a table of what was measured, and how to load them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from tsae.store.declared import declared
from tsae.store.markdown import markdown_table

NO_REPO = "USER/NAME"
# Column -> metric.
COLUMNS = {"L0": "l0", "NMSE": "nmse", "FVU": "fvu", "CE added": "ce_added", "dead": "dead_heldout"}


class Shared(NamedTuple):
    """An SAE of a repository."""

    name: str
    """Its subfolder."""
    metadata: Mapping[str, Any]
    """Its `config.json`."""
    tokenized: bool
    """Whether it has a table."""
    in_saelens: bool
    """Whether SAELens can load it."""
    rows: Sequence[Mapping[str, Any]]
    """Its measurements."""


def card(saes: Sequence[Shared], repo: str | None, base_model: str | None, license: str | None) -> str:
    """The model card as Markdown; arguments as of `write_repository`."""
    base_model = base_model or source_of(saes[0])
    tags = ["sparse-autoencoder"]
    tags += ["saelens"] * any(sae.in_saelens for sae in saes) + ["tokenized-sae"] * any(sae.tokenized for sae in saes)
    header: dict[str, Any] = {"library_name": "tsae", "tags": tags}
    header |= {"base_model": base_model} if base_model else {}
    header |= {"license": license} if license else {}
    definitions = {name: text for metrics in declared("measure", "METRICS").values() for name, text in metrics.items()}
    count = "One sparse autoencoder (SAE)" if len(saes) == 1 else f"{len(saes)} sparse autoencoders (SAEs)"
    paragraphs = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# Sparse autoencoders of {base_model or 'a language model'}",
        f"{count} of residuals, trained and evaluated with `tsae`. A tokenized SAE adds a learned vector for each token, "
        "its token-bias, to the reconstruction ([Tokenized SAEs](https://arxiv.org/abs/2502.17332)).",
        markdown_table([_row(sae) for sae in saes], others="---"),
        "Measured on held-out tokens, with 95% intervals in brackets:",
        "\n".join(f"- {column}: {definitions[metric]}" for column, metric in COLUMNS.items()),
        f"{_about_residuals(saes[0])} `sparsity.safetensors` holds log10 of the share of held-out tokens on which each "
        "feature fires.",
        f"## Use with tsae\n\n{_with_tsae(saes[0], repo or NO_REPO)}",
    ]
    if exported := sorted((sae for sae in saes if sae.in_saelens), key=lambda sae: not sae.tokenized):
        paragraphs.append(f"## Use with SAELens\n\n{_with_saelens(exported[0], repo or NO_REPO)}")
    return "\n\n".join(paragraphs) + "\n"


def source_of(sae: Shared) -> str | None:
    """Hub id of the language model, if the SAE's residuals were cached from one of the hub."""
    source: Mapping[str, Any] = sae.metadata.get("residuals", {}).get("model", {}).get("source", {})
    return source.get("id")


def _row(sae: Shared) -> dict[str, str]:
    trained = sae.metadata.get("tokens_trained")
    return {
        "SAE": f"`{sae.name}`",
        "layer": str(sae.metadata["layer"]),
        "hook point": f"`{sae.metadata['hook_point']}`",
        "tokenized": "yes" if sae.tokenized else "no",
        "tokens trained on": "unknown" if trained is None else f"{trained:,}".replace(",", " "),
        **{column: _shown(sae.rows, metric) for column, metric in COLUMNS.items()},
        "SAELens": "yes" if sae.in_saelens else "no",
    }


def _shown(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """A measurement with three digits and its interval; a dash if it was not measured."""
    row = next((row for row in rows if row["metric"] == metric), None)
    if row is None:
        return "-"
    interval = "" if row["low"] is None else f" [{row['low']:.3g}, {row['high']:.3g}]"
    return f"{row['value']:.3g}{interval}"


def _about_residuals(sae: Shared) -> str:
    made_from = sae.metadata.get("residuals", {})
    sentences = ["The SAEs read and reconstruct residuals in the units of the model."]
    if n_ctx := made_from.get("n_ctx"):
        bos = "included" if made_from.get("include_bos") else "left out"
        sentences.append(
            f"Residuals are of sequences of {n_ctx} tokens that begin with BOS, whose own residual is {bos}."
        )
    if made_from.get("compatibility_mode"):
        sentences.append(
            "The model was loaded in transformer_lens' compatibility mode (layer norms folded, weights centred)."
        )
    return " ".join(sentences)


def _with_tsae(sae: Shared, repo: str) -> str:
    return f"""```python
from tsae.sae import load
from tsae.sae.exchange.hub import pull

sae = load(pull("{repo}/{sae.name}"))
acts = sae.encode(x, tokens)      # x (N, {sae.metadata["d_model"]}): residuals at {sae.metadata["hook_point"]}; tokens (N,): ids
x_hat = sae.decode(acts, tokens)
```"""


def _with_saelens(sae: Shared, repo: str) -> str:
    lines = [
        "```python",
        "from sae_lens import SAE",
        "",
        f'sae = SAE.from_pretrained("{repo}", "{sae.name}")',
        "x_hat = sae.decode(sae.encode(x))",
        "```",
    ]
    if not sae.tokenized:
        return "\n".join(lines)
    lines[1:5] = [
        "from tsae.sae.exchange.tokenized import TokenizedSAE",
        "",
        f'sae = TokenizedSAE.from_pretrained("{repo}", "{sae.name}")',
        "x_hat = sae.decode(sae.encode(x), tokens)",
    ]
    return "SAELens' decoders take no tokens. `TokenizedSAE` wraps one and adds the token-biases:\n\n" + "\n".join(
        lines
    )
