"""The website, built by ``make site``: pages, notebooks as executed, API. It reads nothing from another host."""

import inspect
import json
import pkgutil
import re
import sys
import tomllib
from pathlib import Path, PurePosixPath

from docutils import nodes
from latex2mathml.converter import convert
from myst_nb.core.render import NbElementRenderer
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

import alutils

sys.path.insert(0, str(Path(__file__).parent))
import notebook_pages

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REPOSITORY = SETTINGS["project"]["urls"].get("Repository", "")  # empty: no links to it

project = "Active learning for melanoma segmentation"
html_title = project
root_doc = "website/start"
# The source folder is the repository itself, so that relative links hold here as they do there.
include_patterns = [
    "README.md",
    "website/**.md",
    "notebooks/*.ipynb",
    "notebooks/exercises/*.ipynb",
    "notebooks/exercises/README.md",
    "results/README.md",
    "figures/recorded/summary.md",
]
exclude_patterns = [".*", "runs", "data"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
copybutton_selector = "div.cell_input pre, div.highlight-default pre, div.highlight-python pre, div.highlight-yaml pre"
nb_execution_mode = "off"
nb_ipywidgets_js = {}
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 100
highlight_language = "none"
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!alutils\b).*")]  # the pages of other packages are on other hosts

html_theme = "sphinx_book_theme"
html_theme_options = {
    "show_toc_level": 2,
    "navbar_persistent": [],  # one search field is enough
    "footer_content_items": [],
}
if REPOSITORY:
    html_theme_options |= {
        "repository_url": REPOSITORY,
        "use_repository_button": True,
        "use_issues_button": True,
        "use_source_button": True,
    }
html_context = {"default_mode": "auto"}
html_domain_indices = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = [("search.js", {"defer": "defer"})]
html_math_renderer = "mathml"


def mathml(latex, display):
    """An equation as MathML, which a browser shows by itself; bars are brackets, without an operator's space around."""
    bar = '<mo stretchy="false">&#x0007C;</mo>'
    return convert(latex, display=display).replace(bar, bar.replace("<mo", '<mo lspace="0" rspace="0"'))


def render_inline_math(translator, node):
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def render_display_math(translator, node):
    translator.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def render_image(self, data, render=NbElementRenderer.render_image):
    """A notebook's picture with the alternative text of its output."""
    (image,) = render(self, data)
    image["alt"] = data.output_metadata.get(data.mime_type, {}).get("alt", "")
    return [image]


def render_widget_view(self, data):
    """A sentence in place of a slider, which needs a running notebook."""
    return [nodes.paragraph("", "", nodes.emphasis(text="Run the notebook to use the controls of this cell."))]


NbElementRenderer.render_image = render_image
NbElementRenderer.render_widget_view = render_widget_view


def modules_of(page):
    """The modules that a page of the API is about, without the leading ``alutils``.

    The paper's page has the flat files, in the order of the floors of pyproject.toml, from the lowest up. Each other
    page has the files of the room of its name.
    """
    if page != "paper":
        return [f"{page}.{found.name}" for found in pkgutil.iter_modules([str(Path(alutils.__path__[0], page))])]
    floors = [floor.split(" | ") for floor in SETTINGS["tool"]["importlinter"]["contracts"][0]["layers"]]
    order = [name for floor in reversed(floors) for name in floor]
    flat = [found.name for found in pkgutil.iter_modules(alutils.__path__) if not found.ispkg]
    return sorted(flat, key=order.index)


def complete_source(app, docname, source):
    """Add the modules to a page of the API, the solutions to theirs, and one title to the page of tables."""
    folder, _, page = docname.rpartition("/")
    if folder == "website/api" and page != "index":
        for name in modules_of(page):
            directive = f".. automodule:: alutils.{name}\n   :members:"
            source[0] += f"\n## {name.rpartition('.')[2]}\n\n```{{eval-rst}}\n{directive}\n```\n"
    if docname == "website/solutions":
        for path in sorted((ROOT / "notebooks" / "exercises").glob("*.ipynb")):
            source[0] += "\n\n" + notebook_pages.solutions(json.loads(path.read_text(encoding="utf-8")))
    if folder.startswith("notebooks") and page != "README":
        source[0] = prepared(docname, source[0])
    if docname == "figures/recorded/summary":
        source[0] = "# Tables of the recorded runs\n\n" + re.sub("^#", "##", source[0], flags=re.MULTILINE)


def prepared(docname, text):
    """A notebook's text as its page shows it."""
    notebook = json.loads(text)
    notebook_pages.fold_plots(notebook)
    notebook_pages.colour_shown_code(notebook)
    if "exercises" in docname:
        notebook_pages.take_out_solutions(notebook)
    return json.dumps(notebook)


