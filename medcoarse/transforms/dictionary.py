"""Coarse annotations of a label map, as MONAI transforms on dictionaries."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config.type_definitions import KeysCollection, NdarrayOrTensor
from monai.transforms.transform import MapTransform, RandomizableTransform
from monai.utils.misc import ensure_tuple, ensure_tuple_rep
from monai.utils.type_conversion import convert_to_dst_type

from medcoarse.assignment import ANNOTATORS_KEY
from medcoarse.confusion import UNLABELED
from medcoarse.transforms.array import (
    HideAnnotators,
    MergeStrokes,
    OutsideToUnlabeled,
    Profile,
    RandSimulateCoarse,
    Record,
    ReplayCoarse,
    SimulateCoarse,
    random_seed,
)

Item = dict[Hashable, Any]


class _Coarsed(MapTransform):
    """What the dictionary transforms that draw share: where results go, and how they are recorded."""

    backend = SimulateCoarse.backend

    def __init__(
        self,
        keys: KeysCollection,
        positive_key: KeysCollection,
        negative_key: KeysCollection,
        parameters_key: KeysCollection,
        allow_missing_keys: bool,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.positive_key = self._one_per_key("positive_key", positive_key)
        self.negative_key = self._one_per_key("negative_key", negative_key)
        self.parameters_key = self._one_per_key("parameters_key", parameters_key)

    def _one_per_key(self, name: str, names: KeysCollection) -> tuple[Hashable, ...]:
        found = ensure_tuple(names)
        if len(found) != len(self.keys):
            raise ValueError(f"{name} needs one name for each of the keys {self.keys}, got {found}.")
        return tuple(found)

    def _outputs(self, item: Item) -> Any:
        return self.key_iterator(item, self.positive_key, self.negative_key, self.parameters_key)


def _store(item: Item, names: Sequence[Hashable], drawings: Sequence[tuple[NdarrayOrTensor, Record]]) -> None:
    """Put annotations where they belong; a kind that nobody draws gets no key."""
    for name, (annotation, record) in zip(names, drawings, strict=True):
        if record:
            item[name] = annotation


class SimulateCoarsed(_Coarsed):
    """Draw coarse annotations of a label map; the same label map always gets the same drawings.

    Adds `positive_key` (R, *S) and `negative_key` (C, *S), uint8, one channel per annotator, and under `parameters_key`
    a JSON string with all that `ReplayCoarsed` needs. The seed of an annotator is (seed, kind, index, CRC-32 of the
    label map), so the transform is not random to MONAI and `CacheDataset` caches it.

    Args:
        keys: key of the label map (1, *S); several keys need as many names for each of the outputs.
        positive: annotators who paint the target: profiles, names such as "coarse_positive", or dictionaries.
        negative: annotators who paint everything else.
        target: class that is drawn; None draws every class in turn.
        num_classes: L >= 2.
        spacing: mm per voxel; by default that of the MetaTensor, otherwise 1. MONAI's resizing changes the spacing of a
            MetaTensor, so give `spacing=1.0` where profiles are meant in pixels.
        seed: >= 0.
        positive_key: where the positive annotations go.
        negative_key: where the negative annotations go.
        parameters_key: where the record goes.
        allow_missing_keys: skip items without the label.

    Raises:
        ValueError: an unknown profile or one of the wrong kind; when called, a label that is not a label map, or one
            of 0 and 255 only (a mask whose 255 would count as unlabeled; restrict to a field of view after drawing).

    Example:
        >>> import numpy as np
        >>> item = {"label": np.zeros((1, 32, 32))}; item["label"][0, 8:24, 14:18] = 1
        >>> drawn = SimulateCoarsed("label", positive="coarse_positive", negative=["coarse_negative", "blank"])(item)
        >>> drawn["positive"].shape, drawn["negative"].shape
        ((1, 32, 32), (2, 32, 32))
    """

    def __init__(
        self,
        keys: KeysCollection,
        positive: Profile | Sequence[Profile] = (),
        negative: Profile | Sequence[Profile] = (),
        target: int | None = 1,
        num_classes: int = 2,
        spacing: Sequence[float] | float | None = None,
        seed: int = 0,
        positive_key: KeysCollection = "positive",
        negative_key: KeysCollection = "negative",
        parameters_key: KeysCollection = "coarse_parameters",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, positive_key, negative_key, parameters_key, allow_missing_keys)
        self.positive = SimulateCoarse(positive, target, num_classes, spacing, seed, "positive")
        self.negative = SimulateCoarse(negative, target, num_classes, spacing, seed, "negative")

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """The item with its annotations."""
        item = dict(data)
        for key, positive_key, negative_key, parameters_key in self._outputs(item):
            seeds = self.positive.seeds(item[key])
            drawings = [draw.draw(item[key], seeds) for draw in (self.positive, self.negative)]
            _store(item, (positive_key, negative_key), drawings)
            item[parameters_key] = _to_json(drawings)
        return item


class RandSimulateCoarsed(RandomizableTransform, _Coarsed):
    """Draw coarse annotations of a label map, anew at each call.

    Outputs are those of `SimulateCoarsed`; the seeds come from the random state of the transform.

    Args:
        keys: key of the label map (1, *S); several keys need as many names for each of the outputs.
        positive: annotators who paint the target: profiles, names such as "coarse_positive", or dictionaries.
        negative: annotators who paint everything else.
        target: class that is drawn; None draws every class in turn.
        num_classes: L >= 2.
        spacing: mm per voxel; by default that of the MetaTensor, otherwise 1.
        positive_key: where the positive annotations go.
        negative_key: where the negative annotations go.
        parameters_key: where the record goes.
        allow_missing_keys: skip items without the label.

    Raises:
        ValueError: an unknown profile or one of the wrong kind; when called, a label that is not a label map, or one
            of 0 and 255 only (a mask whose 255 would count as unlabeled; restrict to a field of view after drawing).

    Example:
        >>> import numpy as np
        >>> item = {"label": np.zeros((1, 32, 32))}; item["label"][0, 4:28, 14:18] = 1
        >>> draw = RandSimulateCoarsed("label", positive="coarse_positive").set_random_state(seed=0)
        >>> bool((draw(item)["positive"] == draw(item)["positive"]).all())
        False
    """

    def __init__(
        self,
        keys: KeysCollection,
        positive: Profile | Sequence[Profile] = (),
        negative: Profile | Sequence[Profile] = (),
        target: int | None = 1,
        num_classes: int = 2,
        spacing: Sequence[float] | float | None = None,
        positive_key: KeysCollection = "positive",
        negative_key: KeysCollection = "negative",
        parameters_key: KeysCollection = "coarse_parameters",
        allow_missing_keys: bool = False,
    ) -> None:
        _Coarsed.__init__(self, keys, positive_key, negative_key, parameters_key, allow_missing_keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.positive = RandSimulateCoarse(positive, target, num_classes, spacing, "positive")
        self.negative = RandSimulateCoarse(negative, target, num_classes, spacing, "negative")
        self._seed = 0

    def randomize(self, data: Any = None) -> None:
        """Draw the seed of the next drawings."""
        super().randomize(None)
        self._seed = random_seed(self.R)

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """The item with its annotations."""
        item = dict(data)
        for key, positive_key, negative_key, parameters_key in self._outputs(item):
            self.randomize()
            drawings = [draw.draw(item[key], [self._seed]) for draw in (self.positive, self.negative)]
            _store(item, (positive_key, negative_key), drawings)
            item[parameters_key] = _to_json(drawings)
        return item


class ReplayCoarsed(_Coarsed):
    """Repeat the recorded drawings of an item.

    Args:
        keys: key of the same label map (1, *S).
        positive_key: where the positive annotations go.
        negative_key: where the negative annotations go.
        parameters_key: where `SimulateCoarsed` or `RandSimulateCoarsed` left the record.
        allow_missing_keys: skip items without the label.

    Raises:
        KeyError: the item carries no record.
        ValueError: when called, a label map of another shape than the one that was drawn on.

    Example:
        >>> import numpy as np
        >>> item = {"label": np.zeros((1, 32, 32))}; item["label"][0, 8:24, 14:18] = 1
        >>> drawn = RandSimulateCoarsed("label", positive="coarse_positive")(item)
        >>> again = ReplayCoarsed("label")(item | {"coarse_parameters": drawn["coarse_parameters"]})
        >>> bool((again["positive"] == drawn["positive"]).all())
        True
    """

    def __init__(
        self,
        keys: KeysCollection,
        positive_key: KeysCollection = "positive",
        negative_key: KeysCollection = "negative",
        parameters_key: KeysCollection = "coarse_parameters",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, positive_key, negative_key, parameters_key, allow_missing_keys)
        self.replay = ReplayCoarse()

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """The item with the annotations of its record."""
        item = dict(data)
        for key, positive_key, negative_key, parameters_key in self._outputs(item):
            if parameters_key not in item:
                raise KeyError(f"no recorded drawings under {parameters_key!r}; run SimulateCoarsed first.")
            records = json.loads(item[parameters_key])
            drawings = [(self.replay(item[key], records[kind]), records[kind]) for kind in ("positive", "negative")]
            _store(item, (positive_key, negative_key), drawings)
        return item


class MergeStrokesd(MapTransform):
    """Make one partial label map of positive and negative annotations; contradictions become unlabeled.

    Args:
        keys: keys of the positive (R, *S) and of the negative (C, *S) annotations, in this order; an item may carry one
            of them only, as where nobody said what something is not.
        merged_key: where the label map (1, *S), uint8, goes.
        num_classes: L >= 2.
        allow_missing_keys: an item may carry none of them.

    Raises:
        ValueError: not two keys; when called, values that are neither classes nor 255.
        KeyError: an item with neither, unless that is allowed.

    Example:
        >>> import numpy as np
        >>> item = {"positive": np.array([[[1, 1, 255]]]), "negative": np.array([[[1, 255, 1]]])}
        >>> MergeStrokesd()(item)["strokes"]
        array([[[255,   1,   0]]], dtype=uint8)
    """

    backend = MergeStrokes.backend

    def __init__(
        self,
        keys: KeysCollection = ("positive", "negative"),
        merged_key: Hashable = "strokes",
        num_classes: int = 2,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 2:
            raise ValueError(f"keys must name the positive and the negative annotations, got {self.keys}.")
        self.merged_key = merged_key
        self.merge = MergeStrokes(num_classes)

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """The item with the merged label map."""
        item = dict(data)
        present = [key for key in self.keys if key in item]
        if not present and not self.allow_missing_keys:
            raise KeyError(f"MergeStrokesd: the item has neither {self.keys[0]!r} nor {self.keys[1]!r}, got {[*item]}")
        if present:
            nothing = item[present[0]][:0]
            item[self.merged_key] = self.merge(*(item.get(key, nothing) for key in self.keys))
        return item


class OutsideToUnlabeledd(MapTransform):
    """Mark everything outside a mask, such as the field of view, as unlabeled (255).

    Args:
        keys: label maps or annotations (C, *S).
        mask_key: key of the mask (1, *S), 0 outside.
        allow_missing_keys: skip missing labels.

    Raises:
        ValueError: the mask has another shape, or the label's type cannot hold 255.

    Example:
        >>> import numpy as np
        >>> item = {"label": np.array([[[0, 1, 1]]]), "fov": np.array([[[1, 1, 0]]])}
        >>> OutsideToUnlabeledd("label", "fov")(item)["label"]
        array([[[  0,   1, 255]]])
    """

    backend = OutsideToUnlabeled.backend

    def __init__(self, keys: KeysCollection, mask_key: Hashable, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key
        self.outside = OutsideToUnlabeled()

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """The item with unlabeled voxels outside the mask."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.outside(item[key], item[self.mask_key])
        return item


