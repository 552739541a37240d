"""The nodule network: a 3D U-Net whose bottleneck is the shared backbone; it outlines and rates what lies in a cube.

One pass gives the outline and the ratings; the ratings see the outline's own features and volume, so what is rated is what was
outlined. About .8 million parameters.

B batch, M side of a cube, C channels, S tokens of the bottleneck, D their width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from core.backbone import Backbone, BackboneSettings
from solutions.medical_imaging.examples import HEADS

FOREGROUND = 0.05  # share of a cube that is nodule: where the outline starts, so that "nothing" is no resting place


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """widths: channels from the full side down to an eighth of it. backbone: None for the plain control."""

    widths: tuple[int, int, int, int] = (12, 24, 48, 64)
    backbone: BackboneSettings | None = field(
        default_factory=lambda: BackboneSettings(width=64, layers=2, heads=4, num_experts=8, expert_width=64)
    )

    def __post_init__(self) -> None:
        if self.backbone is not None and self.backbone.width != self.widths[-1]:
            raise ValueError(
                "the backbone must be as wide as the bottleneck. "
                f"Received: width={self.backbone.width}, widths={self.widths}."
            )


@dataclass(frozen=True)
class NetworkOutput:
    """mask_BMMM: logits of the outline; rating_BH: logits and ratings in the order of HEADS."""

    mask_BMMM: Tensor
    rating_BH: Tensor


class NoduleNet(nn.Module):
    """(B, 1, M, M, M) scaled densities and (B,) log of the voxel size in mm -> NetworkOutput. M must be divisible by 8."""

    def __init__(self, settings: NetworkSettings) -> None:
        from monai.networks.blocks.convolutions import ResidualUnit

        super().__init__()
        self.settings = settings
        w = settings.widths
        self.down = nn.ModuleList(
            ResidualUnit(3, a, b, strides=s, subunits=2, norm="INSTANCE", act="RELU")
            for a, b, s in zip((1, *w[:-1]), w, (1, 2, 2, 2), strict=True)
        )
        self.place = nn.Parameter(torch.zeros(1, 64, w[-1]))
        nn.init.normal_(self.place, std=0.02)
        self.backbone = Backbone(settings.backbone) if settings.backbone is not None else None
        self.up = nn.ModuleList(
            ResidualUnit(3, a + b, b, strides=1, subunits=1, norm="INSTANCE", act="RELU")
            for a, b in zip(w[:0:-1], w[-2::-1], strict=True)
        )
        self.outline = nn.Conv3d(w[0], 1, 1)
        nn.init.constant_(self.outline.bias, float(torch.logit(torch.tensor(FOREGROUND))))  # type: ignore[arg-type]
        self.rate = nn.Sequential(
            nn.Linear(2 * w[-1] + w[0] + 2, 64), nn.GELU(), nn.Dropout(0.2), nn.Linear(64, len(HEADS))
        )

    def forward(self, x_B1MMM: Tensor, log_mm_B: Tensor) -> NetworkOutput:
        skips: list[Tensor] = []
        x = x_B1MMM
        for block in self.down:
            x = block(x)
            skips.append(x)
        if self.backbone is not None:
            tokens_BSD = x.flatten(2).transpose(1, 2)
            place = self.place if tokens_BSD.shape[1] == self.place.shape[1] else 0.0
            x = x + self.backbone(tokens_BSD + place).tokens_BSD.transpose(1, 2).view_as(x)
        pooled = [x.mean((2, 3, 4)), x.amax((2, 3, 4)), log_mm_B[:, None]]
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = nn.functional.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=False)
            x = block(torch.cat([x, skip], dim=1))
        mask_BMMM = self.outline(x)[:, 0]
        inside_B1MMM = torch.sigmoid(mask_BMMM.detach().float())[:, None]
        voxels_B1 = inside_B1MMM.sum((2, 3, 4)) + 1.0
        pooled += [(inside_B1MMM * x).sum((2, 3, 4)) / voxels_B1, torch.log(voxels_B1) + 3.0 * log_mm_B[:, None] - 6.0]
        return NetworkOutput(mask_BMMM, self.rate(torch.cat(pooled, dim=1)))
