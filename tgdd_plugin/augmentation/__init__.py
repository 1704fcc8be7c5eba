"""Differentiable siamese augmentation (DSA), as functions and as Composer algorithms."""
