"""Networks of other libraries with a time axis: by name on the command line, and by `wrap`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustsnn
from robustsnn.adversary.victim import Victim
from robustsnn.errors import InputError
from robustsnn.estimators.make import make_estimator
from robustsnn.foreign.wrap import adapted, wrap
from robustsnn.foreign.wrapped import Wrapped
from robustsnn.models.shapes import Shape, Shaped
from robustsnn.models.subject import subject_of
from robustsnn.snn.copying import copy_of
from robustsnn.snn.encoding import latency, poisson
from tests.conftest import Cli
from tests.foreign.networks import forget, images, lively, needs, quiet

STEPS = 4


def spikingjelly(mode: str = "s") -> nn.Module:
    """One step a call, or `[time, batch, ...]` to `[time, batch, class]`, as its tutorials do."""
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    torch.manual_seed(0)
    network = nn.Sequential(
        layer.Flatten(),
        layer.Linear(784, 20),
        neuron.LIFNode(surrogate_function=surrogate.ATan()),
        layer.Linear(20, 10),
        neuron.LIFNode(surrogate_function=surrogate.ATan()),
    )
    functional.set_step_mode(network, mode)
    return lively(network, 12)


def snntorch_hidden() -> nn.Module:
    """One step a call, `(spikes, membranes)`; the state is hidden."""
    import snntorch

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 20),
        snntorch.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(20, 10),
        snntorch.Leaky(beta=0.9, init_hidden=True, output=True),
    )
    return lively(network, 3)


class SnnTorchStates(nn.Module):
    """One step a call, whose states go in and come out; some have to be given."""

    def __init__(self) -> None:
        super().__init__()
        import snntorch

        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(784, 20), nn.Linear(20, 10)
        self.lif1, self.lif2 = snntorch.Leaky(beta=0.9), snntorch.Leaky(beta=0.8)
        lively(self, 3)

    def forward(
        self, x: Tensor, mem1: Tensor | None, mem2: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        spikes, mem1 = self.lif1(self.fc1(x.flatten(1)), mem1)
        spikes, mem2 = self.lif2(self.fc2(spikes), mem2)
        return spikes, (mem1, mem2)


class SnnTorchRecords(nn.Module):
    """The loop of a tutorial: `(spk_rec, mem_rec)`, or a dict of both; the state is hidden."""

    def __init__(self, named: bool = False, steps: int = STEPS) -> None:
        super().__init__()
        self.net, self.named, self.steps = snntorch_hidden(), named, steps

    def forward(self, x: Tensor) -> Any:
        steps = [self.net(x) for _ in range(self.steps)]
        spk_rec, mem_rec = (torch.stack(part) for part in zip(*steps, strict=True))
        return {"mem": mem_rec, "spk": spk_rec} if self.named else (spk_rec, mem_rec)


def norse() -> nn.Module:
    """One step a call, a state in and out; a leaky integrator reads out."""
    import norse.torch as library

    torch.manual_seed(0)
    network = library.SequentialState(
        nn.Flatten(), nn.Linear(784, 20), library.LIFCell(), nn.Linear(20, 10), library.LICell()
    )
    return lively(network, 6)


def stepped(network: Any, sequence: Tensor) -> Tensor:
    """A loop over a network that keeps its state, of which the first output is recorded."""
    found = [network(x) for x in sequence]
    return torch.stack([one[0] if isinstance(one, tuple) else one for one in found])


def carried(network: Any, sequence: Tensor) -> Tensor:
    """A loop over a network that is given its state."""
    state: Any = None
    found = []
    for x in sequence:
        out, state = network(x, state)
        found.append(out)
    return torch.stack(found)


def two_states(network: Any, sequence: Tensor) -> Tensor:
    """The same for two states."""
    one: Any = None
    two: Any = None
    found = []
    for x in sequence:
        out, (one, two) = network(x, one, two)
        found.append(out)
    return torch.stack(found)


Loop = Callable[[Any, Tensor], Tensor]
#: The network, its settings, the loop that its library's tutorial writes, and how many layers.
CASES: list[Any] = []


def case(name: str, package: str, make: Callable[[], nn.Module], settings: str, loop: Loop) -> None:
    CASES.append(pytest.param(quiet(make), settings, loop, id=name, marks=needs(package)))


for encoding in ("direct", "poisson", "latency"):
    case(
        f"spikingjelly-step-{encoding}",
        "spikingjelly",
        spikingjelly,
        f"steps={STEPS},encode={encoding},decode=spikes-mean",
        lambda n, s: stepped(n, s).mean(0),
    )
case(
    "spikingjelly-sequence",
    "spikingjelly",
    lambda: spikingjelly("m"),
    f"steps={STEPS},encode=direct,decode=spikes-sum",
    lambda n, s: n(s).sum(0),
)
case(
    "snntorch-hidden",
    "snntorch",
    snntorch_hidden,
    f"steps={STEPS},encode=direct,decode=membrane-max",
    lambda n, s: torch.stack([n(x)[1] for x in s]).max(0).values,
)
case(
    "snntorch-output",
    "snntorch",
    snntorch_hidden,
    f"steps={STEPS},encode=poisson,decode=spikes-sum,output=0",
    lambda n, s: stepped(n, s).sum(0),
)
case(
    "snntorch-states",
    "snntorch",
    SnnTorchStates,
    f"steps={STEPS},decode=spikes-sum",
    lambda n, s: two_states(n, s).sum(0),
)
case(
    "snntorch-tuple",
    "snntorch",
    SnnTorchRecords,
    "decode=membrane-last",
    lambda n, s: n(s[0])[1][-1],
)
case(
    "snntorch-dict",
    "snntorch",
    lambda: SnnTorchRecords(named=True),
    "decode=membrane-sum",
    lambda n, s: n(s[0])["mem"].sum(0),
)
case(
    "norse",
    "norse",
    norse,
    "steps=8,encode=direct,decode=membrane-max",
    lambda n, s: carried(n, torch.cat([s, s])).max(0).values,
)


def asked(settings: str) -> dict[str, Any]:
    """The settings of a name as keywords of `wrap`."""
    pairs = dict(one.split("=") for one in settings.split(","))
    return {name: int(text) if name == "steps" else text for name, text in pairs.items()}


def sequence_of(settings: str, x: Tensor, keys: Tensor) -> Tensor:
    if "poisson" in settings:
        return poisson(x, STEPS, keys)
    return latency(x, STEPS) if "latency" in settings else torch.stack([x] * STEPS)


@pytest.mark.parametrize(("make", "settings", "loop"), CASES)
def test_logits_are_those_of_the_loop_of_the_library(
    make: Callable[[], nn.Module], settings: str, loop: Loop
) -> None:
    network = make().eval().requires_grad_(False)
    # As many images as time steps, so that the axes look alike.
    x, keys = images(STEPS), torch.tensor([5, 6, 7, 8])
    given: dict[str, Any] = {"keys": keys} if "poisson" in settings else {}
    forget(network)
    with torch.no_grad():
        expected = loop(network, sequence_of(settings, x, keys))
        # A state that is left behind must not be met by the next pass.
        wrapped = wrap(network, x, **asked(settings))
        assert torch.equal(wrapped(x, **given), expected)
        assert torch.equal(wrapped(x, **given), expected)
    assert isinstance(wrapped, Wrapped) and wrapped.reach.complete, wrapped.reach.caution
    assert wrapped.reach.encoding == (
        "" if "poisson" in settings or "latency" in settings else "direct"
    )
    layers = wrapped.spiking_layers()
    assert len(layers) == (1 if "Norse" in wrapped.reach.sentence else 2)
    assert bool(expected.any())
    # A pass that is cut at the neurons is the same pass.
    victim = Victim(wrapped, make_estimator("bptr", wrapped), keys.tolist(), 4)
    found = victim.gradient(x, torch.arange(4))
    assert found.gradient.isfinite().all() and bool(found.gradient.any())


@pytest.mark.parametrize(("make", "settings", "loop"), CASES)
def test_wrap_is_what_the_name_says(
    make: Callable[[], nn.Module], settings: str, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tests.foreign.test_shapes as here

    monkeypatch.setattr(here, "built", make, raising=False)
    named = subject_of(f"tests.foreign.test_shapes:built:{settings}", adapt=adapted)
    network = make()
    # The identity of a name also holds the files of its factory, which a network in memory has not.
    assert subject_of(wrap(network, **asked(settings)), adapt=adapted).sha256 == named.sha256
    assert subject_of(wrap(network, **asked(settings))).name == type(network).__name__


@needs("snntorch")
@quiet
def test_as_many_images_as_steps_are_told_apart_in_every_copy() -> None:
    network = SnnTorchRecords(steps=8).eval()
    wrapped = adapted(Shaped(network, Shape(decode="membrane-sum")))
    assert isinstance(wrapped, Wrapped)
    copied = copy_of(wrapped)
    forget(network)
    with torch.no_grad():
        expected = network(images(8))[1].sum(0)
        assert torch.equal(wrapped(images(8)), expected)
    victim = Victim(copied, make_estimator("rga", copied), range(8), 8)
    assert torch.equal(victim.gradient(images(8), torch.arange(8)).logits, expected)
    assert list(wrapped.reach.layers) == ["inner.net.2", "inner.net.4"]
    assert wrapped.reach.complete


# --- what cannot be read -------------------------------------------------------------------------


@needs("snntorch")
@quiet
def test_a_network_in_memory_that_is_not_read_is_told_how() -> None:
    data = (images(4), torch.zeros(4).long())
    for network, seen in (
        (SnnTorchRecords(), r"SnnTorchRecords returns a tuple of \[4, 4, 10\] and"),
        (SnnTorchRecords(named=True), r"returns a dict of 'mem' \[4, 4, 10\] and 'spk'"),
        (snntorch_hidden(), r"Sequential returns a tuple of \[4, 10\] and \[4, 10\]"),
        (wrap(SnnTorchRecords()), r"SnnTorchRecords returns a tuple of"),
        (wrap(snntorch_hidden(), steps=3), r"Sequential returns \[3, 4, 10\]"),
    ):
        with pytest.raises(InputError, match=seen) as told:
            robustsnn.evaluate(network, data, attack="fgsm")
        for part in ("decode=spikes-sum", "membrane-last", "latency", "robustsnn.wrap(network"):
            assert part in str(told.value)
        assert "\n" not in str(told.value)


@needs("spikingjelly")
@quiet
def test_rows_that_are_not_images_are_not_logits() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = spikingjelly("m")

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.net(torch.stack([x] * STEPS)).flatten(0, 1)
            return found

    with pytest.raises(InputError, match=r"Flat returns \[32, 10\], not logits"):
        wrap(Flat(), images(8))


@needs("snntorch")
@quiet
def test_wrap_refuses_what_cannot_be_meant() -> None:
    network = snntorch_hidden()
    with pytest.raises(InputError, match="decode must be"):
        wrap(network, decode="spikes")
    with pytest.raises(InputError, match="add steps=8"):
        wrap(network, encode="direct")
    with pytest.raises(InputError, match="is wrapped already"):
        wrap(wrap(network), steps=4, decode="spikes-sum")
    with pytest.raises(InputError, match="images must be a tensor"):
        wrap(network, images(4)[0], steps=4, decode="spikes-sum", output=0)
    with pytest.raises(InputError, match="holds no neurons"):
        wrap(nn.Flatten())
    plain = wrap(nn.Flatten(), steps=2, decode="spikes-sum")
    assert type(plain) is Shaped and torch.equal(plain(images(2)), 2 * images(2).flatten(1))

    class Loses(SnnTorchStates):
        def forward(self, x: Tensor, mem1: Any, mem2: Any = None) -> Any:
            spikes, (one, _) = super().forward(x, mem1, mem2)
            return spikes, one

    with pytest.raises(InputError, match=r"takes 2 states \(mem1, mem2\) and returns 1"):
        wrap(Loses(), images(4), steps=4, decode="spikes-sum")


@needs("spikingjelly")
@quiet
def test_one_step_that_looks_like_logits_is_told() -> None:
    wrapped = wrap(spikingjelly().eval(), images(4))
    assert "1 time step (if it takes one step a call, say how many" in wrapped.reach.sentence
    once = wrap(spikingjelly().eval(), images(4), steps=1, decode="spikes-sum")
    assert "1 time step, estimators" in once.reach.sentence


@needs("snntorch")
@quiet
def test_the_command_line_tells_it_in_one_line(tmp_path: Path, warm: Cli) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    done = warm("evaluate", "nets:Records", *ASKED)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "SnnTorchRecords returns a tuple of [4, 8, 10] and [4, 8, 10]" in line
    assert "MODEL:decode=spikes-sum" in line and not (tmp_path / "runs").exists()


# --- runs ----------------------------------------------------------------------------------------


NETS = f"""
import sys, warnings

