import pytest

from tests.nas.shades import write_few


@pytest.fixture
def beton(tmp_path):
    return write_few(tmp_path)
