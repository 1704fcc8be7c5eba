"""Recording a training run into a trajectory folder."""
