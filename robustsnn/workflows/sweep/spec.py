"""Sweeps: YAML files, strictly validated, that name many evaluations at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from robustsnn.common.fields import first_of, said_of
from robustsnn.common.files import expanded
from robustsnn.common.strict_yaml import line_of, read_yaml
from robustsnn.common.wording import listing, slug
from robustsnn.errors import InputError
from robustsnn.evaluation.request import Request
from robustsnn.evaluation.suites import load_suite


def _several(value: Any) -> Any:
    """One value as a list of one."""
    return value if value is None or isinstance(value, list) else [value]


def _texts(value: Any) -> Any:
    """A size may be written as a number."""
    several = _several(value)
    if isinstance(several, list):
        return [str(v) if isinstance(v, int | float) and v is not True else v for v in several]
    return several


Names = Annotated[list[str], BeforeValidator(_several), Field(min_length=1, max_length=1000)]
Seeds = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**63)]],
    BeforeValidator(_several),
    Field(min_length=1, max_length=1000),
]


class Sweep(BaseModel):
    """Every model under every suite, on every data set, with every seed.

    Attributes:
        models: Zoo names, checkpoint folders, or `python.module:factory`; the first is the
            baseline of the page.
        suites: Suites by name or YAML file.
        data: Names of data sets; by default the one that each model was trained on.
        sizes: The sizes in place of each suite's own.
        norm: The norm in place of each suite's own.
        seeds: The seeds of the draws.
        samples: The number of images, from the first one on; None for all.
        substitute: The model that black-box attackers craft on.
        batch_size: The number of images in a forward pass.

    Examples:
        >>> sweep = Sweep(models=["fashion-mnist/vgg5-ann"], seeds=[0, 1])
        >>> sweep.suites, len(list(sweep.requests()))
        (['quick'], 2)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: Names
    suites: Names = ["quick"]
    data: Names | None = None
    sizes: Annotated[list[str] | None, BeforeValidator(_texts)] = None
    norm: str | None = None
    seeds: Seeds = [0]
    samples: Annotated[int | None, Field(ge=1)] = None
    substitute: str | None = None
    batch_size: Annotated[int | None, Field(ge=1)] = None

    def requests(
        self, data_root: Path | None = None, allow_code: bool = False
    ) -> Iterator[tuple[str, Request]]:
        """The request of each evaluation, with the name of its run folder.

        Args:
            data_root: The folder of the data sets.
            allow_code: Whether Python files that suite files name may be run.

        Raises:
            InputError: A model, a suite, a data set or a size cannot be right.
        """
        taken: set[str] = set()
        sets: list[str | None] = [None] if self.data is None else [*self.data]
        for data in sets:
            for suite in self.suites:
                for seed in self.seeds:
                    for model in self.models:
                        parts = [model, Path(suite).stem, f"seed {seed}", *([data] if data else [])]
                        name = slug(" ".join(parts))
                        if name in taken:
                            raise InputError(
                                f"{listing(parts)} is asked for twice: name each model, suite, "
                                "seed and data set once."
                            )
                        taken.add(name)
                        yield (
                            name,
                            Request.of(
                                model,
                                data,
                                suite,
                                epsilon=self.sizes,
                                norm=self.norm,
                                seed=seed,
                                samples=self.samples,
                                substitute=self.substitute,
                                batch_size=self.batch_size,
                                data_root=data_root,
                                allow_code=allow_code,
                                threads=1,
                            ),
                        )

    def code(self) -> list[str]:
        """What the sweep would run of a user's own: factories, and Python files of suites."""
        named = [*self.models, *([self.substitute] if self.substitute else [])]
        found = [name for name in named if ":" in name and not expanded(name).exists()]
        for suite in self.suites:
            found += [str(file) for file in load_suite(suite, allow_code=True).files()]
        return list(dict.fromkeys(found))


def load_sweep(path: Path, *, allow_code: bool = False) -> Sweep:
    """Read a sweep.

    Args:
        path: The YAML file.
        allow_code: Whether factories, and Python files that suites name, may be run.

    Raises:
        InputError: The file is missing or malformed (the message names line and field), or it
            names code and `allow_code` is not set.
    """
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise InputError(f"{path}: a sweep is a mapping of fields to values, such as models.")
    try:
        sweep = Sweep.model_validate(document)
    except ValidationError as error:
        location = [p for p in first_of(error)["loc"] if isinstance(p, str | int)]
        field = ".".join(map(str, location)) or "sweep"
        raise InputError(
            f"{path}{line_of(path, location)}: {field}: {said_of(error, Sweep)}."
        ) from None
    if (code := sweep.code()) and not allow_code:
        raise InputError(
            f"{path} names code that would be run ({', '.join(code)}): look at it, then add "
            "--allow-code."
        )
    return sweep
