"""The whole network's gradient against finite differences.

The spike is replaced by the surrogate's primitive, shifted so that its value at the point is
the spike's, and the resets are held at what the network recorded: then the surrogate gradient is
the true derivative.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.snn.neuron import LIF


def smooth_forward(network, images, parameters, recorded):
    """An independent forward of a VGG with recorded spikes; everything in float64."""
    steps = network.time_steps
    x = ((images - network.mean) / network.std).unsqueeze(0).expand(steps, *images.shape)
    for part in ("features", "classifier"):
        for index, layer in enumerate(getattr(network, part)):
            name = f"{part}.{index}"
            if isinstance(layer, torch.nn.Conv2d):
                x = torch.stack([F.conv2d(s, parameters[f"{name}.weight"], padding=1) for s in x])
            elif isinstance(layer, torch.nn.Linear):
                x = torch.stack([s @ parameters[f"{name}.weight"].T for s in x])
            elif isinstance(layer, torch.nn.AvgPool2d):
                x = torch.stack([F.avg_pool2d(s, 2) for s in x])
            elif isinstance(layer, torch.nn.Flatten):
                x = x.flatten(2)
            elif isinstance(layer, LIF):
                threshold = parameters[f"{name}.threshold"]
                leak = parameters[f"{name}.leak"]
                spikes, at = recorded[name]
                post = torch.zeros_like(x[0])
                out = []
                for t in range(steps):
                    u = leak * post + x[t]
                    primitive = layer.surrogate.primitive
                    out.append(spikes[t] + primitive(u / threshold - 1) - primitive(at[t]))
                    post = u - threshold * spikes[t]
                x = torch.stack(out)
    return x.sum(0)


@pytest.mark.parametrize("surrogate", ["triangle", "arctan", "gaussian"])
def test_input_and_parameter_gradients(surrogate):
    torch.manual_seed(1)
    network = (
        Network(
            NetworkConfig(
                architecture="vgg5",
                kind="snn",
                classes=3,
                image=(2, 8, 8),
                widths=(3, 4, 4),
                classifier=(6,),
                mean=(0.4, 0.5),
                std=(0.3, 0.2),
                time_steps=4,
                surrogate={"name": surrogate, "width": 1.0, "amplitude": 0.5},
            )
        )
        .double()
        .eval()
    )
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data.normal_(0, 0.5)
    for layer in network.spiking_layers().values():
        layer.threshold.data.fill_(0.3)
        layer.leak.data.fill_(0.9)
    images = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    labels = torch.tensor([0, 2])

    recorded = {}

    def record(name):
        def hook(module, args, output):
            current, steps, _ = args
            post, at = torch.zeros_like(current[0]), []
            for t in range(steps):
                u = module.leak * post + current[t if len(current) > 1 else 0]
                at.append((u / module.threshold - 1).detach())
                post = u - module.threshold * output[0][t]
            recorded[name] = (output[0].detach(), at)

        return hook

    handles = [m.register_forward_hook(record(n)) for n, m in network.spiking_layers().items()]
    leaf = images.clone().requires_grad_()
    parameters = dict(network.named_parameters())
    logits = network(leaf)
    for handle in handles:
        handle.remove()
    names = ["features.0.weight", "features.4.threshold", "features.7.leak", "classifier.0.weight"]
    loss = F.cross_entropy(logits, labels)
    analytic = torch.autograd.grad(loss, [leaf, *(parameters[n] for n in names)])
    assert all(g.abs().max() > 1e-6 for g in analytic)

    frozen = {n: p.detach().clone() for n, p in parameters.items()}
    assert torch.allclose(smooth_forward(network, images, frozen, recorded), logits, atol=1e-12)

    def value(target, flat_index, delta):
        moved_images, moved = images, dict(frozen)
        if target == "images":
            moved_images = images.clone()
            moved_images.view(-1)[flat_index] += delta
        else:
            moved[target] = frozen[target].clone()
            moved[target].view(-1)[flat_index] += delta
        out = smooth_forward(network, moved_images, moved, recorded)
        return F.cross_entropy(out, labels).item()

    h = 1e-6
    for target, gradient in zip(["images", *names], analytic, strict=True):
        flat = gradient.reshape(-1)
        for index in range(0, flat.numel(), max(1, flat.numel() // 25)):
            numeric = (value(target, index, h) - value(target, index, -h)) / (2 * h)
            assert flat[index].item() == pytest.approx(numeric, rel=1e-4, abs=1e-7), target
