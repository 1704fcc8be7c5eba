"""Architecture search on a compact set."""
