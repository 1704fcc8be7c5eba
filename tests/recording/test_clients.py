"""Networks and batches as other libraries have them: recorded, distilled with and without the data, and retrained."""

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composer.models import ComposerClassifier, ComposerModel
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models import VisionTransformer

from tests.common import fit, make_trainer, manifest
from tests.patterned import patterned
from tgdd_plugin import DistillSettings, RetrainSettings, TGDDCallback, Trajectory, distill, rank_networks, retrain
from tgdd_plugin.networks.classifiers import as_classifier, logits_of

CLASSES = 3
QUIET: dict[str, Any] = {"device": "cpu", "progress_bar": False}
SETTINGS = DistillSettings(images_per_class=1, factor=1, steps=2, real_per_class=4, augmentation="none")
TRAINING = RetrainSettings(epochs=1, seeds=1, full_epochs=0)


class Answer(OrderedDict):
    """As Hugging Face's ModelOutput: a mapping whose values are also attributes, here without those that are None."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Vision(nn.Module):
    """As a Hugging Face image classifier: it takes ``pixel_values``, and labels for its own loss."""

    main_input_name = "pixel_values"

    def __init__(self, answer: type = Answer) -> None:
        super().__init__()
        self.answer = answer
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten())
        self.classifier = nn.Linear(16, CLASSES)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        logits = self.classifier(self.body(pixel_values))
        if self.answer is tuple:
            return logits, None
        return Answer(logits=logits) if labels is None else Answer(loss=F.cross_entropy(logits, labels), logits=logits)


class Model(ComposerModel):
    """A ``ComposerModel`` around it, with batches as its processor makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Vision()

    def forward(self, batch: Any) -> Any:
        return self.model(**batch)

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return outputs.loss


def pictures() -> list[dict[str, Any]]:
    pool = patterned(per_class=8)
    return [{"image": image, "label": int(label)} for image, label in zip(pool.images, pool.labels, strict=True)]


def processed(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.stack([item["image"] for item in items]).float() / 255,
        "labels": torch.tensor([item["label"] for item in items]),
    }


def as_pairs(items: list[dict[str, Any]]) -> tuple[torch.Tensor, ...]:
    return tuple(processed(items).values())


def record(folder: Path, model: nn.Module, collate: Any) -> Trajectory:
    loader = DataLoader(pictures(), batch_size=8, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
    fit(model, train_dataloader=loader, callbacks=[TGDDCallback(str(folder))], max_duration="2ep")
    return Trajectory.open(folder)


def all_the_way(folder: Path, trajectory: Trajectory, given: Any, build: Any) -> None:
    """Distills with and without the data, and trains on the outcome."""
    pool = patterned(per_class=8)
    for name, real in (("sampled", pictures()), ("recorded", None)):
        path = distill(trajectory, real, folder / f"{name}.beton", SETTINGS, network=given, **QUIET)
        rows = retrain(path, pool, TRAINING, network=build, **QUIET)
        assert 0 <= rows[0].accuracies[0] <= 1


@pytest.mark.parametrize("build", [Model, Vision], ids=["ComposerModel", "network"])
def test_hugging_face_style(tmp_path: Path, build: Any) -> None:
    trajectory = record(tmp_path / "t", Model(), processed)
    noted = manifest(tmp_path / "t" / "run")
    assert (noted["head"], noted["num_classes"], noted["input"]["shape"]) == ("model.classifier", CLASSES, [3, 8, 8])
    assert (noted["mean"], noted["exemplars"] is None) == ([0.0] * 3, False)
    all_the_way(tmp_path, trajectory, build(), build)


def test_a_tuple_as_the_answer(tmp_path: Path) -> None:
    class First(ComposerClassifier):
        def forward(self, batch: Any) -> torch.Tensor:
            return self.module(batch[0])[0]

    def build() -> nn.Module:
        return First(Vision(tuple), num_classes=CLASSES)

    trajectory = record(tmp_path / "t", build(), as_pairs)
    all_the_way(tmp_path, trajectory, build, lambda: Vision(tuple))


def vision_transformer() -> nn.Module:
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    return VisionTransformer(image_size=8, patch_size=4, num_classes=CLASSES, **sizes)


def test_vision_transformer_of_torchvision(tmp_path: Path) -> None:
    trajectory = record(tmp_path / "t", ComposerClassifier(vision_transformer(), CLASSES), as_pairs)
    assert trajectory.run.head == "heads.head"
    all_the_way(tmp_path, trajectory, vision_transformer, lambda: ComposerClassifier(vision_transformer(), CLASSES))


def test_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")

    def build() -> nn.Module:
        sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
        return timm.models.vision_transformer.VisionTransformer(num_classes=CLASSES, **sizes)

    trajectory = record(tmp_path / "t", ComposerClassifier(build(), CLASSES), as_pairs)
    assert trajectory.run.head == "head"
    all_the_way(tmp_path, trajectory, build, build)


def test_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from composer.models import HuggingFaceModel

    def build() -> nn.Module:
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=CLASSES, **sizes)
        return transformers.ViTForImageClassification(config)

    model = HuggingFaceModel(build(), metrics=[], use_logits=True)
    trajectory = record(tmp_path / "t", model, processed)
    assert (trajectory.run.head, trajectory.run.num_classes) == ("model.classifier", CLASSES)
    all_the_way(tmp_path, trajectory, model, build)
    assert distill(trajectory, None, tmp_path / "bare.beton", SETTINGS, network=build, **QUIET).is_file()


