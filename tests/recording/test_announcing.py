"""What TGDDCallback tells its user on standard error, in a Composer script like any other."""

import re

import pytest
from composer import Trainer
from composer.algorithms import CutOut
from torchvision.transforms import v2

from tests.common import Pictures, fit, make_trainer, tiny_network
from tgdd_plugin import InputError, TGDDCallback, distill
from tgdd_plugin.networks import convnet
from tgdd_plugin.recording.announcing import in_bytes


def said(capfd, callback, **options):
    fit(callbacks=[callback], **options)
    return [line for line in capfd.readouterr().err.splitlines() if "TGDDCallback" in line]


def test_it_says_what_it_will_take_and_how_to_go_on(tmp_path, capfd):
    folder = tmp_path / "my runs"
    first, last = said(capfd, TGDDCallback(str(folder)))
    size = (folder / "run" / "stage-ep0-ba0.safetensors").stat().st_size
    stages = sorted((folder / "run").glob("stage-*"))
    assert first == (
        f"TGDDCallback records into '{folder}/run': {len(stages)} stages of {in_bytes(size)} each, about "
        f"{in_bytes(len(stages) * size)} in all, and 100 images of each class"
    )
    whole = sum(path.stat().st_size for path in (folder / "run").iterdir())
    assert last == (
        f"TGDDCallback recorded 4 stages, {in_bytes(whole)}, in '{folder}/run'; next: tgdd distill '{folder}' "
        f"network.name=module:function, a function of yours that builds the network"
    )


def test_of_a_network_of_this_package_the_command_is_all(tmp_path, capfd):
    *_, last = said(capfd, TGDDCallback(str(tmp_path)), network=convnet(3, 1, 8, depth=1, width=4))
    assert last.endswith(f"; next: tgdd distill {tmp_path}")


@pytest.mark.parametrize(
    ("transform", "told"),
    [
        (
            v2.Compose([v2.RandomErasing(), v2.RandomRotation(10)]),
            "have cutout and rotate of the data set's transforms",
        ),
        (v2.RandomHorizontalFlip(), ""),
    ],
)
def test_what_stays_visible_in_the_kept_images_is_told(tmp_path, capfd, transform, told):
    fit(callbacks=[TGDDCallback(str(tmp_path), mean=[0.0], std=[1.0])], dataset=Pictures(transform=transform))
    found = [line for line in capfd.readouterr().err.splitlines() if "The images that it kept" in line]
    assert len(found) == bool(told) and all(told in line and "data.name=..." in line for line in found)
    fit(
        callbacks=[TGDDCallback(str(tmp_path / "other"), exemplars=0)],
        dataset=Pictures(transform=transform),
        algorithms=[CutOut(num_holes=1, length=2)],
    )
    assert "The images that it kept" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("callback", "options", "announced"),
    [
        ({"interval": "2ba"}, {"max_duration": "3ep"}, 7),
        ({"interval": "5ba"}, {"max_duration": "12ba"}, 4),
        ({"interval": "1ep"}, {"max_duration": "10ba"}, 4),
        ({"interval": "0.25dur"}, {}, 5),
        ({"max_stages": 3}, {"max_duration": "6ep"}, 3),
        ({"interval": lambda state, event: False}, {}, None),
    ],
)
def test_it_knows_how_many_stages_there_will_be(tmp_path, capfd, callback, options, announced):
    first, last = said(capfd, TGDDCallback(str(tmp_path), **callback), **options)
    number = re.search(r": (\d+) stages of", first)
    assert (number and int(number[1])) == announced
    if announced is not None:
        assert f"recorded {announced} stages" in last
    assert number or ": stages of" in first


def test_quiet_says_nothing_and_a_run_that_breaks_off_promises_nothing(tmp_path, capfd):
    assert said(capfd, TGDDCallback(str(tmp_path / "a"), quiet=True)) == []
    trainer: Trainer = make_trainer(tiny_network(), callbacks=[TGDDCallback(str(tmp_path / "b"))])
    trainer.close()
    assert "recorded" not in capfd.readouterr().err


@pytest.mark.parametrize(("channels", "exemplars"), [(2, 100), (4, 100), (4, 0)])
def test_images_that_no_beton_holds_are_told_once_and_refused_before_any_step(tmp_path, capfd, channels, exemplars):
    """Each of the two lines leaves out what does not hold of them."""
    normalization = {"mean": [0.5] * channels, "std": [0.25] * channels}
    callback = TGDDCallback(str(tmp_path / "t"), exemplars=exemplars, **normalization)
    dataset = Pictures(shape=(channels, 8, 8), transform=v2.Normalize(*normalization.values()))
    with pytest.warns(UserWarning) as told:
        first, last = said(capfd, callback, network=tiny_network(channels=channels), dataset=dataset)
    (warning,) = told
    assert str(warning.message).startswith(f"the inputs have {channels} channels: the run is recorded, but cannot be")
    assert "images of each class" not in first and "next:" not in last
    with pytest.raises(InputError, match=f"must be of images of 1 or 3 channels, .*, got run 'run' of {channels} chan"):
        distill(tmp_path / "t", None, tmp_path / "a.beton", network=tiny_network(channels=channels))
    assert not list(tmp_path.glob("a*"))


def test_a_disk_that_is_too_small_is_told_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 100})())
    with pytest.warns(UserWarning, match=r"will take about .*, and 100 bytes are free there; record less often"):
        fit(callbacks=[TGDDCallback(str(tmp_path), quiet=True)])
