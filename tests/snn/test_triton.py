"""The Triton kernels, interpreted on the CPU and compiled for a GPU that need not be there."""

from __future__ import annotations

import importlib.util
import itertools
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from robustsnn.adversary.victim import Victim
from robustsnn.errors import InputError
from robustsnn.estimators.assg import Assg
from robustsnn.estimators.base import Estimator
from robustsnn.estimators.bptr import Bptr
from robustsnn.estimators.hart import Hart
from robustsnn.estimators.make import make_estimator
from robustsnn.estimators.rga import Rga
from robustsnn.evaluation.suites import load_suite
from robustsnn.snn import neuron
from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.snn.neuron import LIF, lif_sequence
from robustsnn.snn.surrogate import SURROGATES, Triangle
from tests.snn.test_neuron import by_layer, outcome

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (Linux only)"
)
ROOT = Path(__file__).parents[2]
KERNELS = ("reference", "triton")
#: The largest difference of a gradient, in units of the largest entry.
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    # NumPy, which interprets them, says what a GPU does not: that a number became infinite.
    with np.errstate(all="ignore"):
        yield


def close(got, wanted, size=None):
    size = wanted.abs().max() if size is None else size
    return got.shape == wanted.shape and bool((got - wanted).abs().max() <= TOLERANCE * size)


#: Each option with each other one at both values.
VARIANTS = [
    dict(zip(("static", "start", "attached", "hard"), values, strict=True))
    for values in itertools.product((False, True), repeat=4)
    if sum(values) in (0, 2, 4)
]


@pytest.mark.parametrize("name", sorted(SURROGATES))
def test_spikes_are_those_of_the_reference_and_gradients_nearly(name, monkeypatch):
    for number, variant in enumerate(VARIANTS):
        options = {
            "seed": number,
            "steps": 1 + number % 4,
            "name": name,
            "scale": (0.3, 1.0, 4.0)[number % 3],
            "threshold": (0.05, 0.7, 2.3)[number % 3],
            "leak": (0.0, 0.9, 1.0)[(number + 1) % 3],
            "reset": "hard" if variant["hard"] else "soft",
            "detach": not variant["attached"],
            "use_spikes": number % 5 != 4,
            "use_final": number % 3 != 0,
            "channels_last": number % 2 == 0,
            "pool": number % 4 == 1,
            "odd": number % 4 == 3,
            **variant,
        }
        found = []
        for kernel in KERNELS:
            monkeypatch.setenv("ROBUSTSNN_LIF", kernel)
            found.append(outcome(by_layer, options, torch.float32, batch=3, channels=9))
        (spikes, final, wanted), (got_spikes, got_final, got) = found
        assert torch.equal(got_spikes, spikes)
        assert torch.equal(got_final, final)
        # Those of threshold and leak are sums of terms that cancel.
        terms = wanted[0].abs().sum()
        for index, pair in enumerate(zip(got, wanted, strict=True)):
            largest = pair[1].abs().max()
            assert close(*pair, largest if index in (0, 3) else terms.clamp(min=largest)), options


@pytest.mark.parametrize("shape", [(1, 1), (2, 0), (1, 513), (3, 1, 1, 1), (2, 3, 7)])
def test_odd_shapes_gaps_in_memory_and_expanded_gradients(shape, monkeypatch):
    wide = torch.randn(3, *shape[:-1], 2 * shape[-1], generator=torch.Generator().manual_seed(0))
    found = []
    for kernel in KERNELS:
        monkeypatch.setenv("ROBUSTSNN_LIF", kernel)
        leaves = [wide.clone().requires_grad_()]
        leaves += [torch.full((1,), value, requires_grad=True) for value in (0.4, 0.8)]
        spikes, final = lif_sequence(
            leaves[0][..., ::2], *leaves[1:], steps=3, surrogate=Triangle(), detach_reset=False
        )
        found.append((spikes, final, *torch.autograd.grad(spikes.sum() + final.sum(), leaves)))
    for wanted, got in zip(*found, strict=True):
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, rtol=TOLERANCE, atol=1e-5)
    assert all(map(torch.equal, found[0][:2], found[1][:2]))


