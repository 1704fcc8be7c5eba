"""TGDDCallback: records the trajectory of a user's own training run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from composer.core import Callback, Event, State, Time
from composer.loggers import Logger
from composer.utils import format_name_with_dist

from tgdd_plugin.core.batches import images_and_labels
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.ranks import rank
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.networks.classifiers import bare_network
from tgdd_plugin.recording.announcing import announce_end, announce_start
from tgdd_plugin.recording.batch_watch import BatchWatch, data_specs_of
from tgdd_plugin.recording.data_introspection import find_classes
from tgdd_plugin.recording.description import check_class_names
from tgdd_plugin.recording.interval import check_loader, schedule
from tgdd_plugin.recording.recorder import TrajectoryRecorder
from tgdd_plugin.recording.run_folder import complete_at_end, on_rank_0, run_folder_of
from tgdd_plugin.recording.settings import Dtype, OnError
from tgdd_plugin.recording.trainer_state import (
    describe_training,
    device_of,
    find_head_layers,
    is_language_model,
    is_mixed,
    network_weights,
    own_images,
    trained_labels,
    training_weights,
    unwrapped,
)


class TGDDCallback(Callback):
    """Records the initial weights and a stage per ``interval`` into a trajectory folder, for :func:`distill`.

    Weights are those being trained, never those that EMA swaps in for evaluation and checkpoints. With SWA, the stage
    at its end is the averaged network. The stages of a run that was resumed, or crashed and resumed itself, are bit for
    bit those of an uninterrupted one (on a CPU; a GPU may add in another order unless the Trainer has
    ``deterministic_mode=True``): stages later than the checkpoint are dropped and made again.

    With ``statistics`` each stage but the first also holds the class means of φ(x), the head's input in training, over
    the batches since the stage before, recent ones more (see :class:`tgdd_plugin.recording.class_means.ClassMeans`):
    distillation then needs no real image. Only images of a single class count, so none of a batch that MixUp or CutMix
    mixed: with :class:`RandomCutMix` at p = 0.5, half of the batches count. Images that :class:`DistilledReplay` adds
    from a memory do not. Under several ranks they are those of all ranks' images, which after a resume are equal but
    for rounding.

    Args:
        folder (str | Path): Where to record; ``{run_name}`` and Composer's other names are filled in. The run's stages
            lie in ``folder/<run_name>/``, so several runs recorded into one folder become several trajectories of it.
            Default: ``'{run_name}/trajectory'``.
        interval (str | int | Time | Callable): Composer time string (``'1ep'``, ``'50ba'``, ``'0.1dur'``), number of
            epochs, or ``(state, event) -> bool`` asked at every ``BATCH_END`` and ``EPOCH_END``, with the same answer
            on every rank. The last moment of training is always recorded, also when it is stopped early. Default:
            ``'1ep'``, the paper's.
        max_stages (int, optional): Thin evenly to at most so many stages while training goes on, keeping first and
            last (see :func:`tgdd_plugin.trajectory.writing.thin`). Default: ``None``, keep all.
        dtype (str): ``'float32'``, ``'float16'`` or ``'bfloat16'``: how floating-point weights are stored. What is too
            large for ``'float16'`` stays ``'float32'``. Default: ``'float32'``.
        head (str, optional): Name of the linear head, without the ``module.`` of ``ComposerClassifier``.
            Default: the ``nn.Linear`` with as many outputs as there are classes; of several, the one that makes the
            logits, see :meth:`tgdd_plugin.recording.head_statistics.HeadStatistics.settle`.
        classes (Sequence[str], optional): Class names. Default: the training data set's ``classes``, if it has any.
        mean, std (Sequence[float], optional): Per-channel normalization of the inputs, for pixels in [0, 1]. Default:
            found in the training data set's torchvision ``Normalize`` or in the transforms of the ``DataSpec``, or by
            what these do to the first batch; 0 and 1 if the inputs themselves lie in [0, 1].
        statistics (bool): Whether to record class means. Training goes on without them, with one warning, where
            batches are not (images, one label for each) or always mixed. Default: ``True``.
        exemplars (int): How many real images of each class to keep in the run's folder, for distillation to start from,
            and to match where the data is not at hand; 0 where images must not leave. They are the first of the first
            recorded epoch (of the next if a resumed run sees its rest alone), as rank 0's loader gives them: before any
            algorithm, but after transforms of the data set. 256 MiB of them at most. Default: ``100``.
        overwrite (bool): Whether to replace a complete recording of the same run name; one that was cut short is
            replaced with a warning when its run begins anew. Default: ``False``.
        on_error (str): What an error of the recording does once training has begun, such as a full disk. ``'warn'``:
            a write is tried again after a short pause; then there is one warning, training goes on, later stages are
            tried again, and the manifest notes the gap. ``'raise'``: training ends. Default: ``'warn'``.
        quiet (bool): Whether to leave out the two lines on standard error that say what the recording will take, and in
            the end what there is and what to do next. Default: ``False``.

    Raises:
        InputError: From the constructor for an unusable argument; at the start of training for what it cannot record: a
            second instance, sharded state without a full gather, a network without a linear head, a run that is already
            recorded, a folder that cannot be written.

    Example::

        trainer = Trainer(model=model, ..., callbacks=[TGDDCallback()])
    """

    def __init__(
        self,
        folder: str | Path = "{run_name}/trajectory",
        interval: str | int | Time | Callable[[State, Event], bool] = "1ep",
        *,
        max_stages: int | None = None,
        dtype: Dtype = "float32",
        head: str | None = None,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        statistics: bool = True,
        exemplars: int = 100,
        overwrite: bool = False,
        on_error: OnError = "warn",
        quiet: bool = False,
    ) -> None:
        self._due, self.interval, self._time = schedule(interval)
        self._is_due = False
        self.folder = str(folder)
        self.head, self.quiet = head, quiet
        self.classes = [str(name) for name in classes] if classes is not None else None
        self.normalization = Normalization.of(mean, std)
        self._options: dict[str, Any] = {"max_stages": max_stages, "dtype": dtype, "statistics": statistics}
        self._options |= {"exemplars": exemplars, "overwrite": overwrite, "on_error": on_error}
        self.recorder = TrajectoryRecorder(self.folder, **self._options)
        self._watch = BatchWatch(
            self._look,
            lambda: self.recorder.images.wanted,
            lambda: self.recorder.safeguard.covers("looking at a batch"),
        )
        self._refused = False

    def init(self, state: State, logger: Logger) -> None:
        if sum(isinstance(callback, TGDDCallback) for callback in state.callbacks) > 1:
            raise InputError(
                "`callbacks` must hold one TGDDCallback, got two. One records everything: leave the other out."
            )
        self._refused = False  # an earlier Trainer's model may have been
        try:
            folder = format_name_with_dist(self.folder, state.run_name)
        except (ValueError, AttributeError) as error:
            raise InputError(
                f"`folder` must be a path in which braces hold names of Composer's, such as '{{run_name}}', got "
                f"'{self.folder}'. Double a brace that is part of the name."
            ) from error
        self.recorder = TrajectoryRecorder(folder, **self._options)
        self.recorder.run_folder = run_folder_of(self.recorder.folder, state.run_name)

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        if self._refused and event != Event.INIT:
            return
        # Asked first: an error of an interval function of the user's is theirs.
        self._is_due = event in (Event.BATCH_END, Event.EPOCH_END) and self._due(state, event)
        try:
            super().run_event(event, state, logger)
        except Exception as error:
            if event in (Event.INIT, Event.FIT_START):  # nothing is lost yet
                raise
            self.recorder.safeguard.handle(f"recording at {event.value}", error)

    def after_load(self, state: State, logger: Logger) -> None:
        # Composer refuses to fit what is trained to its end. So no later event comes to a run that was killed between
        # its last checkpoint and FIT_END.
        batch, folder = state.timestamp.batch.value, self.recorder.run_folder
        at_end = state.max_duration is not None and state.timestamp >= state.max_duration
        if at_end and batch == self.recorder.last_batch:  # as loaded with the checkpoint
            on_rank_0(folder, lambda: complete_at_end(folder, batch))

    def fit_start(self, state: State, logger: Logger) -> None:
        recorded = self.recorder.run
        if state.timestamp.batch == 0 and recorded is not None and recorded.complete:  # fit(reset_time=True)
            self._refuse(
                f"this fit() counts from batch 0 again, and run '{recorded.name}' of the one before is complete in "
                f"'{self.recorder.run_folder}'. Give it a Trainer of its own, with another run_name"
            )
            return
        if state.fsdp_enabled and state.fsdp_state_dict_type != "full":
            raise InputError(
                f"`parallelism_config['fsdp']['state_dict_type']` must be 'full', got "
                f"'{state.fsdp_state_dict_type}', under which no rank holds the whole weights. Set it to 'full'."
            )
        check_loader(self._time, state)
        heads = find_head_layers(state, self.head, self.classes)
        head = list(heads)[-1]
        if self.head is None and is_language_model(unwrapped(state.model), heads[head]):
            self._refuse(
                f"the head '{head}' has {heads[head].out_features} outputs, one for each token of the network's "
                f"embedding, so this is a language model and no image classifier. Leave TGDDCallback out, or name the "
                f"head of the classes by head="
            )
            return
        specs = data_specs_of(state.train_dataloader)
        num_classes = int(heads[head].out_features)  # which may be NumPy's or torch's
        check_class_names(self.classes, num_classes, f"the head '{head}'")
        names, covers = self._class_names(state, num_classes), self.recorder.safeguard.covers
        run = describe_training(state, head, num_classes, names, self.normalization, specs, covers)
        run.interval = self.interval
        with training_weights(state):
            self.recorder.start(
                run,
                bare_network(state.model)[0],
                heads=heads,
                device=device_of(state),
                weights=lambda: network_weights(state),  # collective under FSDP, so on every rank
                batches=state.timestamp.batch.value,
                epoch=state.timestamp.epoch.value,
                sample=state.timestamp.sample.value,
            )
        self.recorder.images.within_epoch = state.timestamp.batch_in_epoch.value > 0
        with self.recorder.safeguard.covers("telling what the recording takes"):
            announce_start(self.recorder, self._time, state, quiet=self.quiet)
        self.recorder.features.end_forward()
        self._watch.attach(specs)

    def before_dataloader(self, state: State, logger: Logger) -> None:
        self._watch.expect()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        if self._watch.has_missed():  # algorithms come first here, and may have changed the batch
            self.recorder.look_at(*images_and_labels(state.batch))

    def before_train_batch(self, state: State, logger: Logger) -> None:
        self.recorder.features.begin_pass()

    def before_forward(self, state: State, logger: Logger) -> None:
        self.recorder.features.begin_forward()

    def after_forward(self, state: State, logger: Logger) -> None:
        self.recorder.features.end_forward()

    def before_loss(self, state: State, logger: Logger) -> None:
        # By now the algorithms have mixed the labels, so what they did can be seen. Images that an
        # algorithm added come after the loader's own.
        if (run := self.recorder.run) is not None:
            model = unwrapped(state.model)
            if self.recorder.settle_head(model, lambda copied: copied(state.batch), state.outputs):
                run.classes = self._class_names(state, run.num_classes)
            own, mixed = own_images(state.algorithms), is_mixed(state.algorithms)
            self.recorder.features.add(trained_labels(state), own, counted=not mixed)

    def after_train_batch(self, state: State, logger: Logger) -> None:
        self.recorder.features.end_pass()

    def batch_end(self, state: State, logger: Logger) -> None:
        metrics = {**state.total_loss_dict, **state.train_metric_values}
        self.recorder.end_batch(metrics, state.timestamp.batch.value)
        if self._is_due:
            self._record(state)

    def epoch_end(self, state: State, logger: Logger) -> None:
        self.recorder.end_epoch()
        if self._is_due:
            self._record(state)

    def fit_end(self, state: State, logger: Logger) -> None:
        # Missed so far if training was stopped by a callback after this one, or by an evaluation.
        if state.timestamp.batch.value != self.recorder.last_batch:
            self._record(state)
        self._watch.detach()
        if self.recorder.run is not None:
            self.recorder.finish()
            announce_end(self.recorder, state.train_dataloader, quiet=self.quiet)

    def close(self, state: State, logger: Logger) -> None:
        self._watch.detach()
        self.recorder.detach()  # not yet if training ended with an error

    def state_dict(self) -> dict[str, Any]:
        # Plain values and tensors only, for checkpoints loaded with weights_only=True. The stages are on disk.
        return self.recorder.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.recorder.load_state_dict(state)

    def _record(self, state: State) -> None:
        with training_weights(state):
            self.recorder.stage(
                state.timestamp.epoch.value,
                sample=state.timestamp.sample.value,
                weights=lambda: network_weights(state),  # collective under FSDP, so on every rank
            )

    def _look(self, images: Any, labels: Any, seen: Normalization | None) -> None:
        """Looks at a batch as the network would get it without any algorithm."""
        run = self.recorder.run
        if run is not None and run.mean is None and seen is not None:
            run.mean, run.std = list(seen.mean), list(seen.std)
        if run is not None and self._watch.changes_images:
            run.augmentation = None
        self.recorder.look_at(images, labels)

    def _refuse(self, reason: str) -> None:
        self._refused = True
        if rank() == 0:
            warnings.warn(f"nothing is recorded, training goes on: {reason}", stacklevel=2)

    def _class_names(self, state: State, num_classes: int) -> list[str] | None:
        with self.recorder.safeguard.covers("looking for the class names of the training data"):
            return self.classes or find_classes(state.train_dataloader, num_classes)
        return None
