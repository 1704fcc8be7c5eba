"""Images of three shades, which candidates are trained and judged on, and a small search that does so."""

from collections import Counter

import optuna
import torch
from torch import nn

from tests.common import TinyNetwork
from tgdd_plugin.beton.card import Card
from tgdd_plugin.beton.format import write_beton
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.evaluation.settings import RetrainSettings
from tgdd_plugin.nas import optuna_search, study_storage, trial_queue
from tgdd_plugin.nas.settings import NasSettings

K = 3
SPACE = {"channels": [1], "norm": [False, True], "dropout": [0.0, 0.25, 0.5]}
SETTINGS = {"factory": "tests.common:TinyNetwork", "choices": SPACE, "validation": 0.3}
TRAINING = RetrainSettings(protocol="paper", epochs=3, batch_size=4, learning_rate=0.1, seeds=2)
RECIPE = """
output: {output}
file: {file}
device: cpu
data: {{name: "tests.nas.shades:data"}}
retrain: {{epochs: 2, full_epochs: 2, seeds: 1}}
nas:
  factory: tests.common:TinyNetwork
  choices: {{channels: [1], norm: [false, true]}}
  validation: 0.3
"""


def build(width):
    """A factory that a user corrects: what it builds follows from :data:`CORRECT`."""
    return TinyNetwork() if CORRECT else nn.Linear(width, width)


CORRECT = []


def pool(count, seed):
    """Class 0 is dark, 1 is grey, 2 is bright, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % K
    noise = torch.randint(0, 80, (count, 1, 8, 8), generator=generator)
    return ImagePool((noise + 80 * labels[:, None, None, None]).to(torch.uint8), labels, ["dark", "grey", "bright"])


def write_few(folder):
    """Writes a set of one image of each shade, and returns its path."""
    few = pool(12, 1)
    mean, std = few.statistics()
    card = Card(few.classes, 0, 4, [1, 8, 8], mean, std, 1, method={"name": "none"}, network={}, real={}, trajectory={})
    write_beton(folder / "few.beton", few.images, few.labels, card)
    return folder / "few.beton"


REAL = pool(60, 7)


def search(file, folder, training=TRAINING, **settings):
    """Ranks the networks of :data:`SETTINGS` on a set, in a study in ``folder``."""
    place = folder / "nas.db"
    return optuna_search.search(
        file, REAL, NasSettings(**{**SETTINGS, **settings}), training, storage=place, device="cpu", progress_bar=False
    )


def accuracies(found):
    """The accuracies of each candidate."""
    return {each.name: each.accuracies for each in found}


def states(folder, name="nas", file="nas.db"):
    """How many trials there are of each state, of those that tell what came of them or are not over yet."""
    with study_storage.quiet():
        found = optuna.load_study(study_name=name, storage=study_storage.open_storage(str(folder / file)))
    return Counter(trial.state.name for trial in found.get_trials(deepcopy=False) if trial_queue.is_claimed(trial))


def data():
    """The data of :data:`RECIPE`: training and test images."""
    return [
        [(pixels, int(label)) for pixels, label in zip(p.images, p.labels, strict=True)] for p in (REAL, pool(30, 9))
    ]
