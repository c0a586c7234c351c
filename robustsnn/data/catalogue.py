"""The data sets by name, with their shapes, classes and channel statistics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSet:
    """What is known of a published data set before any file is read.

    `shape` is (channels, height, width); `mean` and `std` are per channel, in pixel units of
    [0, 1], and `source` says where these two come from; `torchvision` is its class there.
    """

    name: str
    title: str
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    torchvision: str

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


_DIGITS = tuple("0123456789")


_CIFAR100 = """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge
bus butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout
tulip turtle wardrobe whale willow_tree wolf woman worm"""


DATASETS: dict[str, DataSet] = {
    known.name: known
    for known in (
        DataSet(
            "cifar10",
            "CIFAR-10",
            tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
            (3, 32, 32),
            (0.4914, 0.4822, 0.4465),
            (0.2023, 0.1994, 0.2010),
            # The usual published deviations are means over images of each image's own
            # deviation; those of all pixels together are near 0.247, 0.244, 0.262.
            "HIRE-SNN's official evaluation code",
            "CIFAR10",
        ),
        DataSet(
            "cifar100",
            "CIFAR-100",
            tuple(_CIFAR100.split()),
            (3, 32, 32),
            (0.5071, 0.4867, 0.4408),
            (0.2675, 0.2565, 0.2761),
            "HIRE-SNN's official evaluation code",
            "CIFAR100",
        ),
        DataSet(
            "fashion-mnist",
            "Fashion-MNIST",
            (
                *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
                *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
            ),
            (1, 28, 28),
            (0.2860,),
            (0.3530,),
            "all pixels of the 60,000 training images (recomputed in the tests)",
            "FashionMNIST",
        ),
        DataSet(
            "mnist",
            "MNIST",
            _DIGITS,
            (1, 28, 28),
            (0.1307,),
            (0.3081,),
            "PyTorch's MNIST example; all pixels of the 60,000 training images",
            "MNIST",
        ),
        DataSet(
            "svhn",
            "SVHN",
            _DIGITS,
            (3, 32, 32),
            (0.4377, 0.4438, 0.4728),
            (0.1980, 0.2010, 0.1970),
            "in common use; all pixels of the 73,257 training images",
            "SVHN",
        ),
    )
}


NAMES = (*DATASETS, "folder")
