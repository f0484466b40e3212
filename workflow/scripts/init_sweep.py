"""How the start of the table matters: NMSE, CE added and dead features against lookup_scale, fixed and learned."""

from tsae.plots import COLOURS, STYLES, TABLES, draw_against, grid, layers_of, legend_above, save, start_at_zero
from tsae.table import read_table

table = read_table(snakemake.input.init)
table = table[table["table"] != "none"]
PANELS = {
    "nmse": ("NMSE", 1),
    "ce_added": ("CE added\n(% of clean CE)", 100),
    "dead_heldout": ("dead on held-out tokens\n(% of features)", 100),
}
encoder_scale = table["encoder_scale"].fillna(1 - table["lookup_scale"])
starts = sorted(set(zip(table["lookup_scale"], encoder_scale, strict=True)))
layers = layers_of(table)

fig, panels = grid(len(layers), len(PANELS))
for row, layer in zip(panels, layers, strict=True):
    for ax, (metric, (label, scale)) in zip(row, PANELS.items(), strict=True):
        rows = table[(table["layer"] == layer) & (table["metric"] == metric)]
        for kind in ("fixed", "learned"):
            family = rows[rows["table"] == kind]
            if family.empty:
                continue
            style = {"color": COLOURS[TABLES[kind]], "fmt": STYLES[kind], "label": TABLES[kind]}
            draw_against(ax, family, "lookup_scale", scale, **style)
        ax.set_xticks([lookup for lookup, _ in starts], [f"{lookup:g}\n{encoder:g}" for lookup, encoder in starts])
        ax.set_xlabel("initial scale of the table (above)\nand of the encoder (below)")
        ax.set_ylabel(label)
        ax.set_title(f"layer {layer}")
        start_at_zero(ax)
legend_above(fig, panels[0][0])
save(fig, snakemake.output, table)
