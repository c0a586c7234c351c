"""The layout: what is installed under which name, and who may import whom."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from robustsnn.adversary.catalogue import attack_names
from robustsnn.common.content import folder
from robustsnn.evaluation.suites import suite_names
from robustsnn.models.zoo import zoo_names
from robustsnn.reporting.render import renderer_names, renderers

ROOT = Path(__file__).parents[1]
CONTENT = ("attacks", "reports", "zoo")
#: Where a run of somebody's machine would leave its traces.
MACHINE_PATH = re.compile(
    rb"(?<![\w./~$-])/(?:home|root|Users|work|workspace|mnt|opt|srv|tmp|var)/\w"
)

IMPORT_EVERYTHING = """
import importlib, json, pathlib, pkgutil, sys
for package in ("robustsnn", "robustsnn.attacks", "robustsnn.reports", "robustsnn.zoo"):
    where = importlib.import_module(package).__path__
    for found in pkgutil.walk_packages(where, f"{package}."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
from robustsnn.adversary import catalogue
from robustsnn.reporting import render
for name in catalogue.attack_names():
    catalogue.attack_class(name)
render.renderers()
print(json.dumps({n: m.__file__ for n, m in sys.modules.items() if getattr(m, "__file__", None)}))
"""


def python(code: str, cwd: Path, *arguments: str) -> str:
    """What a Python of its own prints; isolated, so that the working folder is not on its path."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(statement: str, cwd: Path) -> set[str]:
    """The modules that are there after a statement."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(list(sys.modules)))"
    return set(json.loads(python(code, cwd).splitlines()[-1]))


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere in it, with the names taken from it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    found = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in found if path.is_file()]


# --- names ---------------------------------------------------------------------------------------


def test_only_robustsnn_is_importable(tmp_path: Path) -> None:
    code = "from importlib.util import find_spec as f; print([f(n) for n in {!r}])"
    assert python(code.format(CONTENT), tmp_path).strip() == "[None, None, None]"
    inside = tuple(f"robustsnn.{name}" for name in CONTENT)
    assert "None" not in python(code.format(inside), tmp_path)


def test_no_module_is_loaded_under_two_names(tmp_path: Path) -> None:
    files: dict[Path, list[str]] = {}
    for name, file in json.loads(python(IMPORT_EVERYTHING, tmp_path).splitlines()[-1]).items():
        path = Path(file).resolve()
        if any(path.is_relative_to(ROOT / folder) for folder in ("robustsnn", *CONTENT)):
            files.setdefault(path, []).append(name)
    assert len(files) > 50
    assert {path: names for path, names in files.items() if len(names) > 1} == {}
    assert all(within(name, "robustsnn") for (name,) in files.values())


def test_names_are_what_the_folders_hold() -> None:
    for name in CONTENT:
        assert folder(name).resolve() == ROOT / name
    assert len(attack_names()) == len(modules("attacks")) - 1
    assert len(renderers()) == len(modules("reports")) - 1
    assert set(suite_names()) >= {"quick", "hire-iccv21", "curve"}


# --- who imports whom ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", modules(*CONTENT), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_content_imports_mechanism_only(path: Path) -> None:
    for name in imports(path):
        assert name.split(".")[0] not in (*CONTENT, "tests")
        assert not any(within(name, f"robustsnn.{folder}") for folder in CONTENT)


def test_mechanism_reaches_content_by_name_only() -> None:
    for path in modules("robustsnn"):
        for name in imports(path):
            assert not any(within(name, f"robustsnn.{folder}") for folder in CONTENT), path


def test_spiking_networks_know_nothing_of_attacks(tmp_path: Path) -> None:
    statement = "import robustsnn.snn.architectures\n" + "\n".join(
        f"import robustsnn.snn.{path.stem}" for path in (ROOT / "robustsnn/snn").glob("[a-z]*.py")
    )
    ours = {name for name in loaded(statement, tmp_path) if within(name, "robustsnn")}
    allowed = ("robustsnn.snn", "robustsnn.errors", "robustsnn.common.randomness")
    strangers = {n for n in ours if n != "robustsnn" and not any(within(n, a) for a in allowed)}
    assert strangers == set()


def test_reports_need_no_torch(tmp_path: Path) -> None:
    statement = "from robustsnn.reporting import render; render.renderers()"
    assert "torch" not in loaded(statement, tmp_path)
    for path in modules("reports"):
        assert not any(within(name, "torch") for name in imports(path)), path


def test_the_command_line_starts_without_torch(tmp_path: Path) -> None:
    assert not {"torch", "pandas", "matplotlib"} & loaded("import robustsnn.cli.main", tmp_path)


# --- what is shipped -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy so that the checkout stays as it is."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("robustsnn", *CONTENT):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(target), str(source)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = target.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_everything_under_one_name(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert {re.sub(r"-[\d.]+\w*\.dist-info$", ".dist-info", top) for top in tops} == {
        "robustsnn",
        "robustsnn.dist-info",
    }
    expected = [p.relative_to(ROOT).as_posix() for p in (ROOT / "robustsnn").rglob("*")]
    expected += [
        f"robustsnn/{p.relative_to(ROOT).as_posix()}"
        for folder in CONTENT
        for p in (ROOT / folder).rglob("*")
    ]
    files = {n for n in expected if Path(n).suffix and not re.search(r"__pycache__|\.pyc|/\.", n)}
    assert {"robustsnn/attacks/suites/quick.yaml", "robustsnn/reports/page.html.j2"} <= files
    assert "robustsnn/data/bundled/test-00000-of-00001.parquet" in files
    assert files - names == set()


@pytest.mark.slow
def test_the_wheel_works_away_from_its_source(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = """
import json, sys
sys.path.insert(0, sys.argv[1])
import robustsnn
from robustsnn.adversary import catalogue
from robustsnn.evaluation import suites
from robustsnn.models import zoo
from robustsnn.reporting import render
from robustsnn.data.datasets import load_dataset
network = robustsnn.load_model("fashion-mnist/vgg5-ann")
data = load_dataset("fashion-mnist", None, samples=8)
found = robustsnn.evaluate(network, data, "quick")
print(json.dumps([robustsnn.__file__, zoo.zoo_names(), catalogue.attack_names(),
    suites.suite_names(), render.renderer_names(), len(found.records)]))
"""
    file, *names, records = json.loads(python(code, tmp_path, str(tmp_path / "site")))
    assert Path(file).is_relative_to(tmp_path)
    assert names == [
        zoo_names(),
        attack_names(),
        suite_names(),
        renderer_names(),
    ]
    assert records == 4 * 8


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = re.escape(project["version"])
    assert re.search(rf"^version: {version}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert re.search(rf"^## {version}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_no_file_mentions_a_machine() -> None:
    found = {}
    for path in tracked():
        content = path.read_bytes()
        if b"\0" not in content[:8192] and (match := MACHINE_PATH.search(content)):
            found[path.relative_to(ROOT).as_posix()] = match[0].decode()
    assert found == {}


def test_every_checkpoint_fits_in_the_repository() -> None:
    for path in tracked():
        limit = 4 * 2**20 if path.suffix == ".safetensors" else 2 * 2**20
        assert path.stat().st_size < limit, path
