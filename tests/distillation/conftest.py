import pytest

from tests.patterned import patterned
from tgdd_plugin import ImagePool


@pytest.fixture(scope="module")
def pool() -> ImagePool:
    return patterned()
