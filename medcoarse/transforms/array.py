"""Coarse annotations of a label map, as MONAI transforms on arrays and tensors.

Convention:
    Label maps come channel first, (1, *S), in 2D or 3D; annotations leave as uint8 (R, *S), one channel per annotator.
    NumPy in gives NumPy out, a tensor gives a tensor, a MetaTensor keeps its affine and metadata. What lives on another
    device than the CPU is drawn there.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import RandomizableTransform, Transform
from monai.utils.enums import TransformBackends
from monai.utils.type_conversion import convert_to_dst_type, convert_to_numpy
from numpy.typing import NDArray

from medcoarse.annotators import AnnotatorProfile, Drawing, Kind, Values, apply, draw, merge_strokes
from medcoarse.assignment import annotator_numbers
from medcoarse.batched import apply_batch, draw_batch
from medcoarse.confusion import UNLABELED, check_num_classes
from medcoarse.morphology import as_spacing
from medcoarse.profiles import as_dict, as_profile

Profile = AnnotatorProfile | str | Mapping[str, Any]
Record = list[dict[str, Any]]
_BACKEND = [TransformBackends.NUMPY]
_TORCH = [TransformBackends.TORCH]
_KINDS: tuple[Kind, Kind] = ("positive", "negative")


def as_profiles(profiles: Profile | Sequence[Profile], kind: Kind | None = None) -> tuple[AnnotatorProfile, ...]:
    """Profiles from one or several names, dictionaries or profiles.

    Args:
        profiles: one or a sequence; nothing gives no annotator.
        kind: what all of them have to be. A dictionary that doesn't say gets it, and so does an annotator who says
            nothing at all.

    Raises:
        ValueError: an unknown name or field, or another kind than asked for.

    Example:
        >>> [profile.kind for profile in as_profiles(["coarse_negative", "blank"], "negative")]
        ['negative', 'negative']
    """
    resolved = []
    for profile in [profiles] if isinstance(profiles, AnnotatorProfile | str | Mapping) else profiles:
        fields = as_dict(as_profile(profile))
        says_nothing = fields["blank"] and not fields["dense"]
        if kind and (says_nothing or (isinstance(profile, Mapping) and "kind" not in profile)):
            fields["kind"] = kind
        if kind and fields["kind"] != kind:
            raise ValueError(f"{kind} needs profiles of kind {kind!r}, got {profile!r} of kind {fields['kind']!r}.")
        resolved.append(as_profile(fields))
    return tuple(resolved)


def on_device(label: NdarrayOrTensor) -> bool:
    """Whether drawings are made by torch, on the device where the label map lives: anywhere but on the CPU.

    Example:
        >>> on_device(torch.zeros(1, 4, 4))
        False
    """
    return isinstance(label, torch.Tensor) and label.device.type != "cpu"


def label_map(label: NdarrayOrTensor) -> Values:
    """A label map (1, *S) of any type as uint8 (*S), after checking that it is one; a tensor only `on_device`.

    Raises:
        ValueError: several channels, or values that are not integers from 0 to 255.

    Example:
        >>> label_map(np.array([[[0.0, 1.0]]]))
        array([[0, 1]], dtype=uint8)
    """
    values: Any = _plain(label) if on_device(label) else np.asarray(convert_to_numpy(label))
    if values.ndim not in (3, 4) or values.shape[0] != 1:
        raise ValueError(
            f"label must be one label map of shape (1, *S) with 2 or 3 spatial axes, got {tuple(values.shape)}; turn "
            "one-hot channels into one with AsDiscreted(argmax=True), or add the channel with EnsureChannelFirstd."
        )
    return _integers(values)[0]


def spacing_of(label: NdarrayOrTensor, spacing: Sequence[float] | float | None) -> tuple[float, ...]:
    """The spacing that was asked for, otherwise that of the MetaTensor, otherwise 1 mm.

    Example:
        >>> spacing_of(np.zeros((1, 4, 4)), None)
        (1.0, 1.0)
    """
    if spacing is None and isinstance(label, MetaTensor):
        spacing = np.asarray(label.pixdim, dtype=float)[: label.ndim - 1].tolist()
    return as_spacing(spacing, label.ndim - 1)


def batch_spacing_of(label: torch.Tensor, spacing: Sequence[float] | float | None) -> tuple[float, ...]:
    """As `spacing_of`, of a batch (B, C, *S).

    Raises:
        ValueError: the items of a batch of MetaTensors differ in it.

    Example:
        >>> batch_spacing_of(torch.zeros(2, 1, 4, 4), 0.5)
        (0.5, 0.5)
    """
    spatial_dims = label.ndim - 2
    if spacing is None and isinstance(label, MetaTensor) and label.is_batch:
        found = np.array([np.asarray(one, dtype=float)[:spatial_dims] for one in label.pixdim])
        if len(found) and not np.allclose(found, found[0], rtol=1e-3):
            raise ValueError(f"the label maps of a batch must share their spacing, got {found.tolist()}; pass spacing.")
        spacing = found[0].tolist() if len(found) else None
    return as_spacing(spacing, spatial_dims)


def _check_drawing(target: Any, num_classes: Any, spacing: Any) -> None:
    """What is wrong before there is a label map, and not in a worker in the middle of an epoch."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, int | np.integer):
        raise ValueError(f"num_classes must be a whole number, got {num_classes!r}.")
    check_num_classes(int(num_classes))
    known = target is None or (isinstance(target, int | np.integer) and not isinstance(target, bool))
    if not known or (target is not None and not 0 <= target < num_classes):
        raise ValueError(f"target must be None or a class below num_classes={num_classes}, got {target!r}.")
    if spacing is not None:
        sizes = np.asarray(spacing)
        numbers = sizes.dtype.kind in "iuf" and (sizes.ndim == 0 or sizes.shape in ((2,), (3,)))
        if not numbers or not (np.isfinite(sizes) & (sizes > 0)).all():
            raise ValueError(f"spacing must be positive numbers (mm per voxel), got {spacing!r}.")


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
        _check_drawing(target, num_classes, spacing)
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
            one = _draw(profile, values, self.target, spacing, rng, self.num_classes)
            drawn.append(one.annotation)
            facts = {"shape": values.shape, "spacing": spacing, "parameters": one.parameters}
            record.append(self._common[r] | facts)
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
        ValueError: an unknown profile, a target that is no class, or another argument out of range; when called, a
            label that is not a label map (1, *S) with values below L or 255;
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
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise ValueError(f"seed must be a whole number >= 0, got {seed!r}.")
        self.seed = seed

    def __call__(self, label: NdarrayOrTensor) -> NdarrayOrTensor:
        """Annotations (R, *S), uint8."""
        return self.draw(label, self.seeds(label))[0]

    def seeds(self, label: NdarrayOrTensor) -> list[int]:
        """What the drawings of this label map depend on, besides the annotator."""
        return [self.seed, checksum(label_map(label))]


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


