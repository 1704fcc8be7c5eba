"""The steps of a job: what each does and reads. Without heavy imports, for the help is to answer at once."""

from __future__ import annotations

from typing import NamedTuple

BETON, TRAJECTORY = "a .beton", "a trajectory folder"


class Step(NamedTuple):
    """A step of a job, which is a subcommand of ``tgdd``."""

    text: str
    """What it does, in words."""
    sections: tuple[str, ...]
    """The sections of a recipe that it reads."""
    instead: str = ""
    """What it takes in place of a recipe, in words; empty if nothing."""


STEPS = {
    "run": Step(
        "record, distill and retrain, and write a report",
        ("data", "network", "extra_networks", "record", "distill", "retrain", "loggers"),
    ),
    "record": Step(
        "train networks and record their trajectories",
        ("data", "network", "extra_networks", "record", "loggers"),
    ),
    "distill": Step(
        "distill a trajectory into a .beton",
        ("data", "network", "extra_networks", "distill", "loggers"),
        TRAJECTORY,
    ),
    "retrain": Step(
        "train networks on a .beton and score them beside random and full data",
        ("data", "network", "retrain", "loggers"),
        BETON,
    ),
    "evaluate": Step(
        "score a .beton beside herding, plain distribution matching and more, and on other networks",
        ("data", "network", "extra_networks", "evaluate", "retrain", "loggers"),
        BETON,
    ),
    "replay": Step(
        "learn the classes task by task, with distilled images of the earlier ones as memory",
        ("data", "network", "record", "distill", "replay", "loggers"),
    ),
    "nas": Step(
        "search a space of networks, each trained on a .beton in place of the full data",
        ("data", "nas", "retrain"),
        BETON,
    ),
}
"""The steps by the names of their subcommands."""
