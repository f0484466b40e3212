"""The plan of a profile: jobs, tokens, disk, memory and hours, before anything is downloaded.

`costs` counts the work of stages. `docs/cost.json` has the measured rates of the last embedded run. Hours on a GPU are
estimated from its throughput alone.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, ValidationError

from tsae.plan.cost import Cost
from tsae.plan.costs import costs
from tsae.plan.sizes import disk, download
from tsae.profile.config import Config, load
from tsae.profile.section import Section
from tsae.profile.validation import describe_errors

MEASURED = Path(__file__).parents[2] / "docs/cost.json"
# Stages that give the rate of the language model.
MODEL_STAGES = ("cache_residuals", "unigrams", "ablate")
GPU_START = 5.0  # start of a process on a GPU, besides its imports [s]; an assumption


class Rates(Section):
    """Speed of the machine of the last embedded run, per core."""

    cores: int = Field(ge=1, description="Cores of the machine")
    start: float = Field(ge=0, description="Start of a process [s]")
    start_model: float = Field(ge=0, description="Start of a process that loads the language model [s]")
    model: float = Field(gt=0, description="Language model [FLOP/s]")
    dense: float = Field(gt=0, description="Dense products of SAEs and tables [FLOP/s]")
    sparse: float = Field(gt=0, description="Work on active features [FLOP/s]")
    stream: float = Field(gt=0, description="Reading residuals and making batches of them [bytes/s]")
    text: float = Field(gt=0, description="Reading and tokenising text, counting phrases [tokens/s]")


class Machine(NamedTuple):
    """The machine whose hours are estimated."""

    gpu_tflops: Annotated[float, Field(ge=0.001)] = 10.0
    """Throughput of the GPU [10^12 FLOP/s]; the default is half of an A100's float32 peak without TF32."""
    disk_gb_per_s: Annotated[float, Field(ge=0.001)] = 0.5
    """Speed of reading cached residuals and making batches [GB/s]."""
    gb_per_hour: Annotated[float, Field(ge=0.001)] = 50.0
    """Speed of downloads [GB/h]."""


REFERENCE = Machine()


class Planned(NamedTuple):
    """A stage, and the time it takes."""

    cost: Cost
    hours: float
    """On all cores of the machine of the last embedded run."""
    gpu_hours: float
    """With one GPU, jobs one after the other."""


class Plan(NamedTuple):
    """The plan of a profile."""

    config: Config
    stages: list[Planned]
    disk: dict[str, float]
    """By kind [bytes]."""
    download: float
    """[bytes]"""
    machine: Machine

    @property
    def hours(self) -> float:
        """On the machine of the last embedded run."""
        return sum(stage.hours for stage in self.stages)

    @property
    def gpu_hours(self) -> float:
        """With one GPU."""
        return sum(stage.gpu_hours for stage in self.stages)


def read_rates(path: Path = MEASURED) -> Rates:
    """Read the rates on record.

    Raises:
        ValueError: there is no such file, or it has no rates.
    """
    try:
        return Rates.model_validate(json.loads(path.read_bytes())["rates"])
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file; run from a checkout of the project, or name its docs/cost.json"
        ) from None
    except ValidationError as error:
        raise ValueError(describe_errors(error, Rates, f"{path}: rates")) from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{path}: not the record of a run; run `make docs` after a whole run") from None


def plan(config: Config, rates: Rates, machine: Machine) -> Plan:
    """Plan a profile."""
    stages = [
        Planned(
            cost,
            seconds(cost, rates) / _cores(cost, rates) / 3600,
            _gpu_seconds(cost, rates, machine) / 3600,
        )
        for cost in costs(config)
    ]
    return Plan(config, stages, disk(config), download(config), machine)


def plan_of_file(configfile: Path, machine: Machine = REFERENCE, measured: Path = MEASURED) -> str:
    """Print what a profile takes, before anything is downloaded.

    Args:
        configfile: the profile.
        machine: the machine whose hours are estimated.
        measured: record of a run, with the rates of its machine.

    Raises:
        ValueError: the profile has a mistake, or the record has no rates.
    """
    return show(plan(load(configfile), read_rates(measured), machine))


def seconds(cost: Cost, rates: Rates) -> float:
    """Core seconds of all jobs of a stage."""
    start = rates.start_model if cost.loads_model else rates.start
    return (
        cost.jobs * start
        + cost.model_flops / rates.model
        + cost.dense_flops / rates.dense
        + cost.sparse_flops / rates.sparse
        + cost.read_bytes / rates.stream
        + cost.text_tokens / rates.text
    )


def _cores(cost: Cost, rates: Rates) -> int:
    """Cores that a stage keeps busy: a single job one, unless it runs the model."""
    return 1 if cost.jobs == 1 and not cost.loads_model else rates.cores


def _gpu_seconds(cost: Cost, rates: Rates, machine: Machine) -> float:
    """Seconds of a stage with one GPU. Products have its throughput; other work keeps its ratio to products."""
    if not cost.on_gpu:
        return seconds(cost, rates)
    throughput = machine.gpu_tflops * 1e12
    computing = (cost.model_flops + cost.dense_flops + cost.sparse_flops * rates.dense / rates.sparse) / throughput
    # Reading overlaps with computing.
    reading = cost.read_bytes / (machine.disk_gb_per_s * 1e9)
    start = rates.start_model if cost.loads_model else rates.start
    return cost.jobs * (start + GPU_START) + max(computing, reading)


