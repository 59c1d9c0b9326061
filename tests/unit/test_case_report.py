"""Reports of cases: the page as a browser sees it, and its numbers against plain loops."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from PIL import Image
from torch import nn

from medcoarse.case_page import Slice, outlined, rendered
from medcoarse.case_report import CaseReport, chosen_slices, class_sizes, entropy_of, shown_command
from medcoarse.losses import CoupledLoss
from medcoarse.networks import AnnotatorNet, CoupledModel

HOSTILE = "<script>alert('x')</script>\"&"
VOID = {"meta", "img", "br", "link", "input"}


class Says(nn.Module):
    """A segmenter for images that hold its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, image):
        return self.scale * image


class Page(HTMLParser):
    """Elements with their attributes, the text, and whether every element is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def pictures(self):
        sources = [image["src"] for image in self.of("img")]
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))) for source in sources]


def logits(size, num_classes=2, seed=0, scale=2.0):
    """Noise with a block of the last class in it."""
    z = torch.randn(num_classes, *size, generator=torch.Generator().manual_seed(seed))
    block = tuple(slice(1, max(2, n // 2)) for n in size)
    z[(num_classes - 1, *block)] += 3
    return scale * z


def item(z, name="/data/Nobody_Nora/scan.nii.gz", spacing=(1.0, 1.0, 1.0), **more):
    affine = torch.diag(torch.tensor([*spacing[:3], 1.0], dtype=torch.float64))
    return {"image": MetaTensor(z, affine=affine, meta={"filename_or_obj": name}), **more}


def report(tmp_path, items, names=("background", "vessel"), network=None, **options):
    CaseReport(network or Says(), items, SimpleInferer(), names, tmp_path, **options)()
    text = (tmp_path / "case_report.html").read_text()
    return json.loads((tmp_path / "case_report.json").read_text()), Page(text), text


def slow_sizes(z, voxel):
    """Pixel by pixel, in double precision."""
    flat = z.double().flatten(1).T.tolist()
    found = [[0.0] * 5 for _ in range(len(z))]
    for pixel in flat:
        total = sum(math.exp(v) for v in pixel)
        p = [math.exp(v) / total for v in pixel]
        for k, value in enumerate(p):
            found[k][0] += value == max(p)
            found[k][1] += value
            found[k][2] += value >= 0.975
            found[k][3] += value >= 0.025
            found[k][4] += value * (1 - value)
    return [[voxel * v for v in row[:4]] + [voxel * math.sqrt(row[4])] for row in found]


@pytest.mark.parametrize("size", [(13, 9), (7, 9, 6), (1, 1)])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_sizes_are_those_of_a_loop(tmp_path, size, num_classes):
    z, spacing = logits(size, num_classes), (0.5, 2.0, 3.0)
    names = [f"class {k}" for k in range(num_classes)]
    content, page, _ = report(tmp_path, [item(z, spacing=spacing)], names, spacing="mm")
    case = content["cases"][0]
    expected = slow_sizes(z, math.prod(spacing[: len(size)]))
    for one, row in zip(case["classes"], expected, strict=True):
        keys = ("segmented", "expected", "low", "high", "std_if_independent")
        assert [one[key] for key in keys] == pytest.approx(row, rel=1e-5)
        assert one["low"] <= one["segmented"] <= one["high"]
    assert case["unit"] == ("mm²" if len(size) == 2 else "mm³")
    assert sum(one["expected"] for one in case["classes"]) == pytest.approx(
        math.prod(size) * math.prod(spacing[: len(size)])
    )
    assert f"{case['classes'][1]['expected']:.4g}" in page.text or case["classes"][1]["expected"] >= 1000


def test_the_interval_is_that_of_pixels_that_err_together():
    """Against a simulation: one number decides for all pixels."""
    p = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one = class_sizes(torch.stack([1 - p, p]), voxel=0.5)[1]
    drawn = torch.rand(20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sizes = 0.5 * (p > drawn).double().sum(1)
    low, high = sizes.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert one["low"] == pytest.approx(low, abs=2)
    assert one["high"] == pytest.approx(high, abs=2)
    assert one["expected"] == pytest.approx(sizes.mean().item(), rel=0.02)


def test_entropy():
    p = torch.tensor([0.7, 0.2, 0.1])
    by_hand = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1)) / math.log(3)
    assert entropy_of(p[:, None]).item() == pytest.approx(by_hand)


def test_spacing_of_a_photograph_counts_in_pixels_of_the_file(tmp_path):
    """The network sees it at half its size: one pixel there is four of the file."""
    half = item(logits((6, 8)), spacing=(2.0, 2.0, 1.0))
    content, *_ = report(tmp_path, [half])
    everything = sum(one["segmented"] for one in content["cases"][0]["classes"])
    assert (everything, content["cases"][0]["unit"]) == (4 * 48, "pixels")
    content, *_ = report(tmp_path, [half], spacing=(0.01, 0.02))
    assert sum(one["segmented"] for one in content["cases"][0]["classes"]) == pytest.approx(4 * 48 * 0.01 * 0.02)
    with pytest.raises(ValueError, match="spacing must have 2 numbers"):
        report(tmp_path, [half], spacing=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="spacing must be 'mm'"):
        report(tmp_path, [{"image": logits((6, 8))}], spacing="mm")


@pytest.mark.parametrize("size", [(8, 10), (8, 10, 6)])
def test_nothing_counts_outside_the_field_of_view(tmp_path, size):
    z, mask = logits(size), torch.zeros(1, *size)
    mask[:, 2:, 3:] = 1
    content, page, _ = report(tmp_path, [item(z, mask=mask)])
    cut, *_ = report(tmp_path, [item(z[:, 2:, 3:])])
    case, alone = content["cases"][0], cut["cases"][0]
    assert case["classes"] == [pytest.approx(one) for one in alone["classes"]]
    assert case["mean_entropy"] == pytest.approx(alone["mean_entropy"])
    assert f"Only within the field of view, {mask.mean():.1%} of the image." in page.text


def test_without_masks_it_says_uncalibrated_and_with_them_the_temperature(tmp_path):
    z = logits((40, 40), scale=1.0)
    content, page, _ = report(tmp_path, [item(z)])
    assert content["calibration"] == {"calibrated": False, "temperature": 1.0, "num_images": 0}
    assert "Uncalibrated." in page.text
    assert "95% interval (uncalibrated)" in page.text
    held_out = []
    for seed in range(3):
        calm = logits((60, 60), seed=10 + seed, scale=1.0)
        label = torch.multinomial(calm.softmax(0).flatten(1).T, 1, generator=torch.Generator().manual_seed(seed))
        held_out.append(item(2.5 * calm, label=label.T.view(1, 60, 60)))
    content, page, _ = report(tmp_path, [item(2.5 * z)], held_out=held_out)
    facts = content["calibration"]
    assert facts["temperature"] == pytest.approx(2.5, rel=0.08)
    assert facts["measured_on"] == "left out"
    assert facts["after"]["nll"] < facts["before"]["nll"]
    assert facts["after"]["ece"] < facts["before"]["ece"]
    expected = slow_sizes(2.5 * z / facts["temperature"], 1.0)[1]
    assert content["cases"][0]["classes"][1]["expected"] == pytest.approx(expected[1], rel=1e-5)
    assert "Uncalibrated" not in page.text
    assert f"{facts['after']['ece']:.4f}" in page.text


def test_drawings_calibrate_where_most_people_agree_and_it_is_said(tmp_path):
    z = logits((20, 20), scale=2.0)
    drawn = torch.full((3, 20, 20), 255, dtype=torch.uint8)
    drawn[0, :2], drawn[1, 1:3], drawn[2, 1] = 1, 1, 0  # row 1: two of three say 1
    drawn[0, 5], drawn[1, 5] = 0, 1  # one of two says so
    held_out = [item(z, positive=drawn)]
    content, page, _ = report(tmp_path, [item(z)], held_out=held_out, label_key="positive", held_out_kind="drawings")
    assert content["calibration"]["num_pixels"] == 3 * 20
    assert content["calibration"]["against"] == "drawings"
    assert "calibrated on 1 image with drawings" in page.text
    assert "Only what was drawn on them could be checked." in page.text


def test_images_that_contradict_each_other_are_said_not_to_calibrate(tmp_path):
    """One right wherever it is sure, the other wrong there: neither temperature is any good for the other."""
    z = logits((20, 20), scale=4.0)
    right = z.argmax(0)[None]
    held_out = [item(z, label=right), item(z, label=1 - right)]
    content, page, _ = report(tmp_path, [item(z)], held_out=held_out)
    assert content["calibration"]["after"]["nll"] > content["calibration"]["before"]["nll"]
    assert "Take the probabilities as uncalibrated." in page.text


def test_held_out_items_without_anything_known_do_not_calibrate(tmp_path):
    z = logits((20, 20))
    nothing, label = torch.full((1, 20, 20), 255), z.argmax(0)[None]
    content, _, _ = report(tmp_path / "none", [item(z)], held_out=[item(z, label=nothing)])
    assert content["calibration"] == {"calibrated": False, "temperature": 1.0, "num_images": 0}
    content, _, _ = report(tmp_path / "some", [item(z)], held_out=[item(z, label=nothing), item(z, label=label)])
    assert content["calibration"]["num_images"] == 1


def test_one_mask_is_said_to_be_measured_on_itself(tmp_path):
    label = (logits((20, 20)).argmax(0)[None] + torch.rand(1, 20, 20).lt(0.2)) % 2
    content, page, _ = report(tmp_path, [item(logits((9, 9)))], held_out=[item(logits((20, 20)), label=label)])
    assert content["calibration"]["measured_on"] == "fitted"
    assert "so the second line is too good" in page.text


@pytest.mark.parametrize("size", [(12, 17), (12, 9, 30)])
def test_the_page_needs_nothing_and_names_nobody(tmp_path, size):
    content, page, text = report(tmp_path, [item(logits(size)), item(logits(size, seed=3))])
    assert page.open == []
    assert {"script", "link", "iframe", "object", "form", "a"}.isdisjoint(tag for tag, _ in page.elements)
    assert not re.search(r"https?:|src=\"(?!data:)|url\(|@import|\son\w+=", text)
    assert all(image["alt"].strip() for image in page.of("img"))
    assert all(image.get("aria-label") for image in page.of("svg"))
    assert page.of("html")[0]["lang"] == "en"
    assert "not a medical device" in page.text
    assert not re.search("nobody|nora|scan", (text + json.dumps(content)).lower())
    assert len(page.pictures()) == 3 * sum(len(case["slices"]) for case in content["cases"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["case_report.html", "case_report.json"]


@pytest.mark.parametrize("size", [(8, 8), (8, 8, 5)])
def test_hostile_names_are_text(tmp_path, size):
    (tmp_path / "data").mkdir()
    metadata = tmp_path / "data" / "metadata.json"
    metadata.write_text(json.dumps({"name": HOSTILE, "version": HOSTILE}))
    hostile = item(logits(size), name=f"/data/{HOSTILE.replace('/', '')}.nii")
    names = ["background", HOSTILE]
    _, page, text = report(tmp_path / "out", [hostile] * 2, names, show_names=True, metadata=metadata)
    assert page.open == []
    assert not page.of("script")
    assert "<script" not in text
    assert page.text.count("<script>alert('x')</script>") > 3
    assert "<script>alert('x')<script>\"&.nii" in page.text
    allowed = {"alt", "src", "class", "style", "role", "aria-label", "lang", "charset", "http-equiv", "content", "name"}
    drawn = {"viewbox", "font-size", "fill", "x", "y", "width", "height", "stroke", "x1", "x2", "y1", "y2"}
    assert {key for _, attributes in page.elements for key in attributes} <= allowed | drawn


@pytest.mark.parametrize("size", [(9, 12), (9, 12, 7)])
@pytest.mark.parametrize("filled", [False, True])
def test_empty_and_full_segmentations(tmp_path, size, filled):
    z = torch.zeros(2, *size)
    z[int(filled)] = 40.0
    content, page, _ = report(tmp_path, [item(z)])
    one, voxels = content["cases"][0]["classes"][1], math.prod(size)
    assert [one[key] for key in ("segmented", "low", "high")] == [filled * voxels] * 3
    assert ("Nothing was segmented" in page.text, "Everything was segmented" in page.text) == (not filled, filled)
    assert content["cases"][0]["entropy_of_structure"] == (pytest.approx(0, abs=1e-6) if filled else None)
    assert page.pictures()


def test_provenance(tmp_path, monkeypatch):
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    metadata = tmp_path / "metadata.json"
    metadata.write_text(json.dumps({"name": "Vessels", "version": "1.2.3"}))
    monkeypatch.setattr("sys.argv", ["x/tool.py", "run", "--config_file", "a.json", "--dataset_dir=/data/Nora", "b"])
    image = tmp_path / "image.nii"
    image.write_bytes(b"image")
    content, page, _ = report(
        tmp_path / "out", [item(logits((5, 5)), name=str(image))], weights=weights, metadata=metadata
    )
    facts = content["provenance"]
    assert (facts["bundle"], facts["version"]) == ("Vessels", "1.2.3")
    assert facts["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert content["cases"][0]["image_sha256"] == [hashlib.sha256(b"image").hexdigest()]
    assert facts["command"] == "tool.py run --config_file a.json --dataset_dir=… …"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", facts["created"])
    assert all(str(facts[key]) in page.text for key in ("bundle", "version", "weights_sha256", "created", "command"))
    assert shown_command(["t.py", "--a", "b"], True) == "t.py --a b"


def annotated(num_positive, num_negative):
    annotator = AnnotatorNet(None, 2, 0, 2, num_positive, num_negative, structure="global")
    return CoupledModel(Says(), annotator)


def test_annotators_of_a_case(tmp_path):
    torch.manual_seed(0)
    z = logits((10, 10))
    said = z.argmax(0)
    drawings = torch.stack([said, torch.full_like(said, 255)])
    case = item(z, positive=drawings, negative=1 - said[None])
    content, page, _ = report(
        tmp_path, [case], network=annotated(2, 1), loss=CoupledLoss(2), annotator_names=["Ada", "Max", HOSTILE]
    )
    ada, silent, negative = content["cases"][0]["annotators"]
    probs = z.softmax(0).double().flatten(1)
    drawn = nn.functional.one_hot(said.flatten(), 2).double()
    counted = (drawn.T @ probs.T) / probs.sum(1)
    assert torch.allclose(torch.tensor(ada["counted"], dtype=torch.float64), counted, atol=1e-6)
    assert np.allclose(np.sum(ada["confusion"], 0), 1)
    assert (ada["drew"], silent["drew"], negative["kind"]) == (True, False, "negative")
    assert "Drew nothing here." in page.text
    assert not page.of("script")
    with pytest.raises(ValueError, match="other annotators"):
        report(tmp_path, [case], network=annotated(1, 1), loss=CoupledLoss(2))
    with pytest.raises(ValueError, match="need the loss"):
        report(tmp_path, [case], network=annotated(2, 1))


def test_slices_with_most_structure_and_uncertainty_stay_apart():
    structure = torch.zeros(4, 4, 48)
    structure[..., 10:14] = 1
    structure[:2, :, 30] = 1
    unsure = torch.zeros(4, 4, 48)
    unsure[..., 10], unsure[..., 40], unsure[0, 0, 5] = 0.9, 1.0, 0.1
    found = chosen_slices(structure.bool(), unsure, 2)
    assert found == [(10, "most structure and uncertainty"), (30, "most structure"), (40, "most uncertainty")]
    assert chosen_slices(torch.zeros(4, 4, 9).bool(), torch.zeros(4, 4, 9), 2) == [(4, "the middle")]


def test_pictures_are_upright_and_to_scale():
    """Axis 0 to the right, axis 1 down; pixels three times as high as wide."""
    image = np.zeros((1, 20, 10), np.uint8)
    image[0, :10] = 255
    shown = rendered(Slice(image, image[0] // 255, image[0] / 255.0, 3.0, "", None), "image", 2)
    high, wide = shown.shape[:2]
    assert high / wide == pytest.approx(10 * 3 / 20, rel=0.02)
    assert shown[:, : wide // 2 - 20].min() > 250
    assert shown[:, wide // 2 + 20 :].max() < 5


def test_outlines_run_within_their_areas():
    classes = np.zeros((30, 30), int)
    classes[5:25, 5:25], classes[10:20, 10:20] = 1, 2
    base = np.full((30, 30, 3), 7, np.uint8)
    drawn = outlined(base, classes, 3)
    changed = (drawn != base).any(-1)
    assert not changed[classes == 0].any()
    assert changed[5, 5:25].all()
    assert not changed[12:18, 12:18].any()
    assert len({tuple(colour) for colour in drawn[changed].tolist()}) == 2
    assert (outlined(base, np.ones_like(classes), 2)[0] != base[0]).any(), "a full one is closed along the edge"


def test_what_cannot_be_reported(tmp_path):
    with pytest.raises(ValueError, match="nothing to report"):
        report(tmp_path, [])
    with pytest.raises(ValueError, match="must give 3 classes, one a class name, got"):
        report(tmp_path, [item(logits((5, 5)))], ("a", "b", "c"))
    with pytest.raises(ValueError, match="coverage"):
        class_sizes(torch.ones(2, 1) / 2, coverage=1.0)
