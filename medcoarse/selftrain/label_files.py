"""Pseudo labels as files: a folder a round, one label map an image, and what they were made of."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import torch
from monai.transforms import SelectItemsd
from monai.transforms.transform import Randomizable, Transform
from PIL import Image
from torch import Tensor

from medcoarse.confusion import UNLABELED
from medcoarse.files import write_json
from medcoarse.selftrain.pseudo import fill

SOURCE_KEY = "source"
"""Key of the file that an item's image came from."""

KIND = "pseudo labels"


class Made(NamedTuple):
    """A pseudo label: name of its image, label map ``(1, *S)``, and where voxels lie in space, ``(4, 4)``."""

    name: str
    label: Tensor
    affine: Any = None


def write_label(path: Path, label: Tensor, affine: Any = None) -> None:
    """Write a label map ``(1, *S)``: PNG in 2D, with columns in axis 0 as MONAI's reader has it, NIfTI in 3D."""
    values = label[0].numpy().astype(np.uint8)
    if values.ndim == 2:
        Image.fromarray(values.T).save(path)
    else:
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else np.asarray(affine)), path)  # type: ignore[no-untyped-call]


def read_label(path: Path) -> Tensor:
    """The label map ``(1, *S)``, uint8, that :func:`write_label` wrote."""
    if path.suffix == ".png":
        with Image.open(path) as picture:
            values = np.array(picture).T
    else:
        values = np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
    return torch.from_numpy(np.array(values, dtype=np.uint8, order="C"))[None]


