"""Claiming a GPU, and computing on a stand-in and, if there is one, on a GPU."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from click import Context
from fixtures import ROOT
from fixtures.elsewhere import DEVICE, StandIn
from fixtures.evaluation import SETTINGS, Evaluated
from fixtures.training import LAYER, POINTS, Prepared
from torch import Tensor

from tsae.__main__ import app
from tsae.compute.devices import claim
from tsae.measure.ablations import measure_ablations
from tsae.measure.curves import measure_curve
from tsae.measure.evaluate import evaluate
from tsae.measure.features import read_features
from tsae.model.language_model import load_model
from tsae.profile import config
from tsae.profile.evaluation import Features
from tsae.profile.sweep import Job
from tsae.profile.training import Curves, Training
from tsae.store.tensors import load_tensors
from tsae.training.train import train

CLAIM = """
import logging, sys
from pathlib import Path
from tsae.compute.devices import lock_one
logging.basicConfig(level=logging.INFO)
folder, *names = sys.argv[1:]
print(names[lock_one(names, Path(folder), poll_s=0.05)], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Start a process that claims one of some names and keeps it until its input ends."""
    started = []

    def start(*names: str) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, "-c", CLAIM, str(tmp_path / "locks"), *names]
        started.append(subprocess.Popen(command, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().strip()


def test_two_processes_never_have_the_same_gpu_and_a_killed_one_gives_its_own_back(start: Any) -> None:
    first, second = start("gpu-a", "gpu-b"), start("gpu-a", "gpu-b")
    taken = {line(process.stdout): process for process in (first, second)}
    assert set(taken) == {"gpu-a", "gpu-b"}
    # Another order, as CUDA_VISIBLE_DEVICES may give: a lock belongs to a GPU, not to its place in the list.
    third = start("gpu-b", "gpu-a")
    assert "waiting for a GPU" in line(third.stderr)
    taken["gpu-a"].send_signal(signal.SIGKILL)
    assert line(third.stdout) == "gpu-a"


def test_a_process_that_sees_one_gpu_waits_for_that_one(start: Any) -> None:
    first = start("gpu-a", "gpu-b")
    name = line(first.stdout)
    second = start(name)
    assert "waiting for a GPU" in line(second.stderr)
    first.communicate()  # it ends with its input
    assert line(second.stdout) == name


def test_without_a_gpu_it_is_the_cpu() -> None:
    precision = torch.get_float32_matmul_precision()
    assert claim(0, tf32=True) == torch.device("cpu")
    assert torch.get_float32_matmul_precision() == precision
    with pytest.raises(ValueError, match="one GPU or on none"):
        claim(2)


def test_a_gpu_that_is_not_there_is_one_error_before_any_work(tmp_path: Path) -> None:
    arguments = ["--settings", SETTINGS.model_dump_json(), "--layer", "1"]
    for name in ("model", "residuals", "heldout", "output"):
        arguments += [f"--{name}", str(tmp_path / "nowhere")]
    done = subprocess.run(
        [sys.executable, "-m", "tsae", "ablate", *arguments, "--gpus", "1"],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 1
    (message,) = done.stderr.splitlines()
    assert "compute.gpu: true, but PyTorch" in message
    assert message.endswith("set compute.gpu: false or run with --resources gpu=0")


def planned_options(folder: Path, *arguments: str, residuals: str = "{}") -> dict[str, str]:
    """GPU options of the stages that lead to an SAE's measurements, with compute.gpu and compute.tf32."""
    (folder / "gpu.yaml").write_text(f"compute: {{gpu: true, tf32: true}}\nresiduals: {residuals}")
    configfile = ROOT / "config/config.yaml"
    profile = config.load(configfile)
    job, of_phrases = profile.jobs("headline")[0], profile.jobs("encoder")[0]
    targets = [f"curves/{job.id}.json", f"baselines/layer{job.layer}.json", f"phrases/{of_phrases.id}.json"]
    command = [sys.executable, "-m", "snakemake", *(f"results/embedded/{target}" for target in targets)]
    command += [
        *arguments,
        "--cores",
        "2",
        "--dry-run",
        "--forceall",
        "--printshellcmds",
        "--configfile",
        str(configfile),
        str(folder / "gpu.yaml"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    commands = re.findall(r"python -m tsae --log \S+ (\S+)(.*)", done.stdout)
    for stage, options in commands:
        found = app.get_command(Context(app), stage)
        assert found is not None, stage
        known = {name for parameter in found.params for name in parameter.opts}
        assert set(re.findall(r" (--[a-z0-9-]+)", options)) <= known, stage
    return {stage: " ".join(sorted(re.findall(r"--gpus \d+|--tf32", options))) for stage, options in commands}


def test_jobs_take_a_gpu_each_and_evaluate_in_full_float32(tmp_path: Path) -> None:
    options = planned_options(tmp_path)
    for stage in ("cache-residuals", "unigrams", "ngrams", "train-sae"):
        assert options[stage] == "--gpus 1 --tf32"
    assert options["ablate"] == options["measure-curve"] == "--gpus 1"
    assert options["conditional-means"] == options["measure-baselines"] == options["measure-phrases"] == "--gpus 0"
    assert options["tokenize"] == options["letter-tokens"] == ""


def test_residuals_from_the_model_are_of_one_precision(tmp_path: Path) -> None:
    options = planned_options(tmp_path, residuals="{disk_gb: 0.5, mean_tokens: 4096}")
    for stage in ("train-sae", "conditional-means", "measure-baselines", "measure-phrases"):
        assert options[stage] == "--gpus 1 --tf32"
    assert options["ablate"] == options["measure-curve"] == "--gpus 1"


def test_the_same_jobs_run_without_a_gpu(tmp_path: Path) -> None:
    options = planned_options(tmp_path, "--resources", "gpu=0")
    assert options["train-sae"] == "--gpus 0 --tf32"
    assert options["measure-curve"] == "--gpus 0"


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The GPU of this process, if there is one."""
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    return claim(1)


@pytest.fixture(params=["stand-in", "gpu"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A device other than the CPU."""
    if request.param == "gpu":
        yield request.getfixturevalue("gpu")
        return
    # PyTorch must think that it has a fused Adam for the stand-in.
    optimizer = sys.modules["torch.optim.optimizer"]
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["cpu", DEVICE.type])
    # Inference mode cannot make views of tensors of other classes.
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)
    with StandIn():
        yield DEVICE


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], device: torch.device) -> None:
    """Equal up to rounding, which is larger on a GPU, whose operators add in another order."""
    rtol, atol = (1e-3, 1e-4) if device.type == "cuda" else (None, None)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=rtol, atol=atol)


