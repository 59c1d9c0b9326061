"""One label map out of those of several annotators. One method is one file."""
