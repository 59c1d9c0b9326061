from __future__ import annotations

import logging
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, from_engine
from monai.transforms import AsDiscreted, RandGaussianNoised
from torch import nn

from medcoarse.confusion import Annotations, CoupledOutput, FullConfusion
from medcoarse.files import load_weights, plain, write_atomically, write_json
from medcoarse.monitoring import AnnotatorMonitor, Progress, drawing_scores, score_views
from medcoarse.networks import AnnotatorNet, CoupledModel
from medcoarse.scores import SegmentationScores
from medcoarse.workflow import (
    DATA_SETS,
    SUPERVISION,
    AnnotatorSchedule,
    PolynomialDecay,
    PrepareBatchCoarse,
    Resume,
    SaveCheckpoint,
    SeedEpoch,
    Validate,
    prepare_volumes,
    share,
)
from tests.processes import run_in_processes


def batch():
    keys = ("image", "label", "positive", "negative")
    return {key: MetaTensor(torch.zeros(1, 1, 4, 4)) for key in keys}


@pytest.mark.parametrize("supervision", SUPERVISION)
def test_the_loss_sees_only_what_the_supervision_allows(supervision):
    image, target = PrepareBatchCoarse(supervision)(batch())
    shown = {name for name in ("positive", "negative", "label") if getattr(target, name) is not None}
    assert shown == set(SUPERVISION[supervision])
    assert type(image) is torch.Tensor  # MetaTensor would slow every operation down


def test_batches_and_supervision_that_do_not_fit():
    with pytest.raises(ValueError, match="one of coarse, positive, negative, dense, semi, strokes, got 'weak'"):
        PrepareBatchCoarse("weak")
    one_kind = batch()
    del one_kind["negative"]
    assert PrepareBatchCoarse("coarse")(one_kind)[1].negative is None
    with pytest.raises(ValueError, match="must have image and negative, it has image, label, positive"):
        PrepareBatchCoarse("negative")(one_kind)


def engine_of(epochs: int, length: int, step) -> tuple[Engine, dict]:
    engine = Engine(lambda engine, item: step(item))
    return engine, {"data": list(range(length)), "max_epochs": epochs}


def coupled_model() -> CoupledModel:
    return CoupledModel(nn.Conv2d(1, 2, 1), AnnotatorNet(nn.Conv2d(1, 4, 1), 2, 4, num_classes=2))


def phases(epochs: int, length: int, **arguments) -> list[tuple[bool, bool, bool]]:
    """(annotating, segmenter_learns, annotator_learns) at every iteration."""
    model = coupled_model()
    seen = []
    engine, run = engine_of(
        epochs, length, lambda item: seen.append((model.annotating, model.segmenter_learns, model.annotator_learns))
    )
    AnnotatorSchedule(model, **arguments).attach(engine)
    engine.run(**run)
    return seen


def test_warm_up_ends_after_its_epochs():
    assert phases(4, 1, warmup_epochs=2) == [(False, True, True)] * 2 + [(True, True, True)] * 2


def test_annotators_learn_now_and_then_and_alone_in_the_end():
    seen = phases(4, 3, warmup_epochs=1, interval=2, last_epoch=3)
    assert [annotating for annotating, _, _ in seen] == [False] * 3 + [True] * 9
    assert [segmenter for _, segmenter, _ in seen] == [True] * 9 + [False] * 3
    assert [annotator for _, _, annotator in seen][3:] == [True, False, True, False, True, False] + [True] * 3
    assert phases(2, 1, warmup_epochs=2, last_epoch=1)[1] == (True, False, True)  # also where the warm-up was all
    with pytest.raises(ValueError, match="interval must be at least 1, got 0"):
        AnnotatorSchedule(coupled_model(), 0, interval=0)


