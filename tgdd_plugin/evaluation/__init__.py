"""What a compact set is worth, beside all it must beat."""

from tgdd_plugin.old_names import forward

__getattr__ = forward("evaluation")
