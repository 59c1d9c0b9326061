"""Methods that make masks of drawings, on every bundle that has drawings of both kinds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import Dataset
from monai.transforms import Compose

from medcoarse.baselines.expansion import METHODS
from medcoarse.baselines.soft_labels import agreed_drawing

MILD, SPARSE = {}, {"dense": False, "ratio": 0.3, "num_parts": 3}
STROKES = {"positive_profiles": [SPARSE], "negative_profiles": [SPARSE | {"kind": "negative"}]}


def options(bundle, output):
    return bundle.small | bundle.places(output) | {"warmup_epochs": "@max_epochs"}


def over(bundle, method):
    return "train.json", f"../../mnist/configs/{method}.json"


def turned(image, label, seen):
    """Whether what was seen is the pair, flipped, turned and cropped."""
    pair, height, width = torch.cat([image, label.float()]), *seen.shape[1:]
    for one in (pair, pair.mT):
        for k in range(4):
            whole = one.rot90(k, (1, 2))
            for y in range(whole.shape[1] - height + 1):
                for x in range(whole.shape[2] - width + 1):
                    if torch.equal(whole[:, y : y + height, x : x + width], seen):
                        return True
    return False


def whole_images(built):
    """Images and drawings as training knows them, with the truth."""
    items, steps = (built.parser.get_parsed_content(key) for key in ("train#drawings#data", "preprocessing"))
    return Dataset(items, Compose(steps))


@pytest.mark.parametrize("drawn", [MILD, STROKES], ids=["dense", "strokes"])
@pytest.mark.parametrize("method", METHODS)
def test_training_on_expanded_drawings(bundle, tmp_path, method, drawn):
    built = bundle.run(*over(bundle, method), **options(bundle, tmp_path), **drawn)
    content = bundle.metrics(tmp_path)
    assert content["facts"]["method"] == method
    assert content["facts"].get("failures", []) == []
    assert [row["epoch"] for row in content["validation"]] == [1, 2], "no epochs of annotators"
    loss, expansion = (built.parser.get_parsed_content(key) for key in ("loss", "expansion"))
    assert set(loss.parts) == {"dense", "dense_dice"}, "as from masks"
    # With supervision="strokes" a batch would have no label: an error, not another method by this name.
    assert built.parser.get_parsed_content("train#trainer#prepare_batch").keys == ("label",)
    data, drawings = built.parser.get_parsed_content("train#dataset"), whole_images(built)
    right = []
    for item, seen in zip(drawings, data, strict=True):
        assert set(seen) == {"image", "label"}
        expanded = expansion(item)["label"]
        partial = agreed_drawing([item["positive"], item["negative"]], 2)
        known = (partial != 255).numpy()
        assert np.array_equal(np.asarray(expanded)[0][known], partial.numpy()[known])
        assert turned(
            torch.as_tensor(item["image"]), torch.as_tensor(expanded), torch.cat([seen["image"], seen["label"]])
        )
        right.append(float((torch.as_tensor(expanded) == torch.as_tensor(item["label"])).float().mean()))
    assert 0.5 < np.mean(right) < 1, "not the truth"


def test_failures_are_in_the_metrics(bundle, tmp_path):
    """Positive strokes alone, and no pixel that would be outside."""
    alone = {"positive_profiles": STROKES["positive_profiles"], "negative_profiles": []}
    bundle.run(
        *over(bundle, "grab_cut"), **options(bundle, tmp_path), **alone, **{"expansion#options": {"margin": 200}}
    )
    assert len(bundle.metrics(tmp_path)["facts"]["failures"]) == 4


@pytest.mark.parametrize("drawn", [MILD, STROKES], ids=["dense", "strokes"])
def test_training_by_scribblesup(bundle, tmp_path, drawn):
    configs, given = over(bundle, "scribblesup"), options(bundle, tmp_path) | drawn
    repeats = {"repeats": 2} if bundle.name == "les_av" else {}
    built = bundle.run(*configs, **given | repeats | {"cut_epochs": [2]})
    state = torch.load(tmp_path / "models" / "full.pt", weights_only=True)["scribblesup"]["labels"]
    data, drawings = built.parser.get_parsed_content("train#dataset"), whole_images(built)
    assert len(state) == len(drawings) == 4
    assert len(data) == 4 * repeats.get("repeats", 1)
    for n, seen in enumerate(data):
        item, mask = drawings[n % 4], state[n % 4]
        assert set(seen) == {"image", "label"}
        partial = agreed_drawing([item["positive"], item["negative"]], 2)
        assert torch.equal(mask[0][partial != 255], partial[partial != 255])
        assert turned(torch.as_tensor(item["image"]), mask, torch.cat([seen["image"], seen["label"]]))
    assert bundle.metrics(tmp_path)["facts"]["method"] == "scribblesup"


@pytest.mark.parametrize("bundle", ["mnist"], indirect=True)  # what is resumed is the same over every bundle
def test_scribblesup_goes_on_as_if_it_had_never_stopped(bundle, tmp_path):
    configs = over(bundle, "scribblesup")
    given = {name: options(bundle, tmp_path / name) | {"max_epochs": 3} for name in ("whole", "parts")}
    bundle.run(*configs, **given["whole"])
    interrupted = bundle.workflow(*configs, **given["parts"])
    interrupted.initialize()

    @interrupted.trainer.on(Events.EPOCH_COMPLETED(once=2))
    def interrupt(engine):  # attached last, so the checkpoint of the epoch is written
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    bundle.run(*configs, **given["parts"], resume=True)
    whole, parts = (torch.load(tmp_path / name / "models" / "full.pt", weights_only=True) for name in given)
    assert whole["trainer"] == parts["trainer"]
    assert whole["model"].keys() == parts["model"].keys()
    assert all(torch.equal(whole["model"][name], value) for name, value in parts["model"].items())
    masks = [one["scribblesup"]["labels"] for one in (whole, parts)]
    assert len(masks[0]) == 4
    assert all(torch.equal(mask, masks[1][n]) for n, mask in masks[0].items())
