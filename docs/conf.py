"""The documentation site, built by ``make docs``: no network, and every warning is an error.

The pages are the Markdown that a reader of the repository sees. What differs is done here: pages
whose text lies outside of docs/, figures for light and dark, links from code to the API, and our
docstrings' ``name : description``.
"""

import importlib
import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

os.environ.setdefault("KERAS_BACKEND", "jax")  # which Keras sees on import; any will do

import coolmomentum

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "CoolMomentum"
author = "The coolmomentum developers"
project_copyright = author
release = version = coolmomentum.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r".*\._.*|ArrayTree|os\.PathLike|.*LawNumbers"),  # private, or another package's
    ("py:.*", r"(array_api_compat|collections|jax|keras|matplotlib|numpy|optax|torch|typing)\b.*"),
    ("py:.*", r"np\..*|(abc|datetime|numbers|pathlib|types)\..*"),
]
suppress_warnings = ["myst.header"]  # a stub begins below a heading of another file

html_theme = "furo"
html_math_renderer = "mathml"  # MathJax would come from the network
html_title = f"CoolMomentum {release}"
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["custom.css"]

myst_enable_extensions = ["colon_fence", "attrs_inline"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
nb_execution_mode = "force"
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_merge_streams = True
smartquotes_action = "De"  # dashes; "paper" is code
pygments_style = "tango"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = False
napoleon_use_rtype = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# --- pages whose text is elsewhere in the repository ---------------------------------------------

ELSEWHERE = {
    "index": "README.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "backends": "backends/README.md",
    "benchmarks": "benchmarks/README.md",
    "sampling_results": "benchmarks/sampling/results/report.md",
}
PAGES = {path: f"{page}.md" for page, path in ELSEWHERE.items()}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|<)([^)#\s]+)")
PICTURE = re.compile(r'<picture>.*?srcset="(?P<dark>[^"]+)".*?(?P<img><img.*?>)\s*</picture>', re.S)


def read_source(app: Sphinx, page: str, source: list[str]) -> None:
    """Put in the text from elsewhere, and make its links and pictures those of this site."""
    home = DOCS
    if page in ELSEWHERE:
        path = ROOT / ELSEWHERE[page]
        home = path.parent
        source[0] = path.read_text(encoding="utf-8") + "\n\n" + source[0]

    def of_this_site(target: str) -> str:
        inside = os.path.relpath(home / target, ROOT)
        return PAGES.get(inside) or os.path.relpath(home / target, (DOCS / page).parent)

    def both_figures(match: re.Match[str]) -> str:
        attributes = dict(re.findall(r'(\w+)="([^"]*)"', match["img"]))
        alt = " ".join(attributes["alt"].split())
        figures = {"light": attributes["src"], "dark": match["dark"]}
        return "\n".join(
            f"![{alt}]({of_this_site(figure)}){{.only-{shade}}}"
            for shade, figure in figures.items()
        )

    if page in ELSEWHERE or page.count("/") == 0:
        source[0] = LINK.sub(lambda match: of_this_site(match[1]), source[0])
    source[0] = PICTURE.sub(both_figures, source[0])


def show_reports(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Open the pages of the benchmarks in the browser, rather than save them."""
    for node in list(doctree.findall(addnodes.download_reference)):
        if node.get("filename", "").endswith(".html"):
            uri = f"{'../' * page.count('/')}_downloads/{node['filename']}"
            node.replace_self(nodes.reference("", "", *node.children, internal=False, refuri=uri))


# --- code that names something public is a link to it -------------------------------------------

OF_PAGE = {  # whose names stand without their module on a page; the core's do everywhere
    **dict.fromkeys(("torch", "start_torch", "resuming"), "coolmomentum.torch"),
    **dict.fromkeys(("jax", "start_jax"), "coolmomentum.jax"),
    **dict.fromkeys(("keras", "start_keras"), "coolmomentum.keras"),
    **dict.fromkeys(("numpy", "start_numpy"), "coolmomentum.numpy"),
    "plots": "coolmomentum.plot",
    "checkpoints": "coolmomentum.portable",
}
NAME = re.compile(r"(?:coolmomentum\.)?[A-Za-z_][\w.]*(?=\(.*\)$|$)", re.S)
MODULES = ("torch", "jax", "keras", "numpy", "plot", "portable", "thermometer", "audit")


class LinkNames(SphinxTransform):
    """Make a reference of every literal that is a public name."""

    default_priority = 500

    def apply(self) -> None:
        """Of the whole page."""
        page = self.env.docname
        for literal in list(self.document.findall(nodes.literal)):
            ancestors = (nodes.reference, addnodes.pending_xref, nodes.title, addnodes.desc)
            parent = literal.parent
            while parent is not None and not isinstance(parent, ancestors):
                parent = parent.parent
            if parent is None and (target := public_target(literal.astext(), page)):
                kind, name = target
                xref = addnodes.pending_xref(
                    "", reftype=kind, refdomain="std" if kind == "ref" else "py", reftarget=name
                )
                xref["refdoc"], xref["refexplicit"], xref["refwarn"] = page, True, True
                literal.replace_self(xref)
                literal["classes"] += ["xref"]
                if kind == "ref":  # the name of a test, which is long
                    literal.clear()
                    literal += nodes.Text("test")
                xref += literal


def public_target(text: str, page: str) -> tuple[str, str] | None:
    """The role and the full name of what a literal names, if it is public."""
    if re.fullmatch(r"test_\w+", text) and page == "core":
        return "ref", text
    if not (match := NAME.match(text)):
        return None
    name = match[0]
    if not name.startswith("coolmomentum."):
        for module in (OF_PAGE.get(page), "coolmomentum"):
            if module and name in importlib.import_module(module).__all__:
                return "obj", f"{module}.{name}"
        return None
    owner, _, last = name.rpartition(".")
    if owner == "coolmomentum" and last in MODULES:
        return "mod", name
    if owner in ("coolmomentum", *(f"coolmomentum.{module}" for module in MODULES)) and (
        last in importlib.import_module(owner).__all__
    ):
        return "obj", name
    return None


# --- mathematics --------------------------------------------------------------------------------


def show_inline(self: Any, node: nodes.math) -> None:
    """Write MathML, which browsers know by themselves."""
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def show_block(self: Any, node: nodes.math_block) -> None:
    """The same, on lines of its own."""
    text = node.astext()
    aligned = rf"\begin{{aligned}}{text}\end{{aligned}}" if r"\\" in text else text
    self.body.append(tex2mathml(aligned, as_block=True))
    raise nodes.SkipNode


# --- our docstrings -----------------------------------------------------------------------------


def fields(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Make fields of the sections Parameters and Returns, whose entries are sentences, not types.

    Types come from the annotations. Napoleon does the other sections.
    """
    new: list[str] = []
    section = ""
    for n, line in enumerate(lines):
        if set(line.strip()) == {"-"} and n and len(line.strip()) >= len(lines[n - 1].strip()):
            section = lines[n - 1].strip()
            if section in ("Parameters", "Returns"):
                new[-1] = ""
                if section == "Returns":
                    new.append(":returns:")
                continue
        following = lines[n + 1].strip() if n + 1 < len(lines) else ""
        if section in ("Parameters", "Returns") and following and set(following) == {"-"}:
            section, line = "", f"\n{line}"
        if section == "Parameters" and (entry := re.match(r"(\*{0,2}\w[\w, *]*?) : (.*)", line)):
            names = [x.strip().replace("*", r"\*") for x in entry[1].split(",")]
            line = "\n".join(f":param {x}: {entry[2]}" for x in names)
        elif section == "Returns" and line.strip():
            line = f"    {line.strip()}"
        new.extend(line.split("\n"))
    lines[:] = new


def setup(app: Sphinx) -> None:
    """Connect all this."""
    app.add_transform(LinkNames)
    app.add_html_math_renderer("mathml", (show_inline, None), (show_block, None))
    app.connect("source-read", read_source)
    app.connect("doctree-resolved", show_reports)
    app.connect("autodoc-process-docstring", fields, priority=100)  # before Napoleon
