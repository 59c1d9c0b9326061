"""Methods that were adapted to drawings, over the bundles: trained, resumed, and blind to what they must not see."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events

from medcoarse.baselines.coarsesup import CoarseSup

STAGES = {
    "lc_mil": {"stage#num_bags": 40, "stage#epochs": 1, "stage#patch_size": 3},
    "l2g": {"stage#steps": 4, "stage#width": 4, "stage#window_size": 24},
}


def configs(bundle, name):
    train = bundle.root / "configs" / "train.json"
    return str(train), str(bundle.root.parent / "mnist" / "configs" / f"{name}.json")


def weights(output):
    return torch.load(output / "models" / "full.pt", weights_only=True)


def alike(first, second):
    states = [state["model"] | {"step": torch.tensor(state["trainer"]["iteration"])} for state in (first, second)]
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


@pytest.mark.parametrize("bundle", ["mnist"], indirect=True)  # what is resumed is the same over every bundle
@pytest.mark.parametrize("name", ["coarsesup", "lc_mil", "l2g"])
def test_trained_and_resumed_bit_identically(bundle, tmp_path, name):
    options = bundle.small | STAGES.get(name, {})
    if name == "coarsesup":
        options["warmup_epochs"] = 1
    else:
        options.pop("warmup_epochs")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    bundle.run(*configs(bundle, name), **options | bundle.places(whole) | {"max_epochs": 3})
    # The schedule depends on the number of epochs: stop the longer run early, as a kill would.
    stopped = bundle.workflow(*configs(bundle, name), **options | bundle.places(halves) | {"max_epochs": 3})
    stopped.initialize()
    trainer = stopped.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), trainer.terminate)
    stopped.run()
    stopped.finalize()
    bundle.run(*configs(bundle, name), **options | bundle.places(halves) | {"max_epochs": 3, "resume": True})
    assert alike(weights(whole), weights(halves))


@pytest.mark.parametrize("supervision", ["coarse", "positive"])
def test_coarsesup_learns_from_one_kind_of_drawing_or_two(bundle, tmp_path, supervision):
    options = bundle.small | bundle.places(tmp_path) | {"supervision": supervision}
    if supervision == "positive":
        options["negative_profiles"] = []
    built = bundle.run(*configs(bundle, "coarsesup"), **options)
    model = built.parser.get_parsed_content("coarse_model")
    assert isinstance(model, CoarseSup)
    assert built.parser.get_parsed_content("train#trainer").state.max_epochs == options["max_epochs"]
    table = model.annotator.table.softmax(1)
    assert len(table) == (2 if supervision == "coarse" else 1)
    assert (torch.diagonal(table, dim1=1, dim2=2) != 0.9).any(), "the matrices learn"
    flat = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(flat[key], value) for key, value in model.segmenter.state_dict().items())
    assert flat.keys() == model.segmenter.state_dict().keys(), "inference knows nothing of the posterior network"


@pytest.mark.parametrize("name", ["lc_mil", "l2g"])
def test_label_maps_take_the_place_of_masks(bundle, tmp_path, name):
    options = bundle.small | STAGES[name] | bundle.places(tmp_path)
    options.pop("warmup_epochs")
    built = bundle.run(*configs(bundle, name), **options)
    made = built.parser.get_parsed_content("pseudo").labels
    drawings = built.parser.get_parsed_content("train#drawings")
    assert set(made) == {str(item["image"]) for item in drawings.data}
    for number, entry in enumerate(drawings.data):
        label = made[str(entry["image"])]
        assert label.shape == drawings[number]["label"].shape
        assert not torch.equal(label, torch.as_tensor(drawings[number]["label"]).byte())
    for item in built.parser.get_parsed_content("train#dataset"):
        assert set(item) == {"image", "label"}
    assert built.parser.get_parsed_content("loss").parts.keys() == {"dense", "dense_dice"}
    assert [path.name.split("_")[0] for path in (tmp_path / "pseudo_labels").iterdir()] == [
        {"lc_mil": "LCMIL", "l2g": "L2G"}[name]
    ]
    hidden = bundle.run(*configs(bundle, name), **options | {"output_dir": str(tmp_path / "b"), "max_epochs": 1})
    again = hidden.parser.get_parsed_content("pseudo").labels
    assert all(torch.equal(again[key], label) for key, label in made.items())
