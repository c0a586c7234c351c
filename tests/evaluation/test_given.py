"""Images, sizes, norms, attacks and models in the forms that PyTorch programs have them in."""

from __future__ import annotations

import copy
import math
import os
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

import robustsnn
from robustsnn.errors import InputError
from robustsnn.evaluation import forms
from robustsnn.evaluation.given import images_in_memory

COUNT = 6


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 3))


LEVELS = torch.arange(COUNT * 48, dtype=torch.int64) * 37 % 256
IMAGES = (LEVELS.reshape(COUNT, 3, 4, 4).float() / 255).contiguous()
LABELS = torch.arange(COUNT) % 3
BYTES = LEVELS.reshape(COUNT, 3, 4, 4).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


class Pairs(Dataset[Any]):
    """A map-style dataset of whatever it is given."""

    classes = ("ant", "bee", "cat")

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self.items):
            raise IndexError(index)
        return self.items[index]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from zip(IMAGES, LABELS.tolist(), strict=True)


def items() -> list[Any]:
    return list(zip(IMAGES, LABELS.tolist(), strict=True))


def pictures() -> list[Any]:
    return [
        (Image.fromarray(one), label) for one, label in zip(BYTES, LABELS.tolist(), strict=True)
    ]


FORMS: dict[str, Any] = {
    "tensors": lambda: (IMAGES, LABELS),
    "a list of two tensors": lambda: [IMAGES, LABELS],
    "int32 labels": lambda: (IMAGES, LABELS.int()),
    "float64": lambda: (IMAGES.double(), LABELS),
    "needs gradient": lambda: (IMAGES.clone().requires_grad_(), LABELS),
    "arrays": lambda: (IMAGES.numpy(), LABELS.numpy()),
    "8-bit arrays": lambda: (BYTES, LABELS.numpy()),
    "channels last": lambda: (BYTES.astype(np.float32) / 255, LABELS.numpy()),
    "lists": lambda: (IMAGES.tolist(), LABELS.tolist()),
    "lists of tensors": lambda: (list(IMAGES), list(LABELS)),
    "lists of arrays": lambda: (list(IMAGES.numpy()), LABELS.tolist()),
    "pictures": lambda: ([one for one, _ in pictures()], LABELS.tolist()),
    "labels of pandas": lambda: (IMAGES, pd.Series(LABELS.tolist())),
    "labels in a column": lambda: (IMAGES, LABELS[:, None]),
    "a list of pairs": items,
    "a list of pairs of pictures": pictures,
    "a dict": lambda: {"image": IMAGES, "label": LABELS},
    "TensorDataset": lambda: TensorDataset(IMAGES, LABELS),
    "more than two tensors": lambda: TensorDataset(IMAGES, LABELS, torch.arange(COUNT)),
    "Dataset": lambda: Pairs(items()),
    "Dataset of pictures": lambda: Pairs(pictures()),
    "Dataset of dicts": lambda: Pairs([{"img": i, "labels": n} for i, n in items()]),
    "Dataset with tensor labels": lambda: Pairs([(i, torch.tensor(n)) for i, n in items()]),
    "Subset": lambda: Subset(Pairs([*items(), *items()]), range(COUNT)),
    "ConcatDataset": lambda: ConcatDataset([Pairs(items()[:2]), Pairs(items()[2:])]),
    "DataLoader": lambda: DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4),
    "DataLoader that shuffles": lambda: DataLoader(Pairs(items()), batch_size=4, shuffle=True),
    "DataLoader of dicts": lambda: DataLoader(
        Pairs([{"image": i, "label": n} for i, n in items()]), batch_size=4
    ),
    "DataLoader without batches": lambda: DataLoader(Pairs(items()), batch_size=None),
    "DataLoader of a stream": lambda: DataLoader(Stream(), batch_size=4),
    "a stream": Stream,
    "a list of batches": lambda: list(DataLoader(Pairs(items()), batch_size=3)),
    "an iterator of batches": lambda: iter(DataLoader(Pairs(items()), batch_size=3)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_set(form):
    first = images_in_memory((IMAGES, LABELS))
    found = images_in_memory(FORMS[form]())
    assert torch.equal(found.tensor(), IMAGES) and found.labels.tolist() == LABELS.tolist()
    assert found.fingerprint == first.fingerprint and found.ids.tolist() == list(range(COUNT))
    cut = images_in_memory(FORMS[form](), 2)
    assert torch.equal(cut.tensor(), IMAGES[:2]) and len(cut.labels) == 2


def test_nothing_that_is_given_is_changed():
    images, labels = IMAGES.clone(), LABELS.clone()
    images[0, 0, 0, 0] = 1.0000002
    found = images_in_memory((images, labels))
    found.pixels.zero_()
    assert images[0, 0, 0, 0] > 1 and torch.equal(labels, LABELS)


def test_grey_images_and_single_ones():
    grey = images_in_memory((BYTES[..., 0], LABELS.numpy()))
    assert grey.shape == (1, 4, 4) and len(grey) == COUNT
    assert images_in_memory((IMAGES[:, 0], LABELS)).shape == (1, 4, 4)
    assert images_in_memory((IMAGES[0], 2)).labels.tolist() == [2]
    assert images_in_memory((IMAGES[0], torch.tensor(2))).shape == (3, 4, 4)


def test_only_what_is_needed_is_read():
    class Long(Pairs):
        def __getitem__(self, index: int) -> Any:
            assert index < 3, "read further than needed"
            return super().__getitem__(index)

    assert len(images_in_memory(Long(items()), 3)) == 3


def test_class_names_of_a_dataset_are_used():
    assert images_in_memory(Subset(Pairs(items()), [0, 1])).class_names == ("ant", "bee", "cat")
    loader = DataLoader(Subset(Pairs(items()), [0, 1]))
    assert images_in_memory(loader).class_names == ("ant", "bee", "cat")


def changed(**at: float) -> Tensor:
    images = IMAGES.clone()
    for name, value in at.items():
        images.view(-1)[int(name[1:])] = value
    return images


def test_pixels_that_rounding_left_beyond_the_range_are_clamped():
    found = images_in_memory((changed(p0=1.0000002, p5=-1e-7), LABELS)).tensor()
    assert float(found.max()) == 1 and float(found.min()) == 0
    with pytest.raises(InputError, match=r"\[0, 1.0001\], not in \[0, 1\]"):
        images_in_memory((changed(p0=1.0001), LABELS))


class Draws(Pairs):
    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return (image + torch.rand(())).clamp(0, 1), label


class Flips(Pairs):
    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return (image.flip(-1) if torch.rand(()) < 0.5 else image), label


@pytest.mark.parametrize("seed", range(8))
def test_a_flip_by_chance_is_seen_although_it_leaves_half_of_the_images(seed):
    torch.manual_seed(seed)
    with pytest.raises(InputError, match="random augmentation"):
        images_in_memory(Flips(items() * 4))


def test_a_loader_of_a_random_subset_is_read_in_the_order_of_the_subset():
    for seed in range(3):
        torch.manual_seed(seed)
        loader = DataLoader(Pairs(items()), batch_size=2, sampler=SubsetRandomSampler([4, 1, 3]))
        found = images_in_memory(loader)
        assert torch.equal(found.tensor(), IMAGES[[4, 1, 3]])
        assert found.labels.tolist() == LABELS[[4, 1, 3]].tolist()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (lambda: (IMAGES, LABELS - 1), "label of image 0 is -1"),
        (lambda: (IMAGES, LABELS + 1), "3 classes apart, memory has 4"),
        (lambda: (IMAGES, LABELS.float()), "labels must be 6 whole numbers"),
        (lambda: (IMAGES, LABELS[:-1]), "labels must be 6"),
        (lambda: (IMAGES, nn.functional.one_hot(LABELS)), "argmax"),
        (lambda: (IMAGES, ["ant", "bee", "cat"] * 2), "number the classes"),
        (lambda: (IMAGES, None), "labels must be"),
        (lambda: (IMAGES * 255, LABELS), "divide 8-bit pixels by 255"),
        (lambda: (IMAGES - 1, LABELS), "normalisation belongs inside"),
        (lambda: (changed(p7=math.nan), LABELS), "NaN"),
        (lambda: (changed(p7=math.inf), LABELS), "inf"),
        (lambda: ((IMAGES * 255).byte(), LABELS), "uint8"),
        (lambda: (IMAGES.to_sparse(), LABELS), "sparse"),
        (lambda: (IMAGES.to("meta"), LABELS), "device meta"),
        (lambda: (IMAGES + 0j, LABELS), "complex"),
        (lambda: (IMAGES[0, 0], LABELS), r"\[n, channel, height, width\]"),
        (lambda: (IMAGES[:, None].repeat(1, 2, 1, 1, 1), LABELS), "channel, height, width"),
        (lambda: (["a.png"] * 6, LABELS), "not numbers"),
        (lambda: (np.array([object()] * 6), LABELS), "not numbers"),
        (lambda: ([IMAGES[0], IMAGES[0, :, :2]], [0, 1]), "differ in size"),
        (lambda: Pairs([(IMAGES[0], 0), (IMAGES[0, :, :2], 1)]), "differ in size"),
        (lambda: (IMAGES, LABELS, LABELS), "3 things"),
        (lambda: IMAGES, "pairs of image and label"),
        (lambda: (np.concatenate([BYTES, BYTES[..., :1]], 3), LABELS), "alpha"),
        (lambda: [(Image.new("RGBA", (4, 4), (1, 2, 3, 4)), 0)], "transparent"),
        (lambda: {"image": IMAGES, "name": LABELS}, "'image', 'name'"),
        (lambda: Pairs([]), "holds no images"),
        (lambda: DataLoader(TensorDataset(IMAGES)), "pairs of image and label"),
        (lambda: DataLoader(Draws(items())), "random"),
        (lambda: Draws(items()), "random"),
        (lambda: 5, "data is a int|data is an int"),
        (lambda: object(), "data is"),
    ],
)
def test_what_is_wrong_is_named(data, says):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy, about ragged lists
        with pytest.raises(InputError, match=says) as refused:
            robustsnn.evaluate(network(), data(), attack="fgsm")
    assert "\n" not in str(refused.value)


