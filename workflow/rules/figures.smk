rule reconstruction_by_layer:
    input:
        metrics="<results>/metrics.csv",
        code=code("plots", "table"),
    output:
        multiext("<figures>/reconstruction_by_layer", svg=".svg", pdf=".pdf", png=".png"),
    log:
        "<logs>/figures/reconstruction_by_layer.log",
    params:
        **HEADLINE,
    message:
        "Drawing reconstruction_by_layer"
    script:
        "../scripts/reconstruction_by_layer.py"


rule last_token_detection:
    input:
        metrics="<results>/metrics.csv",
        code=code("plots", "table"),
    output:
        multiext("<figures>/last_token_detection", svg=".svg", pdf=".pdf", png=".png"),
    log:
        "<logs>/figures/last_token_detection.log",
    params:
        **HEADLINE,
    message:
        "Drawing last_token_detection"
    script:
        "../scripts/last_token_detection.py"


rule token_bias_similarity:
    input:
        metrics="<results>/metrics.csv",
        code=code("plots", "table"),
    output:
        multiext("<figures>/token_bias_similarity", svg=".svg", pdf=".pdf", png=".png"),
    log:
        "<logs>/figures/token_bias_similarity.log",
    params:
        **HEADLINE,
    message:
        "Drawing token_bias_similarity"
    script:
        "../scripts/token_bias_similarity.py"


rule lookup_geometry:
    input:
        metrics="<results>/metrics.csv",
        code=code("plots", "table"),
    output:
        multiext("<figures>/lookup_geometry", svg=".svg", pdf=".pdf", png=".png"),
    log:
        "<logs>/figures/lookup_geometry.log",
    params:
        **HEADLINE,
    message:
        "Drawing lookup_geometry"
    script:
        "../scripts/lookup_geometry.py"
