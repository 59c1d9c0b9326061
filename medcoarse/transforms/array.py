"""Coarse annotations of a label map, as MONAI transforms on arrays and tensors.

Convention:
    Label maps come channel first, (1, *S), in 2D or 3D; annotations leave as uint8 (R, *S), one channel per annotator.
    NumPy in gives NumPy out, a tensor gives a tensor, a MetaTensor keeps its affine and metadata.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.config.type_definitions import NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import RandomizableTransform, Transform
from monai.utils.enums import TransformBackends
from monai.utils.type_conversion import convert_to_dst_type, convert_to_numpy
from numpy.typing import NDArray

from medcoarse.annotators import AnnotatorProfile, Kind, apply, draw, merge_strokes
from medcoarse.confusion import UNLABELED
from medcoarse.morphology import as_spacing
from medcoarse.profiles import as_dict, as_profile

Profile = AnnotatorProfile | str | Mapping[str, Any]
Record = list[dict[str, Any]]
_BACKEND = [TransformBackends.NUMPY]
_KINDS: tuple[Kind, Kind] = ("positive", "negative")


def as_profiles(profiles: Profile | Sequence[Profile], kind: Kind | None = None) -> tuple[AnnotatorProfile, ...]:
    """Profiles from one or several names, dictionaries or profiles.

    Args:
        profiles: one or a sequence; nothing gives no annotator.
        kind: what all of them have to be. A dictionary that doesn't say gets it, and so does a blank annotator.

    Raises:
        ValueError: an unknown name or field, or another kind than asked for.

    Example:
        >>> [profile.kind for profile in as_profiles(["coarse_negative", "blank"], "negative")]
        ['negative', 'negative']
    """
    resolved = []
    for profile in [profiles] if isinstance(profiles, AnnotatorProfile | str | Mapping) else profiles:
        fields = as_dict(as_profile(profile))
        if kind and (fields["blank"] or (isinstance(profile, Mapping) and "kind" not in profile)):
            fields["kind"] = kind
        if kind and fields["kind"] != kind:
            raise ValueError(f"{kind} needs profiles of kind {kind!r}, got {profile!r} of kind {fields['kind']!r}.")
        resolved.append(as_profile(fields))
    return tuple(resolved)


def label_map(label: NdarrayOrTensor) -> NDArray[np.uint8]:
    """A label map (1, *S) of any type as uint8 (*S), after checking that it is one.

    Raises:
        ValueError: several channels, or values that are not integers from 0 to 255.

    Example:
        >>> label_map(np.array([[[0.0, 1.0]]]))
        array([[0, 1]], dtype=uint8)
    """
    values = np.asarray(convert_to_numpy(label))
    if values.ndim not in (3, 4) or values.shape[0] != 1:
        raise ValueError(
            f"label must be one label map of shape (1, *S) with 2 or 3 spatial axes, got {tuple(values.shape)}; turn "
            "one-hot channels into a label map with AsDiscreted(argmax=True)."
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("label must hold integers, got NaN or infinite values.")
    with np.errstate(invalid="ignore"):
        integers: NDArray[np.uint8] = values[0].astype(np.uint8)
    if values.dtype != np.uint8 and not np.array_equal(integers, values[0]):
        wrong = values[0][integers != values[0]].flat[0]
        raise ValueError(
            f"label must hold integers from 0 to 255, got {wrong}; resample labels by nearest neighbour; a lazy "
            "pipeline needs overrides={key: {'mode': 'nearest'}} for that."
        )
    return integers


def spacing_of(label: NdarrayOrTensor, spacing: Sequence[float] | float | None) -> tuple[float, ...]:
    """The spacing that was asked for, otherwise that of the MetaTensor, otherwise 1 mm.

    Example:
        >>> spacing_of(np.zeros((1, 4, 4)), None)
        (1.0, 1.0)
    """
    if spacing is None and isinstance(label, MetaTensor):
        spacing = np.asarray(label.pixdim, dtype=float)[: label.ndim - 1].tolist()
    return as_spacing(spacing, label.ndim - 1)


class _Coarse(Transform):
    """What the simulating transforms share: profiles, and how to draw and stack them."""

    backend = _BACKEND

    def __init__(
        self,
        profiles: Profile | Sequence[Profile],
        target: int | None = 1,
        num_classes: int = 2,
        spacing: Sequence[float] | float | None = None,
        kind: Kind | None = None,
    ) -> None:
        self.profiles = as_profiles(profiles, kind)
        self.target = target
        self.num_classes = num_classes
        self.spacing = spacing
        self._common = [{"profile": as_dict(profile), "target": target} for profile in self.profiles]

    def draw(self, label: NdarrayOrTensor, seeds: Sequence[int]) -> tuple[NdarrayOrTensor, Record]:
        """Annotations (R, *S) and the record of every annotator, from seeds alone."""
        values, spacing = label_map(label), spacing_of(label, self.spacing)
        _refuse_0_255(values)
        drawn, record = [], []
        for r, profile in enumerate(self.profiles):
            rng = np.random.default_rng([*seeds, _KINDS.index(profile.kind), r])
            one = draw(profile, values, self.target, spacing, rng, self.num_classes)
            drawn.append(one.annotation)
            record.append(self._common[r] | {"spacing": spacing, "parameters": one.parameters})
        return _stacked(drawn, label), record


class SimulateCoarse(_Coarse):
    """Draw one coarse annotation per annotator; the same label map always gets the same drawings.

    The seed of annotator r is (seed, kind, r, CRC-32 of the label map), whatever the order of the items, the number of
    workers or the type of the array; so the result may be cached.

    Args:
        profiles: one or several annotators: profiles, names of ready ones such as "coarse_positive", or dictionaries.
        target: class that is drawn; None draws every class in turn.
        num_classes: L >= 2.
        spacing: mm per voxel; by default that of the MetaTensor, otherwise 1.
        seed: >= 0.
        kind: "positive" or "negative", if all profiles have to be of one kind.

    Raises:
        ValueError: an unknown profile; when called, a label that is not a label map (1, *S) with values below L or 255;
            or one that holds 0 and 255 and nothing else: most likely a 0/255 mask, in which 255 would count as
            unlabeled. So draw first, then restrict to a field of view; `medcoarse.annotators.draw` accepts both.

    Example:
        >>> label = np.zeros((1, 16, 16)); label[0, 4:12, 6:9] = 1
        >>> SimulateCoarse(["coarse_positive", "good"])(label).shape
        (2, 16, 16)
    """

    def __init__(
        self,
        profiles: Profile | Sequence[Profile],
        target: int | None = 1,
        num_classes: int = 2,
        spacing: Sequence[float] | float | None = None,
        seed: int = 0,
        kind: Kind | None = None,
    ) -> None:
        super().__init__(profiles, target, num_classes, spacing, kind)
        if seed < 0:
            raise ValueError(f"seed must be >= 0, got {seed}.")
        self.seed = seed

    def __call__(self, label: NdarrayOrTensor) -> NdarrayOrTensor:
        """Annotations (R, *S), uint8."""
        return self.draw(label, self.seeds(label))[0]

    def seeds(self, label: NdarrayOrTensor) -> list[int]:
        """What the drawings of this label map depend on, besides the annotator."""
        return [self.seed, zlib.crc32(label_map(label).tobytes())]


class RandSimulateCoarse(RandomizableTransform, _Coarse):
    """Draw one coarse annotation per annotator, anew at each call.

    Args:
        profiles: one or several annotators: profiles, names of ready ones such as "coarse_positive", or dictionaries.
        target: class that is drawn; None draws every class in turn.
        num_classes: L >= 2.
        spacing: mm per voxel; by default that of the MetaTensor, otherwise 1.
        kind: "positive" or "negative", if all profiles have to be of one kind.

    Raises:
        ValueError: an unknown profile; when called, a label that is not a label map (1, *S) with values below L or 255;
            or one that holds 0 and 255 and nothing else: most likely a 0/255 mask, in which 255 would count as
            unlabeled. So draw first, then restrict to a field of view; `medcoarse.annotators.draw` accepts both.

    Example:
        >>> label = np.zeros((1, 32, 32)); label[0, 4:28, 12:19] = 1
        >>> draw = RandSimulateCoarse("coarse_positive").set_random_state(seed=0)
        >>> bool((draw(label) == draw(label)).all())
        False
    """

    def __init__(
        self,
        profiles: Profile | Sequence[Profile],
        target: int | None = 1,
        num_classes: int = 2,
        spacing: Sequence[float] | float | None = None,
        kind: Kind | None = None,
    ) -> None:
        RandomizableTransform.__init__(self, prob=1.0)
        _Coarse.__init__(self, profiles, target, num_classes, spacing, kind)
        self._seed = 0

    def randomize(self, data: Any = None) -> None:
        """Draw the seed of the next drawing."""
        super().randomize(None)
        self._seed = random_seed(self.R)

    def __call__(self, label: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        """Annotations (R, *S), uint8."""
        if randomize:
            self.randomize()
        return self.draw(label, [self._seed])[0]


class ReplayCoarse(Transform):
    """Repeat recorded drawings on the same label map.

    Example:
        >>> label = np.zeros((1, 16, 16)); label[0, 4:12, 6:9] = 1
        >>> draw = SimulateCoarse("coarse_positive")
        >>> annotation, record = draw.draw(label, draw.seeds(label))
        >>> bool((ReplayCoarse()(label, record) == annotation).all())
        True
    """

    backend = _BACKEND

    def __call__(self, label: NdarrayOrTensor, record: Record) -> NdarrayOrTensor:  # type: ignore[override]
        """Annotations (R, *S), uint8, one for each entry of the record."""
        values = label_map(label)
        drawn = [
            apply(as_profile(one["profile"]), values, one["target"], one["spacing"], one["parameters"])
            for one in record
        ]
        return _stacked(drawn, label)


class MergeStrokes(Transform):
    """Make one partial label map of positive and negative annotations; contradictions become unlabeled.

    Args:
        num_classes: L >= 2.

    Example:
        >>> MergeStrokes()(np.array([[[1, 1, 255]]]), np.array([[[1, 255, 1]]]))
        array([[[255,   1,   0]]], dtype=uint8)
    """

    backend = _BACKEND

    def __init__(self, num_classes: int = 2) -> None:
        self.num_classes = num_classes

    def __call__(self, positive: NdarrayOrTensor, negative: NdarrayOrTensor) -> NdarrayOrTensor:  # type: ignore[override]
        """The label map (1, *S), uint8, from positive (R, *S) and negative (C, *S) annotations."""
        merged = merge_strokes(convert_to_numpy(positive), convert_to_numpy(negative), self.num_classes)
        return convert_to_dst_type(merged, positive, dtype=np.uint8)[0]


class OutsideToUnlabeled(Transform):
    """Mark everything outside a mask, such as the field of view, as unlabeled (255).

    Example:
        >>> OutsideToUnlabeled()(np.array([[[0, 1, 1]]]), np.array([[[1, 1, 0]]]))
        array([[[  0,   1, 255]]])
    """

    backend = _BACKEND

    def __call__(self, label: NdarrayOrTensor, mask: NdarrayOrTensor) -> NdarrayOrTensor:  # type: ignore[override]
        """The label (C, *S) with 255 where the mask (1, *S) is 0; its type stays."""
        inside = np.asarray(convert_to_numpy(mask)) != 0
        values = np.array(convert_to_numpy(label))
        if inside.shape != (1, *values.shape[1:]):
            raise ValueError(f"mask must have shape {(1, *values.shape[1:])}, got {inside.shape}.")
        if values.dtype in (np.int8, np.bool_):
            raise ValueError(f"{values.dtype} cannot hold the unlabeled value {UNLABELED}; convert the label to uint8.")
        return convert_to_dst_type(np.where(inside, values, values.dtype.type(UNLABELED)), label, dtype=values.dtype)[0]


def random_seed(state: np.random.RandomState) -> int:
    """A seed below 2**32 from a MONAI random state.

    Example:
        >>> 0 <= random_seed(np.random.RandomState(0)) < 2**32
        True
    """
    return int(state.randint(2**32, dtype=np.uint32))


def _refuse_0_255(values: NDArray[np.uint8]) -> None:
    """Raise for what is probably a mask stored as 0/255."""
    unlabeled = values == UNLABELED
    if unlabeled.any() and not unlabeled.all() and not values[~unlabeled].any():
        raise ValueError(
            "label holds only 0 and 255: a 0/255 mask? 255 means unlabeled; map it with MapLabelValued(keys, [0, 255], "
            "[0, 1]). An image without any object is drawn before OutsideToUnlabeledd restricts it to a field of view."
        )


def _stacked(annotations: list[NDArray[np.uint8]], label: NdarrayOrTensor) -> NdarrayOrTensor:
    stacked = np.stack(annotations) if annotations else np.empty((0, *label.shape[1:]), np.uint8)
    return convert_to_dst_type(stacked, label, dtype=np.uint8)[0]
