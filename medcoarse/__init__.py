"""Dense medical-image segmentation learned from rough drawings."""

from importlib.metadata import version

__version__ = version("medcoarse")
