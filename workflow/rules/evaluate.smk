rule ablate:
    input:
        model=rules.prepare_model.output,
        residuals=rules.index_residuals.output.index,
        heldout=rules.tokenize.output.heldout,
        statistics="<results>/residuals/layer{layer}.safetensors",
        code=code("tsae.measure.ablations"),
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
        **options(
            "ablate",
            settings=to_json(CONFIG.evaluation),
            compatibility_mode=CONFIG.model.compatibility_mode,
        ),
    message:
        "Measuring the loss with layer {wildcards.layer} intact and ablated"
    shell:
        "python -m tsae --log {log} {params.call}"


rule letter_tokens:
    input:
        model=rules.prepare_model.output,
        residuals=rules.index_residuals.output.index,
        heldout=rules.tokenize.output.heldout,
        code=code("tsae.measure.letter_tokens"),
    output:
        "<results>/letter_tokens/layer{layer}.safetensors",
    log:
        "<logs>/letter_tokens/layer{layer}.log",
    benchmark:
        "<benchmarks>/letter_tokens/layer{layer}.tsv"
    threads: 1
    resources:
        mem_mb=memory_of("letter_tokens"),
    params:
        **options(
            "letter-tokens",
            probe_tokens=CONFIG.evaluation.probe_tokens,
            seed=CONFIG.evaluation.seed,
        ),
    message:
        "Choosing tokens for probes of the first letter at layer {wildcards.layer}"
    shell:
        "python -m tsae --log {log} {params.call}"


rule measure_baselines:
    input:
        **REFERENCES,
        model=STREAMED_FROM,
        residuals=rules.index_residuals.output.index,
        heldout=rules.tokenize.output.heldout,
        statistics="<results>/residuals/layer{layer}.safetensors",
        code=code("tsae.measure.baselines"),
    output:
        metrics="<results>/baselines/layer{layer}.json",
        sums=expand("<results>/sums/layer{{layer}}/{subject}.safetensors", subject=TABLES_ALONE),
    log:
        "<logs>/measure_baselines/layer{layer}.log",
    benchmark:
        "<benchmarks>/measure_baselines/layer{layer}.tsv"
    threads: ALL_CORES if CONFIG.streams else 1
    resources:
        mem_mb=memory_of("measure_baselines"),
        gpu=GPU if CONFIG.streams else 0,
    params:
        **options(
            "measure-baselines",
            settings=to_json(CONFIG.evaluation),
            tf32=CONFIG.streams and TF32,
        ),
    message:
        "Measuring residuals and tables without an SAE at layer {wildcards.layer}"
    shell:
        "python -m tsae --log {log} {params.call}"


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
        code=code("tsae.measure.evaluate"),
    output:
        metrics="<results>/metrics/layer{layer}/{point}-s{seed}.json",
        feature_table="<results>/features/layer{layer}/{point}-s{seed}.parquet",
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
        **options(
            "evaluate-sae",
            job=settings_of_job,
            settings=to_json(CONFIG.evaluation),
            features=to_json(CONFIG.features),
            min_firings=CONFIG.simple.min_firings,
            compatibility_mode=CONFIG.model.compatibility_mode,
        ),
    message:
        "Evaluating {wildcards.point} at layer {wildcards.layer}, seed {wildcards.seed}"
    shell:
        "python -m tsae --log {log} {params.call}"


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
        code=code("tsae.measure.curves"),
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
        **options(
            "measure-curve",
            job=settings_of_job,
            settings=to_json(CONFIG.evaluation),
            curves=to_json(CONFIG.curves),
            checkpoints=CHECKPOINTS,
            compatibility_mode=CONFIG.model.compatibility_mode,
        ),
    message:
        "Measuring the checkpoints of {wildcards.point} at layer {wildcards.layer}, seed {wildcards.seed}"
    shell:
        "python -m tsae --log {log} {params.call}"


rule find_phrases:
    input:
        model=rules.prepare_model.output,
        train=rules.tokenize.output.train,
        code=code("tsae.phrases.find_phrases"),
    output:
        "<results>/phrases/phrases.json",
    log:
        "<logs>/find_phrases.log",
    benchmark:
        "<benchmarks>/find_phrases.tsv"
    resources:
        mem_mb=memory_of("find_phrases"),
    params:
        **options(
            "find-phrases",
            settings=to_json(CONFIG.phrases),
        ),
    message:
        "Finding frequent phrases"
    shell:
        "python -m tsae --log {log} {params.call}"


rule measure_phrases:
    input:
        sae=rules.train.output.sae,
        residuals=rules.index_residuals.output.index,
        unigrams="<results>/unigrams/layer{layer}.safetensors",
        phrases=rules.find_phrases.output,
        model=STREAMED_FROM,
        code=code("tsae.phrases.measure_phrases"),
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
        **options(
            "measure-phrases",
            job=settings_of_job,
            settings=to_json(CONFIG.phrases),
            tf32=CONFIG.streams and TF32,
        ),
    message:
        "Measuring how {wildcards.point} fires on phrases, layer {wildcards.layer}, seed {wildcards.seed}"
    shell:
        "python -m tsae --log {log} {params.call}"


rule collect_phrases:
    input:
        tables=expand("<results>/phrases/{job}.csv", job=saes_of("encoder")),
        code=code("tsae.phrases.collect_phrases"),
    output:
        "<results>/tables/phrases.csv",
    log:
        "<logs>/collect_phrases.log",
    localrule: True
    params:
        **options("collect-phrases"),
    message:
        "Gathering the table phrases"
    shell:
        "python -m tsae --log {log} {params.call}"


rule collect:
    input:
        measurements=measurements_of,
        code=code("tsae.measure.table"),
    output:
        "<results>/tables/{table}.csv",
    log:
        "<logs>/collect/{table}.log",
    localrule: True
    params:
        **options("collect"),
    message:
        "Gathering the table {wildcards.table}"
    shell:
        "python -m tsae --log {log} {params.call}"


rule collect_all:
    input:
        measurements=all_measurements(),
        code=code("tsae.measure.table"),
    output:
        "<results>/metrics.csv",
    log:
        "<logs>/collect_all.log",
    localrule: True
    params:
        **options("collect"),
    message:
        "Gathering all measurements of trained SAEs"
    shell:
        "python -m tsae --log {log} {params.call}"
