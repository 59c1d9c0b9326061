"""Draw every operation on masks and every ready annotator into one picture, `annotations.png`.

Run `python examples/draw_annotations.py`; it needs no data. What is seen is explained in `annotations.md`.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from medcoarse import morphology, outlines
from medcoarse.annotators import AnnotatorProfile, draw
from medcoarse.confusion import UNLABELED
from medcoarse.files import write_atomically
from medcoarse.morphology import Mask
from medcoarse.profiles import PROFILES

COLUMNS = 6
SHAPE = (84, 120)
NOTHING, RIGHT, WRONG, MISSED, SILENT = range(5)
COLOURS = ["#ffffff", "#666666", "#e08214", "#74add1", "#e6e6e6"]
MEANING = {
    RIGHT: "drawn, and right",
    WRONG: "drawn, but wrong",
    MISSED: "not drawn, but should be",
    SILENT: "unlabeled: nothing was said",
}


def line(*corners: tuple[float, float], width: float) -> Mask:
    """A smooth line through the corners (row, column), as wide as asked for."""
    stops = np.linspace(0, len(corners) - 1, 200)
    rows, columns = (np.interp(stops, range(len(corners)), values) for values in zip(*corners, strict=True))
    smooth = np.hanning(41) / np.hanning(41).sum()
    path = [np.convolve(np.pad(values, 20, mode="edge"), smooth, mode="valid") for values in (rows, columns)]
    y, x = np.indices(SHAPE)
    squared = [(y - r) ** 2 + (x - c) ** 2 for r, c in zip(*path, strict=True)]
    return np.asarray(np.min(squared, axis=0) <= (width / 2) ** 2)


def example_mask() -> Mask:
    """A small vessel tree beside a lesion with a hole."""
    tree = [
        line((-4, 12), (24, 24), (50, 18), (90, 30), width=5.5),
        line((24, 24), (14, 42), (18, 56), (-4, 66), width=3.6),
        line((36, 21), (46, 40), (40, 56), (52, 66), width=3.2),
        line((60, 22), (66, 40), (90, 52), width=2.6),
        line((46, 40), (60, 50), (66, 62), width=2.0),
    ]
    y, x = np.indices(SHAPE)
    radius = np.hypot(y - 42, (x - 94) * 1.1)
    angle = np.arctan2(y - 42, x - 94)
    lesion = (radius < 19 + 3 * np.sin(3 * angle + 1) + 2 * np.cos(5 * angle)) & (np.hypot(y - 38, x - 98) > 5)
    return np.asarray(np.any([*tree, lesion], axis=0))


def operations(mask: Mask) -> dict[str, Mask | NDArray[np.float32]]:
    """Every operation, under the call that made it."""
    field = morphology.smooth_field(mask.shape, 3.0, np.random.default_rng(4))
    centers, directions = [(12, 18), (44, 34), (70, 26), (30, 84), (52, 104)], [(2, 1), (1, 3), (1, 1), (1, -1), (0, 1)]
    return {
        "the mask": mask,
        "thin 1 mm": morphology.thin(mask, 1.0),
        "thin 1 mm, preserve": morphology.thin(mask, 1.0, preserve=True),
        "thicken 2 mm": morphology.thicken(mask, 2.0),
        "smooth_field 3 mm": field,
        "swell 3 mm, strength 0.6 mm": morphology.swell(mask, 3.0, 0.6, field),
        "fracture 2.4 x 10 mm": morphology.fracture(mask, centers, directions, 2.4, 10.0),
        "shrink_to_ratio 0.3": morphology.shrink_to_ratio(mask, 0.3, [(40, 34), (42, 80)]),
        "polygonize, tolerance 2 mm": outlines.polygonize(mask, 2.0),
        "polygonize, 24 vertices": outlines.polygonize(mask, num_vertices=24),
        "scribble 3 mm": morphology.scribble(mask, 3.0),
        "complement": morphology.complement(mask),
    }


def compared(drawn: Mask, truth: Mask) -> NDArray[np.int64]:
    """Which voxels are right, wrong or missed."""
    return np.select([drawn & truth, drawn, truth], [RIGHT, WRONG, MISSED], NOTHING)


def show(axes: Axes, picture: NDArray[np.int64], truth: Mask, title: str) -> None:
    """One panel, with the true outline over it."""
    axes.imshow(
        picture, cmap=mpl.colors.ListedColormap(COLOURS), vmin=0, vmax=len(COLOURS) - 1, interpolation="nearest"
    )
    axes.contour(truth, levels=[0.5], colors="black", linewidths=0.4)
    axes.set_title(title, fontsize=9, pad=3)
    axes.set(xticks=[], yticks=[])


def show_operation(axes: Axes, name: str, result: Mask | NDArray[np.float32], mask: Mask) -> None:
    """A mask against the one it was made of, or a field in grey."""
    if result.dtype == np.bool_:
        show(axes, compared(result > 0, ~mask if name == "complement" else mask), mask, name)
        return
    axes.imshow(result, cmap="gray", vmin=0, vmax=1)
    axes.set_title(name, fontsize=9, pad=3)
    axes.set(xticks=[], yticks=[])


def show_annotator(axes: Axes, name: str, profile: AnnotatorProfile, mask: Mask) -> None:
    """An annotation against what a perfect annotator of its kind would have drawn."""
    annotation = draw(profile, mask.astype(np.uint8), seed=6).annotation
    drawn, region = annotation == 1, mask if profile.kind == "positive" else ~mask
    picture = compared(drawn, region)
    picture[annotation == UNLABELED] = SILENT
    said = drawn if profile.kind == "positive" else ~drawn
    overlap = (said & mask).sum() / (said | mask).sum()
    share = (drawn & region).sum() / region.sum()
    show(axes, picture, mask, f"{name}: " + (f"IoU {overlap:.2f}" if profile.dense else f"{share:.0%} drawn"))


def block(figure: SubFigure, title: str, number: int) -> list[Axes]:
    """A titled grid of empty panels, `COLUMNS` to a row."""
    figure.suptitle(title, x=0.005, ha="left", fontsize=11, fontweight="bold")
    panels = figure.subplots(-(-number // COLUMNS), COLUMNS).ravel()
    for axes in panels[number:]:
        axes.set_axis_off()
    return list(panels[:number])


def main(path: Path) -> None:
    """Draw the picture and write it in one go."""
    mask = example_mask()
    results = operations(mask)
    figure = Figure(figsize=(13.5, 14.1), layout="constrained")
    grid = figure.add_gridspec(3, 1, height_ratios=[2, 5, 0.14])
    above, below, foot = (figure.add_subfigure(grid[k]) for k in range(3))
    for axes, (name, result) in zip(block(above, "Operations", len(results)), results.items(), strict=True):
        show_operation(axes, name, result, mask)
    for axes, (name, profile) in zip(block(below, "Annotators", len(PROFILES)), PROFILES.items(), strict=True):
        show_annotator(axes, name, profile, mask)
    handles = [Patch(facecolor=COLOURS[k], edgecolor="black", linewidth=0.4, label=text) for k, text in MEANING.items()]
    foot.legend(handles=handles, loc="center", ncols=len(handles), fontsize=10, frameon=False)
    drawing = io.BytesIO()
    figure.savefig(drawing, dpi=100)
    few_colours = Image.open(drawing).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    write_atomically(path, lambda file: few_colours.save(file, format="PNG", optimize=True))


if __name__ == "__main__":
    main(Path(__file__).with_name("annotations.png"))
