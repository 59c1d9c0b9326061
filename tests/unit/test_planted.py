from __future__ import annotations

import json
from collections import Counter

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer

from medcoarse.baselines.blur_threshold import BlurThreshold
from medcoarse.losses import CoupledLoss
from medcoarse.networks import AnnotatorNet, CoupledModel
from medcoarse.reliability import planted_found
from medcoarse.review import AnnotatorReview
from medcoarse.synthetic.digits import add_noise, stroke_digits
from medcoarse.transforms.array import SimulateCoarse
from medcoarse.transforms.planted import ERRORS, PlantErrorsd, plant_errors, with_foreground


def items(number):
    return [{"image": f"{n}.png", "label": f"mask_{n}.png"} for n in range(number)]


def test_as_many_as_told_of_every_error_and_the_same_again():
    given = items(50)
    planted = plant_errors(given, 20, seed=3)
    assert Counter(item["planted"]["error"] for item in planted if "planted" in item) == dict.fromkeys(ERRORS, 5)
    assert plant_errors(given, 20, seed=3) == planted != plant_errors(given, 20, seed=4)
    assert given == items(50), "what was given stays as it is"
    for item, before in zip(planted, given, strict=True):
        error = item.get("planted", {}).get("error")
        assert item["image"] == before["image"]
        assert (item["label"] != before["label"]) == (error == "another")
        assert ("shift" in item.get("planted", {})) == (error == "shifted")
    assert plant_errors(given, 0) == given


def test_an_image_is_never_drawn_from_its_own_mask_by_another():
    for seed in range(20):
        planted = plant_errors(items(2), 2, seed, ["another"])
        assert [item["label"] for item in planted] == ["mask_1.png", "mask_0.png"]


def test_only_among_those_that_are_told():
    among = [3, 7, 8, 11, 30]
    planted = plant_errors(items(40), 4, seed=1, errors=["another", "blank"], among=among)
    chosen = [n for n, item in enumerate(planted) if "planted" in item]
    assert len(chosen) == 4
    assert set(chosen) < set(among)
    for n in chosen:
        if planted[n]["planted"]["error"] == "another":
            assert planted[n]["label"] in {f"mask_{m}.png" for m in among} - {f"mask_{n}.png"}
    with pytest.raises(ValueError, match="from 0 to the number of items, 5, got 6"):
        plant_errors(items(40), 6, among=among)
    with pytest.raises(ValueError, match="among must be numbers of the 40 items, got"):
        plant_errors(items(40), 1, among=[3, 40])


@pytest.mark.parametrize("shape", [(6, 5, 1), (6, 5, 4)])
def test_items_with_foreground(tmp_path, shape):
    listed = []
    for n in range(4):
        label = np.zeros(shape, np.uint8)
        label[-1, -1, -1], label[0, 0, 0] = n % 2, 255  # what nobody knows is no foreground
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), tmp_path / f"{n}.nii.gz")
        listed.append({"label": str(tmp_path / f"{n}.nii.gz")})
    assert with_foreground(listed) == [1, 3]


