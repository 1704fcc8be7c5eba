import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    # The networks here are so small that a second thread costs more than it does.
    torch.set_num_threads(1)
