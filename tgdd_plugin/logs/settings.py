"""Where trainings and distillations are logged: every setting and its default."""

from __future__ import annotations

import importlib.util

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.settings import Flag, NonNegativeInt, settings_class


@settings_class
class LoggerSettings:
    """Where recordings, distillations and retrainings are logged; none of it changes what they compute.

    Raises:
        InputError: For an unknown key, or a value of the wrong type or out of range.
    """

    csv: Flag = True
    """Write losses, learning rates and more to <name>-log.csv beside what is made."""
    tensorboard: str | None = None
    """Folder for TensorBoard's event files, such as outputs/tensorboard. null: none."""
    wandb: str | None = None
    """Project of Weights & Biases; its own environment variables, such as WANDB_MODE, hold. null: none."""
    mlflow: str | None = None
    """MLflow's tracking URI, such as sqlite:///mlflow.db; the experiment is named by MLFLOW_EXPERIMENT_NAME, or tgdd.
    null: none."""
    image_interval: NonNegativeInt = 1000
    """Steps of a distillation between pictures of the images beside those at the start, for loggers that take pictures;
    0 for none."""
    probe_interval: NonNegativeInt = 0
    """Steps of a distillation between probes: a network is trained for 2,000 image passes on the images as they are,
    and scored on up to 2,000 real training images, which takes seconds each time. 0 for none."""

    def check_installed(self) -> None:
        """Raises an InputError if a package is missing that one of the loggers needs."""
        for package in ("tensorboard", "wandb", "mlflow"):
            if getattr(self, package) is not None and importlib.util.find_spec(package) is None:
                raise InputError(
                    f"`loggers.{package}` must be null where the package {package} is not installed, got "
                    f"'{getattr(self, package)}'. Leave it out, or: pip install 'mosaicml[{package}]'"
                )

    def check_probe(self, source: str | None) -> None:
        """Raises an InputError if a distillation from this source has no real image to score a probe on."""
        if self.probe_interval and source == "recorded":
            raise InputError(
                f"`probe_interval` must be 0 where no real images are read (source 'recorded'), got "
                f"{self.probe_interval}. Leave it out, or distill from real images, on which probes are scored."
            )
