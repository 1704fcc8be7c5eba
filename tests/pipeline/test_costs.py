"""What a step took: noted when it ended well, kept while it has nothing left to do."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from tgdd_plugin.pipeline.costs import Cost, measured, read_costs


def test_time_and_memory_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "a-costs.json"
    with measured(path, "record"):
        time.sleep(0.2)
        held = np.ones(100 * 2**20, dtype=np.uint8)
    cost = read_costs(path)["record"]
    assert 0.2 <= cost.seconds < 30 and cost.gpu_memory_mib is None
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024  # another account of the same
    assert len(held) / 2**20 < cost.memory_mib <= peak + 1


def test_other_steps_stay_and_nothing_is_noted_of_no_work(tmp_path: Path) -> None:
    path = tmp_path / "a-costs.json"
    noted = {"record": {"seconds": 1.0, "memory_mib": 2.0, "gpu_memory_mib": 3.0}}
    path.write_text(json.dumps(noted))
    with measured(path, "distill"):
        pass
    costs = read_costs(path)
    assert [*costs] == ["record", "distill"] and costs["record"] == Cost(1.0, 2.0, 3.0)
    noted["distill"] = {"seconds": 9.0, "memory_mib": 2.0, "gpu_memory_mib": 3.0}
    path.write_text(json.dumps(noted))
    before = path.read_bytes()
    with measured(path, "distill") as measure:
        measure.worked = False
    with pytest.raises(KeyError), measured(path, "distill"):
        raise KeyError
    assert path.read_bytes() == before
    with measured(path, "distill", keep=False):
        pass
    assert [*read_costs(path)] == ["distill"]


@pytest.mark.parametrize(
    "content", [None, "", "[]", '{"record": 1}', '{"record": {"seconds": "x"}}', '{"a": {"seconds": NaN}}', "\udcff"]
)
def test_a_damaged_file_has_no_costs_and_is_replaced(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "a-costs.json"
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    assert read_costs(path) == {}
    with measured(path, "distill"):
        pass
    assert [*read_costs(path)] == ["distill"]
