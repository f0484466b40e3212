rule train:
    input:
        residuals=rules.cache_residuals.output,
        unigrams="<results>/unigrams/layer{layer}.safetensors",
        code=code("train", "batches", "optimizers", "sweep", "metrics", "residuals", "lookup", *SAE_CODE),
    output:
        "<results>/saes/layer{layer}/{point}-s{seed}/config.json",
        "<results>/saes/layer{layer}/{point}-s{seed}/history.csv",
        checkpoints=directory("<results>/saes/layer{layer}/{point}-s{seed}/checkpoints"),
        sae="<results>/saes/layer{layer}/{point}-s{seed}/sae.safetensors",
    log:
        "<logs>/train/layer{layer}/{point}-s{seed}.log",
    benchmark:
        "<benchmarks>/train/layer{layer}/{point}-s{seed}.tsv"
    threads: 1
    resources:
        mem_mb=2500,
    params:
        job=lambda wildcards: to_json(job_of(wildcards)),
        settings=to_json(CONFIG.training),
        checkpoints=checkpoints,
    message:
        "Training {wildcards.point} at layer {wildcards.layer}, seed {wildcards.seed}"
    shell:
        "python -m tsae --log {log} train --job {params.job:q} --settings {params.settings:q}"
        " --residuals {input.residuals} --unigrams {input.unigrams} --folder $(dirname {output.sae})"
        " {params.checkpoints}"


rule saes:
    input:
        expand("<results>/saes/{job}/sae.safetensors", job=JOBS),
