"""Images that MONAI reads otherwise or not: a DICOM series as one volume, slices in the order of space; TIFF; NIfTI."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.data.image_reader import ImageReader, NibabelReader, PILReader, PydicomReader, has_itk, has_nrrd
from monai.data.meta_tensor import MetaTensor
from monai.transforms import EnsureChannelFirst, LoadImaged
from monai.utils.enums import MetaKeys
from monai.utils.misc import ensure_tuple

from medcoarse.datalist import DataError
from medcoarse.inspection import PIL_SUFFIXES
from medcoarse.readers.dicom import pydicom_module, quietly
from medcoarse.readers.formats import is_series
from medcoarse.readers.picture import require_upright
from medcoarse.writers.dicom_seg import source_grid, source_headers
from medcoarse.writers.segmentation import WriteError

_TOLERANCE = 1e-3
"""By how much affines of one grid may differ: formats round them."""

_PICTURES = tuple(suffix for suffix in PIL_SUFFIXES if suffix != ".gif")  # which says that no reader has it
_NIFTI = (".nii", ".nii.gz")
_METAIMAGE = (".mha", ".mhd")
_PALETTES = ("P", "PA")
_OF_A_PALETTE = "its numbers stand for the colours of a palette; save it in grey or colour"


class SeriesReader(PydicomReader):
    """MONAI's reader of DICOM, with the slices ascending along their normal.

    MONAI's own goes by instance numbers. They may descend, so that a volume of the same patient stands upside down for
    the network, and they may be interleaved, and then every slice lies in a wrong place. Pixels, affine and metadata
    are MONAI's; images without a position stay in its order. Segmentations and outlines beside the images are left out.
    The colours of a photograph are channels; MONAI takes them for three slices.

    Raises:
        DataError: when it reads: no image, several series, slices that form no regular volume, several frames in a
            file, colours of a palette or of more than one photograph, damaged files. The text quotes no header.
    """

    def read(self, data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], **kwargs: Any) -> Any:
        """The slices of a series, from its folder, or from its files in any order; those of each of several folders,
        which become channels; or an image of one file.
        """
        places = [Path(place) for place in ensure_tuple(data)]
        folders = len(places) > 1 and all(place.is_dir() for place in places)
        found = [self._files([place]) for place in places] if folders else [self._files(places)]
        if all(len(files) == 1 for files in found):
            return super().read([files[0] for files in found], **kwargs)
        if not all(len(files) > 1 for files in found):
            return super().read(data, **kwargs)
        self.has_series, self.filenames = True, cast(Any, found)
        series = [[self._numbered(file, number) for number, file in enumerate(files, 1)] for files in found]
        return series if folders else series[0]

    def _files(self, places: list[Path]) -> list[str]:
        """The files of a series in the order of space, or of a single image; none of images without a place."""
        try:
            headers = source_headers(places)
            if len(headers) > 1 and "ImagePositionPatient" not in headers[0]:
                return []
            if len(headers) > 1:
                source_grid(headers, places[0].parent if len(places) > 1 else places[0])
        except WriteError as error:
            raise DataError(str(error)) from None
        for header in headers:
            _require_plain(header, len(headers))
        return [str(header.filename) for header in headers]

    def get_data(self, data: Any) -> tuple[Any, dict[str, Any]]:
        """Values and metadata of what `read` gives."""
        values, meta = super().get_data(data)
        if getattr(data[0] if isinstance(data, list) else data, "SamplesPerPixel", 1) > 1:
            meta |= {MetaKeys.ORIGINAL_CHANNEL_DIM: -1, MetaKeys.SPATIAL_SHAPE: values.shape[:2]}
        return values, meta

    def _numbered(self, file: str, number: int) -> Any:
        """A slice that says its place where MONAI looks for it."""
        try:
            with quietly():
                found = pydicom_module().dcmread(file, **self.kwargs)
        except Exception as error:  # pydicom promises no types; the text is left out, for it may quote the header
            raise DataError(f"{file}: damaged DICOM file ({type(error).__name__}); export it again") from None
        found.InstanceNumber = number
        return found


def _require_plain(header: Any, number: int) -> None:
    """Refuse a file, one of so many, of which MONAI would make slices what are none."""
    if str(header.get("NumberOfFrames") or 1) != "1":
        raise DataError(f"{header.filename}: has several frames; split it into single slices, or save it as NIfTI")
    if header.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise DataError(f"{header.filename}: {_OF_A_PALETTE}")
    if header.get("SamplesPerPixel", 1) > 1 and number > 1:
        raise DataError(
            f"{header.filename}: is one of {number} pictures in colour; pass one of them, or save them in grey"
        )


class PictureReader(PILReader):
    """MONAI's reader of pictures, which it has for PNG, JPEG and BMP alone, for TIFF as well.

    Raises:
        DataError: when it reads: several pictures in one TIFF, of which it would take the first; one that viewers turn,
            which MONAI does not.
    """

    def read(self, data: Any, **kwargs: Any) -> Any:
        """The picture of a file, or of each of several."""
        found = super().read(data, **kwargs)
        for picture in ensure_tuple(found):
            require_upright(picture, picture.filename)
            if picture.format == "TIFF" and (pages := getattr(picture, "n_frames", 1)) > 1:
                raise DataError(f"{picture.filename}: holds {pages} pictures; save each by itself, or all as NIfTI")
        return found


class NiftiReader(NibabelReader):
    """MONAI's reader of NIfTI, for values that are numbers: of complex ones it would drop the imaginary part.

    Raises:
        DataError: when it reads: complex values, or colours.
    """

    def read(self, data: Any, **kwargs: Any) -> Any:
        """The image of a file, or of each of several."""
        found = super().read(data, **kwargs)
        for image in ensure_tuple(found):
            kind = image.get_data_dtype().kind
            if kind == "c":
                raise DataError(f"{image.get_filename()}: holds complex numbers; save their magnitude")
            if kind == "V":
                raise DataError(f"{image.get_filename()}: holds colours; save it in grey, or a file for each channel")
        return found


def require_intensities(image: MetaTensor, file: str | os.PathLike[str]) -> None:
    """Refuse a picture whose numbers stand for colours.

    Raises:
        DataError: it has a palette.

    Example:
        >>> require_intensities(MetaTensor(torch.zeros(1, 2, 2), meta={"mode": "P"}), "a.png")
        Traceback (most recent call last):
        medcoarse.datalist.DataError: a.png: its numbers stand for the colours of a palette; save it in grey or colour
    """
    if image.meta.get("mode") in _PALETTES:
        raise DataError(f"{file}: {_OF_A_PALETTE}")


def join(images: Mapping[Path, MetaTensor]) -> MetaTensor:
    """Files of one image (C, *S) as its channels, with the metadata of the first.

    Raises:
        DataError: they lie on several grids; affines may differ by rounding.
    """
    first, *others = images
    for file in others:
        same = images[file].shape[1:] == images[first].shape[1:] and np.allclose(
            images[file].affine, images[first].affine, atol=_TOLERANCE
        )
        if not same:
            raise DataError(f"{file.name} lies on another grid than {first.name}; channels of an image lie on one")
    if not others:
        return images[first]
    meta = {**images[first].meta, MetaKeys.ORIGINAL_CHANNEL_DIM: 0}
    return MetaTensor(torch.cat([image.as_tensor() for image in images.values()]), meta=meta)


class LoadImageOrSeriesd(LoadImaged):
    """`LoadImaged`, which reads DICOM with `SeriesReader`, TIFF without ITK, pictures if they are upright, NIfTI if its
    values are numbers, and the files of an image of several one by one: they become channels, may be of several
    formats, and their affines may differ by rounding.

    Raises:
        DataError: when called: channels on several grids, DICOM that is damaged or no single volume, whose header the
            text does not quote; NRRD and MetaImage where pynrrd or ITK is not installed.

    Example:
        >>> import tempfile, numpy, nibabel
        >>> file = tempfile.mkdtemp() + "/a.nii.gz"
        >>> nibabel.save(nibabel.Nifti1Image(numpy.zeros((3, 2, 1), numpy.uint8), numpy.eye(4)), file)
        >>> tuple(LoadImageOrSeriesd("image")({"image": file})["image"].shape)
        (3, 2, 1)
    """

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        """The item with its images."""
        found: dict[Hashable, Any] = dict(data)
        if reader is not None:
            return dict(super().__call__(found, reader))
        if not self._loader.image_only:
            raise ValueError("LoadImageOrSeriesd keeps metadata with the image; leave image_only as it is, True.")
        for key in self.key_iterator(found):
            places = ensure_tuple(found[key])
            slices = all(Path(place).is_file() and is_series(Path(place)) for place in places)
            if len(places) == 1 or slices:
                found[key] = self._load(found[key])
            else:
                found[key] = join({Path(place): self._channel(place) for place in places})
        return found

    def _channel(self, place: Any) -> MetaTensor:
        return cast(MetaTensor, EnsureChannelFirst()(self._load(place)))

    def _load(self, source: Any) -> Any:
        """A file, the folder of a series, or its files."""
        first = Path(ensure_tuple(source)[0])
        if not is_series(first):
            return self._loader(source, self._reader(first))
        try:
            return self._loader(source, SeriesReader())
        except DataError:
            raise
        except Exception as error:  # MONAI's reader converts values of the header, and what it says may quote them
            raise DataError(f"{first}: damaged, or no DICOM image that can be read ({type(error).__name__})") from None

    def _reader(self, file: Path) -> ImageReader | None:
        """Our reader of pictures and of NIfTI, unless another was asked for. Where nothing that reads a format is
        installed, MONAI would take the file for DICOM, and find it damaged.
        """
        if not self._loader.auto_select:
            return None
        if file.name.lower().endswith(".nrrd") and not (has_nrrd or has_itk):
            raise DataError(f"{file}: NRRD is read by pynrrd; pip install pynrrd, or save it as NIfTI")
        if file.name.lower().endswith(_METAIMAGE) and not has_itk:
            raise DataError(f"{file}: MetaImage is read by ITK; pip install itk, or save it as NIfTI")
        if file.name.lower().endswith(_NIFTI):
            return NiftiReader()
        return PictureReader() if file.name.lower().endswith(_PICTURES) else None
