"""Images and drawings of one's own: what a datalist of them must be like, checked before anything is trained.

A datalist has the lists ``training``, ``validation`` and ``test`` of ``{"image": file or files, "drawing": file or
files, "label": file}``, relative to the datalist. Only ``image`` is needed everywhere. Every training item needs what
is learned from: a drawing, with supervision ``"dense"`` a ``label``, the true classes, and with ``"semi"`` one of the
two; otherwise ``label`` is for scoring. What is null, "" or [] is not there; in a list of drawings null stands for
somebody who drew nothing.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import EnsureChannelFirstd
from numpy.typing import NDArray

from medcoarse.assignment import ANNOTATORS_KEY
from medcoarse.confusion import UNLABELED
from medcoarse.datalist import DataError, Item, load_datalist, raise_problems, verify_datalist
from medcoarse.files import load_weights
from medcoarse.inspection import count
from medcoarse.planning import WHOLE_RATIO, factors
from medcoarse.planning import block_size as block_size  # the bundle calls it
from medcoarse.planning import num_heads as planned_heads
from medcoarse.readers.dicom import require_one_series
from medcoarse.transforms.array import spacing_of
from medcoarse.transforms.dictionary import MergeStrokesd
from medcoarse.transforms.drawn import LoadCoarseAnnotationd, LoadMaskd, LoadStrokesOfEachd
from medcoarse.transforms.expand import (
    SpreadBackgroundd,
    fill_beyond_loops,
    losing_ratios,
    safe_ratio,
    spread_background,
)
from medcoarse.transforms.series import LoadImageOrSeriesd, require_intensities

logger = logging.getLogger(__name__)

SECTIONS = ("training", "validation", "test")


def section_items(datalist: str | Path, section: str) -> list[Item]:
    """Items of a section, or of the one that stands in for it, see `section_of`.

    Args:
        datalist: the JSON file.
        section: ``"training"``, ``"validation"`` or ``"test"``.

    Raises:
        DataError: no such file, not JSON, or nothing in any of these sections.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "datalist.json"
        >>> _ = path.write_text('{"training": [{"image": "a.png", "drawing": "b.png"}], "validation": []}')
        >>> [Path(item["image"]).name for item in section_items(path, "validation")]
        ['a.png']
    """
    chosen = section_of(datalist, section)
    if chosen != section:
        logger.warning("%s has no %s items: the %s items are used instead", datalist, section, chosen)
    return _items(datalist, chosen)


def _items(datalist: str | Path, section: str) -> list[Item]:
    """Items of a section; of several people's drawings those that there are, and who made these."""
    items = load_datalist(datalist, section)
    for item in items:
        files, names = item.get("drawing"), item.get(ANNOTATORS_KEY)
        if isinstance(files, list) and isinstance(names, list) and len(files) == len(names):
            made = [(file, name) for file, name in zip(files, names, strict=True) if file is not None]
            item["drawing"], item[ANNOTATORS_KEY] = ([pair[part] for pair in made] for part in (0, 1))
    return items


def some_items(items: Sequence[Item], number: int | None = None, seed: int = 0) -> list[Item]:
    """So many of the items, drawn at random; fewer of the same seed are among more of it.

    Args:
        items: of a section.
        number: how many, 1 to as many as there are; ``None`` for all, in their order.
        seed: >= 0.

    Raises:
        DataError: another number.

    Example:
        >>> items = [{"image": name} for name in "abcd"]
        >>> [item["image"] for item in some_items(items, 2)], [item["image"] for item in some_items(items, 3)]
        (['c', 'a'], ['c', 'a', 'b'])
    """
    if number is None:
        return list(items)
    if not 1 <= number <= len(items):
        raise DataError(f"num_training must be from 1 to {len(items)}, as many as there are, got {number}")
    return [items[i] for i in np.random.default_rng(seed).permutation(len(items))[:number]]


def _present(datalist: str | Path) -> list[str]:
    """The sections that list something."""
    load_datalist(datalist, "training")  # says what is wrong with the file
    content = json.loads(Path(datalist).read_text(encoding="utf-8"))
    return [name for name in SECTIONS if content.get(name)]


