"""The last layer of a classifier, whose answers are the logits."""

from __future__ import annotations

from torch import Tensor, nn

from noisyteacher.device import full_precision, in_autocast


class Head(nn.Linear):
    """A linear layer that computes in fp32 where autocast has all else in bf16, `[B, in]` to `[B, out]`.

    Logits rounded to eight bits teach a student worse (docs/performance.md), and this layer is the smallest of all.
    Printed, it is the linear layer it is.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, as torch names it
        """The logits, fp32 in autocast."""
        device = self.weight.device
        if not in_autocast(device):
            return super().forward(input)
        with full_precision(device):
            return super().forward(input.float())

    def _get_name(self) -> str:
        return "Linear"
