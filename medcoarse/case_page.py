"""The report of some cases as one HTML page. It shows the numbers that the JSON beside it holds, and pictures."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from medcoarse.page import HIGHLIGHT, document, figure, heat, matrix, row
from medcoarse.pictures import POSITIVE, Colour, Picture, class_colours, picture

SIDE = 560  # pixels of the longer side of a picture
MOST_ZOOM = 12.0

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #5fa3d3; --ink: #135a96; --soft: #8881; --warn: #b45309; }
@media (prefers-color-scheme: dark) { :root { --ink: #cfe3f3; --warn: #f5b04a; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto 3rem; padding: 0 1.25rem; }
header { border-bottom: 1px solid var(--line); margin-bottom: 1rem; padding: 1.2rem 0 .4rem; }
h1 { font-size: 1.7rem; margin: 0; } h2 { margin: 2.2rem 0 .4rem; font-size: 1.25rem; }
h3 { margin: 1.2rem 0 .2rem; font-size: 1rem; } p { margin: .3rem 0 .6rem; max-width: 62rem; }
.warn { border-left: 4px solid var(--warn); background: var(--soft); padding: .5rem .8rem; }
table { border-collapse: collapse; margin: .4rem 0 .8rem; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; }
thead th, .matrix tr:first-child th { font-weight: 600; border-bottom: 1px solid var(--line); }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.matrix td { text-align: center; min-width: 3.2rem; padding: .25rem; }
.bar { position: relative; width: 13rem; height: 1rem; background: var(--soft); border: 1px solid var(--line); }
.bar i { position: absolute; top: 0; bottom: 0; background: var(--bar); min-width: 2px; }
.bar b { position: absolute; top: -3px; bottom: -3px; width: 3px; margin-left: -1px; background: var(--ink); }
.row { display: flex; gap: 1rem; flex-wrap: wrap; align-items: flex-start; }
figure { margin: 0 0 .8rem; flex: 1 1 17rem; max-width: 24rem; } figcaption { font-size: .85rem; }
img { width: 100%; height: auto; display: block; border: 1px solid var(--line); border-radius: 3px; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .35em 0 .9em; }
.key.scale { width: 4em; margin: 0 .4em; } svg { width: 19rem; height: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; } dt { color: gray; }
dd { margin: 0; overflow-wrap: anywhere; } small, .note { color: gray; }
"""


class Slice(NamedTuple):
    """A picture, or a slice of a volume."""

    image: NDArray[Any]  # (C, X, Y)
    classes: NDArray[Any]  # (X, Y)
    entropy: NDArray[Any]  # (X, Y), in [0, 1]
    aspect: float  # size of a pixel along Y over that along X
    why: str
    number: int | None


def case_page(content: Mapping[str, Any], slices: Sequence[Sequence[Slice]]) -> str:
    """The page.

    Args:
        content: as in `case_report.json`, see :class:`medcoarse.case_report.CaseReport`.
        slices: what is shown of each case.
    """
    names, cases = content["class_names"], content["cases"]
    title = "Segmentation report"
    parts = [
        f"<header><h1>{title}</h1><p class='note'>{_made(content['provenance'])}</p></header>",
        '<main><p class="warn"><strong>Research software, not a medical device.</strong> Not for diagnosis, and not '
        "checked by a physician. What follows is what a network says, right or wrong.</p>",
        _belief(content["calibration"]),
    ]
    if len(cases) > 1:
        parts.append(_overview(cases))
    for case, shown in zip(cases, slices, strict=True):
        parts += _case(case, shown, names, content)
    parts += [_calibration(content["calibration"], names), _provenance(content["provenance"]), "</main>"]
    return document(title, _STYLE, parts)


def _made(facts: Mapping[str, Any]) -> str:
    bundle = " ".join(str(facts[key]) for key in ("bundle", "version") if facts[key])
    return html.escape(f"{bundle + ', ' if bundle else ''}{facts['created']}")


