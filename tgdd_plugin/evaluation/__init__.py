"""What a compact set is worth, beside all it must beat."""