class HideLabeld(MapTransform):
    """Mark the label of items without a known mask as unlabeled (255), to mix dense masks with drawings.

    Args:
        keys: label maps (C, *S).
        flag_key: key of a boolean; items without it keep their label.
        allow_missing_keys: skip missing labels.

    Example:
        >>> import numpy as np
        >>> hide = HideLabeld("label", "has_mask")
        >>> hide({"label": np.array([[0, 1]]), "has_mask": False})["label"]
        array([[255, 255]])
    """

    backend = OutsideToUnlabeled.backend

    def __init__(self, keys: KeysCollection, flag_key: Hashable, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.flag_key = flag_key
        self.outside = OutsideToUnlabeled()

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """The item, its label hidden unless its mask is known."""
        item = dict(data)
        if not item.get(self.flag_key, True):
            for key in self.key_iterator(item):
                item[key] = self.outside(item[key], 0 * item[key][:1])
        return item


class HideAnnotatorsd(MapTransform):
    """Mark the annotations of those who didn't see an image as unlabeled (255).

    Lists of annotators differ in length from item to item and would not make a batch, so each is replaced by one yes or
    no for each annotator, bool (R,), which this transform reads as well.

    Args:
        keys: annotations (R, *S).
        annotators_key: key of who drew them, as numbers or names; one for all keys or one for each of them. An item
            without it was drawn by everyone.
        names: names of the annotators in the order of the channels, where they are given by name.
        allow_missing_keys: skip missing annotations.

    Raises:
        ValueError: when called, an annotator whom the annotation has no channel for; annotations that share who drew
            them and differ in channels.

    Example:
        >>> import numpy as np
        >>> hide = HideAnnotatorsd("positive")
        >>> item = hide({"positive": np.array([[0, 1], [1, 1]]), "annotators": [1]})
        >>> item["positive"].tolist(), item["annotators"].tolist()
        ([[255, 255], [1, 1]], [False, True])
    """

    backend = HideAnnotators.backend

    def __init__(
        self,
        keys: KeysCollection,
        annotators_key: KeysCollection = ANNOTATORS_KEY,
        names: Sequence[str] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.annotators_key = ensure_tuple_rep(annotators_key, len(self.keys))
        self.hide = HideAnnotators(names)

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """The item with what it says of those who drew it only."""
        item = dict(data)
        seen: Item = {}
        for key, annotators_key in self.key_iterator(item, self.annotators_key):
            drew = data.get(annotators_key, range(len(item[key])))
            now = self.hide.seen(item[key], drew)
            if len(seen.setdefault(annotators_key, now)) != len(now):
                raise ValueError(
                    f"{key!r} has {len(now)} annotators, but {annotators_key!r} is about "
                    f"{len(seen[annotators_key])}; give each of the keys an annotators_key of its own."
                )
            item[key] = self.hide(item[key], drew)
        return item | seen


class DrawnForegroundd(MapTransform):
    """Where anybody has drawn anything but background, for transforms that look for foreground to crop.

    MONAI's own cropping counts every value above 0 as foreground, which unlabeled voxels are not, and takes the first
    of several channels for the background.

    Args:
        keys: annotations or label maps (R, *S): values say what a thing is.
        foreground_key: where the mask (1, *S) goes, uint8.
        allow_missing_keys: skip missing annotations; of none the mask would be unknown, so one has to be there.

    Raises:
        KeyError: none of the keys is there.

    Example:
        >>> import numpy as np
        >>> item = {"positive": np.array([[0, 0, 255, 255]]), "label": np.array([[0, 2, 0, 255]])}
        >>> DrawnForegroundd(["positive", "label"], "drawn")(item)["drawn"]
        array([[0, 1, 0, 0]], dtype=uint8)
    """

    def __init__(self, keys: KeysCollection, foreground_key: Hashable, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.foreground_key = foreground_key

    def __call__(self, data: Mapping[Hashable, Any]) -> Item:
        """The item with the mask."""
        item = dict(data)
        present = list(self.key_iterator(item))
        if not present:
            raise KeyError(f"none of {self.keys} is there to find foreground in, only {tuple(item)}")
        masks = [((item[key] != 0) & (item[key] != UNLABELED)).any(0)[None] for key in present]
        mask = masks[0]
        for other in masks[1:]:
            mask = mask | other
        item[self.foreground_key] = convert_to_dst_type(mask, item[present[0]], dtype=np.uint8)[0]
        return item


def _to_json(drawings: Sequence[tuple[NdarrayOrTensor, Record]]) -> str:
    """A string, because the records of a batch differ in length and default collation leaves strings alone."""
    return json.dumps({kind: record for kind, (_, record) in zip(("positive", "negative"), drawings, strict=True)})
