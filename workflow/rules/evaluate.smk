rule ablate:
    input:
        model=rules.prepare_model.output,
        residuals=rules.index_residuals.output.index,
        heldout=rules.tokenize.output.heldout,
        statistics="<results>/residuals/layer{layer}.safetensors",
        code=code("baselines", "residuals", "shards", "tokens", *MODEL_CODE),
    output:
        "<results>/ablations/layer{layer}.safetensors",
    log:
        "<logs>/ablate/layer{layer}.log",
    benchmark:
        "<benchmarks>/ablate/layer{layer}.tsv"
    threads: 1
    resources:
        mem_mb=memory_of("ablate"),
        gpu=GPU,
    params:
        settings=to_json(CONFIG.evaluation),
        compatibility=COMPATIBILITY,
    message:
        "Measuring the loss with layer {wildcards.layer} intact and ablated"
    shell:
        "python -m tsae --log {log} ablate --settings {params.settings:q} {params.compatibility}"
        " --model $(dirname {input.model}) --residuals {input.residuals} --heldout {input.heldout}"
        " --layer {wildcards.layer} --output {output} --gpus {resources.gpu}"


rule measure_baselines:
    input:
        **REFERENCES,
        residuals=rules.index_residuals.output.index,
        heldout=rules.tokenize.output.heldout,
        statistics="<results>/residuals/layer{layer}.safetensors",
        code=code(
            "baselines", "metrics", "sums", "residuals", "shards", "tokens", "table", *COMPARISONS_CODE, *SAE_CODE
        ),
    output:
        metrics="<results>/baselines/layer{layer}.json",
        sums=expand("<results>/sums/layer{{layer}}/{subject}.safetensors", subject=LAYER_SUBJECTS),
    log:
        "<logs>/measure_baselines/layer{layer}.log",
    benchmark:
        "<benchmarks>/measure_baselines/layer{layer}.tsv"
    threads: 1
    resources:
        mem_mb=memory_of("measure_baselines"),
    params:
        settings=to_json(CONFIG.evaluation),
    message:
        "Measuring residuals and tables without an SAE at layer {wildcards.layer}"
    shell:
        "python -m tsae --log {log} measure-baselines --settings {params.settings:q} --residuals {input.residuals}"
        f" --heldout {{input.heldout}} {TO_REFERENCES} --layer {{wildcards.layer}}"
        " --output {output.metrics} --sums-folder $(dirname {output.sums[0]})"


rule evaluate:
    input:
        **REFERENCES,
        sae=rules.train.output.sae,
        token_biases=token_bias_reference,
        model=rules.prepare_model.output,
        residuals=rules.index_residuals.output.index,
        heldout=rules.tokenize.output.heldout,
        ablations=rules.ablate.output,
        statistics="<results>/residuals/layer{layer}.safetensors",
        code=code(
            "evaluate",
            "features",
            "baselines",
            "metrics",
            "sums",
            "models",
            "residuals",
            "shards",
            "tokens",
            "table",
            "sweep",
            "sizes",
            *COMPARISONS_CODE,
            *SAE_CODE,
        ),
    output:
        metrics="<results>/metrics/layer{layer}/{point}-s{seed}.json",
        features="<results>/features/layer{layer}/{point}-s{seed}.parquet",
        sums="<results>/sums/layer{layer}/{point}-s{seed}.safetensors",
    log:
        "<logs>/evaluate/layer{layer}/{point}-s{seed}.log",
    benchmark:
        "<benchmarks>/evaluate/layer{layer}/{point}-s{seed}.tsv"
    threads: 1
    resources:
        mem_mb=memory_of("evaluate"),
        gpu=GPU,
    params:
        job=lambda wildcards: to_json(job_of(wildcards)),
        settings=to_json(CONFIG.evaluation),
        features=to_json(CONFIG.features),
        min_firings=CONFIG.simple.min_firings,
        compatibility=COMPATIBILITY,
    message:
        "Evaluating {wildcards.point} at layer {wildcards.layer}, seed {wildcards.seed}"
    shell:
        "python -m tsae --log {log} evaluate --job {params.job:q} --settings {params.settings:q} {params.compatibility}"
        " --features {params.features:q} --min-firings {params.min_firings} --sae $(dirname {input.sae})"
        " --token-biases $(dirname {input.token_biases}) --model $(dirname {input.model}) --residuals {input.residuals} --heldout {input.heldout}"
        f" {TO_REFERENCES}"
        " --ablations {input.ablations}"
        " --output {output.metrics} --features-output {output.features} --sums-output {output.sums} --gpus {resources.gpu}"


