"""Real images beside a file: their classes are known by name where the names tell, and by position otherwise."""

import pytest
import torch

from tgdd_plugin import ImagePool
from tgdd_plugin.beton.card import Card
from tgdd_plugin.beton.compatibility import by_names, fitting_pool
from tgdd_plugin.core.errors import InputError


def card(classes):
    return Card(classes, images=3, images_per_class=1, shape=[3, 8, 8], mean=[0.5] * 3, std=[0.5] * 3)


def images(classes=None, labels=(0, 1, 2)):
    return ImagePool(torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8), torch.tensor(labels), classes)


@pytest.mark.parametrize(
    ("own", "of_file", "wanted"),
    [
        (["cat", "dog", "emu"], ["cat", "dog", "emu"], [0, 1, 2]),
        (["cat", "dog", "emu"], ["emu", "cat", "dog"], [1, 2, 0]),
        (None, ["2", "0", "1"], [1, 2, 0]),  # numbers are names, too, where the file has them
        (None, ["emu", "cat", "dog"], [0, 1, 2]),
        (["cat", "none", "dog", "emu"], ["emu", "cat"], [1, None, 0]),
    ],
)
def test_labels_are_those_of_the_file(own, of_file, wanted):
    labels = [0, 1, 2] if own is None or len(own) == 3 else [0, 3]
    found = fitting_pool(images(own, labels), "test", "a.beton", card(of_file))
    assert found.classes == of_file
    assert found.labels.tolist() == [label for label in wanted if label is not None]


@pytest.mark.parametrize(
    ("own", "wanted"),
    [(["cat", "dog"], [0, 1]), (["dog", "emu"], [1, 2]), (["emu", "cat"], [2, 0]), (["cat", "emu", "none"], [0, 2])],
)
def test_a_file_may_have_classes_that_the_images_lack(own, wanted):
    found = fitting_pool(images(own, [0, 1]), "test", "a.beton", card(["cat", "dog", "emu"]))
    assert found.classes == ["cat", "dog", "emu"] and found.labels.tolist() == wanted


@pytest.mark.parametrize("of_file", [["1", "2", "3"], ["0", "1", "10", "2"]])
def test_numbers_of_classes_are_no_names_where_some_may_be_missing(of_file):
    """Labels 1 and 2 without a name are the second and third class, whatever folders are called."""
    found = by_names(images(None, [1, 2]), of_file)
    assert found.labels.tolist() == [1, 2]


def test_other_names_are_refused():
    with pytest.raises(
        InputError, match="of the test images must be those of 'a.beton', cat, dog, emu, got cat, dog, yak."
    ):
        fitting_pool(images(["cat", "dog", "yak"]), "test", "a.beton", card(["cat", "dog", "emu"]))
