"""Recipes: every shipped one loads, every value lands where it belongs, and a slip of the pen is one clear line."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import yaml
from torchvision.datasets import ImageFolder

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.settings import validate
from tgdd_plugin.data.settings import DataSettings
from tgdd_plugin.networks import convnet
from tgdd_plugin.networks.factory import network_factory
from tgdd_plugin.networks.settings import NetworkSettings
from tgdd_plugin.pipeline.recipe import read_recipe, recipe_text
from tgdd_plugin.pipeline.settings import Recipe

convnet_defaults = {p.name: p.default for p in inspect.signature(convnet).parameters.values()}
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def write(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def refused(folder, text, *overrides):
    with pytest.raises(InputError) as caught:
        read_recipe(write(folder, text), overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_says_what_it_holds(path):
    recipe = read_recipe(path)
    content = yaml.safe_load(path.read_text())
    full = yaml.safe_load(recipe_text(recipe))

    def within(part, whole):
        for key, value in part.items():
            if isinstance(value, dict):
                within(value, whole[key])
            else:
                assert whole[key] == (float(value) if isinstance(whole[key], float) else value), key

    within(content, full)
    assert not any(isinstance(value, str) and value.startswith("/") for value in full.values())  # of no machine


def test_own_data_names_every_key_with_its_default():
    content = yaml.safe_load((Path(__file__).parents[2] / "recipes" / "own_data.yaml").read_text())
    defaults = dataclasses.asdict(Recipe())
    del content["network"]["name"], defaults["network"]
    assert content.pop("network") == {
        "depth": 4,  # for the example's 64 pixels
        **{name: convnet_defaults[name] for name in ("width", "norm", "activation", "pooling")},
    }
    chosen = {"output": "outputs/own"}, {"name": "image_folder", "root": "data/own", "image_size": 64}
    assert content == {**defaults, **chosen[0], "data": {**defaults["data"], **chosen[1]}}


def test_there_are_recipes():
    assert "digits" in [path.stem for path in RECIPES]


def test_a_full_recipe_is_read_back_the_same(tmp_path):
    text = """
        output: somewhere
        seed: 3
        device: cpu
        data: {name: image_folder, root: pictures, image_size: 64, grayscale: true, holdout: 0.1}
        network: {name: convnet, width: 64, depth: 4}
        record: {epochs: 7, runs: 2, interval: 50ba, max_stages: 9, dtype: float16}
        distill: {images_per_class: 50, learning_rate: 1e-3, alpha: 0.5, ema: 100ba}
        retrain: {epochs: 300, cutmix: 0, seeds: 5}
    """
    recipe = read_recipe(write(tmp_path, text))
    assert recipe.data == DataSettings("image_folder", "pictures", image_size=64, grayscale=True, holdout=0.1)
    assert recipe.network == NetworkSettings("convnet", {"width": 64, "depth": 4})
    assert (recipe.record.epochs, recipe.record.runs, recipe.record.dtype) == (7, 2, "float16")
    assert recipe.distill.learning_rate == 0.001 and isinstance(recipe.distill.learning_rate, float)
    assert recipe.retrain.cutmix == 0 and isinstance(recipe.retrain.cutmix, float)
    assert read_recipe(write(tmp_path, recipe_text(recipe))) == recipe
    assert recipe.trajectory_folder == Path("somewhere/trajectory")
    assert recipe.beton == Path("somewhere/image_folder-ipc50.beton")


def test_a_list_of_numbers():
    assert read_recipe(None, ["data.mean=[0, 0.5]", "data.std=[1, 2e-1]"]).data.std == [1.0, 0.2]
    with pytest.raises(InputError, match="`data.mean` must be a list of finite numbers, or null, got 0.5"):
        read_recipe(None, ["data.mean=0.5"])
    with pytest.raises(InputError, match=r"`data.mean\[1\]` must be a finite number, got 'x'"):
        read_recipe(None, ["data.mean=[0, x]"])
    for mean, std, message in (
        ("[0, 0]", "[1]", "must be equally many finite values"),
        ("[0]", "[0]", "with each std above 0"),
        ("[]", "[]", "must be equally many"),
        ("[0]", "null", r"must be given together, got mean \[0.0\] and std None"),
        ("[125]", "[60]", r"must be for pixels in \[0, 1\]"),
    ):
        with pytest.raises(InputError, match=f"^`data.mean` and `std` .*{message}"):
            read_recipe(None, [f"data.mean={mean}", f"data.std={std}"])


def test_defaults_are_the_dataclasses_own(tmp_path):
    for text in ("", "# nothing\n", "{}", "data:\ndistill:\nnetwork:\n", "distill: {}"):
        assert read_recipe(write(tmp_path, text)) == Recipe() == read_recipe(None)
    own = read_recipe(None, ["data.name=my.module:my_sets", "file=x.beton", "trajectory=t"])
    assert own.beton == Path("x.beton") and own.trajectory_folder == Path("t")
    assert read_recipe(None, ["data.name=my.module:my_sets"]).beton == Path("outputs/my_sets-ipc10.beton")


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=4", "seed", 4),
        ("distill.steps=20", "distill.steps", 20),
        ("distill.steps=10_000", "distill.steps", 10_000),
        ("distill.classes=[0, 1]", "distill.classes", ["0", "1"]),  # a shell takes the quotes off
        ("distill.classes=['a']", "distill.classes", ["a"]),
        ("distill.learning_rate=1e-3", "distill.learning_rate", 0.001),
        ("distill.learning_rate=2", "distill.learning_rate", 2.0),
        ("distill.learning_rate=", "distill.learning_rate", None),
        ("data.name=cifar10", "data.name", "cifar10"),
        ("output=a=b", "output", "a=b"),
        ("output='7'", "output", "7"),
        ("device=null", "device", None),
        ("network.width=16", "network.arguments", {"width": 16}),
    ],
)
def test_overrides_are_yaml_values_in_their_places(tmp_path, override, path, value):
    texts = ("", "distill:\nnetwork:\n", "distill: {steps: 5}\nseed: 1\n")
    for text in texts:
        found = read_recipe(write(tmp_path, text), [override])
        for name in path.split("."):
            found = getattr(found, name)
        assert found == value and type(found) is type(value)


def test_later_overrides_win_and_others_stay(tmp_path):
    recipe = read_recipe(write(tmp_path, "distill: {steps: 5, factor: 1}"), ["distill.steps=6", "distill.steps=7"])
    assert (recipe.distill.steps, recipe.distill.factor) == (7, 1)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("sead: 1", "`sead`. Did you mean `seed`?"),
        ("steps: 1", "`steps`. Did you mean `distill.steps`?"),
        ("full_epochs: 1", "`full_epochs`. Did you mean `retrain.full_epochs`?"),
        ("epochs: 1", "`epochs`. Did you mean `record.epochs` or `retrain.epochs`?"),
        ("name: x", "`name`. Did you mean `data.name` or `network.name`?"),
        ("distil: {steps: 1}", "`distil`. Did you mean `distill`?"),
        ("distill: {step: 1}", "`distill.step`. Did you mean `distill.steps`?"),
        ("distill: {image_per_class: 1}", "Did you mean `distill.images_per_class`?"),
        ("record: {epoch: 1}", "`record.epoch`. Did you mean `record.epochs`?"),
        ("retrain: {full_epoch: 1}", "Did you mean `retrain.full_epochs`?"),
        ("data: {gray: true}", "`data.gray`. Did you mean `data.grayscale`?"),
        ("network: {widht: 3}", "`network.widht`. Did you mean `network.width`?"),
        ("network: {num_clases: 3}", "The keys are depth, width, norm, activation, pooling, name."),
        ("network: {name: resnet18, depth: 3}", "Unknown key `network.depth`"),
        ("7: 1", "Unknown key `7`. Did you mean"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path, text, near):
    message = refused(tmp_path, text)
    assert near in message and "The keys are " in message


def test_a_network_of_ones_own_in_place_of_the_recipes(tmp_path, monkeypatch):
    """The whole section, as the message says, takes the place of keys that the function does not take."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_net_of_recipe.py").write_text("def build(): ...\ndef wide(num_classes, width, low=1): ...")
    name, section = "own_net_of_recipe:build", "network: {name: convnet, depth: 3, width: 8}"
    message = refused(tmp_path, section, f"network.name={name}")
    assert message.startswith(f"`network.depth` must be an argument of '{name}', which takes none, got 3. Leave it out")
    override = re.search("'(network=.*)'", message)[1]
    assert read_recipe(write(tmp_path, section), [override]).network == NetworkSettings(name=name)
    whole = ["network={name: own_net_of_recipe:wide, width: 32}"]
    assert read_recipe(write(tmp_path, section), whole).network.section() == {"name": whole[0][15:-12], "width": 32}
    message = refused(tmp_path, "extra_networks: [{name: own_net_of_recipe:wide, depth: x}]")
    assert message == (
        "`extra_networks[0].depth` must be an argument of 'own_net_of_recipe:wide', which takes width, low, got 'x'. "
        "Leave it out of the recipe."
    )


