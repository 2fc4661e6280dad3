"""How the site is built: `make docs`. Commands and configuration keys are written from the code itself."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generated  # noqa: E402

import interference  # noqa: E402, F401

project = "task-interference"
author = "the authors of task-interference"
project_copyright = "Apache License 2.0"
release = generated.version()
version = release

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "mathml",
]
html_math_renderer = "mathml"
exclude_patterns = ["_build", "README.md"]
suppress_warnings = [
    "autodoc.mocked_object",
    "misc.highlighting_failure",
]  # a shell command in a notebook that spans lines
intersphinx_mapping = {}
nitpicky = False

# Pages
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "attrs_inline", "substitution"]
myst_heading_anchors = 4
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

# Notebooks are run at every build, in a directory of their own, without a network
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = 240
nb_merge_streams = True
nb_execution_show_tb = True
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TRANSFORMERS_VERBOSITY="error",
    TQDM_DISABLE="1",
    PYTHONWARNINGS="ignore",
    COLUMNS="110",
    TASK_INTERFERENCE_REPOSITORY=str(HERE.parent),
    PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    PYTHONPATH=os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")])),
)

# API
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autoclass_content = "class"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
python_use_unqualified_type_names = True

# Looks: the colours and the typeface of the report
html_theme = "furo"
html_title = "task-interference"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {
        "font-stack": 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif',
        "color-foreground-primary": "#1d1c1a",
        "color-foreground-secondary": "#56534c",
        "color-foreground-muted": "#66625a",
        "color-background-primary": "#ffffff",
        "color-background-secondary": "#f6f4ef",
        "color-background-border": "#dcd9d2",
        "color-brand-primary": "#174ea6",
        "color-brand-content": "#174ea6",
        "color-brand-visited": "#174ea6",
    },
    "dark_css_variables": {
        "font-stack": 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif',
        "color-brand-primary": "#8ab4f8",
        "color-brand-content": "#8ab4f8",
        "color-brand-visited": "#8ab4f8",
    },
}


def setup(app):
    """Write the pages that come from the code before Sphinx looks for pages; read docstrings as they are written."""
    generated.write(HERE / "reference")
    app.connect("autodoc-process-docstring", generated.as_rst, priority=400)  # before napoleon's
