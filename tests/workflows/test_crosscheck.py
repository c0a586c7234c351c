"""Our suite next to other libraries: the join of records made by hand, and the command."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pandas as pd
import pytest

from robustsnn.adversary.peers import MissingLibrary
from robustsnn.common.statistics import wilson
from robustsnn.errors import InputError
from robustsnn.evaluation.suites import load_suite
from robustsnn.workflows.crosscheck.page import COLUMNS, SHOWN, frame, markdown, sentences, table
from robustsnn.workflows.crosscheck.rows import TOGETHER, Crosscheck, join
from robustsnn.workflows.crosscheck.run import peers_suite, runnable

SIZE = ("Linf", "8/255")
#: Image ids that differ from positions. The first image is wrong when clean.
IDS = (10, 3, 7, 42, 5)
CLEAN = (0.5, -1.0, -2.0, -1.0, -3.0)


def records(suite, attacks, ids=IDS, clean=CLEAN):
    """The columns that `join` reads; `attacks` maps (attack, norm, epsilon) to margins by image."""
    rows = [
        {"suite": suite, "attack": "clean", "norm": "", "epsilon": "", "image_id": i, "margin": m,
         "forward_passes": 1, "backward_passes": 0, "seconds": 0.01}
        for i, m in zip(ids, clean, strict=True)
    ]  # fmt: skip
    for (attack, norm, epsilon), margins in attacks.items():
        rows += [
            {"suite": suite, "attack": attack, "norm": norm, "epsilon": epsilon, "image_id": i,
             "margin": m, "forward_passes": 3, "backward_passes": 2, "seconds": 0.5}
            # The rows are in another order than the clean images: only the id may count.
            for i, m in reversed(margins.items())
        ]  # fmt: skip
    return pd.DataFrame(rows)


def by_id(*margins):
    return dict(zip(IDS, margins, strict=True))


OURS = records(
    "standard",
    {
        ("first", *SIZE): by_id(0.5, 1.0, -2.0, -1.0, -3.0),  # breaks 3
        ("second", *SIZE): {7: -1.0, 42: 0.0, 5: -2.0},  # a tie on 42; 10 and 3 not attacked
    },
)  # ours leaves 7 and 5
PEERS = records(
    "peers",
    {
        ("weak", *SIZE): by_id(0.5, -1.0, -1.0, -1.0, -1.0),  # breaks none
        ("other", *SIZE): by_id(0.5, -1.0, 2.0, 1.0, -1.0),  # breaks 7 and 42
        ("broken", *SIZE): by_id(0.5, 1.0, -1.0, 1.0, float("nan")),  # breaks 3, 42 and, by NaN, 5
    },
)


def rows_of(ours=OURS, peers=PEERS, **more):
    return {row.attack: row for row in join(ours, peers, **more)}


def test_rows_from_records_made_by_hand():
    rows = rows_of()
    assert list(rows) == ["ours", "weak", "other", "broken", TOGETHER]
    assert {name: row.accuracy for name, row in rows.items()} == {
        "ours": 0.4, "weak": 0.8, "other": 0.4, "broken": 0.2, TOGETHER: 0.0,
    }  # fmt: skip
    assert {name: row.beyond for name, row in rows.items()} == {
        "ours": (), "weak": (), "other": (7,), "broken": (5,), TOGETHER: (5, 7),
    }  # fmt: skip
    assert {name: row.missed for name, row in rows.items()} == {
        "ours": 0, "weak": 2, "other": 1, "broken": 0, TOGETHER: 0,
    }  # fmt: skip
    ours = rows["ours"]
    assert (ours.low, ours.high) == wilson(2, 5)
    assert (ours.suite, ours.samples, ours.ours) == ("standard", 5, True)
    # Five passes on five images and on three images, divided by five images.
    assert ours.passes == pytest.approx(5 + 3)
    assert ours.seconds == pytest.approx(8 * 0.5)
    assert rows["weak"].passes == pytest.approx(5)


def test_what_is_said():
    found = Crosscheck(Path("x"), "m", join(OURS, PEERS), ())
    assert not found.lowest and found.against == (5, 7)
    (said,) = sentences(found.rows)
    assert (
        "does NOT leave the lowest accuracy: it leaves 40.0" in said
        and "broken, leaves 20.0" in said
    )
    assert (
        "2 images are broken by a peer and not by our suite" in said
        and "5 (broken), 7 (other)." in said
    )

    without = PEERS[PEERS["attack"] != "broken"]
    even = Crosscheck(Path("x"), "m", join(OURS, without), ())
    assert even.lowest and even.against == (7,)
    (said,) = sentences(even.rows)
    assert "our suite leaves the lowest accuracy" in said and "not alone" in said
    assert "1 image is broken by a peer and not by our suite" in said

    weak = PEERS[PEERS["attack"].isin(["clean", "weak"])]
    clear = Crosscheck(Path("x"), "m", join(OURS, weak), ())
    # A single peer does not need a row of all peers together.
    assert [row.attack for row in clear.rows] == ["ours", "weak"]
    assert clear.lowest and clear.against == ()
    (said,) = sentences(clear.rows)
    assert "our suite leaves the lowest accuracy" in said and "No peer breaks an image" in said


def test_sizes_are_kept_apart():
    small = ("Linf", "2/255")
    ours = records("s", {("a", *SIZE): by_id(1, 1, 1, 1, 1), ("a", *small): by_id(1, 1, 1, 1, -1)})
    peers = records("p", {("b", *SIZE): by_id(1, 1, 1, 1, 1), ("b", *small): by_id(1, 1, 1, 1, 1)})
    rows = join(ours, peers)
    assert [(r.attack, r.epsilon, r.accuracy) for r in rows] == [
        ("ours", "8/255", 0.0), ("b", "8/255", 0.0), ("ours", "2/255", 0.2), ("b", "2/255", 0.0),
    ]  # fmt: skip
    assert len(sentences(rows)) == len(table(rows)) == 2
    assert not Crosscheck(Path("x"), "m", rows, ()).lowest


def test_runs_that_cannot_be_joined():
    other = records("p", {("a", *SIZE): {1: 0.0}}, ids=(1,), clean=(-1.0,))
    with pytest.raises(InputError, match="not on the same images"):
        join(OURS, other)
    far = records("p", {("a", "L2", "0.5"): by_id(1, 1, 1, 1, 1)})
    with pytest.raises(InputError, match="no norm and epsilon in common"):
        join(OURS, far)


def test_files_name_every_image():
    found = Crosscheck(
        Path("x"), "m|odel", join(OURS, PEERS, {"other": "The Other"}), ("that: not here.",)
    )
    csv = frame(found.rows)
    assert list(csv.columns) == COLUMNS
    other = csv[csv["attack"] == "The Other"].iloc[0]
    assert (other["images"], other["broken_beyond_ours"]) == ("7", 1)
    text = markdown(found, {"foolbox": "3"})
    assert text.startswith("# Crosscheck of m|odel\n")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 5 and len({line.count("|") for line in lines}) == 1
    assert "| ours (standard) | 40.0" in text and "| The Other | 40.0" in text
    assert "Left out: that: not here." in text and text.rstrip().endswith("foolbox 3.")


def test_a_terminal_names_some_images():
    many = tuple(range(100, 130))
    ours = records("s", {("a", *SIZE): dict.fromkeys(many, -1)}, many, (-1,) * 30)
    peers = records("p", {("b", *SIZE): dict.fromkeys(many, 1)}, many, (-1,) * 30)
    (one,) = table(join(ours, peers))
    cells = [str(cell) for column in one.columns for cell in column.cells]
    assert f"30: {', '.join(map(str, many[:SHOWN]))}, and 22 more" in cells


# --- the suite of peers ---------------------------------------------------------------------------


def test_peers_are_run_at_the_size_of_ours():
    ours = load_suite("quick")
    assert peers_suite("peers", ours) == load_suite("peers")
    moved = peers_suite("peers", ours.at(norm="L2", epsilon="0.25,0.5"))
    assert (moved.norm, moved.epsilon, moved.draws) == ("L2", ("0.25", "0.5"), 1)
    assert peers_suite("peers", load_suite("rand")).draws == load_suite("rand").draws > 1
    with pytest.raises(InputError, match="no suite named 'pears'"):
        peers_suite("pears", ours)


def write(tmp_path: Path, *entries: str) -> Path:
    path = tmp_path / "mine.yaml"
    lines = "".join(f"  - {{label: l{i}, attack: '{e}'}}\n" for i, e in enumerate(entries))
    path.write_text(f"name: mine\nepsilon: 8/255\nentries:\n{lines}")
    return path


def test_what_cannot_be_run_is_left_out_and_said(tmp_path, monkeypatch):
    path = write(tmp_path, "torchattacks:PGD", "torchattacks:AutoAttack", "foolbox:PGD", "fgsm")
    suite = load_suite(path)

    def absent(name, package):
        raise MissingLibrary(f"{package} is not here.")

    adapter = importlib.import_module("robustsnn.attacks.foolbox_adapter")
    monkeypatch.setattr(adapter, "library", absent)
    kept, left_out = runnable(suite, classes=3)
    assert [entry.label for entry in kept.entries] == ["l0", "l3"]
    assert left_out == ("l1: it needs 4 classes, and there are 3.", "l2: foolbox is not here.")
    kept, left_out = runnable(suite.at(norm="L2", epsilon="1"), classes=10)
    assert [entry.label for entry in kept.entries] == ["l1", "l3"]
    assert left_out[0] == "l0: it works only in Linf."
    with pytest.raises(InputError, match=r"no attack of the suite mine can be run: l0: foolbox"):
        runnable(load_suite(write(tmp_path, "foolbox:PGD")), classes=10)
    # A misspelt entry is an error and is not left out.
    with pytest.raises(InputError, match="Did you mean 'MIFGSM'"):
        runnable(load_suite(write(tmp_path, "torchattacks:MIFGM")), classes=10)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_runs_resumes_and_reprints(warm, checkpoints, tmp_path):
    peers = write(tmp_path, "torchattacks:FGSM", "torchattacks:PGD:steps=3,together=yes")
    ours = ["--suite", "quick", "--samples", "20", "--epsilon", "2/255", "--output", "out"]
    arguments = ["crosscheck", checkpoints / "snn", "--peers", peers, *ours]
    done = warm(*arguments)
    assert done.returncode == 0, done.stderr
    assert "ours (quick)" in done.stdout and "At L∞" in done.stdout and "lowest" in done.stdout
    assert done.stdout.strip().splitlines()[-1] == "out/crosscheck.md"
    out = tmp_path / "out"
    for name in ("ours", "peers"):
        assert json.loads((out / name / "manifest.json").read_text())["status"] == "done"
    written = {p.name: p.read_bytes() for p in out.glob("crosscheck.*")}
    assert set(written) == {"crosscheck.csv", "crosscheck.md"}

    records = {name: pd.read_parquet(out / name / "records.parquet") for name in ("ours", "peers")}
    expected = join(records["ours"], records["peers"], {"l0": "l0", "l1": "l1"})
    assert [row.attack for row in expected] == ["ours", "l0", "l1", TOGETHER]
    read = pd.read_csv(out / "crosscheck.csv", keep_default_na=False, dtype={"images": str})
    pd.testing.assert_frame_equal(frame(expected), read, check_dtype=False)
    # The single-step attacks of both suites are the same.
    right = records["ours"].query("attack == 'fgsm'").set_index("image_id")["prediction"]
    theirs = records["peers"].query("attack == 'l0'").set_index("image_id")["prediction"]
    assert right.equals(theirs)

    again = warm(*arguments, "--json")
    assert again.returncode == 0
    assert all(line.endswith("not computed again.") for line in again.stderr.splitlines())
    found = json.loads(again.stdout)
    assert found["output"] == "out" and found["left_out"] == []
    assert [row["attack"] for row in found["results"]] == ["ours", "l0", "l1", TOGETHER]
    assert found["lowest"] is all(
        row["accuracy"] >= found["results"][0]["accuracy"] for row in found["results"][1:3]
    )
    assert {p.name: p.read_bytes() for p in out.glob("crosscheck.*")} == written
    other = warm(*arguments, "--seed", "1")
    assert other.returncode == 2 and "another comparison" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--peers", "pears"], ["no suite named 'pears'", "'peers'"]),
        (["--suite", "quik"], ["no suite named 'quik'", "'quick'"]),
        (["--suite", "quick", "--norm", "L2"], ["--norm L2 needs an epsilon", "--epsilon"]),
        (["--suite", "quick", "--samples", "0"], ["--samples 0", "at least 1"]),
        (["--suite", "quick", "--peers", "{tmp}/mine.yaml"], ["'stepz'", "'steps'"]),
    ],
)
def test_mistakes_are_one_line(warm, checkpoints, tmp_path, arguments, says):
    write(tmp_path, "torchattacks:PGD:stepz=3")
    arguments = [a.replace("{tmp}", str(tmp_path)) for a in arguments]
    done = warm("crosscheck", checkpoints / "snn", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("robustsnn: ") and all(said in line for said in says)
    assert not (tmp_path / "runs").exists()
