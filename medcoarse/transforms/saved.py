"""Segmentations written as files, as MONAI transforms on dictionaries."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform
from monai.utils.enums import TransformBackends

from medcoarse.inspection import PIL_SUFFIXES
from medcoarse.readers.drawing import as_affine
from medcoarse.writers.dicom_seg import Algorithm
from medcoarse.writers.formats import stem_of, suffix_of, write_segmentation
from medcoarse.writers.segmentation import WriteError, make_segmentation

Item = dict[Hashable, Any]


class SaveSegmentationd(MapTransform):
    """Write label maps or probabilities, in the format that `suffix` says, where they lie.

    Labels are a MetaTensor (1, *S), probabilities (L, *S) of floating point numbers. The affine is that of the
    MetaTensor, so that a map which was resampled has to be brought back (Invertd) first. The file gets the name of the
    image that the map was made of, with `postfix`; what is written is under the key with "_path" added.

    Args:
        keys: of the maps.
        output_dir: where the files go; made if need be.
        class_names: L names, background first.
        suffix: .nii.gz, .nii, .nrrd, .seg.nrrd (3D Slicer), .dcm (DICOM SEG) or .png (pictures).
        postfix: put between the name and the suffix.
        source_key: of the name of the image's file or folder, where the map's own metadata has none; DICOM SEG refers
            to the series there.
        root: folder below which the images lie: the same folders are made in `output_dir`.
        codes: coded terms of the classes, see `medcoarse.writers.segmentation.make_segmentation`.
        algorithm: what made the maps, for DICOM.
        overwrite: whether a file that is there is replaced.
        name_key: of the name to give the file, where that is not the source's: an image of several files has one.
        allow_missing_keys: skip items without a map.

    Raises:
        WriteError: a suffix that is none; when called, maps that the format cannot hold, a file in the way, maps that
            do not say which image they are of, two maps that would be one file, or one of a picture whose axes are
            (y, x) as a picture.

    Example:
        >>> import tempfile
        >>> save = SaveSegmentationd("pred", tempfile.mkdtemp(), ["background", "vessel"], suffix=".nii.gz")
        >>> pred = MetaTensor(torch.ones(1, 4, 3, 2), meta={"filename_or_obj": "somewhere/eye.nii.gz"})
        >>> Path(save({"pred": pred})["pred_path"]).name
        'eye.nii.gz'
    """

    backend = [TransformBackends.NUMPY]  # noqa: RUF012

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | os.PathLike[str],
        class_names: Sequence[str],
        suffix: str = ".nii.gz",
        postfix: str = "",
        source_key: Hashable | None = None,
        root: str | os.PathLike[str] | None = None,
        codes: Mapping[str, Any] | None = None,
        algorithm: Algorithm | None = None,
        overwrite: bool = True,
        allow_missing_keys: bool = False,
        name_key: Hashable | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.suffix = suffix_of("name" + (suffix if suffix.startswith(".") else "." + suffix))
        self.output_dir = Path(output_dir)
        self.class_names = list(class_names)
        self.postfix = postfix
        self.source_key, self.name_key = source_key, name_key
        self.root = Path(root) if root else None
        self.codes, self.algorithm, self.overwrite = codes, algorithm, overwrite
        self._written: dict[Path, tuple[str, Hashable]] = {}  # file -> the image, and the key of its map

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """The item with the paths of what was written."""
        item = dict(data)
        for key in self.key_iterator(item):
            source = self._source(item, key)
            array, affine = _array(item[key], key, source)
            if self.suffix == ".png":
                _require_columns_first(item[key], array.shape[1:], key)
            name = source if self.name_key is None else item[self.name_key]
            path = self.path_of(name)
            self._require_apart(path, str(name), key)
            if path.exists() and not self.overwrite:
                raise WriteError(f"{path}: is there already; choose another folder, or overwrite it")
            labels = len(array) == 1
            values = array[0] if labels else array
            segmentation = make_segmentation(values, affine, self.class_names, self.codes, probabilities=not labels)
            write_segmentation(path, segmentation, source, self.algorithm)
            item[f"{key}_path"], self._written[path] = str(path), (str(name), key)
        return item

    def _require_apart(self, path: Path, name: str, key: Hashable) -> None:
        """Refuse a file that holds a map of another image, or another map of this one."""
        image, before = self._written.get(path, (name, key))
        if image != name:
            raise WriteError(
                f"{path}: holds the segmentation of {image}, and {name} is called the same; pass their common folder "
                "as root, or a key of names that differ as name_key"
            )
        if before != key:
            raise WriteError(
                f"{path}: holds {before!r} of the image; write {key!r} with a transform and a postfix of its own"
            )

    def _source(self, item: Item, key: Hashable) -> Any:
        """The file, the folder, or all files of a series."""
        if self.source_key is not None:
            return item[self.source_key]
        source = getattr(item[key], "meta", {}).get("filename_or_obj")
        if not source and self.name_key is None:
            raise WriteError(
                f"{key!r} does not say which file it was made of; keep it a MetaTensor (PrepareBatchCoarse makes plain "
                "tensors, MONAI's default_prepare_batch does not), or pass source_key or name_key"
            )
        return source or ""

    def path_of(self, source: Any) -> Path:
        """The file that the map of an image goes to; the image need not be there."""
        first = Path(source if isinstance(source, str | os.PathLike) else source[0])
        if not isinstance(source, str | os.PathLike) and len(source) > 1:
            first = first.parent  # a series is called by its folder
        folder = self.output_dir
        if self.root is not None and first.is_relative_to(self.root):
            folder = folder / first.relative_to(self.root).parent
        return folder / f"{stem_of(first)}{self.postfix}{self.suffix}"


def _require_columns_first(value: Any, shape: tuple[int, ...], key: Hashable) -> None:
    """Refuse the map of a picture that was loaded as (y, x): it would be written on its side."""
    loaded = tuple(int(side) for side in getattr(value, "meta", {}).get("spatial_shape", shape))[:2]
    moved = bool(getattr(value, "applied_operations", None))
    if not moved and loaded != shape[:2] and loaded == shape[:2][::-1]:
        raise WriteError(
            f"{key!r}: its axes are (y, x), those of pictures are written as (x, y); load them as LoadImaged does by "
            "default, without reverse_indexing=False"
        )


def _array(value: Any, key: Hashable, source: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """The map, channel first, and its affine."""
    if not isinstance(value, torch.Tensor | np.ndarray) or value.ndim not in (3, 4):
        shape = tuple(getattr(value, "shape", ()))
        raise WriteError(f"{key!r} must be (1, *S) or (L, *S) with 2 or 3 spatial axes, got {shape}")
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
    picture = isinstance(source, str | os.PathLike) and str(source).lower().endswith(PIL_SUFFIXES)
    affine = as_affine(value.affine.cpu().numpy()) if isinstance(value, MetaTensor) and not picture else None
    return array, affine