def test_annotators_without_parameters_cannot_learn_alone():
    model = CoupledModel(nn.Conv2d(1, 2, 1), AnnotatorNet(None, 2, 0, num_classes=2, structure="identity"))
    for epochs in (2, 3):
        engine, run = engine_of(epochs, 1, lambda item: None)
        AnnotatorSchedule(model, 0, last_epoch=2).attach(engine)
        with pytest.raises(ValueError, match="after epoch 2 of 3 the annotators") if epochs == 3 else nullcontext():
            engine.run(**run)
    with pytest.raises(ValueError, match="after epoch 2 of 3 the annotators"):
        AnnotatorSchedule(model, 0, last_epoch=2).start(3)


def test_rates_fall_to_nothing_twice():
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second], "lr": 0.1}], lr=1.0)
    seen = []
    engine, run = engine_of(6, 1, lambda item: seen.append([group["lr"] for group in optimizer.param_groups]))
    PolynomialDecay(optimizer, power=1, last_epoch=4, second_rate=0.5).attach(engine)
    engine.run(**run)
    expected = [[1.0, 0.1], [0.75, 0.075], [0.5, 0.05], [0.25, 0.025], [0.5, 0.5], [0.25, 0.25]]
    assert np.allclose(seen, expected)


def test_each_epoch_depends_on_seed_and_epoch_only():
    def run(start: int) -> list[float]:
        data = [{"image": torch.zeros(1, 2)} for _ in range(3)]
        loader = DataLoader(Dataset(data, RandGaussianNoised("image", prob=1.0)), batch_size=1, shuffle=True)
        seen: list[float] = []
        engine = Engine(lambda engine, item: seen.append(item["image"].sum().item()))
        SeedEpoch(7, loader).attach(engine)
        if start:
            engine.load_state_dict({"epoch": start, "max_epochs": 3, "epoch_length": 3})
        engine.run(loader, max_epochs=3)
        return seen

    whole = run(0)
    assert len(set(whole)) == 9
    assert run(1) == whole[3:]


def test_a_checkpoint_is_whole_or_absent(tmp_path):
    path = tmp_path / "deep" / "model.pt"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the n")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["model.pt"]


def test_full_checkpoint_restores_objects_and_epoch(tmp_path):
    network = nn.Linear(1, 1)

    def run(module, epochs, resume):
        engine, arguments = engine_of(epochs, 2, lambda item: module.weight.data.add_(1))
        Resume({"model": module}, tmp_path / "full.pt", resume).attach(engine)
        SaveCheckpoint({"model": module}, tmp_path / "full.pt").attach(engine)
        engine.run(**arguments)
        return engine

    run(network, 2, False)
    other = nn.Linear(1, 1)
    engine = run(other, 3, True)
    assert engine.state.iteration == 6
    assert torch.allclose(other.weight, network.weight + 2)


def test_a_checkpoint_of_other_epochs_is_refused(tmp_path):
    def run(length, resume):
        engine, arguments = engine_of(2 if resume else 1, length, lambda item: None)
        Resume({"model": nn.Linear(1, 1)}, tmp_path / "full.pt", resume).attach(engine)
        SaveCheckpoint({"model": nn.Linear(1, 1)}, tmp_path / "full.pt").attach(engine)
        engine.run(**arguments)

    run(2, False)
    with pytest.raises(ValueError, match="trained with 2 iterations an epoch, now there are 5; resume with the same"):
        run(5, True)


def test_learning_rate_depends_on_the_epoch_alone():
    groups = [{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [nn.Parameter(torch.zeros(1))], "lr": 0.1}]
    optimizer = torch.optim.SGD(groups, lr=1.0)

    def rates(epochs, start):
        seen = []
        engine, arguments = engine_of(epochs, 1, lambda item: seen.append([g["lr"] for g in optimizer.param_groups]))
        PolynomialDecay(optimizer, power=1.0).attach(engine)
        if start:
            engine.load_state_dict({"epoch": start, "max_epochs": epochs, "epoch_length": 1})
        engine.run(arguments["data"], max_epochs=epochs)
        return seen

    assert rates(4, 0) == [[1.0, 0.1], [0.75, pytest.approx(0.075)], [0.5, 0.05], [0.25, 0.025]]
    assert rates(8, 4) == [[0.5, 0.05], [0.375, pytest.approx(0.0375)], [0.25, 0.025], [0.125, 0.0125]]


