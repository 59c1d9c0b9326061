"""Segmentations written for the programs that imaging people use; one format is one file."""
