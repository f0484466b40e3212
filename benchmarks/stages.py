"""Time and memory of every stage of a finished run, from the benchmark files that Snakemake left.

    python benchmarks/stages.py [--results results/embedded] [--output results/bench]

Jobs ran beside each other on the machine's cores. Snakemake samples CPU time and memory every half second at first, and every 30
seconds after the first 15, so the CPU time after a job's last sample is missing.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
from measure import table

from tsae.profile.point import Point
from tsae.store import layout
from tsae.store.files import write_json


def benchmark_files(results: Path) -> dict[str, list[Path]]:
    """The benchmark files by stage, in the order in which stages ended."""
    folder = results / layout.BENCHMARKS
    entries = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []
    return {path.stem: [path] if path.is_file() else sorted(path.rglob("*.tsv")) for path in entries}


def read(path: Path) -> pd.Series:
    """Snakemake's measurements of a job."""
    return pd.read_csv(path, sep="\t", na_values="-").iloc[-1]


def sae_of(results: Path, stage: str, path: Path) -> dict[str, Any]:
    """The description of the SAE that a job of a stage trained or evaluated."""
    name = path.relative_to(results / layout.BENCHMARKS / stage).with_suffix("")
    description: dict[str, Any] = json.loads((results / layout.SAE.format(job=name) / "config.json").read_bytes())
    return description


def tokens_of(results: Path, stage: str, path: Path) -> int | None:
    """Tokens that a job passes through the model or the SAE, if they take its time."""
    match stage:
        case "cache_residuals":
            return int(json.loads((results / layout.RESIDUALS_PART.format(part=path.stem)).read_bytes())["tokens"])
        case "train":
            return int(sae_of(results, stage, path)["training"]["tokens"])
    return None


def measure_stages(results: Path) -> list[dict[str, Any]]:
    """One row per stage."""
    rows: list[dict[str, Any]] = []
    for stage, paths in benchmark_files(results).items():
        jobs = pd.DataFrame([read(path) for path in paths])
        tokens = [tokens_of(results, stage, path) for path in paths]
        rows.append(
            {
                "stage": stage,
                "jobs": len(jobs),
                "wall_s": float(jobs["s"].sum()),
                "wall_s_per_job": float(jobs["s"].mean()),
                "sampled_cpu_s": float(jobs["cpu_time"].sum()),
                "peak_rss_mb": float(jobs["max_rss"].max()),
                "tokens_per_s": None if None in tokens else sum(filter(None, tokens)) / float(jobs["s"].sum()),
            }
        )
    whole = sum(row["wall_s"] for row in rows)
    return [{**row, "share": row["wall_s"] / whole} for row in rows]


def measure_saes(results: Path) -> list[dict[str, Any]]:
    """One row per point of the sweep: mean wall seconds of training and evaluation over layers and seeds."""
    rows: list[dict[str, Any]] = []
    for path in benchmark_files(results).get("train", []):
        about = sae_of(results, "train", path)
        folder = results / layout.BENCHMARKS
        evaluation = folder / "evaluate" / path.relative_to(folder / "train")
        train_s = float(read(path)["s"])
        rows.append(
            {
                "point": Point.model_validate(about["point"]).id,
                "n_features": about["n_features"],
                "l0": about["final"]["l0"],
                "train_s": train_s,
                "train_tokens_per_s": about["training"]["tokens"] / train_s,
                "evaluate_s": float(read(evaluation)["s"]) if evaluation.exists() else None,
            }
        )
    if not rows:
        return []
    points = pd.DataFrame(rows).groupby("point", as_index=False).mean().sort_values(["n_features", "l0"])
    records: list[dict[str, Any]] = json.loads(points.to_json(orient="records"))
    return records


def measure_run(results: Path, environment: Path) -> dict[str, float | None]:
    """Seconds for setting up the environment, and from the start of the first job to the run's last file."""
    files = [path for paths in benchmark_files(results).values() for path in paths]
    begun = min(path.stat().st_mtime - float(read(path)["s"]) for path in files)
    ready = environment / "ready"
    return {
        "environment_s": ready.stat().st_mtime - (environment / "pyvenv.cfg").stat().st_mtime
        if ready.exists()
        else None,
        "dag_s": (results / layout.MANIFEST).stat().st_mtime - begun,
    }


def show_stages(rows: list[dict[str, Any]]) -> str:
    """The rows of the stages as a table."""
    return table(
        {
            "stage": row["stage"],
            "jobs": f"{row['jobs']}",
            "wall [s]": f"{row['wall_s']:.0f}",
            "wall of a job [s]": f"{row['wall_s_per_job']:.1f}",
            "share": f"{row['share']:.1%}",
            "sampled CPU [s]": f"{row['sampled_cpu_s']:.0f}",
            "peak RSS of a job [MB]": f"{row['peak_rss_mb']:.0f}",
            "tokens/s of a job": "" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:.0f}",
        }
        for row in rows
    )


def show_saes(rows: list[dict[str, Any]]) -> str:
    """The TopK points that differ only in features, k and table, as a table; may be empty."""
    lines = [
        {
            "SAE": row["point"],
            "features": f"{row['n_features']:.0f}",
            "training [s]": f"{row['train_s']:.0f}",
            "tokens/s": f"{row['train_tokens_per_s']:.0f}",
            "evaluation [s]": "" if row["evaluate_s"] is None else f"{row['evaluate_s']:.0f}",
        }
        for row in rows
        if re.fullmatch(r"topk-k\d+-x[\d.]+-(none|fixed|learned)", row["point"])
    ]
    return table(lines) if lines else ""


def main() -> None:
    """Read, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=layout.EMBEDDED)
    parser.add_argument("--output", type=Path, default=layout.BENCH)
    arguments = parser.parse_args()
    if not (arguments.results / layout.MANIFEST).exists():
        print(f"{arguments.results}: there is no finished run, so stages are not measured; run: make reproduce")
        return
    stages, saes = measure_stages(arguments.results), measure_saes(arguments.results)
    run = measure_run(arguments.results, Path(__file__).parent.parent / ".venv")
    print(f"{arguments.results}\n\n{show_stages(stages)}\n\n{show_saes(saes)}")
    print(", ".join(f"{name}: {value:.0f} s" for name, value in run.items() if value is not None))
    manifest = json.loads((arguments.results / layout.MANIFEST).read_bytes())
    write_json(
        arguments.output / "stages.json",
        {"machine": manifest["machine"], "git": manifest["git"], "run": run, "stages": stages, "saes": saes},
    )


if __name__ == "__main__":
    main()
