"""Attacks by name, by specification and by file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from robustsnn.adversary.catalogue import attack_class, attack_names, load_attack
from robustsnn.common.content import folder
from robustsnn.common.kinds import KINDS
from robustsnn.errors import InputError

USERS = Path(__file__).with_name("users_attack.py")


def test_every_file_is_an_attack_under_its_name():
    assert {"none", "fgsm", "pgd", "gaussian-noise", "uniform-noise", "transfer"} <= set(
        attack_names()
    )
    assert "torchattacks" in attack_names()
    for name in attack_names():
        assert attack_class(name).kind in KINDS


def test_fields_are_typed():
    attack = load_attack(
        "pgd:steps=7, step_size=2/255, random_start=no, iterate=last, early_exit=False"
    )
    assert (attack.steps, attack.step_size, attack.random_start) == (7, "2/255", False)
    assert (attack.iterate, attack.early_exit, attack.restarts) == ("last", False, 1)
    assert load_attack("pgd:step_size=none") == load_attack("pgd")


def test_nested_specifications():
    assert load_attack("transfer:pgd:steps=7,step_size=0.01").attack == "pgd:steps=7,step_size=0.01"
    assert load_attack("transfer:pgd:steps=7").steps == 7
    assert load_attack("transfer:fgsm").steps == 1
    library = load_attack("torchattacks:MIFGSM:steps=5,decay=0.9")
    assert (library.name, library.steps, library.norms) == ("MIFGSM", 5, ("Linf",))
    assert load_attack("torchattacks:PGDL2").norms == ("L2",)
    assert load_attack("torchattacks:APGD").norms == ("Linf", "L2")
    assert load_attack("torchattacks:MIFGSM").steps == 10


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("pgdd", "no attack named 'pgdd'. Did you mean 'pgd'"),
        ("pgd:step=3", "no field of pgd named 'step'. Did you mean 'steps'"),
        ("pgd:steps=ten", "pgd: steps must be a whole number below 2^31, not 'ten'"),
        ("pgd:steps=2.5", "whole number"),
        ("pgd:steps=0", "at least 1"),
        ("pgd:restarts=2,random_start=no", "the same without random_start"),
        ("pgd:steps", "write field=value"),
        ("pgd:steps=1,steps=2", "given twice"),
        ("pgd:iterate=first", "'best' or 'last'"),
        ("pgd:random_start=maybe", "true or false"),
        ("pgd:step_size=1/0", "divides by zero"),
        ("pgd:step_size=-1", "negative"),
        ("pgd:loss=ce", "no loss named 'ce'"),
        ("none:steps=1", "none has no settings"),
        ("transfer:none", "of kind none"),
        ("transfer:transfer:pgd", "of kind transfer"),
        ("transfer:pgdd", "Did you mean 'pgd'"),
        ("torchattacks", "needs the name of an attack"),
        ("torchattacks:MIFGM", "Did you mean 'MIFGSM'"),
        ("torchattacks:CW", "declares no norm and epsilon"),
        ("torchattacks:DeepFool", "declares no norm and epsilon"),
        ("torchattacks:PIFGSM", "declares no norm and epsilon"),
        ("torchattacks:MultiAttack", "declares no norm and epsilon"),
        ("torchattacks:PGD:eps=0.1", "eps comes from the evaluation"),
        ("torchattacks:PGD:step=3", "Did you mean 'steps'"),
        ("torchattacks:PGD:alpha=x", "must be a number"),
        ("no/such/file.py", "no attack file"),
        ("no/such/file", "is not a Python file"),
        ("", "no attack named ''"),
    ],
)
def test_mistakes_are_one_line_with_the_remedy(spec, says):
    with pytest.raises(InputError) as caught:
        load_attack(spec)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_user_s_file_is_loaded_once_under_its_own_name():
    first, second = load_attack(f"{USERS}:spread=0.5"), load_attack(str(USERS))
    assert type(first) is type(second)
    assert first.spread == 0.5
    assert type(first).__module__.startswith("robustsnn_user_attack_")
    names = [n for n, m in sys.modules.items() if getattr(m, "__file__", None) == str(USERS)]
    assert names == [type(first).__module__]


def test_one_of_ours_by_its_path_is_the_same_class():
    path = folder("attacks") / "pgd.py"
    assert type(load_attack(f"{path}:steps=3")) is attack_class("pgd")


def test_two_files_of_one_name_do_not_meet(tmp_path):
    for name, spread in (("a", "0.25"), ("b", "0.75")):
        (tmp_path / name).mkdir()
        text = USERS.read_text().replace("spread: float = 0.1", f"spread: float = {spread}")
        (tmp_path / name / "mine.py").write_text(text)
    first, second = (load_attack(str(tmp_path / f / "mine.py")) for f in "ab")
    assert (first.spread, second.spread) == (0.25, 0.75)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def broken(:\n", "does not load: SyntaxError"),
        ("import no_such_module_anywhere\n", "does not load: ModuleNotFoundError"),
        ("1 / 0\n", "does not load: ZeroDivisionError"),
        ("raise SystemExit(3)\n", "does not load: SystemExit"),
        ("x = 1\n", "ATTACK = YourClass"),
        ("ATTACK = 3\n", "ATTACK = YourClass"),
        ("class A:\n    kind = 'noise'\nATTACK = A\n", "no __call__"),
        ("class A:\n    def __call__(self): ...\nATTACK = A\n", "A.kind must be one of none"),
        (
            "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass A:\n"
            "    size: float\n    kind = 'noise'\n    def __call__(self): ...\nATTACK = A\n",
            "needs size",
        ),
    ],
)
def test_a_user_s_mistakes_are_one_line(tmp_path, text, says):
    path = tmp_path / "mine.py"
    path.write_text(text)
    before = set(sys.modules)
    with pytest.raises(InputError) as caught:
        load_attack(str(path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    if "does not load" in says:
        assert not {m for m in set(sys.modules) - before if m.startswith("robustsnn_user")}


def test_a_plain_class_is_an_attack_too(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text(
        "class A:\n    kind = 'noise'\n    def __call__(self, v, x, y, t, r):\n"
        "        return x.clone()\nATTACK = A\n"
    )
    assert load_attack(str(path)).kind == "noise"
    with pytest.raises(InputError, match=r"plain\.py has no settings"):
        load_attack(f"{path}:a=1")
