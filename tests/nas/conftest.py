import pytest

from tests.nas.shades import pool
from tgdd_plugin.beton.card import Card
from tgdd_plugin.beton.format import write_beton


@pytest.fixture
def beton(tmp_path):
    few = pool(12, 1)
    mean, std = few.statistics()
    card = Card(few.classes, 0, 4, [1, 8, 8], mean, std, 1, method={"name": "none"}, network={}, real={}, trajectory={})
    write_beton(tmp_path / "few.beton", few.images, few.labels, card)
    return tmp_path / "few.beton"
