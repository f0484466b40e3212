rule token_subspaces:
    input:
        baselines="<results>/tables/baselines.csv",
        code=code("plots", "families", "table"),
    output:
        svg=report("<figures>/token_subspaces.svg", caption="../report/token_subspaces.rst", category="Token subspaces"),
        pdf="<figures>/token_subspaces.pdf",
        png="<figures>/token_subspaces.png",
    log:
        "<logs>/figures/token_subspaces.log",
    localrule: True
    message:
        "Drawing token_subspaces"
    script:
        "../scripts/token_subspaces.py"


rule pareto:
    input:
        pareto="<results>/tables/pareto.csv",
        released=RELEASED_TABLE,
        published=PUBLISHED,
        code=code("plots", "families", "table", *LEDGER_CODE),
    output:
        svg=report("<figures>/pareto.svg", caption="../report/pareto.rst", category="Reconstruction"),
        pdf="<figures>/pareto.pdf",
        png="<figures>/pareto.png",
    log:
        "<logs>/figures/pareto.log",
    localrule: True
    message:
        "Drawing pareto"
    script:
        "../scripts/pareto.py"


rule speedup:
    input:
        headline="<results>/tables/headline.csv",
        curves="<results>/tables/curves.csv",
        budgets=tables_of("speed"),
        sums=[
            *sums_of("headline", "speed"),
            *expand("<results>/sums/curves/{job}.safetensors", job=saes_of("headline")),
        ],
        published=PUBLISHED,
        code=code("plots", "families", "table", *LEDGER_CODE),
    output:
        svg=report("<figures>/speedup.svg", caption="../report/speedup.rst", category="Training"),
        pdf="<figures>/speedup.pdf",
        png="<figures>/speedup.png",
    log:
        "<logs>/figures/speedup.log",
    localrule: True
    params:
        **HEADLINE,
        bootstrap=CONFIG.evaluation.bootstrap,
        bootstrap_seed=CONFIG.evaluation.seed,
    message:
        "Drawing speedup"
    script:
        "../scripts/speedup.py"


rule training_curves:
    input:
        curves="<results>/tables/curves.csv",
        code=code("plots", "families", "table"),
    output:
        svg=report("<figures>/training_curves.svg", caption="../report/training_curves.rst", category="Training"),
        pdf="<figures>/training_curves.pdf",
        png="<figures>/training_curves.png",
    log:
        "<logs>/figures/training_curves.log",
    localrule: True
    params:
        **HEADLINE,
    message:
        "Drawing training_curves"
    script:
        "../scripts/training_curves.py"


rule expansion:
    input:
        expansion="<results>/tables/expansion.csv",
        code=code("plots", "families", "table"),
    output:
        svg=report("<figures>/expansion.svg", caption="../report/expansion.rst", category="Reconstruction"),
        pdf="<figures>/expansion.pdf",
        png="<figures>/expansion.png",
    log:
        "<logs>/figures/expansion.log",
    localrule: True
    message:
        "Drawing expansion"
    script:
        "../scripts/expansion.py"


rule token_counts:
    input:
        headline="<results>/tables/headline.csv",
        baselines="<results>/tables/baselines.csv",
        more=tables_of("controls", "expansion"),
        sums=sums_of("headline", "controls", "expansion"),
        code=code("plots", "families", "table", *LEDGER_CODE),
    output:
        svg=report("<figures>/token_counts.svg", caption="../report/token_counts.rst", category="Reconstruction"),
        pdf="<figures>/token_counts.pdf",
        png="<figures>/token_counts.png",
    log:
        "<logs>/figures/token_counts.log",
    localrule: True
    params:
        **HEADLINE,
        bootstrap=CONFIG.evaluation.bootstrap,
        bootstrap_seed=CONFIG.evaluation.seed,
    message:
        "Drawing token_counts"
    script:
        "../scripts/token_counts.py"


rule encoder_offset:
    input:
        centre="<results>/tables/centre.csv",
        more=tables_of("encoder"),
        code=code("plots", "families", "table"),
    output:
        svg=report("<figures>/encoder_offset.svg", caption="../report/encoder_offset.rst", category="Features"),
        pdf="<figures>/encoder_offset.pdf",
        png="<figures>/encoder_offset.png",
    log:
        "<logs>/figures/encoder_offset.log",
    localrule: True
    message:
        "Drawing encoder_offset"
    script:
        "../scripts/encoder_offset.py"