@pytest.mark.parametrize(("interval", "expected"), [(2, [2, 4, 5]), (5, [5]), (7, [5]), (1, [1, 2, 3, 4, 5])])
def test_the_last_epoch_is_validated_too(interval, expected):
    seen = []
    engine, arguments = engine_of(5, 1, lambda item: None)
    validator = SupervisedEvaluator(torch.device("cpu"), [0], nn.Identity())
    validator.run = lambda epoch: seen.append(epoch)
    Validate(interval, validator).attach(engine)
    engine.run(**arguments)
    assert seen == expected


def validate_one_rank(rank: int, world_size: int, store: str, result: str) -> None:
    """One of some processes that validate on two images, twice; as one process if there is one."""
    if world_size > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    generator = torch.Generator().manual_seed(5)
    data = [
        {
            "image": torch.rand(2, 6, 5, generator=generator),
            "label": torch.randint(0, 2, (1, 6, 5), generator=generator),
        }
        for _ in range(2)
    ]
    counts = SegmentationScores(num_classes=2)
    validator = SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(Dataset(data), batch_size=1, sampler=range(rank, len(data), world_size)),
        nn.Identity(),
        postprocessing=AsDiscreted("pred", argmax=True),
        key_val_metric={
            "mean": IgniteMetricHandler(counts, output_transform=from_engine(["pred", "label"]), save_details=False)
        },
        additional_metrics=score_views(counts, 1, "thing"),
    )
    seen = []
    validator.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: seen.append(dict(engine.state.metrics)))
    trainer, arguments = engine_of(2, 1, lambda item: None)
    Validate(1, validator).attach(trainer)
    trainer.run(**arguments)
    torch.save((seen, len(counts.counts()), validator.state.best_metric_epoch), f"{result}.{rank}")
    if world_size > 1:
        torch.distributed.destroy_process_group()


def test_more_processes_than_validation_images_score_each_once(tmp_path):
    validate_one_rank(0, 1, "", str(tmp_path / "alone"))
    run_in_processes(3, validate_one_rank, 3, str(tmp_path / "store"), str(tmp_path / "together"))
    alone = torch.load(tmp_path / "alone.0", weights_only=True)
    assert (len(alone[0]), alone[1]) == (2, 2)
    for rank in range(3):
        seen, images, best = torch.load(tmp_path / f"together.{rank}", weights_only=True)
        assert (images, best) == alone[1:]
        assert [row.keys() for row in seen] == [row.keys() for row in alone[0]]
        for row, expected in zip(seen, alone[0], strict=True):
            assert row == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(("items", "repeats", "processes"), [(100, 1, 8), (9, 8, 8), (5, 13, 8), (2, 1, 3), (6, 4, 2)])