def test_every_key_of_the_settings_is_known(tmp_path):
    recipe = Recipe()
    for section in ("data", "record", "distill", "retrain"):
        for f in dataclasses.fields(getattr(recipe, section)):
            value = getattr(getattr(recipe, section), f.name)
            assert read_recipe(write(tmp_path, yaml.safe_dump({section: {f.name: value}}))) == recipe


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("distill: {steps: many}", "`distill.steps` must be a whole number of at least 1, or null, got 'many'"),
        ("distill: {steps: 1.5}", "`distill.steps` must be a whole number of at least 1, or null, got 1.5"),
        ("distill: {steps: yes}", "`distill.steps` must be a whole number of at least 1, or null, got True"),
        ("distill: {max_gap: }", "`distill.max_gap` must be a whole number of at least 1, got None"),
        ("distill: {steps: [1]}", "`distill.steps` must be a whole number of at least 1, or null, got [1]"),
        (
            "distill: {learning_rate: fast}",
            "`distill.learning_rate` must be a finite number of at least 0, or auto, or null, got 'fast'",
        ),
        (
            "distill: {learning_rate: yes}",
            "`distill.learning_rate` must be a finite number of at least 0, or auto, or null, got True",
        ),
        ("distill: {augmentation: no}", "`distill.augmentation` must be text, or null, got False"),
        ("data: {grayscale: 1}", "`data.grayscale` must be true or false, got 1"),
        ("data: {grayscale: 'yes'}", "`data.grayscale` must be true or false, got 'yes'"),
        ("data: {image_size: 32.0}", "`data.image_size` must be a whole number of at least 1, or null, got 32.0"),
        ("output: 7", "`output` must be text, got 7"),
        ("data: cifar10", "`data` must be a section of keys and values, got 'cifar10'"),
        ("network: convnet", "`network` must be a section of keys and values, or null, got 'convnet'"),
        ("network: {name: 3}", "`network.name` must be text, got 3"),
        ("- a\n- b", "must hold keys and values, got a list"),
        ("just words", "must hold keys and values, got a str"),
        ("0", "must hold keys and values, got a int"),
        ("a: [1, 2", "is not YAML"),
        ("a: 1\n\tb: 2", "found a tab character that violates indentation in line 2, column 1. Correct it there."),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(tmp_path, text, pattern):
    assert pattern in refused(tmp_path, text)


