"""TGDDCallback: records the trajectory of a user's own training run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from composer.core import Callback, Event, State, Time, TimeUnit
from composer.loggers import Logger
from composer.models import ComposerClassifier
from composer.utils import create_interval_scheduler, dist, format_name_with_dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tgdd_plugin.errors import InputError
from tgdd_plugin.network import find_head
from tgdd_plugin.normalisation import find_normalisation, unwrap_dataset
from tgdd_plugin.trajectory import MANIFEST, Run, add_stage, drop_stages_after, versions

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TGDDCallback(Callback):
    """Records the initial weights and a stage per ``interval`` into a trajectory folder, for :func:`distill`.

    Weights are those being trained, taken at ``BATCH_END``/``EPOCH_END``: never those that EMA swaps in for evaluation
    and checkpoints. With SWA, the stage at its end is the averaged network. The stages of a run that was resumed, or
    crashed and resumed itself, are bit for bit those of an uninterrupted one: stages later than the checkpoint are
    dropped and made again.

    Args:
        folder (str): Where to record; ``{run_name}`` and Composer's other names are filled in. The run's stages lie in
            ``folder/<run_name>/``, so several runs recorded into one folder become several trajectories of it.
            Default: ``'{run_name}/trajectory'``.
        interval (str | int | Time | Callable): Composer time string (``'1ep'``, ``'50ba'``, ``'0.1dur'``), number of
            epochs, or ``(state, event) -> bool`` asked at every ``BATCH_END`` and ``EPOCH_END``. The last moment of
            training is always recorded. Default: ``'1ep'``, the paper's.
        max_stages (int, optional): Thin evenly to at most so many stages while training goes on, keeping first and
            last (see :func:`tgdd_plugin.trajectory.thin`). Default: ``None``, keep all.
        dtype (str): ``'float32'``, ``'float16'`` or ``'bfloat16'``: how floating-point weights are stored.
            Default: ``'float32'``.
        head (str, optional): Name of the linear head, without the ``module.`` of ``ComposerClassifier``.
            Default: the last ``nn.Linear`` with as many outputs as there are classes.
        network (str, optional): ``'module:function'`` that builds the network, written into the manifest so that
            ``tgdd distill FOLDER`` needs no other word. Default: known by itself for the networks of this package.
        classes (list[str], optional): Class names. Default: the training data set's ``classes``, if it has any.
        mean, std (list[float], optional): Per-channel normalisation of the inputs, for pixels in [0, 1]. Default: found
            in the training data set's torchvision ``Normalize``, or 0 and 1 if the inputs themselves lie in [0, 1].
        overwrite (bool): Whether to replace a complete recording of the same run name. Default: ``False``.

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
        network: str | None = None,
        classes: list[str] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        overwrite: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise InputError(f"dtype is '{dtype}'; wanted one of {', '.join(DTYPES)}")
        if max_stages is not None and max_stages < 2:
            raise InputError(f"max_stages is {max_stages}; TGDD needs at least 2 stages")
        if (mean is None) != (std is None):
            raise InputError("mean and std belong together; give both or neither")
        if callable(interval):
            self._due = interval
        else:
            if Time.from_input(interval, TimeUnit.EPOCH).value <= 0:
                raise InputError(f"interval is {interval!r}; wanted more than nothing, for example '1ep'")
            self._due = create_interval_scheduler(
                interval, checkpoint_events=False, final_events={Event.BATCH_END, Event.EPOCH_END}
            )
        self.folder = folder
        self.interval = getattr(interval, "__name__", None) or str(interval)
        self.max_stages = max_stages
        self.dtype = DTYPES[dtype]
        self.head = head
        self.network = network
        self.classes = classes
        self.mean = mean
        self.std = std
        self.overwrite = overwrite
        self._run: Run | None = None
        self._run_folder = Path()
        self._input: dict[str, list[float]] | None = None
        self._last_batch = -1
        self._restored: dict[str, Any] = {}

    def init(self, state: State, logger: Logger) -> None:
        if sum(isinstance(callback, TGDDCallback) for callback in state.callbacks) > 1:
            raise InputError("the Trainer has two TGDDCallbacks; one records everything, so give it one")
        if getattr(state, "deepspeed_enabled", False):
            raise InputError("TGDDCallback cannot record under DeepSpeed, which shards the weights; use DDP or FSDP")
        self._run_folder = Path(format_name_with_dist(self.folder, state.run_name)) / state.run_name

    def fit_start(self, state: State, logger: Logger) -> None:
        if state.fsdp_enabled and state.fsdp_state_dict_type != "full":
            raise InputError(
                f"FSDP's state_dict_type is '{state.fsdp_state_dict_type}', so no rank holds the whole weights; set "
                f"parallelism_config['fsdp']['state_dict_type'] = 'full'"
            )
        run = self._describe(state)
        batch = state.timestamp.batch.value
        outcome: list[Any] = [None, None]
        if dist.get_global_rank() == 0:
            try:
                self._reconcile(run, batch)
            except (InputError, OSError) as error:
                outcome[0] = str(error)
            outcome[1] = run.stages[-1].batch if run.stages else -1
        # All ranks go on, or all stop with the same message: a lone rank would wait for the others for ever.
        dist.broadcast_object_list(outcome)
        if outcome[0]:
            raise InputError(outcome[0])
        self._run, self._last_batch = run, outcome[1]
        if self._last_batch < 0:
            if batch > 0:
                earlier = self._restored.get("folder")
                warnings.warn(
                    f"training resumes at batch {batch} but '{self._run_folder}' has no stage from before; recording "
                    f"starts here" + (f" (the checkpoint's stages are in '{earlier}')" if earlier else ""),
                    stacklevel=2,
                )
            self._record(state)

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """Notes shape and statistics of the first batch: distillation compares its own inputs with them."""
        if self._input is None and dist.get_global_rank() == 0 and self._run is not None:
            images = state.batch[0] if isinstance(state.batch, (tuple, list)) else None
            if isinstance(images, torch.Tensor) and images.ndim == 4 and images.is_floating_point():
                values = images.float()
                self._input = {
                    "shape": [float(n) for n in values.shape[1:]],
                    "mean": values.mean((0, 2, 3)).tolist(),
                    "std": values.std((0, 2, 3)).tolist(),
                }
                self._run.input = self._input
                if self._run.mean is None and 0 <= values.min() and 0.5 < values.max() <= 1:
                    self._run.mean = [0.0] * values.shape[1]
                    self._run.std = [1.0] * values.shape[1]

    def batch_end(self, state: State, logger: Logger) -> None:
        self._record_if_due(state, Event.BATCH_END)

    def epoch_end(self, state: State, logger: Logger) -> None:
        self._record_if_due(state, Event.EPOCH_END)

    def fit_end(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() == 0 and self._run is not None:
            self._run.complete = True
            self._run.write(self._run_folder)

    def state_dict(self) -> dict[str, Any]:
        # Plain values only, for checkpoints loaded with weights_only=True. The manifest on disk is what counts.
        stages = [[s.epoch, s.batch, s.file] for s in self._run.stages] if self._run else []
        return {
            "version": 1,
            "folder": str(self._run_folder),
            "last_batch": self._last_batch,
            "stages": stages,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored = state

    def _record_if_due(self, state: State, event: Event) -> None:
        # A stage may fall due twice at one batch, at its end and at its epoch's.
        if self._due(state, event) and state.timestamp.batch.value != self._last_batch:
            self._record(state)

    def _record(self, state: State) -> None:
        # Collective under FSDP, so on every rank. It also drops the prefixes of DDP and torch.compile.
        weights = state.get_model_state_dict()
        self._last_batch = state.timestamp.batch.value
        if dist.get_global_rank() == 0 and self._run is not None:
            prefix = _prefix(_unwrapped(state.model))
            weights = {
                name.removeprefix(prefix): tensor.to(self.dtype) if tensor.is_floating_point() else tensor
                for name, tensor in weights.items()
                if isinstance(tensor, torch.Tensor) and name.startswith(prefix)
            }
            add_stage(
                self._run_folder,
                self._run,
                weights,
                self.max_stages,
                epoch=state.timestamp.epoch.value,
                batch=self._last_batch,
                sample=state.timestamp.sample.value,
                metrics=_metrics(state),
            )

    def _describe(self, state: State) -> Run:
        """The manifest's head, read from the Trainer's state, with no stage yet."""
        model = _unwrapped(state.model)
        network = model.module if isinstance(model, ComposerClassifier) else model
        num_classes = getattr(model, "num_classes", None)
        # named_modules() keeps the prefix of torch.compile, which the recorded names lack.
        names = {name.replace("_orig_mod.", ""): module for name, module in network.named_modules()}
        head = find_head(network, num_classes, self.head).replace("_orig_mod.", "")
        built = getattr(network, "tgdd_network", {})
        mean, std = (self.mean, self.std) if self.mean else find_normalisation(state.train_dataloader)
        dataset = unwrap_dataset(state.train_dataloader)
        classes = self.classes or getattr(dataset, "classes", None)
        return Run(
            name=state.run_name,
            network={
                "class": f"{type(network).__module__}:{type(network).__qualname__}",
                "parameters": sum(p.numel() for p in network.parameters()),
                "factory": self.network or built.get("factory"),
                "arguments": built.get("arguments", {}) if self.network is None else {},
                "algorithms": [type(algorithm).__name__ for algorithm in state.algorithms],
            },
            head=head,
            num_classes=names[head].out_features,
            classes=[str(name) for name in classes] if classes is not None else None,
            mean=mean,
            std=std,
            input=self._input,
            interval=self.interval,
            versions=versions("mosaicml"),
        )

    def _reconcile(self, run: Run, batch: int) -> None:
        """Takes over what an earlier part of the same run left in the folder, up to ``batch``; on rank 0 only."""
        if not (self._run_folder / MANIFEST).is_file():
            self._run_folder.mkdir(parents=True, exist_ok=True)
            return
        earlier = Run.read(self._run_folder)
        if batch == 0 and earlier.complete and not self.overwrite:
            raise InputError(
                f"run '{run.name}' is already recorded in '{self._run_folder}'; give the Trainer another run_name, the "
                f"callback another folder, or overwrite=True"
            )
        run.stages = earlier.stages
        run.input = run.input or earlier.input
        if run.mean is None:
            run.mean, run.std = earlier.mean, earlier.std
        # A run that starts anew keeps nothing, not even initial weights: they may be of another seed.
        drop_stages_after(self._run_folder, run, batch if batch > 0 else -1)


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _prefix(model: nn.Module) -> str:
    """``ComposerClassifier`` puts its network under ``module.``; stages carry the bare network's names."""
    return "module." if isinstance(model, ComposerClassifier) else ""


def _metrics(state: State) -> dict[str, float]:
    """Training loss and metrics as the Trainer last computed them; those that are not finite numbers are left out."""
    found = {name: float(value) for name, value in state.total_loss_dict.items()}
    for name, value in state.train_metric_values.items():
        if not isinstance(value, torch.Tensor) or value.numel() == 1:
            found[name] = float(value)
    return {name: value for name, value in found.items() if math.isfinite(value)}
