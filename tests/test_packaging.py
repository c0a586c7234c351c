"""The layout: what is installed under which name, and who may import whom."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tarfile
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
    yield from (name for name, _ in marked_imports(path))


def marked_imports(path: Path) -> Iterator[tuple[str, str]]:
    """The same, each with where it stands: `top`, `inside` a function, or for `typing` only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node, where in _walked(tree, "top"):
        if isinstance(node, ast.Import):
            yield from ((alias.name, where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from ((f"{node.module}.{alias.name}", where) for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            # A name that is put together is content, found by name; a plain one is an import.
            named = node.args[0] if node.args else None
            if isinstance(named, ast.Constant) and isinstance(named.value, str):
                yield named.value, where


def _walked(node: ast.AST, where: str) -> Iterator[tuple[ast.AST, str]]:
    for child in ast.iter_child_nodes(node):
        here = where
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            here = "inside"
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            here = "typing"
        yield child, here
        yield from _walked(child, here)


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


#: What each room may import of RobustSNN besides `errors` and itself; `door` is `robustsnn` alone.
ROOMS = {
    "errors": "",
    "common": "",
    "data": "common",
    "snn": "common",
    "models": "data snn common",
    "training": "models data snn common",
    "estimators": "snn common",
    "adversary": "estimators models snn common",
    "records": "common",
    "foreign": "models snn common",
    "diagnosis": "records common",
    "evaluation": "foreign diagnosis records adversary estimators models data snn common",
    "reporting": "records common",
    "workflows": "evaluation reporting diagnosis records adversary estimators models data common",
    "cli": "workflows foreign evaluation reporting diagnosis records adversary estimators training "
    "models data snn common",
    "attacks": "door adversary estimators common",
    "reports": "reporting records common",
}
#: The parts of the diagnosis that look at a network.
WITH_NETWORK = ("robustsnn.diagnosis.preflight", "robustsnn.diagnosis.probe")
#: Of those that are read without torch, the modules that need it all the same.
TORCH_ALL_THE_SAME = ("robustsnn.common.randomness", *WITH_NETWORK)


def named_modules() -> dict[str, Path]:
    """Every module by the name that it is imported by."""
    found = {}
    for path in modules("robustsnn", *CONTENT):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts if parts[0] == "robustsnn" else ("robustsnn", *parts))
        found[name.removesuffix(".__init__")] = path
    return found


MODULES = named_modules()


def room_of(name: str) -> str:
    """The room of a module or of what is taken from it; `door` for names of the package itself."""
    _, _, inner = name.partition("robustsnn.")
    room = inner.partition(".")[0]
    return room if room in (*ROOMS, "zoo", "__main__") else "door"


def may_import(name: str) -> set[str]:
    """The rooms that a module may import."""
    room = room_of(name)
    allowed = {*ROOMS[room].split(), "errors"}
    if any(within(name, one) for one in WITH_NETWORK):
        allowed |= {"adversary", "estimators", "models", "snn"}
    # Files of content can each be read and replaced alone.
    return allowed if room in CONTENT else allowed | {room}


def strangers(name: str, path: Path) -> list[str]:
    """What a module imports and may not."""
    ours = [one for one in imports(path) if within(one, "robustsnn")]
    return [one for one in ours if room_of(one) not in may_import(name)]


@pytest.mark.parametrize("name", [n for n in MODULES if room_of(n) in ROOMS])
def test_each_room_imports_what_its_row_allows(name: str) -> None:
    assert strangers(name, MODULES[name]) == []
    for one in imports(MODULES[name]):
        assert one.split(".")[0] not in (*CONTENT, "tests", "benchmarks", "studies")


def test_every_folder_is_a_room_of_the_table() -> None:
    folders = {p.name for p in (ROOT / "robustsnn").iterdir() if p.is_dir()} - {"__pycache__"}
    assert folders | {"errors", "attacks", "reports"} == set(ROOMS)


def test_an_import_that_is_not_allowed_would_be_noticed(tmp_path: Path) -> None:
    written = tmp_path / "room.py"
    written.write_text("def late():\n    from robustsnn.evaluation import plan\n")
    assert strangers("robustsnn.diagnosis.flags", written) == ["robustsnn.evaluation.plan"]
    assert strangers("robustsnn.workflows.demo", written) == []
    written.write_text("import importlib\nimportlib.import_module('robustsnn.evaluation.plan')\n")
    assert strangers("robustsnn.diagnosis.flags", written) == ["robustsnn.evaluation.plan"]
    written.write_text("from robustsnn.adversary.victim import Victim\n")
    assert strangers("robustsnn.diagnosis.flags", written) != []
    assert strangers("robustsnn.diagnosis.probe.watch", written) == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports inside functions count, those for typing alone do not."""
    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        found = set()
        for one, where in marked_imports(path):
            if where != "typing" and within(one, "robustsnn"):
                found.add(one if one in MODULES else one.rpartition(".")[0])
        # The door imports nothing by itself, and `__main__` is imported by nobody.
        graph[name] = {one for one in found if one in MODULES and one not in (name, "robustsnn")}
    while leaves := [name for name, found in graph.items() if not found & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert sorted(graph) == []


def test_modules_and_functions_stay_short() -> None:
    """Compiled kernels cannot be cut as others can."""
    kernels = ("kernels", "fused")
    for path in modules("robustsnn", "attacks", "reports", "benchmarks", "studies"):
        if path.stem.endswith(kernels):
            continue
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 450, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                assert node.end_lineno - first < 70, f"{path}: {node.name}"


def test_faces_of_packages_are_descriptions_alone() -> None:
    """A face that imports would make the command line wait."""
    for name, path in MODULES.items():
        if path.name == "__init__.py" and name != "robustsnn":
            body = ast.parse(path.read_text(encoding="utf-8")).body
            if within(name, "robustsnn.snn.architectures"):
                continue
            assert len(body) == 1 and ast.get_docstring(ast.Module(body, [])), path


def test_what_is_read_without_torch_does_not_import_it(tmp_path: Path) -> None:
    rooms = ("errors", "common", "records", "diagnosis", "reporting")
    free = [
        name
        for name in MODULES
        if room_of(name) in rooms and not any(within(name, one) for one in TORCH_ALL_THE_SAME)
    ]
    free += ["robustsnn.evaluation.request", "robustsnn.evaluation.options"]
    free += [name for name in MODULES if room_of(name) == "data" and "__main__" not in name]
    assert "torch" not in loaded("import " + ", ".join(free), tmp_path)
    for name in free:
        if room_of(name) in rooms:
            # Not inside functions either; data sets are read with torchvision, inside.
            assert not any(within(one, "torch") for one in imports(MODULES[name])), name


def test_benchmarks_and_studies_stand_apart() -> None:
    for folder_, other in (("benchmarks", "studies"), ("studies", "benchmarks")):
        for path in modules(folder_):
            assert not any(within(name, other) for name in imports(path)), path
    for path in modules("robustsnn", *CONTENT):
        found = list(imports(path))
        assert not any(within(n, one) for n in found for one in ("benchmarks", "studies")), path


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
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(target), str(source)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = target.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_everything_under_one_name(wheel: Path) -> None:
    # Weights do not shrink in an archive: what ships is chosen so that it stays below this.
    assert wheel.stat().st_size < 40 * 2**20
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert {re.sub(r"-[\d.]+\w*\.dist-info$", ".dist-info", top) for top in tops} == {
        "robustsnn",
        "robustsnn.dist-info",
    }
    expected = [
        p.relative_to(ROOT).as_posix() for p in (ROOT / "robustsnn").rglob("*") if p.is_file()
    ]
    expected += [
        f"robustsnn/{p.relative_to(ROOT).as_posix()}"
        for folder in CONTENT
        for p in (ROOT / folder).rglob("*")
        if p.is_file()
    ]
    files = {n for n in expected if Path(n).suffix and not re.search(r"__pycache__|\.pyc|/\.", n)}
    assert {"robustsnn/attacks/suites/quick.yaml", "robustsnn/reports/page.html.j2"} <= files
    assert "robustsnn/data/bundled/test-00000-of-00001.parquet" in files
    assert files - names == set()


@pytest.mark.slow
def test_the_wheel_describes_itself_with_links_that_work(wheel: Path) -> None:
    held = zipfile.ZipFile(wheel)
    (name,) = (name for name in held.namelist() if name.endswith(".dist-info/METADATA"))
    _, _, text = held.read(name).decode().partition("\n\n")
    assert text.startswith("# RobustSNN") and not relative(text)


def relative(text: str) -> list[str]:
    """The targets of links and pictures in Markdown that are places next to the text."""
    targets = [piece.partition(")")[0] for piece in text.split("](")[1:]]
    return [one for one in targets if not one.startswith(("http://", "https://", "#"))]


def test_links_of_the_readme_are_made_absolute() -> None:
    spec = importlib.util.spec_from_file_location("setup_of_robustsnn", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text = module.absolute(readme)
    assert relative(readme) and not relative(text)
    for target in relative(readme):
        assert (ROOT / target.partition("#")[0]).exists()
        assert f"/main/{target})" in text
    # A picture of a page shows nothing.
    assert module.absolute("![a](b.png) [c](d.md)") == (
        f"![a]({module.PICTURES}b.png) [c]({module.PAGES}d.md)"
    )


@pytest.mark.slow
def test_the_source_archive_holds_what_its_tests_need(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for path in tracked():
        where = source / path.relative_to(ROOT)
        where.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, where)
    code = "from setuptools import build_meta; build_meta.build_sdist('../built')"
    (tmp_path / "built").mkdir()
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = (tmp_path / "built").glob("*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    due = {path.relative_to(ROOT).as_posix() for path in tracked()}
    # What only a checkout needs.
    assert {name for name in due - names if not name.startswith((".ci/", ".gitignore"))} == set()


def test_torchattacks_is_an_extra_that_is_installed_by_default() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert not any("torchattacks" in one for one in project["dependencies"])
    for extra in ("torchattacks", "peers"):
        assert any(one.startswith("torchattacks>=") for one in extras[extra])
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    (core,) = re.findall(r"^\$\(VENV\)/\.core:.*\n(?:\t.*\n)+", make, re.MULTILINE)
    assert "torchattacks" in core
    assert "pip install -e '.[torchattacks]'" in (ROOT / "README.md").read_text(encoding="utf-8")


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
