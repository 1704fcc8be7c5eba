"""Recording a training run into a trajectory folder."""

from tgdd_plugin.old_names import forward

__getattr__ = forward("recording")
