"""A run's folder while it is recorded: what an earlier part of the run left there, and writing on rank 0."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tgdd_plugin.core.errors import InputError, brief, shown
from tgdd_plugin.core.locks import locked
from tgdd_plugin.core.ranks import rank, share_from_rank_0
from tgdd_plugin.core.weights import load_weights, only_tensors
from tgdd_plugin.recording.description import normalization_fits
from tgdd_plugin.recording.settings import Dtype, StageSettings
from tgdd_plugin.trajectory.manifest import EXEMPLARS, MANIFEST, Run
from tgdd_plugin.trajectory.writing import write_manifest_and_prune


def run_folder_of(folder: Path, name: str) -> Path:
    """The folder of a run's stages in a trajectory folder.

    Raises:
        InputError: If the name is none of a folder in it.
    """
    if name in ("", ".", ".."):
        raise InputError(
            f"The run's name must be one for a folder in '{folder}', got '{name}'. Give the run another name (`name`, "
            f"or run_name of a Trainer)."
        )
    # A slash in the name would hide the run one folder deeper than Trajectory.open() looks.
    return folder / name.replace("/", "-")


def is_same_folder(noted: str, folder: Path) -> bool:
    """Whether a checkpoint's note of its run's folder, from here or absolute, names ``folder``."""
    return Path(noted).resolve() == folder.resolve()


def own_state(state: Any) -> Mapping[str, Any]:
    """Returns the state of a recording, if it is one.

    Raises:
        InputError: If it is something else, such as the whole checkpoint that the state is part of.
    """
    if isinstance(state, Mapping) and {"folder", "last_batch", "due_so_far", "metrics"} <= state.keys():
        return state
    came = f"the keys {', '.join(map(str, state))}" if isinstance(state, Mapping) and state else repr(state)
    raise InputError(
        f"`state` must be what state_dict() of the recording returned, got {shown(came)}. Give that part of the "
        f"checkpoint alone; of Composer's it is ['state']['callbacks']['TGDDCallback']."
    )


def on_rank_0(folder: Path, work: Callable[[], Any]) -> Any:
    """What ``work`` returns on rank 0, on every rank; or, if the folder does not take it, an error on every rank.

    A lone rank that stops would leave the others waiting for it for ever.

    Raises:
        InputError: If ``work`` raises one, or the folder cannot be written.
    """
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = work()
        except InputError as error:
            outcome[1] = str(error)
        except OSError as error:
            reason = error.strerror or brief(error)
            remedy = "Make room, or record into a folder you may write to."
            if error.errno == errno.ENAMETOOLONG:
                remedy = "Give the run a shorter name (run_name)."
            outcome[1] = f"Cannot record in '{folder}' ({reason}). {remedy}"
        except Exception as error:  # of any kind, since the other ranks wait
            remedy = "Free memory where that ran out, or else report it as an issue of tgdd_plugin."
            outcome[1] = f"Cannot record in '{folder}' ({brief(error)}). {remedy}"
    share_from_rank_0(outcome)
    if outcome[1]:
        raise InputError(outcome[1])
    return outcome[0]


def under_lock(folder: Path, run: Run, lock: ExitStack, work: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """Locks a run's folder for as long as ``lock`` stays open, and does what :func:`take_over` does there. Collective.

    Args:
        folder: The run's folder.
        run: The manifest that ``work`` changes, on rank 0; the other ranks get its head.
        lock: What holds the folder's lock from here on; an earlier recording's is released.
        work: :func:`take_over` with its arguments.

    Returns:
        What ``work`` returns.

    Raises:
        InputError: If another process records into the folder, or ``work`` raises it.
    """

    def take() -> tuple[Any, ...]:
        lock.close()  # of an earlier recording by the same recorder
        with ExitStack() as held:
            held.enter_context(locked(folder))
            position = work()
            lock.push(held.pop_all())
        return position, run.head, run.num_classes

    position, run.head, run.num_classes = on_rank_0(folder, take)
    return position


def take_over(
    folder: Path,
    run: Run,
    heads: Mapping[str, nn.Linear],
    batch: int,
    position: tuple[int, int],
    options: StageSettings,
    weights: Mapping[str, Any] | None = None,
) -> tuple[int, int]:
    """Takes over what an earlier part of the same run left in its folder, up to ``batch``; removes what came later.

    Args:
        folder: The run's folder.
        run: The manifest of the run as it begins or goes on, which gets the earlier stages.
        heads: The layers that can be the head; an earlier part of the run found out which of them is.
        batch: Batches trained on before.
        position: Where a checkpoint says that the run stood: the batch of the last stage (-1: none), and how many
            stages were due.
        options: Whether exemplars are kept, and whether a complete recording of the same run is replaced.
        weights: The network's weights as they are, to tell whether the folder is of this training. Default: ``None``,
            it is.

    Returns:
        Where the run stands.

    Raises:
        InputError: If the run is already recorded.
    """
    if (folder / MANIFEST).is_file() and not (batch == 0 and options.overwrite):
        earlier = Run.read(folder)
        goes_on = batch > 0 and _is_same_training(folder, earlier, run, batch, weights)
        if earlier.complete and not goes_on and not options.overwrite:
            another = f", by another training than the checkpoint at batch {batch}" if batch else ""
            raise InputError(
                f"Run '{run.name}' is already recorded in '{folder}'{another}. Give the run another name (run_name), "
                f"record into another folder, or set overwrite=True."
            )
        if len(earlier.stages) > 1 and not goes_on:
            why = "it was cut short and no checkpoint" if batch == 0 else "they are of another training than what"
            warnings.warn(
                f"run '{run.name}' begins anew: its {len(earlier.stages)} stages in '{folder}', up to batch "
                f"{earlier.stages[-1].batch}, are replaced ({why} was loaded)",
                stacklevel=2,
            )
        # A run that starts anew keeps nothing, not even initial weights: they may be of another seed.
        if goes_on:
            _keep_earlier(folder, run, earlier, heads, batch, options)
    write_manifest_and_prune(folder, run)
    if not run.stages:
        return -1, 0
    last = run.stages[-1]
    if last.batch > position[0]:
        # The checkpoint was loaded without callbacks, or saved before the stage of the same moment was recorded.
        return last.batch, last.index + 1
    return position


def _keep_earlier(
    folder: Path, run: Run, earlier: Run, heads: Mapping[str, nn.Linear], batch: int, options: StageSettings
) -> None:
    """Gives ``run`` what an earlier part of it noted up to ``batch``; the arguments are those of :func:`take_over`."""
    run.stages = [stage for stage in earlier.stages if stage.batch <= batch]
    run.input = earlier.input
    if earlier.head in heads and heads[earlier.head].out_features == earlier.num_classes:
        run.head, run.num_classes = earlier.head, earlier.num_classes
    run.gaps = [gap for gap in earlier.gaps if gap["batch"] <= batch]
    if options.exemplars > 0 and (folder / EXEMPLARS).is_file():
        run.exemplars = earlier.exemplars
    if earlier.augmentation is None:  # as the first batch may have shown
        run.augmentation = None
    if run.mean is None or not normalization_fits(run):
        run.mean, run.std = earlier.mean, earlier.std


def _is_same_training(folder: Path, earlier: Run, run: Run, batch: int, weights: Mapping[str, Any] | None) -> bool:
    """Whether the beginning of a run in ``folder`` is of the training that goes on at ``batch`` with ``weights``.

    Told by the stage of that batch, if there is one, else by the number of parameters. A stage may have been averaged,
    and a network changed in part since its stage: one matrix that is bit for bit the same is enough, and after
    Composer's SWA none need be.
    """
    if weights is None or "SWA" in run.network.get("algorithms", ()):
        return True
    stage = next((stage for stage in earlier.stages if stage.batch == batch), None)
    if stage is None:
        return earlier.network.get("parameters") == run.network.get("parameters")
    try:
        recorded = load_weights(folder / stage.file)
    except Exception:  # what cannot be read tells nothing
        return True
    ours = {name: tensor for name, tensor in only_tensors(weights).items() if tensor.is_floating_point()}
    return any(_agree(recorded[name], tensor) for name, tensor in ours.items() if name in recorded and tensor.ndim > 1)


def _agree(recorded: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Whether a tensor is what was recorded, bit for bit in the precision of that."""
    ours = tensor.detach().cpu().to(recorded.dtype)
    return torch.equal(recorded.nan_to_num(), ours.nan_to_num())


