"""The segmenter learned from annotators whose confusion matrices are known: what knowing them would be worth."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from medcoarse.confusion import Annotations, CoupledOutput, FullConfusion
from medcoarse.losses import CoupledLoss
from medcoarse.transforms.array import SimulateCoarseBatch
from medcoarse.transforms.repeated import count_drawings


def known_confusion(counts: Tensor, label: Tensor) -> Tensor:
    """The confusion matrices of one image, counted in many drawings of its mask.

    At a pixel x of class t only the column of t can be known: how often each class was drawn there. The other columns
    are the annotator's over the whole image,

    ``A[i, t, x] = (n_i(x) + 1/2) / (n(x) + L/2)`` and
    ``A[i, j, x] = (sum_{y of class j} n_i(y) + 1/2) / (sum_{y of class j} n(y) + L/2)`` for ``j != t``,

    with ``n = sum_i n_i``. Half a drawing of each class keeps probabilities above 0; a column of which nothing was
    drawn is uniform, and says nothing.

    Args:
        counts: in how many drawings each class was drawn at each pixel ``(R, L, *S)``.
        label: true classes ``(1, *S)``, 255 where unknown: there every column is that of the whole image.

    Returns:
        float32 ``(R, observed, true, *S)``, columns sum to 1.

    Source: DHE, the oracle of its experiments ("known CMs"). The half is Krichevsky and Trofimov 1981.
    Deviates: DHE does not say what the columns of the other classes are.

    Example:
        >>> counts = torch.tensor([[[4, 4, 3], [0, 0, 1]]])  # four drawings of three pixels; the last of class 1
        >>> known_confusion(counts, torch.tensor([[0, 0, 1]]))[0, 1]  # how often "1" is drawn, by true class and pixel
        tensor([[0.1000, 0.1000, 0.0556],
                [0.3000, 0.3000, 0.3000]])
    """
    num_classes, spatial_dims = counts.shape[1], counts.ndim - 2
    here = label == torch.arange(num_classes, device=label.device).view(-1, *[1] * spatial_dims)  # (true, *S)
    pooled = torch.einsum("rin,jn->rij", counts.flatten(2).double(), here.flatten(1).double())
    own, whole = (_shares(n) for n in (counts.double(), pooled))
    return torch.where(here, own[:, :, None], whole.view(*whole.shape, *[1] * spatial_dims)).float()


def _shares(counts: Tensor) -> Tensor:
    """Of each class (axis 1) among what was drawn."""
    return (counts + 0.5) / (counts + 0.5).sum(1, keepdim=True)


class KnownConfusiond(MapTransform):
    """Write the known confusion matrices of who drew an item's label map, see :func:`known_confusion`.

    They are maps, one channel for each entry, so that they can be flipped and turned with the image. The same label map
    always gets the same ones, so that ``CacheDataset`` caches them.

    Args:
        keys: label map ``(1, *S)``.
        simulate: who draws; the drawing that is learned from is not among those that are counted.
        num_draws: drawings of each mask.
        confusion_key: where the matrices go, float32 ``(R L L, *S)``, in the order annotator, observed, true.
        allow_missing_keys: skip missing label maps.

    Raises:
        ValueError: negative annotators.

    Example:
        >>> label = torch.zeros(1, 8, 8, dtype=torch.uint8)
        >>> label[:, 2:6, 2:6] = 1
        >>> item = KnownConfusiond("label", SimulateCoarseBatch(["good", "over"]), num_draws=4)({"label": label})
        >>> matrices = item["confusion"].unflatten(0, (2, 2, 2))
        >>> matrices[:, 1, 0, 1, 3]  # beside the square: how often "1" is drawn on the background there
        tensor([0.1000, 0.9000])
    """

    def __init__(
        self,
        keys: KeysCollection,
        simulate: SimulateCoarseBatch,
        num_draws: int = 64,
        confusion_key: Hashable = "confusion",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if simulate.negative.profiles:
            raise ValueError(
                f"known matrices are those of positive annotators, got {len(simulate.negative.profiles)} negative ones"
            )
        self.simulate, self.num_draws, self.confusion_key = simulate, num_draws, confusion_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with the matrices."""
        item = dict(data)
        for key in self.key_iterator(item):
            counts = count_drawings(self.simulate, item[key], self.num_draws)  # at the spacing of a MetaTensor
            label = torch.as_tensor(item[key]).as_subclass(Tensor)
            item[self.confusion_key] = known_confusion(counts, label).flatten(0, 2)
        return item


class OracleLoss(CoupledLoss):
    """:class:`medcoarse.losses.CoupledLoss` with the matrices of ``Annotations.confusion`` in place of learned ones.

    Only the segmenter learns: give the annotators the structure ``"identity"``. The warm-up, if there is any, is the
    bundle's.

    Source: DHE, the oracle of its experiments.
    Deviates: Dice and the appearance prior as in the rows whose matrices are learned.

    Example:
        >>> from medcoarse.confusion import IdentityConfusion
        >>> known = torch.tensor([[0.9, 0.2], [0.1, 0.8]]).view(1, 4, 1).expand(1, 4, 3)
        >>> target = Annotations(positive=torch.tensor([[[1, 1, 255]]]), confusion=known)
        >>> output = CoupledOutput(torch.zeros(1, 2, 3), IdentityConfusion(1))
        >>> round(OracleLoss(num_classes=2, trace_weight=0)(output, target).neg().exp().item(), 4)  # (0.1 + 0.8) / 2
        0.45
    """

    def forward(self, output: CoupledOutput, target: Annotations) -> Tensor:
        """Scalar loss, see :class:`medcoarse.losses.CoupledLoss`."""
        if output.positive is not None:
            output = output._replace(positive=self._known(target))
        return super().forward(output, target)

    def _known(self, target: Annotations) -> FullConfusion:
        drew = 0 if target.positive is None else target.positive.shape[1]
        channels = drew * self.num_classes**2
        if target.confusion is None or target.confusion.shape[1] != channels:
            got = "none" if target.confusion is None else f"{target.confusion.shape[1]} channels"
            raise ValueError(
                f"the oracle needs the matrices of the {drew} annotators who drew, {channels} channels, got {got}; "
                "see KnownConfusiond"
            )
        return FullConfusion(torch.unflatten(target.confusion.log(), 1, (drew, self.num_classes, self.num_classes)))