def test_each_process_trains_on_a_share(items, repeats, processes):
    parts = [share(range(items), repeats, rank, processes, seed=3) for rank in range(processes)]
    taken = [item for part in parts for item in part]
    assert {len(part) for part in parts} == {-(-items * repeats // processes)}
    assert set(taken) == set(range(items))
    assert {taken.count(item) for item in range(items)} <= set(range(repeats, repeats + processes))
    assert len(taken) - items * repeats < processes
    assert max(len(set(part)) for part in parts) <= -(-items // processes) + 1, "it caches no more than these"


def test_flat_checkpoint_holds_one_object_and_is_no_full_one(tmp_path):
    with pytest.raises(ValueError, match="one object, got a, b"):
        SaveCheckpoint({"a": nn.Identity(), "b": nn.Identity()}, tmp_path / "x.pt", flat=True)
    engine, arguments = engine_of(1, 1, lambda item: None)
    SaveCheckpoint({"model": nn.Linear(1, 1)}, tmp_path / "model.pt", flat=True).attach(engine)
    engine.run(**arguments)
    assert set(torch.load(tmp_path / "model.pt", weights_only=True)) == {"weight", "bias"}
    again, arguments = engine_of(2, 1, lambda item: None)
    Resume({"model": nn.Linear(1, 1)}, tmp_path / "model.pt").attach(again)
    with pytest.raises(ValueError, match="holds weight, bias but not model; it is not a full checkpoint"):
        again.run(**arguments)


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    torch.save({"model": Evil()}, tmp_path / "full.pt")
    engine, arguments = engine_of(1, 1, lambda item: None)
    Resume({"model": nn.Linear(1, 1)}, tmp_path / "full.pt").attach(engine)
    with pytest.raises(Exception, match=r"holds something else than weights"):
        engine.run(**arguments)
    assert not (tmp_path / "pwned").exists()


def test_checkpoints_cut_short_anywhere_are_named(tmp_path):
    torch.save({f"layer{k}": torch.rand(3000) for k in range(20)}, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    for length in {*range(0, len(content), 9973), 1, len(content) - 1}:
        (tmp_path / "cut.pt").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.pt: holds something else than weights, or is damaged"):
            load_weights(tmp_path / "cut.pt")
    with pytest.raises(FileNotFoundError):
        load_weights(tmp_path / "none.pt")


def test_checkpoints_at_the_interval_and_at_the_end(tmp_path):
    written = []
    engine, arguments = engine_of(5, 1, lambda item: None)
    SaveCheckpoint({"model": nn.Linear(1, 1)}, tmp_path / "full.pt", interval=2).attach(engine)

    @engine.on(Events.EPOCH_COMPLETED)
    def _(engine):
        written.append((tmp_path / "full.pt").exists())
        (tmp_path / "full.pt").unlink(missing_ok=True)

    engine.run(**arguments)
    assert written == [False, True, False, True, True]


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_not_saved(tmp_path, monkeypatch, flat, value):
    """The last good ones stay; without any, nothing is left that looks like a result."""

    def run(values):
        network, values = nn.Linear(1, 1), iter(values)
        engine, arguments = engine_of(3, 1, lambda item: network.bias.data.fill_(next(values)))
        SaveCheckpoint({"model": network}, tmp_path / "m.pt", flat).attach(engine)
        engine.run(**arguments)

    with pytest.raises(FloatingPointError, match=r"epoch 1 the weights bias are not finite .nothing was saved.*lower"):
        run([value])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FloatingPointError, match=r"after epoch 3 .*m\.pt keeps those of an earlier epoch"):
        run([1.0, 2.0, value])
    monkeypatch.setattr("medcoarse.workflow.idist.get_rank", lambda: 1)
    with pytest.raises(FloatingPointError, match="epoch 2"):  # all processes stop, none waits for the first
        run([1.0, value])
    saved = torch.load(tmp_path / "m.pt", weights_only=True)
    assert (saved if flat else saved["model"])["bias"] == 2


def monitored(logits, target, confusion=None):
    output = CoupledOutput(logits, confusion)
    engine = Engine(lambda engine, item: {"pred": output, "label": target, "loss": torch.zeros(())})
    monitor = AnnotatorMonitor(interval=1, memory=1)
    monitor.attach(engine)
    engine.run([0], max_epochs=1)
    return monitor.values


def test_monitor_warns_of_swapped_classes_once(caplog):
    drawing = torch.arange(16).view(1, 1, 4, 4) % 2
    says_other = torch.cat([drawing, 1 - drawing], 1).float()
    with caplog.at_level(logging.WARNING):
        values = monitored(says_other, Annotations(drawing, 1 - drawing), FullConfusion(torch.zeros(1, 1, 2, 2, 4, 4)))
    assert values["agreement_positive"] == values["agreement_negative"] == 0
    assert values["diagonal_mean_positive"] == 0.5
    assert values["undominated_positive"] == 1
    assert caplog.text.count("the classes are swapped. Lengthen the warm-up") == 1


def test_monitor_waits_until_it_has_seen_enough(caplog):
    drawing = torch.arange(16).view(1, 1, 4, 4) % 2
    outputs = {"pred": CoupledOutput(torch.cat([drawing, 1 - drawing], 1).float()), "label": Annotations(drawing)}
    engine = Engine(lambda engine, item: outputs)
    AnnotatorMonitor(interval=1, memory=3).attach(engine)
    with caplog.at_level(logging.WARNING):
        engine.run([0, 1], max_epochs=1)
        assert not caplog.text
        engine.run([0, 1], max_epochs=2)
    assert caplog.text.count("swapped") == 1


def run_monitored(looks, memory, **arguments):
    """A monitor that looks at each of some pairs of output and drawings."""
    engine = Engine(lambda engine, look: dict(zip(("pred", "label"), look, strict=True)))
    AnnotatorMonitor(memory=memory, **{"interval": 1, **arguments}).attach(engine)
    engine.run(looks, max_epochs=1)


def test_monitor_forgets_the_warm_up(caplog):
    drawing = (torch.arange(16) % 2).view(1, 1, 4, 4)
    swapped, right = (torch.cat([1 - called, called], 1).float() for called in (1 - drawing, drawing))
    mostly_right = right.clone()
    mostly_right[..., :2, :] = swapped[..., :2, :]
    mostly_right[..., 0, 0] = right[..., 0, 0]  # 9 of 16
    cm = FullConfusion(torch.eye(2).view(1, 1, 2, 2, 1, 1).expand(1, 1, 2, 2, 4, 4))
    looks = [(CoupledOutput(swapped), Annotations(drawing))] + 2 * [
        (CoupledOutput(mostly_right, cm), Annotations(drawing))
    ]
    with caplog.at_level(logging.WARNING):
        run_monitored(looks, memory=2)
        assert not caplog.text  # though the mean of the first two looks is that of swapped classes
        run_monitored([(CoupledOutput(swapped, cm), Annotations(drawing)), *looks[1:2]], memory=2)
    assert caplog.text.count("swapped") == 1


def test_monitor_needs_no_kind_of_drawing_in_every_batch(caplog):
    drawing = torch.arange(16).view(1, 1, 4, 4) % 2
    swapped = CoupledOutput(torch.cat([drawing, 1 - drawing], 1).float())
    blank = torch.full_like(drawing, 255)
    looks = 3 * [(swapped, Annotations(blank, 1 - drawing)), (swapped, Annotations(drawing, blank))]
    with caplog.at_level(logging.WARNING):
        run_monitored(looks[:5], memory=4)
        assert not caplog.text
        run_monitored(looks, memory=3)
    assert caplog.text.count("swapped") == 1


def test_monitor_of_a_frozen_segmenter_looks_as_often_as_told():
    written = []
    writer = SimpleNamespace(add_scalar=lambda name, value, iteration: written.append((name, iteration)))
    drawing = torch.ones(1, 1, 4, 4, dtype=torch.long)
    model = SimpleNamespace(segmenter=nn.Conv2d(1, 2, 1).requires_grad_(False))
    look = CoupledOutput(torch.zeros(1, 2, 4, 4)), Annotations(drawing)
    run_monitored(5 * [look], memory=1, interval=2, model=model, writer=writer)
    assert written == [(f"monitor/{name}_positive", step) for step in (2, 4) for name in ("agreement", "swap")]


def test_monitor_is_quiet_when_all_is_well(caplog):
    drawing = torch.ones(1, 1, 4, 4, dtype=torch.long)
    drawing[..., :2] = 255
    says_one = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)], 1)
    assert monitored(says_one, Annotations(drawing))["agreement_positive"] == 1
    assert not caplog.text


