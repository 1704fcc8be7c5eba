"""What DistilledReplay adds to a training step, beside the larger batch itself.

    python -m benchmarks.replay_cost                       # --device gpu --width 128 --steps 200 where there is one

Both sides train ConvNet-3 on 32 px color images by a Composer Trainer with the field's augmentation, for equally many
steps of equally many images: one on batches of `--batch-size` images and as many from a memory of 200
(DistilledReplay), the other on plain batches of twice the size. They take turns, one fit() each, and the side that
begins changes from pair to pair; each pair gives a difference. On a CPU seconds are those of the process, which other
processes do not add to. What the algorithm does at each event is also timed by itself; the rest of the difference is
the second call of the loss, and noise.
"""

from __future__ import annotations

import argparse
import time
from typing import ClassVar

import torch
from composer import Trainer
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.models import ComposerClassifier
from torchmetrics import MetricCollection

from benchmarks.machine import describe_machine, quartiles
from tgdd_plugin import DistilledReplay, ReplayMemory, SiameseAugmentation
from tgdd_plugin.core.device import torch_device
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.networks import convnet

MEAN, STD, CLASSES = [0.5] * 3, [0.25] * 3, 10


class Timed(DistilledReplay):
    """DistilledReplay that adds up the seconds of each event in :attr:`spent`."""

    spent: ClassVar[dict[str, float]] = {}

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        began = time.process_time()
        super().apply(event, state, logger)
        self.spent[event.value] = self.spent.get(event.value, 0.0) + time.process_time() - began


def fit(options: argparse.Namespace, replay: bool, memory: ReplayMemory) -> float:
    """Returns the seconds of one fit(), without the set-up of the Trainer."""
    on = torch_device(options.device)
    clock = time.perf_counter if on.type == "cuda" else time.process_time
    size = options.batch_size * (1 if replay else 2)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size * options.steps, 3, 32, 32), dtype=torch.uint8, generator=generator)
    loader = DeviceLoader(
        images.to(on), torch.arange(len(images)) % CLASSES, Normalization(MEAN, STD), batch_size=size, device=on
    )
    # What replay adds comes before the augmentation, which is then that of the whole batch, as on the other side.
    mixing: list[Algorithm] = [Timed(memory, augmentation="none")] if replay else []
    network = convnet(CLASSES, width=options.width)
    none = MetricCollection([])
    trainer = Trainer(
        model=ComposerClassifier(network, CLASSES, train_metrics=none, val_metrics=none),
        train_dataloader=loader,
        max_duration="1ep",
        optimizers=torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9),
        algorithms=[*mixing, SiameseAugmentation()],
        device=options.device,
        progress_bar=False,
    )
    began = clock()
    trainer.fit()
    if on.type == "cuda":
        torch.cuda.synchronize()
    spent = clock() - began
    trainer.close()
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=12, help="of each fit() (default 12)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "gpu"], default="gpu" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    memory = ReplayMemory(images_per_class=20, mean=MEAN, std=STD)
    labels = torch.arange(CLASSES).repeat_interleave(20)
    pixels = torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    memory.add((pixels, labels))
    print(describe_machine(options.device, options.threads))
    fit(options, True, memory), fit(options, False, memory)  # warms up caches and the GPU's clock
    Timed.spent.clear()
    differences, plain = [], []
    for pair in range(options.pairs):
        first = pair % 2 == 0
        spent = {side: fit(options, side, memory) for side in (first, not first)}
        plain.append(1000 * spent[False] / options.steps)
        differences.append(1000 * (spent[True] - spent[False]) / options.steps)
    step, added = quartiles(plain), quartiles(differences)
    share = [100 * d / p for d, p in zip(differences, plain, strict=True)]
    print(
        f"a step of {2 * options.batch_size} images, ms: {step['median']:.1f} ({step['low']:.1f} .. {step['high']:.1f})"
    )
    print(f"DistilledReplay adds, ms: {added['median']:.2f} ({added['low']:.2f} .. {added['high']:.2f})")
    found = quartiles(share)
    print(
        f"in % of it: {found['median']:.1f} ({found['low']:.1f} .. {found['high']:.1f}; middle half of {options.pairs})"
    )

    steps = options.pairs * options.steps
    parts = ", ".join(f"{event} {1000 * spent / steps:.2f}" for event, spent in Timed.spent.items())
    print(
        f"of which in the algorithm's events, ms a step: {parts} (sum {1000 * sum(Timed.spent.values()) / steps:.2f})"
    )


if __name__ == "__main__":
    main()
