"""Sphinx's settings. `site/build.py` calls Sphinx; it writes the sources first."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT), str(ROOT / "notebooks")]

from set_address import address_of  # noqa: E402
from sources import notebook_for_the_site  # noqa: E402

from mrla_minimal import __version__  # noqa: E402

address = address_of()
project = "mrla-minimal"
author = "the authors of mrla-minimal"
version = release = __version__
html_title = "Attention across layers"

extensions = ["myst_nb", "sphinx.ext.autodoc", "mathml", "docstrings"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"               # what is shown is what is committed
nb_merge_streams = True
nb_code_prompt_show = "Set-up: what this cell does on Colab"
nb_code_prompt_hide = nb_code_prompt_show
highlight_language = "none"             # a block says its language, or is plain text
add_module_names = False                # each page is one module
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False      # torch's own word on nn.Module.forward is not ours
autodoc_typehints = "signature"
# a notebook may step from ## to ####; what a lexer cannot read is shown plain
suppress_warnings = ["myst.header", "misc.highlighting_failure"]

html_theme = "sphinx_book_theme"
html_math_renderer = "mathml"
html_static_path = [str(HERE / "static")]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_domain_indices = False             # the library's own page lists its modules
html_show_search_summary = False        # it would fetch what is found, and a page from disk may not
html_copy_source = True                 # a notebook's download button gives the file as it is committed
html_show_sourcelink = False
html_last_updated_fmt = None
html_context = {"default_mode": "auto"}
html_theme_options = {
    "repository_url": address,
    "repository_branch": "main",
    "path_to_docs": "",
    "use_repository_button": True,
    "use_download_button": True,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "home_page_in_toc": True,
    "navbar_persistent": [],            # the search field stands in the sidebar
    "show_navbar_depth": 1,
    "show_toc_level": 2,
}


def setup(app) -> None:
    def read(app, name, content):
        path = ROOT / f"{name}.ipynb"
        if name.startswith("notebooks/") and path.exists():
            content[0] = notebook_for_the_site(content[0], path, address)
    app.connect("source-read", read)