def test_whole_numbers_name_the_classes_of_folders_so_named(tmp_path):
    for name in ("0", "7", "10"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
    recipe = read_recipe(write(tmp_path, "distill: {classes: [0, 10, 7]}"), [])
    assert sorted(recipe.distill.classes) == ImageFolder(tmp_path).classes
    assert read_recipe(None, ["distill.classes=[0, 7]"]).distill.classes == ["0", "7"]
    again = read_recipe(write(tmp_path, recipe_text(recipe)))
    assert again.distill.classes == recipe.distill.classes


@pytest.mark.parametrize("name", ["yes", "No", "on", "off", "true", "null", "~", "1.5", "1.10", ".inf", "2024-01-01"])
def test_class_names_that_yaml_reads_as_something_else_need_quotes(tmp_path, name):
    line = refused(tmp_path, f"distill: {{classes: [cat, {name}]}}")
    assert line.startswith("`distill.classes[1]` must be text, got ")
    assert """Write it in quotes, as in "distill.classes=['yes', 'no']", since YAML""" in line
    assert line[line.index("`distill") :] == refused(tmp_path, "", f"distill.classes=[cat, {name}]")
    quoted = read_recipe(write(tmp_path, f"distill: {{classes: [cat, '{name}']}}"))
    assert quoted.distill.classes == ["cat", name]
    assert read_recipe(write(tmp_path, recipe_text(quoted))).distill.classes == ["cat", name]


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("device: tpu", "`device` must be one of cpu, gpu, or null, got 'tpu'"),
        ("seed: -1", "`seed` must be a whole number of at least 0 and of at most 4000000000, got -1"),
        ("distill: {factor: 0}", "`distill.factor` must be a whole number of at least 1, or null, got 0"),
        ("distill: {augmentation: colour}", "`distill.augmentation` must be operations of color, crop"),
        ("record: {epochs: 0}", "`record.epochs` must be a whole number of at least 1, got 0"),
        ("record: {runs: 0}", "`record.runs` must be a whole number of at least 1, got 0"),
        ("record: {interval: often}", "`record.interval` must be a Composer time string above zero, got 'often'"),
        ("record: {interval: infep}", "`record.interval` must be a Composer time string above zero, got 'infep'"),
        ("record: {interval: nanep}", "`record.interval` must be a Composer time string above zero, got 'nanep'"),
        ("record: {interval: 0ep}", "`record.interval` must be a Composer time string above zero, got '0ep'"),
        ("record: {max_stages: 1}", "`record.max_stages` must be a whole number of at least 2, or null, got 1"),
        ("record: {dtype: int8}", "`record.dtype` must be one of float32, float16, bfloat16, got 'int8'"),
        ("record: {learning_rate: -1}", "`record.learning_rate` must be a finite number of at least 0, got -1"),
        ("record: {momentum: .nan}", "`record.momentum` must be a finite number of at least 0, got nan"),
        ("retrain: {weight_decay: .inf}", "`retrain.weight_decay` must be a finite number of at least 0, got inf"),
        (
            "retrain: {cutmix: 2}",
            "`retrain.cutmix` must be a finite number of at least 0 and of at most 1, or null, got 2",
        ),
        ("retrain: {seeds: 0}", "`retrain.seeds` must be a whole number of at least 1, got 0"),
        ("data: {name: imagenet}", "`data.name` must be one of digits, cifar10"),
        (
            "network: {name: vgg}",
            "`network` must be one of convnet, resnet10, resnet18, resnet_ap10, densenet121, vit, or a factory",
        ),
        ("network: {name: 'no_such:net'}", "`network` must be a function that can be imported, got 'no_such:net'"),
        ("network: {name: 'sys:path'}", "`network` must be a function, got 'sys:path', a list"),
    ],
)
def test_a_value_out_of_range_names_its_section(tmp_path, text, pattern):
    assert pattern in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "pattern"),
    [
        ("distill.steps", "'distill.steps' is not an override. Write it as key=value"),
        ("distill.step=3", "Did you mean `distill.steps`?"),
        ("seed.x=3", "'seed.x=3' names a key below `seed`, which is a value"),
        ("distill.steps=[1", "The value of 'distill.steps=[1' is not YAML"),
        ("distill.steps=a: b: c", "is not YAML"),
        ("=3", "Unknown key ``"),
        ("data=cifar10", "`data` must be a section of keys and values, got 'cifar10'"),
    ],
)
def test_an_override_that_is_none_is_refused(tmp_path, override, pattern):
    assert pattern in refused(tmp_path, "seed: 1", override)


