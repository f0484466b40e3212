"""Access to a finished run for notebooks: its tables, SAEs, tokens and contexts of features."""

import html
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from tsae.explore.errors import AskedError
from tsae.measure.features import read_features
from tsae.measure.sequences import Sequences, load_sequences
from tsae.measure.table import read_table
from tsae.model.language_model import LanguageModel, load_model
from tsae.profile.sweep import job_id
from tsae.residuals.read import ResidualCache, is_kept, open_residuals
from tsae.residuals.unigrams import load_unigrams
from tsae.sae.checkpoint import load
from tsae.sae.sae import SAE
from tsae.store import layout
from tsae.store.files import check
from tsae.text.documents import read_documents
from tsae.text.tokens import load_tokens

PLACES = (layout.EMBEDDED, ".." / layout.EMBEDDED)


class Sentence(NamedTuple):
    """A text of n tokens, and the model's residuals at each."""

    tokens: Tensor
    """Token ids (n,) int64."""
    residuals: dict[int, Tensor]
    """Layer -> (n, d) float32."""
    kept: dict[int, Tensor]
    """Layer -> (n,) bool: False where the norm is an outlier, which SAEs were not trained on."""


@dataclass(frozen=True)
class Run:
    """The results of one profile; made by `open_run`."""

    results: Path

    def table(self, name: str) -> pd.DataFrame:
        """A table: of a block of the sweep, `baselines` or `curves`.

        Raises:
            AskedError: the run has no such table.
        """
        path = self.results / layout.TABLE.format(table=name)
        if not path.is_file():
            raise AskedError(f"{path} is missing; run: snakemake --cores all {path}")
        return read_table(path)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        # The tokenizer's progress bars ask for a notebook extension.
        warnings.filterwarnings("ignore", message="IProgress not found")
        from tsae.text.tokens import load_tokenizer

        return load_tokenizer(self.results / layout.MODEL)

    @cached_property
    def baseline(self) -> str:
        """Id of the baseline that is compared everywhere: `$TSAE_BASELINE`, else the first one of the headline."""
        return os.environ.get("TSAE_BASELINE") or self._first(False, "baseline")

    @cached_property
    def tokenized(self) -> str:
        """Id of the tokenized SAE that is compared everywhere: `$TSAE_TOKENIZED`, else the first one of the headline."""
        return os.environ.get("TSAE_TOKENIZED") or self._first(True, "tokenized SAE")

    @cached_property
    def headline(self) -> dict[str, str]:
        """Ids of the baseline and the tokenized SAE by role; a run may lack one of them."""
        has_table = {"baseline": False, "tokenized": True}
        there = set(self.table("headline")["table"].ne("none"))
        return {role: getattr(self, role) for role, has in has_table.items() if has in there}

    def _first(self, tokenized: bool, called: str) -> str:
        rows = self.table("headline")
        of_kind = rows[rows["table"].ne("none") == tokenized]
        if of_kind.empty:
            raise ValueError(f"{self.results}: the headline of this run has no {called}")
        return str(of_kind["subject"].iloc[0])

    @cached_property
    def layers(self) -> list[int]:
        """Layers at which SAEs were trained."""
        return sorted(int(layer) for layer in self.table("headline")["layer"].unique())

    @cached_property
    def seed(self) -> int:
        """The lowest seed."""
        return int(self.table("headline")["seed"].min())

    def folder(self, subject: str, layer: int) -> Path:
        """Folder of a trained SAE of the lowest seed; warns if its training failed, for an SAE of the headline."""
        failed = self.table("headline").query("metric == 'failed'")
        failed = failed[(failed["subject"] == subject) & (failed["layer"] == layer) & (failed["seed"] == self.seed)]
        if len(failed):
            warnings.warn(
                f"{subject} (layer {layer}, seed {self.seed}) failed in training at step {failed['value'].iloc[0]:.0f}: "
                "what is shown of it is what was last saved",
                stacklevel=3,
            )
        return self.results / layout.SAE.format(job=job_id(layer, subject, self.seed))

    def sae(self, subject: str, layer: int) -> SAE:
        """A trained SAE of the lowest seed, speaking raw residuals."""
        return load(self.folder(subject, layer))

    def history(self, subject: str, layer: int) -> pd.DataFrame:
        """The training of that SAE: a row per recorded step."""
        path = self.folder(subject, layer) / "history.csv"
        check(path)
        return pd.read_csv(path)

    def features(self, subject: str, layer: int) -> pd.DataFrame:
        """Statistics of the features of that SAE; see `tsae.measure.features.feature_statistics`."""
        self.folder(subject, layer)  # warns if its training failed
        return read_features(self.results / layout.FEATURES.format(job=job_id(layer, subject, self.seed)))

    def unigrams(self, layer: int) -> Tensor:
        """Unigram residuals (V, d)."""
        return load_unigrams(self.results / layout.UNIGRAMS.format(layer=layer))

    def residuals(self, layer: int, split: str = "heldout") -> ResidualCache:
        """The residuals of a split."""
        return open_residuals(self.results / layout.RESIDUALS, split, layer, self.results / layout.MODEL)

    def heldout(self, layer: int) -> Sequences:
        """The held-out sequences."""
        return load_sequences(self.residuals(layer), self.results / layout.HELDOUT_TOKENS)

    def token(self, text: str) -> int:
        """Id of the token with exactly this text, with its leading space if it has one.

        Raises:
            AskedError: the text is not one token; the message says what to write.
        """
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == 1:
            return int(ids[0])
        if not ids:
            raise AskedError("the text of a token is empty; write one, with its leading space if it has one")
        parts = ", ".join(dict.fromkeys(map(self.shown, ids)))
        spaced = f" {text.strip()}"
        as_one = spaced != text and len(self.tokenizer.encode(spaced, add_special_tokens=False)) == 1
        advice = f"write {spaced!r}, with its leading space" if as_one else "check the spelling, or write one of them"
        raise AskedError(f"{text!r} is {len(ids)} tokens of this model, {parts}, and one is needed; {advice}")

    def writable(self, tokens: Iterable[int]) -> list[str]:
        """Texts of those token ids that `token` gives back: bytes of a character are tokens, too, and have none."""
        texts = {int(token): self.text(token) for token in tokens}
        return [
            text for token, text in texts.items() if self.tokenizer.encode(text, add_special_tokens=False) == [token]
        ]

    def sentence(self, text: str, layers: Iterable[int]) -> Sentence:
        """Run the model on a text, as on a sequence: behind BOS, and no further than a sequence is long.

        Raises:
            AskedError: the text is empty.
        """
        split = load_tokens(self.results / layout.HELDOUT_TOKENS)
        ids = self.tokenizer.encode(text, add_special_tokens=False)[: split.n_ctx - 1]
        if not ids:
            raise AskedError("the text is empty; write a sentence")
        residuals = self.model.residuals(torch.tensor([[split.bos, *ids]]), layers)
        at = {layer: rows[0, 1:] for layer, rows in residuals.items()}
        return Sentence(torch.tensor(ids), at, {layer: self._kept(rows, layer) for layer, rows in at.items()})

    def _kept(self, residuals: Tensor, layer: int) -> Tensor:
        cache = self.residuals(layer)
        return is_kept(
            residuals.norm(dim=1), torch.arange(1, len(residuals) + 1), cache.median_norm, cache.max_norm, False
        )

    @cached_property
    def model(self) -> LanguageModel:
        """The language model."""
        made_from = self.residuals(self.layers[0]).made_from
        return load_model(self.results / layout.MODEL, made_from["compatibility_mode"])

    @cached_property
    def documents(self) -> list[tuple[str, int]]:
        """Title of every document, and the index of its source in `corpus.sources`."""
        documents = read_documents(self.results / layout.DOCUMENTS)
        return [(document.title, document.source) for document in documents]

    def text(self, token: int) -> str:
        """Text of a token id."""
        return str(self.tokenizer.decode([int(token)]))

    def shown(self, token: int) -> str:
        """Text of a token id in quotes, which shows spaces and line feeds."""
        return repr(self.text(token))

    def nearest(self, query: Tensor, table: Tensor, n: int = 8) -> pd.DataFrame:
        """The n rows of a table (V, d) most similar to a vector (d,), by cosine similarity."""
        cosine = torch.nn.functional.cosine_similarity(query[None], table, dim=1)
        best = cosine.topk(n)
        texts = [self.shown(token) for token in best.indices.tolist()]
        return pd.DataFrame({"token": texts, "cosine": best.values.numpy().round(3)})


