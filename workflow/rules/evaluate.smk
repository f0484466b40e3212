rule ablate:
    input:
        model=rules.prepare_model.output,
        residuals=rules.cache_residuals.output,
        code=code("baselines", "models", "residuals"),
    output:
        "<results>/ablations/layer{layer}.safetensors",
    log:
        "<logs>/ablate/layer{layer}.log",
    benchmark:
        "<benchmarks>/ablate/layer{layer}.tsv"
    threads: 1
    params:
        settings=to_json(CONFIG.evaluation),
        compatibility=COMPATIBILITY,
    message:
        "Measuring the loss with layer {wildcards.layer} intact and ablated"
    shell:
        "python -m tsae --log {log} ablate --settings {params.settings:q} {params.compatibility}"
        " --model $(dirname {input.model}) --residuals {input.residuals} --layer {wildcards.layer} --output {output}"


rule measure_tables:
    input:
        residuals=rules.cache_residuals.output,
        unigrams="<results>/unigrams/layer{layer}.safetensors",
        code=code("baselines", "metrics", "residuals", "lookup", "table"),
    output:
        "<results>/metrics/layer{layer}/tables.json",
    log:
        "<logs>/measure_tables/layer{layer}.log",
    benchmark:
        "<benchmarks>/measure_tables/layer{layer}.tsv"
    threads: 1
    params:
        settings=to_json(CONFIG.evaluation),
    message:
        "Measuring what tables alone say at layer {wildcards.layer}"
    shell:
        "python -m tsae --log {log} measure-tables --settings {params.settings:q} --residuals {input.residuals}"
        " --unigrams {input.unigrams} --layer {wildcards.layer} --output {output}"


rule evaluate:
    input:
        sae=rules.train.output.sae,
        token_biases=token_bias_reference,
        model=rules.prepare_model.output,
        residuals=rules.cache_residuals.output,
        unigrams="<results>/unigrams/layer{layer}.safetensors",
        ablations=rules.ablate.output,
        code=code("evaluate", "baselines", "metrics", "sae", "kernels", "models", "residuals", "lookup", "table"),
    output:
        "<results>/metrics/layer{layer}/{point}-s{seed}.json",
    log:
        "<logs>/evaluate/layer{layer}/{point}-s{seed}.log",
    benchmark:
        "<benchmarks>/evaluate/layer{layer}/{point}-s{seed}.tsv"
    threads: 1
    params:
        job=lambda wildcards: to_json(job_of(wildcards)),
        settings=to_json(CONFIG.evaluation),
        compatibility=COMPATIBILITY,
    message:
        "Evaluating {wildcards.point} at layer {wildcards.layer}, seed {wildcards.seed}"
    shell:
        "python -m tsae --log {log} evaluate --job {params.job:q} --settings {params.settings:q} {params.compatibility}"
        " --sae $(dirname {input.sae}) --token-biases $(dirname {input.token_biases}) --model $(dirname {input.model})"
        " --residuals {input.residuals} --unigrams {input.unigrams}"
        " --ablations {input.ablations} --output {output}"


rule collect:
    input:
        measurements=[
            *expand("<results>/metrics/layer{layer}/tables.json", layer=LAYERS),
            *expand("<results>/metrics/{job}.json", job=JOBS),
        ],
        code=code("table"),
    output:
        "<results>/metrics.csv",
    log:
        "<logs>/collect.log",
    message:
        "Gathering all measurements"
    shell:
        "python -m tsae --log {log} collect --output {output} {input.measurements}"


rule manifest:
    input:
        results=[
            rules.collect.output,
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
