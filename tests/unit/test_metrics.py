"""Metrics against the slow reference and at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import MeanIoU

from medcoarse import metrics
from medcoarse.scores import reduce_scores
from tests.cases import random_case
from tests.reference import metrics_reference as reference

NAN = math.nan


def same(actual: torch.Tensor, expected: object) -> None:
    torch.testing.assert_close(
        actual, torch.tensor(expected, dtype=actual.dtype), equal_nan=True, rtol=1e-12, atol=1e-12
    )


CASES = [((7, 5), 2), ((7, 5), 4), ((4, 3, 5), 3), ((1, 1), 2), ((1, 1, 1), 3), ((6, 6), 19), ((6, 6), 190)]


class TestConfusionCounts:
    @pytest.mark.parametrize(("size", "num_classes"), CASES)
    @pytest.mark.parametrize("masked", [False, True])
    def test_equals_the_reference(self, size: tuple[int, ...], num_classes: int, masked: bool) -> None:
        pred, label, mask = random_case(0, size, num_classes)
        counts = metrics.confusion_counts(
            torch.from_numpy(pred), torch.from_numpy(label), num_classes, torch.from_numpy(mask) if masked else None
        )
        assert counts.dtype == torch.int64
        assert counts.tolist() == reference.confusion_counts(pred, label, num_classes, mask if masked else None)

    @pytest.mark.parametrize("size", [(6, 5), (3, 4, 2)])
    def test_takes_the_largest_channel_and_the_first_on_a_tie(self, size: tuple[int, ...]) -> None:
        rng = np.random.default_rng(1)
        logits = rng.integers(0, 3, (2, 4, *size)).astype(np.float32)  # full of ties
        label = rng.integers(0, 4, (2, 1, *size))
        counts = metrics.confusion_counts(torch.from_numpy(logits), torch.from_numpy(label), 4)
        assert counts.tolist() == reference.confusion_counts(reference.argmax_map(logits), label, 4)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
    def test_any_dtype_and_memory_layout_counts_alike(self, dtype: torch.dtype) -> None:
        pred, label, _ = random_case(2, (8, 6), 3)
        expected = reference.confusion_counts(pred.swapaxes(2, 3), label.swapaxes(2, 3), 3)
        counts = metrics.confusion_counts(
            torch.from_numpy(pred).to(dtype).transpose(2, 3), torch.from_numpy(label).to(dtype).transpose(2, 3), 3
        )
        assert counts.tolist() == expected

    def test_meta_tensors_and_bool_maps_are_taken(self) -> None:
        pred, label = torch.tensor([[[True, True, False]]]), MetaTensor(torch.tensor([[[1.0, 0.0, 0.0]]]))
        counts = metrics.confusion_counts(pred, label, 2)
        assert type(counts) is torch.Tensor
        assert counts.tolist() == [[[1, 0], [1, 1]]]

    def test_arrays_are_taken(self) -> None:
        pred, label = (torch.randint(0, 3, (2, 1, 6, 5), generator=torch.Generator().manual_seed(k)) for k in (0, 1))
        wanted = metrics.confusion_counts(pred, label, 3)
        for dtype in ("uint8", "uint16", ">i2", "uint32", ">f8"):
            arrays = [one.flip(-1).numpy().astype(dtype)[..., ::-1] for one in (pred, label)]
            assert torch.equal(metrics.confusion_counts(*arrays, 3), wanted)
        drawings = torch.cat([pred, label], 1)
        wanted = metrics.annotation_counts(drawings, label, 3)
        assert torch.equal(metrics.annotation_counts(drawings.numpy(), label.numpy(), 3), wanted)

    def test_inputs_are_left_as_they_were(self) -> None:
        pred, label, mask = (torch.from_numpy(x) for x in random_case(3, (5, 5), 2))
        before = pred.clone(), label.clone(), mask.clone()
        metrics.confusion_counts(pred, label, 2, mask)
        assert all(torch.equal(x, y) for x, y in zip((pred, label, mask), before, strict=True))

    def test_everything_left_out_counts_nothing(self) -> None:
        label = torch.full((2, 1, 4, 4), 255)
        assert metrics.confusion_counts(torch.zeros(2, 1, 4, 4), label, 2).sum() == 0
        assert metrics.confusion_counts(label * 0, label * 0, 2, mask=torch.zeros(2, 1, 4, 4)).sum() == 0

    def test_no_image_and_no_pixel_give_empty_tables(self) -> None:
        assert metrics.confusion_counts(torch.zeros(0, 1, 4, 4), torch.zeros(0, 1, 4, 4), 3).shape == (0, 3, 3)
        assert metrics.confusion_counts(torch.zeros(2, 1, 0), torch.zeros(2, 1, 0), 3).sum() == 0

    def test_any_value_may_stand_where_nothing_is_counted(self) -> None:
        pred, label = torch.tensor([[[1, 255, 7]]]), torch.tensor([[[1, 255, -3]]])
        mask = torch.tensor([[[1, 1, 0]]])
        assert metrics.confusion_counts(pred, label, 2, mask).tolist() == [[[0, 0], [0, 1]]]

    def test_another_ignore_index(self) -> None:
        counts = metrics.confusion_counts(torch.tensor([[[1, 1]]]), torch.tensor([[[0, 1]]]), 2, ignore_index=0)
        assert counts.tolist() == [[[0, 0], [0, 1]]]

    @pytest.mark.parametrize(
        ("pred", "label", "options", "message"),
        [
            (torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5), {}, r"agree in batch and space, got .*4, 4.*4, 5"),
            (torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4), {}, "agree in batch and space"),
            (torch.zeros(1, 1, 4), torch.zeros(1, 1, 4, 4), {}, "agree in batch and space"),
            (torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4), {}, "1 channel .* or 2 .*, got 3; check num_classes"),
            (torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), {}, r"label must be \(B, 1, \*S\).*argmax"),
            (torch.zeros(4, 4), torch.zeros(4, 4), {}, r"label must be \(B, 1, \*S\)"),
            (torch.full((1, 1, 2), 2), torch.zeros(1, 1, 2), {}, r"pred must hold classes 0 .. 1, got .* to 2"),
            (torch.zeros(1, 1, 2), torch.full((1, 1, 2), -1), {}, "label must hold classes 0 .. 1, got values from -1"),
            (torch.zeros(1, 1, 2), torch.full((1, 1, 2), 254), {}, "label must hold classes .*ignore index"),
            (torch.zeros(1, 1, 2), torch.full((1, 1, 2), 0.5), {}, "label must hold whole .*nearest neighbour"),
            (
                torch.full((1, 1, 2), NAN),
                torch.zeros(1, 1, 2),
                {},
                "pred must hold classes 0 .. 1, got values from nan",
            ),
            (torch.full((1, 2, 2), NAN), torch.zeros(1, 1, 2), {}, "pred holds NaN; the network has diverged"),
            (
                torch.zeros(1, 1, 2),
                torch.zeros(1, 1, 2),
                {"mask": torch.ones(1, 2)},
                "mask must have the shape of label",
            ),
            (torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), {"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ],
    )
    def test_bad_input_is_named(
        self, pred: torch.Tensor, label: torch.Tensor, options: dict[str, object], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            metrics.confusion_counts(pred, label, **{"num_classes": 2, **options})  # type: ignore[arg-type]


TABLES = {
    "random": [[5, 2, 1], [3, 4, 0], [1, 1, 6]],
    "absent class, predicted": [[5, 2, 0], [3, 4, 0], [1, 1, 0]],
    "absent class, not predicted": [[5, 2, 0], [3, 4, 0], [0, 0, 0]],
    "all wrong": [[0, 2, 1], [3, 0, 4], [1, 5, 0]],
    "one class is everything": [[9, 0, 0], [0, 0, 0], [0, 0, 0]],
    "nothing counted": [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
}


class TestScores:
    @pytest.mark.parametrize("metric", list(metrics.SCORES))
    @pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
    def test_equals_the_reference(self, metric: str, table: list[list[int]]) -> None:
        expected = [reference.class_scores(table, c)[metric] for c in range(3)]
        score = metrics.SCORES[metric](torch.tensor(table))
        assert score.dtype == torch.float64
        same(score, expected)

    def test_leading_axes_are_kept(self) -> None:
        counts = torch.tensor(list(TABLES.values())).reshape(2, 3, 3, 3)
        for score in metrics.SCORES.values():
            together = score(counts)
            assert together.shape == (2, 3, 3)
            same(together[1, 0], score(counts[1, 0]).tolist())
        assert metrics.mean_iou(counts).shape == metrics.pixel_accuracy(counts).shape == (2, 3)

    def test_mean_leaves_absent_classes_and_on_request_the_background_out(self) -> None:
        table = TABLES["absent class, predicted"]
        values = [reference.class_scores(table, c)["iou"] for c in range(3)]
        same(metrics.mean_iou(torch.tensor(table)), reference.mean(values))
        same(metrics.mean_iou(torch.tensor(table), include_background=False), values[1])
        assert metrics.mean_iou(torch.tensor(TABLES["nothing counted"])).isnan()

    def test_image_mean_is_that_of_monai(self) -> None:
        pred, label, _ = random_case(4, (9, 8), 3, num_images=3)
        label[label == 255] = 1
        ours = reduce_scores(metrics.confusion_counts(torch.from_numpy(pred), torch.from_numpy(label), 3))
        monai = MeanIoU()
        for p, t in zip(pred, label, strict=True):
            monai(torch.from_numpy(np.eye(3)[p].swapaxes(1, -1)), torch.from_numpy(np.eye(3)[t].swapaxes(1, -1)))
        assert ours.item() == pytest.approx(float(monai.aggregate()), abs=1e-6)

    @pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2, 3)])
    def test_a_table_that_is_not_square_is_named(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"counts must be \(\.\.\., L, L\), predicted by true class"):
            metrics.iou(torch.zeros(shape))


class TestConfusionOfDrawings:
    @pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
    def test_conditional_table_equals_the_reference(self, table: list[list[float]]) -> None:
        same(metrics.conditional_table(torch.tensor(table)), reference.conditional_table(table))

    @pytest.mark.parametrize("size", [(7, 6), (4, 3, 3)])
    def test_empirical_confusion_equals_the_reference_for_each_annotator(self, size: tuple[int, ...]) -> None:
        first, label, mask = random_case(5, size, 3)
        drawn = np.concatenate([first, np.roll(first, 1, axis=2)], axis=1)
        drawn[np.random.default_rng(6).random(drawn.shape) < 0.3] = 255
        cm = metrics.empirical_confusion(
            torch.from_numpy(drawn), torch.from_numpy(label), 3, mask=torch.from_numpy(mask)
        )
        assert cm.shape == (2, 2, 3, 3)
        for r in range(2):
            said = drawn[:, r : r + 1]
            tables = reference.confusion_counts(np.where(said == 255, 0, said), label, 3, mask & (said != 255))
            same(cm[:, r], [reference.conditional_table(table) for table in tables])

    def test_an_annotator_who_drew_nothing_has_no_matrix(self) -> None:
        blank = torch.full((1, 1, 5, 5), 255)
        assert metrics.annotation_counts(blank, torch.zeros(1, 1, 5, 5), 2).sum() == 0
        assert metrics.empirical_confusion(blank, torch.zeros(1, 1, 5, 5), 2).isnan().all()

    def test_shapes_of_drawing_and_label_are_checked(self) -> None:
        with pytest.raises(ValueError, match=r"annotation must be \(B, R, \*S\) and label \(B, 1, \*S\), got"):
            metrics.empirical_confusion(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), 2)

    @pytest.mark.parametrize("size", [(5, 4), (3, 2, 4)])
    def test_mean_confusion_equals_the_reference(self, size: tuple[int, ...]) -> None:
        rng = np.random.default_rng(7)
        cm = rng.dirichlet(np.ones(3), (2, 2, 3, *size))
        cm = np.moveaxis(cm, -1, 2)  # (B, R, observed, true, *S)
        label = rng.integers(0, 2, (2, 1, *size))  # class 2 is absent
        mask = rng.random(label.shape) < 0.7
        result = metrics.mean_confusion(torch.from_numpy(cm), torch.from_numpy(label), torch.from_numpy(mask))
        for b in range(2):
            for r in range(2):
                seen = np.where(mask[b, 0], label[b, 0], 255)
                same(result[b, r], reference.mean_confusion(cm[b, r], seen))
        plain = metrics.mean_confusion(torch.from_numpy(cm))
        same(plain, cm.reshape(2, 2, 3, 3, -1).mean(-1).tolist())
        same(plain.sum(2), np.ones((2, 2, 3)).tolist())

    def test_mean_confusion_recovers_what_counting_finds(self) -> None:
        """A drawing said with certainty at each pixel: its mean matrix is the counted one."""
        drawn, label, _ = random_case(8, (12, 12), 3, num_images=1)
        label[label == 255] = 0
        observed = torch.nn.functional.one_hot(torch.from_numpy(drawn), 3).movedim(-1, 2).double()
        cm = observed.unsqueeze(3).expand(1, 1, 3, 3, 12, 12)
        counted = metrics.empirical_confusion(torch.from_numpy(drawn), torch.from_numpy(label), 3)
        same(metrics.mean_confusion(cm, torch.from_numpy(label)), counted.tolist())

    @pytest.mark.parametrize(
        ("cm", "options", "message"),
        [
            (torch.ones(2, 2, 4, 4), {}, r"cm must be \(B, R, L, L, \*S\), got"),
            (torch.ones(1, 1, 2, 2, 4), {"label": torch.ones(1, 1, 5)}, r"label must be \(1, 1, 4\) to match cm"),
            (torch.ones(1, 1, 2, 2, 4), {"mask": torch.ones(1, 4)}, r"mask must be \(1, 1, 4\) to match cm"),
        ],
    )
    def test_mean_confusion_checks_shapes(
        self, cm: torch.Tensor, options: dict[str, torch.Tensor], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            metrics.mean_confusion(cm, **options)

    def test_error_equals_the_reference_over_the_columns_present(self) -> None:
        rng = np.random.default_rng(9)
        estimated, true = (np.moveaxis(rng.dirichlet(np.ones(4), (3, 4)), -1, 1) for _ in range(2))
        present = np.array([[True, True, True, True], [True, False, True, False], [False] * 4])
        error = metrics.confusion_matrix_error(*(torch.from_numpy(x) for x in (estimated, true, present)))
        same(error, [reference.confusion_matrix_error(*case) for case in zip(estimated, true, present, strict=True)])

    def test_error_skips_absent_classes_of_the_truth_and_not_a_broken_estimate(self) -> None:
        true = torch.tensor([[0.8, NAN], [0.2, NAN]])
        assert metrics.confusion_matrix_error(torch.tensor([[0.8, 0.1], [0.2, 0.9]]), true) == 0
        assert metrics.confusion_matrix_error(torch.tensor([[NAN, 0.1], [NAN, 0.9]]), torch.eye(2)).isnan()

    def test_one_truth_serves_many_estimates(self) -> None:
        assert metrics.confusion_matrix_error(torch.eye(2).expand(5, 3, 2, 2), torch.eye(2)).shape == (5, 3)

    def test_error_checks_its_input(self) -> None:
        with pytest.raises(ValueError, match="average over pixels first"):
            metrics.confusion_matrix_error(torch.ones(2, 2, 4, 4), torch.eye(2))
        with pytest.raises(ValueError, match="present must be a bool tensor with one entry for each of 2 classes"):
            metrics.confusion_matrix_error(torch.eye(2), torch.eye(2), present=torch.tensor([1.0, 0.0]))
