"""What pages in HTML are made of: one file each, nothing to run and nothing to load from elsewhere; text is escaped."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from medcoarse.pictures import picture

HIGHLIGHT = np.array([255, 140, 0], np.float32)

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, style: str, parts: Sequence[str]) -> str:
    """The page, which a browser is told to load nothing for.

    Example:
        >>> document("<1>", "", ["<p>x</p>"]).count("<1>")
        0
    """
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head><body>{body}</body></html>'
    )


def row(cell: str, values: Sequence[Any]) -> str:
    """A row of a table; the values are HTML.

    Example:
        >>> row("td", [1, "a"])
        '<tr><td>1</td><td>a</td></tr>'
    """
    return "<tr>" + "".join(f"<{cell}>{value}</{cell}>" for value in values) + "</tr>"


def figure(pixels: NDArray[np.uint8], caption: str, alt: str | None = None) -> str:
    """A picture with its caption, which is also what it is to those who can't see it, unless that is given."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    text, alt = html.escape(caption), html.escape(caption if alt is None else alt)
    return f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def matrix(table: Sequence[Sequence[float]], names: Sequence[str], verb: str) -> str:
    """A matrix (observed, true) with darker fields for larger numbers; NaN is a dash.

    Args:
        table: shares of each column.
        names: of the classes.
        verb: what was done with the observed ones, "drawn" or "ruled out".
    """
    head = row("th", [f"{verb} \\ true", *map(html.escape, names)])
    rows = []
    for name, line in zip(names, table, strict=True):
        cells = "".join(
            "<td>–</td>"
            if math.isnan(value)
            else f'<td style="background:rgba(95,163,211,{value:.2f})">{value:.2f}</td>'
            for value in line
        )
        rows.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    return f'<table class="matrix">{head}{"".join(rows)}</table>'


def heat(image: Tensor | NDArray[Any], share: Tensor | NDArray[Any]) -> NDArray[np.uint8]:
    """A share in [0, 1] in orange over the image in grey.

    Example:
        >>> heat(np.zeros((1, 1, 2)), np.array([[0.0, 1.0]])).tolist()
        [[[0, 0, 0], [255, 140, 0]]]
    """
    grey = picture(image).astype(np.float32).mean(-1, keepdims=True)
    share = np.asarray(share).clip(0, 1)[..., None]
    pixels: NDArray[np.uint8] = np.round((1 - share) * grey + share * HIGHLIGHT).astype(np.uint8)
    return pixels
