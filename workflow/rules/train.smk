rule train:
    input:
        residuals=rules.index_residuals.output.index,
        statistics="<results>/residuals/layer{layer}.safetensors",
        model=STREAMED_FROM,
        unigrams="<results>/unigrams/layer{layer}.safetensors",
        embedding=embedding_of_table,
        conditional_means=means_of_table,
        code=code("tsae.training.train"),
    output:
        "<results>/saes/layer{layer}/{point}-s{seed}/config.json",
        "<results>/saes/layer{layer}/{point}-s{seed}/history.csv",
        checkpoints=directory("<results>/saes/layer{layer}/{point}-s{seed}/checkpoints"),
        sae="<results>/saes/layer{layer}/{point}-s{seed}/sae.safetensors",
    log:
        "<logs>/train/layer{layer}/{point}-s{seed}.log",
    benchmark:
        "<benchmarks>/train/layer{layer}/{point}-s{seed}.tsv"
    # One thread per SAE is fastest overall; the streamed model uses all cores.
    threads: ALL_CORES if CONFIG.streams else 1
    resources:
        mem_mb=memory_of("train"),
        gpu=GPU,
        # Not a parameter, because it changes no result.
        save_s=int(60 * CONFIG.training.save_minutes),
    params:
        **options(
            "train-sae",
            job=settings_of_job,
            settings=to_json(CONFIG.training, exclude=["save_minutes"]),
            folder=folder_of_output,
            checkpoints=checkpoints,
            tf32=TF32,
        ),
    message:
        "Training {wildcards.point} at layer {wildcards.layer}, seed {wildcards.seed}"
    shell:
        "python -m tsae --log {log} {params.call}"
        # A bucket (profiles/kubernetes) has no empty folders.
        " && touch {output.checkpoints}/.there"


rule saes:
    input:
        expand("<results>/saes/{job}/sae.safetensors", job=JOBS),
