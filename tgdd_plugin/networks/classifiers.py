"""Any network of a user's as a classifier: a module that turns images into a tensor of logits.

Composer's models take batches, Hugging Face's answer with a dataclass, and wrappers hide the network in another module.
Nothing here imports Composer: where it was not imported, nothing can be one of its models.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tgdd_plugin.core.errors import InputError, shown

# Names under which torch.compile, FSDP and activation checkpointing keep the module that they wrap.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def bare_network(model: nn.Module) -> tuple[nn.Module, str]:
    """The network inside a Trainer's model, and the prefix of its names in the model's state.

    That is the module a ``ComposerClassifier`` was made of, and any other ``ComposerModel`` itself.
    """
    network, prefix = _unwrapped(model), ""
    if (classifier := _composer("ComposerClassifier")) and isinstance(network, classifier):
        network, prefix = _unwrapped(network.module), "module."
    return network, prefix


def _unwrapped(network: nn.Module) -> nn.Module:
    """The module inside any number of wrappers."""
    inner: nn.Module | None = network
    while inner is not None:
        network = inner
        if isinstance(network, (nn.DataParallel, DistributedDataParallel)):
            inner = network.module
        else:
            inner = next((getattr(network, wrapper) for wrapper in WRAPPERS if hasattr(network, wrapper)), None)
    return network


def logits_of(output: Any) -> Any:
    """Returns the logits in what a network answers with, or what it answered if there are none to be found.

    Args:
        output: A tensor; something with ``logits`` as an attribute or key, such as Hugging Face's ``ModelOutput``; or a
            tuple or list that begins with them.
    """
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, Mapping):
        found = output.get("logits")
    else:
        found = getattr(output, "logits", None)
    if found is None and isinstance(output, (tuple, list)) and output:
        found = output[0]
    return found if isinstance(found, torch.Tensor) else output


def as_classifier(given: nn.Module) -> nn.Module:
    """Returns the network in whatever a user gave, ready to be called with images ``(N, C, H, W)`` for logits.

    This package's networks stay as they are. Any other's forward pass is wrapped in place, so that names of weights
    stay the same: its answer goes through :func:`logits_of`, and a ``ComposerModel`` gets its images in a batch.

    Raises:
        InputError: If it is no network.
    """
    if not isinstance(given, nn.Module):
        raise _no_network(given)
    network = bare_network(given)[0]
    if network is not given and not hasattr(network, "tgdd_network") and hasattr(given, "tgdd_network"):
        network.tgdd_network = given.tgdd_network  # how it was built, see tgdd_plugin.networks.described
    if type(network).__module__.startswith("tgdd_plugin.") or "forward" in vars(network):
        return network
    composer_model = _composer("ComposerModel")
    takes_batches = composer_model is not None and isinstance(network, composer_model)
    if not isinstance(network, torch.jit.ScriptModule):
        network.forward = MethodType(_forward_batch if takes_batches else _forward, network)
    return network


def as_list(given: Any) -> list[Any]:
    """Returns one network, or a function that builds one, or several of them, as a list."""
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]


def check_buildable(given: Any) -> None:
    """Raises an InputError if something is neither a network nor a function that builds one."""
    if not isinstance(given, nn.Module) and not callable(given):
        raise _no_network(given)


def _no_network(given: Any) -> InputError:
    came = shown(repr(given)) if isinstance(given, str) else f"a {type(given).__name__}"
    return InputError(
        f"`network` must be a network, or a function that builds one, got {came}. Give, for example, "
        f"lambda: tgdd_plugin.networks.convnet(10); names are for the command line and recipes."
    )


def classifiers(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Returns a function that builds what ``build`` does, as :func:`as_classifier` returns it.

    A network is returned as it is.

    Raises:
        InputError: If it is neither.
    """
    check_buildable(build)
    if isinstance(build, nn.Module):
        return build

    def built(*arguments: Any, **options: Any) -> nn.Module:
        return as_classifier(build(*arguments, **options))

    return functools.update_wrapper(built, build)


def _forward(self: nn.Module, *arguments: Any, **options: Any) -> Any:
    return logits_of(type(self).forward(self, *arguments, **options))


def _forward_batch(self: nn.Module, images: torch.Tensor) -> Any:
    """Calls a ``ComposerModel`` with the images in a batch of the form that it takes, which is found once."""
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    if (known := vars(self).get("tgdd_batch_form")) is not None:
        return logits_of(type(self).forward(self, known(images, labels)))
    failed = None
    for form in _FORMS:
        try:
            answer = logits_of(type(self).forward(self, form(images, labels)))
        except Exception as error:  # a forward pass that wants another form fails in many ways
            failed = failed or error
        else:
            vars(self)["tgdd_batch_form"] = form
            return answer
    assert failed is not None
    raise failed


def _pair(images: torch.Tensor, labels: torch.Tensor) -> Any:
    return images, labels


def _as_hugging_face(images: torch.Tensor, labels: torch.Tensor) -> Any:
    return {"pixel_values": images, "labels": labels}


def _as_named(images: torch.Tensor, labels: torch.Tensor) -> Any:
    return {"image": images, "label": labels}


_FORMS: tuple[Callable[[torch.Tensor, torch.Tensor], Any], ...] = (_pair, _as_hugging_face, _as_named)


def _composer(name: str) -> Any:
    return getattr(sys.modules.get("composer.models"), name, None)
