"""A table of a paper is data, and one command runs it: ``python -m medcoarse.experiments TABLE``."""
