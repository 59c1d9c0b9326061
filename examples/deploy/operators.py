"""The operators that the SDK does not have: colour photographs in, pictures and segmentations of them out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from monai.deploy.core import ConditionType, Fragment, Image, Operator, OperatorSpec
from numpy.typing import NDArray
from photographs import PHOTOGRAPH_CLASSES, InputError, PhotographError, rgb_pixels, source_header
from PIL import Image as Picture
from pydicom import Dataset
from pydicom.sr.codedict import codes

PICTURES = (".png", ".jpg", ".jpeg", ".bmp")


def as_image(pixels: NDArray[np.uint8], name: str) -> Image:
    """A photograph (H, W, 3) as the bundle's own loader would give it: (W, H, 3), 32-bit float.

    The inference operator drops the loader of the bundle, and the network was trained on what that loader gives: width
    first. It also leaves arrays of two dimensions as they are, so that masks come back width first.
    """
    width_first = np.ascontiguousarray(pixels.transpose(1, 0, 2), dtype=np.float32)
    return Image(width_first, {"original_channel_dim": -1, "filename_or_obj": name})


class EachOperator(Operator):
    """Emit one image of a list after the other.

    Args:
        items: what `read` makes images of; the operator is to run once for each of them.

    Attributes:
        refused: one sentence for each that cannot be segmented; the others are.
    """

    def __init__(self, fragment: Fragment, *args: Any, items: Iterable[Any], **kwargs: Any) -> None:
        self._items = iter(enumerate(items, 1))
        self.refused: list[str] = []
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Say what goes out."""
        spec.output("image")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Read the next one; emit nothing where that fails."""
        try:
            op_output.emit(self.read(*next(self._items)), "image")
        except InputError as error:
            self.refused.append(str(error))

    def read(self, number: int, item: Any) -> Image:
        """The image of an item, which is the `number`th of the list."""
        raise NotImplementedError


class PictureOperator(EachOperator):
    """Emit the photographs of picture files. (The SDK reads DICOM and NIfTI, no PNG and no JPEG.)"""

    def read(self, number: int, item: Path) -> Image:
        """Decode a picture."""
        try:
            with Picture.open(item) as picture:
                pixels = np.asarray(picture.convert("RGB"))
        except OSError:  # its text would name the file, which may be called after a person
            raise PhotographError(f"picture {number}, in the order of names, is damaged or no picture") from None
        return as_image(pixels, item.stem)


class PhotographOperator(Operator):
    """Emit one photograph of the selected series after the other, and its header.

    (The SDK's DICOMSeriesToVolumeOperator stacks slices with one channel into a volume.)

    It runs until its condition `photographs_left` is disabled, because the number of photographs is known only when the
    series have been read.

    Attributes:
        refused: one sentence for each that cannot be segmented; the others are.
    """

    def __init__(self, fragment: Fragment, *args: Any, **kwargs: Any) -> None:
        self._left: list[Dataset] = []
        self.refused: list[str] = []
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Say what comes in and goes out."""
        spec.input("selected").condition(ConditionType.NONE)  # it comes once, and the operator runs more often
        spec.output("image")
        spec.output("header")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Take the series when they come, then read the next photograph."""
        selected = op_input.receive("selected")
        if selected is not None:
            self._left = [
                instance.get_native_sop_instance()
                for study in selected
                for one in study.selected_series
                for instance in one.series.get_sop_instances()
            ]
            if not self._left:
                classes = ", ".join(PHOTOGRAPH_CLASSES.values())
                raise PhotographError(f"no photograph in the input folder; it takes {classes}, {', '.join(PICTURES)}")
        if not self._left:
            return  # the series are still being read
        dataset = self._left.pop(0)
        try:
            image = as_image(rgb_pixels(dataset), str(dataset.SOPInstanceUID))
        except PhotographError as error:
            self.refused.append(str(error))
        else:
            op_output.emit(image, "image")
            op_output.emit(source_header(dataset), "header")
        if not self._left:
            self.conditions["photographs_left"].disable_tick()


class MaskOperator(Operator):
    """Write a mask as `NAME_vessel.png`, 255 where there is a vessel, and pass it on, height first.

    (The SDK's PNGConverterOperator writes the slices of a volume under running numbers.)

    Args:
        folder: where the pictures go; it exists.
    """

    def __init__(self, fragment: Fragment, *args: Any, folder: Path, **kwargs: Any) -> None:
        self._folder = folder
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Say what comes in and goes out."""
        spec.input("pred")
        spec.output("mask").condition(ConditionType.NONE)  # for pictures there is no one to take it

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Write one mask."""
        image = op_input.receive("pred")
        mask = np.ascontiguousarray(image.asnumpy().T)
        path = self._folder / f"{image.metadata()['filename_or_obj']}_vessel.png"
        unfinished = path.with_suffix(".part")
        Picture.fromarray(mask * np.uint8(255)).save(unfinished, "PNG")
        unfinished.replace(path)
        op_output.emit(mask, "mask")


class SegmentationOperator(Operator):
    """Write a mask as `UID_vessel.dcm`, a DICOM segmentation that refers to the photograph with that UID.

    (The SDK's DICOMSegmentationWriterOperator hands photographs to highdicom as they are, which fails for ophthalmic
    ones, see `source_header`, and takes all instances of a series for one image.)

    Args:
        folder: where the segmentations go; it exists.
        metadata: of the bundle.
        weights: a checksum of the model, which goes where the serial number of a device is asked for.
    """

    def __init__(
        self, fragment: Fragment, *args: Any, folder: Path, metadata: dict[str, Any], weights: str, **kwargs: Any
    ) -> None:
        self._folder, self._metadata, self._weights = folder, metadata, weights
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Say what comes in."""
        spec.input("mask")
        spec.input("header")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Write one segmentation."""
        mask, header = op_input.receive("mask"), op_input.receive("header")
        segmentation = hd.seg.Segmentation(
            source_images=[header],
            pixel_array=mask,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[vessels(self._metadata)],
            series_instance_uid=hd.UID(),
            series_number=1 + int(header.get("SeriesNumber") or 0),
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=self._metadata["authors"],
            manufacturer_model_name=self._metadata["name"],
            software_versions=self._metadata["version"],
            device_serial_number=self._weights,
            series_description="Retinal vessels (research only)",
            content_label="RETINAL_VESSELS",
        )
        # The size of a pixel is that of the photograph. Repeated without a thickness, highdicom cannot read it.
        segmentation.SharedFunctionalGroupsSequence[0].pop("PixelMeasuresSequence", None)
        path = self._folder / f"{header.SOPInstanceUID}_vessel.dcm"
        unfinished = path.with_suffix(".part")
        segmentation.save_as(unfinished)
        unfinished.replace(path)


def vessels(metadata: dict[str, Any]) -> hd.seg.SegmentDescription:
    """What the mask means: CID 7151 has no retinal vessel, so a blood vessel whose anatomic region is the retina."""
    return hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Retinal vessels",
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.BloodVessel,
        anatomic_regions=[codes.SCT.Retina],
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=metadata["name"], version=metadata["version"], family=codes.DCM.ArtificialIntelligence
        ),
    )
