"""Attention guidance against its equations, written out."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.training.guidance import attention_maps, guided_layers, guided_update
from robustsnn.training.recipe import Guidance
from tests.training.test_masks import SMALL, small


def test_the_layers_are_those_before_a_pool_and_the_last():
    assert list(guided_layers(small())) == ["features.1", "features.7"]
    eleven = NetworkConfig(
        **{
            **SMALL.model_dump(),
            "architecture": "vgg11",
            "image": (1, 16, 16),
            "widths": (4,) * 8,
        }
    )
    assert list(guided_layers(Network(eleven))) == [
        "features.1",
        "features.7",
        "features.16",
        "features.22",
    ]
    residual = NetworkConfig(
        **{
            **SMALL.model_dump(),
            "architecture": "resnet12",
            "widths": (4, 4, 4, 4),
            "classifier": (),
        }
    )
    network = Network(residual)
    assert list(guided_layers(network)) == ["features.7", "features.12.outer"]
    with attention_maps(network) as maps:
        network(torch.rand(2, *SMALL.image))
    assert maps["features.12.outer"].shape == (2, 1)


def first(network: Network) -> torch.Tensor:
    """The weight of the first convolution."""
    return dict(network.named_parameters())["features.0.weight"]


@pytest.mark.parametrize("distillation", [0.0, 0.4])
def test_the_loss_is_that_of_its_equation(distillation: float):
    student, teacher = small(0).train(), small(1).eval()
    for network in (student, teacher):
        for module in network.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data.normal_(0, 0.3)
    settings = Guidance(teacher="x", attention=7.0, distillation=distillation, temperature=3.0)
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(6, *SMALL.image, generator=generator)
    labels = torch.randint(0, 10, (6,), generator=generator)

    def maps_of(network: Network) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The layers by hand: convolution, ReLU, pool, two of convolution and ReLU, pool."""
        f = network.features
        x = (images - 0.5) / 0.5
        one = F.relu(f[0](x))
        two = F.relu(f[6](F.relu(f[3](F.avg_pool2d(one, 2)))))
        hidden = F.avg_pool2d(two, 2).flatten(1)
        logits = network.classifier[3](F.relu(network.classifier[0](hidden)))
        maps = []
        for raw in (one, two):
            flat = (raw**2).mean(1).flatten(1)
            maps.append(flat / flat.norm(dim=1, keepdim=True))
        return maps, logits

    student.eval()  # so that dropout does not draw
    ours, logits = maps_of(student)
    theirs, taught = maps_of(teacher)
    loss = (1 - distillation) * F.cross_entropy(logits, labels)
    p, q = (taught / 3.0).softmax(1), (logits / 3.0).softmax(1)
    loss = loss + distillation * 9.0 * (p * (p.log() - q.log())).sum(1).mean()
    for a, b in zip(ours, theirs, strict=True):
        loss = loss + 3.5 * ((a - b.detach()) ** 2).sum(1).mean()
    (expected,) = torch.autograd.grad(loss, first(student))

    learner = copy.deepcopy(student)
    optimizer = torch.optim.SGD(learner.parameters(), lr=1.0)
    guided_update(learner, optimizer, images, labels, settings, teacher)
    moved = first(student).detach() - first(learner).detach()
    torch.testing.assert_close(moved, expected.detach(), rtol=1e-4, atol=1e-6)
