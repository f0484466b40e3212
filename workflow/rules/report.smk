rule measure_claims:
    input:
        ledger=LEDGER,
        published=PUBLISHED,
        tables=[*expand("<results>/tables/{table}.csv", table=TABLES), *PHRASES],
        sums=SUMS,
        code=code("tsae.claims.run"),
    output:
        csv="<results>/claims.csv",
        markdown="<results>/claims.md",
        html=report("<results>/claims.html", caption="../report/claims.rst", category="Claims"),
    log:
        "<logs>/measure_claims.log",
    localrule: True
    params:
        **options(
            "measure-claims",
            **HEADLINE,
            simple_threshold=CONFIG.simple.threshold,
            bootstrap=CONFIG.evaluation.bootstrap,
            seed=CONFIG.evaluation.seed,
        ),
    message:
        "Measuring every claim"
    shell:
        "python -m tsae --log {log} {params.call}"


rule notebook:
    input:
        notebook=lambda wildcards: local(f"notebooks/{wildcards.notebook}.py"),
        results=results_of_notebook,
        code=lambda wildcards: code(Path(local(f"notebooks/{wildcards.notebook}.py"))),
    output:
        ipynb="<results>/notebooks/{notebook}.ipynb",
        html=report("<results>/notebooks/{notebook}.html", caption="../report/notebook.rst", category="Notebooks"),
    log:
        "<logs>/notebook/{notebook}.log",
    benchmark:
        "<benchmarks>/notebook/{notebook}.tsv"
    # As much as an evaluation, since it runs the model on a sentence.
    resources:
        mem_mb=memory_of("evaluate"),
    params:
        baseline=HEADLINE.get("baseline", ""),
        tokenized=HEADLINE.get("tokenized", ""),
        results=lambda wildcards, output: os.path.dirname(os.path.dirname(output.html)),
    message:
        "Running the notebook {wildcards.notebook}"
    shell:
        "(export TSAE_RESULTS={params.results} TSAE_BASELINE={params.baseline} TSAE_TOKENIZED={params.tokenized};"
        " python -m jupytext --to ipynb --set-kernel python3 --execute --run-path . --output {output.ipynb} {input.notebook:q}"
        " && python -m nbconvert --to html --log-level WARN {output.ipynb}"
        " && python -m tsae record {output}) > {log} 2>&1"


rule explore:
    input:
        **files_of_explorer(),
        code=code("tsae.explore.page"),
        assets=assets_of("tsae.explore.page"),
    output:
        **(
            {"page": report("<results>/explorer.html", caption="../report/explorer.rst", category="Features")}
            if ONE_PAGE
            else {"page": "<results>/explorer.html", "parts": directory("<results>/explorer")}
        ),
    log:
        "<logs>/explore.log",
    benchmark:
        "<benchmarks>/explore.tsv"
    resources:
        mem_mb=memory_of("evaluate"),
    params:
        **options(
            "explore",
            results=lambda wildcards, output: os.path.dirname(output[0]),
            layer=SHOWN.layer,
            parts=[] if ONE_PAGE else lambda wildcards, output: output[1],
            **{role: HEADLINE[role] for role in EXPLORED},
        ),
    message:
        "Writing the feature explorer of layer {params.layer}"
    shell:
        "python -m tsae --log {log} {params.call}"


rule verify:
    input:
        results=[
            "<results>/claims.csv",
            "<results>/metrics.csv",
            *expand("<results>/tables/{table}.csv", table=TABLES),
            *PHRASES,
        ],
        sums=SUMS,
        figures=expand("<figures>/{figure}.{format}", figure=FIGURES, format=FORMATS),
        ledger=[LEDGER, PUBLISHED],
        record=local("docs/record.json"),
        tests=local("workflow/verify/test_results.py"),
        code=code(Path(local("workflow/verify/test_results.py"))),
    output:
        "<results>/verified.txt",
    log:
        "<logs>/verify.log",
    localrule: True
    params:
        settings=SETTINGS,
        results=lambda wildcards, output: os.path.dirname(output[0]),
        figures=lambda wildcards, input: os.path.dirname(next(iter(input.figures), "")),
    message:
        "Verifying the results"
    shell:
        "(export TSAE_CONFIG={params.settings:q} TSAE_RESULTS={params.results} TSAE_FIGURES={params.figures}"
        " TSAE_RECORD={input.record:q};"
        " python -m pytest -q -p no:cacheprovider -rA {input.tests:q}) > {log} 2>&1 && cp {log} {output}"
        " && python -m tsae record {output}"


rule manifest:
    input:
        results=[
            "<results>/metrics.csv",
            "<results>/claims.csv",
            *expand("<figures>/{figure}.{format}", figure=FIGURES, format=FORMATS),
            *expand("<results>/saes/{job}/sae.safetensors", job=[*JOBS, *RELEASED]),
        ],
        code=code("tsae.store.manifest"),
    output:
        "<results>/manifest.json",
    log:
        "<logs>/manifest.log",
    localrule: True
    params:
        **options(
            "manifest",
            settings=SETTINGS,
        ),
    message:
        "Writing the manifest"
    shell:
        "python -m tsae --log {log} {params.call}"