def section_of(datalist: str | Path, section: str) -> str:
    """The section that stands in for one that lists nothing: the training items last."""
    present = _present(datalist)
    order = {"validation": ("validation", "test", "training"), "test": ("test", "validation", "training")}
    return next((name for name in order.get(section, (section,)) if name in present), section)


def reported_items(datalist: str | Path, images: Sequence[str | Path | Sequence[str]]) -> list[Item]:
    """Items to report: those of some images, with the drawings that the datalist has of them; else its test items.

    Args:
        datalist: the JSON file.
        images: files, or folders of DICOM series; lists of them where each is a channel.

    Raises:
        SystemExit: there are none.
    """
    if not images:
        found = _items(datalist, "test") if "test" in _present(datalist) else []
        if not found:
            raise SystemExit(f"{datalist} has no test items; pass images to report on, as --cases \"['a.nii.gz']\"")
        return found
    known = {_place(item["image"]): item for name in _present(datalist) for item in _items(datalist, name)}
    plain = [str(image) if isinstance(image, str | Path) else list(image) for image in images]
    return [known.get(_place(image), {"image": image}) for image in plain]


def undrawn_items(datalist: str | Path, images: Sequence[str | Sequence[str]]) -> list[Item]:
    """Items of those images of which the datalist has no drawing, and no label either.

    Args:
        datalist: the JSON file.
        images: as for `reported_items`; none gives none.

    Raises:
        SystemExit: there are none.
    """
    items = reported_items(datalist, images) if images else []
    found = [item for item in items if not item.get("drawing") and not item.get("label")]
    if images and not found:
        raise SystemExit(
            f"all {len(images)} images of the pool have drawings or masks already; pass some that nobody has drawn"
        )
    return [{"image": item["image"]} for item in found]


def calibrating_items(datalist: str | Path, reported: Sequence[Item]) -> list[Item]:
    """Items that tell whether a network's probabilities can be believed: the validation items that are not reported.

    All have a label, or, where none has, a drawing. None where there is no validation section, or its files are gone:
    items that were trained on would make the network look surer than it may be.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "datalist.json"
        >>> _ = path.write_text('{"training": [{"image": "a.png", "drawing": "b.png"}], "validation": []}')
        >>> calibrating_items(path, [])
        []
    """
    listed = _items(datalist, "validation") if "validation" in _present(datalist) else []
    taken = {_place(item["image"]) for item in reported}
    for key in ("label", "drawing"):
        found = [item for item in listed if item.get(key) and _place(item["image"]) not in taken]
        if found:
            missing = [str(item["image"]) for item in found if not Path(_place(item["image"])[0]).exists()]
            if missing:
                logger.warning("%d validation images are gone, first %s: not calibrated", len(missing), missing[0])
            return [] if missing else found
    return []


def first_file(image: str | Sequence[str]) -> str:
    """The file of an image, or of its first channel."""
    return image if isinstance(image, str) else image[0]


def _place(image: Any) -> tuple[str, ...]:
    """Where an image is, whatever it is called by."""
    files = [image] if isinstance(image, str | Path) else image
    return tuple(str(Path(file).resolve()) for file in files)


def check_patch(patch_size: Sequence[int], strides: Sequence[int | Sequence[int]], spatial_dims: int) -> None:
    """Leave with one line (``SystemExit``) unless a network with these strides gives back patches of this size.

    Raises:
        SystemExit: another number of axes, or a side that the strides do not divide.

    Example:
        >>> check_patch([48, 48, 6], [[2, 2, 1], 2, 2], 3)
        Traceback (most recent call last):
        SystemExit: patch_size [48, 48, 6] must be multiples of [8, 8, 4], the products of the network's strides
    """
    if len(patch_size) != spatial_dims:
        raise SystemExit(f"patch_size must have {spatial_dims} numbers (spatial_dims), got {list(patch_size)}")
    wanted = factors(strides, spatial_dims)
    if any(side < 1 or side % factor for side, factor in zip(patch_size, wanted, strict=True)):
        raise SystemExit(
            f"patch_size {list(patch_size)} must be multiples of {wanted}, the products of the network's strides"
        )


