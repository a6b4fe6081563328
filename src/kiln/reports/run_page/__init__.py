"""The page about a run: one file, no network."""