def test_monitor_sees_the_gradient_that_reaches_the_segmenter():
    segmenter = nn.Conv2d(1, 2, 1)
    monitor = AnnotatorMonitor(interval=1, model=SimpleNamespace(segmenter=segmenter))
    logits = segmenter(torch.ones(1, 1, 2, 2))
    logits.sum().backward()
    engine = Engine(lambda engine, item: {"pred": CoupledOutput(logits), "label": Annotations()})
    monitor.attach(engine)
    engine.run([0], max_epochs=1)
    assert monitor.values == pytest.approx({"gradient": 8.0})  # two weights and two biases, 4 each: sqrt(4 * 16)


def test_progress_is_a_line_an_epoch_where_no_one_watches(caplog):
    loss = SimpleNamespace(parts={"trace": torch.tensor(1.5)})
    engine = Engine(lambda engine, item: {"loss": torch.tensor(0.25)})
    evaluator = SimpleNamespace(state=SimpleNamespace(metrics={"vessel_iou": torch.tensor(0.5)}))
    Progress(loss, evaluator).attach(engine)
    with caplog.at_level(logging.INFO):
        engine.run([0, 1], max_epochs=2)
    lines = [record.getMessage() for record in caplog.records if record.name == "medcoarse.monitoring"]
    assert lines == [f"epoch {n}/2 loss=0.250 trace=1.500 vessel_iou=0.500" for n in (1, 2)]


