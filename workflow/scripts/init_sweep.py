"""How the start of the table matters: NMSE, CE added and dead features against lookup_scale, family by family."""

from tsae.plots import draw_against, families_in, grid, layers_of, legend_above, save, start_at_zero, style_of
from tsae.table import read_table

table = read_table(snakemake.input.init)
table = table[table["table"] != "none"]
PANELS = {
    "nmse": ("NMSE", 1),
    "ce_added": ("CE added\n(% of clean CE)", 100),
    "dead_heldout": ("dead on held-out tokens\n(% of features)", 100),
}
# With the authors' start W_enc begins at 1 - lookup_scale times W_dec's transpose.
encoder_scale = table["encoder_scale"].fillna((1 - table["lookup_scale"]).where(table["start"] == "authors", 1))
starts = sorted(set(zip(table["lookup_scale"], encoder_scale, strict=True)))
both = len(set(encoder_scale)) > 1
layers = layers_of(table)

fig, panels = grid(len(layers), len(PANELS))
for row, layer in zip(panels, layers, strict=True):
    for ax, (metric, (label, scale)) in zip(row, PANELS.items(), strict=True):
        rows = table[(table["layer"] == layer) & (table["metric"] == metric)]
        for name, family in families_in(rows).items():
            draw_against(ax, family, "lookup_scale", scale, **style_of(name))
        ticks = [f"{lookup:g}\n{encoder:g}" if both else f"{lookup:g}" for lookup, encoder in starts]
        ax.set_xticks([lookup for lookup, _ in starts], ticks)
        ax.set_xlabel("initial scale of the table" + " (above)\nand of the encoder (below)" * both)
        ax.set_ylabel(label)
        ax.set_title(f"layer {layer}")
        start_at_zero(ax)
legend_above(fig, panels[0][0])
save(fig, snakemake.output, table)
