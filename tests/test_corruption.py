"""Damaged artefacts are named before anything reads them, and a run makes anew what was hit and nothing else."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import Fault, Run, differences

pytestmark = pytest.mark.faults


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], None]] = {"a bit flipped": flip_a_bit, "truncated": truncate}
# One of each kind, and a rule that reads it.
KINDS = {
    "model": ("results/smoke/model/model.safetensors", "unigrams"),
    "documents": ("results/smoke/documents.jsonl", "tokenize"),
    "tokens": ("results/smoke/tokens/train.safetensors", "unigrams"),
    "residual shard": ("results/smoke/residuals/train/layer1/shard-00001.safetensors", "train"),
    "residual index": ("results/smoke/residuals/index.json", "train"),
    "residual statistics": ("results/smoke/residuals/layer1.safetensors", "train"),
    "unigram residuals": ("results/smoke/unigrams/layer1.safetensors", "train"),
    "losses of ablations": ("results/smoke/ablations/layer1.safetensors", "evaluate"),
    "SAE": ("results/smoke/saes/layer1/*-s0/sae.safetensors", "evaluate"),
    "description of an SAE": ("results/smoke/saes/layer1/*-s0/config.json", "evaluate"),
    "measurements": ("results/smoke/metrics/layer1/*-s0.json", "collect"),
    "statistics of features": ("results/smoke/features/layer1/*-s0.parquet", "notebook"),
    "table": ("results/smoke/tables/headline.csv", "measure_claims"),
    "figure": ("figures/smoke/speedup.png", None),
}


@pytest.fixture(scope="module")
def copy(undisturbed: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run to do harm to."""
    run = Run(tmp_path_factory.mktemp("corrupted"))
    for top in ("results", "figures", ".snakemake"):
        shutil.copytree(undisturbed.folder / top, run.folder / top, dirs_exist_ok=True)
    return run


def verify(run: Run, *arguments: str) -> tuple[int, list[str]]:
    code, output = run.stage("verify-artefacts", "--configfile", run.configfile, *arguments)
    return code, re.findall(r"^(\S+): damaged", output, flags=re.MULTILINE)


def test_every_kind_of_artefact_is_checked(copy: Run, faults: list[Fault]) -> None:
    assert verify(copy) == (0, [])
    tried = 0
    for kind, (pattern, _) in KINDS.items():
        path = next(iter(sorted(copy.folder.glob(pattern))))
        name = str(path.relative_to(copy.folder))
        whole = path.read_bytes()
        for damage, harm in DAMAGES.items():
            harm(path)
            assert verify(copy) == (1, [name]), (kind, damage)
            path.write_bytes(whole)
            tried += 1
    assert verify(copy) == (0, [])
    faults.append(Fault(f"a bit flipped, a file truncated: {', '.join(KINDS)}", tried, tried, "none", None))


def test_what_reads_it_refuses_it_and_says_its_name(copy: Run, faults: list[Fault]) -> None:
    tried = 0
    for kind, (pattern, rule) in KINDS.items():
        if rule is None:
            continue
        path = next(iter(sorted(copy.folder.glob(pattern))))
        whole = path.read_bytes()
        flip_a_bit(path)
        code, output = copy.reproduce(
            "snakemake", "--configfile", copy.configfile, "--cores", "2", "--forcerun", rule, "--until", rule
        )
        assert code != 0, kind
        assert path.name in output, (kind, output)
        assert "damaged" in output, (kind, output)
        path.write_bytes(whole)
        tried += 1
    faults.append(Fault("a damaged file read by the rule that needs it", tried, tried, "none", None))


def test_a_run_makes_anew_only_what_was_hit(copy: Run, undisturbed: Run, faults: list[Fault]) -> None:
    hit = [
        next(iter(sorted(copy.folder.glob(KINDS[kind][0]))))
        for kind in ("residual shard", "SAE", "measurements", "table", "figure")
    ]
    others = next(iter(sorted(copy.folder.glob("results/smoke/saes/layer2/*-s0/sae.safetensors"))))
    untouched = others.stat().st_mtime_ns
    for path in hit:
        flip_a_bit(path)
    code, named = verify(copy, "--remove")
    assert code == 0
    assert sorted(named) == sorted(str(path.relative_to(copy.folder)) for path in hit)
    code, output = copy.reproduce()
    assert code == 0, output
    assert differences(copy.outputs(), undisturbed.outputs()) == []
    assert others.stat().st_mtime_ns == untouched
    faults.append(
        Fault("damaged files removed, and run again", len(hit), len(hit), "the files that were hit", len(hit))
    )