def _belief(facts: Mapping[str, Any]) -> str:
    if facts["calibrated"]:
        images = f"{facts['num_images']} image{'s' if facts['num_images'] > 1 else ''}"
        before, after, against = facts["before"], facts["after"], facts["against"]
        text = (
            f"<p>Probabilities are <strong>calibrated</strong> on {images} with {against}, given as held out: "
            f"temperature {facts['temperature']:.3f}, expected calibration error {after['ece']:.4f} (without it "
            f"{before['ece']:.4f}). That holds for images like those.</p>"
        )
        if against != "masks":
            text += (
                '<p class="warn">Only what was <strong>drawn</strong> on them could be checked. People draw where a '
                "structure is plain to see, and err there too: how sure the network may be at its edges, this does not "
                "show.</p>"
            )
        if after["nll"] > before["nll"]:
            text += (
                '<p class="warn">On images left out of the fit, the temperature made the likelihood worse: the images '
                "differ, or are too few. Take the probabilities as uncalibrated.</p>"
            )
        return text
    return (
        '<p class="warn"><strong>Uncalibrated.</strong> There were no masks of other images to check the probabilities '
        "against. Networks tend to be too sure of themselves: take uncertainty and intervals below as too small.</p>"
    )


def _overview(cases: Sequence[Mapping[str, Any]]) -> str:
    classes = [one["name"] for one in cases[0]["classes"][1:]]
    units = {case["unit"] for case in cases}
    head = row("th", ["case", *(f"{html.escape(name)} ({', '.join(sorted(units))})" for name in classes), "entropy"])
    rows = [
        "<tr><td>"
        + html.escape(case["name"])
        + "</td>"
        + "".join(f'<td class="n">{_size_text(one)}</td>' for one in case["classes"][1:])
        + f'<td class="n">{case["mean_entropy"]:.4f}</td></tr>'
        for case in cases
    ]
    return f"<h2>All cases</h2><table><thead>{head}</thead>{''.join(rows)}</table>"


def _case(
    case: Mapping[str, Any], shown: Sequence[Slice], names: Sequence[str], content: Mapping[str, Any]
) -> list[str]:
    parts = [f"<h2>{html.escape(case['name'][:1].upper() + case['name'][1:])}</h2>"]
    segmented = sum(one["segmented"] for one in case["classes"][1:])
    if not segmented:
        parts.append(f'<p class="warn">Nothing was segmented but {html.escape(names[0])}.</p>')
    elif not case["classes"][0]["segmented"]:
        parts.append(f'<p class="warn">Everything was segmented, and nothing left as {html.escape(names[0])}.</p>')
    parts += [_pictures(one, case["name"], names) for one in shown]
    parts += [_keys(names), _sizes(case, content)]
    if case["annotators"]:
        parts.append("<h3>Who drew this case, and how they are estimated to err on it</h3>")
        parts.append(
            '<p class="note">Shares of each column. Estimated: by the network of annotators, over all of the image. '
            "Counted: what was drawn, against the estimated truth. Neither knows the truth.</p>"
        )
        parts.append(f'<div class="row">{"".join(_annotator(one, names) for one in case["annotators"])}</div>')
    return parts


def _pictures(one: Slice, name: str, names: Sequence[str]) -> str:
    base, outlined, unsure = (rendered(one, kind, len(names)) for kind in ("image", "outline", "uncertainty"))
    where = name if one.number is None else f"{name}, slice {one.number}"
    title = "" if one.number is None else f"<h3>Slice {one.number}: {html.escape(one.why)}</h3>"
    shares = [(float((one.classes == k).mean()), names[k]) for k in range(1, len(names))]
    said = ", ".join(f"{share:.1%} {name}" for share, name in shares)
    figures = [
        figure(base, "image", f"{where}: the image"),
        figure(outlined, "segmentation", f"{where}: outlines of what was segmented, {said} of the picture"),
        figure(unsure, "uncertainty", f"{where}: uncertainty in orange, mean entropy {one.entropy.mean():.1%}"),
    ]
    return f'{title}<div class="row">{"".join(figures)}</div>'


def rendered(one: Slice, kind: str, num_classes: int) -> Picture:
    """A slice upright, with pixels as wide as they are high: the image, the outlines on it, or the uncertainty.

    Axis 0 runs to the right and axis 1 down, as MONAI loads files.

    Args:
        one: the slice.
        kind: "image", "outline" or "uncertainty".
        num_classes: L.
    """
    base = np.ascontiguousarray(picture(one.image).swapaxes(0, 1))
    high, wide = base.shape[0] * one.aspect, base.shape[1]
    zoom = min(SIDE / max(high, wide), MOST_ZOOM / min(1.0, one.aspect))
    size = (max(1, round(wide * zoom)), max(1, round(high * zoom)))
    scaled = np.asarray(Image.fromarray(base).resize(size, Image.Resampling.BICUBIC))
    if kind == "outline":
        return outlined(scaled, _scaled(one.classes, size, Image.Resampling.NEAREST), num_classes)
    if kind == "uncertainty":
        return heat(scaled, _scaled(one.entropy, size, Image.Resampling.BILINEAR))
    return scaled