@pytest.mark.parametrize("override", ["x", "x=1", "seed.x=", "distill.steps=[", "distill.x=", "distill.start="])
def test_a_long_override_is_quoted_in_part(tmp_path, override):
    long = "x" * 100_000
    for text in (override + long, long + override):
        assert len(refused(tmp_path, "seed: 1", text)) < 1200  # the known keys are listed in full


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="Recipe '.*none.yaml' cannot be read: No such file"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="must be a regular file, got a folder"):
        read_recipe(tmp_path)
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(InputError, match="cannot be read|not YAML"):
        read_recipe(tmp_path / "picture.yaml")


def test_the_network_is_built_for_the_data(tmp_path):
    recipe = read_recipe(write(tmp_path, "network: {name: convnet, width: 4, depth: 2}"))
    network = network_factory(recipe.network, (1, 8, 8), 7)()
    assert network.tgdd_network["arguments"] == {
        **convnet(7, 1, 8, width=4, depth=2).tgdd_network["arguments"],
        "num_classes": 7,
    }
    with pytest.raises(InputError, match="^`network.width` must be a whole number of at least 1, got 'wide'"):
        network_factory(read_recipe(write(tmp_path, "network: {width: wide}")).network, (1, 8, 8), 7)()
    with pytest.raises(InputError, match=r"^`extra_networks\[1\].width` must be a whole number of at least 1, got -3"):
        network_factory(NetworkSettings(arguments={"width": -3}), (1, 8, 8), 7, "extra_networks[1]")()
    with pytest.raises(InputError, match="^`network.depth` must be at most 2 with image_size 4"):
        network_factory(NetworkSettings(), (1, 4, 4), 7)()
    with pytest.raises(InputError, match="^`image_size` must be at least 8"):  # no key of the section
        network_factory(NetworkSettings("resnet_ap10"), (1, 7, 7), 7)()


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    recipe = read_recipe(write(tmp_path, "{output: ~/out, trajectory: ~/t, file: ~/a.beton, data: {root: ~/photos}}"))
    assert [recipe.output, recipe.trajectory, recipe.file] == ["/home/me/out", "/home/me/t", "/home/me/a.beton"]
    assert recipe.data.root == "/home/me/photos" and read_recipe(None).data.root == "data"


