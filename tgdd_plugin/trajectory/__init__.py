"""A recorded training run on disk: its manifest and its stages."""

from tgdd_plugin.old_names import forward

__getattr__ = forward("trajectory")
