rule measure_claims:
    input:
        ledger=LEDGER,
        published=PUBLISHED,
        tables=[*expand("<results>/tables/{table}.csv", table=TABLES), *PHRASES],
        code=code("claims", "ledger", "measures", "selection", "metrics", "table"),
    output:
        csv="<results>/claims.csv",
        markdown="<results>/claims.md",
        html=report("<results>/claims.html", caption="../report/claims.rst", category="Claims"),
    log:
        "<logs>/measure_claims.log",
    params:
        headline=list(CONFIG.headline()),
        simple_threshold=CONFIG.simple.threshold,
    message:
        "Measuring every claim"
    shell:
        "python -m tsae --log {log} measure-claims --ledger {input.ledger} --published {input.published}"
        " --baseline {params.headline[0]} --tokenized {params.headline[1]} --simple-threshold {params.simple_threshold}"
        " --output {output.csv} --markdown {output.markdown} --html {output.html} {input.tables}"


rule notebook:
    input:
        notebook=lambda wildcards: local(f"notebooks/{wildcards.notebook}.py"),
        results=results_of_notebook,
        code=code(
            "explore",
            "features",
            "table",
            "plots",
            "metrics",
            "measures",
            "selection",
            "baselines",
            "residuals",
            "lookup",
            *SAE_CODE,
        ),
    output:
        ipynb="<results>/notebooks/{notebook}.ipynb",
        html=report("<results>/notebooks/{notebook}.html", caption="../report/notebook.rst", category="Notebooks"),
    log:
        "<logs>/notebook/{notebook}.log",
    benchmark:
        "<benchmarks>/notebook/{notebook}.tsv"
    params:
        **HEADLINE,
        results=lambda wildcards: workflow.pathvars.items["results"],
    message:
        "Running the notebook {wildcards.notebook}"
    shell:
        "(export TSAE_RESULTS={params.results} TSAE_BASELINE={params.baseline} TSAE_TOKENIZED={params.tokenized};"
        " python -m jupytext --to ipynb --set-kernel python3 --execute --run-path . --output {output.ipynb} {input.notebook}"
        " && python -m nbconvert --to html --log-level WARN {output.ipynb}) > {log} 2>&1"


rule verify:
    input:
        results=[
            "<results>/claims.csv",
            "<results>/metrics.csv",
            *expand("<results>/tables/{table}.csv", table=TABLES),
            *PHRASES,
            *expand("<figures>/{figure}.{format}", figure=FIGURES, format=FORMATS),
        ],
        ledger=[LEDGER, PUBLISHED],
        record=local("docs/record.json"),
        tests=local("workflow/verify/test_results.py"),
        code=code("claims", "ledger", "measures", "selection", "manifest", "table"),
    output:
        "<results>/verified.txt",
    log:
        "<logs>/verify.log",
    params:
        settings=to_json(CONFIG),
        results=lambda wildcards: workflow.pathvars.items["results"],
        figures=lambda wildcards: workflow.pathvars.items["figures"],
    message:
        "Verifying the results"
    shell:
        "(export TSAE_CONFIG={params.settings:q} TSAE_RESULTS={params.results} TSAE_FIGURES={params.figures}"
        " TSAE_RECORD={input.record};"
        " python -m pytest -q -p no:cacheprovider -rA {input.tests}) > {log} 2>&1 && cp {log} {output}"


rule manifest:
    input:
        results=[
            "<results>/metrics.csv",
            "<results>/claims.csv",
            *expand("<figures>/{figure}.{format}", figure=FIGURES, format=FORMATS),
            *expand("<results>/saes/{job}/sae.safetensors", job=JOBS),
        ],
        code=code("manifest"),
    output:
        "<results>/manifest.json",
    log:
        "<logs>/manifest.log",
    params:
        settings=to_json(CONFIG),
    message:
        "Writing the manifest"
    shell:
        "python -m tsae --log {log} manifest --settings {params.settings:q} --output {output} {input.results}"
