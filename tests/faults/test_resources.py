"""A full or read-only disk, too little memory, a clock that jumps, many files: a clear error or the same results."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from fixtures.faults import Fault, Run, differences, disk, on_two_cores, wrong

from tsae.store import files

pytestmark = pytest.mark.faults

GATED, TOKENIZED = "layer2/gated-l1_2-x4-none-s0", "layer1/topk-k4-x4-learned-s0"
PHRASES = "layer2/topk-k4-x4-learned-s0"


class Writer(NamedTuple):
    """A job that writes, and what it writes."""

    what: str
    job: str
    outputs: tuple[str, ...]
    where: str = ""  # how the name of a file that it cannot write begins, if not as those of the outputs
    threads: int = 1
    save_s: int | None = None  # how often a training is saved
    then: str = "true"  # the job that makes what this one removes

    @property
    def places(self) -> tuple[str, ...]:
        """How the name of a file that it cannot write may begin."""
        return (self.where,) if self.where else tuple(pattern.split("*")[0].rstrip("/") for pattern in self.outputs)


WRITERS = (
    Writer("the model", "prepare_model", ("model/*",), threads=2),
    Writer("documents", "prepare_documents", ("documents.jsonl",)),
    Writer("tokens", "tokenize", ("tokens/*",)),
    Writer(
        "residuals",
        "cache_residuals/0",
        ("residuals/*/layer*/*", "residuals/parts/*"),
        "residuals",
        threads=2,
        then="index_residuals",
    ),
    Writer("residual statistics", "index_residuals", ("residuals/layer*", "residuals/index.json")),
    Writer("unigram residuals", "unigrams", ("unigrams/*",), threads=2),
    Writer("n-grams", "ngrams", ("ngrams/*",), threads=2),
    Writer("conditional means", "conditional_means/layer1", ("conditional_means/layer1*",)),
    Writer("tokens of first letters", "letter_tokens/layer1", ("letter_tokens/layer1*",)),
    Writer("an SAE", f"train/{GATED}", (f"saes/{GATED}/*",)),
    Writer("a checkpoint", f"train/{TOKENIZED}", (f"saes/{TOKENIZED}/checkpoints/*/*",), f"saes/{TOKENIZED}/"),
    Writer(
        "the state of a training", f"train/{GATED}", (f"saes/{GATED}/*",), f"saes/{GATED}/.training/state", save_s=0
    ),
    Writer("losses of ablations", "ablate/layer1", ("ablations/layer1*",)),
    Writer("measurements of the residuals", "measure_baselines/layer1", ("baselines/layer1*",)),
    Writer("measurements", f"evaluate/{TOKENIZED}", (f"metrics/{TOKENIZED}*", f"features/{TOKENIZED}*")),
    Writer("a curve", f"measure_curve/{TOKENIZED}", (f"curves/{TOKENIZED}*",)),
    Writer("phrases", "find_phrases", ("phrases/phrases.json",)),
    Writer("measurements of phrases", f"measure_phrases/{PHRASES}", (f"phrases/{PHRASES}*",)),
    Writer("a table of phrases", "collect_phrases", ("tables/phrases.csv",)),
    Writer("a table", "collect/headline", ("tables/headline.csv",)),
    Writer("claims", "measure_claims", ("claims.*",)),
    Writer("the manifest", "manifest", ("manifest.json",)),
)


@pytest.fixture(scope="module")
def starved(undisturbed: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy of a finished run that the tests share."""
    return Run(tmp_path_factory.mktemp("starved") / "copy", copied=undisturbed.folder)


@pytest.fixture
def finished(starved: Run, undisturbed: Run) -> Run:
    """A finished run to do harm to, whatever was done to it before."""
    put_back(starved, undisturbed)
    return starved


@pytest.fixture(scope="module")
def commands(undisturbed: Run) -> dict[str, str]:
    """The commands of its jobs."""
    return undisturbed.commands()


def put_back(run: Run, undisturbed: Run) -> None:
    """Make every result and figure that of the undisturbed run again."""
    for folder in ("results", "figures"):
        shutil.rmtree(run.folder / folder)
        shutil.copytree(undisturbed.folder / folder, run.folder / folder)


def clear(run: Run, writer: Writer) -> list[int]:
    """Remove the outputs of a job, and its log; the sizes of the outputs."""
    (run.results / f"logs/{writer.job}.log").unlink(missing_ok=True)
    outputs = [path for pattern in writer.outputs for path in run.results.glob(pattern) if path.is_file()]
    sizes = [path.stat().st_size for path in outputs if not path.name.startswith(".")]
    for path in outputs:
        files.remove(path)
    assert sizes, writer
    return sizes


def command_of(commands: Mapping[str, str], writer: Writer) -> str:
    command = commands[writer.job]
    return command if writer.save_s is None else re.sub(r"--save-s \S+", f"--save-s {writer.save_s}", command)


