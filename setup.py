"""What `pyproject.toml` cannot say: the description for a package index.

`README.md` links to files next to it, which an index does not have.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

PAGES = "https://github.com/robustsnn/robustsnn/blob/main/"
PICTURES = "https://raw.githubusercontent.com/robustsnn/robustsnn/main/"
#: A link or a picture in Markdown whose target is neither an address nor a place in the page.
LINK = re.compile(r"(!?)(\[(?:[^\[\]]|\[[^\[\]]*\])*\]\()(?!\w+:|#)([^()\s]+)")


def absolute(text: str) -> str:
    """A Markdown text with the targets of its links and pictures in full."""
    return LINK.sub(lambda m: m[1] + m[2] + (PICTURES if m[1] else PAGES) + m[3], text)


if __name__ == "__main__":
    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    setup(long_description=absolute(readme), long_description_content_type="text/markdown")
