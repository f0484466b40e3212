"""Released SAEs in the workflow."""

import json
from pathlib import Path

import pytest
import yaml
from fixtures import ROOT
from fixtures.authors import truncate, write
from fixtures.workflow import copy_project, planned, snakemake

from tsae.measure.table import read_table


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with a profile that has three released SAEs, and the same without them."""
    folder = tmp_path_factory.mktemp("project")
    copy_project(folder)
    for name in ("ot30", "o30"):
        write(folder / "results/tiny/released", f"gpt2_resid_pre_2_{name}.pt")
    write(folder / "results/tiny/released/old", "gpt2_resid_pre_2_t8.pt")
    write(folder / "results/tiny/released/old", "gpt2_resid_pre_1_t8.pt")
    data = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    data["model"]["compatibility_mode"] = True
    data["residuals"]["layers"] = [2]
    data |= {"profile": "theirs", "released": {"folder": "results/tiny/released"}}
    (folder / "theirs.yaml").write_text(yaml.safe_dump(data))
    (folder / "ours.yaml").write_text(yaml.safe_dump(data | {"released": None}))
    return folder


def test_the_dag_imports_and_evaluates_them(project: Path) -> None:
    theirs, ours = planned(project, configfile="theirs.yaml"), planned(project, configfile="ours.yaml")
    assert (theirs.pop("import_released"), theirs.pop("evaluate_released")) == (3, 3)
    assert theirs.pop("collect") == ours.pop("collect") + 1
    assert theirs == ours


def test_their_table_needs_no_training(project: Path) -> None:
    code, output = snakemake(project, "results/theirs/tables/released.csv", configfile="theirs.yaml")
    assert code == 0, output
    assert not (project / "results/theirs/saes/layer2/topk-k4-x4-none-s0").exists()
    table = read_table(project / "results/theirs/tables/released.csv")
    assert set(table["subject"]) == {"released-ot30", "released-o30", "released-old-t8"}
    topk = table["architecture"] == "topk"
    assert table.loc[topk & (table["metric"] == "l0"), "value"].tolist() == pytest.approx([30, 30])
    assert set(table.loc[~topk, "encoder_input"]) == {"without_unigram"} and table.loc[~topk, "l1"].isna().all()
    about = json.loads((project / "results/theirs/saes/layer2/released-old-t8/config.json").read_text())
    assert about["released"]["assumed"] == ["architecture", "encoder_input"]
    assert "1 of 4 files in results/tiny/released are of layers [1]" in output
    assert (table["layer"] == 2).all() and table["seed"].isna().all()


def test_a_bad_file_stops_it_before_any_job(project: Path) -> None:
    path = write(project / "results/tiny/released", "gpt2_resid_pre_2_ot4.pt")
    truncate(path)
    code, output = snakemake(project, configfile="theirs.yaml")
    path.unlink()
    assert code != 0
    assert f"released.folder: {path.relative_to(project)}: truncated" in output
    assert "Traceback" not in output and "Execute" not in output
