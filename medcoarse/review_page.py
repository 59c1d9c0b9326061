"""The review of the annotators as one HTML page: tables, bars and small pictures, nothing to load from elsewhere."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from medcoarse.page import document, figure, heat, matrix, row
from medcoarse.pictures import annotation_overlay, label_picture, picture
from medcoarse.reliability import Region

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #5fa3d3; --ink: #135a96; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1rem; } th, td { padding: .25rem .7rem; text-align: left; }
th { font-weight: 600; border-bottom: 1px solid var(--line); } td.number { text-align: right; }
.matrix td { text-align: center; min-width: 3rem; } .annotators { display: grid; gap: 1rem 2rem;
grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); } .bar { position: relative; width: 12rem; height: 1rem;
background: var(--line); } .bar i { position: absolute; top: 0; bottom: 0; left: 0; background: var(--bar); }
.bar b { position: absolute; top: 35%; height: 30%; background: var(--ink); }
figure { margin: 0 0 1rem; display: inline-block; } figcaption { font-size: .85rem;
max-width: 11rem; overflow-wrap: anywhere; }
img { width: 11rem; image-rendering: pixelated; border: 1px solid var(--line); }
.grids img { width: auto; height: 6rem; }
.row { display: flex; gap: .75rem; flex-wrap: wrap; }
small, .note { color: gray; }
"""


class Shown(NamedTuple):
    """An image of the page."""

    name: str
    annotators: Sequence[str]
    kinds: Sequence[str]
    who: int | None  # the annotator whose drawing is shown; None shows where each is expected to err
    image: Tensor  # (C, *S)
    drawings: Tensor  # (R, *S)
    probs: Tensor  # (L, *S)
    errs: Tensor  # chance that an annotator errs (R, *S)
    regions: Sequence[Region]


def review_page(content: Mapping[str, Any], worst: Sequence[Shown], errors: Sequence[Shown]) -> str:
    """The page.

    Args:
        content: as in `annotators.json`, see :class:`medcoarse.review.AnnotatorReview`.
        worst: pictures of its entries `worst`, in their order.
        errors: images on which to show where each annotator is expected to err.
    """
    names, unit = content["class_names"], content["unit"]
    parts = [
        "<h1>Who drew, and how well</h1>",
        f"<p>{content['num_images']} images. No dense mask was used: the truth is what the segmentation network "
        "estimates, so everything here is an estimate too.</p>",
        "<h2>Annotators, most reliable first</h2>",
        _ranking(content["annotators"], unit),
        f'<div class="annotators">{"".join(_annotator(one, names) for one in content["annotators"])}</div>',
    ]
    parts += ["<h2>Where each is expected to err</h2>", _grids(content["annotators"])]
    if errors:
        parts.append(
            '<p class="note">On the images with the most drawn foreground, one a case where file names tell.</p>'
        )
        parts += [_expected_errors(one) for one in errors]
    if worst:
        parts.append("<h2>Drawings to look at again</h2>")
        parts.append(
            '<p class="note">Those that fit the estimated truth least, going half by what is usual of who drew them. '
            "Quality is Dice between the two, a tenth of the usual size added to both sides of the fraction, so that a "
            "few voxels matter little; orange is where the drawing is likely wrong.</p>"
        )
        parts += [_drawing(entry, one, unit) for entry, one in zip(content["worst"], worst, strict=True)]
    parts += ["<h2>Images to draw next, and whom to ask</h2>", _questions(content["ask_next"])]
    parts.append('<p class="note">Made with medcoarse. Research software, not a medical device.</p>')
    return document("Annotators", _STYLE, parts)


def _ranking(annotators: Sequence[Mapping[str, Any]], unit: str) -> str:
    head = row(
        "th", ["", "annotator", "draws", "images", "reliability", "", f"too large by ({unit})", "frequent errors"]
    )
    rows = []
    for place, one in enumerate(annotators, 1):
        score, low, high = (one["reliability"][key] for key in ("score", "low", "high"))
        bar, number = "", "drew nothing"
        if not math.isnan(score):
            number = f"{score:.3f} <small>({low:.3f}–{high:.3f})</small>"
            bar = (
                f'<div class="bar"><i style="width:{score:.1%}"></i>'
                f'<b style="left:{low:.1%};width:{max(high - low, 0.004):.1%}"></b></div>'
            )
        sizes = "; ".join(
            f"{html.escape(name)} {value['mean']:+.2f} ± {value['std']:.2f}" for name, value in one["tendency"].items()
        )
        habits = "; ".join(html.escape(habit["text"]) for habit in one["habits"]) or "–"
        name = html.escape(one["name"])
        rows.append(row("td", [place, name, one["kind"], one["num_images"], bar, number, sizes or "–", habits]))
    note = (
        '<p class="note">Reliability: mean over the classes of the chance that it is drawn as what it is estimated to '
        "be (or not ruled out). In brackets and as a dark line: where 95% of resampled sets of images lie.</p>"
    )
    return f"<table>{head}{''.join(rows)}</table>{note}"


