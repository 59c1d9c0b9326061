"""Real annotations as they are published, read into arrays."""
