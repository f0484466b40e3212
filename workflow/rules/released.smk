rule import_released:
    input:
        file=released_file,
        unigrams=unigrams_of_released,
        code=code("tsae.sae.exchange.released"),
    output:
        "<results>/saes/layer{layer}/released-{name}/config.json",
        sae="<results>/saes/layer{layer}/released-{name}/sae.safetensors",
    log:
        "<logs>/import_released/layer{layer}/{name}.log",
    wildcard_constraints:
        name=r"[^/]+",
    localrule: True
    params:
        **options(
            "import-released",
            d_model=CONFIG.model.d_model,
            vocab_size=CONFIG.model.vocab_size,
            folder=folder_of_output,
            without_o=CONFIG.released.without_o if CONFIG.released else None,
            encoder_input=encoder_input_of_released,
        ),
    message:
        "Importing the authors' {wildcards.name} at layer {wildcards.layer}"
    shell:
        "python -m tsae --log {log} {params.call}"


use rule evaluate as evaluate_released with:
    input:
        **{
            **dict(rules.evaluate.input.items()),
            "sae": rules.import_released.output.sae,
            "token_biases": released_token_bias_reference,
        },
    output:
        metrics="<results>/metrics/layer{layer}/released-{name}.json",
        feature_table="<results>/features/layer{layer}/released-{name}.parquet",
        sums="<results>/sums/layer{layer}/released-{name}.safetensors",
    log:
        "<logs>/evaluate/layer{layer}/released-{name}.log",
    benchmark:
        "<benchmarks>/evaluate/layer{layer}/released-{name}.tsv"
    wildcard_constraints:
        name=r"[^/]+",
    message:
        "Evaluating the authors' {wildcards.name} at layer {wildcards.layer}"
