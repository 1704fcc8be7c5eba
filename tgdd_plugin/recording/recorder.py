"""TrajectoryRecorder: records the trajectory of any PyTorch training loop; it needs neither Composer nor FFCV."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.ranks import on_all_ranks
from tgdd_plugin.networks.classifiers import bare_network
from tgdd_plugin.networks.heads import head_candidates
from tgdd_plugin.recording.first_images import FirstImages
from tgdd_plugin.recording.head_statistics import HeadStatistics
from tgdd_plugin.recording.metric_means import MetricMeans
from tgdd_plugin.recording.run_folder import (
    is_same_folder,
    own_state,
    run_folder_of,
    stored_weights,
    take_over,
    under_lock,
    warn_of_missing_stages,
)
from tgdd_plugin.recording.safeguard import Safeguard
from tgdd_plugin.recording.settings import Dtype, OnError, StageSettings, local_folder
from tgdd_plugin.trajectory.manifest import Run
from tgdd_plugin.trajectory.writing import add_stage


class TrajectoryRecorder:
    """Records a training run into a folder, stage by stage, for :func:`tgdd_plugin.distill`.

    ::

        recorder = TrajectoryRecorder("cifar10/trajectory")
        recorder.start(describe_run("run0", network, num_classes=10, mean=mean, std=std), network)
        recorder.batch(images, labels, {"loss": loss})  # after each optimizer step
        recorder.stage(epoch)  # after each epoch
        recorder.finish()

    The stages, their class means and the exemplars are those that :class:`tgdd_plugin.TGDDCallback` records in a
    Composer Trainer with the same batches. Put ``state_dict()`` into your checkpoints: a run that is loaded from one
    goes on as if it had not been interrupted, and stages later than the checkpoint are dropped and made again.

    Args:
        folder: The trajectory folder. The run's stages lie in ``folder/<name>/``, so several runs recorded into one
            folder become several trajectories of it.
        max_stages: Thin evenly to at most so many stages, keeping the first and the last. Default: ``None``, keep all.
        dtype: How floating-point weights are stored, as in :class:`tgdd_plugin.TGDDCallback`. Default: ``'float32'``.
        statistics: Whether to record class means of the head's input, for distilling without images. Default: ``True``.
        exemplars: Real images of each class to keep, of the first epoch that is recorded; 0 for none. Default: ``100``.
        overwrite: Whether to replace a complete recording of the same run. Default: ``False``.
        on_error: What an error of the recording does, as in :class:`tgdd_plugin.TGDDCallback`. Default: ``'warn'``.

    Raises:
        InputError: For an argument that is out of range, and a folder that is not of this machine.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        max_stages: int | None = None,
        dtype: Dtype = "float32",
        statistics: bool = True,
        exemplars: int = 100,
        overwrite: bool = False,
        on_error: OnError = "warn",
    ) -> None:
        self.folder = local_folder(folder)
        self.options = StageSettings(max_stages, dtype, statistics, exemplars, overwrite, on_error)
        self.run: Run | None = None
        self.run_folder = self.folder
        self.network: nn.Module | None = None
        self._metrics = MetricMeans()
        self.features = HeadStatistics(enabled=self.options.statistics)
        """Adds up the class means; a loop that splits its batches calls it itself, see :meth:`end_batch`."""
        self.images = FirstImages(exemplars, lambda *told: self.safeguard.warn_once(*told))
        """Looks at the first batches."""
        self._lock = ExitStack()  # on the run's folder, from start() to finish() or detach()
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Forgets what was counted and added up so far."""
        self.batches, self.samples = 0, 0
        # Where the run stands: the batch of its last stage, and how many were due so far, those since thinned included.
        self.last_batch, self._due_so_far = -1, 0
        self._restored_folder: str | None = None
        self._drop_sums()
        self.safeguard = Safeguard(self.options.on_error)

    def start(
        self,
        run: Run,
        network: nn.Module,
        *,
        heads: Mapping[str, nn.Linear] | None = None,
        device: torch.device | str | None = None,
        weights: Callable[[], Mapping[str, torch.Tensor]] | None = None,
        batches: int | None = None,
        epoch: int = 0,
        sample: int | None = None,
    ) -> None:
        """Begins to record, or goes on after :meth:`load_state_dict`; the initial weights become stage 0.

        Args:
            run: What is recorded, see :func:`describe_run`; it is copied.
            network: The network that is trained, wrapped or not, with its weights as they are before the next batch.
            heads: The linear layers that can be its head, by name; the first forward pass in training tells which one
                is, see :meth:`settle_head`. Default: the one that ``run`` names.
            device: Where class means are added up. Default: where the head's weights are.
            weights: Returns the weights to record, where it is not the network's ``state_dict()``. Default: ``None``.
            batches, epoch, sample: What was trained on before. Default: as loaded, else 0; epoch 0; and as loaded.

        Raises:
            InputError: If the run is already recorded, or another process records it, or its folder cannot be written.
        """
        self.network = None  # nothing is under way until this start succeeds: stages would go to the other's folder
        self.features.detach()
        if batches is None and self._restored_folder is None:  # what an earlier start() counted is of another training
            self._begin_anew()
        self.batches, network = self.batches if batches is None else batches, bare_network(network)[0]
        run = replace(run, stages=[], gaps=[], exemplars=None, complete=False)  # it may begin several recordings
        self.run_folder = run_folder_of(self.folder, run.name)
        if self._restored_folder and not is_same_folder(self._restored_folder, self.run_folder):  # of other stages
            self.last_batch, self._due_so_far = -1, 0
            self._drop_sums()
        heads = heads or head_candidates(network, run.num_classes, run.head)
        position, present = (self.last_batch, self._due_so_far), None
        if self.batches > 0 and (self.run is None or self._restored_folder):  # else this recorder knows that it goes on
            present = on_all_ranks(weights or network.state_dict)
        work = partial(take_over, self.run_folder, run, heads, self.batches, position, self.options, present)
        found = under_lock(self.run_folder, run, self._lock, work)
        self.run, self.network = run, network
        if found[0] != self.last_batch:
            self._drop_sums()  # what the checkpoint had added up is part of the last stage, or of none that is kept
        self.last_batch, self._due_so_far = found
        self.features.attach(heads, run.head, device or heads[run.head].weight.device)
        self.images.start(run, self.run_folder, epoch, settled=len(heads) == 1)
        if self.last_batch < 0:
            warn_of_missing_stages(self.run_folder, self.batches, self._restored_folder)
            self.stage(epoch, sample=sample, weights=weights)
        self._restored_folder = None

    def batch(self, images: torch.Tensor, targets: torch.Tensor, metrics: Mapping[str, Any] | None = None) -> None:
        """One batch was trained on: to be called after each optimizer step.

        Of several forward passes in training mode the last one counts, or that before ``features.end_forward()``, if
        that is called; then call ``features.begin_forward()`` before the next batch.

        Args:
            images: As the network got them: normalized, ``(N, C, H, W)``.
            targets: Class ids ``(N,)``, or shares of the classes ``(N, K)``; images of mixed classes do not count.
            metrics: Numbers to average over the batches of a stage, such as the loss. Default: none.
        """
        self._started()
        with self.safeguard.covers("counting a batch's images"):
            self.samples += len(images)
        with self.safeguard.covers("looking at a batch"):
            self.look_at(images, targets)
            self.features.begin_pass()
            self.features.add(targets)
            self.features.end_pass()
        self.end_batch(metrics or {}, self.batches + 1)

    def stage(
        self, epoch: int, *, sample: int | None = None, weights: Callable[[], Mapping[str, torch.Tensor]] | None = None
    ) -> None:
        """Records the weights as they are now, unless no batch came since the last stage.

        Collective where training is distributed.

        Args:
            epoch: Epochs completed: 1 after the first.
            sample: Samples seen. Default: as counted by :meth:`batch` in this process.
            weights: As in :meth:`start`.

        Raises:
            InputError: With ``on_error='raise'``, if the folder cannot be written.
        """
        run, _ = self._started()
        completed = self.images.first_epoch
        with self.safeguard.covers("reading the number of epochs"):
            completed = max(0, int(epoch))
        if completed > self.images.first_epoch:
            self.end_epoch()
        if self.batches == self.last_batch:
            if self.batches == 0:
                self.safeguard.warn_once(
                    "stage", "no stage is recorded, as there was no batch. Call batch() after each step"
                )
            return
        self.last_batch = self.batches
        with self.safeguard.stage(run, completed, self.batches):
            self._stage(completed, self.samples if sample is None else int(sample), weights)

    def _stage(self, epoch: int, sample: int, weights: Callable[[], Mapping[str, torch.Tensor]] | None) -> None:
        run, network = self._started()
        index, self._due_so_far = self._due_so_far, self._due_so_far + 1
        metrics, class_means = {}, None
        with self.safeguard.covers(f"what the stage at batch {self.batches} has beside weights"):
            # A rank that fails must not leave the others waiting: all go on, or none.
            class_means, metrics = on_all_ranks(self.features.take), on_all_ranks(self._metrics.take)
        if not run.has_room_for(metrics):
            self.safeguard.warn_once("metrics", "the manifest has no room for metrics of more stages; give max_stages=")
            metrics = {}
        state = on_all_ranks(weights or network.state_dict)
        when = {"epoch": epoch, "batch": self.batches, "sample": sample, "metrics": metrics}

        def write() -> None:
            stored, most = stored_weights(state, self.options.dtype), self.options.max_stages
            add_stage(self.run_folder, run, stored, most, class_means=class_means, index=index, **when)

        self.safeguard.write(self.run_folder, run, self.images.exemplars, write)
        self.safeguard.tell_of_stage(run, self.batches, self.features)

    def finish(self, epoch: int | None = None) -> None:
        """Training came to its end: notes that the recording is complete. A second call does nothing.

        Args:
            epoch: Epochs completed, to record a last stage if there was a batch since. Default: no such stage.
        """
        if self.run and self.run.complete and self.network is None:
            return
        run, _ = self._started()
        if epoch is not None and self.batches != self.last_batch:
            self.stage(epoch)
        self.features.detach()
        self.images.exemplars.done = True
        with self._lock:
            self.safeguard.write_end(self.run_folder, run, self.images.exemplars)
        self.network = None

    def detach(self) -> None:
        """Leaves the network as it was, without the hook on its head, and the run's folder to other processes."""
        self.features.detach()
        self._lock.close()

    def look_at(self, images: Any, targets: Any) -> None:
        """Looks at a batch before it is trained on, on rank 0: notes what the inputs are like, and keeps exemplars."""
        self.images.look_at(images, targets)

    def settle_head(self, network: nn.Module, call: Callable[[nn.Module], Any], answer: Any) -> bool:
        """Finds out, after the first forward pass in training, which of the layers given to :meth:`start` is the head.

        Args:
            network, call, answer: As in :meth:`HeadStatistics.settle`.

        Returns:
            Whether ``run`` has another number of classes now; they have no names then.
        """
        layer, run = self.features.settle(network, call, answer), self.run
        if layer is None or run is None:
            return False
        run.head, before = self.features.head, run.num_classes
        if before != layer.out_features:
            run.num_classes, run.classes = int(layer.out_features), None
        self.images.write()
        return before != run.num_classes

    def end_batch(self, metrics: Mapping[str, Any], batches: int) -> None:
        """The batch is over, and trained on: what :meth:`batch` does, for loops that split it.

        Such a loop calls :meth:`look_at` with the whole batch, ``features.begin_pass()``, ``features.add(targets)``
        after each forward pass, ``features.end_pass()``, and then this.

        Args:
            metrics: As in :meth:`batch`.
            batches: Batches trained on so far.
        """
        with self.safeguard.covers("adding up a batch"):
            self.batches = int(batches)
            self.images.settle()
            self.features.commit()
            self._metrics.add(metrics)

    def end_epoch(self) -> None:
        """An epoch is over: from here on images come again."""
        with self.safeguard.covers("keeping the exemplars"):
            self.images.end_epoch()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: plain values and tensors; the stages are on disk. Collective."""
        sums: dict[str, Any] = {"metrics": {}, "class_means": {"batches": 0}}
        with self.safeguard.covers("saving the sums since the last stage in a checkpoint"):
            sums = {"class_means": self.features.state_dict(), "metrics": self._metrics.state_dict()}
        where = {"folder": str(self.run_folder), "last_batch": self.last_batch, "due_so_far": self._due_so_far}
        return {"version": 1, "batches": self.batches, "samples": self.samples, **where, **sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state_dict`; to be called before :meth:`start`."""
        self._restored_folder = own_state(state)["folder"]
        self.batches, self.samples = state.get("batches", 0), state.get("samples", 0)
        self.last_batch, self._due_so_far = state["last_batch"], state["due_so_far"]
        self._metrics.load_state_dict(state["metrics"])
        if "class_means" in state:  # checkpoints of the first version have none
            self.features.load_state_dict(state["class_means"])

    def _started(self) -> tuple[Run, nn.Module]:
        if self.run is None or self.network is None:
            state = "finished" if self.run else "not started"
            raise InputError(f"The recording must be under way, got one that is {state}. Call start() first.")
        return self.run, self.network

    def _drop_sums(self) -> None:
        self._metrics.take()
        self.features.forget()
