"""The files of a profile against their sha256, and which of them a repair removes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import ROOT
from fixtures.faults import Fault, Run, differences, flip_a_bit

from tsae.store import files
from tsae.store import verify as artefacts
from tsae.store.locks import hold


def test_what_is_damaged_unreadable_or_not_what_was_fetched_is_found(tmp_path: Path) -> None:
    results, fetched = tmp_path / "results", tmp_path / "fetched.txt"
    names = ("whole", "flipped", "gone", "unreadable", "no record of it", "record damaged")
    for name in names:
        files.write_text(results / "folder" / name, name)
    fetched.write_text("by hand, without a record")
    path = {name: results / "folder" / name for name in names}
    flip_a_bit(path["flipped"])
    path["gone"].unlink()
    path["unreadable"].unlink()
    path["unreadable"].symlink_to("/proc/self/mem")  # reading its first byte fails
    files.record_of(path["no record of it"]).unlink()
    files.record_of(path["record damaged"]).write_text("")
    expected = [path[name] for name in ("flipped", "record damaged", "unreadable")]
    found = artefacts.verify([results, tmp_path / "none"], {fetched: files.sha256(fetched), tmp_path / "absent": ""})
    assert (found.whole, found.damaged) == ([fetched, path["whole"]], expected)
    flip_a_bit(fetched)
    found = artefacts.verify([results], {fetched: "0" * 64})
    assert (found.whole, found.damaged) == ([path["whole"]], [fetched, *expected])


@pytest.mark.parametrize(
    ("damaged", "gone", "asked_for"),
    [
        ("tokens/train.safetensors", [], ["tokens/train.safetensors"]),
        ("model/tokenizer.json", ["model/source.json"], ["model/source.json"]),
        ("residuals/train/layer1/shard-00001.safetensors",)
        + (["residuals/index.json", "residuals/parts/0.json", "residuals/parts/1.json"],) * 2,
        ("residuals/layer1.safetensors", [], ["residuals/layer1.safetensors"]),
        (
            "saes/layer1/a-s0/checkpoints/step00000001/sae.safetensors",
            ["saes/layer1/a-s0/checkpoints/.there", "saes/layer1/a-s0/checkpoints/step00000001/config.json"],
            ["saes/layer1/a-s0/checkpoints"],
        ),
        ("sums/layer1/a-s0.safetensors", [], ["sums/layer1/a-s0.safetensors"]),
        ("sums/curves/layer1/a-s0.safetensors", [], ["sums/curves/layer1/a-s0.safetensors"]),
        ("saes/layer1/a-s0/.training/state.safetensors", [], []),
        (".documents.jsonl.progress.json", [], []),
        ("prefixes.json", [], []),
    ],
)
def test_what_goes_with_a_damaged_file(damaged: str, gone: list[str], asked_for: list[str], tmp_path: Path) -> None:
    kept = [
        "tokens/heldout.safetensors",
        "residuals/train/layer2/shard-00001.safetensors",
        "saes/layer1/a-s0/config.json",
    ]
    for name in (damaged, *gone, *kept):
        files.write_text(tmp_path / name, name)
    found = artefacts.remove(tmp_path / damaged, tmp_path)
    assert found == [tmp_path / name for name in asked_for]
    left = {
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.suffix != ".sha256" and path.is_file()
    }
    assert left == set(kept)
    assert artefacts.verify([tmp_path], {}) == ([tmp_path / name for name in sorted(kept)], [])


def test_two_files_of_one_folder_go_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"saes/layer1/a-s0/checkpoints/step{step}/sae.safetensors" for step in (1, 2)]
    for path in paths:
        files.write_text(path, "")
    assert [artefacts.remove(path, tmp_path) for path in paths] == [[paths[0].parents[1]]] * 2
    assert not paths[0].parents[1].exists()


def verify(folder: Path, *arguments: str, configfile: Path = ROOT / "config/config.yaml") -> tuple[int, str]:
    command = [sys.executable, "-m", "tsae", "verify-artefacts", "--configfile", str(configfile), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_the_command_names_removes_and_says_how_to_go_on(tmp_path: Path) -> None:
    source, table = Path("results/sources/lee_background.cor"), Path("results/embedded/tables/headline.csv")
    for path in (source, table):
        files.write_text(tmp_path / path, "as it was written, and not what the configuration says")
    # A fetched file must have the sha256 of the configuration, whatever its record says.
    code, output = verify(tmp_path)
    assert code == 1
    assert f"{source}: damaged\n1 files are as they were written, 1 are damaged\n" in output
    assert "make verify-artefacts REMOVE=1" in output
    flip_a_bit(tmp_path / table)
    code, output = verify(tmp_path, "--remove")
    assert code == 0
    assert f"{source}: damaged, and removed\n{table}: damaged, and removed\n0 files are" in output
    assert output.endswith(f" --cores all -- all {source} {table}\n")
    assert not (tmp_path / source).exists() and not (tmp_path / table).exists()
    assert verify(tmp_path) == (0, "0 files are as they were written, 0 are damaged\n")


def test_nothing_is_looked_at_beside_a_run(tmp_path: Path) -> None:
    hold(tmp_path / "results/embedded")
    code, output = verify(tmp_path)
    assert code == 1
    assert "is running this profile here" in output
    # Without results there is nothing to lock.
    assert verify(tmp_path / "results")[0] == 0
    assert not (tmp_path / "results/results").exists()


@pytest.mark.faults
def test_the_command_that_is_told_makes_it_all_anew(undisturbed: Run, tmp_path: Path, faults: list[Fault]) -> None:
    run = Run(tmp_path / "copy", copied=undisturbed.folder)
    patterns = (
        "tokens/heldout.safetensors",
        "residuals/train/layer1/shard-00001.safetensors",
        "saes/layer1/*-s0/sae.safetensors",
        "saes/layer1/*-s0/checkpoints/*/sae.safetensors",
        "metrics/layer2/*-s0.json",
        "sums/layer1/*-s0.safetensors",
        "sums/curves/layer2/*-s0.safetensors",
        "phrases/phrases.json",
        "tables/headline.csv",
        "../../figures/smoke/speedup.png",
    )
    hit = [min(run.results.glob(pattern)) for pattern in patterns]
    for path in hit:
        flip_a_bit(path)
    code, output = run.stage("verify-artefacts", "--configfile", run.configfile, "--remove")
    assert code == 0, output
    # In a shell without an activated environment.
    code, output = run.reproduce("bash", "-c", output.splitlines()[-1], PATH=os.defpath)
    assert code == 0, output
    assert all(path.exists() for path in hit)
    assert differences(run.outputs(), undisturbed.outputs()) == []
    faults.append(Fault("damaged files removed, and made again as told", len(hit), len(hit), "these", len(hit)))
