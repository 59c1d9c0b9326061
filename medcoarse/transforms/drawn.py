"""Drawings that people made, as MONAI transforms on dictionaries."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform
from monai.utils.enums import TransformBackends
from monai.utils.misc import ensure_tuple, ensure_tuple_rep
from numpy.typing import NDArray

from medcoarse.confusion import UNLABELED
from medcoarse.datalist import DataError
from medcoarse.inspection import PIL_SUFFIXES
from medcoarse.readers.claims import (
    KINDS,
    Claims,
    Kind,
    Maps,
    as_claims,
    claimed,
    num_annotators,
    outside,
    preset,
)
from medcoarse.readers.drawing import Drawing, Grid, Layer, as_affine
from medcoarse.readers.formats import frame_of_reference, read_drawing
from medcoarse.readers.masks import mask_labels
from medcoarse.readers.placement import OtherGridError, is_whole, on_lattice, place
from medcoarse.transforms.array import MergeStrokes

Item = dict[Hashable, Any]

_BACKEND = [TransformBackends.NUMPY]
_CONTRADICTIONS = ("error", "unlabeled", "last")


class LoadCoarseAnnotationd(MapTransform):
    """Read drawings that people made, onto the grid of their image.

    Adds `positive_key` (R, *S), value k = "this is class k", and `negative_key` (C, *S), value k = "this is not class
    k"; uint8, one channel per annotator, 255 = nothing drawn. A kind that the mapping does not have gets no key.

    Convention: the maps are MetaTensors with the affine of the image, so that MONAI's transforms move both alike. The
    image comes channel first, before or after any transform that keeps its affine right. Where a volume was resampled
    since it was loaded, contours and outlines are filled on the grid that it was loaded with, and take `resample` too.

    Args:
        keys: key of the file, or of a list of files: one for each person, None where someone drew nothing. The
            annotators of every further file follow those of the files before it.
        mapping: what values and names mean: value or name -> (class, "positive" or "negative", annotator = 0), or None
            for "nothing drawn"; or the name of a preset, see `medcoarse.readers.claims.preset`. There is no default. In
            files of segments and outlines, 0 stands for "in no segment", which says nothing unless it is mapped.
        num_classes: L >= 2, background included.
        class_names: L names, background first, for the preset "slicer".
        image_key: key of the loaded image, a MetaTensor (C, *S).
        positive_key: where the positive maps go.
        negative_key: where the negative maps go.
        format: one of `medcoarse.readers.formats.READERS`; by default seen from the file.
        resample: whether a drawing on another grid is brought onto the image's, by the nearest voxel; otherwise it is
            an error. In another DICOM frame of reference it always is.
        tolerance: by which grids may differ, in voxels at the corners of the image.
        contradictions: "error", or "unlabeled" for 255 where one annotator contradicts himself; "last" where segments
            lie in one another, as a tumour in a liver: what comes later in the mapping covers what comes earlier.
        allow_missing_keys: skip items without a drawing.

    Raises:
        ValueError: a mapping or an option that makes no sense; when called, a drawing that is damaged, has something
            that is not in the mapping, lies on another grid, or contradicts itself.

    Example:
        >>> import tempfile, nibabel
        >>> file = tempfile.mkdtemp() + "/strokes.nii.gz"
        >>> nibabel.save(nibabel.Nifti1Image(np.array([[[0], [2], [3]]], dtype=np.uint8), np.eye(4)), file)
        >>> item = {"image": MetaTensor(torch.zeros(1, 1, 3, 1)), "drawing": file}
        >>> read = LoadCoarseAnnotationd("drawing", mapping="monailabel_scribbles", num_classes=2)
        >>> read(item)["positive"].flatten().tolist(), read(item)["negative"].flatten().tolist()
        ([255, 255, 1], [255, 1, 255])
    """

    backend = _BACKEND

    def __init__(
        self,
        keys: KeysCollection,
        mapping: str | Mapping[Any, Any],
        num_classes: int,
        class_names: Sequence[str] | None = None,
        image_key: Hashable = "image",
        positive_key: KeysCollection = "positive",
        negative_key: KeysCollection = "negative",
        format: str | None = None,
        resample: bool = False,
        tolerance: float = 0.05,
        contradictions: str = "error",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if contradictions not in _CONTRADICTIONS:
            raise ValueError(f"contradictions must be one of {_CONTRADICTIONS}, got {contradictions!r}.")
        if not 0 <= tolerance < 0.5:
            raise ValueError(f"tolerance must be from 0 to below 0.5 voxels, got {tolerance}.")
        self.outputs = [ensure_tuple_rep(names, len(self.keys)) for names in (positive_key, negative_key)]
        if any(len(set(names)) != len(names) for names in self.outputs):
            raise ValueError(f"each of the keys {self.keys} needs outputs of its own, got {self.outputs}.")
        named = preset(mapping, num_classes, class_names) if isinstance(mapping, str) else mapping
        self.claims = as_claims(named, num_classes)
        self.image_key = image_key
        self.format = format
        self.contradictions = contradictions
        self.placing: dict[str, Any] = {"resample": resample, "tolerance": tolerance}

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """The item with what is drawn."""
        item = dict(data)
        for key, *names in self.key_iterator(item, *self.outputs):
            image = item[self.image_key]
            grids = grids_of(image, self.image_key)
            files = _files(item[key], key)
            parts = [self._read(file, *grids) for file in files]
            for name, kind in zip(names, KINDS, strict=True):
                maps = np.concatenate([part[kind] for part in parts])
                if len(maps):
                    item[name] = _like(image, maps, [str(file) for file in files])
        return item

    def _read(self, file: str | os.PathLike[str] | None, grid: Grid, loaded: Grid) -> Maps:
        """What a file says on the grid of the image; contours are filled on the one that it was loaded with."""
        if file is None:
            return {kind: np.full((num_annotators(self.claims, kind), *grid.shape), 255, np.uint8) for kind in KINDS}
        drawing = read_drawing(file, loaded, self.format)
        drawing, claims = self._understood(drawing, file)
        maps = claimed(drawing, claims, file, self.contradictions)
        fills = {kind: outside(drawing, claims, kind) for kind in KINDS}

        def brought(kind: Kind) -> NDArray[np.uint8]:
            source, found = drawing.grid, maps[kind]
            if loaded.affine is None and grid.affine is not None:
                # a picture that was moved: it has no place in space, so what is drawn on it lies on its pixels
                whole = replace(loaded, affine=np.eye(4))
                return place(
                    place(found, source, loaded, file, fills[kind]), whole, grid, file, fills[kind], resample=True
                )
            return place(found, source, grid, file, fills[kind], drawing.segments, **self.placing)

        try:
            placed = {kind: brought(kind) for kind in KINDS}
        except OtherGridError as error:
            raise DataError(
                f"{error}, or take the nearest voxels (resample=True in Python, --resample True of the bundle, "
                "`medcoarse train --resample`)"
            ) from None
        drawn, left = (any(_shows(found[kind], fills[kind]) for kind in KINDS) for found in (maps, placed))
        if drawn and not left:
            raise DataError(
                f"{file}: nothing that is drawn lies in the image; pass the image it was drawn on, and crop afterwards"
            )
        return placed

    def _understood(self, drawing: Drawing, file: str | os.PathLike[str]) -> tuple[Drawing, Claims]:
        """A drawing, and what its values and names mean."""
        return drawing, self.claims


class LoadMaskd(LoadCoarseAnnotationd):
    """Read dense masks, onto the grid of their image.

    What is under the key becomes (1, *S), uint8: value k is class k, 255 is unlabeled, also where the file has no
    voxels. A mask is placed as a drawing is, so that one that is stored the other way round lies right, and one on
    another grid is refused.

    Args:
        keys: key of the file.
        num_classes: L >= 2, background included.
        class_names: L names, background first. A segment is the class of its name, in capitals or not; what lies in no
            segment is background, and segments of background give way to others.
        binary: whether 255 is class 1 and not unlabeled, as in pictures of masks; in files of segments it never is.
        only_named: whether segments that are no class are left out, as the body and the couch of an RTSTRUCT; without
            it they are an error.
        reading: what `LoadCoarseAnnotationd` takes besides: image_key, format, resample, tolerance, allow_missing_keys,
            and contradictions: segments that overlap are an error but with "last", by the order of the classes.

    Raises:
        ValueError: names that are not L different ones; when called, as `LoadCoarseAnnotationd`, or a mask with values
            or segments that are no class.

    Example:
        >>> import tempfile, nibabel
        >>> file = tempfile.mkdtemp() + "/mask.nii.gz"
        >>> nibabel.save(nibabel.Nifti1Image(np.array([[[0], [1], [255]]], dtype=np.uint8), np.eye(4)), file)
        >>> item = {"image": MetaTensor(torch.zeros(1, 1, 3, 1)), "label": file}
        >>> LoadMaskd("label", 2, ["background", "liver"])(item)["label"].flatten().tolist()
        [0, 1, 255]
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int,
        class_names: Sequence[str],
        binary: bool = False,
        only_named: bool = False,
        **reading: Any,
    ) -> None:
        names = ensure_tuple(keys)
        reading |= {"positive_key": names, "negative_key": [f"not {name}" for name in names]}
        super().__init__(keys, "unlabeled_255", num_classes, **reading)
        if len(class_names) != num_classes or len(set(class_names)) != num_classes:
            raise ValueError(f"class_names must be {num_classes} different names, got {list(class_names)}.")
        self.class_names, self.binary, self.only_named = list(class_names), binary, only_named

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """The item with its mask."""
        for key in self.key_iterator(dict(data)):
            if not isinstance(data[key], str | os.PathLike):
                raise DataError(f"{key!r} must be the name of one file, got {data[key]!r}")
        return super().__call__(data)

    def _understood(self, drawing: Drawing, file: str | os.PathLike[str]) -> tuple[Drawing, Claims]:
        nested = self.contradictions == "last"
        labels = mask_labels(drawing, self.class_names, file, self.binary, nested, self.only_named)
        return replace(drawing, layers=(Layer(labels),), unplaced={}), self.claims


