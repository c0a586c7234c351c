"""One page that works offline: headlines first, then tables, figures and provenance."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from robustsnn.common import wording
from robustsnn.records.runs import Run, Runs
from robustsnn.records.schema import WORST_CASE, Condition
from robustsnn.reporting import facts, figures, sentences, tables, trust
from robustsnn.reporting.comparison import Comparison, comparisons
from robustsnn.reporting.outcomes import Outcome, outcomes_of
from robustsnn.reporting.render import GENERATOR
from robustsnn.reporting.shown_images import ShownImages, shown_images

#: The page shows what the other renderers wrote, so it comes after them.
ORDER = 1

#: The colours of the figures that the style sheet of the page replaces in light and dark mode.
_THEMED = {
    figures.INK: "ink",
    figures.MUTED: "muted",
    figures.GRID: "line",
    figures.PAPER: "paper",
    figures.RIGHT: "right",
    figures.WRONG: "wrong",
    **{colour: f"model-{index}" for index, colour in enumerate(figures.PALETTE)},
}

#: The keys of a manifest that are shown elsewhere on the page, or not at all.
_ELSEWHERE = frozenset(
    "flags preflight probe diagnostics ledger class_names verdict energy status stages densities "
    "diagnosed_again operations entries".split()
)


@dataclass(frozen=True)
class Picture:
    """A figure of the page."""

    name: str
    title: str
    caption: str
    width: int
    svg: Markup


@dataclass(frozen=True)
class Section:
    """A comparison with its headlines, facts, tables and images.

    Args:
        slug: The name of the comparison in anchors.
        title: The title for readers.
        images: The number of images, in words.
        lead: The sentence above the headlines.
        headlines: The outcome for each model.
        facts: What the runs have in common, as names and values.
        attacks: The attacks of the suite with their settings, if they are known.
        accuracy: The accuracy under each attack.
        others: The other tables.
        shown: The images of each model that fell and that stood.
        links: The anchors of these images, by the row and the column of a cell of `accuracy`.
    """

    slug: str
    title: str
    images: str
    lead: str
    headlines: list[sentences.Headline]
    facts: list[tuple[str, str]]
    attacks: tables.TextTable | None
    accuracy: tables.TextTable
    others: list[tables.TextTable]
    shown: list[tuple[str, ShownImages]]
    links: dict[tuple[int, int], tuple[str, ShownImages]]


def render(runs: Runs, output: Path) -> list[Path]:
    """Write `index.html`, which shows every figure and names every table found in `output`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["names"] = _names
    noted: set[str] = set()
    sections = [_section(comparison, noted) for comparison in comparisons(runs)]
    text = environment.get_template("page.html.j2").render(
        generator=f"{GENERATOR} {_version()}".strip(),
        title=_title(runs),
        measured=facts.title_row(runs.runs),
        commands=facts.commands(runs.runs),
        levels=trust.LEVELS,
        guide=trust.GUIDE,
        guide_url=trust.GUIDE_URL,
        models=runs.models,
        colours=_colours(runs),
        sections=sections,
        pictures=[_picture(path) for path in sorted((output / "figures").glob("*.svg"), key=_rank)],
        flags=sentences.flag_sentences(runs.runs),
        checked=_checked(runs),
        diagnosed=[diagnosed for run in runs.runs if (diagnosed := _diagnosed(run))],
        provenance=[_provenance(run) for run in runs.runs],
        files=sorted(
            path.relative_to(output).as_posix()
            for folder in ("tables", "figures")
            for path in (output / folder).glob("*.*")
        ),
    )
    output.mkdir(parents=True, exist_ok=True)
    path = output / "index.html"
    path.write_text(text, encoding="utf-8")
    return [path]


def _names(text: str) -> Markup:
    """The text as HTML in which no line breaks at the hyphen of a name such as PGD-10."""
    whole = re.compile(r"(?<![\w.&-])[\w.]+(?:-[\w.]+)+(?![\w-])")

    def keep(found: re.Match[str]) -> str:
        word = found[0]
        return f'<span class="nb">{word}</span>' if len(word) <= 24 else word

    return Markup(whole.sub(keep, str(escape(text))))


