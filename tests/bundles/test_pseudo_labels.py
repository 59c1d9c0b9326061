"""Methods for partial labels that make up the rest: each over both bundles, and resumed where it was stopped."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events

from medcoarse.confusion import UNLABELED, Annotations
from medcoarse.losses import consensus
from tests.bundles.test_bundles import assert_equal

METHODS = ("gated_crf", "dmpls", "dmsps", "cyclemix", "boxsup")
OWN_LABELS = ("dmsps", "boxsup")  # which they replace between epochs


def configs(method):
    return "train.json", f"../../mnist/configs/{method}.json"


@pytest.mark.parametrize("bundle", ["mnist"], indirect=True)  # what is resumed is the same over every bundle
@pytest.mark.parametrize("method", METHODS)
def test_resumed_it_is_bit_identical_and_leaves_the_plain_network(bundle, tmp_path, method):
    options = bundle.small | {"max_epochs": 3}
    whole = bundle.run(*configs(method), **options, **bundle.places(tmp_path / "whole"))
    halves = bundle.workflow(*configs(method), **options, **bundle.places(tmp_path / "halves"))
    halves.initialize()

    @halves.trainer.on(Events.EPOCH_COMPLETED(once=2))
    def interrupt(engine):  # attached last, so the checkpoint of the epoch is written
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        halves.run()
    bundle.run(*configs(method), **options, **bundle.places(tmp_path / "halves"), resume=True)
    for name in ("model.pt", "full.pt"):
        assert_equal(*(torch.load(tmp_path / run / "models" / name, weights_only=True) for run in ("whole", "halves")))
    trainer = whole.parser.get_parsed_content("train#trainer")
    assert trainer.state.max_epochs == 3, "no annotator learns"
    plain = bundle.workflow("train.json", **options, **bundle.places(tmp_path))
    plain.parser.parse()
    network = plain.parser.get_parsed_content("network")
    network.load_state_dict(torch.load(tmp_path / "whole" / "models" / "model.pt", weights_only=True))
    bundle.run("train.json", "evaluate.json", **options, **bundle.places(tmp_path / "whole"))
    assert (tmp_path / "whole" / "evaluation.json").is_file()


def built(bundle, tmp_path, method, **overrides):
    one = bundle.workflow(*configs(method), **(bundle.small | bundle.places(tmp_path) | overrides))
    one.initialize()
    return one.parser


@pytest.mark.parametrize("method", METHODS)
def test_the_network_starts_as_that_of_every_other_row(bundle, tmp_path, method):
    """Same weights, rate and schedule; only what is needed beside it is added."""
    plain = bundle.workflow("train.json", **bundle.small, **bundle.places(tmp_path))
    plain.initialize()
    ours = built(bundle, tmp_path, method)
    for key in ("max_epochs", "batch_size", "learning_rate", "val_interval"):
        assert ours.get_parsed_content(key) == plain.parser.get_parsed_content(key)
    states = []
    for parser in (plain.parser, ours):
        parser.get_parsed_content("train#trainer")
        states.append(parser.get_parsed_content("network").state_dict())
    assert_equal(dict(states[0]), dict(states[1]))
    optimizer = ours.get_parsed_content("optimizer")
    learned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert learned == {id(p) for p in ours.get_parsed_content("train_model").parameters()}


SPARSE = {"dense": False, "ratio": 0.3, "num_parts": 3}
STROKES = {
    "supervision": "strokes",
    "positive_profiles": [SPARSE],
    "negative_profiles": [SPARSE | {"kind": "negative"}],
}


@pytest.mark.parametrize("supervision", ["coarse", "strokes"])
@pytest.mark.parametrize("method", METHODS)
def test_the_truth_stays_out_of_reach(bundle, tmp_path, method, supervision):
    overrides = STROKES if supervision == "strokes" else {}
    parser = built(bundle, tmp_path, method, **overrides)
    data = parser.get_parsed_content("train#dataloader").dataset
    if method in OWN_LABELS:
        handler = parser.get_parsed_content("seeds" if method == "dmsps" else "boxes")
        handler._start(None)
        assert len(handler.labels) == handler.dataset.num_items
        for item in data:
            assert set(item) - {"number"} == {"image", "label"}
        for number, item in handler.dataset.each():
            label = handler.labels.maps[number]
            drawn = [torch.as_tensor(item[k])[None] if k in item else None for k in ("positive", "negative")]
            if method == "dmsps":
                assert torch.equal(label, consensus(Annotations(*drawn), 2)[0].to(torch.uint8))
            else:
                assert (label[drawn[0][0] == 1] == 1).all()
                assert (label != UNLABELED).all()
    else:
        for item in data:
            assert set(item) == {"image", "positive"} | ({"negative"} if supervision == "coarse" else set())


def test_repeated_items_share_their_labels(bundle, tmp_path):
    if bundle.name != "les_av":
        pytest.skip("MNIST has every item once")
    parser = built(bundle, tmp_path, "boxsup", repeats=2)
    numbered, number = parser.get_parsed_content("train#numbered"), len(bundle.items("training"))
    assert (len(numbered), numbered.num_items) == (2 * number, number)
    assert torch.equal(torch.as_tensor(numbered[0]["image"]), torch.as_tensor(numbered[number]["image"]))
