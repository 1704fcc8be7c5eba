"""Real images as uint8 tensors: pools, conversion, normalisation, loaders and coresets."""

from tgdd_plugin.old_names import forward

__getattr__ = forward("data")
