"""Runs that are killed at random moments give what an undisturbed one gives, with nothing but another `make reproduce`."""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from fixtures.faults import (
    ROOT,
    SNAKEMAKES,
    Fault,
    Run,
    descendants,
    differences,
    digests,
    jobs_of,
    kill_all,
    seconds_since_start,
    words,
    wrong,
)

from tsae.profile import config
from tsae.residuals.shards import fingerprint
from tsae.store import files
from tsae.store.files import sha256

pytestmark = pytest.mark.faults

# How often each stage is hit. Where it is drawn by chance which job of a stage that is, Snakemake draws it.
SMOKE = Counter(
    {
        "prepare-model": 1,
        "prepare-documents": 2,
        "tokenize": 2,
        "unigrams": 2,
        "cache-residuals": 2,
        "index-residuals": 1,
        "train-sae": 5,
        "evaluate-sae": 2,
        "measure-curve": 1,
        "draw": 2,
        "notebook": 1,
    }
)
VICTIMS = ("everything", "a job", "Snakemake", "a job", "everything")
# What a run does such a job again without. Those of the first stages come to their end only when nothing else is there yet.
FIRST = {
    "fetch": ("results/sources/*.gguf",),
    "prepare-model": ("results/{}/model/source.json",),
    "prepare-documents": ("results/{}/documents.jsonl",),
    "tokenize": ("results/{}/tokens/*",),
    "unigrams": ("results/{}/unigrams/*",),
    "cache-residuals": ("results/{}/residuals/train/*/*", "results/{}/residuals/parts/*"),
    "index-residuals": ("results/{}/residuals/index.json",),
}
LAST = {
    "train-sae": ("results/{}/saes/*/*/sae.safetensors", "results/{}/metrics/*/*", "results/{}/metrics.csv"),
    "evaluate-sae": ("results/{}/metrics/*/*", "results/{}/metrics.csv"),
    "measure-curve": ("results/{}/curves/*/*", "results/{}/tables/curves.csv", "figures/{}/speedup.svg"),
    "draw": ("figures/{}/*.svg",),
    "notebook": ("results/{}/notebooks/*.html",),
}
ATTEMPTS = 10
SETTLE_S = 20
CONTINUES = "continues after step"


class Killer:
    """Runs of a copy that are killed again and again."""

    def __init__(self, run: Run, seconds_of: Callable[[str], float], wrong: Callable[[], list[str]], seed: int = 0):
        """Take how long a job of a stage takes, and what finds files under their final names that are not as expected."""
        self.run, self.seconds_of, self.wrong = run, seconds_of, wrong
        self.generator = random.Random(seed)
        self.process: subprocess.Popen[str] | None = None
        self.hits: dict[str, list[float]] = {}  # stage -> for how long each job that was hit had run
        self.n_kills = 0
        self.continued: set[str] = set()  # logs of trainings that continued from what they had saved

    def hit(self, stages: Counter[str], victim: str, once_saved: bool) -> str:
        """Kill at a random moment of a job of one of the stages; which it was, or that it was Snakemake.

        If `once_saved`, a training is killed after it has saved where it is.
        """
        for _ in range(ATTEMPTS):
            if self.process is None or self.process.poll() is not None:
                self.process = self.run.start(output=subprocess.DEVNULL)
            job, stage = _wait_for(stages, self.process)
            if job is None:
                if self.process.returncode == 0:
                    self._remove(LAST[next(stage for stage in reversed(LAST) if stages[stage])])
                continue
            self._sleep(job, stage, once_saved)
            jobs = jobs_of(self.process)
            if job in jobs:
                # The jobs of a Snakemake that is killed alone go on.
                hit = {"everything": jobs, "a job": {job: stage}, "Snakemake": {}}[victim]
                for each, of_stage in hit.items():
                    self.hits.setdefault(of_stage, []).append(seconds_since_start(each))
                if not hit:
                    self.hits.setdefault(victim, []).append(0.0)
                _kill(self.process, job, victim)
                self.n_kills += 1
                assert self.wrong() == [], (stage, victim)
                self._look_at_logs()
                return stage if hit else victim
            if stage in FIRST:
                kill_all(self.process)
                self._remove(FIRST[stage])
        raise AssertionError(f"no job of {dict(stages)} was there long enough")

    def _sleep(self, job: psutil.Process, stage: str, once_saved: bool) -> None:
        if stage == "train-sae" and once_saved:
            saved = Path(self.run.folder, words(job)[words(job).index("--folder") + 1], ".training/state.safetensors")
            while job.is_running() and not saved.exists():
                time.sleep(0.01)
            time.sleep(self.generator.uniform(0, 0.2))
        else:
            time.sleep(self.generator.uniform(0.02, 0.6) * self.seconds_of(stage))

    def _remove(self, patterns: tuple[str, ...]) -> None:
        for pattern in patterns:
            for path in self.run.folder.glob(pattern.format(self.run.profile)):
                files.remove(path)

    def to_the_end(self) -> None:
        """Let a run end that a job is missing from, and run again."""
        if self.process is not None:
            self.process.wait()
        code, output = self.run.reproduce()
        assert code == 0, output
        self._look_at_logs()

    def _look_at_logs(self) -> None:
        logs = (self.run.results / "logs/train").rglob("*.log")
        self.continued |= {str(log) for log in logs if CONTINUES in log.read_text()}

    def row(self, what: str) -> Fault:
        """What was hit, and what it cost."""
        said = ", ".join(f"{stage} {len(seconds)}" for stage, seconds in sorted(self.hits.items()))
        longest = max(seconds for of_stage in self.hits.values() for seconds in of_stage)
        lost = f"at most {longest:.0f} s of a job"
        return Fault(
            f"kill -9 of everything, of Snakemake, of a job: {what} ({said})", self.n_kills, None, lost, self.n_kills
        )