def _version() -> str:
    try:
        return metadata.version("robustsnn")
    except metadata.PackageNotFoundError:
        return ""


def _title(runs: Runs) -> str:
    data = wording.listing(list(dict.fromkeys(wording.data(run.data) for run in runs.runs)))
    models = runs.models
    who = models[0] if len(models) == 1 else wording.count(len(models), "model")
    return f"{who} under attack on {data}"


def _colours(runs: Runs) -> dict[str, str]:
    return {
        model: f"var(--model-{figures.PALETTE.index(figures.colour(runs.models, model))})"
        for model in runs.models
    }


def _section(comparison: Comparison, noted: set[str]) -> Section:
    # The box says what the letters mean, and the headlines why a run has one.
    noted.update(tables.trust_notes(comparison))
    accuracy, *others = (_noted_once(table, noted) for table in tables.tables_of(comparison))
    outcomes = outcomes_of(comparison)
    shown = [(_anchor(comparison, o), shown_images(o)) for o in outcomes]
    return Section(
        slug=comparison.slug,
        title=comparison.title,
        images=wording.count(comparison.samples, "image"),
        lead=sentences.lead(comparison),
        headlines=sentences.headlines(comparison),
        facts=facts.facts_of_comparison(comparison),
        attacks=facts.attacks_table(comparison),
        accuracy=accuracy,
        others=others,
        shown=shown,
        links=_links(comparison, outcomes, shown),
    )


def _anchor(comparison: Comparison, outcome: Outcome) -> str:
    """The name of the images of a model in anchors, which a label could not be."""
    return f"{comparison.slug}-{comparison.models.index(outcome.run.label)}"


def _links(
    comparison: Comparison, outcomes: list[Outcome], shown: list[tuple[str, ShownImages]]
) -> dict[tuple[int, int], tuple[str, ShownImages]]:
    """Where the cells of the worst case lead, by the row and the column of the cell.

    The row of the worst case is that of the attack itself where there is only one.
    """
    rows = tables.shown_conditions(comparison)
    found = {}
    for outcome, pair in zip(outcomes, shown, strict=True):
        worst = Condition(WORST_CASE, *outcome.size)
        alone = [c for c in rows if (c.norm, c.epsilon) == outcome.size]
        row = rows.index(worst if worst in rows else alone[-1])
        found[row, 1 + comparison.models.index(outcome.run.label)] = pair
    return found


def _noted_once(table: tables.TextTable, noted: set[str]) -> tables.TextTable:
    """The table without the notes that an earlier table of the page already has."""
    notes = tuple(note for note in table.notes if note not in noted)
    noted.update(notes)
    return dataclasses.replace(table, notes=notes)


def _rank(path: Path) -> tuple[int, str]:
    order = ("attack-bars", "accuracy-vs-epsilon", "gallery", "spikes", "densities")
    found = [index for index, stem in enumerate(order) if path.name.startswith(stem)]
    return (found[0] if found else len(order), path.name)


def _picture(path: Path) -> Picture:
    svg = path.read_text(encoding="utf-8")

    def metadata_of(tag: str) -> str:
        found = re.search(rf"<dc:{tag}>(.*?)</dc:{tag}>", svg, re.DOTALL)
        return html.unescape(found[1]) if found else ""

    width = re.search(r'<svg[^>]*\bwidth="([\d.]+)pt"', svg)
    title = metadata_of("title") or path.stem
    return Picture(
        name=path.stem,
        title=title,
        caption=metadata_of("description"),
        width=round(float(width[1]) * 4 / 3) if width else 540,
        svg=_inline(svg, path.stem, title),
    )