def test_a_run_is_the_same_in_every_form():
    asked: dict[str, Any] = {"attack": "fgsm", "epsilon": "8/255"}
    first = robustsnn.evaluate(network(), (IMAGES, LABELS), **asked)
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4)
    again = robustsnn.evaluate(network(), loader, attack=["fgsm"], epsilon=8 / 255, norm=math.inf)
    assert first.manifest.identity == again.manifest.identity


# --- sizes, norms, attacks -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "means"),
    [
        *(
            (8 / 255, "8/255"),
            ("8/255", "8/255"),
            (0.03, "0.03"),
            (0, "0"),
            (Fraction(8, 255), "8/255"),
        ),
        *(
            (np.float32(8 / 255), "8/255"),
            (torch.tensor(8 / 255), "8/255"),
            (np.float64(0.2), "0.2"),
        ),
        *(([2 / 255, "4/255"], "2/255,4/255"), ((0.1, 0.2), "0.1,0.2")),
        *((np.array([2 / 255, 0.5]), "2/255,0.5"), (None, None)),
        *((torch.tensor([0.1, 0.2, 8 / 255]), "0.1,0.2,8/255"), ([torch.tensor(0.1)], "0.1")),
    ],
)
def test_a_size_may_be_a_number_a_text_or_several(given, means):
    assert forms.sizes(given) == means