def fit_rates(
    config: Config, stages: Sequence[Mapping[str, Any]], saes: Sequence[Mapping[str, Any]], **known: Any
) -> Rates:
    """Fit the rates to the times of a run.

    Args:
        config: configuration of the run.
        stages: rows of `benchmarks/stages.py` by stage.
        saes: its rows by point of the sweep.
        known: `cores`, `start` and `start_model`.

    Raises:
        ValueError: the times of training do not determine the rates.
    """
    import numpy as np

    by_stage = {cost.stage: cost for cost in costs(config)}
    took = {row["stage"]: row for row in stages}
    flops = core_seconds = 0.0
    for stage in MODEL_STAGES:
        row, threads = took[stage], 1 if took[stage]["jobs"] > 1 else known["cores"]
        flops += by_stage[stage].model_flops
        core_seconds += (row["wall_s"] - row["jobs"] * known["start_model"]) * threads
    text = ("prepare_documents", "tokenize", "find_phrases")
    text_seconds = sum(took[stage]["wall_s"] - known["start"] for stage in text)

    # Training costs a time per token, per feature and per active feature.
    points = {job.point.id: job.point for job in config.jobs()}
    rows = [row for row in saes if row["point"] in points and points[row["point"]].architecture == "topk"]
    d, tokens = config.model.d_model, config.training.tokens
    done = np.array(
        [[2 * d + 12, 2 * d * row["n_features"], 8 * d * (points[row["point"]].k or 0)] for row in rows], dtype=float
    )
    spent = np.array([row["train_s"] - known["start"] for row in rows]) / tokens
    cost_of = np.linalg.lstsq(done / spent[:, None], np.ones(len(rows)), rcond=None)[0]
    if (cost_of <= 0).any():
        raise ValueError(
            f"the times of {len(rows)} trainings do not separate the costs of tokens, features and active features; "
            "measure again on an idle machine"
        )
    stream, dense, sparse = 1 / cost_of
    return Rates(
        **known,
        model=_rounded(flops / core_seconds),
        dense=_rounded(dense),
        sparse=_rounded(sparse),
        stream=_rounded(stream),
        text=_rounded(sum(by_stage[stage].text_tokens for stage in text) / text_seconds),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def show(planned: Plan) -> str:
    """The plan as text: a table of stages, files on disk, and the summary."""
    header = ["stage", "jobs", "tokens through the model", "tokens trained on", "PFLOP", "memory", "GPU memory"]
    header += ["hours, reference", "hours, one GPU"]
    total = Cost(
        stage="all",
        on_gpu=True,
        **{
            name: (max if name.endswith("memory") else sum)(getattr(stage.cost, name) for stage in planned.stages)
            for name in Cost._fields
            if name not in ("stage", "loads_model", "on_gpu")
        },
    )
    rows = [
        [
            cost.stage,
            str(cost.jobs),
            _count(cost.model_tokens),
            _count(cost.trained_tokens),
            in_digits(cost.flops / 1e15),
            in_bytes(cost.memory),
            in_bytes(cost.gpu_memory) if cost.on_gpu else "",
            in_digits(hours),
            in_digits(gpu_hours),
        ]
        for cost, hours, gpu_hours in [*planned.stages, Planned(total, planned.hours, planned.gpu_hours)]
    ]
    on_disk = [[kind, in_bytes(size)] for kind, size in planned.disk.items()]
    return "\n\n".join([_aligned([header, *rows]), _aligned([["on disk", ""], *on_disk]), summary(planned)])


def summary(planned: Plan) -> str:
    """Tokens, disk, memory and hours of a profile in four lines, which the head of its file repeats."""
    config, by_stage = planned.config, {stage.cost.stage: stage.cost for stage in planned.stages}
    n_saes = by_stage["train"].jobs
    largest = max(by_stage.values(), key=lambda cost: cost.memory)
    on_gpu = max(by_stage.values(), key=lambda cost: cost.gpu_memory)
    residuals = "streamed from the model" if config.streams else "kept"
    kept = "" if not config.streams else f"; {in_bytes(config.cache_bytes(False))} if they were kept"
    return "\n".join(
        [
            f"Tokens: {n_saes} SAEs of {_count(config.training.tokens)} each, "
            f"{_count(by_stage['train'].trained_tokens)} in all; "
            f"{_count(sum(cost.model_tokens for cost in by_stage.values()))} through the model or a part of it.",
            f"Disk: {in_bytes(sum(planned.disk.values()))}, of which residuals, {residuals}, are "
            f"{in_bytes(planned.disk['residuals'])}{kept}. Download: {in_bytes(planned.download)}.",
            f"Memory: {in_bytes(largest.memory)} ({largest.stage}); of a GPU: {in_bytes(on_gpu.gpu_memory)} "
            f"({on_gpu.stage}).",
            f"Hours: {in_digits(planned.gpu_hours)} with one GPU that reaches {planned.machine.gpu_tflops:g} TFLOP/s, "
            f"an estimate; {in_digits(planned.hours)} on the machine of the embedded run, without one; "
            f"{in_digits(planned.download / 1e9 / planned.machine.gb_per_hour)} of download.",
        ]
    )


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = ("  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def in_digits(value: float, digits: int = 2) -> str:
    """A number rounded to significant digits, without exponent."""
    if value <= 0:
        return "0"
    if value < 0.01:
        return "< 0.01"
    return f"{float(f'{value:.{digits}g}'):,.10g}".replace(",", " ")


def _scaled(value: float, units: Sequence[tuple[float, str]], digits: int) -> str:
    for size, unit in units:
        if value >= 0.995 * size:
            return f"{in_digits(value / size, digits)} {unit}"
    return "0"


def _count(value: float) -> str:
    return _scaled(value, [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")], 3).rstrip()


def in_bytes(value: float) -> str:
    """A size in two significant digits, with its unit."""
    return _scaled(value, [(1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")], 2)