def _inline(svg: str, prefix: str, title: str) -> Markup:
    """An SVG file as an element of the page, with unique identifiers and the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # matplotlib names every group and gives equal images equal names; keep only names in use.
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg))
    wanted = {name for pair in used for name in pair if name}

    def named(found: re.Match[str]) -> str:
        if found[1] not in wanted:
            return ""
        wanted.remove(found[1])
        return f' id="{prefix}-{found[1]}"'

    svg = re.sub(r'\sid="([^"]+)"', named, svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    for colour, name in _THEMED.items():
        svg = svg.replace(colour, f"var(--{name}, {colour})")
    # Without width and height, the page scales the figure by its view box.
    svg = re.sub(r'(<svg[^>]*?)\s+width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\s+height="[^"]*"', r"\1", svg, count=1)
    label = html.escape(title, quote=True)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))


def _checked(runs: Runs) -> int:
    return sum(len(run.preflight) for run in runs.runs)


@dataclass(frozen=True)
class Diagnosed:
    """Every diagnostic of a run, and what each of its stages cost.

    Args:
        model: The label of the model.
        suite: The name of the suite.
        level: The level of the run, empty for a run without one.
        rows: The id, name, value, level and sentence of each diagnostic.
        ledger: The entries of the ledger in the manifest.
    """

    model: str
    suite: str
    level: str
    rows: list[tuple[str, str, str, str, str]]
    ledger: list[Mapping[str, Any]]


def _diagnosed(run: Run) -> Diagnosed | None:
    """The diagnostics of a run, those with a flag first; None if it has none."""
    flags = {(str(flag.get("flag")), str(flag.get("sentence"))): flag for flag in run.flags}
    rows = []
    for check in run.preflight:
        if check.get("id"):
            slug, sentence = str(check["check"]), str(check["sentence"])
            flag = flags.pop((slug, sentence), None)
            rows.append(_diagnostic(run, check, slug, flag))
    for finding in run.diagnostics:
        slug, sentence = str(finding.get("slug")), str(finding.get("sentence"))
        flag = flags.pop((slug, sentence), None)
        if flag is None and finding.get("flagged"):
            flag = finding
        rows.append(_diagnostic(run, finding, slug, flag))
    rows += [_diagnostic(run, flag, str(flag.get("flag")), flag) for flag in flags.values()]
    ledger: list[Mapping[str, Any]] = list(run.manifest.ledger)
    if not rows:
        return None
    rows.sort(key=lambda row: (row[3] == "", _by_number(row[0])))
    return Diagnosed(run.label, run.suite, run.level, rows, ledger)


def _diagnostic(
    run: Run, found: Mapping[str, Any], slug: str, flag: Mapping[str, Any] | None
) -> tuple[str, str, str, str, str]:
    evidence = found.get("evidence")
    measured = isinstance(evidence, int | float) and not math.isnan(evidence)
    number = f"{evidence:.3g}" if measured else "–"
    where = wording.threat(str(found.get("norm") or ""), str(found.get("epsilon") or ""))
    mark, sentence = "", str(found.get("sentence") or "")
    if flag is not None:
        mark = trust.mark_of(run, slug, str(flag.get("severity") or "flag"))
    else:
        sentence = trust.sentence_of(found, slug)
    name = f"{slug.replace('-', ' ')}{f', {where}' if where else ''}"
    return str(found.get("id") or ""), name, number, mark, sentence


def _by_number(name: str) -> tuple[str, int]:
    found = re.fullmatch(r"([A-Z]+?)(\d*)", name)
    return (found[1], int(found[2] or 0)) if found else ("~", 0)


def _provenance(run: Run) -> tuple[str, str, list[tuple[str, str]], list[tuple[str, str]]]:
    """The label and suite of a run, what a reader has to know of it, and all else that it holds."""
    kept = {key: value for key, value in dict(run.manifest).items() if key not in _ELSEWHERE}
    return run.label, run.suite, facts.facts_of_run(run), list(_flat(kept))


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{before}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name} · ")
        elif isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            if value:
                yield name, " ".join(value)
        elif isinstance(value, float):
            yield name, f"{value:,.6g}"
        elif value is not None and value != "":
            yield name, value if isinstance(value, str) else json.dumps(value)