@pytest.mark.parametrize(
    ("given", "means"),
    [
        *((2, "L2"), (2.0, "L2"), ("2", "L2"), ("l2", "L2"), ("L2", "L2"), (np.int64(2), "L2")),
        *(
            (math.inf, "Linf"),
            (np.inf, "Linf"),
            ("inf", "Linf"),
            ("l_inf", "Linf"),
            ("Linf", "Linf"),
        ),
    ],
)
def test_a_norm_may_be_a_number(given, means):
    assert forms.norm(given) == means


def test_suites_and_balls_take_the_same_forms():
    ball = robustsnn.ThreatModel(2, 0.5)
    assert (ball.norm, ball.epsilon, ball.radius) == ("L2", "0.5", 0.5)
    from robustsnn.evaluation.suites import load_suite

    assert (
        load_suite("quick").at(epsilon=8 / 255).digest()
        == load_suite("quick").at(epsilon="8/255").digest()
    )
    assert load_suite("quick").at(2, [0.5, "1"]).epsilon == ("0.5", "1")


def test_an_attack_may_be_an_object(tmp_path):
    from robustsnn.adversary.catalogue import attack_class

    kind: Any = attack_class("pgd")
    assert forms.attacks(kind(steps=3)) == ("pgd:steps=3",)
    assert forms.attacks([kind, "fgsm"]) == ("pgd", "fgsm")
    found = robustsnn.evaluate(network(), (IMAGES, LABELS), attack=kind(steps=3), epsilon=0.1)
    assert "pgd-3" in found.results["attack"].tolist()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"epsilon": "eight"}, "'eight' is not a number"),
    ({"epsilon": -0.1}, "negative"),
    ({"epsilon": math.nan}, "not finite"),
    ({"epsilon": True}, "epsilon must be a number"),
    ({"epsilon": {}}, "epsilon must be a number"),
    ({"epsilon": []}, "epsilon is empty"),
    ({"epsilon": [None]}, "epsilon must be a number"),
    ({"norm": 1, "epsilon": 1}, "no norm named '1'"),
    ({"norm": None.__class__, "epsilon": 1}, "norm must be 2 or inf"),
    ({"norm": True}, "norm must be 2 or inf"),
    ({"attack": 5}, "attack must be a name"),
    ({"attack": [None]}, "attack must be a name"),
    ({"samples": 2.5}, "samples must be a whole number"),
    ({"samples": True}, "samples must be a whole number"),
    ({"samples": 7}, "ask for 1 to 6"),
    ({"samples": 0}, "--samples 0"),
    ({"seed": "one"}, "seed must be a whole number"),
    ({"save_images": "yes"}, "save_images must be True or False"),
    ({"data_root": 5}, "data_root must be a path"),
    ({"output": 5}, "output must be a path"),
    ({"weights": 5}, "weights must be a path"),
    ({"name": 5}, "name must be a text"),
    ({"substitute": 5}, "a model cannot be 5"),
    ({"progress": 5}, "progress must be a function"),
    ({"steps": 5}, "no setting named 'steps'"),
]


