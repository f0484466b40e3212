"""What the run says of the claims: the ledger's report, ratios and speed-ups by layer, and the findings."""

import itertools

import verdicts
from run import BASELINE, PROFILE, TOKENIZED, of_run, of_seeds, read, rows_of, run_claims

from tsae.claims.tally import tally_sentence
from tsae.store import layout
from tsae.store.markdown import markdown_table


def ratios() -> str:
    """NMSE and CE added of both tokenized forms over the baseline's, by layer."""
    return by_layer(
        "C1",
        {
            f"{metric}, {form}": f"{metric}, headline SAEs, {form} / baseline"
            for form in ("tokenized", "encoder sees what the table leaves")
            for metric in ("NMSE", "CE added")
        },
    )


def claims() -> str:
    """What `claims.md` says: every claim with its checks."""
    text = of_run(layout.CLAIMS_PAGE).read_text(encoding="utf-8")
    return text[text.index("\n- **reproduced**") :].strip().replace("\n## ", "\n### ")


def claims_summary() -> str:
    """The first table of `claims.md`."""
    lines = of_run(layout.CLAIMS_PAGE).read_text(encoding="utf-8").splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("| claim |"))
    return "\n".join(itertools.takewhile(lambda line: line.startswith("|"), lines[first:]))


def tally() -> str:
    """How many claims have each verdict."""
    return tally_sentence(run_claims())


def speedup() -> str:
    """Speed-ups by layer: of trainings with schedules of their own, and on one schedule."""
    return by_layer(
        "C2",
        {
            "NMSE, own schedules": "speed-up at equal NMSE, schedules of their own",
            "CE added, own schedules": "speed-up at equal CE added, schedules of their own",
            "NMSE, one schedule": "speed-up to the baseline's NMSE, one schedule",
            "CE added, one schedule": "speed-up to the baseline's CE added, one schedule",
        },
    )


def by_layer(claim: str, columns: dict[str, str]) -> str:
    """What was measured for checks of a claim, with its interval: a row per layer, and a column per check, by label."""
    found = {label: rows_of(run_claims(), id=claim, check=name) for label, name in columns.items()}
    texts = {label: rows.set_index("layer")["text"] for label, rows in found.items()}
    return markdown_table(
        [
            {"layer": layer} | {label: of.get(str(layer), "-") for label, of in texts.items()}
            for layer in PROFILE.residuals.layers
        ]
    )


def check(claim: str, name: str) -> str:
    """What was measured for a check of the ledger at each layer, with its interval."""
    rows = rows_of(run_claims(), id=claim, check=name)
    return "; ".join(f"{row['text']} at layer {row['layer']}" for _, row in rows.iterrows())


def of_block(block: str, metric: str, subject: str, form: str, scale: float = 1.0, **where: object) -> str:
    """A metric of one subject in a block, with its interval."""
    return of_seeds(
        rows_of(read(layout.TABLE.format(table=block)), metric=metric, subject=subject, **where), form, scale
    )


# What the findings say of claims, and of checks where a claim says less or more.
STATED: tuple[tuple[str, str | None], ...] = (
    ("C1", None),
    ("C1", "NMSE, headline SAEs, encoder sees what the table leaves / baseline"),
    ("C2", None),
    ("C3", None),
    ("C10", "firings lost, own unigram direction - as far along another token's, tokenized"),
    ("C11", None),
)


