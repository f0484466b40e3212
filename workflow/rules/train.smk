rule train:
    input:
        residuals=rules.index_residuals.output.index,
        statistics="<results>/residuals/layer{layer}.safetensors",
        model=STREAMED_FROM,
        unigrams="<results>/unigrams/layer{layer}.safetensors",
        embedding=embedding_of_table,
        code=code(
            "train",
            "start",
            "token_tables",
            "resume",
            "batches",
            "optimizers",
            "sweep",
            "metrics",
            "residuals",
            "shards",
            "lookup",
            *SAE_CODE,
            *STREAMED_CODE,
        ),
    output:
        "<results>/saes/layer{layer}/{point}-s{seed}/config.json",
        "<results>/saes/layer{layer}/{point}-s{seed}/history.csv",
        checkpoints=directory("<results>/saes/layer{layer}/{point}-s{seed}/checkpoints"),
        sae="<results>/saes/layer{layer}/{point}-s{seed}/sae.safetensors",
    log:
        "<logs>/train/layer{layer}/{point}-s{seed}.log",
    benchmark:
        "<benchmarks>/train/layer{layer}/{point}-s{seed}.tsv"
    # The SAE is done with one thread sooner than its part of several; the model is not.
    threads: ALL_CORES if CONFIG.streams else 1
    resources:
        mem_mb=memory_of("train"),
        gpu=GPU,
        # No parameter, since it changes no result.
        save_s=int(60 * CONFIG.training.save_minutes),
    params:
        job=lambda wildcards: to_json(job_of(wildcards)),
        settings=to_json(CONFIG.training, exclude=["save_minutes"]),
        checkpoints=checkpoints,
        embedding=lambda wildcards, input: f"--embedding {input.embedding}" if input.get("embedding") else "",
        streamed_from=streamed_from,
        tf32=TF32,
    message:
        "Training {wildcards.point} at layer {wildcards.layer}, seed {wildcards.seed}"
    shell:
        "python -m tsae --log {log} train --job {params.job:q} --settings {params.settings:q}"
        " --residuals {input.residuals} --unigrams {input.unigrams} --folder $(dirname {output.sae})"
        " {params.embedding} {params.checkpoints} {params.streamed_from} --save-s {resources.save_s} --gpus {resources.gpu} {params.tf32}"
        # A bucket, as profiles/kubernetes has one, knows no empty folders.
        " && touch {output.checkpoints}/.there"


rule saes:
    input:
        expand("<results>/saes/{job}/sae.safetensors", job=JOBS),