@pytest.mark.parametrize(("settings", "says"), WRONG, ids=lambda value: str(value)[:40])
def test_a_setting_of_a_wrong_type_or_value_is_named(settings, says):
    settings = {"attack": "fgsm", **settings}
    with pytest.raises(InputError, match=says) as refused:
        robustsnn.evaluate(network(), (IMAGES, LABELS), **settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.Linear, r"the class Linear: make an object of it, such as Linear\(\)"),
        (lambda images: images, "function"),
        (network().state_dict(), "load_state_dict"),
        (5, "a model cannot be 5"),
        (None, "a model cannot be None"),
        ((IMAGES, LABELS), "a model cannot be a tuple"),
    ],
)
def test_what_is_not_a_model_is_named(model, says):
    with pytest.raises(InputError, match=says):
        robustsnn.evaluate(model, (IMAGES, LABELS), attack="fgsm")


def test_a_folder_of_images_is_named_by_its_path(tmp_path, monkeypatch):
    for number in range(3):
        (tmp_path / "d" / f"c{number}").mkdir(parents=True)
        Image.fromarray(BYTES[number]).save(tmp_path / "d" / f"c{number}" / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = robustsnn.evaluate(network(), Path("~/d"), attack="fgsm")
    assert found.manifest.samples == 3
    with pytest.raises(InputError, match="--data folder --data-root"):
        robustsnn.evaluate(network(), str(tmp_path / "d"), attack="fgsm")
    found = robustsnn.evaluate(
        network(), "folder", data_root="~/d", attack="fgsm", output="~/runs/r"
    )
    assert found.folder == tmp_path / "runs" / "r"


# --- what comes back -----------------------------------------------------------------------


def test_an_evaluation_says_itself_shortly():
    found = robustsnn.evaluate(
        network(), (IMAGES, LABELS), attack="fgsm", epsilon=["2/255", "32/255"], name="<mine>"
    )
    worst = found.results[found.results["attack"] == "worst-case"]["accuracy"]
    assert found.accuracy == worst.min() and found.clean == found.results["accuracy"].iloc[0]
    assert found.level == found.manifest.level and found.flags == found.manifest.flags
    text = repr(found)
    assert len(text) < 200 and text.startswith("<<mine>, custom, 6 images: clean")
    assert "Linf 32/255" in text and f"level {found.level}" in text
    page = found._repr_html_()
    assert "&lt;mine&gt;" in page and "<mine>" not in page and page.count("<tr>") == 6
    assert all(str(flag["sentence"])[:20] in page for flag in found.flags[:1])


def test_compare_names_networks_in_memory_and_returns_data(tmp_path):
    other = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    models = {"before": network(), "after": other}
    found = robustsnn.compare(models, (IMAGES, LABELS), attack="fgsm", output=tmp_path / "c")
    assert list(found.evaluations) == ["before", "after"]
    assert set(found.results["model"]) == {"before", "after"}
    assert len(found.records) == 2 * len(found["after"].records)
    assert found.accuracies["before"] == found["before"].accuracy
    assert set(found.levels.values()) <= set("ABC")
    assert len(repr(found)) < 500 and "after" in found._repr_html_()
    # It stands for the path of the page.
    assert Path(found) == tmp_path / "c" / "index.html" and Path(found).is_file()
    assert os.fspath(found) == str(found) == str(tmp_path / "c" / "index.html")
    assert found.parent == tmp_path / "c" and "before" in found.read_text(encoding="utf-8")
    assert copy.copy(found).page == found.page


@pytest.mark.parametrize(
    "models",
    [
        lambda: [("before", network()), ("after", nn.Sequential(nn.Flatten(), nn.Linear(48, 3)))],
        lambda: [network(), nn.Sequential(nn.Flatten(), nn.Linear(48, 3))],
    ],
)
def test_compare_takes_lists(tmp_path, models):
    found = robustsnn.compare(models(), (IMAGES, LABELS), attack="fgsm", output=tmp_path / "c")
    assert len(found.evaluations) == 2 and len(set(found.results["model"])) == 2


def test_compare_of_one_network_is_not_one_of_its_layers(tmp_path):
    found = robustsnn.compare(network(), (IMAGES, LABELS), attack="fgsm", output=tmp_path / "c")
    assert len(found.evaluations) == 1
    names = robustsnn.compare(
        {"é/∞ 1": network(), "b": nn.Sequential(nn.Flatten(), nn.Linear(48, 3))},
        (IMAGES, LABELS),
        attack="fgsm",
        output=tmp_path / "names",
    )
    assert list(names.accuracies) == ["é/∞ 1", "b"] and len(set(names.results["model"])) == 2
    with pytest.raises(InputError, match="two models are called 'a'"):
        robustsnn.compare([("a", network()), ("a", network())], (IMAGES, LABELS))
    with pytest.raises(InputError, match="dict of names"):
        robustsnn.compare([network(), network()], (IMAGES, LABELS), name="mine")


def test_the_door_loads_data(tmp_path):
    data = robustsnn.load_data("fashion-mnist", samples=4)
    assert len(data) == 4 and "0 = T-shirt/top" in repr(data)
    found = robustsnn.evaluate("fashion-mnist/vgg5-ann", data, attack="fgsm")
    assert found.manifest.samples == 4


def test_the_command_line_takes_norms_and_homes(tmp_path, warm):
    asked = ["fashion-mnist/vgg5-ann", "--samples", "4", "--attack", "fgsm", "--epsilon", "0.5"]
    done = warm("evaluate", *asked, "--norm", "2", "--json", "--output=~/nowhere-in-particular/r")
    try:
        assert done.returncode == 0, done.stderr
        assert '"norm": "L2"' in done.stdout
        assert not (tmp_path / "~").exists()
    finally:
        import shutil

        shutil.rmtree(Path.home() / "nowhere-in-particular", ignore_errors=True)