sys.path.append({str(Path(__file__).parents[2])!r})

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tests.foreign.test_shapes import SnnTorchRecords as Records
    from tests.foreign.test_shapes import norse, snntorch_hidden, spikingjelly
"""
ASKED = ("--data", "fashion-mnist", "--samples", "8", "--attack", "fgsm", "--epsilon", "8/255")


@needs("snntorch")
@needs("spikingjelly")
@pytest.mark.slow
@quiet
def test_networks_are_evaluated_and_compared_by_name(tmp_path: Path, warm: Cli) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    network = spikingjelly()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "w.pt")
    names = [
        f"nets:spikingjelly@w.pt:steps={STEPS},encode=direct,decode=spikes-sum",
        f"nets:snntorch_hidden:steps={STEPS},encode=latency,decode=membrane-max",
        "nets:Records:decode=membrane-sum",
    ]
    done = warm("evaluate", names[0], *ASKED, "--output", "one")
    assert done.returncode == 0, done.stderr
    assert "estimators reach 2 of 2 layers" in " ".join(done.stdout.split())
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert manifest["time_steps"] == STEPS and manifest["encoding"] == "direct"
    assert manifest["architecture"] == "Sequential" and manifest["foreign"]["reached"] == 2
    forget(network)
    with torch.no_grad():
        expected = stepped(network.eval(), torch.stack([images(8)] * STEPS)).sum(0).argmax(1)
    run = robustsnn.load_runs([tmp_path / "one"])
    clean = run.records[run.records["attack"] == "clean"].sort_values("image_id")
    assert clean["prediction"].tolist() == expected.tolist()

    done = warm("compare", *names, *ASKED, "--output", "all")
    assert done.returncode == 0, done.stderr
    text = " ".join((tmp_path / "all" / "index.html").read_text().split())
    assert text.count("estimators reach 2 of 2 layers") >= 3
    runs = robustsnn.load_runs(path.parent for path in (tmp_path / "all").glob("*/manifest.json"))
    encodings = {run.manifest.model: run.manifest.encoding for run in runs.runs}
    assert encodings == {names[0]: "direct", names[1]: "latency", names[2]: "direct"}


@needs("snntorch")
@quiet
def test_wrapped_networks_in_memory_are_evaluated_and_compared(tmp_path: Path) -> None:
    first, second = snntorch_hidden(), SnnTorchRecords()
    data = (images(8), torch.arange(8) % 3)
    models = {
        "steps": wrap(first, steps=STEPS, decode="membrane-sum"),
        "loop": wrap(second, decode="membrane-sum"),
        "poisson": wrap(first, steps=STEPS, encode="poisson", decode="spikes-sum", output=0),
    }
    found = robustsnn.compare(models, data, attack="fgsm", output=tmp_path)
    # The two are one network, written in two ways.
    by_name = {name: found[name].records["prediction"].tolist() for name in models}
    assert by_name["steps"] == by_name["loop"]
    assert found["poisson"].manifest.stochastic and not found["loop"].manifest.stochastic
    assert all(found[name].manifest.foreign["reached"] == 2 for name in models)  # type: ignore[index]
    alone = robustsnn.evaluate(models["steps"], data, attack="fgsm", source="none")
    assert alone.manifest.foreign is not None and alone.manifest.foreign["reached"] == 0
    assert models["steps"].reach.opted_out is False


@needs("snntorch")
@quiet
def test_a_network_that_was_changed_after_it_was_wrapped_is_checked_anew() -> None:
    network: Any = snntorch_hidden()
    wrapped = wrap(network, images(8), steps=STEPS, decode="membrane-sum")
    network[2].threshold.fill_(0.3)
    network[2].beta.fill_(0.25)
    done = robustsnn.evaluate(wrapped, (images(8), torch.zeros(8).long()), attack="fgsm")
    assert done.manifest.foreign is not None
    assert [one["leak"] for one in done.manifest.foreign["layers"]] == ["0.25", "0.9"]
    assert done.manifest.foreign["checks"]["spikes that differ"] == 0