def test_numbers_of_keys_without_a_type_are_numbers(tmp_path):
    text = "nas: {choices: {drop: [1e-1, 2E+1, x1e3]}}"
    assert read_recipe(write(tmp_path, text)).nas.choices == {"drop": [0.1, 20.0, "x1e3"]}
    network = validate(NetworkSettings, {"name": "m:f", "rate": "1e-3", "mode": "1e", "size": 3})
    assert network.arguments == {"rate": 0.001, "mode": "1e", "size": 3}


def test_no_password_is_in_what_is_kept_of_a_recipe(tmp_path):
    text = (
        "nas: {storage: 'postgresql://me:secret@host/db'}\n"
        "loggers: {mlflow: 'https://me:hidden@host:5000'}\ndata: {root: 'a@b:c'}"
    )
    kept = recipe_text(read_recipe(write(tmp_path, text)))
    assert "secret" not in kept and "hidden" not in kept and "postgresql://me:***@host/db" in kept
    assert "https://me:***@host:5000" in kept and "root: a@b:c" in kept


@pytest.mark.parametrize("seed", [2**32, 5_000_000_000])
def test_a_seed_beyond_what_composer_takes_is_refused(tmp_path, seed):
    with pytest.raises(InputError, match="`seed` must be .*4000000000"):
        read_recipe(write(tmp_path, f"seed: {seed}"))


def test_a_users_own_factory_has_its_own_arguments(tmp_path, monkeypatch):
    (tmp_path / "own_network_7.py").write_text(
        "from torch import nn\n"
        "def tiny(num_classes, hidden=3):\n    return nn.Linear(hidden, num_classes)\n"
        "def anything(**options):\n    network = nn.Identity()\n    network.given = options\n    return network\n"
        "def nothing():\n    return {}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    built = read_recipe(write(tmp_path, "network: {name: 'own_network_7:tiny', hidden: 5}")).network
    assert network_factory(built, (1, 8, 8), 2)().in_features == 5
    assert "Did you mean `network.hidden`?" in refused(tmp_path, "network: {name: 'own_network_7:tiny', hiden: 5}")
    free = read_recipe(write(tmp_path, "network: {name: 'own_network_7:anything', colour: red}")).network
    assert network_factory(free, (1, 8, 8), 2)().given == {"colour": "red", "num_classes": 2}
    none = read_recipe(write(tmp_path, "network: {name: 'own_network_7:nothing'}")).network
    with pytest.raises(InputError, match="`network` must be a network, or a function that builds one, got a dict"):
        network_factory(none, (1, 8, 8), 2)()
