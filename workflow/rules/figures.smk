# A rule for every figure, with its name, from NEEDS in its module.
for figure, needs in NEEDS_OF.items():

    rule:
        name:
            figure
        input:
            results=results_of_figure(needs),
            code=code(f"tsae.figures.{figure}"),
        output:
            svg=report(f"<figures>/{figure}.svg", caption="../report/figure.rst", category=needs.category),
            pdf=f"<figures>/{figure}.pdf",
            png=f"<figures>/{figure}.png",
        log:
            f"<logs>/figures/{figure}.log",
        localrule: True
        resources:
            mem_mb=500,
        params:
            **options(
                "draw",
                figure=figure,
                **HEADLINE,
                simple_threshold=CONFIG.simple.threshold,
                bootstrap=CONFIG.evaluation.bootstrap,
                seed=CONFIG.evaluation.seed,
            ),
            caption=caption_of(figure),
        message:
            f"Drawing {figure}"
        shell:
            "python -m tsae --log {log} {params.call}"
