"""TGDD: from a trajectory to synthetic images."""
