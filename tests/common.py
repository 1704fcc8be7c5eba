"""What several test files share: a tiny network and data set, a cheap Trainer, two ways to look at a recording, errors.

Neither of the two goes through the package: :class:`Probe` copies weights out of the network object itself, and
:func:`recorded` reads the files with ``json`` and ``safetensors`` alone.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from composer import Callback, Logger, State, Trainer
from composer.models import ComposerClassifier, ComposerModel
from composer.utils import collect_env, dist
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tgdd_plugin.core.errors import InputError

# Every Trainer and checkpoint asks for it, which takes 50 ms each time, as it reads all that pip noted of Composer.
collect_env.get_composer_commit_hash = functools.cache(collect_env.get_composer_commit_hash)

CLASSES = 3
Weights = dict[str, torch.Tensor]


class TinyNetwork(nn.Module):
    """Convolution and linear head on 8x8 images; batch norm and dropout on demand."""

    def __init__(
        self, channels: int = 1, num_classes: int = CLASSES, *, norm: bool = False, dropout: float = 0
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1),
            nn.BatchNorm2d(4) if norm else nn.Identity(),
            nn.ReLU(),
            nn.AvgPool2d(4),
            nn.Flatten(),
            nn.Dropout(dropout),
        )
        self.fc = nn.Linear(16, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(images))


class OwnModel(ComposerModel):
    """A user's own subclass of ComposerModel, which is not a ComposerClassifier."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.not_a_tensor = nn.CrossEntropyLoss()

    def forward(self, batch: Any) -> torch.Tensor:
        return self.net(batch[0])

    def loss(self, outputs: torch.Tensor, batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.not_a_tensor(outputs, batch[1])


def trained(
    network: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Trains on one batch after another, and yields the images, labels and loss of each after its step."""
    for images, labels in batches:
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield images, labels, loss


def seeded(seed: int = 0) -> torch.Generator:
    """A generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def tiny_network(seed: int = 0, **arguments: Any) -> TinyNetwork:
    """A :class:`TinyNetwork` whose initial weights depend on ``seed`` alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyNetwork(**arguments)


def streams() -> tuple[Any, ...]:
    """The states of the global random streams of torch, NumPy and Python."""
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


class Pictures(Dataset):
    """``count`` images in [0, 1] and their classes (0, 1, 2, 0, ...), which a brighter row tells; always the same."""

    def __init__(self, count: int = 32, shape: tuple[int, int, int] = (1, 8, 8), transform: Any = None) -> None:
        self.labels = torch.arange(count) % CLASSES
        self.images = 0.6 * torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))
        self.images[torch.arange(count), :, 2 * self.labels] += 0.4
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.images[index]
        return (image if self.transform is None else self.transform(image)), int(self.labels[index])


def make_trainer(
    network: nn.Module | None = None, dataset: Dataset | None = None, *, batch_size: int = 8, **options: Any
) -> Trainer:
    """A Trainer on the CPU, by default of a tiny network for 3 epochs of 4 batches; ``options`` override.

    Args:
        network: A ``ComposerModel``, or a network to make a ``ComposerClassifier`` of.
        dataset: Default: :class:`Pictures`.
        batch_size: On each rank.
        options: For ``Trainer``.
    """
    network = network if network is not None else tiny_network()
    model = network if isinstance(network, ComposerModel) else ComposerClassifier(network, num_classes=CLASSES)
    dataset = dataset if dataset is not None else Pictures()
    # The order depends on the epoch alone: Composer itself cannot get a plain shuffle's back half-way through an epoch.
    sampler = dist.get_sampler(dataset, shuffle=True)
    defaults: dict[str, Any] = {
        "train_dataloader": DataLoader(dataset, batch_size=batch_size, sampler=sampler),
        "optimizers": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "max_duration": "3ep",
        "seed": 7,
        "device": "cpu",
        "progress_bar": False,
        "auto_log_hparams": False,
        "run_name": "run",
    }
    return Trainer(model=model, **{**defaults, **options})


def fit(*arguments: Any, **options: Any) -> Trainer:
    """:func:`make_trainer`, trained and closed."""
    trainer = make_trainer(*arguments, **options)
    try:
        trainer.fit()
    finally:
        trainer.close()
    return trainer


class Probe(Callback):
    """Copies a network's weights at every ``BATCH_END``, by batch; at 0 those that training starts from.

    Args:
        network: The bare network, as it was before anything was wrapped around it.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.weights: dict[int, Weights] = {}
        self.at_epoch_end: dict[int, Weights] = {}

    def fit_start(self, state: State, logger: Logger) -> None:
        self.weights.setdefault(state.timestamp.batch.value, self._copy())

    def batch_end(self, state: State, logger: Logger) -> None:
        self.weights[state.timestamp.batch.value] = self._copy()

    def epoch_end(self, state: State, logger: Logger) -> None:
        self.at_epoch_end[state.timestamp.batch.value] = self._copy()

    def _copy(self) -> Weights:
        return {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}


class At(Callback):
    """Calls ``act(state)`` at the end of one batch."""

    def __init__(self, batch: int, act: Callable[[State], Any]) -> None:
        self.batch = batch
        self.act = act

    def batch_end(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == self.batch:
            self.act(state)


class Crash(Callback):
    """Raises inside a batch, after its forward pass."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def after_forward(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == self.batch:
            raise RuntimeError("crash")


def manifest(run_folder: Path) -> dict[str, Any]:
    """A run's manifest, parsed; of a run in progress with the stages of its journal."""
    content = json.loads((run_folder / "manifest.json").read_text())
    if "journal" in content:
        *whole_lines, _ = (run_folder / content["journal"]).read_text().split("\n")
        for entry in map(json.loads, whole_lines):
            content["stages"] = [s for s in content["stages"] if s["file"] not in entry["drop"]] + [entry["stage"]]
    return content


def recorded(run_folder: Path) -> dict[int, Weights]:
    """The weights of a run's stages by batch."""
    files = {stage["batch"]: load_file(run_folder / stage["file"]) for stage in manifest(run_folder)["stages"]}
    return {batch: {n: t for n, t in file.items() if not n.startswith("tgdd/")} for batch, file in files.items()}


def statistics(run_folder: Path) -> dict[int, Weights]:
    """What the files of a run's stages hold beside weights, by batch; for ``means`` and ``counts``."""
    files = {stage["batch"]: load_file(run_folder / stage["file"]) for stage in manifest(run_folder)["stages"]}
    return {
        batch: {n.removeprefix("tgdd/class_"): t for n, t in file.items() if n.startswith("tgdd/")}
        for batch, file in files.items()
    }


def assert_same(stages: Mapping[int, Weights], wanted: Mapping[int, Weights]) -> None:
    """Both hold the same batches, each with the same names and the same bits."""
    assert list(stages) == list(wanted)
    for batch, weights in wanted.items():
        assert set(stages[batch]) == set(weights)
        for name, tensor in weights.items():
            assert stages[batch][name].dtype == tensor.dtype
            assert torch.equal(stages[batch][name], tensor), f"{name} differs at batch {batch}"


def differ(one: Weights, other: Weights) -> bool:
    """Whether any tensor of the two differs."""
    return any(not torch.equal(one[name], other[name]) for name in one)


def snapshot(folder: str | Path) -> dict[str, bytes]:
    """All files below a folder with their bytes, by name, but for compiled Python."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refusal(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """The one line of the InputError that a call ends with."""
    with pytest.raises(InputError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def refused(capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], int], *arguments: str) -> str:
    """The one line that a benchmark's ``main`` complains in, with status 2 and nothing else printed."""
    try:
        status: Any = main(list(arguments))
    except SystemExit as error:
        status = error.code
    printed = capsys.readouterr()
    assert status == 2 and printed.err.count("\n") == 1 and not printed.out
    return printed.err


def timeless(value: Any) -> Any:
    """A benchmark's row, or a part of it, without its ``seconds``."""
    if isinstance(value, dict):
        return {name: timeless(inner) for name, inner in value.items() if name != "seconds"}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value
