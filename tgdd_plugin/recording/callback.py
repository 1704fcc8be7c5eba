"""TGDDCallback: records the trajectory of a user's own training run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from composer.core import Callback, Event, State, Time, TimeUnit
from composer.loggers import Logger
from composer.utils import create_interval_scheduler, dist, format_name_with_dist

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.versions import versions
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.recording.class_means import ClassMeans, HeadInput
from tgdd_plugin.recording.exemplars import Exemplars
from tgdd_plugin.recording.introspection import (
    MetricMeans,
    describe_network,
    find_augmentation,
    find_classes,
    find_head_layer,
    find_normalization,
    is_mixed,
    network_weights,
    own_images,
    training_weights,
)
from tgdd_plugin.trajectory.manifest import MANIFEST, Run
from tgdd_plugin.trajectory.store import EXEMPLARS
from tgdd_plugin.trajectory.writing import add_stage, write_manifest_and_prune

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TGDDCallback(Callback):
    """Records the initial weights and a stage per ``interval`` into a trajectory folder, for :func:`distill`.

    Weights are those being trained, never those that EMA swaps in for evaluation and checkpoints. With SWA, the stage
    at its end is the averaged network. The stages of a run that was resumed, or crashed and resumed itself, are bit for
    bit those of an uninterrupted one: stages later than the checkpoint are dropped and made again.

    With ``statistics`` each stage but the first also holds the class means of φ(x), the head's input in training, over
    the batches since the stage before, recent ones more (see :class:`tgdd_plugin.recording.class_means.ClassMeans`):
    distillation then needs no real image. Only images of a single class count, so none of a batch that MixUp or CutMix
    mixed: with :class:`RandomCutMix` at p = 0.5, half of the batches count. Images that :class:`DistilledReplay` adds
    from a memory do not. Under several ranks they are those of all ranks' images, which after a resume are equal but
    for rounding.

    Args:
        folder (str): Where to record; ``{run_name}`` and Composer's other names are filled in. The run's stages lie in
            ``folder/<run_name>/``, so several runs recorded into one folder become several trajectories of it.
            Default: ``'{run_name}/trajectory'``.
        interval (str | int | Time | Callable): Composer time string (``'1ep'``, ``'50ba'``, ``'0.1dur'``), number of
            epochs, or ``(state, event) -> bool`` asked at every ``BATCH_END`` and ``EPOCH_END``. The last moment of
            training is always recorded, also when it is stopped early. Default: ``'1ep'``, the paper's.
        max_stages (int, optional): Thin evenly to at most so many stages while training goes on, keeping first and
            last (see :func:`tgdd_plugin.trajectory.writing.thin`). Default: ``None``, keep all.
        dtype (str): ``'float32'``, ``'float16'`` or ``'bfloat16'``: how floating-point weights are stored. What is too
            large for ``'float16'`` stays ``'float32'``. Default: ``'float32'``.
        head (str, optional): Name of the linear head, without the ``module.`` of ``ComposerClassifier``.
            Default: the last ``nn.Linear`` with as many outputs as there are classes.
        classes (list[str], optional): Class names. Default: the training data set's ``classes``, if it has any.
        mean, std (list[float], optional): Per-channel normalisation of the inputs, for pixels in [0, 1]. Default: found
            in the training data set's torchvision ``Normalize``, or 0 and 1 if the inputs themselves lie in [0, 1].
        statistics (bool): Whether to record class means. Training goes on without them, with one warning, where
            batches are not (images, one label for each) or always mixed. Default: ``True``.
        exemplars (int): How many real images of each class to keep in the run's folder, for distillation to start from;
            0 where images must not leave. They are the first of the run's first epoch, as rank 0's loader gives them:
            before :class:`SiameseAugmentation`, CutMix and MixUp, but after transforms of the data set and Composer's
            ``CutOut``. 256 MiB of them at most. Default: ``40``, enough for 10 images per class at factor 2.
        overwrite (bool): Whether to replace a complete recording of the same run name; one that was cut short is
            replaced with a warning when its run begins anew. Default: ``False``.

    Raises:
        InputError: From the constructor for an unusable argument; at the start of training for what it cannot record: a
            second instance, DeepSpeed, sharded state without a full gather, a network without a linear head, a run that
            is already recorded, a folder that cannot be written.

    Example:
        >>> trainer = Trainer(model=model, ..., callbacks=[TGDDCallback()])  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str = "{run_name}/trajectory",
        interval: str | int | Time | Callable[[State, Event], bool] = "1ep",
        *,
        max_stages: int | None = None,
        dtype: str = "float32",
        head: str | None = None,
        classes: list[str] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        statistics: bool = True,
        exemplars: int = 40,
        overwrite: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise InputError(f"dtype is '{dtype}'; wanted one of {', '.join(DTYPES)}")
        if max_stages is not None and (not isinstance(max_stages, int) or max_stages < 2):
            raise InputError(f"max_stages is {max_stages!r}; wanted a whole number from 2 on, the least TGDD needs")
        normalization = Normalization.of(mean, std)
        if type(exemplars) is not int or exemplars < 0:
            raise InputError(
                f"exemplars is {exemplars!r}; wanted a whole number of images of each class, or 0 for none"
            )
        self._due, self.interval = _schedule(interval)
        self.folder = folder
        self.max_stages = max_stages
        self.dtype = DTYPES[dtype]
        self.head = head
        self.classes = [str(name) for name in classes] if classes is not None else None
        self.mean = list(normalization.mean) if normalization else None
        self.std = list(normalization.std) if normalization else None
        self.statistics = statistics
        self.exemplars = exemplars
        self.overwrite = overwrite
        self._run: Run | None = None
        self._run_folder = Path()
        self._restored_folder: str | None = None
        # Where the run stands: the batch of its last stage, and how many were due so far, those since thinned included.
        self._last_batch, self._due_so_far = -1, 0
        self._means = MetricMeans()
        self._class_means = ClassMeans()
        self._head_input = HeadInput()
        self._exemplars = Exemplars(0, 0)
        self._warned: set[str] = set()

    def init(self, state: State, logger: Logger) -> None:
        if sum(isinstance(callback, TGDDCallback) for callback in state.callbacks) > 1:
            raise InputError("the Trainer has two TGDDCallbacks; one records everything, so give it one")
        if getattr(state, "deepspeed_enabled", False):
            raise InputError("TGDDCallback cannot record under DeepSpeed, which shards the weights; use DDP or FSDP")
        # A slash in the name would hide the run one folder deeper than Trajectory.open() looks.
        self._run_folder = Path(format_name_with_dist(self.folder, state.run_name)) / state.run_name.replace("/", "-")
        self._run, self._restored_folder = None, None
        self._last_batch, self._due_so_far = -1, 0
        self._means, self._class_means = MetricMeans(), ClassMeans()
        self._exemplars = Exemplars(0, 0)
        self._warned = set()

    def fit_start(self, state: State, logger: Logger) -> None:
        if state.fsdp_enabled and state.fsdp_state_dict_type != "full":
            raise InputError(
                f"FSDP's state_dict_type is '{state.fsdp_state_dict_type}', so no rank holds the whole weights; set "
                f"parallelism_config['fsdp']['state_dict_type'] = 'full'"
            )
        head, layer = find_head_layer(state, self.head)
        run = self._describe(state, head, layer.out_features)
        batch = state.timestamp.batch.value
        position = self._on_rank_0(lambda: self._reconcile(run, batch))
        self._run = run
        if position[0] != self._last_batch:
            # What the checkpoint had added up is part of the last stage, or of none that is kept.
            self._means, self._class_means = MetricMeans(), ClassMeans()
        self._last_batch, self._due_so_far = position
        if self.statistics:
            device = state.device.tensor_to_device(torch.empty(0)).device
            self._class_means.prepare(run.num_classes, layer.in_features, device)
            self._head_input.attach(layer)
        if dist.get_global_rank() == 0:
            self._exemplars = Exemplars(run.num_classes, 0 if run.exemplars else self.exemplars)
        if self._last_batch < 0:
            if batch > 0:
                earlier = self._restored_folder
                warnings.warn(
                    f"training resumes at batch {batch} but '{self._run_folder}' has no stage from before; recording "
                    f"starts here" + (f" (the checkpoint's stages are in '{earlier}')" if earlier else ""),
                    stacklevel=2,
                )
            self._record(state)

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """Looks at the first batch, for distillation to compare its own inputs with, and keeps exemplars."""
        run = self._run
        if run is None or dist.get_global_rank() != 0:
            return
        images, targets = _pair(state.batch)
        if run.input is None and isinstance(images, torch.Tensor) and images.ndim == 4 and images.is_floating_point():
            values = images.float()
            run.input = {
                "shape": [float(n) for n in values.shape[1:]],
                "mean": values.mean((0, 2, 3)).tolist(),
                "std": values.std((0, 2, 3)).tolist(),
            }
            if run.mean is None and 0 <= values.min() and 0.5 < values.max() <= 1:
                run.mean = [0.0] * values.shape[1]
                run.std = [1.0] * values.shape[1]
            # At once: a run that crashes before its next stage would note another batch when it is resumed. Should the
            # disk be full, that stage will say so, on all ranks.
            with suppress(OSError):
                run.write(self._run_folder)
        if not self._exemplars.done:
            problem = self._exemplars.add(images, targets, run.normalization)
            if problem:
                self._warn(
                    "exemplars",
                    f"TGDDCallback keeps fewer than exemplars={self.exemplars} real images of each class, or none: "
                    f"{problem}. To distill without the data set, take start='noise' or fewer images per class",
                )
            self._keep_exemplars()

    def before_train_batch(self, state: State, logger: Logger) -> None:
        if self.statistics:
            self._class_means.begin_pass()

    def before_loss(self, state: State, logger: Logger) -> None:
        # By now the algorithms have mixed or smoothed the labels, so what they did can be seen.
        if self.statistics and self._run is not None:
            features, targets = self._head_input.take(), _pair(state.batch)[1]
            if (own := own_images(state.algorithms)) is not None and features is not None:
                features, targets = features[:own], targets[:own]  # those after them are a memory's
            if not is_mixed(state.algorithms):
                self._class_means.add(features, targets)

    def after_train_batch(self, state: State, logger: Logger) -> None:
        if self.statistics:
            self._class_means.end_pass()

    def batch_end(self, state: State, logger: Logger) -> None:
        self._means.add(state)
        if self.statistics:
            self._class_means.commit()
            self._head_input.take()  # activation checkpointing has filled it once more, in the backward pass
        self._record_if_due(state, Event.BATCH_END)

    def epoch_end(self, state: State, logger: Logger) -> None:
        self._exemplars.done = True  # images come again from here on
        self._keep_exemplars()
        self._record_if_due(state, Event.EPOCH_END)

    def fit_end(self, state: State, logger: Logger) -> None:
        self._head_input.detach()
        self._exemplars.done = True
        # Missed so far if training was stopped by a callback after this one, or by an evaluation.
        if state.timestamp.batch.value != self._last_batch:
            self._record(state)
        if (run := self._run) is not None:
            run.complete = True
            self._on_rank_0(lambda: self._finish(run))

    def close(self, state: State, logger: Logger) -> None:
        self._head_input.detach()  # not yet if training ended with an error

    def state_dict(self) -> dict[str, Any]:
        # Plain values and tensors only, for checkpoints loaded with weights_only=True. The stages are on disk.
        return {
            "version": 1,
            "folder": str(self._run_folder),
            "last_batch": self._last_batch,
            "due_so_far": self._due_so_far,
            "metrics": self._means.state_dict(),
            "class_means": self._class_means.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored_folder = state["folder"]
        if state["folder"] == str(self._run_folder):
            self._last_batch, self._due_so_far = state["last_batch"], state["due_so_far"]
            self._means.load_state_dict(state["metrics"])
            if self.statistics and "class_means" in state:  # checkpoints of the first version have none
                self._class_means.load_state_dict(state["class_means"])

    def _record_if_due(self, state: State, event: Event) -> None:
        # A stage may fall due twice at one batch, at its end and at its epoch's.
        if self._due(state, event) and state.timestamp.batch.value != self._last_batch:
            self._record(state)

    def _record(self, state: State) -> None:
        index, self._due_so_far = self._due_so_far, self._due_so_far + 1
        self._last_batch = state.timestamp.batch.value
        metrics = self._means.take()
        class_means = self._class_means.take()
        if self._class_means.problem:
            self._warn(
                "statistics",
                f"no class statistics in the stage at batch {self._last_batch} ({self._class_means.problem}); "
                f"distillation needs the real images there",
            )
        with training_weights(state):
            # Collective under FSDP, so on every rank.
            weights = network_weights(state, self.dtype)
            self._on_rank_0(lambda: self._write(state, weights, class_means, index, metrics))

    def _write(
        self,
        state: State,
        weights: dict[str, torch.Tensor],
        class_means: tuple[torch.Tensor, torch.Tensor] | None,
        index: int,
        metrics: dict[str, float],
    ) -> None:
        if self._run is not None:
            self._write_exemplars(self._run)
            add_stage(
                self._run_folder,
                self._run,
                weights,
                self.max_stages,
                class_means=class_means,
                index=index,
                epoch=state.timestamp.epoch.value,
                batch=self._last_batch,
                sample=state.timestamp.sample.value,
                metrics=metrics,
            )

    def _keep_exemplars(self) -> None:
        """Writes the exemplars as soon as there will be no more of them, so that a resumed run finds them."""
        if (run := self._run) is not None and self._exemplars.done and len(self._exemplars):
            # On rank 0 alone, so a full disk must wait for the next stage, which is written on all ranks' account.
            with suppress(OSError):
                self._finish(run)

    def _write_exemplars(self, run: Run) -> None:
        # Before the manifest that names them.
        if self._exemplars.done and len(self._exemplars):
            run.exemplars = self._exemplars.write(self._run_folder)

    def _finish(self, run: Run) -> None:
        self._write_exemplars(run)
        run.write(self._run_folder)

    def _warn(self, about: str, message: str) -> None:
        if about not in self._warned and dist.get_global_rank() == 0:
            self._warned.add(about)
            warnings.warn(message, stacklevel=3)

    def _on_rank_0(self, work: Callable[[], Any]) -> Any:
        """What ``work`` answers on rank 0, on every rank; or, if the folder does not take it, an error on every rank.

        A lone rank that stops would leave the others waiting for it for ever.
        """
        outcome: list[Any] = [None, None]
        if dist.get_global_rank() == 0:
            try:
                outcome[0] = work()
            except InputError as error:
                outcome[1] = str(error)
            except OSError as error:
                outcome[1] = (
                    f"cannot record in '{self._run_folder}' ({error.strerror or error}); make room, or give "
                    f"TGDDCallback a folder you may write to"
                )
        dist.broadcast_object_list(outcome)
        if outcome[1]:
            raise InputError(outcome[1])
        return outcome[0]

    def _describe(self, state: State, head: str, num_classes: int) -> Run:
        """The manifest's head, read from the Trainer's state, with no stage yet."""
        if self.classes is not None and len(self.classes) != num_classes:
            raise InputError(
                f"classes holds {len(self.classes)} names, but the head '{head}' has {num_classes} outputs; name each "
                f"class once"
            )
        mean, std = (self.mean, self.std) if self.mean is not None else find_normalization(state.train_dataloader)
        return Run(
            name=state.run_name,
            network=describe_network(state),
            head=head,
            num_classes=num_classes,
            classes=self.classes or find_classes(state.train_dataloader, num_classes),
            mean=mean,
            std=std,
            interval=self.interval,
            augmentation=find_augmentation(state.train_dataloader, state.algorithms),
            versions=versions("mosaicml"),
        )

    def _reconcile(self, run: Run, batch: int) -> tuple[int, int]:
        """Takes over what an earlier part of the same run left in the folder, up to ``batch``; on rank 0 only.

        Returns:
            The batch of the last stage (-1: none), and how many stages were due so far.
        """
        if (self._run_folder / MANIFEST).is_file() and not (batch == 0 and self.overwrite):
            earlier = Run.read(self._run_folder)
            if batch == 0 and earlier.complete:
                raise InputError(
                    f"run '{run.name}' is already recorded in '{self._run_folder}'; give the Trainer another run_name, "
                    f"the callback another folder, or overwrite=True"
                )
            if batch == 0 and len(earlier.stages) > 1:
                warnings.warn(
                    f"run '{run.name}' begins anew: its {len(earlier.stages)} stages in '{self._run_folder}', up to "
                    f"batch {earlier.stages[-1].batch}, are replaced (it was cut short and no checkpoint was loaded)",
                    stacklevel=2,
                )
            # A run that starts anew keeps nothing, not even initial weights: they may be of another seed.
            if batch > 0:
                run.stages = [stage for stage in earlier.stages if stage.batch <= batch]
                run.input = earlier.input
                if self.exemplars and (self._run_folder / EXEMPLARS).is_file():
                    run.exemplars = earlier.exemplars
                if run.mean is None:
                    run.mean, run.std = earlier.mean, earlier.std
        write_manifest_and_prune(self._run_folder, run)
        if not run.stages:
            return -1, 0
        last = run.stages[-1]
        if last.batch > self._last_batch:
            # The checkpoint was loaded without callbacks, or saved before the stage of the same moment was recorded.
            return last.batch, last.index + 1
        return self._last_batch, self._due_so_far


def _pair(batch: Any) -> tuple[Any, Any]:
    """Images and targets of a batch, or ``None`` for what it has not."""
    pair = batch if isinstance(batch, (tuple, list)) else ()
    return (*pair[:2], None, None)[:2]  # type: ignore[return-value]


def _schedule(interval: str | int | Time | Callable[[State, Event], bool]) -> tuple[Callable[..., bool], str]:
    """Whether a stage is due, as a function of ``(state, event)``, and the interval in words."""
    if callable(interval):
        return interval, getattr(interval, "__name__", type(interval).__name__)
    try:
        time = Time.from_input(interval, TimeUnit.EPOCH)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"interval is {interval!r}; wanted a Composer time such as '1ep', '50ba', '0.1dur'") from error
    if time.value <= 0 or time.unit == TimeUnit.ITERATION:
        raise InputError(f"interval is {interval!r}; wanted more than nothing, in epochs, batches or shares: '1ep'")
    due = create_interval_scheduler(time, checkpoint_events=False, final_events={Event.BATCH_END, Event.EPOCH_END})
    return due, time.to_timestring()
