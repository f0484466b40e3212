rule cache_residuals:
    input:
        model=rules.prepare_model.output,
        train=rules.tokenize.output.train,
        heldout=rules.tokenize.output.heldout,
        code=code("cache", "shards", *MODEL_CODE),
    # It writes the shards too. They are not declared, so that an interrupted job goes on at the first missing one.
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
        settings=to_json(CONFIG.residuals, exclude=["disk_gb", "jobs"]),
        parts=CONFIG.residuals.jobs,
        streams="--streams" if CONFIG.streams else "",
        folder=lambda wildcards, output: os.path.dirname(os.path.dirname(output[0])),
        compatibility=COMPATIBILITY,
        tf32=TF32,
    message:
        f"Caching the residual stream, part {{wildcards.part}} of {CONFIG.residuals.jobs}"
    shell:
        "python -m tsae --log {log} cache-residuals --settings {params.settings:q} {params.compatibility}"
        " --model $(dirname {input.model}) --train {input.train} --heldout {input.heldout} --folder {params.folder}"
        " --part {wildcards.part} --parts {params.parts} {params.streams} --gpus {resources.gpu} {params.tf32}"


rule index_residuals:
    input:
        parts=expand("<results>/residuals/parts/{part}.json", part=range(CONFIG.residuals.jobs)),
        code=code("index", "shards", "residuals"),
    output:
        index="<results>/residuals/index.json",
        statistics=expand("<results>/residuals/layer{layer}.safetensors", layer=CONFIG.residuals.layers),
    log:
        "<logs>/index_residuals.log",
    benchmark:
        "<benchmarks>/index_residuals.tsv"
    threads: 1
    params:
        settings=to_json(CONFIG.residuals, exclude=["disk_gb", "jobs"]),
    message:
        "Indexing the residuals of layers " + ", ".join(map(str, CONFIG.residuals.layers))
    shell:
        "python -m tsae --log {log} index-residuals --settings {params.settings:q} --output {output.index} {input.parts}"


rule unigrams:
    input:
        model=rules.prepare_model.output,
        train=rules.tokenize.output.train,
        code=code("lookup", *MODEL_CODE),
    output:
        expand("<results>/unigrams/layer{layer}.safetensors", layer=LAYERS),
        embedding="<results>/unigrams/embedding.safetensors",
    log:
        "<logs>/unigrams.log",
    benchmark:
        "<benchmarks>/unigrams.tsv"
    # It takes all cores, so what takes one waits for it, or leaves a core idle before it.
    priority: 1
    threads: ALL_CORES
    resources:
        mem_mb=memory_of("unigrams"),
        gpu=GPU,
    params:
        settings=to_json(CONFIG.unigrams),
        layers=[f"--layer {layer}" for layer in LAYERS],
        folder=lambda wildcards, output: os.path.dirname(output[0]),
        compatibility=COMPATIBILITY,
        tf32=TF32,
    message:
        "Computing unigram residuals"
    shell:
        "python -m tsae --log {log} unigrams --settings {params.settings:q} {params.compatibility}"
        " --model $(dirname {input.model}) --train {input.train} {params.layers} --folder {params.folder}"
        " --gpus {resources.gpu} {params.tf32}"


rule ngrams:
    input:
        model=rules.prepare_model.output,
        train=rules.tokenize.output.train,
        code=code("ngrams", "metrics", "shards", "tokens", *MODEL_CODE),
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
        settings=to_json(CONFIG.ngrams),
        prompt=to_json(CONFIG.unigrams),
        layers=[f"--layer {layer}" for layer in LAYERS],
        folder=lambda wildcards, output: os.path.dirname(output[0]),
        compatibility=COMPATIBILITY,
        tf32=TF32,
    message:
        "Computing the residuals of common n-grams"
    shell:
        "python -m tsae --log {log} ngrams --settings {params.settings:q} --prompt {params.prompt:q} {params.compatibility}"
        " --model $(dirname {input.model}) --train {input.train} {params.layers} --folder {params.folder}"
        " --gpus {resources.gpu} {params.tf32}"


rule conditional_means:
    input:
        residuals=rules.index_residuals.output.index,
        statistics="<results>/residuals/layer{layer}.safetensors",
        model=STREAMED_FROM,
        code=code("conditional_means", "residuals", "shards", "products", *STREAMED_CODE),
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
        streamed_from=streamed_as_trained_on,
    message:
        "Averaging the training residuals of every token at layer {wildcards.layer}"
    shell:
        "python -m tsae --log {log} conditional-means --residuals {input.residuals} --layer {wildcards.layer} --output {output}"
        " {params.streamed_from} --gpus {resources.gpu}"
