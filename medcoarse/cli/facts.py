"""What a folder of images and drawings is like: what a plan needs to know, and what the drawings' values mean."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from monai.data.meta_tensor import MetaTensor
from monai.transforms import EnsureChannelFirstd
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray
from tqdm import tqdm

from medcoarse.cli.channels import Channels, files_of
from medcoarse.cli.files import listed
from medcoarse.cli.label_maps import are_binary, listed_names, look, only_named
from medcoarse.cli.main import CommandError
from medcoarse.confusion import UNLABELED
from medcoarse.datalist import DataError
from medcoarse.grids import Facts
from medcoarse.inspection import PIL_SUFFIXES
from medcoarse.readers.claims import KINDS, PRESETS, ContradictionError, drawn_names, folded
from medcoarse.readers.dicom import first_image, read_tags, require_one_series
from medcoarse.readers.drawing import Grid, as_affine, checked_affine
from medcoarse.readers.formats import LABEL_MAP_SUFFIXES, is_series, read_drawing
from medcoarse.readers.geojson import UNCLASSIFIED
from medcoarse.transforms.array import spacing_of
from medcoarse.transforms.dictionary import MergeStrokesd
from medcoarse.transforms.drawn import LoadCoarseAnnotationd, LoadMaskd, grids_of
from medcoarse.transforms.expand import count_loops, fill_beyond_loops, losing_ratios
from medcoarse.transforms.series import LoadImageOrSeriesd, join, require_intensities

_MAX_CLASSES = 254
_MOST_SAMPLES = 20000
Table = dict[str, Any]


@dataclass(frozen=True)
class Classes:
    """What drawings say.

    Args:
        names: of the classes, background first.
        mapping: value or name -> [class, "positive" or "negative"], or None; see `LoadCoarseAnnotationd`.
        said: how the mapping was found, in words.
        silent: drawings in which nothing is drawn.
        contradicted: drawings that say two things of a voxel.
        blank: images with one value everywhere, by name.
        loops: slices with strokes of a class, and how many of them have a closed line of background round them.
        losing: of each image, at which ratios its strokes would be called background; see
            `medcoarse.transforms.expand.losing_ratios`.
        drawn: voxels drawn of each class, by number, on each image; of classes that are drawn there.
        masked: the same of masks, of images that have one.
        binary_masks: whether the masks have 255 for class 1.
        lacking: lines on masks in which a class may be missing for its name alone.
    """

    names: list[str]
    mapping: Table
    said: str
    silent: tuple[Path, ...] = ()
    contradicted: tuple[Path, ...] = ()
    blank: tuple[str, ...] = ()
    loops: tuple[int, int] = (0, 0)
    losing: Mapping[Path, Sequence[float]] = field(default_factory=dict)
    drawn: Mapping[Path, Mapping[int, int]] = field(default_factory=dict)
    masked: Mapping[Path, Mapping[int, int]] = field(default_factory=dict)
    binary_masks: bool = False
    lacking: tuple[str, ...] = ()


def load_image(path: Path, channels: Channels = MappingProxyType({})) -> MetaTensor:
    """An image as the bundle loads it: (C, *S).

    Args:
        path: of the image.
        channels: the files of images that have several.

    Raises:
        CommandError: damaged, no image, several DICOM series in one folder, or channels on different grids.
    """
    try:
        return join({file: _load(file) for file in files_of(path, channels)})
    except DataError as error:
        raise CommandError(str(error)) from None


def _load(path: Path) -> MetaTensor:
    try:
        require_one_series(path)
        loaded = EnsureChannelFirstd("image")(LoadImageOrSeriesd("image")({"image": str(path)}))
        image = cast(MetaTensor, loaded["image"])
        require_intensities(image, path)
        checked_affine(path, as_affine(image.affine.cpu().numpy()))
    except DataError as error:
        raise CommandError(str(error)) from None
    except Exception as error:  # the readers' libraries promise no types, and may quote a header
        raise CommandError(f"{path}: damaged, or no image that can be read ({type(error).__name__})") from None
    if image.ndim not in (3, 4) or not image.numel():
        raise CommandError(f"{path}: has {image.ndim - 1} axes, expected a picture or a volume")
    if not bool(image.isfinite().all()):
        raise CommandError(f"{path}: has values that are not numbers (NaN or infinity); repair it")
    return image


def modality_of(path: Path) -> str:
    """CT, MR, ... from DICOM; "picture"; or nothing."""
    if path.name.lower().endswith(PIL_SUFFIXES):
        return "picture"
    if not is_series(path):
        return ""
    file = first_image(path) if path.is_dir() else path
    return "" if file is None else read_tags(file, ["Modality"])["Modality"]


@dataclass(frozen=True)
class Reading:
    """How somebody asks for drawings and masks to be read.

    Args:
        mapping: one of `PRESETS`, a JSON object or file, or None: "slicer" where the drawings have names,
            "unlabeled_255" where 255 is drawn, else "itksnap".
        background: the value or name of what is drawn as background.
        class_names: of the foreground, in the order of their values.
        resample: whether drawings on another grid than their image's are brought there.
        loops: whether what lies beyond closed lines of background is background.
        nested: whether segments lie in one another, later classes in earlier ones.
        only_named: whether segments that are none of `class_names`, nor background, are left out.
    """

    mapping: str | None = None
    background: str | None = None
    class_names: Sequence[str] | None = None
    resample: bool = False
    loops: bool = False
    nested: bool = False
    only_named: bool = False


def inspect(
    pairs: Mapping[Path, Sequence[Path]],
    reading: Reading,
    channels: Channels = MappingProxyType({}),
    masks: Mapping[Path, Path] = MappingProxyType({}),
) -> tuple[Facts, Classes]:
    """Decode every image, drawing and mask; two passes over the drawings, for the first tells what is in them.

    Args:
        pairs: image -> drawings.
        reading: how drawings and masks are read.
        channels: the files of images that have several.
        masks: image -> mask, of images that have one.

    Raises:
        CommandError: a damaged file, images that cannot be trained on together, drawings or masks that do not fit their
            images or are not in the mapping.
    """
    rows, found, named = [], set[str](), set[bool]()
    for image, drawings in tqdm(pairs.items(), "inspecting", leave=False, disable=None):
        loaded = load_image(image, channels)
        rows.append(_row(files_of(image, channels), loaded))
        for drawing in drawings:
            values, segments = _values(drawing, loaded, image)
            found |= values
            named.add(segments)
    _require_alike(list(pairs), rows)
    meaning = (reading.mapping, reading.background, reading.class_names, reading.only_named)
    classes = find_classes(found, True in named, *meaning)
    if reading.only_named and True not in named and not masks:
        raise CommandError("--only_named: the drawings hold no segments, and values of label maps are not left out")
    if reading.nested:
        classes = in_order_of_classes(classes, reading.class_names)
    blank = tuple(image.name for image, row in zip(pairs, rows, strict=True) if row["low"] == row["high"])
    classes = replace(classes, binary_masks=_are_binary(list(masks.values()), classes.names), blank=blank)
    ranges, checked = _check_drawings(pairs, masks, classes, reading, channels)
    dims = {len(row["shape"]) for row in rows}
    modalities = {row["modality"] for row in rows}
    pictures = "picture" in modalities
    facts = Facts(
        [row["shape"] for row in rows],
        None if pictures else [row["spacing"] for row in rows],
        rows[0]["channels"],
        modalities.pop() if len(modalities) == 1 and len(dims) == 1 else "",
        **{key: float(np.median([row[key] for row in rows])) for key in ("low", "high", "usual")},
        drawn_range=ranges,
        orientations=[row["orientation"] for row in rows] if dims == {3} and not pictures else None,
    )
    return facts, checked


def _row(files: Sequence[Path], image: MetaTensor) -> dict[str, Any]:
    shape = tuple(image.shape[1:])
    flat = shape[:-1] if len(shape) == 3 and shape[-1] == 1 else shape
    modalities = {modality_of(file) for file in files}
    spacing = np.linalg.norm(as_affine(image.affine.cpu().numpy())[:3, :3], axis=0)[: len(flat)]
    values = np.asarray(image).ravel()
    sample = values[:: max(1, values.size // _MOST_SAMPLES)]
    return {
        "shape": flat,
        "spacing": tuple(float(step) for step in spacing),
        "orientation": orientation_of(image) if len(flat) == 3 else "",
        "channels": len(image),
        "modality": modalities.pop() if len(modalities) == 1 else "",
        "low": float(values.min()),
        "high": float(values.max()),
        "usual": float(np.percentile(sample, 99)),
    }


def orientation_of(image: MetaTensor) -> str:
    """Where the axes of a volume lead: "RAS" for to the right, the front, the head.

    Example:
        >>> orientation_of(MetaTensor(np.zeros((1, 2, 2, 2)), affine=np.diag([-1, -1, 2, 1])))
        'LPS'
    """
    return "".join(aff2axcodes(as_affine(image.affine.cpu().numpy())))  # type: ignore[no-untyped-call]


def _require_alike(images: Sequence[Path], rows: Sequence[Mapping[str, Any]]) -> None:
    for key, what in (("channels", "channels"), ("axes", "axes of more than one voxel")):
        seen: dict[int, list[Path]] = {}
        for image, row in zip(images, rows, strict=True):
            seen.setdefault(len(row["shape"]) if key == "axes" else row[key], []).append(image)
        if len(seen) > 1:
            parts = "; ".join(f"{number} {what}: {listed(some)}" for number, some in sorted(seen.items()))
            raise CommandError(f"the images are not alike ({parts}); train on one kind at a time")


def _values(drawing: Path, image: MetaTensor, path: Path) -> tuple[set[str], bool]:
    """What is drawn, by name, and whether the file names it."""
    grid = Grid(tuple(image.shape[1:]), as_affine(image.affine.cpu().numpy()), None, path.name)
    try:
        read = read_drawing(drawing, grid)
    except DataError as error:
        raise CommandError(str(error)) from None
    names = {name for layer in read.layers for value, name in drawn_names(layer).items() if value or not read.segments}
    if len(names) > _MAX_CLASSES:
        raise CommandError(f"{drawing}: holds {len(names)} different values; is it an image?")
    return names | read.unplaced.keys(), read.segments


def find_classes(
    found: set[str],
    named: bool,
    mapping: str | None = None,
    background: str | None = None,
    class_names: Sequence[str] | None = None,
    only_named: bool = False,
) -> Classes:
    """What the values or names in drawings mean.

    With `only_named` segments that are none of `class_names`, nor background, say nothing.

    Example:
        >>> classes = find_classes({"0", "1", "4", "9"}, False, "itksnap", "9", ["liver", "tumour"])
        >>> classes.mapping
        {'0': None, '1': [1, 'positive'], '4': [2, 'positive'], '9': [0, 'positive']}
        >>> find_classes({"vessel", "not vessel"}, True).mapping
        {'not vessel': [1, 'negative'], 'vessel': [1, 'positive']}
    """
    chosen = mapping or ("slicer" if named else "unlabeled_255" if str(UNLABELED) in found else "itksnap")
    if chosen == "slicer" and not named:
        raise CommandError(
            f"--mapping slicer: the drawings name nothing, their values are {listed_names(found)}; see --help"
        )
    if chosen == "slicer":
        return _by_name(found, background, class_names, only_named)
    if chosen not in PRESETS:
        classes = _explicit(chosen, class_names)
        others: Table = dict.fromkeys(sorted(found - classes.mapping.keys())) if only_named and named else {}
        return replace(classes, mapping=classes.mapping | others)
    if named:
        raise CommandError(f"the drawings name what they show ({listed_names(found)}); leave --mapping {chosen} out")
    numbers = sorted(int(value) for value in found)
    if chosen == "monailabel_scribbles":
        names = _named([1], class_names)
        return Classes(names, {"0": None, "2": [1, "negative"], "3": [1, "positive"]}, "scribbles of MONAI Label")
    silent = {"itksnap": {0}, "unlabeled_255": {UNLABELED}, "dense": set[int]()}[chosen]
    ground = {_number(background, numbers)} if background else set[int]() if chosen == "itksnap" else {0}
    if chosen == "itksnap" and not ground:
        raise CommandError(
            f"the drawings hold the values {numbers}, and in drawings of ITK-SNAP 0 is nothing drawn. Pass "
            "--background VALUE, the label that background was drawn with (draw some of it with a label of its own); "
            "or --mapping dense if 0 is background everywhere; or --mapping as JSON, see --help"
        )
    if not ground <= set(numbers):
        raise CommandError(f"no drawing holds {min(ground)}, which is to be background; the values are {_few(numbers)}")
    labels = [value for value in numbers if value not in silent | ground]
    names = _named(labels, class_names)
    table: Table = {str(value): None for value in sorted(silent)}
    table |= {str(value): [index, "positive"] for index, value in enumerate(labels, 1)}
    table |= {str(value): [0, "positive"] for value in sorted(ground)}
    return Classes(names, table, f"mapping '{chosen}'")


def _number(background: str, numbers: Sequence[int]) -> int:
    try:
        return int(background)
    except ValueError:
        raise CommandError(
            f"--background {background!r} is no number, and the drawings name nothing; their values are {list(numbers)}"
        ) from None


def _named(labels: Sequence[int], class_names: Sequence[str] | None) -> list[str]:
    if not labels:
        raise CommandError("no drawing shows anything but background; draw some of what is to be segmented")
    _require_foreground(class_names, "background")
    names = list(class_names) if class_names else [f"class {value}" for value in labels]
    if len(names) != len(labels) or len({"background", *names}) != len(names) + 1:
        raise CommandError(
            f"--class_names must be {len(labels)} different names, of the values {_few(labels)}; correct the drawing "
            "where one of these is a slip"
        )
    return ["background", *names]


def _require_foreground(class_names: Sequence[str] | None, ground: str) -> None:
    if named := [name for name in class_names or () if folded(name) == ground]:
        raise CommandError(
            f"--class_names: leave {named[0]!r} out; it is class 0 in any case, and the names are of the structures"
        )


def _by_name(found: set[str], background: str | None, class_names: Sequence[str] | None, only_named: bool) -> Classes:
    """Segments "liver", "not liver" and "background", in capitals or not."""
    ground = folded(background or "background")
    _require_foreground(class_names, ground)
    if UNCLASSIFIED in found and not class_names and ground != UNCLASSIFIED:
        raise CommandError(
            f"some annotations have neither a class nor a name ({UNCLASSIFIED!r} here); give them a class in QuPath, "
            "or name all structures in --class_names, these too"
        )
    kinds = {name: KINDS[folded(name).startswith("not ")] for name in found}
    things = {name: folded(name).removeprefix("not ") for name in found}
    spelt: dict[str, str] = {}  # as in a positive drawing, if there is one
    for name in sorted(found, key=lambda name: (KINDS.index(kinds[name]), name)):
        spelt.setdefault(things[name], " ".join(name.split()[kinds[name] == "negative" :]))
    names = list(class_names) if class_names else [spelt[thing] for thing in sorted(spelt) if thing != ground]
    order = {folded(name): index for index, name in enumerate([ground, *names])}
    others = spelt.keys() - order.keys()
    if not names or (others and not only_named) or len(order) <= len(names):
        raise CommandError(
            f"the drawings name {listed_names(found)}, --class_names {names}; name all but background, each once"
            + (", or pass --only_named to leave out those that are none of them" if names and others else "")
        )
    if only_named and (missing := [name for name in names if folded(name) not in spelt]):
        raise CommandError(f"--only_named: no drawing names {missing[0]!r}; there are {listed_names(found)}")
    in_order = sorted((name for name in found if things[name] in order), key=lambda name: (order[things[name]], name))
    table: Table = {name: [order[things[name]], kinds[name]] for name in in_order}
    if not any(label == 0 or (kind == "negative" and len(names) == 1) for label, kind in table.values()):
        raise CommandError(
            f"the drawings name {listed_names(found)}, but not what is background; draw a segment 'background'"
            + (f" or 'not {names[0]}'" if len(names) == 1 else "")
            + ", or pass --background NAME"
        )
    table |= {name: None for name in sorted(found) if things[name] in others}
    said = "names in the drawings" + (f", left out: {listed_names({spelt[name] for name in others})}" if others else "")
    return Classes(["background", *names], table, said)


def in_order_of_classes(classes: Classes, class_names: Sequence[str] | None) -> Classes:
    """The mapping in the order in which structures cover one another, that of the classes.

    Args:
        classes: what drawings say.
        class_names: of the foreground, the outer ones first.

    Raises:
        CommandError: several structures, and no names that say which comes first.

    Example:
        >>> found = find_classes({"tumour", "liver", "rest"}, True, None, "rest", ["liver", "tumour"])
        >>> list(in_order_of_classes(found, ["liver", "tumour"]).mapping)
        ['rest', 'liver', 'tumour']
    """
    if len(classes.names) > 2 and not class_names:
        raise CommandError(
            f"--nested: which of {', '.join(classes.names[1:])} lies in which? Pass --class_names, the outer ones first"
        )
    in_order = sorted(classes.mapping.items(), key=lambda pair: -1 if pair[1] is None else pair[1][0])
    return replace(classes, mapping=dict(in_order), said=f"{classes.said}, later ones cover earlier ones")


def _explicit(text: str, class_names: Sequence[str] | None) -> Classes:
    """A mapping as JSON, or in a file."""
    path = Path(text)
    try:
        content = json.loads(path.read_text(encoding="utf-8") if text.lower().endswith(".json") else text)
        labels = sorted({int(claim[0]) for claim in content.values() if claim is not None})
    except (OSError, ValueError, TypeError, AttributeError, IndexError, KeyError):
        raise CommandError(
            f"--mapping {text!r} is none of {', '.join(PRESETS)}, and no JSON (or file of it) such as "
            '{"0": null, "1": [1, "positive"], "2": [1, "negative"]}'
        ) from None
    names = _named(range(1, max(labels, default=0) + 1), class_names)
    return Classes(names, {str(key): value for key, value in content.items()}, "the given mapping")


def _few(numbers: Sequence[int]) -> str:
    if len(numbers) <= 10:
        return f"{list(numbers)}"
    return f"{', '.join(map(str, numbers[:3]))}, ..., {numbers[-1]}: {len(numbers)} of them, as images have"


def _are_binary(masks: Sequence[Path], names: Sequence[str]) -> bool:
    """Whether masks have the structure as 255, which two classes only may have."""
    binary = are_binary(look(mask for mask in masks if mask.name.lower().endswith(LABEL_MAP_SUFFIXES)))
    if binary and len(names) > 2:
        raise CommandError(
            f"the masks tell 2 classes apart (0 and 255), the drawings {len(names)}: {', '.join(names)}; number the "
            "classes in the masks"
        )
    return binary


def _check_drawings(
    pairs: Mapping[Path, Sequence[Path]],
    masks: Mapping[Path, Path],
    classes: Classes,
    reading: Reading,
    channels: Channels,
) -> tuple[tuple[float, float] | None, Classes]:
    """Read every drawing and mask onto its image, as training will; the range of intensities of what is drawn as
    foreground, and the classes with what the drawings and masks showed.
    """
    shown, problems = _Shown(pairs, classes, reading), list[str]()
    for path, drawings in tqdm(pairs.items(), "reading drawings", leave=False, disable=None):
        image, every = load_image(path, channels), list[NDArray[np.uint8]]()
        for drawing in drawings:
            try:
                every.append(shown.add_drawing(path, drawing, image))
            except DataError as error:
                problems.append(str(error))
        if path in masks:
            try:
                shown.add_mask(path, masks[path], image, every)
            except DataError as error:
                problems.append(str(error))
    if problems:
        files, what = sum(map(len, pairs.values())) + len(masks), "drawings and masks" if masks else "drawings"
        raise CommandError(f"{len(problems)} of {files} {what} cannot be used: {'; '.join(problems[:3])}")
    _require_same_numbers(shown.crossed, classes)
    if reading.only_named:
        shown.require_masks_named(masks.values())
    return shown.values.range(), shown.classes()


class _Shown:
    """What drawings and masks show on their images.

    Args:
        images: all of them, drawn or not.
        found: what values or names mean.
        reading: how drawings and masks are read.

    Raises:
        CommandError: a mapping that cannot be.
    """

    def __init__(self, images: Iterable[Path], found: Classes, reading: Reading) -> None:
        self.found, self.reading, number = found, reading, len(found.names)
        placing: Any = {"resample": reading.resample, "contradictions": "last" if reading.nested else "error"}
        lenient = placing | {"contradictions": "unlabeled"}
        try:
            self._read = LoadCoarseAnnotationd("file", found.mapping, number, **placing)
            self._read_contradicted = LoadCoarseAnnotationd("file", found.mapping, number, **lenient)
        except ValueError as error:
            raise CommandError(f"--mapping: {error}") from None
        self._read_mask = LoadMaskd("file", number, found.names, found.binary_masks, reading.only_named, **placing)
        self._merge = MergeStrokesd(num_classes=number, allow_missing_keys=True)
        self.values = _Values(number)
        self.crossed = np.zeros((number, number), np.int64)
        self.silent, self.contradicted = list[Path](), list[Path]()
        self.loops = (0, 0)
        self.drawn = {image: Counter[int]() for image in images}
        self.losing: dict[Path, list[float]] = {image: [] for image in self.drawn}
        self.masked: dict[Path, Mapping[int, int]] = {}
        self.lacking: list[str] = []
        self._grids: dict[Path, Grid] = {}

    def add_drawing(self, path: Path, drawing: Path, image: MetaTensor) -> NDArray[np.uint8]:
        """The strokes *S of a drawing of an image."""
        item: dict[Hashable, Any] = {"image": image, "file": str(drawing)}
        try:
            maps = self._read(item)
        except ContradictionError:
            maps = self._read_contradicted(item)
            self.contradicted.append(drawing)
        if all((np.asarray(maps[kind]) == UNLABELED).all() for kind in KINDS if kind in maps):
            self.silent.append(drawing)
        if "positive" in maps:
            self.values.add(np.asarray(image)[0], np.asarray(maps["positive"])[0])
        strokes: NDArray[np.uint8] = np.asarray(self._merge(maps)["strokes"])[0]
        self.drawn[path].update(_counted(strokes))
        slices, closed = count_loops(strokes)
        self.loops = (self.loops[0] + slices, self.loops[1] + closed)
        filled = fill_beyond_loops(strokes) if self.reading.loops else strokes
        self.losing[path] += losing_ratios(filled, spacing_of(image, None))
        return strokes

    def add_mask(self, path: Path, mask: Path, image: MetaTensor, drawn: Sequence[NDArray[np.uint8]]) -> None:
        """A mask of an image, beside the strokes on it."""
        self._grids[mask] = grids_of(image)[1]
        values = np.asarray(self._read_mask({"image": image, "file": str(mask)})["file"])
        self.masked[path] = _counted(values)
        self.crossed += sum(_crossed(strokes, values[0], len(self.found.names)) for strokes in drawn)

    def require_masks_named(self, masks: Iterable[Path]) -> None:
        """Refuse masks that show a class under no name; remember which of them do."""
        found = look(masks, self._grids)
        if any(one.segments for one in found.values()):
            self.lacking = only_named(found, self.found.names, {"masks": list(found)})[1]

    def classes(self) -> Classes:
        """What the values mean, and where they are."""
        return replace(
            self.found,
            silent=tuple(self.silent),
            contradicted=tuple(self.contradicted),
            loops=self.loops,
            losing=self.losing,
            drawn=self.drawn,
            masked=self.masked,
            lacking=tuple(self.lacking),
        )


class _Values:
    """Intensities of what is drawn as each structure, of some voxels of each image."""

    def __init__(self, num_classes: int) -> None:
        self.found: list[list[NDArray[Any]]] = [[] for _ in range(1, num_classes)]

    def add(self, image: NDArray[Any], drawn: NDArray[np.uint8]) -> None:
        for label, found in enumerate(self.found, 1):
            values = image[drawn == label]
            found.append(values[:: max(1, values.size // _MOST_SAMPLES)])

    def range(self) -> tuple[float, float] | None:
        """From the lowest 0.5th to the highest 99.5th percentile of a structure, so that none is cut off."""
        every = [np.concatenate(found) for found in self.found if sum(map(len, found))]
        if not every:
            return None
        low, high = zip(*(np.percentile(values, (0.5, 99.5)).tolist() for values in every), strict=True)
        return min(low), max(high)


def _crossed(strokes: NDArray[np.uint8], mask: NDArray[np.uint8], number: int) -> NDArray[np.int64]:
    """Voxels by the class that they were drawn as, and that of the mask."""
    known = (strokes != UNLABELED) & (mask != UNLABELED)
    pairs = strokes[known].astype(np.int64) * number + mask[known]
    return np.bincount(pairs, minlength=number**2).reshape(number, number)


def _require_same_numbers(crossed: NDArray[np.int64], classes: Classes) -> None:
    """Refuse masks in which most of what was drawn as one structure is another; the numbers were mixed up then.

    What lies on background is left alone: strokes on thin structures run over.
    """
    among = crossed[1:, 1:]
    meant = [
        int(row.argmax()) if 2 * row.max() > whole.sum() else None
        for row, whole in zip(among, crossed[1:], strict=True)
    ]
    wrong = next((drawn for drawn, label in enumerate(meant) if label not in (None, drawn)), None)
    if wrong is None:
        return
    names, label = classes.names[1:], cast(int, meant[wrong])
    advice = f"number the classes in the masks as {', '.join(f'{k} {name}' for k, name in enumerate(names, 1))}"
    if not all(key.isdecimal() for key in classes.mapping):
        order = [names[meant.index(k)] for k in range(len(names))] if set(meant) == set(range(len(names))) else []
        advice = "pass --class_names in the order of the masks' numbers" + (
            f": {' '.join(map(repr, order))}" if order else ""
        )
    raise CommandError(
        f"{among[wrong, label]} of {crossed[wrong + 1].sum()} voxels drawn as {names[wrong]!r} are {label + 1} in the "
        f"masks, which is read as {names[label]!r}; {advice}, or correct the masks"
    )


def _counted(labels: NDArray[np.uint8]) -> dict[int, int]:
    """Class -> voxels, of those that are there."""
    numbers, counts = np.unique(labels[labels != UNLABELED], return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))
