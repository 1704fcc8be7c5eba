import os
import tempfile
from pathlib import Path

# One thread, here and in all processes that tests start: the networks are so small that a second one costs more than it
# does, and beside another test it is slower by far. Before torch is loaded, which reads it once.
os.environ["OMP_NUM_THREADS"] = "1"

# A process that compiles would start two more to do that, and one for each kind of vector that the CPU says it has, to
# try it. Each of them loads torch, which takes as long as what a test compiles. Before Composer is loaded, likewise.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# torch.compile's cache on the disk does not tell apart what ATEN_CPU_CAPABILITY says: of the code compiled for one
# setting, a run under another does not compile or breaks off by a segmentation fault.
CAPABILITY = torch.backends.cpu.get_cpu_capability().replace(" ", "-")
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"tgdd-tests-{os.getuid()}-{CAPABILITY}")
)

# Under pytest, calls of these are checked against the shapes in their signatures.
SHAPED = [
    "tgdd_plugin.augmentation.dsa",
    "tgdd_plugin.beton.multi_formation",
    "tgdd_plugin.data.targets",
    "tgdd_plugin.distillation.losses",
    "tgdd_plugin.replay.functional",
]
install_import_hook(SHAPED, "beartype.beartype")


LONG = "harnesses ranks optuna_search extended_search short_memory notebook ddp one_writer journal nas cli".split()
"""The files that take longest, which begin first, so that no worker is left with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # again, after a test that set another number
