rule import_released:
    input:
        file=released_file,
        unigrams=unigrams_of_released,
        code=code("released", "released_files", "lookup", "sae", "sweep"),
    output:
        "<results>/saes/layer{layer}/released-{name}/config.json",
        sae="<results>/saes/layer{layer}/released-{name}/sae.safetensors",
    log:
        "<logs>/import_released/layer{layer}/{name}.log",
    wildcard_constraints:
        name=r"[^/]+",
    localrule: True
    params:
        d_model=CONFIG.model.d_model,
        vocab_size=CONFIG.model.vocab_size,
        reading=reading_of_released,
    message:
        "Importing the authors' {wildcards.name} at layer {wildcards.layer}"
    shell:
        "python -m tsae --log {log} import-released --file {input.file:q} --folder $(dirname {output.sae})"
        " --d-model {params.d_model} --vocab-size {params.vocab_size} {params.reading}"


use rule evaluate as evaluate_released with:
    input:
        **{
            **dict(rules.evaluate.input.items()),
            "sae": rules.import_released.output.sae,
            "token_biases": released_token_bias_reference,
        },
    output:
        metrics="<results>/metrics/layer{layer}/released-{name}.json",
        features="<results>/features/layer{layer}/released-{name}.parquet",
        sums="<results>/sums/layer{layer}/released-{name}.safetensors",
    log:
        "<logs>/evaluate/layer{layer}/released-{name}.log",
    benchmark:
        "<benchmarks>/evaluate/layer{layer}/released-{name}.tsv"
    wildcard_constraints:
        name=r"[^/]+",
    params:
        job=lambda wildcards: to_json(released_job(wildcards)),
    message:
        "Evaluating the authors' {wildcards.name} at layer {wildcards.layer}"
