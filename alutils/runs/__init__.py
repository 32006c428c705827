"""A run on disk: its folder, what it depends on, and many runs collected."""
