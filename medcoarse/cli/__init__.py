"""The command line: from folders of images and drawings to segmentations, one command is one file."""