def assert_it_fails(run: Run, writer: Writer, message: str, expected: Mapping[str, str], *command: str) -> None:
    """It names a file of its own, and leaves nothing half-written."""
    code, output = run.reproduce(*command, OMP_NUM_THREADS=str(writer.threads))
    assert code != 0, writer
    found = re.search(rf"error: results/{run.profile}/(\S+): {message}", output)
    assert found and found[1].startswith(writer.places), (writer, output)
    assert run.left_behind("*.tmp") == [], writer
    assert wrong(run.outputs(), expected) == [], writer


def assert_it_works(run: Run, writer: Writer, commands: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """It makes what the undisturbed run did."""
    for command in (command_of(commands, writer), commands.get(writer.then, writer.then)):
        code, output = run.reproduce("bash", "-c", command, OMP_NUM_THREADS=str(writer.threads))
        assert code == 0, (writer, output)
    assert differences(run.outputs(), expected) == [], writer
    assert run.left_behind() == [], writer


def test_a_full_disk(
    finished: Run,
    undisturbed: Run,
    commands: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    faults: list[Fault],
) -> None:
    expected = undisturbed.outputs()
    runs = [finished, Run(tmp_path_factory.mktemp("full") / "copy", copied=undisturbed.folder)]
    used = sum(path.stat().st_size for path in finished.results.rglob("*") if path.is_file())

    def fill(writer: Writer, run: Run) -> None:
        filler = run.results / "logs/filler"
        spare = sum(clear(run, writer)) // 2
        filler.write_bytes(bytes(max(0, shutil.disk_usage(run.results).free - spare)))
        # Of residuals it is known before that they will not fit.
        message = r"(could not be written \(.*\); \d+ MB are free there|the missing shards need .* are free)"
        assert_it_fails(run, writer, message, expected, "bash", "-c", command_of(commands, writer))
        filler.unlink()
        assert_it_works(run, writer, commands, expected)

    with disk(runs[0].results, used // 1_000_000 + 100), disk(runs[1].results, used // 1_000_000 + 100):
        on_two_cores(fill, WRITERS, runs)
    said = ", ".join(writer.what for writer in WRITERS)
    faults.append(Fault(f"disk full while writing {said}", len(WRITERS), len(WRITERS), "the job", len(WRITERS)))


def test_a_disk_that_fills_up_under_a_whole_run(finished: Run, undisturbed: Run, faults: list[Fault]) -> None:
    figures = finished.folder / "figures/smoke"
    filler = "logs/filler"

    def fill(folder: Path, spare: int) -> None:
        (folder / filler).parent.mkdir(exist_ok=True)
        (folder / filler).write_bytes(bytes(shutil.disk_usage(folder).free - spare))

    def assert_they_fail(*said: str) -> None:
        code, output = finished.reproduce()
        assert code != 0, output
        assert all(text in output for text in (*said, "No space left on device")), output
        assert wrong(finished.outputs(), undisturbed.outputs()) == []
        (finished.results / filler).unlink()

    # What programs of others write: notebooks, and the report of the checks; then tables, and a figure.
    others = ("verified.txt", "notebooks/04_features.ipynb", "notebooks/04_features.html")
    tables = ("metrics.csv", "tables/headline.csv")
    with disk(finished.results, 1000), disk(figures, 10):
        for name in (*others, "logs/verify.log", "logs/notebook/04_features.log"):
            files.remove(finished.results / name)
        fill(finished.results, 3 * 4096)
        assert_they_fail("Error in rule verify", "Error in rule notebook")
        assert not any((finished.results / name).exists() for name in others)
        for path in (*(finished.results / name for name in tables), *figures.glob("token_subspaces.*")):
            files.remove(path)
        fill(finished.results, 50_000)
        fill(figures, 0)
        assert_they_fail(
            *(f"results/smoke/{name}: could not be written" for name in tables), "Error in rule token_subspaces"
        )
        assert list(figures.glob("token_subspaces.*")) == []
        shutil.rmtree((figures / filler).parent)
        code, output = finished.reproduce()
        assert code == 0, output
        assert differences(finished.outputs(), undisturbed.outputs()) == []
        assert finished.left_behind() == []
        assert all((finished.results / name).stat().st_size for name in (*others, *tables))
    what = "a notebook, the report of the checks, tables, a figure"
    faults.append(Fault(f"disk full under a whole run while writing {what}", 5, 5, "the jobs", 5))


# All where no disk can be mounted.
QUOTA = WRITERS[3::6] if os.geteuid() == 0 else WRITERS
LIMITED = """
import os, resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
os.execvp("bash", ["bash", "-c", sys.argv[2]])
"""


def test_a_quota(finished: Run, undisturbed: Run, commands: dict[str, str], faults: list[Fault]) -> None:
    expected = undisturbed.outputs()
    for writer in QUOTA:
        limit = max(clear(finished, writer)) // 2
        command = command_of(commands, writer)
        limited = (sys.executable, "-c", LIMITED, str(limit), command)
        assert_it_fails(finished, writer, r"could not be written \(.*\)", expected, *limited)
        put_back(finished, undisturbed)
    said = ", ".join(writer.what for writer in QUOTA)
    faults.append(Fault(f"a limit to the size of files while writing {said}", len(QUOTA), len(QUOTA), "the job", None))


def test_a_read_only_disk(finished: Run, undisturbed: Run, commands: dict[str, str], faults: list[Fault]) -> None:
    with disk(finished.results, 1000):
        (finished.results / "metrics.csv").unlink()
        expected = finished.outputs()
        subprocess.run(["mount", "-o", "remount,ro", str(finished.results)], check=True)
        code, output = finished.reproduce()
        assert code != 0
        assert re.search("Write-protected output files|Read-only file system", output) and "Traceback" not in output, (
            output
        )
        for job in ("collect/headline", f"train/{GATED}"):
            code, output = finished.reproduce("bash", "-c", commands[job])
            assert code != 0
            assert "Read-only file system" in output and "Traceback" not in output, output
        assert finished.outputs() == expected
        subprocess.run(["mount", "-o", "remount,rw", str(finished.results)], check=True)
        code, output = finished.reproduce()
        assert code == 0, output
        assert differences(finished.outputs(), undisturbed.outputs()) == []
    faults.append(Fault("results on a read-only disk", 3, 3, "none", 3))


# Bytes that are left when all modules are loaded but those that a stage itself loads.
SPARE = (1_000_000, 2_000_000, 4_000_000, 6_000_000)
# Kilobytes for all of a stage: not enough to load PyTorch, or what uses it.
LIMITS = (300_000, 700_000)
SMALL = """
import resource, sys
import torch, tsae.residuals.write_residuals, tsae.text.write_tokens, tsae.training.train, transformer_lens
from tsae.__main__ import run
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + {spare}, used + {spare}))
run()
"""


@pytest.mark.parametrize("job", ["cache_residuals/0", f"train/{TOKENIZED}"])
def test_too_little_memory(
    finished: Run, undisturbed: Run, commands: dict[str, str], job: str, faults: list[Fault]
) -> None:
    writer = next(writer for writer in WRITERS if writer.job == job)
    expected = undisturbed.outputs()
    limited = [f"ulimit -v {limit}; {commands[job]}" for limit in LIMITS]
    for spare in SPARE:
        launcher = finished.folder / f"spare_{spare}.py"
        launcher.write_text(SMALL.format(spare=spare))
        limited.append(commands[job].replace("python -m tsae", f"{sys.executable} {launcher}"))
    clear(finished, writer)
    for command in limited:
        code, output = finished.reproduce("bash", "-c", command, OMP_NUM_THREADS=str(writer.threads))
        assert code == 1, (command, output)
        assert "error: out of memory" in output and "Traceback" not in output, (command, output)
        assert finished.left_behind("*.tmp") == []
        assert wrong(finished.outputs(), expected) == []
    assert_it_works(finished, writer, commands, expected)
    tried = len(limited)
    faults.append(Fault(f"too little memory ({job.split('/')[0]})", tried, tried, "the job", tried))


def test_a_clock_that_jumps_back(finished: Run, undisturbed: Run, faults: list[Fault]) -> None:
    # What was written before the jump has times that are yet to come.
    tomorrow = time.time() + 86_400
    for top in ("results", "figures", "config", "tsae", "workflow", "notebooks"):
        for path in (finished.folder / top).rglob("*"):
            os.utime(path, (tomorrow, tomorrow))
    for path in (
        finished.results / f"saes/{GATED}/sae.safetensors",
        finished.results / f"metrics/{GATED}.json",
        finished.results / "metrics.csv",
        finished.folder / "figures/smoke/speedup.svg",
    ):
        path.unlink()
    code, output = finished.reproduce()
    assert code == 0, output
    assert differences(finished.outputs(), undisturbed.outputs()) == []
    faults.append(Fault("a clock that jumps back a day", 1, None, "none", 1))


def test_ten_thousand_small_files(tmp_path: Path, faults: list[Fault]) -> None:
    run = Run(tmp_path / "many")
    (run.folder / "texts").mkdir()
    lines = (run.folder / "results/tiny/corpus.txt").read_text().splitlines()
    for number in range(10_000):
        (run.folder / f"texts/{number:05d}.txt").write_text(lines[number % len(lines)] + f" {number}\n")
    settings = run.folder / run.configfile
    settings.write_text(
        settings.read_text()
        .replace("paths: [results/tiny/corpus.txt]", "paths: [texts]")
        .replace("format: lines", "format: text")
    )
    code, output = run.snakemake("--", "results/smoke/documents.jsonl")
    assert code == 0, output
    documents = [json.loads(line) for line in (run.results / "documents.jsonl").read_text().splitlines()]
    assert [document["text"].split()[-1] for document in documents] == [str(number) for number in range(10_000)]
    faults.append(Fault("a corpus of 10 000 files", 1, None, "none", None))
