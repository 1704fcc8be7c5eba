"""DistilledReplay on batches that are mappings, beside the same training on pairs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from composer import Callback, Logger, State
from composer.algorithms import CutMix, LabelSmoothing, MixUp
from composer.core import Algorithm, DataSpec
from composer.loss import soft_cross_entropy
from composer.models import ComposerClassifier, ComposerModel
from torchmetrics.classification import MulticlassAccuracy

from tests.common import CLASSES, Pictures, Probe, assert_same, fit, refusal, statistics, tiny_network
from tests.replay.filled import memory
from tgdd_plugin import TGDDCallback
from tgdd_plugin.replay.algorithm import DistilledReplay
from tgdd_plugin.replay.functional import join_outputs, part_of_outputs

pytestmark = pytest.mark.numerical

NAMES = ("pixel_values", "labels")


class Answer(OrderedDict):
    """As Hugging Face's ModelOutput, which takes its entries by name."""


class FromMapping(ComposerModel):
    """A classifier of batches that are mappings.

    Args:
        form: What it answers with: ``tensor``, the logits; ``mapping``, the logits and more; ``loss``, also their loss,
            as Hugging Face's models do.
        names: The names of the images and the labels.
    """

    num_classes = CLASSES

    def __init__(self, form: str = "tensor", names: tuple[str, str] = NAMES) -> None:
        super().__init__()
        self.module, self.form, (self.images, self.labels) = tiny_network(), form, names
        self.metric = MulticlassAccuracy(CLASSES, average="micro")

    def forward(self, batch: Any) -> Any:
        features = self.module.features(batch[self.images])
        logits = self.module.fc(features)
        if self.form == "tensor":
            return logits
        answer = Answer(logits=logits, hidden=(features, features), name="tiny")
        return Answer(loss=F.cross_entropy(logits, batch[self.labels]), **answer) if self.form == "loss" else answer

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.form == "loss":
            return outputs["loss"]
        logits = outputs if self.form == "tensor" else outputs["logits"]
        assert len(logits) == len(batch[self.images]) == len(batch[self.labels])
        assert self.form == "tensor" or {len(one) for one in outputs["hidden"]} == {len(logits)}
        targets = batch[self.labels]
        return soft_cross_entropy(logits, targets)  # as ComposerClassifier has it

    def get_metrics(self, is_train: bool = False) -> dict[str, Any]:
        return {"MulticlassAccuracy": self.metric}

    def eval_forward(self, batch: Any, outputs: Any = None) -> torch.Tensor:
        return outputs if self.form == "tensor" else outputs["logits"]

    def update_metric(self, batch: Any, outputs: torch.Tensor, metric: Any) -> None:
        metric.update(outputs, batch[self.labels])


class Note(Callback):
    """Notes the images and targets that the network gets and the loss gets, and each batch's loss and accuracy."""

    def __init__(self, names: tuple[Any, Any]) -> None:
        self.names = names
        self.seen: list[torch.Tensor] = []
        self.figures: list[float] = []

    def before_forward(self, state: State, logger: Logger) -> None:
        self.seen += [state.batch[name].clone() for name in self.names]

    before_loss = before_forward

    def batch_end(self, state: State, logger: Logger) -> None:
        accuracy = state.train_metric_values["MulticlassAccuracy"]
        self.figures += [state.total_loss_dict["loss/train/total"], float(accuracy)]


def batches(names: tuple[str, str] | None, more: dict[str, Any] | None = None) -> DataSpec:
    """The pictures in their order, in pairs or in mappings."""
    pictures = Pictures()
    parts = [(pictures.images[i : i + 8], pictures.labels[i : i + 8]) for i in range(0, 32, 8)]
    given: Any = [dict(zip(names, part, strict=True)) | (more or {}) for part in parts] if names else parts
    # Composer's own counting and splitting refuse some of what a mapping may hold.
    counted: dict[str, Any] = {"get_num_samples_in_batch": lambda batch: len(batch[names[1]])} if names else {}
    return DataSpec(given, num_samples=32, split_batch=None if more is None else lambda batch, _: [batch], **counted)


def train(
    names: tuple[str, str] | None, form: str, algorithms: list[Algorithm], callbacks: Any = (), **options: Any
) -> tuple[Probe, Note]:
    """Six batches: from pairs, if there are no names, by Composer's own classifier."""
    model: Any = FromMapping(form, names) if names else ComposerClassifier(tiny_network(), CLASSES)
    probe, note = Probe(model.module), Note(names or (0, 1))
    options = {"device_train_microbatch_size": 8, "max_duration": "6ba", **options}
    loader = batches(names, options.pop("more", None))
    fit(model, train_dataloader=loader, algorithms=algorithms, callbacks=[probe, note, *callbacks], **options)
    return probe, note


Mixer = Callable[[dict[str, Any]], Algorithm]
MIXERS: dict[str, Mixer] = {
    "cutmix": lambda keys: CutMix(**keys),
    "mixup": lambda keys: MixUp(alpha=0.4, **keys),
    "smoothing": lambda keys: LabelSmoothing(0.3, **{name: key for name, key in keys.items() if name == "target_key"}),
}


@pytest.mark.parametrize("form", ["tensor", "mapping"])
@pytest.mark.parametrize("names", [NAMES, ("img", "target")])
@pytest.mark.parametrize("microbatch", [8, 3])
def test_the_mixture_is_that_of_pairs(names: tuple[str, str], form: str, microbatch: int) -> None:
    (wanted, told), (found, note) = (
        train(
            keys,
            form,
            [DistilledReplay(memory(), count=5, weight=0.3, seed=4)],
            device_train_microbatch_size=microbatch,
        )
        for keys in (None, names)
    )
    assert len(note.seen) == len(told.seen) and max(map(len, note.seen)) == (13 if microbatch == 8 else 5)
    assert all(torch.equal(one, other) for one, other in zip(note.seen, told.seen, strict=True))
    assert note.figures == told.figures
    assert_same(found.weights, wanted.weights)