def test_the_stand_in_refuses_what_a_gpu_does(device: torch.device) -> None:
    there = torch.ones(3, device=device)
    assert (there + torch.tensor(2.0)).cpu().tolist() == [3, 3, 3]
    assert there[torch.tensor([0, 1])].device.type == device.type
    with pytest.raises(RuntimeError, match="device"):
        there + torch.ones(3)
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(3)[torch.zeros(1, dtype=torch.int64, device=device)]
    with pytest.raises((TypeError, RuntimeError), match="numpy"):
        there.numpy()


@pytest.mark.parametrize("compatibility_mode", [False, True])
@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
def test_the_model_on_a_device(
    device: torch.device, name: str, compatibility_mode: bool, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    ids = torch.arange(60).view(3, 20)

    def run(on: torch.device | str) -> dict[str, Tensor]:
        model = load_model(folder, compatibility_mode, on)
        residuals = model.residuals(ids, [1, 3]) | {-2: model.residuals(ids, [2], prefix=[0, 5])[2]}
        assert all(residual.is_cpu for residual in residuals.values())
        logits = model.logits_from(residuals[1], 1, ids)
        assert logits.device == torch.device(on)
        return {str(layer): residual for layer, residual in residuals.items()} | {"logits": logits.cpu()}

    assert_close(run(device), run("cpu"), device)


@pytest.mark.parametrize("name", ["none", "learned", "relu-learned", "gated-learned", "nounigram"])
def test_training_on_a_device(prepared: Prepared, device: torch.device, name: str, tmp_path: Path) -> None:
    settings = Training(
        tokens=640, batch_size=128, lr=3e-3, lr_end=3e-4, table_lr=1e-2, buffer_tokens=2000, history_points=3
    )
    job = Job(layer=LAYER, point=POINTS[name], seed=0)
    for folder, on in (("cpu", "cpu"), ("there", device), ("again", device)):
        train(job, settings, prepared.residuals, prepared.unigrams, tmp_path / folder, (4,), on)
    for part in ("sae.safetensors", "checkpoints/step00000004/sae.safetensors"):
        there, again = (tmp_path / folder / part for folder in ("there", "again"))
        assert there.read_bytes() == again.read_bytes()
        assert_close(load_tensors(there), load_tensors(tmp_path / "cpu" / part), device)


@pytest.mark.parametrize("table", ["none", "learned"])
def test_evaluation_on_a_device(
    prepared: Prepared, evaluated: Evaluated, device: torch.device, table: str, tmp_path: Path
) -> None:
    def run(on: torch.device | str, features: Path) -> dict[Any, float]:
        measured = evaluate(
            Job(layer=LAYER, point=POINTS[table], seed=0),
            evaluated.saes[table],
            prepared.model,
            prepared.residuals,
            prepared.heldout_tokens,
            prepared.references,
            evaluated.ablations,
            SETTINGS,
            Features(),
            2,
            False,
            features.with_suffix(".json"),
            features,
            features.with_suffix(".safetensors"),
            evaluated.saes["learned"],
            on,
        )
        return {(m.metric, m.at, m.min_count): m.value for m in measured}

    assert run(device, tmp_path / "there") == pytest.approx(run("cpu", tmp_path / "here"), rel=1e-3, abs=1e-3)
    here, there = (read_features(tmp_path / where).set_index("feature") for where in ("here", "there"))
    assert there["firings"].tolist() == here["firings"].tolist()
    assert there["context_tokens"].tolist() == here["context_tokens"].tolist()


def test_curves_and_ablations_on_a_device(
    prepared: Prepared, evaluated: Evaluated, device: torch.device, tmp_path: Path
) -> None:
    tokens, ablations = prepared.heldout_tokens, tmp_path / "ablations"
    measure_ablations(prepared.model, prepared.residuals, tokens, LAYER, SETTINGS, False, ablations, device)
    assert_close(load_tensors(ablations), load_tensors(evaluated.ablations), device)
    here, there = (
        measure_curve(
            Job(layer=LAYER, point=POINTS["learned"], seed=0),
            evaluated.saes["learned"],
            (),
            prepared.model,
            prepared.residuals,
            tokens,
            evaluated.ablations,
            evaluated.trained_ones,
            SETTINGS,
            Curves(ce_sequences=4),
            False,
            tmp_path / "curve.json",
            tmp_path / "sums.safetensors",
            on,
        )
        for on in ("cpu", device)
    )
    assert [row["metric"] for row in there] == [row["metric"] for row in here]
    assert [row["value"] for row in there] == pytest.approx([row["value"] for row in here], rel=1e-3, abs=1e-3)
