"""The documents as a site of files: `make site` builds it into site/.

Pages are read where they lie, as GitHub shows them, so their relative links hold in both places. Nothing on the site is asked of
another host: formulas are MathML, the DAG is a picture, and the theme brings its own styles.
"""

import sys
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
sys.path[:0] = [str(FOLDER), str(ROOT)]

from tsae import __version__  # noqa: E402

project = "tsae"
html_title = f"tsae {__version__}"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click", "pages"]
root_doc = "README"
navigation = {
    "How to": [
        "docs/other_models",
        "docs/python",
        "docs/explorer",
        "docs/gpu",
        "docs/clusters",
        "docs/sharing",
        "docs/release",
    ],
    "Reproduction": [
        "docs/reproduction",
        "docs/reconstruction",
        "docs/features",
        "docs/released",
        "docs/beyond",
        "docs/two_models",
        "notebooks/README",
    ],
    "Methods": ["docs/methods", "docs/metrics", "docs/measuring"],
    "Performance": ["docs/performance", "docs/pipeline", "docs/scale"],
    "Reference": [
        "docs/site/api",
        "docs/site/commands",
        "config/README",
        "docs/workflow",
        "docs/reliability",
        "results/README",
        "figures/README",
    ],
    "Project": ["docs/faq", "CONTRIBUTING", "docs/licences"],
}
include_patterns = [f"{page}.md" for pages in (["README"], *navigation.values()) for page in pages]
exclude_patterns = [".*", "site"]

html_theme = "furo"
html_show_copyright = False
html_copy_source = False
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
smartquotes_action = "D"  # dashes alone: quotes and dots stay as they are written
default_role = "code"  # single backticks in docstrings
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autoclass_content = "both"
python_maximum_signature_line_length = 90
