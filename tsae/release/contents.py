"""What a release holds, and where: its own layout, which `pack` writes and `check` reads."""

README = "README.md"
SUMS_FILE = "SHA256SUMS"
CONFIG = "config.yaml"
LEDGER, PUBLISHED = "ledger/claims.yaml", "ledger/published.yaml"
FIGURES, NOTEBOOKS, SAES = "figures", "notebooks", "saes"
REPORT = "report.html"
CITATION, LICENCE, ZENODO, CODEMETA = "CITATION.cff", "LICENSE", ".zenodo.json", "codemeta.json"
