rule cache_residuals:
    input:
        model=rules.prepare_model.output,
        train=rules.tokenize.output.train,
        heldout=rules.tokenize.output.heldout,
        code=code("cache", "residuals", "models"),
    output:
        "<results>/residuals/index.json",
    log:
        "<logs>/cache_residuals.log",
    benchmark:
        "<benchmarks>/cache_residuals.tsv"
    threads: 16
    params:
        settings=to_json(CONFIG.residuals),
        compatibility=COMPATIBILITY,
    message:
        "Caching the residual stream of layers " + ", ".join(map(str, CONFIG.residuals.layers))
    shell:
        "python -m tsae --log {log} cache-residuals --settings {params.settings:q} {params.compatibility}"
        " --model $(dirname {input.model}) --train {input.train} --heldout {input.heldout} --output {output}"


rule unigrams:
    input:
        model=rules.prepare_model.output,
        train=rules.tokenize.output.train,
        code=code("lookup", "models"),
    output:
        expand("<results>/unigrams/layer{layer}.safetensors", layer=LAYERS),
    log:
        "<logs>/unigrams.log",
    benchmark:
        "<benchmarks>/unigrams.tsv"
    # It takes all cores, so what takes one waits for it, or leaves a core idle before it.
    priority: 1
    threads: 16
    params:
        settings=to_json(CONFIG.unigrams),
        layers=[f"--layer {layer}" for layer in LAYERS],
        folder=lambda wildcards, output: os.path.dirname(output[0]),
        compatibility=COMPATIBILITY,
    message:
        "Computing unigram residuals"
    shell:
        "python -m tsae --log {log} unigrams --settings {params.settings:q} {params.compatibility}"
        " --model $(dirname {input.model}) --train {input.train} {params.layers} --folder {params.folder}"
