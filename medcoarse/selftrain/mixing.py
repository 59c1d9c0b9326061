"""Cross-domain mixing: classes of a fully labelled image are pasted into another one, with their labels."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils.misc import ensure_tuple
from monai.utils.type_conversion import convert_to_dst_type
from torch import Tensor

from medcoarse.confusion import UNLABELED


def mix(
    images: Sequence[Tensor],
    donors: Sequence[Tensor],
    donor_label: Tensor,
    classes: Sequence[int],
    labels: Sequence[Tensor] = (),
    drawings: Sequence[Tensor] = (),
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Paste some classes of a donor: its pixels into images, its classes into labels, nothing into drawings.

    Args:
        images: ``(C, *S)``.
        donors: the donor's, one for each of the images.
        donor_label: ``(1, *S)``, classes or 255, which is never pasted.
        classes: that are pasted.
        labels: label maps ``(1, *S)``; where nothing is pasted they stay as they are, 255 too.
        drawings: annotations ``(R, *S)``; who drew did not see what is pasted, so they are 255 there.

    Returns:
        Images, labels and drawings, new ones.

    Raises:
        ValueError: maps of different sizes, or images without a donor each.

    Source: Das et al. (WACV 2023), cross-domain mixing, after ClassMix and DACS.

    Example:
        >>> image, donor = torch.tensor([[1, 2, 3]]), torch.tensor([[7, 8, 9]])
        >>> label, drawing = torch.tensor([[255, 255, 255]]), torch.tensor([[0, 0, 255]])
        >>> mix([image], [donor], torch.tensor([[1, 2, 255]]), [2], [label], [drawing])
        ([tensor([[1, 8, 3]])], [tensor([[255,   2, 255]])], [tensor([[  0, 255, 255]])])
    """
    maps = [*images, *donors, donor_label, *labels, *drawings]
    sizes = {tuple(one.shape[1:]) for one in maps}
    if len(images) != len(donors) or len(sizes) != 1:
        got = f"{len(images)} images, {len(donors)} donors, sizes {sorted(sizes)}"
        raise ValueError(f"an image and its donor must be one to one and all maps of one size, got {got}")
    wanted = torch.as_tensor([k for k in classes if k != UNLABELED], device=donor_label.device)
    pasted = torch.isin(donor_label.long(), wanted.long())
    return (
        [torch.where(pasted, donor.to(image), image) for image, donor in zip(images, donors, strict=True)],
        [torch.where(pasted, donor_label.to(label), label) for label in labels],
        [drawing.masked_fill(pasted, UNLABELED) for drawing in drawings],
    )


class RandMixClassesd(RandomizableTransform, MapTransform):
    """Now and then paste random classes of a random donor into an item, see :func:`mix`.

    Which donor and which classes, ``randomize`` draws; it is recorded as JSON under ``record_key``, and ``apply``
    repeats a record. The random state is the transform's own, as that of MONAI's random transforms.

    Args:
        keys: images ``(C, *S)``.
        donors: a data set of fully labelled items on the same grid, or larger, with the same keys; all of it is drawn
            from. Give it without random transforms.
        label_key: where classes are pasted, made (all 255) where an item has none; the key of the donors' masks too.
        drawing_keys: annotations, which become 255 where something is pasted; those that an item lacks are skipped.
        prob: that something is pasted.
        class_prob: of each class that the donor shows.
        skip_key: of a boolean; items for which it is true receive nothing, such as synthetic ones.
        record_key: where the record goes, "" for nothing pasted; ``None`` leaves no record.
        allow_missing_keys: skip missing images.

    Raises:
        ValueError: no donors; when called, a donor smaller than the item.

    Donors that are larger are cut to the item's size from the corner, so that what was pasted keeps its place.

    Example:
        >>> donors = [{"image": torch.ones(1, 4), "label": torch.tensor([[0, 0, 1, 1]])}]
        >>> item = {"image": torch.zeros(1, 4), "positive": torch.tensor([[0, 255, 0, 255]])}
        >>> mixed = RandMixClassesd("image", donors).apply(item, {"donor": 0, "classes": [1]})
        >>> mixed["image"].tolist(), mixed["label"].tolist(), mixed["positive"].tolist()
        ([[0.0, 0.0, 1.0, 1.0]], [[255, 255, 1, 1]], [[0, 255, 255, 255]])
    """

    def __init__(
        self,
        keys: KeysCollection,
        donors: Sequence[Mapping[Hashable, Any]],
        label_key: Hashable = "label",
        drawing_keys: KeysCollection = ("positive", "negative"),
        prob: float = 0.5,
        class_prob: float = 0.5,
        skip_key: Hashable = "synthetic",
        record_key: Hashable | None = "mixed",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if len(donors) == 0:
            raise ValueError("mixing needs at least one donor, got none")
        if not 0 <= class_prob <= 1:
            raise ValueError(f"class_prob must be in [0, 1], got {class_prob}")
        self.donors, self.label_key, self.drawing_keys = donors, label_key, ensure_tuple(drawing_keys)
        self.class_prob, self.skip_key, self.record_key = class_prob, skip_key, record_key
        self.record: dict[str, Any] | None = None

    def randomize(self, data: Any = None) -> None:
        """Draw a donor and its classes, or nothing."""
        super().randomize(None)
        self.record = None
        if self._do_transform:
            donor = int(self.R.randint(len(self.donors)))
            shown = torch.unique(_plain(self.donors[donor][self.label_key])).tolist()
            classes = [int(k) for k in shown if k != UNLABELED and self.R.rand() < self.class_prob]
            self.record = {"donor": donor, "classes": classes}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item, with something pasted or not."""
        self.randomize()
        record = None if data.get(self.skip_key, False) else self.record
        item = dict(data) if record is None else self.apply(data, record)
        if self.record_key is not None:
            item[self.record_key] = "" if record is None else json.dumps(record)
        return item

    def apply(self, data: Mapping[Hashable, Any], record: Mapping[str, Any]) -> dict[Hashable, Any]:
        """The item with what a record says."""
        item = dict(data)
        donor = self.donors[record["donor"]]
        images, drawn = list(self.key_iterator(item)), [key for key in self.drawing_keys if key in item]
        size = tuple(item[images[0]].shape[1:])
        if self.label_key not in item:
            item[self.label_key] = torch.full((1, *size), UNLABELED, dtype=torch.uint8)
        mixed = mix(
            [_plain(item[key]) for key in images],
            [_cut(donor[key], size) for key in images],
            _cut(donor[self.label_key], size),
            record["classes"],
            [_plain(item[self.label_key])],
            [_plain(item[key]) for key in drawn],
        )
        for names, values in zip((images, [self.label_key], drawn), mixed, strict=True):
            for name, value in zip(names, values, strict=True):
                item[name] = convert_to_dst_type(value, item[name], dtype=item[name].dtype)[0]
        return item


def _plain(values: Any) -> Tensor:
    return torch.as_tensor(values).as_subclass(Tensor)


def _cut(values: Any, size: Sequence[int]) -> Tensor:
    """The corner of a donor's map, of the size of the item."""
    whole = _plain(values)
    if any(have < need for have, need in zip(whole.shape[1:], size, strict=True)):
        raise ValueError(f"a donor of {tuple(whole.shape[1:])} is smaller than the item, {tuple(size)}")
    return whole[(slice(None), *(slice(side) for side in size))]
