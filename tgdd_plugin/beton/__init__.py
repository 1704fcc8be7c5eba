"""The compact data set as a file: FFCV's ``.beton`` and the card beside it."""

from tgdd_plugin.old_names import forward

__getattr__ = forward("beton")
