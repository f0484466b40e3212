"""Tokens/s of residual caching against the bare Hugging Face model stopped at the same layer, A B A B in one process.

    python benchmarks/residual_caching.py [--model results/embedded/model] [--rounds 10] [--output FILE.json]

The ratio is a median over pairs, because the machine's speed drifts but ratios of neighbours do not.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tsae.model.language_model import load_model
from tsae.profile import config
from tsae.store import layout
from tsae.store.files import write_json

PROFILE = config.load(Path(__file__).parent.parent / "config/config.yaml")


class StoppedError(Exception):
    """Raised to stop the bare model."""


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=layout.EMBEDDED / layout.MODEL)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, default=layout.BENCH / "residual_caching.json")
    arguments = parser.parse_args()

    layers = PROFILE.residuals.layers
    ours = load_model(arguments.model)
    bare = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    shape = (PROFILE.residuals.batch_sequences, PROFILE.tokens.n_ctx)
    ids = torch.randint(ours.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    kept: dict[int, torch.Tensor] = {}

    def stop(*_: object) -> None:
        raise StoppedError

    blocks = bare.model.layers if hasattr(bare.model, "layers") else bare.transformer.h
    blocks[max(layers)].register_forward_pre_hook(stop)

    def run_bare() -> None:
        try:
            with torch.no_grad():
                bare(ids, use_cache=False)
        except StoppedError:
            pass

    def run_ours() -> None:
        kept.update(ours.residuals(ids, layers))

    run_bare()
    run_ours()
    pairs = [(seconds(run_bare), seconds(run_ours)) for _ in range(arguments.rounds)]
    n_tokens = ids.numel()
    measured = {
        "layers": list(layers),
        "batch": shape,
        "threads": torch.get_num_threads(),
        "rounds": len(pairs),
        "bare_tokens_per_s": n_tokens / statistics.median(a for a, _ in pairs),
        "caching_tokens_per_s": n_tokens / statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
    }
    write_json(arguments.output, measured)
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
