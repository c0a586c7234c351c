"""What ships with RobustSNN is found by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from robustsnn.errors import InputError, unknown
from robustsnn.evaluation.suites import suite_names, suite_path
from robustsnn.models.zoo import zoo_folder, zoo_names
from robustsnn.reporting.render import renderer_names, renderers


def test_shipped_suites_models_and_renderers_are_found():
    for name in suite_names():
        assert suite_path(name).is_file()
    for name in zoo_names():
        assert (zoo_folder(name) / "model.json").is_file()
    assert len(renderers()) == len(renderer_names())
    with pytest.raises(InputError, match="no suite named"):
        suite_path("quik")
    with pytest.raises(InputError, match="no model named"):
        zoo_folder("fashion-mnist/vgg6")


def test_listing_names_does_not_import_torch():
    code = """
import sys
from robustsnn.adversary.catalogue import attack_names
from robustsnn.evaluation.suites import suite_names
from robustsnn.models.zoo import zoo_names
from robustsnn.reporting.render import renderer_names
assert attack_names() and suite_names() and zoo_names() and renderer_names()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_the_nearest():
    assert "Did you mean 'quick'" in str(unknown("suite", "quik", ["quick", "curve"]))
