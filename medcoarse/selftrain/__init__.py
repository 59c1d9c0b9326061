"""Coarse-to-fine self-training: mixing, boundaries, pseudo labels in rounds, and what to annotate next."""
