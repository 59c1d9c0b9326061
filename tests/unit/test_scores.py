"""Scores of many images: tables, MONAI's engine and several processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, MetricsSaver, from_engine
from torch.utils.data import DataLoader

from medcoarse import scores
from medcoarse.metrics import SCORES, confusion_counts
from medcoarse.scores import Reduction, ScoreView, SegmentationScores, reduce_scores, score_table
from tests.cases import random_case
from tests.processes import run_in_processes

COUNTS = torch.tensor([[[6, 1], [1, 2]], [[9, 0], [0, 1]], [[7, 0], [3, 0]]])  # the last image has no foreground


class TestTables:
    def test_image_and_data_set_means_differ_and_are_named(self) -> None:
        table = score_table(COUNTS, ["background", "vessel"], image_names=["a", "b", "c"])
        assert table["num_images"] == 3
        assert table["image"]["iou_vessel"] == (0.5 + 1.0) / 2  # the third has no vessel and no say
        assert table["dataset"]["iou_vessel"] == 3 / 8
        assert [row["name"] for row in table["images"]] == ["a", "b", "c"]
        assert table["images"][2]["iou_vessel"] is None
        assert table["images"][2]["mean_iou"] == 0.7

    @pytest.mark.parametrize("reduction", ["image", "dataset"])
    @pytest.mark.parametrize("metric", list(SCORES))
    def test_the_table_and_the_single_number_agree(self, metric: str, reduction: Reduction) -> None:
        table = score_table(COUNTS, ["background", "vessel"])
        single = reduce_scores(COUNTS, metric, reduction, class_index=1)
        assert table[reduction][f"{metric}_vessel"] == pytest.approx(single.item())
        for include_background in (True, False):
            table = score_table(COUNTS, ["background", "vessel"], include_background=include_background)
            mean = reduce_scores(COUNTS, "iou", reduction, include_background=include_background)
            assert table[reduction]["mean_iou"] == pytest.approx(mean.item())

    def test_it_is_strict_json_with_the_same_keys_everywhere(self) -> None:
        table = score_table(COUNTS, ["background", "vessel"])
        assert json.loads(json.dumps(table, allow_nan=False)) == table
        keys = {"mean_iou", "mean_dice", "pixel_accuracy"}
        keys |= {f"{metric}_{name}" for metric in SCORES for name in ("background", "vessel")}
        assert all(set(row) == keys for row in (table["image"], table["dataset"], *table["images"]))

    def test_nothing_known_is_none(self) -> None:
        table = score_table(torch.zeros(2, 2, 2, dtype=torch.int64), ["background", "vessel"])
        assert set(table["image"].values()) | set(table["dataset"].values()) == {None}

    def test_bad_names_and_counts_are_named(self) -> None:
        with pytest.raises(ValueError, match="L different class names"):
            score_table(COUNTS, ["vessel", "vessel"])
        with pytest.raises(ValueError, match="L different class names"):
            score_table(COUNTS, ["vessel"])
        with pytest.raises(ValueError, match="at least one image"):
            score_table(COUNTS[:0], ["background", "vessel"])
        with pytest.raises(ValueError, match="image_names must name 3 images, got 1"):
            score_table(COUNTS, ["background", "vessel"], image_names=["a"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"metric": "jaccard"}, "metric must be one of iou, dice, sensitivity"),
            ({"reduction": "mean"}, "reduction must be 'image' or 'dataset', got 'mean'"),
            ({"class_index": 2}, r"class_index must be in 0 .. 1 or None for the mean, got 2"),
            ({"class_index": -1}, r"class_index must be in 0 .. 1"),
        ],
    )
    def test_bad_choices_are_named_at_once(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            reduce_scores(COUNTS, **options)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            SegmentationScores(num_classes=2, **options)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            ScoreView(SegmentationScores(num_classes=2), **options)  # type: ignore[arg-type]

    def test_reduce_needs_one_table_an_image(self) -> None:
        with pytest.raises(ValueError, match=r"counts must be \(N, L, L\)"):
            reduce_scores(COUNTS[0])


class TestSegmentationScores:
    def test_batches_lists_and_one_by_one_give_the_same(self) -> None:
        pred, label, mask = (torch.from_numpy(x) for x in random_case(10, (6, 7), 3, num_images=4))
        whole, listed, single = (SegmentationScores(num_classes=3, metric="dice") for _ in range(3))
        whole(pred, label, mask=mask)
        listed(list(pred), list(label), mask=list(mask))
        for p, t, m in zip(pred, label, mask, strict=True):
            single(p[None], t[None], mask=m[None])
        expected = confusion_counts(pred, label, 3, mask)
        for metric in (whole, listed, single):
            assert torch.equal(metric.counts(), expected)
            assert metric.aggregate() == reduce_scores(expected, "dice")

    def test_images_of_different_sizes_come_as_lists(self) -> None:
        metric = SegmentationScores(num_classes=2)
        metric([torch.ones(1, 2, 3), torch.ones(1, 4, 4)], [torch.ones(1, 2, 3), torch.zeros(1, 4, 4)])
        assert metric.counts().tolist() == [[[0, 0], [0, 6]], [[0, 0], [16, 0]]]

    def test_reset_forgets(self) -> None:
        metric = SegmentationScores(num_classes=2)
        metric(torch.zeros(1, 1, 3), torch.ones(1, 1, 3))
        metric.reset()
        metric(torch.ones(1, 1, 3), torch.ones(1, 1, 3))
        assert metric.aggregate() == 1

    def test_nothing_scored_is_an_error_and_not_a_number(self) -> None:
        metric = SegmentationScores(num_classes=2)
        for reader in (metric, ScoreView(metric)):
            with pytest.raises(ValueError, match="no image has been scored since reset"):
                reader.aggregate()
        metric(torch.ones(1, 1, 3), torch.ones(1, 1, 3))  # and looking too early does no harm
        assert metric.aggregate() == 1

    def test_lists_of_different_lengths_are_refused(self) -> None:
        metric = SegmentationScores(num_classes=2)
        with pytest.raises(ValueError, match=r"must list the same images, got lengths \[2, 1\]"):
            metric([torch.ones(1, 3)] * 2, [torch.ones(1, 3)])
        with pytest.raises(ValueError, match=r"must list the same images, got lengths \[1, 1, 2\]"):
            metric([torch.ones(1, 3)], [torch.ones(1, 3)], mask=[torch.ones(1, 3)] * 2)
        with pytest.raises(ValueError, match=r"needs the label: call it with \(y_pred, y\)"):
            metric(torch.ones(1, 1, 3))

    def test_a_view_reads_the_same_counts_without_counting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        source = SegmentationScores(num_classes=2, class_index=1)
        views = [ScoreView(source, metric, class_index=1, reduction="dataset") for metric in SCORES]
        pred, label, _ = (torch.from_numpy(x) for x in random_case(11, (6, 7), 2))
        source(pred, label)
        counts = source.counts()
        monkeypatch.setattr(scores, "confusion_counts", None)  # calling it now would fail
        for view, metric in zip(views, SCORES, strict=True):
            view(pred, label)
            view.reset()
            assert view.aggregate() == reduce_scores(counts, metric, "dataset", class_index=1)
            assert view.get_buffer().shape == (2, 2)


class Threshold(torch.nn.Module):
    """A network that needs no training: foreground where the image exceeds one half."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([0.5 - x, x - 0.5], dim=1)


