"""Tables at any width, in any encoding: every number is there whole."""

from __future__ import annotations

import io
import re
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from robustsnn.records.runs import Runs, load_runs
from robustsnn.reporting.columns import NARROWEST, table
from robustsnn.reporting.comparison import comparisons
from robustsnn.reporting.render import render
from robustsnn.reporting.tables import accuracy_table
from robustsnn.reporting.terminal import comparison_table, comparison_tables
from tests.conftest import CLI, cli_environment
from tests.made_runs import QUICK, draw, write_run

NUMBER = re.compile(r"\d[\d.,]*\d|\d")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve runs of models with names of every length."""
    root = tmp_path_factory.mktemp("twelve")
    names = [f"net-{i}{'-with-a-very-long-name-of-its-own' * (i % 3 == 1)}" for i in range(12)]
    return [
        write_run(
            root / f"r{i}",
            draw(QUICK, 200, seed=i),
            model=name,
            kind="snn" if i % 2 else "ann",
            checkpoint_sha256=f"{i:064x}",
            energy={"snn_input_uj": 1234.5 + i, "ann_uj": 5.0},
        )
        for i, name in enumerate(names)
    ]


@pytest.fixture(scope="module")
def of_models(folders: list[Path]) -> dict[int, Runs]:
    return {count: load_runs(folders[:count]) for count in (1, 2, 3, 4, 5, 7, 12)}


def printed(what: object, width: int, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=stream, width=width, color_system=None).print(what)
    stream.seek(0)
    return stream.read().replace("\u00a0", " ")


def numbers(text: str) -> list[str]:
    return sorted(NUMBER.findall(text))


@pytest.mark.parametrize("width", [12, 17, 25, 34, 50, 72, 80, 100, 132, 300])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 12])
def test_no_number_is_cut_at_any_width(of_models, count, width):
    runs = of_models[count]
    text = printed(comparison_table(runs), width)
    assert all(len(line) <= width for line in text.splitlines()), text
    assert "…" not in text
    body = accuracy_table(comparisons(runs)[0])
    found = set(text.replace("\n", " ").split())
    for row in body.rows:
        for cell in row[1:]:
            for part in (cell.main, cell.detail, cell.note, cell.mark):
                for word in part.replace("\u00a0", " ").split():
                    assert word in found or word == "%", (word, text)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_every_model_is_named_above_its_numbers(of_models, count):
    text = printed(comparison_table(of_models[count]), 60)
    assert len(re.findall(r"^ ─+$", text, re.MULTILINE)) >= count / 4
    for model in of_models[count].models:
        pieces = re.findall(r"[^-]+", model)
        assert all(piece in text for piece in pieces)


def test_the_columns_of_a_part_are_those_of_its_models(of_models):
    """The numbers of one model stand in one column, below its name."""
    runs = of_models[12]
    text = printed(comparison_table(runs), 44)
    parts = text.split("\n\n")
    assert len(parts) > 3
    shown: list[str] = []
    for part in parts:
        (clean,) = (line for line in part.splitlines() if line.startswith("  Clean"))
        shown += re.findall(r"\d+\.\d(?= |$)", clean.split("[")[0])
    rates = runs.results.query("attack == 'clean'")["accuracy"]
    assert shown == [f"{100 * rate:.1f}" for rate in rates]


@pytest.mark.parametrize("count", [1, 4, 12])
def test_files_hold_every_number(of_models, count, tmp_path):
    render(of_models[count], tmp_path)
    text = (tmp_path / "tables" / "comparison.txt").read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 100
    for comparison in comparisons(of_models[count]):
        for row in accuracy_table(comparison).rows:
            for cell in row[1:]:
                assert cell.main.removesuffix("\u00a0%") in text and cell.detail in text


def test_a_paper_gets_the_models_in_parts(of_models, tmp_path):
    render(of_models[12], tmp_path)
    text = (tmp_path / "tables" / "comparison.tex").read_text(encoding="utf-8")
    table = text.partition(r"\end{table}")[0]
    assert table.count(r"\begin{tabular}{lrrrr}") == table.count(r"\end{tabular}") == 3
    for row in accuracy_table(comparisons(of_models[12])[0]).rows:
        for cell in row[1:]:
            assert cell.main.replace("\u00a0%", r"~\%") in table or cell.main == "–"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8", "utf-16"])
def test_lines_are_aligned_in_any_encoding(of_models, encoding):
    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="robustsnn-readable")
    Console(file=console, width=72, color_system=None).print(comparison_tables(of_models[3]))
    console.flush()
    console.seek(0)
    text = console.read().replace("\u00a0", " ")
    assert "?" not in text
    ends = {len(line) for line in text.splitlines() if re.search(r"\d\.\d\]$", line)}
    assert len(ends) == 1
    assert ("Linf 8/255" in text) == (encoding not in ("utf-8", "utf-16", "cp437"))


def test_a_plain_table_wraps_texts_and_keeps_numbers():
    rows = [("fashion-mnist/vgg5-snn", "89.25 %", "a sentence that may be wrapped anywhere")]
    for width in range(NARROWEST, 90):
        text = printed(table(("model", "accuracy", ""), rows), width)
        assert "89.25" in text and all(len(line) <= width for line in text.splitlines()), text
        assert "sentence" in text and "wrapped" in text


# --- the real command line -------------------------------------------------------------------


def run_in(
    environment: dict[str, str], cwd: Path, *arguments: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*CLI, *arguments],
        cwd=cwd,
        env={**cli_environment(), **environment},
        capture_output=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1"])
def test_any_encoding_of_stdout_works(tmp_path, encoding):
    asked = ["compare", "fashion-mnist/vgg5-ann", "fashion-mnist/vgg5-snn"]
    asked += ["--samples", "4", "--attack", "fgsm", "--output", "c"]
    done = run_in({"PYTHONIOENCODING": encoding, "COLUMNS": "60"}, tmp_path, *asked)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding.partition(":")[0]).replace("\u00a0", " ")
    assert "Linf 8/255" in text and "Traceback" not in done.stderr.decode()
    for arguments in (["--help"], ["attacks", "list"], ["report", "c"]):
        done = run_in({"PYTHONIOENCODING": encoding}, tmp_path, *arguments)
        assert done.returncode == 0 and done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["1", "47"])
def test_a_narrow_terminal_gets_every_number(tmp_path, columns, checkpoints):
    asked = ["evaluate", str(checkpoints / "snn"), "--samples", "7", "--attack", "fgsm"]
    done = run_in({"COLUMNS": columns}, tmp_path, *asked, "--output", "r")
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode().replace("\u00a0", " ")
    rows = load_runs([tmp_path / "r"]).results
    for rate in rows["accuracy"]:
        assert f"{100 * rate:.1f}" in text.split()
    listed = run_in({"COLUMNS": columns}, tmp_path, "zoo", "list").stdout.decode()
    assert "80.49" in listed and "…" not in listed


def test_output_to_a_pipe_that_no_encoding_fits(tmp_path):
    done = run_in(
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, tmp_path, "zoo", "list"
    )
    assert done.returncode == 0 and b"80.49" in done.stdout
