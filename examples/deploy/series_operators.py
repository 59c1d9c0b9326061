"""Operators that read and write CT and MR series as the bundle does, where the SDK's do not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.deploy.core import Fragment, Image, Operator, OperatorSpec
from operators import EachOperator
from series import read_series

from medcoarse.writers.dicom_seg import algorithm_of, write_dicom_seg
from medcoarse.writers.segmentation import make_segmentation


class SeriesOperator(EachOperator):
    """Emit the volumes of series, as the bundle's own loader gives them.

    (The SDK's DICOMSeriesToVolumeOperator exchanges the two distances between pixels, and looks at how the images are
    to be shown, while the network was trained on what is stored.)

    The items are pairs of a UID and files.
    """

    def read(self, number: int, item: tuple[str, list[Path]]) -> Image:
        """Read a series."""
        return Image(*read_series(*item))


class SeriesSegmentationOperator(Operator):
    """Write label maps as `UID_seg.dcm`, DICOM segmentations that refer to the series with that UID.

    (The SDK's DICOMSegmentationWriterOperator takes one series; this one checks that labels lie on the slices.)

    Args:
        folder: where they go; it exists.
        series: the files of each series.
        metadata: of the bundle.
        weights: a checksum of the model.
    """

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        folder: Path,
        series: Mapping[str, list[Path]],
        metadata: dict[str, Any],
        weights: str,
        **kwargs: Any,
    ) -> None:
        self._folder, self._series = folder, series
        self._algorithm = algorithm_of(metadata, weights)
        named = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        self._class_names = [str(named[key]) for key in sorted(named, key=int)]
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Say what comes in."""
        spec.input("pred")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Write one segmentation."""
        image = op_input.receive("pred")
        uid, affine = (image.metadata()[key] for key in ("filename_or_obj", "original_affine"))
        labels = image.asnumpy()
        values = labels.T if labels.ndim == 3 else labels  # the inference operator turns volumes only
        segmentation = make_segmentation(np.ascontiguousarray(values), np.asarray(affine), self._class_names)
        write_dicom_seg(self._folder / f"{uid}_seg.dcm", segmentation, self._series[uid], self._algorithm)
