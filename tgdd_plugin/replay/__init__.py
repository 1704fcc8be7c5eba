"""Continual learning: a memory of earlier tasks, and its replay."""

from tgdd_plugin.old_names import forward

__getattr__ = forward("replay")
