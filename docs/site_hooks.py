"""What `mkdocs` does with these pages besides its own: folders in nav, notebooks, links, diagrams.

Pages are written for whoever reads them in a checkout. On the site, a link to a file of the
checkout that is no page becomes the file's name, a notebook a page, and a diagram a drawing.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)[^)#\s]*)(#[^)]*)?\)")
_NOTEBOOK = re.compile(r"(\]\((?!https?:)[^)\s]+)\.ipynb(?=[)#])")
_DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of a folder where the navigation names the folder."""
    config.nav = expanded(config.nav, Path(config.docs_dir))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make a page of every notebook."""
    for path in sorted(Path(config.docs_dir).rglob("*.ipynb")):
        name = path.relative_to(config.docs_dir).with_suffix(".md").as_posix()
        text = page_of(json.loads(path.read_text(encoding="utf-8")), path.name)
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Draw diagrams, lead to notebooks' pages, and name files of the checkout that are no pages."""
    folder = posixpath.dirname(page.file.src_uri)
    markdown = _NOTEBOOK.sub(r"\1.md", markdown)
    return _DIAGRAM.sub(lambda found: drawn(found[1]), named(markdown, folder))


def expanded(nav: list[Any], root: Path) -> list[Any]:
    """Return the navigation with every ``folder/`` replaced by its pages, by name.

    A page that the navigation names elsewhere is not repeated. A folder may have no pages yet;
    pages that no entry stands for are reported by mkdocs itself.
    """
    written = set(_pages(nav))

    def inside(item: Any) -> list[Any]:
        if isinstance(item, dict):
            ((title, below),) = item.items()
            below = [below] if isinstance(below, str) and below.endswith("/") else below
            return [{title: below if isinstance(below, str) else _flat(map(inside, below))}]
        if item.endswith("/"):
            kinds = {".md", ".ipynb"}
            pages = sorted(p for p in (root / item).glob("*") if p.suffix in kinds)
            names = [p.with_suffix(".md").relative_to(root).as_posix() for p in pages]
            return [name for name in dict.fromkeys(names) if name not in written]
        return [item]

    return _flat(map(inside, nav))


def _flat(lists: Any) -> list[Any]:
    return [item for items in lists for item in items]


def _pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return _flat(map(_pages, nav.values() if isinstance(nav, dict) else nav))


def page_of(notebook: dict[str, Any], name: str) -> str:
    """Return a notebook's cells as Markdown, code in fences, with a word on where it comes from."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"]).strip()
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    note = f"*This page is the notebook `docs/notebooks/{name}`; a test executes it.*"
    return "\n\n".join([parts[0], note, *parts[1:]]) + "\n"


def named(markdown: str, folder: str) -> str:
    """Return a page whose links to files outside of ``docs/`` are the files' names."""

    def name(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, found[2]))
        if path.startswith("docs/"):
            return found[0]
        return f"`{path}`" if found[1] in path else f"{found[1]} (`{path}`)"

    return _LINK.sub(name, markdown)


def drawn(source: str) -> str:
    """Return a diagram as SVG in a block of HTML.

    Raises:
        RuntimeError: if it is no diagram; the message has the line.
    """
    import mermaidx

    svg = " ".join(mermaidx.render(source).svg().split("\n"))  # a blank line would end the block
    return f'<div class="diagram">{svg}</div>'