def outlined(base: Picture, classes: NDArray[Any], num_classes: int, width: int = 2) -> Picture:
    """The outlines of all classes but the first over a picture; of two classes in cyan, else in their own colours.

    Args:
        base: (H, W, 3).
        classes: (H, W).
        num_classes: L.
        width: of the lines, which run within their areas; areas at the edge of the picture are closed along it.
    """
    out = base.copy()
    for k, colour in _colours(num_classes):
        area = classes == k
        out[area & ~ndimage.binary_erosion(area, iterations=width)] = colour
    return out


def _scaled(values: NDArray[Any], size: tuple[int, int], how: Image.Resampling) -> NDArray[np.float32]:
    upright = np.ascontiguousarray(values.T.astype(np.float32))
    return np.asarray(Image.fromarray(upright).resize(size, how))


def _colours(num_classes: int) -> list[tuple[int, Colour]]:
    table = [POSITIVE] if num_classes == 2 else [tuple(colour) for colour in class_colours(num_classes)[1:].tolist()]
    return list(enumerate(table, 1))


def _keys(names: Sequence[str]) -> str:
    """What the colours mean."""
    keys = "".join(
        f'<span class="key" style="background:rgb{colour}"></span>{html.escape(names[k])}'
        for k, colour in _colours(len(names))
    )
    orange = tuple(int(value) for value in HIGHLIGHT)
    scale = f'<span class="key scale" style="background:linear-gradient(90deg, #555, rgb{orange})"></span>'
    return f'<p class="note">Outlines:{keys}. Uncertainty: sure{scale}any class as likely as the others.</p>'