def skip_plain_fields(app, what, name, obj, skip, options):
    """Leave out a named tuple's fields, which say no more than its own docstring."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def shorten_signature(app, what, name, obj, options, signature, returns):
    """Leave out the settings in the signature of an experiment: they are listed below it."""
    return ("(**settings)", None) if name == "alutils.experiment.Experiment" else None


def list_settings(app, what, name, obj, options, lines):
    """List each setting of an experiment as an attribute with its default and description."""
    if name == "alutils.experiment.Experiment":
        for setting, field in obj.model_fields.items():
            description = (field.description or "").replace("|", r"\|")
            lines += [f".. py:attribute:: {setting}", f"   :value: {field.default!r}", "", f"   {description}", ""]


def api_name(env, text):
    """The full name of what ``text`` names, such as ``alutils.fit``, ``fit()`` or ``tau_u``, or None."""
    documented = env.domains.python_domain.objects
    name = text.split("(")[0].removeprefix("alutils.")
    if name in alutils.Experiment.model_fields:
        name = f"Experiment.{name}"
    head, *rest = name.split(".")
    exported = getattr(alutils, head, None) if head in alutils.__all__ else None
    if inspect.isfunction(exported) or inspect.isclass(exported):
        name = ".".join([exported.__module__.removeprefix("alutils."), exported.__qualname__, *rest])
    if f"alutils.{name}" in documented and (rest or text.startswith("alutils.") or exported):
        return f"alutils.{name}"
    inner = ("attribute", "method", "property", "module")
    defined = [full for full, entry in documented.items() if full.endswith(f".{name}") and entry.objtype not in inner]
    return defined[0] if len(defined) == 1 else None


def link_to_api(app, env, node, content):
    """Link a name of ``alutils`` to the module that defines it, where it is documented."""
    name = api_name(env, node["reftarget"]) if node.get("refdomain") == "py" else None
    if name is not None:
        entry = env.domains.python_domain.objects[name]
        return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)
    return None


def outer_nodes(node):
    while node := node.parent:
        yield node


class LinkedCode(SphinxPostTransform):
    """Makes a link of inline code that names something of alutils; docstrings have links of their own."""

    default_priority = 5
    left_alone = (nodes.title, nodes.reference, addnodes.pending_xref, addnodes.desc_content)

    def run(self, **kwargs):
        for code in list(self.document.findall(nodes.literal)):
            name = api_name(self.env, code.astext())
            if name and not any(isinstance(outer, self.left_alone) for outer in outer_nodes(code)):
                entry = self.env.domains.python_domain.objects[name]
                link = make_refnode(self.app.builder, self.env.docname, entry.docname, entry.node_id, code.deepcopy())
                code.replace_self(link)


class LinkedFolders(SphinxPostTransform):
    """Leads a link to a folder to the page about it: its README, or a page here of its name, or its parent's."""

    default_priority = 5

    def run(self, **kwargs):
        for link in list(self.document.findall(addnodes.pending_xref)):
            folder = (self.app.srcdir / self.env.docname).parent / link["reftarget"]
            if link["reftype"] == "myst" and link["refdomain"] is None and folder.is_dir():
                folder = PurePosixPath(folder.resolve().relative_to(self.app.srcdir).as_posix())
                pages = [page for f in (folder, *folder.parents) for page in (f"{f}/README", f"website/{f}")]
                link["refdomain"] = "doc"
                link["reftarget"] = next((page for page in pages if page in self.env.all_docs), root_doc)
                link["reftargetid"] = None


def complete_folder(app, exception):
    """Take solutions out of the downloads, and write ``index.html``, which leads to the start page."""
    if exception is None:
        address = f"{root_doc}.html"
        leads = f'<meta http-equiv="refresh" content="0; url={address}"><title>{project}</title>'
        leads += f'<a href="{address}">{project}</a>'
        for path in (app.outdir / "_sources" / "notebooks" / "exercises").glob("*.ipynb"):  # to download
            docname = path.relative_to(app.outdir / "_sources").with_suffix("").as_posix()
            path.write_text(prepared(docname, path.read_text(encoding="utf-8")), encoding="utf-8")
        (app.outdir / "index.html").write_text(f'<!doctype html><html lang="en"><meta charset="utf-8">{leads}</html>\n')


def setup(app):
    app.add_html_math_renderer("mathml", (render_inline_math, None), (render_display_math, None))
    app.add_post_transform(LinkedFolders)
    app.add_post_transform(LinkedCode)
    app.connect("source-read", complete_source)
    app.connect("autodoc-skip-member", skip_plain_fields)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("autodoc-process-docstring", list_settings)
    app.connect("missing-reference", link_to_api)
    app.connect("build-finished", complete_folder)