class SimulateCoarseBatch(Transform):
    """Draw coarse annotations of all label maps of a batch at once, on their device: after the data loader.

    The drawings are those that `SimulateCoarsed` makes of each label map. On a CPU, drawing large images
    one by one is faster.

    Args:
        positive: annotators who paint the target: profiles, names such as "coarse_positive", or dictionaries.
        negative: annotators who paint everything else.
        target: class that is drawn; None draws every class in turn.
        num_classes: L >= 2.
        spacing: mm per voxel; by default that of the MetaTensor, otherwise 1.
        seed: >= 0.

    Raises:
        ValueError: as for `SimulateCoarse`; label maps of different spacing; another number of seeds than label maps.

    Example:
        >>> label = torch.zeros(3, 1, 16, 16, dtype=torch.uint8); label[:, :, 4:12, 6:9] = 1
        >>> positive, negative = SimulateCoarseBatch(["coarse_positive", "over"], "coarse_negative")(label)
        >>> positive.shape, negative.shape
        (torch.Size([3, 2, 16, 16]), torch.Size([3, 1, 16, 16]))
    """

    backend = _TORCH

    def __init__(
        self,
        positive: Profile | Sequence[Profile] = (),
        negative: Profile | Sequence[Profile] = (),
        target: int | None = 1,
        num_classes: int = 2,
        spacing: Sequence[float] | float | None = None,
        seed: int = 0,
    ) -> None:
        self.positive = SimulateCoarse(positive, target, num_classes, spacing, seed, "positive")
        self.negative = SimulateCoarse(negative, target, num_classes, spacing, seed, "negative")

    def __call__(
        self, label: torch.Tensor, seeds: Sequence[int] | None = None, spacing: Sequence[float] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Positive (B, R, *S) and negative (B, C, *S) annotations, uint8, of label maps (B, 1, *S).

        Args:
            label: label maps on any device.
            seeds: a number >= 0 for each of them, in place of the CRC-32 of its values, for other drawings at each call
                or to spare the copy to the CPU that the CRC-32 needs.
            spacing: in place of that of the transform.
        """
        if label.ndim not in (4, 5) or label.shape[1] != 1:
            raise ValueError(f"label must be a batch of label maps (B, 1, *S), got shape {tuple(label.shape)}.")
        values = _integers(_plain(label))[:, 0]
        spacing = batch_spacing_of(label, self.positive.spacing if spacing is None else spacing)
        for one in values:
            _refuse_0_255(one)
        seeds = [checksum(one) for one in values.cpu()] if seeds is None else seeds
        drawn = (self._drawn(draw, values, spacing, seeds) for draw in (self.positive, self.negative))
        positive, negative = (convert_to_dst_type(one, label, dtype=torch.uint8)[0] for one in drawn)
        return positive, negative

    def _drawn(
        self, simulate: SimulateCoarse, values: torch.Tensor, spacing: tuple[float, ...], seeds: Sequence[int]
    ) -> torch.Tensor:
        drawn = [values.new_empty((len(values), 0, *values.shape[1:]))]
        for r, profile in enumerate(simulate.profiles):
            own = [(simulate.seed, seed, _KINDS.index(profile.kind), r) for seed in seeds]
            drawn.append(draw_batch(profile, values, simulate.target, spacing, own, simulate.num_classes)[0][:, None])
        return torch.cat(drawn, 1)


class ReplayCoarse(Transform):
    """Repeat recorded drawings on the same label map.

    Raises:
        ValueError: when called, a label map of another shape than the one that was drawn on.

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
        for one in record:
            if (before := tuple(one.get("shape", values.shape))) != values.shape:  # older records do not have it
                raise ValueError(
                    f"the drawings were recorded on a label map of shape {before}, and this one has {values.shape}; "
                    "replay them before it is cropped or resampled."
                )
        drawn = [
            _apply(as_profile(one["profile"]), values, one["target"], one["spacing"], one["parameters"])
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


class HideAnnotators(Transform):
    """Mark the annotations of those who didn't see an image as unlabeled (255).

    Args:
        names: names of the annotators in the order of the channels, where they are given by name.

    Raises:
        ValueError: when called, an annotator whom the annotation has no channel for.

    Example:
        >>> HideAnnotators()(np.array([[0, 1], [1, 1], [0, 0]]), [0, 2])
        array([[  0,   1],
               [255, 255],
               [  0,   0]])
    """

    backend = _BACKEND + _TORCH

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self.names = names

    def __call__(self, annotation: NdarrayOrTensor, drew: Any) -> NdarrayOrTensor:  # type: ignore[override]
        """The annotation (R, *S) with 255 in the channels of all but those who drew; its type stays."""
        seen = self.seen(annotation, drew)
        if annotation.dtype in (np.int8, np.bool_, torch.int8, torch.bool):
            got = annotation.dtype
            raise ValueError(f"{got} cannot hold the unlabeled value {UNLABELED}; convert the annotation to uint8.")
        hidden = annotation.clone() if isinstance(annotation, torch.Tensor) else annotation.copy()
        hidden[np.flatnonzero(~seen).tolist()] = UNLABELED
        return hidden

    def seen(self, annotation: NdarrayOrTensor, drew: Any) -> NDArray[np.bool_]:
        """Which of the annotators of an annotation (R, *S) drew it, bool (R,)."""
        if self.names is not None and len(self.names) != len(annotation):
            raise ValueError(f"annotation must have a channel for each of {self.names}, got {len(annotation)}.")
        seen = np.zeros(len(annotation), bool)
        seen[annotator_numbers(drew, len(annotation) if self.names is None else self.names)] = True
        return seen


def random_seed(state: np.random.RandomState) -> int:
    """A seed below 2**32 from a MONAI random state.

    Example:
        >>> 0 <= random_seed(np.random.RandomState(0)) < 2**32
        True
    """
    return int(state.randint(2**32, dtype=np.uint32))


def checksum(values: Values) -> int:
    """CRC-32 of a uint8 label map, wherever it lives.

    Example:
        >>> checksum(np.zeros(4, np.uint8)) == checksum(torch.zeros(4, dtype=torch.uint8))
        True
    """
    return zlib.crc32(np.ascontiguousarray(convert_to_numpy(values)).data)


def _plain(label: Any) -> Any:
    return label.as_tensor() if isinstance(label, MetaTensor) else label


def _integers(values: Values) -> Values:
    """The same numbers as uint8, after checking that they are integers from 0 to 255."""
    library: Any = torch if isinstance(values, torch.Tensor) else np
    if values.dtype == library.uint8:
        return values
    if not library.isfinite(values).all():
        raise ValueError("label must hold integers, got NaN or infinite values.")
    with np.errstate(invalid="ignore"):
        integers = library.asarray(values, dtype=library.uint8)
    wrong = integers != values
    if wrong.any():
        raise ValueError(
            f"label must hold integers from 0 to 255, got {values[wrong][0]}; resample labels by nearest neighbour; a "
            "lazy pipeline needs overrides={key: {'mode': 'nearest'}} for that."
        )
    return integers


def _draw(
    profile: AnnotatorProfile, values: Values, target: int | None, spacing: Any, rng: Any, classes: int
) -> Drawing:
    if not isinstance(values, torch.Tensor):
        return draw(profile, values, target, spacing, rng, classes)
    annotations, parameters = draw_batch(profile, values[None], target, spacing, [rng], classes)
    return Drawing(annotations[0], parameters[0])  # type: ignore[arg-type]


def _apply(profile: AnnotatorProfile, values: Values, target: int | None, spacing: Any, parameters: Any) -> Values:
    if not isinstance(values, torch.Tensor):
        return apply(profile, values, target, spacing, parameters)
    return apply_batch(profile, values[None], target, spacing, [parameters])[0]


def _refuse_0_255(values: Values) -> None:
    """Raise for what is probably a mask stored as 0/255."""
    unlabeled = values == UNLABELED
    if unlabeled.any() and not unlabeled.all() and not values[~unlabeled].any():
        raise ValueError(
            "label holds only 0 and 255: a 0/255 mask? 255 means unlabeled; map it with MapLabelValued(keys, [0, 255], "
            "[0, 1]). An image without any object is drawn before it is cropped or OutsideToUnlabeledd restricts it."
        )


def _stacked(annotations: list[Values], label: NdarrayOrTensor) -> NdarrayOrTensor:
    stack: Any = torch.stack if annotations and isinstance(annotations[0], torch.Tensor) else np.stack
    stacked = stack(annotations) if annotations else np.empty((0, *label.shape[1:]), np.uint8)
    return convert_to_dst_type(stacked, label, dtype=np.uint8)[0]