DRAWN = torch.tensor([[[0, 1, 2, 255], [0, 0, 1, 1], [0, 0, 0, 0], [2, 0, 0, 0]]], dtype=torch.uint8)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"error": "another"}, DRAWN),
        ({"error": "swapped"}, [[[1, 2, 0, 255], [1, 1, 2, 2], [1, 1, 1, 1], [0, 1, 1, 1]]]),
        ({"error": "blank"}, [[[0, 0, 0, 255], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]]),
        (
            {"error": "shifted", "shift": [0.25, -0.25]},
            [[[0, 0, 0, 2], [1, 2, 255, 0], [0, 1, 1, 0], [0, 0, 0, 0]]],
        ),
        (None, DRAWN),
    ],
)
@pytest.mark.parametrize("depth", [None, 3])
def test_errors_by_hand(record, expected, depth):
    def deep(drawn):
        drawn = torch.as_tensor(drawn, dtype=torch.uint8)
        return drawn if depth is None else drawn[..., None].repeat(1, 1, 1, depth)

    item = {"positive": deep(DRAWN)} | ({} if record is None else {"planted": record})
    found = PlantErrorsd("positive", num_classes=3)(item)["positive"]
    assert torch.equal(found, deep(expected))
    assert found.dtype == torch.uint8
    assert torch.equal(item["positive"], deep(DRAWN)), "what was given stays as it is"


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="from 0 to the number of items, 3, got 4"):
        plant_errors(items(3), 4)
    with pytest.raises(ValueError, match="errors must be some of another, swapped, shifted, blank, got 'none'"):
        plant_errors(items(3), 1, errors=["none"])
    with pytest.raises(ValueError, match="errors must be some of another, swapped, shifted, blank, got nothing"):
        plant_errors(items(3), 1, errors=[])
    with pytest.raises(ValueError, match="must be one of another, swapped, shifted, blank, got 'upside down'"):
        PlantErrorsd("positive")({"positive": DRAWN, "planted": {"error": "upside down"}})


def test_precision_is_that_of_sorting():
    rng = np.random.default_rng(0)
    quality = torch.from_numpy(rng.random((40, 3)))
    quality[torch.from_numpy(rng.random((40, 3)) < 0.5)] = torch.nan
    quality[7] = torch.nan  # nothing was drawn, so nothing can be wrong
    errors = [str(rng.choice(["a", "b"])) if n < 12 else None for n in range(40)]
    pairs = [(quality[n, r].item(), errors[n]) for n in range(40) for r in range(3) if not quality[n, r].isnan()]
    number = sum(error is not None for _, error in pairs)
    worst = [error for _, error in sorted(pairs)[:number]]
    found = planted_found(-quality, errors)
    assert found["number"] == number
    assert found["precision"] == pytest.approx(sum(error is not None for error in worst) / number)
    for name in ("a", "b"):
        assert found["errors"][name] == {"number": sum(e == name for _, e in pairs), "found": worst.count(name)}


def test_the_review_finds_what_was_planted_and_reports_it(tmp_path):
    """Digits that are drawn faithfully, too large or too small, one drawing each; a tenth of them is wrong."""
    clean = stroke_digits(range(100)).images
    images = [torch.from_numpy(add_noise(one, n)).float()[None] for n, one in enumerate(clean)]
    masks = [torch.from_numpy(one > 0.5).to(torch.uint8)[None] for one in clean]
    listed = plant_errors([{"label": n, "who": n % 3} for n in range(100)], 12)
    draw, spoil = SimulateCoarse(["good", "over", "under"], spacing=1.0), PlantErrorsd("positive")
    data = []
    for n, item in enumerate(listed):
        drawn = draw(masks[item["label"]])
        drawn[[r for r in range(3) if r != item["who"]]] = 255
        image = MetaTensor(images[n], meta={"filename_or_obj": f"{n}.png"})
        data.append(spoil({**item, "image": image, "positive": drawn}))
    annotators = AnnotatorNet(None, 2, 0, 2, num_positive=3, num_negative=0, structure="global")
    model = CoupledModel(BlurThreshold(2, sigma=0.7, threshold=0.45, steepness=20.0), annotators)
    names = ["background", "digit"]
    AnnotatorReview(model, CoupledLoss(2), data, SimpleInferer(), names, tmp_path)()
    found = json.loads((tmp_path / "annotators.json").read_text())["planted"]
    assert found["number"] == 12
    assert found["precision"] >= 0.9
    assert {name: one["number"] for name, one in found["errors"].items()} == dict.fromkeys(ERRORS, 3)
    AnnotatorReview(model, CoupledLoss(2), data[:1], SimpleInferer(), names, tmp_path / "one")()
    assert "planted" not in json.loads((tmp_path / "one" / "annotators.json").read_text())