def test_composer_models_in_a_search(tmp_path: Path) -> None:
    trajectory = record(tmp_path / "t", Model(), processed)
    path = distill(trajectory, None, tmp_path / "a.beton", SETTINGS, network=Model, **QUIET)
    networks = {"classifier": lambda: ComposerClassifier(vision_transformer(), CLASSES), "model": Model}
    found = rank_networks(networks, path, patterned(), TRAINING, **QUIET)
    assert [candidate.problem for candidate in found] == ["", ""] and all(candidate.latency for candidate in found)


def test_the_names_of_weights_and_the_function_stay() -> None:
    model = Model()
    names, images = list(model.state_dict()), torch.rand(4, 3, 8, 8)
    wanted = model.model(images).logits
    assert torch.equal(as_classifier(model)(images), wanted)
    assert list(model.state_dict()) == names
    assert as_classifier(model) is model  # done already
    assert torch.equal(as_classifier(model.model)(images), wanted)


@pytest.mark.parametrize("answer", [None, "x", (), [], {"loss": torch.zeros(1)}, (1, torch.zeros(1))])
def test_what_has_no_logits_is_left_as_it_came(answer: Any) -> None:
    assert logits_of(answer) is answer


class LanguageModel(ComposerModel):
    """Every token of a text gets a score for each of the vocabulary."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding, self.lm_head = nn.Embedding(11, 4), nn.Linear(4, 11, bias=False)
        if tied:
            self.lm_head.weight = self.embedding.weight

    def forward(self, batch: Any) -> torch.Tensor:
        return self.lm_head(self.embedding(batch["input_ids"]))

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), batch["labels"].flatten())


@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model_is_refused_in_one_warning_and_trained(tmp_path: Path, tied: bool) -> None:
    texts = [{"input_ids": torch.arange(5), "labels": torch.arange(5)}] * 8
    trainer = make_trainer(
        LanguageModel(tied),
        train_dataloader=DataLoader(texts, batch_size=4),  # type: ignore[arg-type]
        callbacks=[TGDDCallback(str(tmp_path / "t"))],
        save_folder=str(tmp_path / "checkpoints"),
        max_duration="2ep",
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer.fit()
        trainer.close()
    ours = [str(each.message) for each in told if "recorded" in str(each.message)]
    assert len(ours) == 1 and "'lm_head' has 11 outputs, one for each token of" in ours[0]
    assert trainer.state.timestamp.batch == 4 and not (tmp_path / "t").exists()