rule token_bias_similarity:
    input:
        headline="<results>/tables/headline.csv",
        expansion="<results>/tables/expansion.csv",
        ledger=LEDGER,
        published=PUBLISHED,
        code=code("plots", "families", "table", *LEDGER_CODE),
    output:
        svg=report(
            "<figures>/token_bias_similarity.svg",
            caption="../report/token_bias_similarity.rst",
            category="Token-biases",
        ),
        pdf="<figures>/token_bias_similarity.pdf",
        png="<figures>/token_bias_similarity.png",
    log:
        "<logs>/figures/token_bias_similarity.log",
    localrule: True
    params:
        **HEADLINE,
    message:
        "Drawing token_bias_similarity"
    script:
        "../scripts/token_bias_similarity.py"


rule lookup_geometry:
    input:
        headline="<results>/tables/headline.csv",
        baselines="<results>/tables/baselines.csv",
        ledger=LEDGER,
        published=PUBLISHED,
        code=code("plots", "families", "table", *LEDGER_CODE),
    output:
        svg=report("<figures>/lookup_geometry.svg", caption="../report/lookup_geometry.rst", category="Token-biases"),
        pdf="<figures>/lookup_geometry.pdf",
        png="<figures>/lookup_geometry.png",
    log:
        "<logs>/figures/lookup_geometry.log",
    localrule: True
    params:
        **HEADLINE,
    message:
        "Drawing lookup_geometry"
    script:
        "../scripts/lookup_geometry.py"


rule last_token_detection:
    input:
        headline="<results>/tables/headline.csv",
        baselines="<results>/tables/baselines.csv",
        released=RELEASED_TABLE,
        ledger=LEDGER,
        published=PUBLISHED,
        code=code("plots", "families", "table", *LEDGER_CODE),
    output:
        svg=report(
            "<figures>/last_token_detection.svg", caption="../report/last_token_detection.rst", category="Token-biases"
        ),
        pdf="<figures>/last_token_detection.pdf",
        png="<figures>/last_token_detection.png",
    log:
        "<logs>/figures/last_token_detection.log",
    localrule: True
    params:
        **HEADLINE,
    message:
        "Drawing last_token_detection"
    script:
        "../scripts/last_token_detection.py"


rule init_sweep:
    input:
        init="<results>/tables/init.csv",
        code=code("plots", "families", "table"),
    output:
        svg=report("<figures>/init_sweep.svg", caption="../report/init_sweep.rst", category="Reconstruction"),
        pdf="<figures>/init_sweep.pdf",
        png="<figures>/init_sweep.png",
    log:
        "<logs>/figures/init_sweep.log",
    localrule: True
    message:
        "Drawing init_sweep"
    script:
        "../scripts/init_sweep.py"


rule simple_features:
    input:
        headline="<results>/tables/headline.csv",
        code=code("plots", "families", "table"),
    output:
        svg=report("<figures>/simple_features.svg", caption="../report/simple_features.rst", category="Features"),
        pdf="<figures>/simple_features.pdf",
        png="<figures>/simple_features.png",
    log:
        "<logs>/figures/simple_features.log",
    localrule: True
    params:
        **HEADLINE,
        simple_threshold=CONFIG.simple.threshold,
    message:
        "Drawing simple_features"
    script:
        "../scripts/simple_features.py"


rule encoder_ablation:
    input:
        encoder="<results>/tables/encoder.csv",
        examples=expand("<results>/phrases/{job}.examples.csv", job=saes_of("encoder")),
        code=code("plots", "families", "table"),
    output:
        svg=report("<figures>/encoder_ablation.svg", caption="../report/encoder_ablation.rst", category="Features"),
        pdf="<figures>/encoder_ablation.pdf",
        png="<figures>/encoder_ablation.png",
    log:
        "<logs>/figures/encoder_ablation.log",
    localrule: True
    message:
        "Drawing encoder_ablation"
    script:
        "../scripts/encoder_ablation.py"


rule reconstruction_by_layer:
    input:
        headline="<results>/tables/headline.csv",
        released=RELEASED_TABLE,
        code=code("plots", "families", "table"),
    output:
        svg=report(
            "<figures>/reconstruction_by_layer.svg",
            caption="../report/reconstruction_by_layer.rst",
            category="Reconstruction",
        ),
        pdf="<figures>/reconstruction_by_layer.pdf",
        png="<figures>/reconstruction_by_layer.png",
    log:
        "<logs>/figures/reconstruction_by_layer.log",
    localrule: True
    params:
        **HEADLINE,
    message:
        "Drawing reconstruction_by_layer"
    script:
        "../scripts/reconstruction_by_layer.py"