class LoadStrokesOfEachd(LoadCoarseAnnotationd):
    """Read drawings of several people, and keep them apart: one partial label map for everybody.

    Adds `positive_key` (R, *S): channel r is what annotator r said, positive and negative strokes merged as by
    :class:`medcoarse.transforms.dictionary.MergeStrokesd`; 255 all over where somebody drew nothing. One person's files
    of an image are merged too.

    Args:
        keys: key of the files of an item.
        annotators: R names, or numbers.
        num_classes: L >= 2, background included.
        annotators_key: of who drew each of the files, as many as there are files.
        reading: what `LoadCoarseAnnotationd` takes besides.

    Raises:
        ValueError: as `LoadCoarseAnnotationd`; when called, files whose author is missing or not one of the annotators.

    Example:
        >>> import tempfile, nibabel
        >>> file = tempfile.mkdtemp() + "/strokes.nii.gz"
        >>> nibabel.save(nibabel.Nifti1Image(np.array([[[0], [2], [3]]], dtype=np.uint8), np.eye(4)), file)
        >>> item = {"image": MetaTensor(torch.zeros(1, 1, 3, 1)), "drawing": [file], "annotators": ["Max"]}
        >>> read = LoadStrokesOfEachd("drawing", ["Ada", "Max"], 2, mapping="monailabel_scribbles")
        >>> read(item)["positive"][:, 0, :, 0].tolist()
        [[255, 255, 255], [255, 0, 1]]
    """

    def __init__(
        self,
        keys: KeysCollection,
        annotators: Sequence[str | int],
        num_classes: int,
        annotators_key: Hashable = "annotators",
        **reading: Any,
    ) -> None:
        super().__init__(keys, num_classes=num_classes, **reading)
        if len(set(annotators)) != len(annotators) or not annotators:
            raise ValueError(f"annotators must be different names, got {list(annotators)}.")
        self.annotators, self.annotators_key = list(annotators), annotators_key
        self.merge = MergeStrokes(num_classes)

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """The item with what everybody drew."""
        item = dict(data)
        for key, name in self.key_iterator(item, self.outputs[0]):
            image = item[self.image_key]
            grids = grids_of(image, self.image_key)
            files = _files(item[key], key)
            whose = self._whose(item, files)
            maps = np.full((len(self.annotators), *grids[0].shape), UNLABELED, np.uint8)
            for index in set(whose):
                parts = [self._read(file, *grids) for file, who in zip(files, whose, strict=True) if who == index]
                maps[index] = self.merge(*(np.concatenate([part[kind] for part in parts]) for kind in KINDS))[0]
            item[name] = _like(image, maps, [str(file) for file in files])
        return item

    def _whose(self, item: Item, files: Sequence[Any]) -> list[int]:
        """The annotator of every file, by number."""
        names = item.get(self.annotators_key, ())
        if len(names) != len(files) or not set(names) <= set(self.annotators):
            raise DataError(
                f"{files[0] if files else item.get(self.image_key)}: {len(files)} drawings of the image, drawn by "
                f"{list(names)}; name one of {self.annotators} for each, under {self.annotators_key!r}"
            )
        return [self.annotators.index(name) for name in names]