def _wait_for(stages: Counter[str], process: "subprocess.Popen[str]") -> tuple[psutil.Process | None, str]:
    """A job of one of the stages as soon as there is one; none if the run ends first."""
    while process.poll() is None:
        for job, stage in jobs_of(process).items():
            if stages[stage] > 0:
                return job, stage
        time.sleep(0.02)
    return None, ""


def _kill(process: "subprocess.Popen[str]", job: psutil.Process, victim: str) -> None:
    match victim:
        case "everything":
            kill_all(process)
        case "Snakemake":
            # Its jobs go on, as they do when the system takes it alone.
            for child in descendants(process):
                if any(word.endswith("/snakemake") for word in words(child)[:3]):
                    child.kill()
            process.wait()
        case _:
            job.kill()


def test_killed_at_random_moments(
    undisturbed: Run, tmp_path_factory: pytest.TempPathFactory, faults: list[Fault]
) -> None:
    run = Run(tmp_path_factory.mktemp("killed"))
    settings = run.folder / run.configfile
    settings.write_text(settings.read_text().replace("\ntraining:\n", "\ntraining:\n  save_minutes: 0\n"))

    expected = undisturbed.outputs()
    killer = Killer(run, lambda stage: measured_seconds(undisturbed, stage), lambda: wrong(run.outputs(), expected))
    wanted = SMOKE.copy()
    try:
        while wanted.total():
            victim = VICTIMS[killer.n_kills % len(VICTIMS)]
            hit = killer.hit(wanted, victim, once_saved=wanted["train-sae"] % 2 == 0)
            wanted[hit] -= hit in SMOKE
        killer.to_the_end()
        assert differences(run.outputs(), expected) == []
        assert run.left_behind() == []
    finally:
        run.clear()
    assert killer.n_kills >= 20 and killer.hits.keys() >= set(SMOKE)
    assert killer.continued
    faults.append(
        killer.row("in another folder than the undisturbed run, whole files the same after each, all at the end")
    )


def measured_seconds(run: Run, stage: str) -> float:
    """How long a job of a stage took in a run that was not disturbed."""
    rule = stage.removesuffix("-sae").replace("-", "_")
    benchmarks = run.results / "benchmarks"
    files = (
        [benchmarks / f"{rule}.tsv"] if (benchmarks / f"{rule}.tsv").exists() else (benchmarks / rule).rglob("*.tsv")
    )
    seconds = [float(file.read_text().splitlines()[1].split("\t")[0]) for file in files]
    return sum(seconds) / len(seconds) if seconds else 2.0


def test_interrupted_from_the_keyboard(
    undisturbed: Run, tmp_path_factory: pytest.TempPathFactory, faults: list[Fault]
) -> None:
    run = Run(tmp_path_factory.mktemp("keyboard") / "copy", copied=undisturbed.folder)
    for pattern in LAST["train-sae"]:
        for path in run.folder.glob(pattern.format(run.profile)):
            path.unlink()
    # What a shell starts in the background ignores Ctrl-C, and so does all that it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = run.start()
    signal.signal(signal.SIGINT, before)
    try:
        while "train-sae" not in jobs_of(process).values():
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(2)
        # As a terminal does, to all in the foreground.
        for each in [psutil.Process(process.pid), *descendants(process)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=SETTLE_S)
        assert process.returncode != 0
        assert output.splitlines()[-1] == "stopped; run make reproduce again to go on"
        assert run.at_work() == []
        assert run.left_behind("*.tmp") == []
        assert wrong(run.outputs(), undisturbed.outputs()) == []
        code, output = run.reproduce()
        assert code == 0, output
        assert differences(run.outputs(), undisturbed.outputs()) == []
    finally:
        run.clear()
    faults.append(Fault("Ctrl-C", 1, 1, "the jobs under way", 1))


