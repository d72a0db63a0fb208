"""Models as files that run elsewhere: ONNX, torch.export, ExecuTorch, a folder for the Hugging Face hub.

Every file is run by its own runtime on the validation split and compared with torch before it reaches the disk
(docs/export.md, docs/formats.md).
"""

from noisyteacher.export.exporting import export, export_all
from noisyteacher.export.formats import FORMATS, Format, refuse_formats, refuse_names
from noisyteacher.export.hub import from_pretrained
from noisyteacher.export.outcome import Exported
from noisyteacher.export.table import notes, table, verdict

__all__ = [
    "FORMATS",
    "Exported",
    "Format",
    "export",
    "export_all",
    "from_pretrained",
    "notes",
    "refuse_formats",
    "refuse_names",
    "table",
    "verdict",
]
