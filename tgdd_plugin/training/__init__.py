"""Training networks with a Composer Trainer, one at a time or several at once."""

from tgdd_plugin.old_names import forward

__getattr__ = forward("training")
