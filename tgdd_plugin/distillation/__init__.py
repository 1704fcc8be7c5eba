"""TGDD: from a trajectory to synthetic images."""

from tgdd_plugin.old_names import forward

__getattr__ = forward("distillation")