def open_run(results: str | Path | None = None) -> Run:
    """Open the results of a profile.

    Args:
        results: its folder; by default `$TSAE_RESULTS`, else `results/embedded` here or one folder up.

    Raises:
        AskedError: there is no finished run.
    """
    # Text between two dollars is no formula; contexts_html does the same.
    pd.set_option("display.html.use_mathjax", False)
    given = results or os.environ.get("TSAE_RESULTS")
    for place in [given] if given else PLACES:
        if (Path(place) / layout.TABLE.format(table="headline")).is_file():
            return Run(Path(place))
    raise AskedError(f"no finished run in {given or ' or '.join(map(str, PLACES))}; run: make reproduce")


def contexts_html(run: Run, rows: pd.DataFrame, n_contexts: int = 3) -> str:
    """Top contexts of features as HTML, with the active token marked and text of the corpus escaped.

    Each context is a `span` that names its source, so that `stored` can leave it out of what is passed on.

    Args:
        run: the run, for its tokenizer and documents.
        rows: rows of `Run.features`.
        n_contexts: contexts shown per feature.
    """
    parts = []
    for _, row in rows.iterrows():
        share = f"{row['top_token_share']:.0%}" if pd.notna(row["top_token_share"]) else "-"
        parts.append(
            f"<p class='tex2jax_ignore mathjax_ignore'><b>feature {row['feature']}</b>: fires on {row['firing_rate']:.2%} of tokens, {share} of its mass on one token"
        )
        columns = ("context_tokens", "context_active", "context_activations", "context_documents")
        for tokens, active, activation, document in list(zip(*(row[c] for c in columns), strict=True))[:n_contexts]:
            words = [html.escape(run.text(token)).replace("\n", "↵") for token in tokens]
            words[active] = f"<mark>{words[active]}</mark>"
            title, source = run.documents[document]
            about = f"<small>{activation:.1f}, {html.escape(title)}:</small>"
            parts.append(f"<span class='context' data-source='{source}'><br>{about} {''.join(words)}</span>")
        parts.append("</p>")
    return "\n".join(parts)


def features_on(features: pd.DataFrame, tokens: Iterable[int], n: int = 5) -> pd.DataFrame:
    """Features whose top token is one of these ids, by descending share of their mass on it."""
    chosen = features[features["top_token"].isin(list(tokens))]
    return chosen.sort_values("top_token_share", ascending=False, kind="stable").head(n)
