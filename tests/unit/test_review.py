from __future__ import annotations

import json
import math
import re

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from torch import nn

from medcoarse.losses import CoupledLoss
from medcoarse.networks import AnnotatorNet, CoupledModel
from medcoarse.reliability import Habit
from medcoarse.review import AnnotatorReview, habit_text
from medcoarse.transforms.array import SimulateCoarse

NAMES = ["background", "core", "edema"]


class Reads(nn.Module):
    """A segmenter for images that show their classes as 0, 1 and 2."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, image):
        return torch.cat([-self.scale * (image - k).square() for k in range(3)], 1)


def model(num_positive: int, num_negative: int = 0) -> CoupledModel:
    return CoupledModel(Reads(), AnnotatorNet(None, 2, 0, 3, num_positive, num_negative, structure="global"))


def case(n: int, depth: int | None) -> torch.Tensor:
    """A label map (H, W[, D]): a block of each structure, somewhere else in each image."""
    label = torch.zeros(24, 24, dtype=torch.long)
    label[4 + n : 10 + n, 3:9] = 1
    label[6:12, 13 + n : 19 + n] = 2
    return label if depth is None else label[..., None].repeat(1, 1, depth)


def item(n: int, drawings: torch.Tensor, depth: int | None, key: str = "positive"):
    image = MetaTensor(case(n, depth)[None].float(), meta={"filename_or_obj": f"/secret/case_{n}.png"})
    return {"image": image, key: MetaTensor(drawings)}


def people(n: int, depth: int | None) -> torch.Tensor:
    """A faithful one, one who swaps core and edema, one who draws the core too large, one who draws nothing."""
    label = case(n, depth)
    swaps = torch.where(label == 0, 0, 3 - label)
    larger = label.clone()
    larger[3 + n : 11 + n, 2:10] = 1
    return torch.stack([label, swaps, larger, torch.full_like(label, 255)])


def review(tmp_path, items, num_positive=4, num_negative=0, **options):
    reviewed = model(num_positive, num_negative)
    AnnotatorReview(reviewed, CoupledLoss(3), items, SimpleInferer(), NAMES, tmp_path, **options)()
    content = json.loads((tmp_path / "annotators.json").read_text())
    return content, (tmp_path / "annotators.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("depth", [None, 3])
def test_who_is_right_and_what_the_others_do(tmp_path, depth):
    items = [item(n, people(n, depth), depth) for n in range(4)]
    spacing = [0.5, 0.5] if depth is None else [0.5, 0.5, 2.0]
    names = ["Ada", "Bea", "Cy", "<Dan>"]
    content, page = review(tmp_path, items, annotator_names=names, spacing=spacing, num_worst=5)
    assert [one["name"] for one in content["annotators"]] == ["Ada", "Cy", "Bea", "<Dan>"]
    ada, cy, bea, dan = content["annotators"]
    assert ada["reliability"]["score"] == pytest.approx(1, abs=1e-5)
    assert ada["habits"] == []
    assert ada["tendency"]["core"]["mean"] == 0
    assert [habit["text"] for habit in bea["habits"]] == ["swaps edema and core (100%)"]
    assert [habit["text"] for habit in cy["habits"]] == ["44% of what is drawn as core is background"]  # 28 of 64
    assert cy["tendency"]["core"]["mean"] == pytest.approx(0.5, abs=0.05)
    assert cy["tendency"]["edema"]["mean"] == 0
    assert (dan["num_images"], dan["habits"], dan["tendency"]) == (0, [], {})
    assert dan["reliability"]["score"] is None or math.isnan(dan["reliability"]["score"])
    assert [one["annotator"] for one in content["worst"]] == ["Bea"] * 4 + ["Cy"]
    assert all(one["regions"] for one in content["worst"])
    assert {one["annotator"] for one in content["ask_next"]} == {"<Dan>"}
    assert "<Dan>" not in page
    assert "&lt;Dan&gt;" in page
    assert "/secret" not in page + json.dumps(content)
    assert len(re.findall("data:image/png;base64", page)) == 5 * 4 + 3 * 5 + 4  # worst drawings, expected errors, grids
    assert "http" not in page.replace("http-equiv", "")


def test_who_takes_two_fifths_of_two_classes_for_each_other_is_named(tmp_path):
    """And nobody else: beside a faithful one, one who draws too much and one who draws too little."""
    items = []
    for n in range(4):
        label = case(n, None)
        drawn = SimulateCoarse(["dhe_good", "dhe_over", "dhe_under", "dhe_swapped"], target=1, num_classes=3, seed=n)
        items.append(item(n, drawn(label[None].to(torch.uint8)), None))
    content, page = review(tmp_path, items)
    said = {one["name"]: [habit["text"] for habit in one["habits"]] for one in content["annotators"]}
    mixed_up = {
        name: text for name, texts in said.items() for text in texts if "the reverse" in text or "swaps" in text
    }
    assert mixed_up == {"positive 4": "takes core for edema and the reverse on 39%"}
    assert mixed_up["positive 4"] in page


def test_a_ring_of_mistakes_in_words():
    names = ["background", "core", "edema", "ring"]
    habit = Habit("confuses", 2, 1, 0.36, (1, 2, 3))
    assert habit_text(habit, names) == "takes core for edema, edema for ring and ring for core on 36%"


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    items = [item(n, case(n, None)[None].clone(), None) for n in range(3)]
    for n, one in enumerate(items):
        one["image"].meta["filename_or_obj"] = f"/secret/cases/{'ab'[n % 2]}/image_{n // 2}.png"
    items[2]["positive"][0, 20:23, 0:5] = 2
    pool = [{"image": MetaTensor(case(4, None)[None].float(), meta={"filename_or_obj": "/secret/cases/c/image_1.png"})}]
    content, page = review(tmp_path, items, 1, pool=pool)
    assert content["worst"][0]["image"] == "a/image_1.png"
    assert {one["image"] for one in content["worst"]} == {"a/image_0.png", "b/image_0.png", "a/image_1.png"}
    assert [one["image"] for one in content["ask_next"]] == ["c/image_1.png"]
    assert "b/image_0.png" in page
    assert "/secret" not in page + json.dumps(content)


def test_regions_of_a_planted_error(tmp_path):
    drawings = [case(n, None)[None].clone() for n in range(3)]
    drawings[1][0, 20:23, 0:5] = 2
    content, page = review(tmp_path, [item(n, drawings[n], None) for n in range(3)], 1, num_worst=1)
    (worst,) = content["worst"]
    assert (worst["image"], worst["usual"]) == ("case_1.png", pytest.approx(1, abs=1e-5))
    assert worst["regions"] == [{"box": [[20, 23], [0, 5]], "size": pytest.approx(15, abs=1e-3)}]
    assert content["ask_next"] == []
    assert "Everybody has drawn every image" in page
    assert "20–22 x 0–4 (15.0 pixels)" in page


def test_negative_annotators(tmp_path):
    """One who rules out a wrong class everywhere, beside one who rules out what is there on edema."""
    label = [case(n, None) for n in range(3)]
    right = [torch.where(one == 1, 0, 1) for one in label]
    wrong = [torch.where(one == 2, 2, now) for one, now in zip(label, right, strict=True)]
    items = [item(n, torch.stack([right[n], wrong[n]]), None, "negative") for n in range(3)]
    content, _ = review(tmp_path, items, 0, 2)
    first, second = content["annotators"]
    assert (first["name"], second["name"]) == ("negative 1", "negative 2")
    assert first["reliability"]["score"] == pytest.approx(1, abs=1e-5)
    assert second["reliability"]["score"] == pytest.approx(2 / 3, abs=1e-5)
    assert content["worst"][0]["annotator"] == "negative 2"


@pytest.mark.parametrize("depth", [None, 3])
def test_lengths_are_in_mm_where_files_say_how_large_a_voxel_is(tmp_path, depth):
    """Cy draws one voxel too much in the plane; pixels of the second image are twice as large."""

    def placed(n: int, size: float):
        image = item(n, people(n, depth), depth)
        image["image"] = MetaTensor(
            case(n, depth)[None].float(),
            affine=torch.diag(torch.tensor([size, size, 5.0, 1.0])),
            meta={"filename_or_obj": f"case_{n}.nii.gz"},
        )
        return image

    found = []
    for sizes in ((0.5, 0.5), (0.5, 1.0), (None, None)):
        items = [item(n, people(n, depth), depth) if size is None else placed(n, size) for n, size in enumerate(sizes)]
        content, page = review(tmp_path, items)
        by_name = {one["name"]: one for one in content["annotators"]}
        found.append(by_name["positive 3"]["tendency"]["core"]["mean"])
        assert content["unit"] == ("pixels" if depth is None else "voxels") if sizes[0] is None else "mm"
        assert page.count(f"too large by ({content['unit']})") == 1
    (first,) = content["worst"][0]["regions"][:1]
    assert first["size"] == pytest.approx(36 * (depth or 1), abs=0.1), "a block, in pixels or voxels"
    assert found[0] == pytest.approx(0.5, abs=0.05)
    assert found == pytest.approx([found[0], 1.5 * found[0], 2 * found[0]], rel=1e-3)
    with pytest.raises(ValueError, match=r"one unit, got case_0\.nii\.gz in mm, case_1\.png in (pix|vox)els; pass"):
        review(tmp_path, [placed(0, 0.5), item(1, people(1, depth), depth)])


def test_undrawn_images_are_ranked_among_the_others(tmp_path):
    """Ada and Bea drew, Bea less well; one of the pool is half of the way between classes everywhere, one is clear."""
    items = [item(n, people(n, None)[:2], None) for n in range(2)]
    items[1]["positive"][1] = 255
    unsure, clear, vague = ({"image": item(n, people(n, None), None)["image"]} for n in (2, 3, 1))
    unsure["image"] = unsure["image"] * 0 + 0.5
    vague["image"] = vague["image"] * 0.8
    items[1]["image"] = items[1]["image"] * 0.9
    content, page = review(tmp_path, items, 2, annotator_names=["Ada", "Bea"], pool=[clear, vague, unsure])
    assert [(one["image"], one["drawn_by"]) for one in content["ask_next"]] == [
        ("case_2.png", []),
        ("case_1.png", []),
        ("case_1.png", ["Ada"]),
        ("case_3.png", []),
    ]
    assert [one["annotator"] for one in content["ask_next"]][2] == "Bea"
    assert content["num_images"] == 2, "nothing else is said of what nobody has drawn"
    assert page.count("nobody yet") == 3
    without, _ = review(tmp_path, items, 2, annotator_names=["Ada", "Bea"])
    assert without == content | {"ask_next": [content["ask_next"][2]]}


class TwoFaced(nn.Module):
    """Features that are the matrices of two annotators: one never errs, the other guesses where both axes begin."""

    def forward(self, image):
        right = 20 * torch.eye(3).flatten()
        features = torch.cat([right, right]).view(1, 18, *[1] * (image.ndim - 2)).repeat(1, 1, *image.shape[2:])
        features[:, 9:, :12, :12] = 0
        return features


@pytest.mark.parametrize("depth", [None, 8])
def test_where_a_two_faced_annotator_errs_is_seen(tmp_path, depth):
    dims = 2 if depth is None else 3
    annotators = AnnotatorNet(TwoFaced(), dims, 18, 3, 2, 0, diagonal_floor=0.0)
    with torch.no_grad():
        annotators.head.weight.copy_(torch.eye(18).view(annotators.head.weight.shape))
        annotators.head.bias.zero_()
    items = [item(n, people(n, depth)[:2], depth) for n in range(2)]
    AnnotatorReview(CoupledModel(Reads(), annotators), CoupledLoss(3), items, SimpleInferer(), NAMES, tmp_path)()
    found = {one["name"]: one for one in json.loads((tmp_path / "annotators.json").read_text())["annotators"]}
    right, guesses = (torch.tensor(found[f"positive {n}"]["error_grid"]) for n in (1, 2))
    expected = torch.zeros((8, 8) if depth is None else (8, 8, 4))
    assert torch.allclose(right, expected, atol=1e-4)
    expected[:4, :4] = 2 / 3
    assert torch.allclose(guesses, expected, atol=1e-4)
    assert "positive 2: up to 66.7%" in (tmp_path / "annotators.html").read_text(encoding="utf-8")


def test_errors_are_shown_where_most_was_drawn_one_image_a_case(tmp_path):
    """Of a case with three slices, its ends with little in them; then the other two cases."""
    items, sizes = [], {"p01/s_1.png": 1, "p01/s_2.png": 9, "p01/s_3.png": 8, "p02/s_1.png": 2, "p03/s_7.png": 3}
    for name, size in sizes.items():
        label = torch.zeros(24, 24, dtype=torch.long)
        label[:size, :size] = 1
        image = MetaTensor(label[None].float(), meta={"filename_or_obj": name})
        items.append({"image": image, "positive": label[None]})

    def shown(*names):
        _, page = review(tmp_path, [one for one, name in zip(items, sizes, strict=True) if name in names], 1)
        part = page.split("one a case where file names tell")[1].split("<h2>")[0]
        return [one for one in re.findall("<figcaption>([^<]*)<", part) if one != "positive"]

    assert shown(*sizes) == ["s_2.png", "s_7.png", "p02/s_1.png"]
    assert shown("p01/s_1.png", "p01/s_2.png", "p01/s_3.png") == ["s_2.png", "s_3.png", "s_1.png"]


def test_what_does_not_fit_is_said(tmp_path):
    with pytest.raises(ValueError, match="annotator_names must be 4 different names, got a, b"):
        review(tmp_path, [], annotator_names=["a", "b"])
    with pytest.raises(ValueError, match=r"2 positive and 0 negative annotators, case_0\.png has drawings by 4 and 0"):
        review(tmp_path, [item(0, people(0, None), None)], 2)
    with pytest.raises(ValueError, match="nothing to review: the data set is empty"):
        review(tmp_path, [])
    assert list(tmp_path.iterdir()) == []
