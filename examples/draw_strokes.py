"""Draw what strokes say of what lies around them into one picture, `strokes.png`.

Run `python examples/draw_strokes.py`; it needs no data. What is seen is explained in `drawings.md`.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from medcoarse.confusion import UNLABELED
from medcoarse.files import write_atomically
from medcoarse.synthetic.pelvis import CLASS_NAMES, PelvisScan, pelvis_scan
from medcoarse.transforms.expand import fill_beyond_loops, spread_background

SPACING = (1.25, 1.25, 3.6)
DRAWN, ADDED = ["#2166ac", "#b2182b", "#fdae61"], "#67a9cf"
SHOWN = 8


def painted(image: NDArray[np.int16], drawn: NDArray[np.uint8], read: NDArray[np.uint8]) -> NDArray[np.float64]:
    """A slice with strokes in full colours, and what is read beside them as a veil."""
    grey = np.clip((image - image.min()) / (np.percentile(image, 99.5) - image.min()), 0, 1)
    picture = np.repeat(grey[..., None], 3, -1)
    added = (read != UNLABELED) & (drawn == UNLABELED)
    picture[added] = (picture[added] + mpl.colors.to_rgb(ADDED)) / 2
    for number, colour in enumerate(DRAWN):
        picture[drawn == number] = mpl.colors.to_rgb(colour)
    return np.asarray(np.moveaxis(picture, 1, 0))


def readings(scan: PelvisScan, looped: bool) -> dict[str, NDArray[np.uint8]]:
    """The strokes as they are, and with more and more background."""
    strokes = scan.strokes
    if not looped:
        spread = {
            f"SpreadBackgroundd, ratio {ratio}": spread_background(strokes, SPACING, ratio) for ratio in (0.3, 0.5)
        }
        return {"background: dabs": strokes, **spread}
    filled = fill_beyond_loops(strokes)
    both = {"and SpreadBackgroundd, ratio 0.3": spread_background(filled, SPACING, 0.3)}
    return {"background: a closed line": strokes, "FillBeyondLoopsd": filled, **both}


def main(path: Path) -> None:
    """Two ways to draw background, in rows; what is made of them, in columns."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    for row, looped in zip(figure.subplots(2, 4), (False, True), strict=True):
        scan = pelvis_scan(seed=3, spacing=SPACING, loop_mm=8.0 if looped else None)
        truth = np.where(scan.label == 0, UNLABELED, scan.label).astype(np.uint8)
        panels = [(title, scan.strokes, read) for title, read in readings(scan, looped).items()]
        for axes, (title, drawn, read) in zip(row, [*panels, ("true zones", truth, truth)], strict=True):
            axes.imshow(painted(scan.image[..., SHOWN], drawn[..., SHOWN], read[..., SHOWN]))
            axes.set_title(title, fontsize=9)
            axes.set_axis_off()
    handles = [Patch(color=colour, label=label) for colour, label in zip(DRAWN, CLASS_NAMES, strict=True)]
    handles.append(Patch(color=ADDED, label="read as background"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    drawing = io.BytesIO()
    figure.savefig(drawing, dpi=110)
    few_colours = Image.open(drawing).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    write_atomically(path, lambda file: few_colours.save(file, format="PNG", optimize=True))


if __name__ == "__main__":
    main(Path(__file__).with_name("strokes.png"))