@pytest.mark.parametrize("first", [False, True], ids=["after it", "before it"])
@pytest.mark.parametrize("mixer", MIXERS.values(), ids=list(MIXERS))
def test_beside_algorithms_that_mix(mixer: Mixer, first: bool) -> None:
    runs = []
    for names in (None, NAMES):
        keys = {"input_key": NAMES[0], "target_key": NAMES[1]} if names else {}
        order = [mixer(keys), DistilledReplay(memory(), weight=0.6, augmentation="none")]
        runs.append(train(names, "tensor", order if first else order[::-1], device_train_microbatch_size=3))
    (wanted, told), (found, note) = runs
    assert all(torch.equal(one, other) for one, other in zip(note.seen, told.seen, strict=True))
    assert_same(found.weights, wanted.weights)


@pytest.mark.parametrize("microbatch", [8, 3, 1])
@pytest.mark.parametrize("count", [5, 8, 16])
def test_a_loss_of_the_network_itself_counts_all_images_alike(microbatch: int, count: int) -> None:
    """Its mean is over all images of a microbatch, of which one may have more of the memory's than another."""
    (wanted, told), (found, note) = (
        train(
            names,
            "loss",
            [DistilledReplay(memory(), count=count)],
            device_train_microbatch_size=microbatch,
        )
        for names in (None, NAMES)
    )
    assert note.figures == pytest.approx(told.figures, rel=1e-5)
    for batch, weights in wanted.weights.items():
        torch.testing.assert_close(found.weights[batch], weights, rtol=1e-4, atol=1e-6)


def test_recorded_means_are_those_of_the_loaders_images(tmp_path: Path) -> None:
    for name, names in (("pairs", None), ("mappings", NAMES)):
        recorder = TGDDCallback(str(tmp_path / name), interval="3ba", exemplars=40)
        train(names, "mapping", [DistilledReplay(memory(), ratio=2.0)], [recorder])
    one, other = (statistics(tmp_path / name / "run") for name in ("pairs", "mappings"))
    assert_same({batch: one[batch] for batch in (3, 6)}, {batch: other[batch] for batch in (3, 6)})
    kept = [(tmp_path / name / "run" / "exemplars.safetensors").read_bytes() for name in ("pairs", "mappings")]
    assert kept[0] == kept[1]


def test_single_values_stay() -> None:
    seen = []

    class Look(Callback):
        def before_loss(self, state: State, logger: Logger) -> None:
            seen.append({name: value for name, value in state.batch.items() if name not in NAMES})

        after_loss = before_loss

    more = {"temperature": 2.0, "mode": "train", "scale": torch.tensor(3.0), "nothing": None}
    train(NAMES, "tensor", [DistilledReplay(memory())], [Look()], more=more, max_duration="1ba")
    assert seen == [more] * 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"index": torch.arange(8)}, "a Tensor under the key 'index'. Leave it out in the loader's collate_fn."),
        ({"attention_mask": torch.ones(8, 4)}, "a Tensor under the key 'attention_mask'. Leave it out"),
        ({"paths": ["a.png"] * 8}, "a list under the key 'paths'. Leave it out"),
        ({"image": torch.zeros(8, 1, 8, 8)}, "a Tensor under the key 'image'. Leave it out"),
        ({"weights": torch.ones(3)}, "a Tensor under the key 'weights'. Leave it out"),
        ({"about": {"index": torch.arange(8)}}, "a dict under the key 'about'. Leave it out"),
    ],
)
def test_what_the_memory_has_not_is_refused_by_name(more: dict[str, Any], message: str) -> None:
    line = refusal(train, NAMES, "tensor", [DistilledReplay(memory())], more=more)
    assert line.startswith("The batch must have nothing but single values beside its images and labels") and (
        message in line
    )


def test_other_names_and_a_weight_that_cannot_be_heeded() -> None:
    line = refusal(train, ("x", "y"), "tensor", [DistilledReplay(memory())])
    assert "a tensor of images under one of the keys pixel_values, " in line and "got x, y. Rename the keys." in line
    line = refusal(train, NAMES, "loss", [DistilledReplay(memory(), weight=0.5)])
    assert line.startswith("`weight` must be left out where the network itself computes the loss") and "got 0.5" in line


def test_a_network_without_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FromMapping, "forward", lambda self, batch: {"scores": self.module(batch[self.images])})
    line = refusal(train, NAMES, "mapping", [DistilledReplay(memory())])
    assert line.startswith("The network must return logits (N, K), or a mapping with `logits`, got a dict.")


class Pair(NamedTuple):
    logits: torch.Tensor
    hidden: torch.Tensor


@pytest.mark.parametrize("form", [lambda a, b: {0: a, 1: b}, Pair, lambda a, b: [a, b], lambda a, b: (a, b)])
def test_answers_of_any_form_are_parted_and_joined(form: Callable[..., Any]) -> None:
    logits, hidden = torch.rand(5, 3), torch.rand(5, 2)
    whole = form(logits, hidden)
    own, others = (part_of_outputs(whole, part, 5) for part in (slice(3), slice(3, None)))
    assert type(own) is type(whole) and len(own[0]) == 3 and len(others[1]) == 2
    joined = join_outputs(own, others)
    assert type(joined) is type(whole) and torch.equal(joined[0], logits) and torch.equal(joined[1], hidden)