class TestInMonai:
    @pytest.mark.parametrize("decollate", [True, False])
    def test_evaluator_reports_all_scores_of_one_count(self, decollate: bool, tmp_path: Path) -> None:
        pred, label, _ = random_case(12, (6, 5), 2, num_images=5)
        data = [
            {"image": torch.from_numpy(p).float(), "label": torch.from_numpy(t).float()}
            for p, t in zip(pred, label, strict=True)
        ]
        source = SegmentationScores(num_classes=2, class_index=1)
        transform = from_engine(["pred", "label"])
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(data, batch_size=2),  # type: ignore[arg-type]
            network=Threshold(),
            decollate=decollate,
            key_val_metric={"vessel_iou": IgniteMetricHandler(metric_fn=source, output_transform=transform)},
            additional_metrics={
                "mean_iou_dataset": IgniteMetricHandler(
                    metric_fn=ScoreView(source, reduction="dataset"),  # type: ignore[arg-type]
                    output_transform=transform,
                )
            },
            val_handlers=[MetricsSaver(str(tmp_path), metrics="*", metric_details="*")],
        )
        for _ in range(2):  # the second run must not remember the first
            evaluator.run()
            expected = confusion_counts(torch.from_numpy(pred), torch.from_numpy(label), 2)
            assert torch.equal(source.counts(), expected)
            found = evaluator.state.metrics
            assert found["vessel_iou"] == reduce_scores(expected, class_index=1).item()
            assert found["mean_iou_dataset"] == reduce_scores(expected, reduction="dataset").item()
            assert isinstance(found["vessel_iou"], float)
        assert evaluator.state.best_metric == found["vessel_iou"]
        assert len((tmp_path / "vessel_iou_raw.csv").read_text().splitlines()) == 1 + len(data)


def score_one_rank(rank: int, world_size: int, store: str, shares: list[list[int]], result: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    pred, label, _ = (torch.from_numpy(x) for x in random_case(13, (6, 5), 3, num_images=3))
    metric = SegmentationScores(num_classes=3)
    for i in shares[rank]:
        metric(pred[i : i + 1], label[i : i + 1])
    view = ScoreView(metric, "dice", reduction="dataset")
    torch.save((metric.aggregate(), view.aggregate(), metric.counts()), f"{result}.{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("shares", [[[0, 1], [2]], [[0, 1, 2], []]], ids=["uneven", "one process without images"])
def test_processes_together_give_what_one_gives(shares: list[list[int]], tmp_path: Path) -> None:
    run_in_processes(2, score_one_rank, 2, str(tmp_path / "store"), shares, str(tmp_path / "result"))
    pred, label, _ = (torch.from_numpy(x) for x in random_case(13, (6, 5), 3, num_images=3))
    alone = confusion_counts(pred, label, 3)
    for rank in range(2):
        mean_iou, dataset_dice, counts = torch.load(tmp_path / f"result.{rank}")
        assert torch.equal(counts, alone)
        assert mean_iou == reduce_scores(alone)
        assert dataset_dice == reduce_scores(alone, "dice", "dataset")


def test_masks_of_0_and_255_are_suspected():
    found_nothing = torch.zeros(1, 1, 4, dtype=torch.uint8)
    mask = torch.tensor([[[0, 255, 255, 0]]], dtype=torch.uint8)
    scores = SegmentationScores(2, "dice")
    scores(found_nothing, mask)
    with pytest.warns(UserWarning, match=r"0/255 masks\? map them with MapLabelValued"):
        scores.aggregate()
    for label in (mask, mask // 255):  # somewhere a class was seen, or nothing was unknown
        scores(found_nothing, label)
    scores.aggregate()
    scores.reset()
    scores(found_nothing, torch.zeros_like(mask))
    scores.aggregate()