def test_values_that_are_no_numbers_and_membranes_at_the_threshold(monkeypatch):
    one = torch.tensor(1.7)
    near = torch.stack([one + k * torch.finfo(torch.float32).eps for k in range(-9, 10)])
    strange = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e-40, 3e38])
    current = torch.cat([near, strange]).reshape(1, 1, -1)
    found = []
    for kernel in KERNELS:
        monkeypatch.setenv("ROBUSTSNN_LIF", kernel)
        for reset in ("soft", "hard"):
            layer = LIF(1.7, 0.9, reset=reset)
            x = current.clone().requires_grad_()
            spikes, final = layer(x, 4)
            (gradient,) = torch.autograd.grad(spikes.sum(), x)
            found.append(torch.cat([spikes.flatten(), final.flatten(), gradient.flatten()]))
    for wanted, got in zip(found[:2], found[2:], strict=True):
        assert torch.equal(got.isnan(), wanted.isnan())
        torch.testing.assert_close(got, wanted, rtol=TOLERANCE, atol=1e-6, equal_nan=True)


def test_nothing_is_kept_without_a_gradient(monkeypatch):
    monkeypatch.setenv("ROBUSTSNN_LIF", "triton")
    kernels = neuron.triton_kernel(torch.device("cpu"))
    kept = []
    run = kernels._launch
    monkeypatch.setattr(
        kernels, "_launch", lambda *a, **k: (kept.append(k["KEEPS"]), run(*a, **k))[1]
    )
    current = torch.rand(2, 3, 5)
    with torch.no_grad():
        spikes, _ = LIF(0.4)(current, 2)
    frozen = LIF(0.4).requires_grad_(False)
    frozen(current, 2)
    frozen(current.requires_grad_(), 2)
    assert kept == [False, False, True]
    assert spikes.any()


RULES = [Hart(), Hart(1.5), Bptr(), Bptr(0.25), Rga(), Rga(0.4, 1.5), Assg(), Assg(0.3)]


@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 3, 5)])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rules_of_estimators(rule: Estimator, shape, monkeypatch):
    # The second image comes twice, as for draws or where a batch is padded.
    rows = torch.tensor([4, 1, 1])
    generator = torch.Generator().manual_seed(3)

    def arranged(x):
        if x.dim() == 3:
            return x
        flat = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return flat.unflatten(0, x.shape[:2])

    for hard, attached, static in ((0, 0, 0), (1, 1, 0), (0, 1, 1)):
        layer = LIF(0.6, 0.85, reset="hard" if hard else "soft", detach_reset=not attached)
        network = torch.nn.Module()
        network.spiking_layers = lambda layer=layer: {"only": layer}  # type: ignore[assignment]
        # The second pass of an attack has other currents and, with ASSG, a memory.
        currents = [
            arranged(torch.randn(1 if static else 4, *shape, generator=generator)) for _ in "ab"
        ]
        weights = torch.randn(4, *shape, generator=generator)
        found = []
        for kernel in KERNELS:
            monkeypatch.setenv("ROBUSTSNN_LIF", kernel)
            fresh = make_estimator(rule.name, network)
            gradients = []
            for current in currents:
                x = current.clone().requires_grad_()
                with fresh.applied(network, rows):
                    spikes, _ = layer(x, 4)
                gradients += [spikes.detach(), *torch.autograd.grad(spikes, x, weights)]
            found.append(gradients)
        for index, (wanted, got) in enumerate(zip(*found, strict=True)):
            assert torch.equal(got, wanted) if index % 2 == 0 else close(got, wanted)
            assert wanted.any()


def small_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network(
            NetworkConfig(
                architecture="vgg5", kind="snn", classes=4, image=(1, 8, 8), widths=(3, 4, 4),
                classifier=(8,), mean=(0.2,), std=(0.3,), time_steps=3,
            )
        ).eval()  # fmt: skip
    for layer in network.spiking_layers().values():
        with torch.no_grad():
            layer.threshold.fill_(0.02)
            layer.leak.fill_(0.9)
    return network