def label_values(num_classes: int, undrawn_is_background: bool = False) -> dict[int, tuple[int, str] | None]:
    """What the values mean that a reader draws in MONAI Label: a mapping for `LoadCoarseAnnotationd`.

    k is class k, ``num_classes`` is background, 0 is nothing drawn. With two classes 2 and 3 are what MONAI Label's
    scribbles have: "this is not it" and "this is it".

    Args:
        num_classes: L >= 2, background included.
        undrawn_is_background: 0 is background: for finished masks.

    Example:
        >>> label_values(2)
        {0: None, 1: (1, 'positive'), 2: (1, 'negative'), 3: (1, 'positive')}
        >>> label_values(3, undrawn_is_background=True)
        {0: (0, 'positive'), 1: (1, 'positive'), 2: (2, 'positive'), 3: (0, 'positive')}
    """
    undrawn = {0: (0, "positive") if undrawn_is_background else None}
    if num_classes == 2:
        return undrawn | {1: (1, "positive"), 2: (1, "negative"), 3: (1, "positive")}
    return undrawn | {k: (k % num_classes, "positive") for k in range(1, num_classes + 1)}


def prepare_drawings(
    datalist: str | Path | None,
    draw: Callable[[], Path],
    mapping: str | Mapping[Any, Any],
    spatial_dims: int,
    in_channels: int,
    num_classes: int,
    class_names: Sequence[str] | None = None,
    supervision: str = "strokes",
    annotators: Sequence[str] = (),
    loops: bool = False,
    spread_background: float = 0.0,
    binary_labels: bool = False,
    only_named: bool = False,
    **reading: Any,
) -> str:
    """The verified datalist to train on: the one that is given, else that of drawn volumes.

    Every file is decoded once, every drawing is read as training will read it, before it fills beyond closed lines.

    Args:
        datalist: the JSON file; empty or ``None`` draws.
        draw: makes a folder with ``datalist.json``.
        mapping: see `medcoarse.transforms.drawn.LoadCoarseAnnotationd`.
        spatial_dims: 2 or 3; images of one slice count as 2D as well.
        in_channels: of every image.
        num_classes: L, background included.
        class_names: L names, background first.
        supervision: ``"dense"`` learns from labels and needs no drawings, ``"semi"`` from both, and an item needs one.
        annotators: names of those whose drawings are kept apart; none merges them.
        loops: whether what lies beyond closed lines of background is background.
        spread_background: ratio of `medcoarse.transforms.expand.SpreadBackgroundd`, or 0; where the strokes speak
            against it, it warns.
        binary_labels: whether 255 in a label is class 1, and not unlabeled.
        only_named: whether segments in labels that are no class are left out.
        reading: further arguments of `LoadCoarseAnnotationd`.

    Raises:
        SystemExit: what stands against training, with one line for each. It is no ``Exception`` because MONAI would
            bury the message under the traceback of its configuration parser.
    """
    try:
        path = Path(datalist) if datalist else draw() / "datalist.json"
        sections = {name: _items(path, name) for name in _present(path)}
        verify_annotators(sections, annotators)
        SpreadBackgroundd("positive", spread_background)  # refuses what is no ratio
        read = _reading(annotators, mapping, num_classes, class_names, reading)
        names = _names(num_classes, class_names)
        placing = {key: value for key, value in reading.items() if key in ("resample", "contradictions")}
        placing |= {"binary": binary_labels, "only_named": only_named, "allow_missing_keys": True}
        read_mask = LoadMaskd("label", num_classes, names, **placing)
        options = (supervision, loops, spread_background, annotators)
        verify_drawings(sections, read, read_mask, spatial_dims, in_channels, names, *options)
    except (ValueError, FileExistsError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    return str(path)


def _names(num_classes: int, class_names: Sequence[str] | None) -> list[str]:
    names = list(class_names) if class_names is not None else [str(k) for k in range(num_classes)]
    if len(names) != num_classes or len(set(names)) != num_classes:
        raise ValueError(f"class_names must be {num_classes} different names, background first, got {names}.")
    return names


def _reading(
    annotators: Sequence[str],
    mapping: str | Mapping[Any, Any],
    num_classes: int,
    class_names: Sequence[str] | None,
    options: Mapping[str, Any],
) -> Callable[[Any], dict[Hashable, Any]]:
    """Adds the strokes as they were drawn, under "positive": of everybody who is kept apart, or merged into one map."""
    given = {"num_classes": num_classes, "mapping": mapping, "class_names": class_names, **options}
    if annotators:
        return LoadStrokesOfEachd("drawing", annotators, **given)
    load = LoadCoarseAnnotationd("drawing", **given)
    merge = MergeStrokesd(merged_key="positive", num_classes=num_classes, allow_missing_keys=True)
    return lambda item: merge(load(item))  # no Compose, which wraps what is wrong in an error of its own


def verify_annotators(sections: Mapping[str, Sequence[Item]], annotators: Sequence[str]) -> None:
    """Verify that every drawing has an author, and every author a drawing to learn from; where they are kept apart.

    Raises:
        DataError: they have not.

    Example:
        >>> verify_annotators({"training": [{"image": "a", "drawing": ["b"], "annotators": ["Ada"]}]}, ["Ada", "Max"])
        Traceback (most recent call last):
        medcoarse.datalist.DataError: no training image was drawn by 'Max'; take them off the annotators, or add one
    """
    if not annotators:
        return
    for item in (item for items in sections.values() for item in items if item.get("drawing")):
        files, names = item["drawing"], item.get(ANNOTATORS_KEY, [])
        fitting = isinstance(files, list) and isinstance(names, list) and len(files) == len(names)
        if not fitting or any(name not in annotators for name in names):
            raise DataError(
                f"{item['image']}: who drew it is {names}; list its drawings, and as many of the annotators "
                f"{list(annotators)} under 'annotators'"
            )
    drawn = [item for item in sections.get("training", ()) if item.get("drawing")]
    _require_busy(annotators, {name for item in drawn for name in item[ANNOTATORS_KEY]})


def _require_busy(annotators: Sequence[str], drew: Collection[str]) -> None:
    """Who has nothing to be learned from must not vote, and cannot be told anything about."""
    if idle := [name for name in annotators if name not in drew]:
        raise DataError(
            f"no training image was drawn by {', '.join(map(repr, idle))}; take them off the annotators, or add one"
        )


def who_drew_any(items: Sequence[Item], annotators: Sequence[str]) -> list[int]:
    """Numbers of the annotators who drew one of the items or more; everybody's where no item says who drew it.

    Example:
        >>> who_drew_any([{"annotators": ["Max"]}, {"image": "b.nii.gz"}], ["Ada", "Max"])
        [1]
    """
    drew = {name for item in items for name in item.get("annotators", [])}
    return [number for number, name in enumerate(annotators) if name in drew or not drew]


def drawn_ratio(items: Iterable[Mapping[str, Any]]) -> float:
    """How much of an image is drawn by who drew it, 0 to 1: the mean over items with annotators' maps "positive",
    (R, *S), in which somebody drew anything, of the mean over those who did.

    Example:
        >>> drawn_ratio([{"positive": torch.tensor([[[0, 1, 255, 255]], [[1, 1, 1, 0]], [[255] * 4]])}])
        0.75
    """
    means = []
    for item in items:
        ratios = (torch.as_tensor(item["positive"]) != UNLABELED).flatten(1).float().mean(1)
        if ratios.any():
            means.append(float(ratios[ratios > 0].mean()))
    return statistics.fmean(means or [0])


def are_whole(items: Iterable[Mapping[str, Any]]) -> bool:
    """Whether who drew one of these items, see `drawn_ratio`, drew nearly all of it."""
    return drawn_ratio(items) > WHOLE_RATIO


def num_heads(annotators: Sequence[str], num_classes: int, items: Iterable[Mapping[str, Any]]) -> int:
    """One head of the segmenter for each annotator, or 0 for none, see `medcoarse.planning.num_heads`.

    Items are read of several annotators alone.

    Example:
        >>> drew = [{"positive": torch.tensor([[[0, 1]], [[1, 1]]])}]
        >>> num_heads(["Ada", "Max"], 2, drew), num_heads([], 2, drew)
        (2, 0)
    """
    if len(annotators) < 2:
        return 0
    number, why = planned_heads(len(annotators), num_classes, drawn_ratio(items))
    logger.info("num_heads %d: %s", number, why)
    return number


def heads_in(weights: str | Path) -> int:
    """The number of heads of a segmenter, by its weights; 0 where it has none, or there is no such file yet.

    Raises:
        ValueError: the file is damaged, or holds something else than weights.

    Example:
        >>> heads_in("no/such/model.pt")
        0
    """
    return len(load_weights(weights).get("votes", ())) if Path(weights).is_file() else 0


def one_each(items: Sequence[Item], annotators: Sequence[str]) -> bool:
    """Whether several people drew, and one of them each image. What `medcoarse train` made before heads asks for it.

    Example:
        >>> one_each([{"annotators": ["Ada"]}, {"annotators": ["Max", "Max"]}], ["Ada", "Max"])
        True
    """
    return len(annotators) > 1 and all(len(set(item.get("annotators", []))) == 1 for item in items)


def verify_drawings(
    sections: Mapping[str, Sequence[Item]],
    read: Callable[[Any], dict[Hashable, Any]],
    read_mask: Callable[[Any], dict[Hashable, Any]],
    spatial_dims: int,
    in_channels: int,
    class_names: Sequence[str],
    supervision: str = "strokes",
    loops: bool = False,
    spread: float = 0.0,
    annotators: Sequence[str] = (),
) -> dict[str, int]:
    """Verify images, labels and drawings; count what was drawn for training, before more background is read into it.

    Returns:
        Voxels drawn of each class in the training items, by name.

    Raises:
        DataError: files that are damaged or do not fit, items without what is learned from, a class that nothing shows,
            an annotator in whose drawings there is nothing.
    """
    training = sections.get("training", ())
    _require_what_is_learned(training, supervision)
    for item in chain.from_iterable(sections.values()):
        files = item.get("image")
        for file in files if isinstance(files, list) else [files]:
            if isinstance(file, str):  # what is no name of a file is said with all else that is wrong
                require_one_series(Path(file))
    verify_datalist(sections, label_keys=(), mask_keys=(), allow_missing_annotation=True, num_threads=1)
    load, channel_first = LoadImageOrSeriesd("image"), EnsureChannelFirstd("image")  # Compose would bury what is wrong
    tally, problems = _Tally(len(annotators)), list[str]()
    for name, item in ((name, item) for name, items in sections.items() for item in items):
        try:
            image = channel_first(load({"image": item["image"]}))
            _check_image(image["image"], str(item["image"]), spatial_dims, in_channels)
            mask = np.asarray(read_mask({**item, **image})["label"]) if item.get("label") else None
            drawn = np.asarray(read({**item, **image})["positive"]) if item.get("drawing") else None
        except DataError as error:
            problems.append(str(error))
            continue
        if name == "training" and mask is not None and supervision == "semi":
            tally.add_mask(mask)
        if name == "training" and drawn is not None:
            tally.add_drawing(drawn)
            if supervision != "dense":
                tally.add_reach(drawn, spacing_of(image["image"], None), loops, spread)
    raise_problems(problems, count(sum(map(len, sections.values())), "item"))
    _require_busy(annotators, [name for name, some in zip(annotators, tally.drew, strict=True) if some])
    found = tally.by_name(class_names)
    if supervision != "dense":
        _require_shown(found, tally.masked, supervision == "semi")
    logger.info("Voxels drawn for training: %s", ", ".join(f"{name} {number}" for name, number in found.items()))
    if supervision != "dense":
        _warn_of_little_background(found, tally.background)
        _warn_of_spreading(tally.losing, spread, loops)
    return found


def _require_what_is_learned(training: Sequence[Item], supervision: str) -> None:
    """Refuse training items without a drawing, a label, or either."""
    needed = {"dense": ["label"], "semi": ["drawing", "label"]}.get(supervision, ["drawing"])
    lacking = [str(item.get("image")) for item in training if not any(item.get(key) for key in needed)]
    if lacking:
        missing = " and no ".join(map(repr, needed))
        raise DataError(f"{len(lacking)} training items have no {missing}, first {lacking[0]}; add it or take them off")
    if supervision == "semi" and not any(item.get("label") for item in training):
        raise DataError("no training item has a 'label'; add masks, or learn from drawings alone (supervision strokes)")


class _Tally:
    """What is drawn of the images to train on.

    Args:
        num_annotators: whose drawings are kept apart.
    """

    def __init__(self, num_annotators: int) -> None:
        self.drawn, self.masked = np.zeros((2, 256), np.int64)  # voxels of each class
        self.drew = np.zeros(num_annotators, bool)  # who drew anything
        self.background = 0  # voxels, with what lies beyond closed lines and what is spread
        self.losing: list[float] = []  # see `medcoarse.transforms.expand.losing_ratios`

    def add_mask(self, mask: NDArray[np.uint8]) -> None:
        self.masked += np.bincount(mask.ravel(), minlength=256)

    def add_drawing(self, drawn: NDArray[np.uint8]) -> None:
        """(R, *S) of annotators who are kept apart, else (1, *S)."""
        self.drawn += np.bincount(drawn.ravel(), minlength=256)
        if len(self.drew):
            self.drew |= (drawn != UNLABELED).reshape(len(drawn), -1).any(1)

    def add_reach(self, drawn: NDArray[np.uint8], spacing: Sequence[float], loops: bool, spread: float) -> None:
        """What closed lines and spreading say beyond the drawing."""
        for one in drawn:
            filled = fill_beyond_loops(one)
            self.background += int((spread_background(filled, spacing, spread) == 0).sum())
            self.losing += losing_ratios(filled if loops else one, spacing) if spread else []

    def by_name(self, class_names: Sequence[str]) -> dict[str, int]:
        return dict(zip(class_names, self.drawn[: len(class_names)].tolist(), strict=True))


def _require_shown(found: Mapping[str, int], masked: NDArray[np.int64], learn_masks: bool) -> None:
    """Refuse classes that no training drawing, nor mask, shows."""
    nothing = [name for label, (name, number) in enumerate(found.items()) if not number + masked[label]]
    if nothing:
        or_mask = " or mask" if learn_masks else ""
        raise DataError(
            f"no training drawing{or_mask} shows {', '.join(map(repr, nothing))} (drawn voxels: {found}); draw some of "
            "each class, background too, or correct the mapping"
        )


def _warn_of_little_background(found: Mapping[str, int], read: int) -> None:
    """What lies beyond closed lines, and what is spread, counts too."""
    background, *structures = found.values()
    if read < sum(structures):
        logger.warning(
            "Less background was drawn (%d voxels) than structures (%d): where their drawings run over, little "
            "contradicts them; draw more background, beside the structures",
            background,
            sum(structures),
        )


def _warn_of_spreading(losing: Sequence[float], spread: float, loops: bool) -> None:
    lost = sum(ratio <= spread for ratio in losing)
    if 20 * lost > len(losing):
        logger.warning(
            "With --spread_background %g, %d of the %d strokes of structures would be called background, had they not "
            "been drawn, and so structures that nobody drew on; pass %g instead (`medcoarse train`: into another "
            "--output_dir)",
            spread,
            lost,
            len(losing),
            safe_ratio(losing, loops),
        )


def _check_image(image: Any, name: str, spatial_dims: int, in_channels: int) -> None:
    require_intensities(image, name)
    axes = list(image.shape[1:])
    flat = axes[:-1] if len(axes) == 3 and axes[-1] == 1 else axes
    if len(flat if spatial_dims == 2 else axes) != spatial_dims:
        raise DataError(
            f"{name}: {len(axes)} spatial axes {axes}, expected {spatial_dims}; set spatial_dims to {len(axes)}"
        )
    if len(image) != in_channels:
        raise DataError(f"{name}: {len(image)} channels, expected {in_channels}; set in_channels to {len(image)}")