def write_folder(folder: Path, labels: Iterable[Made], facts: Mapping[str, Any]) -> str:
    """Write pseudo labels and ``provenance.json`` in place of an earlier folder of them.

    Everything goes into a draft beside the folder that is renamed at the end: a kill at any time leaves the old folder,
    none, or the new one, whole.

    Args:
        folder: made with its parents.
        labels: one for each image.
        facts: what they were made of.

    Returns:
        SHA-256 of what was written.

    Raises:
        FileExistsError: the folder is there and holds something else.
    """
    if folder.exists() and _provenance(folder).get("kind") != KIND:
        raise FileExistsError(f"{folder} exists and holds no pseudo labels; choose another folder, or delete it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        draft.mkdir()
        items = [_write_item(draft, number, made) for number, made in enumerate(labels)]
        provenance = {"kind": KIND, **facts, "items": items}
        write_json(draft / "provenance.json", provenance)
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return _digest(provenance)


def _write_item(draft: Path, number: int, made: Made) -> dict[str, Any]:
    label, name = made.label, Path(made.name).name
    path = draft / f"{number:05d}_{name.split('.')[0]}{'.png' if label.ndim == 3 else '.nii.gz'}"
    write_label(path, label, made.affine)
    known = label[label != UNLABELED].flatten().long()
    return {
        "image": name,
        "file": path.name,
        "sha256": hashlib.sha256(np.ascontiguousarray(label[0].numpy()).tobytes()).hexdigest(),
        "pixels": label.numel(),
        "pixels_per_class": torch.bincount(known).tolist(),
    }


def read_folder(folder: Path, digest: str) -> list[Path]:
    """The files of a folder of pseudo labels, in order, if it is the one with this digest and whole.

    Raises:
        FileNotFoundError: it is another one, or files are missing.
    """
    provenance = _provenance(folder)
    paths = [folder / item["file"] for item in provenance.get("items", [])]
    missing = [path for path in paths if not path.is_file()]
    if not paths or missing or _digest(provenance) != digest:
        problem = f"{missing[0]} is missing" if missing else "they are not there or were made anew since"
        raise FileNotFoundError(
            f"the pseudo labels in {folder} that the checkpoint was trained on: {problem}; train anew (resume false)"
        )
    return paths


def _provenance(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "provenance.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _digest(provenance: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()


class PseudoLabels:
    """Hand an item the pseudo label of its image: written where its label map is empty, see :func:`.pseudo.fill`.

    It is no MONAI ``Transform``, so that ``CacheDataset`` calls it anew each time: labels change from round to round.
    Items whose image has no pseudo label pass unchanged, but that an absent label map is made, all 255.

    Args:
        key: of the label map ``(1, *S)`` that is filled: "positive" for pseudo labels that count as drawings, as in the
            paper; "label" for pseudo labels that count as masks, beside drawings that only the annotators' matrices
            explain.
        source_key: of the file that the image came from, which is taken off the item.
        image_key: of the image, for the size of an absent label map.

    Raises:
        ValueError: when called, several annotators' maps: who would have drawn the pseudo label?

    Example:
        >>> labels = PseudoLabels("label")
        >>> labels({"source": "a.png", "image": torch.zeros(3, 1, 2)})["label"]
        tensor([[[255, 255]]], dtype=torch.uint8)
    """

    def __init__(
        self, key: Hashable = "positive", source_key: Hashable = SOURCE_KEY, image_key: Hashable = "image"
    ) -> None:
        self.key, self.source_key, self.image_key = key, source_key, image_key
        self.files: dict[str, Path] = {}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with its label map."""
        item = dict(data)
        path = self.files.get(str(item.pop(self.source_key, "")))
        if self.key not in item:
            size = item[self.image_key].shape[1:]
            item[self.key] = torch.full((1, *size), UNLABELED, dtype=torch.uint8)
        if path is not None:
            drawn = torch.as_tensor(item[self.key]).as_subclass(Tensor)
            if len(drawn) != 1:
                raise ValueError(
                    f"pseudo labels fill one label map, {self.key!r} has {len(drawn)} annotators; fill 'label' instead"
                )
            item[self.key] = fill(drawn, read_label(path))
        return item


def with_pseudo_labels(
    preprocessing: Sequence[Any], augmentation: Sequence[Any], labels: Sequence[Any], keep: Sequence[Hashable] = ()
) -> list[Any]:
    """A bundle's transforms with :class:`PseudoLabels` (and others) after what is fixed and before what is random.

    Args:
        preprocessing: transforms that load an item, whose ``image`` is a file.
        augmentation: transforms behind them. The last of them that selects items comes before the pseudo labels, else
            all up to the first random one.
        labels: what is put in.
        keep: keys that selecting shall not drop.

    Example:
        >>> from monai.transforms import RandFlipd
        >>> chain = with_pseudo_labels([], [SelectItemsd("image"), RandFlipd("image")], [PseudoLabels()])
        >>> [type(one).__name__ for one in chain]
        ['RememberSource', 'SelectItemsd', 'PseudoLabels', 'RandFlipd']
    """
    kept = (SOURCE_KEY, *keep)
    behind = [SelectItemsd((*one.keys, *kept), True) if isinstance(one, SelectItemsd) else one for one in augmentation]
    random = [n for n, one in enumerate(behind) if isinstance(one, Randomizable)]
    fixed = behind[: random[0] if random else len(behind)]
    selecting = [n + 1 for n, one in enumerate(fixed) if isinstance(one, SelectItemsd)]
    place = selecting[-1] if selecting else len(fixed)
    return [RememberSource(), *preprocessing, *behind[:place], *labels, *behind[place:]]


class RememberSource(Transform):
    """Keep the name of the image's file under :data:`SOURCE_KEY`; loading replaces it by the image.

    Example:
        >>> RememberSource()({"image": "a.png"})
        {'image': 'a.png', 'source': 'a.png'}
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with the name."""
        return {**data, SOURCE_KEY: source_of(data)}


def source_of(item: Mapping[Hashable, Any], image_key: Hashable = "image") -> str:
    """What an item of a datalist is known by: the file of its image, of several the first."""
    name = item[image_key]
    return str(name[0] if isinstance(name, list | tuple) else name)
