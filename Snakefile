"""Tokenized SAEs: from weights and text to every figure, table and claim. Start with README.md."""

from snakemake.utils import min_version

min_version("9.27")


container: "envs/tsae.sif"


report: "workflow/report/workflow.rst"


if not workflow.configfiles:

    configfile: workflow.source_path("config/config.yaml")


# Not workflow.basedir: workflow/Snakefile includes this file.
PROJECT = str(workflow.current_basedir)


include: "workflow/rules/common.smk"
include: "workflow/rules/shown.smk"
include: "workflow/rules/commands.smk"
include: "workflow/rules/start.smk"
include: "workflow/rules/machine.smk"


pathvars:
    sources=str(layout.SOURCES),
    results=RESULTS,
    figures=str(layout.figures_of(CONFIG.profile)),
    logs=f"{RESULTS}/logs",
    benchmarks=f"{RESULTS}/{layout.BENCHMARKS}",


onstart:
    room_for_every_job()
    one_run_at_a_time()
    no_file_from_the_future()
    wake_when_a_job_ends()
    say_the_time_left()


include: "workflow/rules/sources.smk"
include: "workflow/rules/residuals.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/released.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        expand("<figures>/{figure}.{format}", figure=FIGURES, format=FORMATS),
        "<results>/metrics.csv",
        "<results>/claims.csv",
        "<results>/verified.txt",
        expand("<results>/notebooks/{notebook}.html", notebook=NOTEBOOKS),
        ["<results>/explorer.html"] if EXPLORED else [],
        "<results>/manifest.json",
