"""Wrong annotations on purpose, with a record of where: to see whether a review finds them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import LoadImage, MapTransform
from torch import Tensor

from medcoarse.confusion import UNLABELED

ERRORS = ("another", "swapped", "shifted", "blank")
"""What can be wrong: the mask of another image is drawn, every class is taken for the next one, everything is drawn
somewhere else, or everything is said to be background."""

PLANTED_KEY = "planted"


def plant_errors(
    items: Sequence[Mapping[str, Any]],
    num_planted: int,
    seed: int = 0,
    errors: Sequence[str] = ERRORS,
    label_key: str = "label",
    among: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Choose items at random whose annotations are to be wrong, about as many with each error, and write down which.

    The label of an item with the error "another" is replaced by that of another item here; the other errors are made by
    :class:`PlantErrorsd` after drawing.

    Args:
        items: entries of a datalist.
        num_planted: how many are to be wrong.
        seed: >= 0; the same seed chooses the same items and errors.
        errors: of :data:`ERRORS`.
        label_key: of what is drawn.
        among: numbers of the items to choose from, and to take another image's mask from, such as those of
            :func:`with_foreground`; by default all.

    Returns:
        New items, those that are wrong with the key `planted`: the `error`, and where everything goes of what is
        `shifted`, as shares of the image's sides along its first two axes.

    Raises:
        ValueError: more than there are items to choose from, or an unknown error.

    Example:
        >>> items = plant_errors([{"label": f"{n}.png"} for n in range(4)], num_planted=2, errors=["another", "blank"])
        >>> [(item["label"], item.get("planted", {}).get("error")) for item in items]
        [('0.png', 'blank'), ('1.png', None), ('3.png', 'another'), ('3.png', None)]
    """
    unknown = [error for error in errors if error not in ERRORS]
    if unknown or not errors:
        got = repr(unknown[0]) if unknown else "nothing"
        raise ValueError(f"errors must be some of {', '.join(ERRORS)}, got {got}")
    chosen = list(range(len(items)) if among is None else among)
    if not set(chosen) <= set(range(len(items))):
        raise ValueError(f"among must be numbers of the {len(items)} items, got {chosen}")
    if not 0 <= num_planted <= len(chosen) or (num_planted and len(chosen) < 2):
        raise ValueError(f"num_planted must be from 0 to the number of items, {len(chosen)}, got {num_planted}")
    rng = np.random.default_rng(seed)
    planted = [dict(item) for item in items]
    for place, start in enumerate(rng.permutation(len(chosen))[:num_planted].tolist()):
        n, other = chosen[start], chosen[(start + int(rng.integers(1, len(chosen)))) % len(chosen)]
        record: dict[str, Any] = {"error": errors[place % len(errors)]}
        shift = (rng.choice([-0.25, 0.25], 2)).tolist()
        if record["error"] == "another":
            planted[n][label_key] = items[other][label_key]
        elif record["error"] == "shifted":
            record["shift"] = shift
        planted[n][PLANTED_KEY] = record
    return planted


def with_foreground(items: Sequence[Mapping[str, Any]], label_key: str = "label") -> list[int]:
    """The numbers of the items whose label has any foreground: where there is nothing, few drawings can be wrong.

    Args:
        items: entries of a datalist.
        label_key: of the path of a label map.

    Example:
        >>> import nibabel, tempfile
        >>> path = f"{tempfile.mkdtemp()}/label.nii.gz"
        >>> nibabel.save(nibabel.Nifti1Image(np.ones((2, 2, 1), np.uint8), np.eye(4)), path)
        >>> with_foreground([{"label": path}])
        [0]
    """
    load = LoadImage(image_only=True)
    return [n for n, item in enumerate(items) if bool(_foreground(load(item[label_key])).any())]


def _foreground(label: Tensor) -> Tensor:
    return (label != 0) & (label != UNLABELED)


class PlantErrorsd(MapTransform):
    """Spoil the annotations of the items that :func:`plant_errors` chose; the others stay as they are.

    Args:
        keys: positive annotations ``(R, *S)``, 255 where nothing was drawn, which stays so.
        num_classes: L, for classes that are swapped.
        planted_key: of the record.
        allow_missing_keys: skip missing annotations.

    Raises:
        ValueError: when called, an unknown error.

    What is shifted and leaves the image on one side comes in again on the other.

    Example:
        >>> item = {"positive": torch.tensor([[[0, 1, 1, 255]]]), "planted": {"error": "swapped"}}
        >>> PlantErrorsd("positive")(item)["positive"]
        tensor([[[  1,   0,   0, 255]]])
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int = 2,
        planted_key: Hashable = PLANTED_KEY,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes, self.planted_key = num_classes, planted_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item, its annotations wrong if it was chosen."""
        item = dict(data)
        if self.planted_key in item:
            for key in self.key_iterator(item):
                item[key] = self._spoiled(torch.as_tensor(item[key]), item[self.planted_key])
        return item

    def _spoiled(self, drawn: Tensor, record: Mapping[str, Any]) -> Tensor:
        error = record["error"]
        if error not in ERRORS:
            raise ValueError(f"the planted error must be one of {', '.join(ERRORS)}, got {error!r}")
        if error == "swapped":
            return torch.where(drawn == UNLABELED, drawn, (drawn + 1) % self.num_classes)
        if error == "blank":
            return torch.where(drawn == UNLABELED, drawn, torch.zeros_like(drawn))
        if error == "shifted":
            steps = [round(share * side) for share, side in zip(record["shift"], drawn.shape[1:3], strict=True)]
            return torch.roll(drawn, steps, (1, 2))
        return drawn