def complete_at_end(folder: Path, batch: int) -> None:
    """Notes that a run is complete whose last stage is of ``batch``, the end of its training, if nothing of it is gone.

    Args:
        folder: The run's folder.
        batch: Batches trained on.

    Raises:
        InputError: If another process records into the folder.
    """
    if not (folder / MANIFEST).is_file():
        return
    with locked(folder):
        run = Run.read(folder)
        whole = all((folder / stage.file).is_file() for stage in run.stages)
        if not run.complete and whole and run.stages and run.stages[-1].batch == batch:
            run.complete = True
            run.write(folder)


def warn_of_missing_stages(folder: Path, batches: int, restored: str | None) -> None:
    """Warns that training resumes where its folder has no stage from before.

    Args:
        folder: The run's folder.
        batches: Batches trained on before; with none, it does not resume.
        restored: The run's folder when the checkpoint was saved, if one was loaded.
    """
    if batches == 0:
        return
    earlier = f" (the checkpoint's stages are in '{restored}')" if restored else ""
    warnings.warn(
        f"training resumes at batch {batches} but '{folder}' has no stage from before; recording starts here{earlier}",
        stacklevel=4,
    )


def stored_weights(state: Mapping[str, Any], dtype: Dtype) -> dict[str, torch.Tensor]:
    """Weights as a stage stores them: those of floating point as ``dtype``. Other values than tensors are left out."""
    return {name: _stored(tensor, getattr(torch, dtype)) for name, tensor in only_tensors(state).items()}


def _stored(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    stored = tensor.to(dtype)
    # A running variance may well be larger than float16's 65504.
    if dtype == torch.float16 and not stored.isfinite().all() and tensor.isfinite().all():
        return tensor.float()
    return stored