class UnlabeledIfMissingd(MapTransform):
    """Give items that lack a label map or a drawing one that says nothing: 255 everywhere.

    Args:
        keys: maps that an item may lack.
        image_key: key of the loaded image (C, *S), a MetaTensor.
        num_channels: of each of the maps.

    Example:
        >>> item = UnlabeledIfMissingd("label")({"image": MetaTensor(torch.zeros(1, 1, 2))})
        >>> item["label"].tolist(), item["label"].dtype
        ([[[255, 255]]], torch.uint8)
    """

    backend = _BACKEND

    def __init__(
        self, keys: KeysCollection, image_key: Hashable = "image", num_channels: int | Sequence[int] = 1
    ) -> None:
        super().__init__(keys)
        self.image_key = image_key
        self.num_channels = ensure_tuple_rep(num_channels, len(self.keys))

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """The item with all of the keys."""
        item = dict(data)
        image = item[self.image_key]
        _require_image(image, self.image_key)
        for key, channels in zip(self.keys, self.num_channels, strict=True):
            if key not in item:
                nothing = np.full((channels, *image.shape[1:]), UNLABELED, np.uint8)
                item[key] = _like(image, nothing, [str(image.meta.get("filename_or_obj", ""))])
        return item


def _files(value: Any, key: Hashable) -> list[str | os.PathLike[str] | None]:
    """The file of a drawing, or one for each person."""
    several = isinstance(value, list | tuple)
    files = list(value) if several else [value]
    if not files or not all(isinstance(file, str | os.PathLike) or (file is None and several) for file in files):
        raise DataError(
            f"{key!r} must be the name of a file, or a list of names with None where someone drew nothing, got "
            f"{value!r}; leave it out where there is no drawing"
        )
    return files


