"""Which stages run again after an edit of the package."""

import re
import shutil
from pathlib import Path

import pytest
from fixtures import ROOT

from tsae.store.code import PACKAGE, digest_of, modules_of, path_of

RULE = re.compile(r"(?ms)^rule (\w+):\n(.*?)(?=^(?:use )?rule |\Z)")

# Module -> the rules whose results its edit changes.
LAYER_STAGES = {"ablate", "letter_tokens", "measure_baselines", "evaluate", "measure_curve", "explore"}
SAE_STAGES = {
    "measure_baselines",
    "evaluate",
    "measure_curve",
    "measure_phrases",
    "train",
    "import_released",
    "explore",
}
EDITS = {
    "tsae.text.corpus": {"prepare_documents"},
    "tsae.text.documents": {"prepare_documents", "tokenize", "explore"},
    "tsae.text.tokens": LAYER_STAGES | {"tokenize", "cache_residuals", "unigrams", "ngrams", "find_phrases"},
    "tsae.model.write_model": {"prepare_model"},
    "tsae.residuals.shards": LAYER_STAGES
    | {"cache_residuals", "index_residuals", "ngrams", "conditional_means", "train", "measure_phrases"},
    "tsae.residuals.write_residuals": {"cache_residuals"},
    "tsae.sae.sae": SAE_STAGES,
    "tsae.training.optimizers": {"train"},
    "tsae.training.trainer": {"train"},
    "tsae.measure.definitions": {"measure_baselines", "evaluate", "measure_curve", "measure_claims", "explore"},
    "tsae.measure.letter_tokens": {"letter_tokens", "measure_baselines", "evaluate"},
    "tsae.measure.curves": {"measure_curve"},
    "tsae.claims.ledger": {"measure_claims"},
    "tsae.store.files": set(),
    "tsae.profile.config": set(),
    "tsae.compute.devices": set(),
    "tsae.plan.plan": set(),
    "tsae.commands.options": set(),
}


def stages() -> dict[str, list[str]]:
    """The modules that each rule names, without figures and scripts."""
    found = {}
    for path in sorted((ROOT / "workflow/rules").glob("*.smk")):
        if path.stem != "figures":
            for rule, body in RULE.findall(path.read_text()):
                if named := re.findall(r"code=code\(((?:\"tsae[\w.]+\"(?:, )?)+)\)", body):
                    found[rule] = re.findall(r"[\w.]+", named[0])
    return found


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return shutil.copytree(PACKAGE, tmp_path / "tsae", ignore=shutil.ignore_patterns("__pycache__"))


@pytest.mark.parametrize("module", EDITS)
def test_an_edit_is_one_of_all_stages_that_use_it_and_of_no_others(package: Path, module: str) -> None:
    assert len(stages()) == 23
    before = {rule: digest_of(*named, package=package) for rule, named in stages().items()}
    edited = path_of(module, package)
    edited.write_text(edited.read_text() + "\n# edited\n")
    after = {rule: digest_of(*named, package=package) for rule, named in stages().items()}
    assert {rule for rule in before if before[rule] != after[rule]} == EDITS[module]


def test_shards_and_trainings_are_of_their_own_code(package: Path) -> None:
    # A kept shard stays valid when the code that writes or indexes the cache changes.
    names = {path.stem for path in modules_of("tsae.residuals.shards", package=package)}
    assert names == {"shards", "language_model", "folder", "modules", "products"}


def test_a_new_import_counts_wherever_it_is_written(package: Path) -> None:
    (package / "text/new.py").write_text("from tsae.text import corpus\n")
    edited = package / "training/optimizers.py"
    edited.write_text(edited.read_text() + "\n\ndef late() -> None:\n    import tsae.text.new\n")
    found = {path.relative_to(package).as_posix() for path in modules_of("tsae.training.train", package=package)}
    assert {"text/new.py", "text/corpus.py", "text/wikitext.py"} < found


def test_what_only_the_type_checker_reads_does_not_count(package: Path) -> None:
    (package / "new.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tsae.text.corpus import Position\n"
    )
    assert modules_of("tsae.new", package=package) == [package / "new.py"]


def test_a_package_is_all_that_is_in_its_folder_and_a_script_is_what_it_imports(package: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from tsae import phrases\nfrom tsae.measure.counts import EDGES\n")
    found = {path.relative_to(package).as_posix() for path in modules_of(script, package=package)}
    assert "measure/counts.py" in found
    assert {path.relative_to(package).as_posix() for path in (package / "phrases").glob("*.py")} <= found
    assert "script.py" not in found


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"tsae\.training\.nosuch: there is no such module"):
        modules_of("tsae.training.nosuch")
