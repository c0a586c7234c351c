"""The commands of the README do what it shows, as printed, in a fresh clone; here on few images."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import Cli, cli_environment
from tests.real_data import SHARED, whole

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
#: What makes a command short here, by what it holds.
SHORTER = {
    "train": ["--set", "epochs=1", "--set", "train_images=64"],
    "crosscheck": ["--suite", "quick", "--peers", "few.yaml"],
}
#: One attack of another library, in place of all.
FEW = "name: few\nepsilon: 8/255\nentries: [{label: FGSM, attack: 'torchattacks:FGSM'}]\n"


def commands() -> list[list[str]]:
    """The words of every shown command of ours, with what is set in front of it."""
    blocks = re.findall(r"^```console\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    lines = "\n".join(block.replace("\\\n", " ") for block in blocks).splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if "robustsnn" in line]


def small(words: list[str]) -> list[str]:
    """The command on one image, and without a download."""
    made = [word for word in words if word != "--download"]
    for place, word in enumerate(made):
        if word == "--samples":
            made[place + 1] = "1"
    verb = made[made.index("robustsnn") + 1]
    return [*made, *SHORTER.get(verb, [])]


def test_a_command_says_where_its_data_come_from() -> None:
    """What does not ship is fetched by a command that stands before those that need it."""
    fetched: set[str] = set()
    for words in commands():
        if "--data-root" not in words:
            continue
        verb = words[words.index("robustsnn") + 1]
        kind = "cifar10" if any("cifar10" in word for word in words) else "fashion-mnist"
        assert "--download" in words or (verb == "train" and kind in fetched), words
        fetched.add(kind)
    assert fetched == {"cifar10", "fashion-mnist"}


@pytest.mark.slow
def test_every_command_works_in_a_clone(tmp_path: Path, warm: Cli) -> None:
    for name in ("zoo", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "few.yaml").write_text(FEW)
    if whole("fashion-mnist") and whole("cifar10"):
        (tmp_path / "data").symlink_to(SHARED)
    ran = 0
    for words in commands():
        if "--data-root" in words and not (tmp_path / "data").exists():
            continue
        words = small(words)
        place = words.index("robustsnn")
        settings = dict(word.split("=", 1) for word in words[:place])
        if settings:
            done = subprocess.run(
                [sys.executable, "-m", "robustsnn", *words[place + 1 :]],
                cwd=tmp_path, env={**cli_environment(), **settings}, capture_output=True,
                text=True, timeout=300, check=False,
            )  # fmt: skip
        else:
            done = warm(*words[1:])
        assert done.returncode == 0, (words, done.stderr)
        ran += 1
    assert ran >= 10
    assert (tmp_path / "page" / "index.html").is_file()


def test_pip_install_lines_name_what_exists() -> None:
    """Nothing is on a package index, and every extra is one of the project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = set(project["project"]["optional-dependencies"])
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    found = 0
    for page in pages:
        for line in re.findall(r"pip install ([^`\n]*)", page.read_text(encoding="utf-8")):
            words = shlex.split(line.strip(" ,;:)"))
            if not any("robustsnn" in word or word.startswith(".") for word in words):
                continue
            found += 1
            assert "-e" in words and words[-1].startswith("."), (page, line)
            named = re.findall(r"\[([^\]]*)\]", words[-1])
            assert set(",".join(named).split(",")) - {""} <= extras, (page, line)
    assert found == len(re.findall(r"pip install -e", "".join(p.read_text() for p in pages)))
    assert found >= 2


def test_links_to_files_and_pictures_exist() -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", README):
        assert link.startswith("http") or os.path.exists(ROOT / link), link  # noqa: PTH110