def findings() -> str:
    """What the page opens with.

    Raises:
        ValueError: a finding says of a claim what this run does not.
    """
    for claim, name in STATED:
        verdicts.require(run_claims(), claim, name)
    smallest, largest = "topk-k32-x2-learned", "topk-k32-x16-none"
    layer = PROFILE.residuals.layers[-1]
    topk, topk_ce, relu = (
        check("C1", f"{of}, tokenized / baseline, equal L0") for of in ("NMSE, TopK", "CE added, TopK", "NMSE, ReLU")
    )
    paper, ours = (
        check("C1", f"NMSE, headline SAEs, {form} / baseline")
        for form in ("tokenized", "encoder sees what the table leaves")
    )
    sooner, one_schedule = (
        check("C2", f"speed-up {of}")
        for of in ("at equal NMSE, schedules of their own", "to the baseline's NMSE, one schedule")
    )
    lost, matched = (
        of_block("encoder", f"phrase_firings_{name}", TOKENIZED, "{:.0f}%", 100) for name in ("lost", "lost_matched")
    )

    def share(metric: str, subject: str, **where: object) -> str:
        return of_block("headline", metric, subject, "{:.1f}%", 100, layer=layer, **where)

    def pointing(subject: str) -> str:
        return share("feature_token_bias_similar_alive", subject, min_count=1)

    def firing(subject: str) -> str:
        return share("simple_unigram", subject, at=PROFILE.simple.threshold)

    def dead(subject: str) -> str:
        return of_block("centre", "dead_heldout", subject, "{:.1f}%", 100)

    found = [
        f"**At equal sparsity a table lowers the error.** NMSE of a tokenized TopK SAE over its baseline's at equal L0: {topk}; CE "
        f"added: {topk_ce}. NMSE of ReLU SAEs: {relu}. ([`pareto`](figures/pareto.png))",
        "**It lowers it further when the encoder sees what the table leaves.** NMSE over the baseline's at k = 32, in the paper's "
        f"form: {paper}. With the token's row taken out of the encoder's input as well: {ours}. "
        "([`reconstruction_by_layer`](figures/reconstruction_by_layer.png))",
        "**A constant in the encoder's input kills features, with a table or without.** With the mean residual left in, "
        f"{dead(f'{BASELINE}-centre0')} of a baseline's features are dead and {dead(f'{TOKENIZED}-centre0')} of a tokenized SAE's. With "
        f"half of it left in: {dead(f'{BASELINE}-centre0.5')} and {dead(f'{TOKENIZED}-centre0.5')}. With all of it taken away: "
        f"{dead(BASELINE)} and {dead(TOKENIZED)}. ([`encoder_offset`](figures/encoder_offset.png))",
        "**A tokenized SAE reconstructs better than a baseline of eight times its features.** With 2 features per dimension its NMSE is "
        f"{of_block('expansion', 'nmse', smallest, '{:.4f}')} in the paper's form and "
        f"{of_block('expansion', 'nmse', f'{smallest}-remainder', '{:.4f}')} with what the table leaves; that of the baseline with 16 is "
        f"{of_block('expansion', 'nmse', largest, '{:.4f}')}. Parameters, the first over the last: "
        f"{check('C3', 'parameters, smallest learned / largest baseline')}; FLOPs per token: "
        f"{check('C3', 'FLOPs per token, smallest learned / largest baseline')}. ([`expansion`](figures/expansion.png))",
        "**A tokenized SAE is as good as its baseline after a fraction of the training, and most so in early layers.** Tokens that the "
        f"baseline needs over those of a tokenized SAE as good in NMSE, each with a whole schedule of its own: {sooner}. To the first "
        f"crossing on one schedule, as the authors count: {one_schedule}. ([`speedup`](figures/speedup.png))",
        f"**Features stop pointing at tokens, but not firing on them.** At layer {layer}, {pointing(BASELINE)} of the baseline's alive "
        f"features point along a token-bias, and {pointing(TOKENIZED)} of the tokenized SAE's. Features with half of their activation "
        f"mass on one token are {firing(BASELINE)} of the baseline's and {firing(TOKENIZED)} of the tokenized SAE's. "
        "([`simple_features`](figures/simple_features.png), [`token_bias_similarity`](figures/token_bias_similarity.png))",
        f"**A feature of a phrase owes part of its firings to the token itself.** Taking the unigram direction out of the input loses {lost} of a "
        f"tokenized SAE's firings on phrases; moving the input as far along another token's direction loses {matched}. "
        "([`encoder_ablation`](figures/encoder_ablation.png))",
    ]
    return "\n".join(f"{number}. {text}" for number, text in enumerate(found, start=1))


BLOCKS = (claims, claims_summary, tally, ratios, speedup, findings)
