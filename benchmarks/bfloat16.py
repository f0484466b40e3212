"""How much faster the model's loss would be in bfloat16, and how far CE added would move.

    python benchmarks/bfloat16.py [--results results/embedded] [--config config/config.yaml] [--rounds 3] [--output results/bench]

Works on the files of a run: the headline SAEs of the first seed at the middle layer, and the held-out sequences of the evaluation, on
one thread as evaluation runs. CE added is paired: clean and patched passes are of the same precision.
"""

import argparse
import copy
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from measure import describe_machine, table
from torch import Tensor, nn

from tsae.measure.loss import patched_losses
from tsae.measure.reconstruction import reconstruct
from tsae.measure.sequences import Sequences, load_sequences, spread
from tsae.measure.sums import DocumentSums
from tsae.model.language_model import LanguageModel, load_model
from tsae.profile import config
from tsae.profile.evaluation import Evaluation
from tsae.profile.sweep import Job
from tsae.residuals.read import open_residuals
from tsae.residuals.shards import evenly_spaced
from tsae.sae.checkpoint import load
from tsae.store import layout
from tsae.store.files import write_json

FLOAT32 = "float32"


class Rounded(nn.Linear):
    """A linear layer whose product is of bfloat16 numbers."""

    rounded: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Product in bfloat16, returned as float32."""
        bias = None if self.bias is None else self.bias.bfloat16()
        return nn.functional.linear(x.bfloat16(), self.rounded, bias).float()

    @classmethod
    def put_into(cls, model: nn.Module) -> None:
        """Make all linear layers of a model such layers."""
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.rounded = module.weight.detach().bfloat16()
                module.__class__ = cls


class Narrow:
    """A model whose weights and residual stream are bfloat16; logits are returned as float32."""

    def __init__(self, model: LanguageModel):
        """Take the model, which changes."""
        model._bridge.to(torch.bfloat16)
        self._model, self.device = model, model.device

    def logits_from(self, residual: Tensor, layer: int, ids: Tensor) -> Tensor:
        """As of a language model."""
        return self._model.logits_from(residual.bfloat16(), layer, ids).float()


def losses(model: Any, x_hat: Tensor, sequences: Sequences, layer: int, settings: Evaluation) -> tuple[Tensor, float]:
    """Losses with these residuals in place at the kept tokens (N, d), and the time [s]."""
    start = time.perf_counter()
    return patched_losses(x_hat, model, sequences, layer, settings), time.perf_counter() - start


def measure(results: Path, job: Job, models: dict[str, Any], settings: Evaluation, rounds: int) -> list[dict[str, Any]]:
    """The rows of an SAE, one for each way of computing."""
    cache = open_residuals(results / layout.RESIDUALS, "heldout", job.layer)
    sequences = load_sequences(cache, results / layout.HELDOUT_TOKENS)
    scored = spread(sequences, settings.ce_sequences)
    in_loss = evenly_spaced(len(sequences.tokens), settings.ce_sequences)
    _, x_hat = reconstruct(load(results / layout.SAE.format(job=job.id)), sequences, settings, in_loss)
    x, kept = scored.residuals[scored.kept].float(), scored.kept[:, :-1]
    documents = scored.documents[:, :-1][kept]
    added, seconds = {}, {name: list[float]() for name in models}
    for name, model in models.items():
        clean, patched = (losses(model, of, scored, job.layer, settings)[0] for of in (x, x_hat))
        added[name] = (patched - clean)[kept].double()
    for _ in range(rounds):
        for name, model in models.items():
            seconds[name].append(losses(model, x_hat, scored, job.layer, settings)[1])
    rows = []
    for name in models:
        sums = DocumentSums(sequences.documents)
        sums.add("added", added[name], 1, documents)
        sums.add("difference", added[name] - added[FLOAT32], 1, documents)
        of_added, difference = sums.measure(settings.bootstrap, settings.seed)
        ratios = [time / unit for time, unit in zip(seconds[name], seconds[FLOAT32], strict=True)]
        rows.append(
            {
                "sae": job.id,
                "way": name,
                "time_ratio": sorted(ratios)[len(ratios) // 2],
                "ce_added_nats": dataclasses.asdict(of_added),
                "difference": dataclasses.asdict(difference),
            }
        )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=layout.EMBEDDED)
    parser.add_argument("--config", type=Path, default=Path("config/config.yaml"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=layout.BENCH)
    arguments = parser.parse_args()
    if not (arguments.results / layout.MANIFEST).exists():
        print(f"{arguments.results}: there is no finished run, so bfloat16 is not measured; run: make reproduce")
        return
    torch.set_num_threads(1)
    settings = config.load(arguments.config)
    layers = sorted({job.layer for job in settings.jobs("headline")})
    jobs = [job for job in settings.jobs("headline") if job.layer == layers[len(layers) // 2]]
    jobs = [job for job in jobs if job.seed == jobs[0].seed]
    model = load_model(arguments.results / layout.MODEL, settings.model.compatibility_mode)
    model.starts_at(jobs[0].layer)  # in float32, within whose rounding it is tried
    rounded, narrow = copy.deepcopy(model), copy.deepcopy(model)
    Rounded.put_into(rounded._bridge)
    models = {
        FLOAT32: model,
        "products in bfloat16": rounded,
        "weights and residual stream in bfloat16": Narrow(narrow),
    }
    rows = [
        row for job in jobs for row in measure(arguments.results, job, models, settings.evaluation, arguments.rounds)
    ]
    print(table({key: str(value) for key, value in row.items()} for row in rows))
    write_json(
        arguments.output / "bfloat16.json",
        {
            "machine": describe_machine(),
            "profile": settings.profile,
            "sequences": settings.evaluation.ce_sequences,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
