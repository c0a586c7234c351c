"""The examples of `docs/your-network.md` and the notebooks, where their library is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from robustsnn.adversary.victim import Victim
from robustsnn.estimators.make import make_estimator
from robustsnn.models.shapes import Shaped
from robustsnn.snn.backward_rule import spiking_layers
from tests.conftest import cli_environment
from tests.foreign.networks import forget, images, quiet

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "your-network.md"
#: The examples by name: the library, the versions that it is for, and the layers of neurons.
EXAMPLES: dict[str, tuple[str, str, int]] = {
    "spikingjelly_2.py": ("spikingjelly", r"2\.", 2),
    "spikingjelly_0_0_0_0_14.py": ("spikingjelly", r"0\.0\.0\.0\.14", 2),
    "snntorch_1.py": ("snntorch", r"1\.", 2),
    "norse_1_1.py": ("norse", r"1\.1", 1),
    "sinabs_3_1.py": ("sinabs", r"3\.1", 2),
    "one_step_a_call.py": ("snntorch", r"1\.", 2),
}


def shown() -> dict[str, str]:
    """The examples that the page shows, by the name of their file."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^<!-- file: (\S+) -->\n```python\n(.*?)^```$", text, re.M | re.S)
    return dict(found)


def installed(package: str, versions: str) -> bool:
    """Whether a version of a library is installed that an example is for."""
    if importlib.util.find_spec(package) is None:
        return False
    return re.match(versions, importlib.metadata.version(package)) is not None


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that an example leaves."""
    monkeypatch.chdir(folder)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(shown()[name], name, "exec"), space)
    return space


def test_every_example_is_run() -> None:
    assert set(shown()) == {*EXAMPLES, "own_neurons.py"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in EXAMPLES if n != "one_step_a_call.py"])
@quiet
def test_an_example_evaluates_the_network_of_its_library(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, versions, layers = EXAMPLES[name]
    if not installed(package, versions):
        pytest.skip(f"{package} {versions} is not installed here")
    space = run(name, tmp_path, monkeypatch)
    found, network = space["found"], space["network"]
    assert found.manifest.foreign["reached"] == layers
    assert f"estimators reach {layers} of {layers} layer" in found.manifest.foreign["sentence"]
    # It was trained, and its predictions are those of the library.
    assert found.clean > 0.4 and found.accuracy < found.clean
    forget(network)
    with torch.no_grad():
        expected = network(space["images"][:50]).argmax(1)
    clean = found.records[found.records["attack"] == "clean"].sort_values("image_id")
    assert (clean["prediction"].to_numpy() == expected.numpy()).mean() >= 0.96
    assert "neurons-not-reached" not in {flag["flag"] for flag in found.manifest.flags}
    assert found.manifest.energy["snn_input_uj"] > 0


@quiet
def test_the_example_of_one_step_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not installed(*EXAMPLES["one_step_a_call.py"][:2]):
        pytest.skip("snntorch is not installed here")
    space = run("one_step_a_call.py", tmp_path, monkeypatch)
    found = space["found"]
    assert set(found.accuracies) == {"membranes", "rates"}
    assert [found[name].manifest.encoding for name in found.accuracies] == ["direct", "poisson"]
    assert all(found[name].manifest.foreign["reached"] == 2 for name in found.accuracies)


def test_the_example_of_own_neurons_has_all_that_estimators_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = run("own_neurons.py", tmp_path, monkeypatch)
    assert space["found"].manifest.spiking
    torch.manual_seed(0)
    network = space["Net"]().eval().requires_grad_(False)
    x, labels = images(), torch.arange(8)
    with torch.no_grad():
        logits = network(x)
    for text in ("bptt", "bptt:arctan:width=0.1", "bptr", "rga", "hart", "pdsg", "assg", "twin"):
        found = Victim(network, make_estimator(text, network), range(8), 8).gradient(x, labels)
        assert torch.equal(found.logits, logits), text
        assert bool(found.gradient.any()), text
    # A module around it is reached like it, and so is one with a time axis.
    around = torch.nn.Sequential(torch.nn.Identity(), network)
    from robustsnn.foreign.wrap import adapted, wrap

    outside = adapted(around)
    assert list(spiking_layers(outside)) == ["1.neurons"]
    for text in ("bptr", "twin"):
        inner, outer = (
            Victim(one, make_estimator(text, one), range(8), 8).gradient(x, labels).gradient
            for one in (network, outside)
        )
        assert torch.equal(inner, outer)
    shaped = wrap(network, steps=2, decode="spikes-sum")
    assert isinstance(shaped, Shaped) and list(spiking_layers(shaped)) == ["neurons"]
    assert torch.equal(shaped(x), 2 * logits)


NOTEBOOKS = {"snntorch": "snntorch", "spikingjelly": "spikingjelly"}


def cells(path: Path, kind: str) -> list[str]:
    """The cells of a notebook of one kind."""
    book = json.loads(path.read_text(encoding="utf-8"))
    assert book["nbformat"] == 4
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == kind]


def test_both_notebooks_are_there() -> None:
    assert {path.stem for path in (DOCS / "notebooks").glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_training_to_the_page(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(NOTEBOOKS[name]) is None:
        pytest.skip(f"{NOTEBOOKS[name]} is not installed here")
    code = "\n\n".join(cells(DOCS / "notebooks" / f"{name}.ipynb", "code"))
    # Code cells are plain Python, so that no notebook server is needed.
    (tmp_path / "notebook.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "notebook.py"],
        cwd=tmp_path,
        env={**cli_environment(), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "estimators reach 2 of 2 layers" in done.stdout
    pages = list(tmp_path.glob("runs/*/index.html"))
    assert pages and "estimators reach 2 of 2 layers" in " ".join(pages[0].read_text().split())
