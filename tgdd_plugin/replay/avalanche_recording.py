"""AvalancheRecorder: makes a memory's images of each experience of an Avalanche strategy from its recorded training.

Avalanche (``avalanche-lib`` 0.6) is not imported: a strategy calls the methods of its plugins by their names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tgdd_plugin.core.atomic_files import check_writable
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.recording.description import describe_run
from tgdd_plugin.recording.recorder import TrajectoryRecorder
from tgdd_plugin.replay.avalanche import experience_pool
from tgdd_plugin.replay.memory import ReplayMemory
from tgdd_plugin.replay.policies import Policy, TaskResult
from tgdd_plugin.replay.sources import SourceLike
from tgdd_plugin.replay.tasks import Task, check_policy


class AvalancheRecorder:
    """A plugin of an Avalanche strategy that records each experience's training, and what a policy makes of it.

    Each experience gets a folder with its trajectory and, where the policy distills, the distilled ``.beton``::

        memory = ReplayMemory(names, images_per_class=10, mean=mean, std=std)
        recorder = AvalancheRecorder("outputs/avalanche", distilled(DistillSettings(images_per_class=10)), memory)
        replay = ReplayPlugin(mem_size=100, storage_policy=AvalancheBuffer(memory, recorder.collect))
        strategy = Naive(..., plugins=[recorder, replay])

    Args:
        folder: The folder for the experiences' folders; earlier ones there are replaced.
        policy: What is kept of an experience, one of :mod:`tgdd_plugin.replay.policies`.
        memory: The memory of the strategy's buffer; it must name all classes and the normalization.
        augmentation: How the strategy augments its training images, as in :func:`tgdd_plugin.describe_run`. Default:
            ``None``, not known.
        seed: The seed of the policy's draws. Default: ``0``.

    Raises:
        InputError: If the memory has no names of classes or no normalization, the policy is none, or the folder cannot
            be written.
    """

    def __init__(
        self, folder: str | Path, policy: Policy, memory: ReplayMemory, augmentation: str | None = None, seed: int = 0
    ) -> None:
        if not memory.classes:
            raise InputError(
                "`memory` must name all classes, as an experience's images are kept by their names, got none. Give "
                "ReplayMemory the names of all classes, in the order of the strategy's ids."
            )
        memory.normalization()
        check_policy(policy, "policy")
        self.folder, self.policy, self.memory = Path(folder), policy, memory
        self.augmentation, self.seed, self.experiences = augmentation, seed, 0
        check_writable(self.folder / "task0" / "distilled.beton")
        self._recorder: TrajectoryRecorder | None = None

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        """Begins the trajectory of an experience."""
        scale = self.memory.normalization()
        names, augmentation = self.memory.classes, self.augmentation
        run = describe_run(
            "run0", strategy.model, len(names), classes=names, mean=scale.mean, std=scale.std, augmentation=augmentation
        )
        self._recorder = TrajectoryRecorder(str(self._place / "trajectory"), overwrite=True)
        self._recorder.start(run, strategy.model)
        self._epochs = 0

    def after_training_iteration(self, strategy: Any, **_: Any) -> None:
        """Notes a batch."""
        assert self._recorder is not None
        self._recorder.batch(strategy.mb_x, strategy.mb_y, {"loss": float(strategy.loss)})

    def after_training_epoch(self, strategy: Any, **_: Any) -> None:
        """Records a stage."""
        assert self._recorder is not None
        self._epochs += 1
        self._recorder.stage(self._epochs)

    def collect(self, strategy: Any, experience: Any) -> SourceLike | None:
        """Ends the trajectory, and returns what the policy keeps of the experience.

        Raises:
            InputError: If the policy cannot make it, or the strategy has no such plugin.
        """
        if self._recorder is None:
            raise InputError(
                "`plugins` of the strategy must hold the AvalancheRecorder whose `collect` the buffer has, got none, "
                "so nothing was recorded. Give plugins=[recorder, ReplayPlugin(...)]."
            )
        self._recorder.finish()
        place = self._place
        self.experiences += 1
        found = experience_pool(experience.dataset, self.memory.normalization())
        pool = ImagePool(found.images, found.labels, self.memory.classes)
        task = Task(pool, pool, [pool.classes[label] for label in pool.counts.nonzero().flatten().tolist()])
        selected = self.policy(TaskResult(task, strategy.model, place, place / "trajectory", self.seed))
        if isinstance(selected, ReplayMemory):
            raise InputError(
                "`policy` must return the images of one experience, got a whole memory, as reservoir() does. Take "
                "Avalanche's ReservoirSamplingBuffer for that."
            )
        return selected

    @property
    def _place(self) -> Path:
        return self.folder / f"task{self.experiences}"
