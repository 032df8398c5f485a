"""The documentation site: `sphinx-build -W --keep-going docs site` builds it from the pages as they are."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from site_builder.project import FACTS  # after the path: the folder is no installed package

project = "guardlit"
version = release = FACTS.version
author = "the guardlit authors"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "site_builder"]
root_doc = "index"
exclude_patterns = ["README.md", "site_builder"]  # the first is the index for readers of the repository

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
smartquotes_action = "D"  # dashes between a parameter and its text; quotes stay as they are typed
suppress_warnings = ["myst.header"]  # a changelog's headings repeat

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_attr_annotations = False
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "guardlit"
html_static_path = ["site_builder/static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {
    "top_of_page_buttons": [],
    "footer_icons": [{"name": "Repository", "url": FACTS.repository, "html": "Repository"}],
}
