"""A hook of `mkdocs build`: pages that are written for GitHub, as the site needs them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
CODE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
#: A line of text with an item of a list right below it, which Python-Markdown takes for more text.
UNSEPARATED = re.compile(r"^(?![-*] |\d+\. |[ \t])(.+)\n(?=[-*] |\d+\. )", re.MULTILINE)


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
    if path.is_dir():
        return f"{repository}/tree/main/{target}"
    if path.is_file() and not target.startswith("docs/"):
        return f"{repository}/blob/main/{target}"
    return link