# --- the embedded profile ---------------------------------------------------------------------------------------------

EMBEDDED = ROOT / "results/embedded"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
HEADLINE = [{"layers": [12], "k": [32], "expansion": [4], "table": ["none", "learned"]}]
FIGURES = [
    "token_subspaces",
    "speedup",
    "training_curves",
    "lookup_geometry",
    "last_token_detection",
    "simple_features",
    "reconstruction_by_layer",
]
# The shards that the killed run makes itself; the others were there.
MADE = ("train/layer*/shard-0000[1357]", "heldout/layer*/shard-00000")
COMPARED = (
    "documents.jsonl",
    "model/*",
    "tokens/*",
    "residuals/**/*",
    "unigrams/layer12.safetensors",
    "ablations/layer12.safetensors",
    "baselines/layer12.json",
    *(
        f"{kind}/layer12/topk-k32-x4-{table}-s0{rest}"
        for kind, rest in (
            ("saes", "/**/*"),
            ("metrics", ".json"),
            ("features", ".parquet"),
            ("curves", ".json"),
        )
        for table in ("none", "learned")
    ),
)
# About, with two cores [s].
SECONDS = {
    "fetch": 3.0,
    "cache-residuals": 50.0,
    "unigrams": 27.0,
    "train-sae": 26.0,
    "evaluate-sae": 20.0,
    "measure-curve": 20.0,
}
KILLS = {
    "fetch": "everything",
    "unigrams": "a job",
    "cache-residuals": "everything",
    "train-sae": "everything",
    "evaluate-sae": "a job",
    "measure-curve": "Snakemake",
}


def compared(results: Path) -> dict[str, str]:
    """sha256 of what both runs of the embedded profile make."""
    paths = {path for pattern in COMPARED for path in results.glob(pattern) if path.is_file()}
    return digests(results, (path for path in paths if path.name != SNAKEMAKES))


def is_of_this_code(results: Path) -> bool:
    """Whether the residuals have the fingerprint that caching gives them now."""
    code = [sha256(ROOT / f"tsae/{name}.py") for name in ("shards", "models", "products")]
    index = json.loads((results / "residuals/index.json").read_text())
    now = fingerprint(
        model=json.loads((results / "model/source.json").read_text()),
        tokens=sha256(results / "tokens/train.safetensors"),
        layer=12,
        n_ctx=index["n_ctx"],
        shard_sequences=index["shard_sequences"],
        compatibility_mode=False,
        code=code,
    )
    return bool(now == index["layers"]["12"]["fingerprints"]["train"])


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Run]:
    """A copy with the embedded profile but for most of its sweep, and some of its residuals."""
    if not (EMBEDDED / "manifest.json").is_file():
        pytest.skip("results/embedded is not there or not complete: make reproduce comes first")
    if not is_of_this_code(EMBEDDED):
        pytest.skip("results/embedded is of other code: make reproduce comes first")
    run = Run(tmp_path / "embedded", "killed")
    data = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    data |= {"profile": "killed", "sweep": {"headline": HEADLINE}, "figures": FIGURES}
    data["training"]["save_minutes"] = 0.05
    (run.folder / run.configfile).write_text(yaml.safe_dump(data, sort_keys=False))
    config.load(run.folder / run.configfile)
    sources = ROOT / "results/sources"
    shutil.copytree(sources, run.folder / "results/sources", ignore=shutil.ignore_patterns(f"*{MODEL}*"))
    shutil.copytree(EMBEDDED / "residuals", run.results / "residuals", ignore=lambda *_: ["parts"])
    made = [path for pattern in MADE for path in run.results.glob(f"residuals/{pattern}.safetensors")]
    assert made
    files.remove(run.results / "residuals/index.json")
    for path in (*made, *run.results.glob("residuals/*.safetensors")):
        files.remove(path)
    yield run
    run.clear()


def test_the_embedded_profile_killed(embedded: Run, faults: list[Fault]) -> None:
    expected = compared(EMBEDDED)
    assert {Path(name).parts[0] for name in expected} >= {"saes", "metrics", "features", "curves"}
    killer = Killer(embedded, SECONDS.__getitem__, lambda: wrong(compared(embedded.results), expected))
    for stage, victim in KILLS.items():
        killer.hit(Counter([stage]), victim, once_saved=True)
    killer.to_the_end()
    assert differences(compared(embedded.results), expected) == []
    assert embedded.left_behind() == []
    assert killer.continued
    faults.append(killer.row("embedded profile, all compared at the end"))