def test_drawing_scores_by_hand():
    label = torch.tensor([[0, 0, 1, 1]])
    seen = {"label": label, "positive": torch.tensor([[0, 1, 1, 0]]), "negative": torch.tensor([[1, 1, 1, 0]])}
    # positive {1, 2} of truth {2, 3}; negative {0, 1, 2} of the rest {0, 1}, which leaves {3}
    expected = {"positive_precision": 1 / 2, "positive_coverage": 1 / 2, "positive_iou": 1 / 3}
    expected |= {"negative_precision": 2 / 3, "negative_coverage": 1, "negative_complement_iou": 1 / 2}
    assert drawing_scores([seen]) == pytest.approx(expected)


def test_drawing_scores_leave_out_what_is_undefined():
    strokes = {"label": torch.tensor([[0, 0, 1, 1, 255]]), "positive": torch.tensor([[255, 1, 1, 255, 1]]),
               "negative": torch.tensor([[1, 255, 255, 255, 255]])}  # fmt: skip
    empty = {"label": torch.tensor([[0, 0, 0, 255]]), "positive": torch.zeros(1, 4), "negative": torch.ones(1, 4)}
    # no IoU of strokes; no truth, and so only the negative drawing has scores, in the second image
    expected = {"positive_precision": 1 / 2, "positive_coverage": 1 / 2, "negative_precision": 1}
    assert drawing_scores([strokes, empty]) == pytest.approx(expected | {"negative_coverage": 3 / 4})
    assert drawing_scores([]) == {}


def test_plain_data_and_json(tmp_path):
    write_json(tmp_path / "a.json", plain({"x": torch.tensor([1.0, float("nan")]), 3: (1, None)}))
    assert (
        tmp_path / "a.json"
    ).read_text() == '{\n  "x": [\n    1.0,\n    null\n  ],\n  "3": [\n    1,\n    null\n  ]\n}\n'


# ---- data sets -------------------------------------------------------------------------------------------------------


def test_data_sets_are_drawn_where_no_folder_is_given(tmp_path):
    few = {"num_training": 1, "num_validation": 1, "num_test": 1}
    sizes = {"mnist": {}, "cityscapes": {"size": [32, 64]}}
    for name in DATA_SETS:
        folder = prepare_volumes(name, "", tmp_path / name, few | sizes.get(name, {"shape": [16, 16, 8]}))
        assert folder == str(tmp_path / name)
        assert prepare_volumes(name, folder, tmp_path / "unused", {}) == folder
    assert not (tmp_path / "unused").exists()
    with pytest.raises(SystemExit, match=r"(?s)DataError: .*label holds the values .*expected only .0, 1, 255"):
        prepare_volumes("ms_lesions", tmp_path / "brats", tmp_path / "unused", {})
    with pytest.raises(SystemExit, match=r"no such file; run `python data_prep/brats\.py`"):
        prepare_volumes("brats", tmp_path, tmp_path / "unused", {})
    with pytest.raises(SystemExit, match=r"'training' lists 1 items, 2 are wanted"):
        prepare_volumes("ms_lesions", "", tmp_path / "ms_lesions", few | {"shape": [16, 16, 8]}, num_training=2)
