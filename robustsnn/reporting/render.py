"""Reports: tables, figures and one page, written from runs."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import types
from pathlib import Path
from types import ModuleType

from robustsnn.common.content import folder
from robustsnn.common.files import expanded, made_folder
from robustsnn.common.installed import installed, load, package_of
from robustsnn.errors import InputError
from robustsnn.records.runs import Runs

#: The mark of our pages, so that a report does not overwrite an index.html of other origin.
GENERATOR = "RobustSNN"


def render(runs: Runs, output: Path | str, baseline: str | None = None) -> Path:
    """Write every table and figure, and the page that shows them.

    Each file is moved into place when it is complete, index.html last. Files of other origin are
    not changed.

    Args:
        runs: The runs to report.
        output: The folder of index.html, tables/ and figures/; created if it does not exist.
        baseline: The model that the others are compared with; by default the first one.

    Returns:
        The path of index.html.

    Raises:
        InputError: If `output` cannot be written or holds an index.html of other origin, or if no
            run is of the baseline.
    """
    if baseline is not None:
        runs = runs.with_baseline(baseline)
    output = expanded(output)
    page = output / "index.html"
    _refuse_foreign(page)
    try:
        with made_folder(output):
            scratch = Path(tempfile.mkdtemp(prefix=".report-", dir=output))
            try:
                written = [path for module in _renderers() for path in module.render(runs, scratch)]
                for path in sorted(written, key=lambda path: path.name == page.name):
                    target = output / path.relative_to(scratch)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    path.replace(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"cannot write a report to {output}: {error.strerror or error}; name another folder."
        ) from error
    return page


def _renderers() -> list[ModuleType]:
    # The page shows what the other renderers drew, so it comes last.
    modules: list[ModuleType] = [*renderers(), *_of_other_packages()]
    return sorted(modules, key=lambda module: (getattr(module, "ORDER", 0), module.__name__))


def _of_other_packages() -> list[ModuleType]:
    """The modules that other installed packages name in `robustsnn.reports`.

    Raises:
        InputError: One does not load, or has no function `render`.
    """
    found = []
    for name in installed("reports"):
        module = load("reports", name)
        if not isinstance(module, ModuleType) or not callable(getattr(module, "render", None)):
            raise InputError(
                f"{name!r} of the package {package_of('reports', name)} is not a module with a "
                "function render: mend or remove that package."
            )
        found.append(module)
    return found


def _refuse_foreign(page: Path) -> None:
    if not page.exists():
        return
    head = page.read_bytes()[:2000] if page.is_file() else b""
    if f'name="generator" content="{GENERATOR}' not in head.decode("utf-8", "replace"):
        raise InputError(f"{page} was not written by RobustSNN; name another output folder.")


def renderer_names() -> list[str]:
    """The names of the renderers: their file names with dashes."""
    return sorted(_renderer_modules())


def renderers() -> list[types.ModuleType]:
    """The modules of the renderers, in the order of their names."""
    return [
        importlib.import_module(f"robustsnn.reports.{stem}")
        for _, stem in sorted(_renderer_modules().items())
    ]


def _renderer_modules() -> dict[str, str]:
    stems = [p.stem for p in folder("reports").glob("*.py") if not p.stem.startswith("_")]
    return {stem.replace("_", "-"): stem for stem in stems}
