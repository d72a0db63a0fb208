"""Models as files that run elsewhere: ONNX, torch.export, ExecuTorch, LiteRT, a folder for the Hugging Face hub.

Every file is run by its own runtime on the validation split and compared with torch before it is written
(docs/export.md, docs/formats.md).
"""

from noisyteacher.export.exporting import FORMATS as FORMATS
from noisyteacher.export.exporting import check_format_names as check_format_names
from noisyteacher.export.exporting import check_formats as check_formats
from noisyteacher.export.exporting import check_packages as check_packages
from noisyteacher.export.exporting import export as export
from noisyteacher.export.exporting import export_all as export_all
from noisyteacher.export.exporting import network_record as network_record
from noisyteacher.export.exporting import write_unchecked as write_unchecked
from noisyteacher.export.outcome import Exported as Exported
from noisyteacher.export.outcome import table as table
from noisyteacher.export.outcome import verdict as verdict
from noisyteacher.export.quantization import calibration_images as calibration_images
from noisyteacher.export.quantization import fake_quantized as fake_quantized
