"""A job as one YAML file: what to record, distill and retrain. Every default lives in the settings' own dataclass."""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.settings import DataSettings
from tgdd_plugin.distillation.settings import DistillSettings
from tgdd_plugin.evaluation.settings import EvaluateSettings, RetrainSettings
from tgdd_plugin.nas.settings import NasSettings
from tgdd_plugin.networks.factory import find_factory
from tgdd_plugin.networks.settings import NetworkSettings
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.replay.settings import ReplaySettings


@dataclass(frozen=True)
class Recipe:
    """A job.

    Args:
        output: Folder for all that the job writes. Default: ``'outputs'``.
        seed: The first seed of recording and retraining. Default: ``0``.
        device: ``'cpu'`` or ``'gpu'``. Default: a GPU if there is one.
        trajectory: The trajectory folder. Default: ``<output>/trajectory``.
        file: The ``.beton``. Default: ``<output>/<data>-ipc<n>.beton``.
        head: Name of the network's linear head. Default: the one recorded; for recording, the last with K outputs.
        also_record: Further networks, each a section as ``network`` is: ``record.runs`` of each are trained as well,
            and the set is distilled under all of them. Default: none.
        data, network, record, distill, retrain, evaluate, replay, nas: The settings of each part; an evaluation and a
            search train as ``retrain`` says, a replay's tasks as ``record`` says.
    """

    output: str = "outputs"
    seed: int = 0
    device: str | None = None
    trajectory: str | None = None
    file: str | None = None
    head: str | None = None
    data: DataSettings = field(default_factory=DataSettings)
    network: NetworkSettings | None = None
    also_record: list[NetworkSettings] = field(default_factory=list)
    record: RecordSettings = field(default_factory=RecordSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    retrain: RetrainSettings = field(default_factory=RetrainSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    nas: NasSettings = field(default_factory=NasSettings)

    def __post_init__(self) -> None:
        if self.device not in (None, "cpu", "gpu"):
            raise InputError(f"device is '{self.device}'; wanted cpu or gpu")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; wanted 0 or more")

    @property
    def trajectory_folder(self) -> Path:
        return Path(self.trajectory) if self.trajectory else Path(self.output) / "trajectory"

    @property
    def beton(self) -> Path:
        name = self.data.name.rpartition(":")[2]
        return Path(self.file) if self.file else Path(self.output) / f"{name}-ipc{self.distill.images_per_class}.beton"


def read_recipe(path: str | Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies overrides.

    Args:
        path: The YAML file; ``None`` for all defaults.
        overrides: ``key=value`` or ``section.key=value``, the value in YAML.

    Raises:
        InputError: For a file that is none, an unknown key (with the nearest known one), or a value of the wrong type.
    """
    content: Any = {}
    if path is not None:
        try:
            content = yaml.safe_load(Path(path).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"recipe '{path}' cannot be read: {getattr(error, 'strerror', None) or error}") from error
        except yaml.YAMLError as error:
            raise InputError(f"recipe '{path}' is no YAML: {' '.join(str(error).split())}") from error
        content = {} if content is None else content
    if not isinstance(content, dict):
        raise InputError(f"recipe '{path}' holds a {type(content).__name__}; wanted keys and values")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise InputError(f"'{override}' is no override; wanted key=value or section.key=value")
        _place(content, key.split("."), value, override)
    return _build(Recipe, content, "")


def recipe_text(recipe: Recipe) -> str:
    """The recipe in full as YAML text, as a note beside results."""
    content = asdict(recipe)
    if recipe.network is not None:
        content["network"] = recipe.network.section()
    content["also_record"] = [network.section() for network in recipe.also_record]
    return yaml.safe_dump(content, sort_keys=False)


def _place(content: dict[str, Any], keys: list[str], value: str, override: str) -> None:
    for key in keys[:-1]:
        if content.get(key) is None:  # absent, or a section with nothing in it
            content[key] = {}
        content = content[key]
        if not isinstance(content, dict):
            raise InputError(f"'{override}' names a key below '{key}', which is a value")
    try:
        content[keys[-1]] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"the value of '{override}' is no YAML: {' '.join(str(error).split())}") from error


def _build(cls: type, content: Any, where: str) -> Any:
    """A settings dataclass from a mapping; ``where`` is the section's name with a dot, for messages."""
    if not isinstance(content, dict):
        raise InputError(f"'{where[:-1]}' is {content!r}; wanted a section of keys and values")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in fields(cls)]
    if cls is NetworkSettings:
        return _network(content, where)
    values = {}
    for key, value in content.items():
        _check_known(key, names, where)
        section = next((t for t in (hints[key], *typing.get_args(hints[key])) if is_dataclass(t)), None)
        if section is not None and typing.get_origin(hints[key]) is list:
            if not isinstance(value, list | None):
                raise InputError(f"'{where}{key}' is {value!r}; wanted a list of sections of keys and values")
            values[key] = [_build(section, each, f"{where}{key}[{i}].") for i, each in enumerate(value or [])]  # type: ignore[arg-type]
        elif section is not None:
            if value is not None:  # a section with nothing in it has its defaults
                values[key] = _build(section, value, f"{where}{key}.")  # type: ignore[arg-type]
        else:
            values[key] = _typed(value, hints[key], where + key)
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{where}{error}") from None


def _network(content: dict[str, Any], where: str) -> NetworkSettings:
    arguments = dict(content)
    name = _typed(arguments.pop("name", NetworkSettings.name), str, f"{where}name")
    parameters = inspect.signature(find_factory(name)).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in arguments:
            _check_known(key, [*parameters, "name"], where)
    return NetworkSettings(name, arguments)


def _check_known(key: Any, names: list[str], where: str) -> None:
    if key not in names:
        near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)
        raise InputError(f"unknown key '{where}{key}'; did you mean '{where}{near[0]}'? Known: {', '.join(names)}")


def _typed(value: Any, hint: Any, where: str) -> Any:
    wanted = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None and type(None) in wanted:
        return None
    # YAML 1.1 takes 1e-3 for text; int and float are otherwise kept apart from text and from yes/no.
    if float in wanted and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    for kind in wanted:
        if typing.get_origin(kind) is list and isinstance(value, list):
            return [_typed(item, typing.get_args(kind)[0], f"{where}[{i}]") for i, item in enumerate(value)]
        if (
            typing.get_origin(kind) is None
            and isinstance(value, kind)
            and (kind is bool or not isinstance(value, bool))
        ):
            return value
    names = " or ".join("nothing" if kind is type(None) else _name(kind) for kind in wanted)
    raise InputError(f"'{where}' is {value!r} ({type(value).__name__}); wanted {names}")


def _name(kind: Any) -> str:
    return f"a list of {typing.get_args(kind)[0].__name__}" if typing.get_origin(kind) is list else kind.__name__