def _sizes(case: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    whole = sum(one["segmented"] for one in case["classes"])
    unit, sure = html.escape(case["unit"]), content["calibration"]["calibrated"]
    kind = "Volumes" if len(case["shape"]) == 3 else "Areas"
    interval = f"{content['coverage']:.0%} interval" + ("" if sure else " (uncalibrated)")
    head = row("th", ["class", f"segmented ({unit})", f"expected ({unit})", interval, "", "± if pixels err alone"])
    largest = max((one["high"] for one in case["classes"][1:]), default=0) or whole
    rows = "".join(
        f"<tr><td>{html.escape(one['name'])}</td>"
        f'<td class="n">{_number(one["segmented"])}</td><td class="n">{_number(one["expected"])}</td>'
        f'<td class="n">{_number(one["low"])} – {_number(one["high"])}</td>'
        f"<td>{_bar(one, largest)}</td><td class='n'>{_number(one['std_if_independent'])}</td></tr>"
        for one in case["classes"][1:]
    )
    edge = " × ".join(f"{value:.3g}" for value in case["voxel"])
    length = "mm" if case["unit"].startswith("mm") else "pixels of the file"
    structure = case["entropy_of_structure"]
    inside = case["field_of_view"]
    where = "" if inside == 1 else f"Only within the field of view, {inside:.1%} of the image. "
    among = "" if math.isnan(structure) else f", {structure:.1%} of it within what was segmented"
    return (
        f"<h3>{kind}</h3><table><thead>{head}</thead>{rows}</table>"
        '<p class="note">The interval is that of all pixels erring together: the size at the thresholds '
        f"{(1 + content['coverage']) / 2:.3f} and {(1 - content['coverage']) / 2:.3f} of probability. Did each "
        "pixel err by itself, the standard deviation would be as in the last column. "
        f"{where}Measured on pixels of {edge} {length}; "
        f"mean entropy {case['mean_entropy']:.2%} of the largest{among}.</p>"
    )


def _bar(one: Mapping[str, Any], largest: float) -> str:
    left, right, at = (min(100.0, 100 * one[key] / largest) for key in ("low", "high", "segmented"))
    text = html.escape(f"{one['name']}: from {_number(one['low'])} to {_number(one['high'])}")
    return (
        f'<div class="bar" role="img" aria-label="{text}"><i style="left:{left:.1f}%;width:{right - left:.1f}%"></i>'
        f'<b style="left:{at:.1f}%"></b></div>'
    )


def _annotator(one: Mapping[str, Any], names: Sequence[str]) -> str:
    verb = "drawn" if one["kind"] == "positive" else "ruled out"
    parts = [f"<h3>{html.escape(one['name'])}</h3><small>estimated</small>{matrix(one['confusion'], names, verb)}"]
    if one["drew"]:
        parts.append(f"<small>counted</small>{matrix(one['counted'], names, verb)}")
    else:
        parts.append("<p>Drew nothing here.</p>")
    return f"<div>{''.join(parts)}</div>"


def _calibration(facts: Mapping[str, Any], names: Sequence[str]) -> str:
    if not facts["calibrated"]:
        return (
            "<h2>Calibration</h2><p>None: no masks or drawings were given. Give images with some, neither trained "
            "on nor reported here, to have the probabilities calibrated and this section filled.</p>"
        )
    head = row("th", ["", "expected calibration error", "Brier score", "negative log-likelihood (nats)"])
    rows = "".join(
        f"<tr><td>{text}</td>"
        + "".join(f'<td class="n">{facts[key][score]:.4f}</td>' for score in ("ece", "brier", "nll"))
        + "</tr>"
        for key, text in (("before", "as the network says"), ("after", "at the temperature"))
    )
    honest = (
        "each image at the temperature of the others"
        if facts["measured_on"] == "left out"
        else "on the very image that the temperature was fitted to, so the second line is too good"
    )
    limit = f'<p class="warn">No temperature is best: {facts["against"]} agree too well or too badly.</p>'
    of = f"probability of {names[1]}" if len(names) == 2 else "probability of the most likely class"
    return (
        f"<h2>Calibration</h2>{limit if facts['at_limit'] else ''}<p>Temperature {facts['temperature']:.3f} on "
        f"{facts['num_pixels']:,} pixels of {facts['num_images']} held-out image(s); measured {honest}.</p>"
        f"<table><thead>{head}</thead>{rows}</table>{_diagram(facts, of)}"
    )


def _diagram(facts: Mapping[str, Any], of: str) -> str:
    """Share of hits against probability, before and after."""
    lines = []
    for key, style in (("before", "stroke-dasharray='3 2' stroke='gray'"), ("after", "stroke='#3b82c4'")):
        points = [(20 + 160 * one["probability"], 180 - 160 * one["hits"]) for one in facts[key]["bins"]]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        fill = "gray" if key == "before" else "#3b82c4"
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{fill}"/>' for x, y in points)
        lines.append(f'<polyline points="{path}" fill="none" {style}/>{dots}')
    text = html.escape(f"Reliability diagram: share of hits against {of}, before in grey, after in blue")
    return (
        f'<figure><svg viewBox="0 0 200 200" role="img" aria-label="{text}" font-size="8" fill="gray">'
        '<rect x="20" y="20" width="160" height="160" fill="none" stroke="#8886"/>'
        f'<line x1="20" y1="180" x2="180" y2="20" stroke="#8886"/>{"".join(lines)}'
        '<text x="20" y="190">0</text><text x="176" y="190">1</text><text x="10" y="183">0</text>'
        '<text x="10" y="25">1</text></svg>'
        f"<figcaption>Share of hits (up) against {html.escape(of)}. Grey: as the network says; blue: at the "
        "temperature; on the diagonal, probabilities are right.</figcaption></figure>"
    )


def _provenance(facts: Mapping[str, Any]) -> str:
    software = ", ".join(f"{name} {number}" for name, number in facts["software"].items())
    rows = {
        "bundle": " ".join(str(facts[key]) for key in ("bundle", "version") if facts[key]) or "not given",
        "weights (SHA-256)": facts["weights_sha256"] or "not given",
        "made": facts["created"],
        "command": facts["command"],
        "software": software,
    }
    listed = "".join(f"<dt>{key}</dt><dd>{html.escape(str(value))}</dd>" for key, value in rows.items())
    return (
        f"<h2>Where this is from</h2><dl>{listed}</dl>"
        "<p class='note'>The same numbers are in case_report.json beside this file.</p>"
    )


def _size_text(one: Mapping[str, Any]) -> str:
    return f"{_number(one['segmented'])} <small>({_number(one['low'])} – {_number(one['high'])})</small>"


def _number(value: float) -> str:
    """Four digits, and no exponent for what is large.

    Example:
        >>> _number(12345.6), _number(1.23456), _number(0.0)
        ('12,346', '1.235', '0')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
