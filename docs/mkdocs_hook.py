"""A hook of `mkdocs build`: pages and notebooks, which are written for GitHub, for the site."""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
CODE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
#: A line of text with an item of a list right below it, which Python-Markdown takes for more text.
UNSEPARATED = re.compile(r"^(?![-*] |\d+\. |[ \t])(.+)\n(?=[-*] |\d+\. )", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the site, with a page in place of each notebook."""
    from mkdocs.structure.files import File

    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        book = json.loads(Path(str(file.abs_src_path)).read_text(encoding="utf-8"))
        files.remove(file)
        files.append(File.generated(config, _page_of(file.src_uri), content=_shown(book)))
    return files


def _page_of(notebook: str) -> str:
    return notebook.removesuffix(".ipynb") + ".md"


def _shown(book: dict[str, Any]) -> str:
    """A notebook as Markdown: its texts, its code, and what the code printed or showed."""
    parts = []
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", [])})
            if "text/html" in data:
                # A blank line would end a block of HTML.
                parts.append("".join(line for line in data["text/html"] if line.strip()))
            else:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page as Python-Markdown needs it, with links out of the site led to the repository."""

    def led(found: re.Match[str]) -> str:
        return f"]({_address(found[1], page.file.src_uri, str(config.repo_url))}"

    parts = CODE.split(markdown)
    # Every second part is a block of code, which stays as it is.
    parts[::2] = [LINK.sub(led, UNSEPARATED.sub(r"\1\n\n", part)) for part in parts[::2]]
    return "".join(parts)


def _address(link: str, page: str, repository: str) -> str:
    """Where a link leads. A folder, and a file that is not below `docs/`, is on GitHub only."""
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    path = ROOT / target
    if link.endswith(".ipynb"):
        return _page_of(link)
    if path.is_dir():
        return f"{repository}/tree/main/{target}"
    if path.is_file() and not target.startswith("docs/"):
        return f"{repository}/blob/main/{target}"
    return link