def test_gradients_of_a_network_under_every_estimator_of_the_suites(monkeypatch):
    suites = [load_suite(name) for name in ("standard", "light", "quick")]
    names = {e.estimator or "bptt" for suite in suites for e in suite.entries} - {"best", "auto"}
    assert {"bptt", "bptr", "rga", "twin", "hart:width=0.5", "assg:vanishing=0.425"} <= names
    network = small_network()
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    labels = torch.tensor([0, 1, 2, 3])
    for name in sorted(names):
        found = []
        for kernel in KERNELS:
            monkeypatch.setenv("ROBUSTSNN_LIF", kernel)
            victim = Victim(network, make_estimator(name, network), range(4))
            found.append(victim.gradient(images, labels, "margin"))
        wanted, got = found
        assert torch.equal(got.logits, wanted.logits), name
        # The twin has no spikes, and here it is saturated.
        assert wanted.gradient.any() or name == "twin", name
        assert close(got.gradient, wanted.gradient), name


def test_rules_of_estimators_get_the_membranes_of_the_kernel(monkeypatch):
    current = torch.randn(3, 2, 40, generator=torch.Generator().manual_seed(1))
    layer, found = LIF(0.5, 0.9), []
    for kernel in KERNELS:
        monkeypatch.setenv("ROBUSTSNN_LIF", kernel)
        found.append(layer.trace(current, 3, current[0]).membranes)
    assert len(found[0]) == len(found[1]) == 3
    assert all(map(torch.equal, *found))


# --- the choice ----------------------------------------------------------------------------------


def test_triton_is_chosen_by_the_environment_or_on_a_gpu(monkeypatch):
    monkeypatch.setenv("ROBUSTSNN_LIF", "triton")
    assert neuron.kernel() == "triton"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(InputError, match="runs on a GPU, not on cpu: leave it at auto, or set"):
        neuron.kernel()
    with pytest.raises(InputError, match="not on meta"):
        neuron.kernel("meta")
    monkeypatch.setattr(neuron, "_has_triton", lambda: False)
    with pytest.raises(InputError, match="pip install triton"):
        neuron.kernel()
    monkeypatch.setenv("ROBUSTSNN_LIF", "auto")
    assert neuron.kernel("cuda") == "reference"
    monkeypatch.setattr(neuron, "_has_triton", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(neuron, "triton_kernel", lambda device: object())
    assert neuron.kernel("cuda") == "triton"
    monkeypatch.setattr(neuron, "triton_kernel", lambda device: None)
    assert neuron.kernel("cuda") == "reference"
    assert neuron.kernel() == "fused"


def test_kernels_that_give_other_spikes_on_a_device_are_not_used(monkeypatch):
    kernels = importlib.import_module("robustsnn.snn.lif_triton")
    right = kernels._forward

    def contracted(current, initial, spikes, *rest):
        """A kernel whose leak is rounded in another way."""
        right(current, initial, spikes, *rest[:3], rest[3] * (1 + 2**-23), *rest[4:])

    monkeypatch.setattr(kernels, "_forward", contracted)
    neuron.triton_kernel.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="other spikes than the reference"):
            assert neuron.triton_kernel(torch.device("cpu")) is None
        monkeypatch.setenv("ROBUSTSNN_LIF", "triton")
        with pytest.raises(InputError, match="cannot run on cpu; the warning before says why"):
            neuron.kernel()
    finally:
        neuron.triton_kernel.cache_clear()


def test_triton_is_imported_where_it_is_used_and_nowhere_else():
    theirs = re.compile(r"^\s*(from|import) triton|import_module\(.triton", re.M)
    # Only a function names the module, where the kernel is asked for.
    ours = re.compile(r"^\s*(from|import) .*(lif_triton|triton_kernels)", re.M)
    inside = {"lif_triton.py", "triton_kernels.py"}
    for path in (ROOT / "robustsnn").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert path.name in inside or not (theirs.search(text) or ours.search(text)), path


