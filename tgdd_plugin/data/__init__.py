"""Real images as uint8 tensors: pools, conversion, normalisation, loaders and coresets."""
