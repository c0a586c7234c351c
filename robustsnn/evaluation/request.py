"""One request: everything that a user can ask of an evaluation, checked without torch."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from robustsnn.common.files import check_output, expanded, read_text
from robustsnn.common.process import MOST_THREADS
from robustsnn.data.catalogue import NAMES
from robustsnn.data.datasets import load_dataset
from robustsnn.errors import InputError, unknown
from robustsnn.estimators.catalogue import check_estimator
from robustsnn.evaluation import forms
from robustsnn.evaluation.options import Data, Model, Named, Options
from robustsnn.evaluation.suites import Suite, load_suite, suite_of
from robustsnn.models.zoo import refuse_nir, zoo_folder
from robustsnn.records.schema import COMPARISON, MANIFEST

#: What can be said of where the neurons of a network come from.
SOURCES = ("auto", "none")
DEVICE = re.compile(r"cpu|mps|cuda(:\d+)?")


@dataclass(frozen=True, eq=False)
class Request(Options):
    """What is asked of an evaluation; it is checked, without torch, when it is made.

    Args:
        models: The models: zoo names, checkpoint folders, `python.module:factory`, or networks in
            memory, which are copied before they are attacked. The first one is the baseline.

    The other fields are those of `Options`.

    Raises:
        InputError: An option has a value that cannot be right.

    Examples:
        >>> Request.of("fashion-mnist/vgg5-snn", suite="quick", samples=20).chosen.name
        'quick'
    """

    models: tuple[Model, ...]

    @classmethod
    def of(
        cls,
        model: Model,
        data: Data = None,
        suite: Suite | str | Path | None = None,
        **settings: Any,
    ) -> Request:
        """The request about one model.

        Args:
            model: The model.
            data: The images, as in `Options`.
            suite: The suite, as in `Options`.
            **settings: The other fields of `Options`.
        """
        return cls.of_all((forms.model(model),), data=data, suite=suite, **settings)

    @classmethod
    def of_all(
        cls, models: Sequence[Model | tuple[str, Model]] | Mapping[str, Model], **settings: Any
    ) -> Request:
        """The request about several models.

        Args:
            models: The models, or a dict of names to models; the first is the baseline.
            **settings: The fields of `Options`.

        Raises:
            InputError: There is no field of that name, or what is asked for cannot be right.
        """
        known = [f.name for f in dataclasses.fields(Options)]
        for name in settings:
            if name not in known:
                raise unknown("setting", name, known)
        return cls(forms.models(models), **settings)

    def __post_init__(self) -> None:
        self._take_as()
        if not self.models:
            raise InputError("no model given: name at least one, such as fashion-mnist/vgg5-snn.")
        _at_least("--threads", self.threads, 1)
        if (self.threads or 1) > MOST_THREADS:
            raise InputError(f"--threads {self.threads}: give at most {MOST_THREADS}.")
        _at_least("--batch-size", self.batch_size, 1)
        _at_least("--recompute", self.recompute, 1)
        _at_least("--samples", self.samples, 1)
        if not 0 <= self.seed < 2**63:
            raise InputError(
                f"--seed {self.seed}: give a whole number of at least 0 and below 2^63."
            )
        if not DEVICE.fullmatch(self.device):
            raise InputError(f"no device {self.device!r}: choose cpu, cuda, cuda:N or mps.")
        refuse_nir(self.weights)
        if self.source not in SOURCES:
            raise InputError(f"--from {self.source}: choose {' or '.join(SOURCES)}.")
        _ = self.chosen
        if isinstance(self.data, str) and self.data not in NAMES:
            if expanded(self.data).is_dir():
                raise InputError(
                    f"data {self.data!r} is a folder: write --data folder --data-root {self.data}."
                )
            raise unknown("data set", self.data, NAMES)
        for model in (*self.models, *([self.substitute] if self.substitute else [])):
            trained_on(model)

    def _take_as(self) -> None:
        """Take what programs give, such as a number for a size, for what it stands for."""
        for name in ("data", "suite", "estimator", "norm", "epsilon", "substitute"):
            value = getattr(self, name)
            if isinstance(value, str) and not value.strip():
                raise InputError(f"--{name} is empty: leave it out, or name one.")
        taken: dict[str, Any] = {
            "models": forms.models(self.models),
            "device": str(self.device),
            "attack": forms.attacks(self.attack),
            "epsilon": forms.sizes(self.epsilon),
            "norm": forms.norm(self.norm),
        }
        for name in ("samples", "seed", "batch_size", "recompute", "threads"):
            taken[name] = forms.whole(name, getattr(self, name))
        for name in ("download", "save_images", "allow_code"):
            taken[name] = forms.switch(name, getattr(self, name))
        for name in ("data_root", "weights"):
            taken[name] = forms.path(name, getattr(self, name))
        if self.substitute is not None:
            taken["substitute"] = forms.model(self.substitute)
        if self.estimator is not None:
            taken["estimator"] = str(self.estimator)
        if isinstance(self.data, Path):
            if self.data_root is not None:
                raise InputError(f"data is the path {self.data}: drop data_root.")
            taken |= {"data": "folder", "data_root": forms.path("data", self.data)}
        if self.name is not None and (not isinstance(self.name, str) or not self.name.strip()):
            raise InputError(f"name must be a text, not {self.name!r}.")
        if self.name is not None and len(taken["models"]) > 1:
            raise InputError(
                "name is that of one model: name several by a dict of names to models."
            )
        for name, value in taken.items():
            object.__setattr__(self, name, value)

    @cached_property
    def chosen(self) -> Suite:
        """The suite that is asked for, with the norm, the sizes and the estimator asked for."""
        suite = self._suite()
        if self.energy:
            suite = suite.model_copy(update={"energy": True})
        if self.estimator is None:
            return suite
        check_estimator(self.estimator)
        return suite.under(self.estimator)

    def _suite(self) -> Suite:
        # Both were made texts when the request was.
        norm = None if self.norm is None else str(self.norm)
        epsilon = None if self.epsilon is None else str(self.epsilon)
        if not self.attack:
            if isinstance(self.suite, Suite):
                return self.suite.at(norm, epsilon)
            suite = load_suite(self.suite or "quick", allow_code=self.allow_code)
            return suite.at(norm, epsilon)
        if self.suite is not None:
            raise InputError("--suite and --attack exclude each other: drop one.")
        if norm not in (None, "Linf") and epsilon is None:
            raise InputError(f"--norm {norm} needs an epsilon too: add --epsilon.")
        given = {"norm": norm, "epsilon": epsilon}
        return suite_of(forms.attacks(self.attack), **{k: v for k, v in given.items() if v})

    @property
    def code(self) -> tuple[Path, ...]:
        """The Python files that a suite file names; what the user typed is not among them."""
        named = not (self.attack or isinstance(self.suite, Suite))
        return tuple(self._suite().files()) if named else ()

    @cached_property
    def images(self) -> Data:
        """The images of the data set that is named or that the first model was trained on.

        Images that were given are returned as they are; None if nothing says which images.

        Raises:
            InputError: There is no such data set, or its files are missing.
        """
        if self.data is not None and not isinstance(self.data, str):
            return self.data
        name = self.data or trained_on(self.models[0])
        if name is None:
            return None
        return load_dataset(name, self.data_root, samples=self.samples, download=self.download)

    def check(self, output: Path | None) -> None:
        """Check everything that can be checked before torch is imported.

        Args:
            output: The folder that the results are to be written to, if one was named.

        Raises:
            InputError: The folder holds something else, or the images are missing.
        """
        if output is not None:
            check_output(output, MANIFEST, COMPARISON)
        # Reading the property loads the images, if a name says which.
        _ = self.images

    def but(self, **changes: Any) -> Request:
        """The same request with other values of some fields.

        Examples:
            >>> Request.of("fashion-mnist/vgg5-snn").but(samples=8).samples
            8
        """
        return dataclasses.replace(self, **changes)


def trained_on(model: object) -> str | None:
    """The name of the data set that a model was trained on, if it can be read without torch.

    Raises:
        InputError: There is no model of that name.

    Examples:
        >>> trained_on("fashion-mnist/vgg5-snn")
        'fashion-mnist'
    """
    if isinstance(model, Named):
        return trained_on(model.model)
    if not isinstance(model, str | Path):
        meta = getattr(model, "meta", None)
        found = meta.get("data") if isinstance(meta, Mapping) else None
        return found if found in NAMES else None
    refuse_nir(model)
    path = Path(model)
    if ":" in str(model) and not path.exists():
        return None
    folder = path if path.exists() else zoo_folder(str(model))
    try:
        found = json.loads(read_text(folder / "model.json", 16_000_000, "restore it")).get("data")
    except (InputError, ValueError, AttributeError, RecursionError):
        # Whoever reads the checkpoint says what is wrong with it.
        return None
    return found if isinstance(found, str) and found in NAMES else None


def _at_least(option: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise InputError(f"{option} {value}: give a whole number of at least {least}.")
