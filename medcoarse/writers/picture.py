"""PNG of a label map: the indices of a palette, so that viewers show colours and readers get labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from medcoarse.files import write_atomically
from medcoarse.writers.segmentation import Segmentation, WriteError, labels_only


def write_png(path: Path, segmentation: Segmentation) -> None:
    """Write a label map of two axes (x, y); 255, nothing known, is grey.

    Raises:
        WriteError: volumes, and probabilities.

    Example:
        >>> import tempfile
        >>> from medcoarse.writers.segmentation import make_segmentation
        >>> file = Path(tempfile.mkdtemp()) / "a.png"
        >>> write_png(file, make_segmentation(np.array([[0, 1, 1]]), None, ["background", "vessel"]))
        >>> np.asarray(Image.open(file)).tolist()
        [[0], [1], [1]]
    """
    values = labels_only(segmentation, "PNG")
    if values.ndim != 2 or values.dtype != np.uint8:
        raise WriteError(f"PNG holds pictures of at most 255 classes, got {values.shape}; write .nii.gz or .nrrd")
    palette = np.full((256, 3), 128, np.uint8)
    palette[0] = 0
    for segment in segmentation.segments:
        palette[segment.number] = segment.colour
    picture = Image.fromarray(np.ascontiguousarray(values.T))
    picture.putpalette(palette.tobytes())
    write_atomically(path, lambda file: picture.save(file, "PNG", optimize=False))
