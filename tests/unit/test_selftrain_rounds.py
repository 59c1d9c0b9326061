"""Rounds of self-training on a tiny trainer: what is written, handed over, restarted and resumed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer
from monai.transforms import Lambdad, RandFlipd, SelectItemsd

from medcoarse.inferers import scaled_views
from medcoarse.losses import CoupledLoss
from medcoarse.networks import AnnotatorNet, CoupledModel
from medcoarse.selftrain.label_files import (
    Made,
    PseudoLabels,
    read_folder,
    read_label,
    with_pseudo_labels,
    write_folder,
    write_label,
)
from medcoarse.selftrain.pseudo import agreement
from medcoarse.selftrain.rounds import InRounds, SelfTraining, in_rounds, round_of, weights_digest
from medcoarse.workflow import AnnotatorSchedule, PolynomialDecay, PrepareBatchCoarse, Resume, SaveCheckpoint, SeedEpoch

ROUND = 3


def load(name):
    """An image with a bright half and a drawing on some of its pixels, both told by the name."""
    rng = np.random.default_rng(int(name[0]))
    image = torch.zeros(1, 6, 5)
    image[:, : 2 + int(name[0])] = 1
    return image + torch.from_numpy(0.1 * rng.random((1, 6, 5))).float()


def draw(image):
    drawn = torch.full(image.shape, 255, dtype=torch.uint8)
    drawn[:, 0, 1], drawn[:, -1, 1] = 1, 0
    return drawn


def fixed():
    return [Lambdad("image", load), AddDrawing()]


class AddDrawing:
    def __call__(self, item):
        return {**item, "positive": draw(item["image"])}


def build(folder, key="positive", restart=True, num_rounds=2, workers=0, resume=False):
    """Everything that a bundle builds, in small."""
    torch.manual_seed(0)
    segmenter, backbone = torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.Conv2d(1, 4, 3, padding=1)
    annotator = AnnotatorNet(
        backbone, spatial_dims=2, feature_channels=4, num_classes=2, num_positive=1, num_negative=0
    )
    model = CoupledModel(segmenter, annotator)
    optimizer = torch.optim.Adam(model.parameters(), 0.3)
    items = [{"image": f"{n}.png"} for n in range(4)]
    labels = PseudoLabels(key)
    augmentation = [SelectItemsd(["image", "positive"]), RandFlipd(["image", "positive", "label"], 0.5, 0, True)]
    chain = with_pseudo_labels(fixed(), augmentation, [labels])
    loader = DataLoader(CacheDataset(items, chain, progress=False), batch_size=2, shuffle=True, num_workers=workers)
    rounds = SelfTraining(
        segmenter,
        Dataset(items, lambda item: AddDrawing()(Lambdad("image", load)(item))),
        SimpleInferer(),
        labels,
        num_classes=2,
        round_epochs=ROUND,
        num_rounds=num_rounds,
        directory=folder / "pseudo",
        threshold=0.6,
        scales=[1],
        restart={"model": model, "optimizer": optimizer} if restart else None,
    )
    state = {"model": model, "optimizer": optimizer, "rounds": rounds}
    handlers = [
        Resume(state, folder / "full.pt", resume),
        SeedEpoch(0, loader),
        AnnotatorSchedule(model, warmup_epochs=1),
        PolynomialDecay(optimizer),
        SaveCheckpoint(state, folder / "full.pt"),
        rounds,
    ]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=ROUND * (num_rounds + 1),
        train_data_loader=loader,
        network=model,
        optimizer=optimizer,
        loss_function=CoupledLoss(2),
        prepare_batch=PrepareBatchCoarse(["positive", "label"]),
        decollate=False,
        optim_set_to_none=True,
        train_handlers=in_rounds(handlers, ROUND, num_rounds),
    )
    return trainer, rounds, model


def observed(trainer, model):
    """By epoch: share of labelled pixels in the batches, learning rate, and whether the annotators are at work."""
    seen = {}

    def look(engine):
        target = engine.state.output["label"]
        maps = [one for one in (target.positive, target.label) if one is not None]
        known = torch.stack([(one != 255).float().mean() for one in maps]).sum().item()
        rate = engine.optimizer.param_groups[0]["lr"]
        seen.setdefault(engine.state.epoch, []).append((known, rate, model.annotating))

    trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
    return seen


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("key", ["positive", "label"])
def test_rounds_teach_more_pixels_and_repeat_the_schedules(tmp_path, key, workers):
    trainer, rounds, model = build(tmp_path, key, workers=workers)
    seen = observed(trainer, model)
    trainer.run()
    share = {epoch: [one[0] for one in found] for epoch, found in seen.items()}
    assert all(one == pytest.approx(2 / 30) for epoch in (1, 2, 3) for one in share[epoch])
    assert min(share[4]) > 3 * 2 / 30, "from the first batch of the round on"
    assert rounds.round == 2
    assert [seen[epoch][0][2] for epoch in range(1, 10)] == [False, True, True] * 3
    rates = [seen[epoch][0][1] for epoch in range(1, 10)]
    assert rates[:3] == pytest.approx([0.3 * (1 - n / 3) ** 0.9 for n in range(3)])
    assert rates[3:6] == rates[6:] == rates[:3]


def test_what_is_written_is_what_the_network_agrees_on_beside_the_drawing(tmp_path):
    trainer, _, model = build(tmp_path, num_rounds=1)
    kept = {}
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED(once=3),
        lambda _: kept.update({name: value.clone() for name, value in model.segmenter.state_dict().items()}),
    )
    trainer.run()
    provenance = json.loads((tmp_path / "pseudo" / "round-1" / "provenance.json").read_text())
    model.segmenter.load_state_dict(kept)
    assert provenance["weights_sha256"] == weights_digest(model.segmenter)
    assert [item["file"] for item in provenance["items"]] == [f"0000{n}_{n}.png" for n in range(4)]
    with torch.no_grad():
        for n, item in enumerate(provenance["items"]):
            image = load(f"{n}.png")
            wanted = agreement(scaled_views(image[None], model.segmenter, [1], [0]), 0.6)[0]
            wanted[draw(image) != 255] = 255
            found = read_label(tmp_path / "pseudo" / "round-1" / item["file"])
            assert torch.equal(found, wanted)
            assert sum(item["pixels_per_class"]) == (wanted != 255).sum()


def test_drawings_of_every_pixel_are_said_to_leave_nothing(tmp_path, caplog):
    _, rounds, _ = build(tmp_path)
    rounds.begin(1)
    assert "change nothing" not in caplog.text
    drawn = {"positive": torch.zeros(1, *load("0.png").shape[1:], dtype=torch.uint8)}
    rounds.dataset = Dataset(rounds.dataset.data, lambda item: {**item, "image": load(item["image"]), **drawn})
    rounds.begin(2)
    assert "Every pixel is drawn, so rounds of pseudo labels change nothing" in caplog.text


def test_a_round_starts_from_the_first_weights_or_goes_on(tmp_path):
    for restart in (True, False):
        trainer, _, model = build(tmp_path, restart=restart, num_rounds=1)
        first, states = weights_digest(model), []
        started = Events.ITERATION_STARTED(once=1 + 2 * ROUND)
        trainer.add_event_handler(
            started, lambda engine, m=model, s=states: s.append((weights_digest(m), len(engine.optimizer.state)))
        )
        trainer.run()
        assert (states[0][0] == first, states[0][1] == 0) == (restart, restart)


@pytest.mark.parametrize("epochs", [1, 3, 4, 5])
@pytest.mark.parametrize("restart", [True, False])
def test_an_interrupted_run_goes_on_bit_by_bit(tmp_path, epochs, restart):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer, _, model = build(whole, restart=restart)
    trainer.run()
    trainer, _, _ = build(parts, restart=restart)
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=epochs), lambda engine: engine.terminate())
    trainer.run()
    trainer, _, resumed = build(parts, restart=restart, resume=True)
    trainer.run()
    assert weights_digest(resumed) == weights_digest(model)
    assert (parts / "pseudo/round-2/provenance.json").read_bytes() == (
        whole / "pseudo/round-2/provenance.json"
    ).read_bytes()


def test_a_checkpoint_whose_pseudo_labels_are_gone_says_so(tmp_path):
    trainer, _, _ = build(tmp_path)
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=4), lambda engine: engine.terminate())
    trainer.run()
    one = next((tmp_path / "pseudo" / "round-1").glob("*.png"))
    content = one.read_bytes()
    one.unlink()
    with pytest.raises(FileNotFoundError, match=f"{one.name} is missing; train anew"):
        build(tmp_path, resume=True)[0].run()
    one.write_bytes(content)
    shutil.rmtree(tmp_path / "pseudo")
    with pytest.raises(FileNotFoundError, match="not there or were made anew since"):
        build(tmp_path, resume=True)[0].run()


def test_without_rounds_nothing_changes(tmp_path):
    trainer, rounds, _ = build(tmp_path, num_rounds=0)
    trainer.run()
    assert rounds.round == 0
    assert not (tmp_path / "pseudo").exists()


def test_what_was_drawn_is_kept_in_any_reading(tmp_path):
    """Several classes and negative drawings: agreed pixels and classes that are ruled out get no pseudo label."""

    class Sure(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            return torch.stack([0 * x[:, 0], 0 * x[:, 0], 9 + 0 * x[:, 0]], 1)  # class 2 everywhere

    item = {
        "image": torch.zeros(1, 1, 6),
        "positive": torch.tensor([[[0, 255, 255, 1, 255, 255]]]),
        "negative": torch.tensor([[[255, 2, 1, 1, 255, 255]]]),
        "mask": torch.tensor([[[1, 1, 1, 1, 1, 0]]]),
    }
    labels = PseudoLabels("label")
    data = Dataset([{"image": "a.png"}], lambda _: item)
    rounds = SelfTraining(Sure(), data, SimpleInferer(), labels, 3, 1, 1, tmp_path, scales=[1])
    rounds.begin(1)
    # Drawn; class 2 ruled out; class 1 ruled out; contradiction; free; outside the region.
    handed = labels({"image": item["image"], "source": "a.png"})["label"]
    assert handed.tolist() == [[[255, 255, 2, 2, 2, 255]]]


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 7), (1, 5), (1, 1), (3, 4, 5), (1, 4, 1)])
def test_a_label_map_comes_back(tmp_path, shape):
    label = torch.randint(0, 256, (1, *shape), dtype=torch.uint8)
    path = tmp_path / ("a.png" if len(shape) == 2 else "a.nii.gz")
    write_label(path, label)
    assert torch.equal(read_label(path), label)


def test_volumes_keep_their_place(tmp_path):
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0]))
    image = MetaTensor(torch.zeros(1, 2, 3, 4), affine)

    class Flat(torch.nn.Conv3d):
        def __init__(self):
            super().__init__(1, 2, 1)
            self.bias.data = torch.tensor([0.0, 9.0])

    rounds = SelfTraining(
        Flat(), Dataset([{"image": ["a.nii", "b.nii"]}], lambda _: {"image": image}), SimpleInferer(),
        PseudoLabels(), 2, 1, 1, tmp_path, flip_axes=[0, 1, 2], scales=[1, 2],
    )  # fmt: skip
    rounds.begin(1)
    import nibabel

    (path,) = (tmp_path / "round-1").glob("*.nii.gz")
    assert np.allclose(nibabel.load(path).affine, affine)
    assert (read_label(path) == 1).all()


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder, label = tmp_path / "round-1", torch.zeros(1, 2, 2, dtype=torch.uint8)
    old = write_folder(folder, [Made("a.png", label)], {"round": 1})

    def fails():
        yield Made("a.png", label)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_folder(folder, fails(), {"round": 1})
    assert len(read_folder(folder, old)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["round-1"], "no draft is left"
    new = write_folder(folder, [Made("a.png", label + 1)], {"round": 1})
    with pytest.raises(FileNotFoundError):
        read_folder(folder, old)
    assert (read_label(*read_folder(folder, new)) == 1).all()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="holds no pseudo labels"):
        write_folder(mine, [Made("a.png", label)], {})
    assert (mine / "thesis.txt").exists()


def test_pseudo_labels_refuse_several_annotators(tmp_path):
    labels = PseudoLabels()
    write_label(tmp_path / "a.png", torch.zeros(1, 1, 2))
    labels.files = {"a": tmp_path / "a.png"}
    with pytest.raises(ValueError, match="'positive' has 2 annotators; fill 'label' instead"):
        labels({"source": "a", "image": torch.zeros(1, 1, 2), "positive": torch.zeros(2, 1, 2)})


def test_rounds_by_hand():
    assert [round_of(epoch, 2, 2) for epoch in range(1, 8)] == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]
    assert [round_of(epoch, 2, 0) for epoch in (1, 5)] == [(0, 1), (0, 5)]
    with pytest.raises(ValueError, match="at least one epoch"):
        SelfTraining(torch.nn.Conv2d(1, 2, 1), None, SimpleInferer(), PseudoLabels(), 2, 0, 1, ".")


def test_epochs_behind_the_last_round_belong_to_it():
    """The annotators' own epochs at the end: the schedule sees as many as in a training without rounds."""

    class Spy:
        def attach(self, engine):
            self.seen = []
            engine.add_event_handler(Events.EPOCH_STARTED, self)

        def __call__(self, engine):
            self.seen.append((engine.state.epoch, engine.state.max_epochs))

    spy = Spy()
    data = [{"image": torch.zeros(1, 2, 2), "positive": torch.zeros(1, 2, 2)}]
    network = torch.nn.Conv2d(1, 2, 1)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=5,
        train_data_loader=DataLoader(data),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.0),
        loss_function=lambda logits, target: logits.sum(),
        prepare_batch=PrepareBatchCoarse("positive"),
        decollate=False,
        train_handlers=[InRounds(spy, 2, 1)],
    )
    trainer.run()
    assert spy.seen == [(1, 3), (2, 3), (1, 3), (2, 3), (3, 3)]