def test_what_the_kernels_do_not_take_runs_on_the_reference(monkeypatch):
    monkeypatch.setenv("ROBUSTSNN_LIF", "triton")
    current = torch.rand(2, 3, 4, dtype=torch.float64)
    assert LIF(0.4).double()(current, 2).spikes.dtype == torch.float64

    class Own(Triangle):
        """A user's surrogate."""

    neuron._tell_about.cache_clear()
    with pytest.warns(RuntimeWarning, match="does not know the surrogate Own"):
        LIF(0.4, surrogate=Own())(current.float(), 2)


# --- compiled for a GPU --------------------------------------------------------------------------

COMPILE = """
    import importlib.util, sys
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    spec = importlib.util.spec_from_file_location("kernels", sys.argv[1])
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    TYPES = {n: "i32" for n in ("neurons", "steps", "features", "remembered")}
    TYPES |= {"sums": "*fp64", "images": "*i64", "rows": "*i64"}
    FLAGS = ("STARTED", "ATTACHED", "GIVEN", "ENDED", "WANTED", "START_WANTED", "PARAMETERS")
    CONSTANTS = {"BLOCK": 512, "STATIC": False, "HARD": False, "FIRES": True, "KEEPS": True}
    CONSTANTS |= {"REMEMBER": True, "SURROGATE": "gaussian", "WIDTH": 0.5, "AMPLITUDE": 0.3}
    CONSTANTS |= {"OMEGA": 2.0, "GAMMA": 1.5, "FIRST": 0.9, "SECOND": 0.9, "BETA": 2.0, "LEAK": 0.0}
    CONSTANTS |= dict.fromkeys(FLAGS, True)
    SURROGATES = sys.argv[2].split(",")
    # One step and one neuron are constants, as Triton makes them.
    OTHERS = {"STATIC": True, "HARD": True, "steps": 1, "features": 1, "neurons": 1}
    plan = [(n, {}) for n in ("lif_forward", "hart", "bptr", "rga", "adaptive")]
    plan += [(n, OTHERS) for n, _ in plan]
    plan += [("lif_backward", {"SURROGATE": s}) for s in SURROGATES]
    plan += [("lif_backward", {**OTHERS, "SURROGATE": SURROGATES[0]})]
    for name, other in plan:
        function = JITFunction(getattr(kernels, name))
        names = function.arg_names
        constants = {**CONSTANTS, **other}
        given = {n: constants[n] for n in names if n in constants}
        types = {n: "constexpr" if n in given else TYPES.get(n, "*fp32") for n in names}
        aligned = {
            (i,): [["tt.divisibility", 16]]
            for i, n in enumerate(names)
            if n not in given and n != "steps"
        }
        fixed = {(names.index(n),): v for n, v in given.items()}
        source = ASTSource(function, types, fixed, aligned)
        options = {"num_warps": 4, "enable_fp_fusion": False}
        made = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
        text = made.asm["ptx"]
        assert len(made.asm["cubin"]) > 0
        # No product and sum are fused, also not by the assembler: it may fuse what does not say how
        # it rounds. Denormal numbers stay.
        for line in text.splitlines():
            words = line.split()
            word = next((w for w in words if w.endswith((".f32", ".f64"))), "")
            operation = word.split(".")[0]
            if operation == "fma" or (operation in ("mul", "add", "sub") and ".rn." not in word):
                raise SystemExit(f"{name} may be contracted: {line}")
            if ".ftz" in word and operation != "ex2":
                raise SystemExit(f"{name} flushes to zero: {line}")
        if name not in ("bptr", "rga"):
            assert "div.rn.f32" in text, name
        # Neurons are read four at a time.
        assert other or "ld.global.v4.b32" in text, name
    print("compiled")
"""


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu_without_a_fused_multiply_add(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    file = ROOT / "robustsnn" / "snn" / "triton_kernels.py"
    surrogates = ",".join(SURROGATES)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(COMPILE), str(file), surrogates],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == "compiled", done.stderr[-2000:]