rule measure_curve:
    input:
        sae=rules.train.output.sae,
        model=rules.prepare_model.output,
        residuals=rules.index_residuals.output.index,
        heldout=rules.tokenize.output.heldout,
        ablations=rules.ablate.output,
        unigrams="<results>/unigrams/layer{layer}.safetensors",
        statistics="<results>/residuals/layer{layer}.safetensors",
        baseline=baseline_reference,
        token_biases=token_bias_reference,
        checkpoints=rules.train.output.checkpoints,
        code=code(
            "curves",
            "evaluate",
            "baselines",
            "metrics",
            "sums",
            "models",
            "residuals",
            "shards",
            "tokens",
            "table",
            "sweep",
            "evolution",
            *COMPARISONS_CODE,
            *SAE_CODE,
        ),
    output:
        metrics="<results>/curves/layer{layer}/{point}-s{seed}.json",
        sums="<results>/sums/curves/layer{layer}/{point}-s{seed}.safetensors",
    log:
        "<logs>/measure_curve/layer{layer}/{point}-s{seed}.log",
    benchmark:
        "<benchmarks>/measure_curve/layer{layer}/{point}-s{seed}.tsv"
    threads: 1
    resources:
        mem_mb=memory_of("measure_curve"),
        gpu=GPU,
    params:
        job=lambda wildcards: to_json(job_of(wildcards)),
        settings=to_json(CONFIG.evaluation),
        curves=to_json(CONFIG.curves),
        checkpoints=CHECKPOINTS,
        compatibility=COMPATIBILITY,
    message:
        "Measuring the checkpoints of {wildcards.point} at layer {wildcards.layer}, seed {wildcards.seed}"
    shell:
        "python -m tsae --log {log} measure-curve --job {params.job:q} --settings {params.settings:q}"
        " --curves {params.curves:q} {params.compatibility} --sae $(dirname {input.sae}) --model $(dirname {input.model})"
        " --residuals {input.residuals} --heldout {input.heldout} --ablations {input.ablations} {params.checkpoints}"
        " --unigrams {input.unigrams} --baseline $(dirname {input.baseline}) --token-biases $(dirname {input.token_biases})"
        " --output {output.metrics} --sums-output {output.sums} --gpus {resources.gpu}"


rule find_phrases:
    input:
        model=rules.prepare_model.output,
        train=rules.tokenize.output.train,
        code=code("phrases", "tokens"),
    output:
        "<results>/phrases/phrases.json",
    log:
        "<logs>/find_phrases.log",
    benchmark:
        "<benchmarks>/find_phrases.tsv"
    resources:
        mem_mb=memory_of("find_phrases"),
    params:
        settings=to_json(CONFIG.phrases),
    message:
        "Finding frequent phrases"
    shell:
        "python -m tsae --log {log} find-phrases --settings {params.settings:q} --model $(dirname {input.model})"
        " --train {input.train} --output {output}"


rule measure_phrases:
    input:
        sae=rules.train.output.sae,
        residuals=rules.index_residuals.output.index,
        unigrams="<results>/unigrams/layer{layer}.safetensors",
        phrases=rules.find_phrases.output,
        model=STREAMED_FROM,
        code=code(
            "coverage",
            "firings",
            "phrases",
            "lookup",
            "metrics",
            "residuals",
            "shards",
            "table",
            "sweep",
            *SAE_CODE,
            *STREAMED_CODE,
        ),
    output:
        metrics="<results>/phrases/layer{layer}/{point}-s{seed}.json",
        table="<results>/phrases/layer{layer}/{point}-s{seed}.csv",
        examples="<results>/phrases/layer{layer}/{point}-s{seed}.examples.csv",
    log:
        "<logs>/measure_phrases/layer{layer}/{point}-s{seed}.log",
    benchmark:
        "<benchmarks>/measure_phrases/layer{layer}/{point}-s{seed}.tsv"
    threads: ALL_CORES if CONFIG.streams else 1
    resources:
        mem_mb=memory_of("measure_phrases"),
        gpu=GPU if CONFIG.streams else 0,
    params:
        job=lambda wildcards: to_json(job_of(wildcards)),
        settings=to_json(CONFIG.phrases),
        streamed_from=streamed_as_trained_on,
    message:
        "Measuring how {wildcards.point} fires on phrases, layer {wildcards.layer}, seed {wildcards.seed}"
    shell:
        "python -m tsae --log {log} measure-phrases --job {params.job:q} --settings {params.settings:q}"
        " --sae $(dirname {input.sae}) --residuals {input.residuals} --unigrams {input.unigrams}"
        " --phrases {input.phrases} --output {output.metrics} --table {output.table} --examples {output.examples}"
        " {params.streamed_from} --gpus {resources.gpu}"


rule collect_phrases:
    input:
        tables=expand("<results>/phrases/{job}.csv", job=saes_of("encoder")),
        code=code("coverage"),
    output:
        "<results>/tables/phrases.csv",
    log:
        "<logs>/collect_phrases.log",
    localrule: True
    message:
        "Gathering the table phrases"
    shell:
        "python -m tsae --log {log} collect-phrases --output {output} {input.tables}"


rule collect:
    input:
        measurements=measurements_of,
        code=code("table"),
    output:
        "<results>/tables/{table}.csv",
    log:
        "<logs>/collect/{table}.log",
    localrule: True
    message:
        "Gathering the table {wildcards.table}"
    shell:
        "python -m tsae --log {log} collect --output {output} {input.measurements}"


rule collect_all:
    input:
        measurements=all_measurements(),
        code=code("table"),
    output:
        "<results>/metrics.csv",
    log:
        "<logs>/collect_all.log",
    localrule: True
    message:
        "Gathering all measurements of trained SAEs"
    shell:
        "python -m tsae --log {log} collect --output {output} {input.measurements}"
