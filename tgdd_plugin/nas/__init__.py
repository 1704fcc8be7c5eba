"""Architecture search on a compact set."""

from tgdd_plugin.old_names import forward

__getattr__ = forward("nas")