def _shows(maps: NDArray[np.uint8], fills: Sequence[int]) -> bool:
    """Whether anything is there but what lies outside the drawing."""
    return any((one != fill).any() for one, fill in zip(maps, fills, strict=True))


def _require_image(image: Any, key: Hashable) -> None:
    if not isinstance(image, MetaTensor) or image.ndim not in (3, 4):
        raise ValueError(
            f"{key!r} must be an image as LoadImaged and EnsureChannelFirstd leave it, a MetaTensor (C, *S) with 2 or "
            f"3 spatial axes, got {type(image).__name__}{tuple(getattr(image, 'shape', ()))}."
        )


def grids_of(image: Any, key: Hashable = "image") -> tuple[Grid, Grid]:
    """Grid of a loaded image, with what DICOM says, and the one to draw contours and outlines on.

    The second is the first, unless the image was resampled since it was loaded, or is a picture that was moved: then it
    is the grid of the file, and of a picture without an affine. That of a picture that was not moved has none at all.

    Args:
        image: (C, *S), a MetaTensor.
        key: what to call it in errors.

    Raises:
        ValueError: no image as `LoadImaged` and `EnsureChannelFirstd` leave it, or a picture that was resampled.

    Example:
        >>> grid, _ = grids_of(MetaTensor(torch.zeros(1, 4, 3, 2), affine=torch.diag(torch.tensor([1.0, 1, 2, 1]))))
        >>> grid.shape, np.diag(grid.affine).tolist()
        ((4, 3, 2), [1.0, 1.0, 2.0, 1.0])
    """
    _require_image(image, key)
    file = str(image.meta.get("filename_or_obj", ""))
    frame = frame_of_reference(file) if file else None
    affine = as_affine(image.affine.cpu().numpy())
    grid = Grid(tuple(image.shape[1:]), affine, frame, Path(file).name or None)
    if not file.lower().endswith(PIL_SUFFIXES):
        return grid, _before_resampling(image, grid)
    shape = tuple(int(size) for size in image.meta.get("spatial_shape", grid.shape))[: len(grid.shape)]
    moved = np.linalg.inv(as_affine(image.meta.get("original_affine", np.eye(4)))) @ affine
    lattice = np.rint(moved)
    whole_steps = np.allclose(moved, lattice, atol=1e-3)
    if not image.applied_operations and not (whole_steps and is_whole(lattice, grid.shape, shape)):
        if shape == grid.shape[::-1]:
            raise DataError(
                f"{grid.name}: its axes are (y, x), those of drawings (x, y); load it as LoadImaged does by default, "
                "without reverse_indexing=False, and do not swap its axes before its drawing is read"
            )
        return (flat := replace(grid, affine=None)), flat  # whatever affine somebody gave it
    if not whole_steps or abs(round(float(np.linalg.det(moved[:3, :3])))) != 1:
        raise DataError(
            f"{grid.name}: was resampled or given another spacing since it was loaded, and a picture has no place in "
            "space that would tell which; read the drawing before transforms that zoom or turn the picture, but by 90 "
            "degrees"
        )
    return replace(grid, affine=lattice), Grid(shape, None, None, grid.name)


def _before_resampling(image: MetaTensor, grid: Grid) -> Grid:
    """The grid that a volume was loaded with, where that tells another lattice than its own."""
    shape, affine = (image.meta.get(name) for name in ("spatial_shape", "original_affine"))
    # MONAI reorients after it took the affine down, and counts channels that come first as an axis
    unknown = image.meta.get("as_closest_canonical") or image.meta.get("original_channel_dim") == 0
    if shape is None or affine is None or unknown or len(shape) != len(grid.shape):
        return grid
    loaded = replace(grid, shape=tuple(int(size) for size in shape), affine=as_affine(affine))
    return grid if on_lattice(grid, loaded) else loaded


def _like(image: MetaTensor, maps: np.ndarray[Any, Any], files: list[str]) -> MetaTensor:
    kept = {key: image.meta[key] for key in ("original_affine", "space", "spatial_shape") if key in image.meta}
    meta = {**kept, "filename_or_obj": files[0], "original_channel_dim": 0}
    return MetaTensor(torch.from_numpy(maps), affine=image.affine.clone(), meta=meta)
