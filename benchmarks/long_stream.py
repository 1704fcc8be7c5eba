"""Whether a long stream stays as cheap as it begins: seconds and memory of each task of a continual learner.

    python -m benchmarks.long_stream --tasks 20 --classes 5

Images of CIFAR-100's shape are simulated, a pattern with noise for each class; a small ConvNet learns the tasks one
after another (``tgdd_plugin.replay.learner.learn``). Seconds are those of the process. The accuracy on all earlier
tasks is measured after each task and grows with them: its seconds are told apart.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import psutil
import torch

from benchmarks.machine import describe_machine
from benchmarks.results import markdown
from tgdd_plugin import DistillSettings, ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.networks import convnet
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.replay import learner, task_steps
from tgdd_plugin.replay.policies import Policy, TaskResult, replay_policy
from tgdd_plugin.replay.settings import ReplaySettings
from tgdd_plugin.replay.tasks import split_classes

MEAN, STD = [0.5] * 3, [0.25] * 3


def simulated(classes: int, per_class: int, seed: int) -> ImagePool:
    """Images of 32 px in colour, ``per_class`` of each class; the patterns do not depend on ``seed``."""
    patterns = torch.randn(classes, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(classes).repeat_interleave(per_class)
    noise = torch.randn(len(labels), 3, 32, 32, generator=torch.Generator().manual_seed(seed + 1))
    return ImagePool((128 + 30 * (patterns[labels] + noise)).clamp(0, 255).to(torch.uint8), labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--classes", type=int, default=5, help="in each task (default 5)")
    parser.add_argument("--per-class", type=int, default=40, help="training images (default 40)")
    parser.add_argument("--policy", choices=["random", "herding", "distilled"], default="distilled")
    parser.add_argument("--steps", type=int, default=3, help="of distilling a task (default 3)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    count = options.tasks * options.classes
    pools = simulated(count, options.per_class, 1), simulated(count, 4, 2)
    tasks = split_classes(*pools, ReplaySettings(tasks=options.tasks))
    settings = DistillSettings(
        images_per_class=2, factor=1, steps=options.steps, real_per_class=8, precision="fp32", compile=False
    )
    keep = replay_policy(options.policy, tasks, settings, Normalization(MEAN, STD), "cpu")
    began, lines, evaluating = [time.process_time()], [], [0.0]
    measure = task_steps.accuracy

    def timed(*arguments: object) -> float:
        start = time.process_time()
        found = measure(*arguments)  # type: ignore[arg-type]
        evaluating[0] += time.process_time() - start
        return found

    def policy(result: TaskResult) -> object:
        # Called once a task, after its training: what passed since the last call.
        now, evaluated = time.process_time(), evaluating[0]
        memory = psutil.Process().memory_info().rss / 2**20
        lines.append([len(lines) + 1, f"{now - began[0] - evaluated:.2f}", f"{evaluated:.2f}", f"{memory:.0f}"])
        began[0], evaluating[0] = now, 0.0
        return keep(result)

    wrapped: Policy = policy  # type: ignore[assignment]
    task_steps.accuracy = timed  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        training = RecordSettings(epochs=1, cutmix=0.0, exemplars=2, precision="fp32", compile=False)
        learner.learn(
            tasks,
            lambda classes: convnet(classes, width=8),
            Path(folder),
            wrapped,
            2,
            training,
            mean=MEAN,
            std=STD,
            device="cpu",
            progress_bar=False,
        )
    print(describe_machine("cpu", 1))
    print(markdown(["task", "seconds", "of the accuracies before it", "process, MiB"], lines, []))


if __name__ == "__main__":
    main()