def _annotator(one: Mapping[str, Any], names: Sequence[str]) -> str:
    verb = "drawn" if one["kind"] == "positive" else "ruled out"
    tables = "".join(
        f"<small>{title}</small>{matrix(one[key], names, verb)}"
        for key, title in (("confusion", "estimated, all images"), ("counted", "counted on what was drawn"))
    )
    return f"<div><h3>{html.escape(one['name'])}</h3>{tables}</div>"


def _grids(annotators: Sequence[Mapping[str, Any]]) -> str:
    """Everybody's grid on one scale; the layers of a volume side by side."""
    grids = [torch.tensor(one["error_grid"]) for one in annotators]
    largest = max(grid.max().item() for grid in grids)
    figures = []
    for one, grid in zip(annotators, grids, strict=True):
        layers = grid.reshape(8, 8, -1).unbind(-1)
        share, between = (
            torch.cat([functional.pad(layer, (0, 1), value=value) for layer in shown], 1)[:, :-1]
            for shown, value in ((layers, 0.0), ([torch.zeros(8, 8)] * len(layers), 1.0))
        )
        figures.append(figure(heat(between, share / (largest or 1)), f"{one['name']}: up to {grid.max():.1%}"))
    return (
        '<p class="note">Mean chance of an error over all images, in the fields of a coarse grid that lies over each, '
        f"turned as the pictures below; full orange is {largest:.1%}. Layers of volumes stand side by side.</p>"
        f'<div class="row grids">{"".join(figures)}</div>'
    )


def _expected_errors(one: Shown) -> str:
    plane = _plane(one.drawings[0])
    figures = [figure(picture(_cut(one.image, plane)), one.name)]
    figures += [
        figure(heat(_cut(one.image, plane), _cut(one.errs[r][None], plane)[0]), name)
        for r, name in enumerate(one.annotators)
    ]
    return f'<div class="row">{"".join(figures)}</div>'


def _drawing(entry: Mapping[str, Any], one: Shown, unit: str) -> str:
    assert one.who is not None
    drawing, positive = one.drawings[one.who], one.kinds[one.who] == "positive"
    plane, num_classes = _plane(drawing), len(one.probs)
    image, drawn = _cut(one.image, plane), _cut(drawing[None], plane)
    truth = one.probs.argmax(0)[None]
    known = drawing != 255
    said = one.probs.gather(0, drawing.where(known, drawing.new_zeros(())).long()[None])[0]
    wrong = (1 - said if positive else said).where(known, said.new_zeros(()))
    overlay = annotation_overlay(image, drawn if positive else None, None if positive else drawn, 0, num_classes)
    size_unit = f"mm{'²³'[drawing.ndim - 2]}" if unit == "mm" else unit
    regions = "; ".join(
        f"{' x '.join(f'{first}–{last - 1}' for first, last in region.box)} ({region.size:.1f} {size_unit})"
        for region in one.regions
    )
    caption = (
        f"<b>{html.escape(one.name)}</b>, {html.escape(entry['annotator'])}: quality {entry['quality']:.2f}, "
        f"usually {entry['usual']:.2f}. Likely wrong: {regions or 'no region in particular'}"
    )
    figures = [
        figure(picture(image), "image"),
        figure(overlay, "drawn"),
        figure(label_picture(_cut(truth, plane)[0], num_classes), "estimated truth"),
        figure(heat(image, _cut(wrong[None], plane)[0]), "likely wrong"),
    ]
    return f'<p>{caption}</p><div class="row">{"".join(figures)}</div>'


def _questions(questions: Sequence[Mapping[str, Any]]) -> str:
    if not questions:
        return "<p>Everybody has drawn every image.</p>"
    head = row("th", ["image", "drawn by", "whom to ask", "uncertainty (nats)", "expected reliability there"])
    rows = [
        row(
            "td",
            [
                html.escape(q["image"]),
                html.escape(", ".join(q["drawn_by"])) or "nobody yet",
                html.escape(q["annotator"]),
                f"{q['uncertainty']:.4f}",
                f"{q['accuracy']:.3f}",
            ],
        )
        for q in questions
    ]
    return f"<table>{head}{''.join(rows)}</table>"


def _plane(drawing: Tensor) -> int | None:
    """The plane of a volume in which most was drawn."""
    if drawing.ndim == 2:
        return None
    drawn = (drawing != 255) & (drawing != 0)
    return int(drawn.sum((0, 1)).argmax())


def _cut(values: Tensor, plane: int | None) -> Tensor:
    return values if plane is None else values[..., plane]
