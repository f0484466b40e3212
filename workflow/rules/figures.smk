# A new figure is a new script: its rule, its name on the command line and its outputs follow from the script's name.
for figure in FIGURES:

    rule:
        name:
            figure
        input:
            metrics="<results>/metrics.csv",
            code=code("plots", "table"),
        output:
            multiext(f"<figures>/{figure}", svg=".svg", pdf=".pdf", png=".png"),
        log:
            f"<logs>/figures/{figure}.log",
        params:
            **HEADLINE,
        message:
            f"Drawing {figure}"
        script:
            f"../scripts/{figure}.py"
