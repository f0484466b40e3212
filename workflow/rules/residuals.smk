rule cache_residuals:
    input:
        model=rules.prepare_model.output,
        train=rules.tokenize.output.train,
        heldout=rules.tokenize.output.heldout,
        code=code("tsae.residuals.write_residuals"),
    # The shards are not declared, so an interrupted job resumes at the first missing one.
    output:
        "<results>/residuals/parts/{part}.json",
    log:
        "<logs>/cache_residuals/{part}.log",
    benchmark:
        "<benchmarks>/cache_residuals/{part}.tsv"
    threads: ALL_CORES
    resources:
        mem_mb=memory_of("cache_residuals"),
        gpu=GPU,
    params:
        **options(
            "cache-residuals",
            settings=to_json(CONFIG.residuals, exclude=["disk_gb", "jobs"]),
            parts=CONFIG.residuals.jobs,
            streams=CONFIG.streams,
            folder=lambda wildcards, output: os.path.dirname(os.path.dirname(output[0])),
            compatibility_mode=CONFIG.model.compatibility_mode,
            tf32=TF32,
        ),
    message:
        f"Caching the residual stream, part {{wildcards.part}} of {CONFIG.residuals.jobs}"
    shell:
        "python -m tsae --log {log} {params.call}"


rule index_residuals:
    input:
        parts=expand("<results>/residuals/parts/{part}.json", part=range(CONFIG.residuals.jobs)),
        code=code("tsae.residuals.index_residuals"),
    output:
        index="<results>/residuals/index.json",
        statistics=expand("<results>/residuals/layer{layer}.safetensors", layer=CONFIG.residuals.layers),
    log:
        "<logs>/index_residuals.log",
    benchmark:
        "<benchmarks>/index_residuals.tsv"
    threads: 1
    params:
        **options(
            "index-residuals",
            settings=to_json(CONFIG.residuals, exclude=["disk_gb", "jobs"]),
        ),
    message:
        "Indexing the residuals of layers " + ", ".join(map(str, CONFIG.residuals.layers))
    shell:
        "python -m tsae --log {log} {params.call}"


rule unigrams:
    input:
        model=rules.prepare_model.output,
        train=rules.tokenize.output.train,
        code=code("tsae.residuals.write_unigrams"),
    output:
        expand("<results>/unigrams/layer{layer}.safetensors", layer=LAYERS),
        embedding="<results>/unigrams/embedding.safetensors",
    log:
        "<logs>/unigrams.log",
    benchmark:
        "<benchmarks>/unigrams.tsv"
    # It takes all cores, so it goes before jobs of one core.
    priority: 1
    threads: ALL_CORES
    resources:
        mem_mb=memory_of("unigrams"),
        gpu=GPU,
    params:
        **options(
            "unigrams",
            settings=to_json(CONFIG.unigrams),
            layers=LAYERS,
            folder=folder_of_output,
            compatibility_mode=CONFIG.model.compatibility_mode,
            tf32=TF32,
        ),
    message:
        "Computing unigram residuals"
    shell:
        "python -m tsae --log {log} {params.call}"


rule ngrams:
    input:
        model=rules.prepare_model.output,
        train=rules.tokenize.output.train,
        code=code("tsae.residuals.write_ngrams"),
    output:
        expand("<results>/ngrams/layer{layer}.safetensors", layer=LAYERS),
        spelling="<results>/ngrams/spelling.safetensors",
    log:
        "<logs>/ngrams.log",
    benchmark:
        "<benchmarks>/ngrams.tsv"
    threads: ALL_CORES
    resources:
        mem_mb=memory_of("ngrams"),
        gpu=GPU,
    params:
        **options(
            "ngrams",
            settings=to_json(CONFIG.ngrams),
            prompt=to_json(CONFIG.unigrams),
            layers=LAYERS,
            folder=folder_of_output,
            compatibility_mode=CONFIG.model.compatibility_mode,
            tf32=TF32,
        ),
    message:
        "Computing the residuals of common n-grams"
    shell:
        "python -m tsae --log {log} {params.call}"


rule conditional_means:
    input:
        residuals=rules.index_residuals.output.index,
        statistics="<results>/residuals/layer{layer}.safetensors",
        model=STREAMED_FROM,
        code=code("tsae.residuals.write_conditional_means"),
    output:
        "<results>/conditional_means/layer{layer}.safetensors",
    log:
        "<logs>/conditional_means/layer{layer}.log",
    benchmark:
        "<benchmarks>/conditional_means/layer{layer}.tsv"
    threads: ALL_CORES if CONFIG.streams else 1
    resources:
        mem_mb=memory_of("conditional_means"),
        gpu=GPU if CONFIG.streams else 0,
    params:
        **options(
            "conditional-means",
            tf32=CONFIG.streams and TF32,
        ),
    message:
        "Averaging the training residuals of every token at layer {wildcards.layer}"
    shell:
        "python -m tsae --log {log} {params.call}"
