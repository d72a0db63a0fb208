"""TensorBoard's event files, for those who have it: the numbers of metrics.jsonl again, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisyteacher.errors import UsageError

FOLDER = "events"


class Events:
    """Writes a run's metrics as scalars into `RUN/events`; needs the extra `track`.

    Opening raises UsageError with the install command when TensorBoard is not here. A run that is resumed after
    `first_epoch` epochs goes on in a new file, and TensorBoard drops what an interrupted file said of later epochs.
    """

    def __init__(self, run: Path, first_epoch: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                "TensorBoard is not installed: pip install 'noisyteacher[track]', or leave tensorboard out"
            ) from error
        self.writer: Any = SummaryWriter(str(run / FOLDER), purge_step=first_epoch + 1)

    def write(self, line: Mapping[str, Any]) -> None:
        """One epoch's numbers, named as in metrics.jsonl (`train/loss`, `val/error`, `lr`), at step = epoch."""
        for name, value in line.items():
            if name not in ("epoch", "step"):
                self.writer.add_scalar(name, value, line["epoch"])

    def close(self) -> None:
        """Flush and close the file."""
        self.writer.close()
