"""The text of a script that runs an exported ONNX file without this package."""

from __future__ import annotations

from collections.abc import Sequence

PREDICT = "predict.py"
_TEXT = '''"""Print the class and its probability for each image: python predict.py IMAGE

IMAGE is a .npy file of uint8 pixels, [H, W, C] or [N, H, W, C], or a picture (.png, .jpg, ...), which needs Pillow.
"""
import pathlib, sys
import numpy as np
import onnxruntime

CLASSES = {classes}
SHAPE = {shape}  # height, width, channels
file, folder = sys.argv[1], pathlib.Path(__file__).resolve().parent
if file.endswith(".npy"):
    images = np.load(file)
else:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        sys.exit("pictures need Pillow (pip install pillow); a .npy file does not")
    picture = ImageOps.exif_transpose(Image.open(file)).convert("L" if SHAPE[2] == 1 else "RGB")
    images = np.asarray(picture.resize(SHAPE[1::-1], Image.Resampling.BILINEAR))
if SHAPE[2] == 1 and images.shape[-2:] == SHAPE[:2]:
    images = images[..., None]
if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-3:] != SHAPE:
    sys.exit(f"{{file}}: {{images.dtype}} {{list(images.shape)}}; expected uint8 pixels {{list(SHAPE)}}, or N of them")
model = next(path for path in (folder / "model.onnx", folder / "model-int8.onnx") if path.exists())
session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
pixels = np.ascontiguousarray(images.reshape(-1, *SHAPE).transpose(0, 3, 1, 2))
logits = session.run(None, {{"images": pixels}})[0].astype(np.float64)
odds = np.exp(logits - logits.max(axis=1, keepdims=True))
for row in odds / odds.sum(axis=1, keepdims=True):
    print(CLASSES[row.argmax()], f"{{row.max():.4f}}")
'''


def predict_script(class_names: Sequence[str], input_shape: Sequence[int]) -> str:
    """A Python script that lies beside `model.onnx` or `model-int8.onnx` and needs onnxruntime and numpy.

    `input_shape` is (channels, height, width). Names are written as ASCII literals, whatever is in them.
    """
    channels, height, width = input_shape
    return _TEXT.format(classes=ascii([str(name) for name in class_names]), shape=(height, width, channels))
