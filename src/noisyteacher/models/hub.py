"""Image classifiers of Hugging Face transformers, from a folder or the hub; code that comes with them is never run."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from noisyteacher.errors import DataError, MismatchError, UsageError
from noisyteacher.models.preprocess import Shape
from noisyteacher.models.zoo import (
    WHOLE,
    Brought,
    Own,
    built,
    fetched,
    import_torchvision,
    own_of,
    refuse_other_classes,
    sides,
    wanted,
)

RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers in an image processor's `resample`, for those that we have."""
DROPPED = {
    "architectures", "attn_implementation", "auto_map", "dtype", "experts_implementation", "name_or_path",
    "quantization_config", "torch_dtype", "trust_remote_code", "transformers_version", "use_kernels",
    "use_pretrained_backbone", "custom_pipelines",
}  # fmt: skip
"""Keys of a config that could fetch something, run something, or say nothing of the network."""


def hf_network(name: str, classes: int, shape: Shape, options: dict[str, Any]) -> Brought:
    """An image classifier of transformers: `name` is a folder that `save_pretrained` wrote, or a name on the hub.

    It comes with its weights as they are and must have as many classes as the data (`pretrained="whole"`);
    `pretrained=True` gives it a new head where it has not, `pretrained=False` builds it untrained, for the data's image
    size. `revision` and `local_files_only` are passed on; any other option replaces a value of its config.
    `config={...}` stands for a whole config, and then nothing is looked up. Raises UsageError without
    transformers, for code of its own and for options it does not have; DataError when it cannot be had; MismatchError
    for other classes or channels.
    """
    transformers = _transformers()
    given = dict(options)
    ready = given.pop("config", None)
    pretrained = wanted(given, f"hf:{name}", WHOLE) if ready is None else False
    given.pop("pretrained", None)
    place: dict[str, Any] = {key: given.pop(key) for key in ("revision", "local_files_only") if key in given}
    found = ready if ready is not None else _config_dict(name, place)
    fields = _plain_config(found, name)
    unknown = sorted(given.keys() - fields.keys())
    if unknown:
        raise UsageError(f"hf:{name}: its config has no {unknown[0]!r}; it has {', '.join(sorted(fields))}")
    fields |= given
    _fit(fields, name, classes, shape, pretrained)
    if not pretrained and ready is None and "image_size" in fields:
        fields["image_size"] = shape[1] if shape[1] == shape[2] else [shape[1], shape[2]]
    config = _config(transformers, fields, name)
    with _quiet(transformers):
        auto = transformers.AutoModelForImageClassification
        if pretrained:
            network = fetched(
                f"hf:{name}",
                lambda: auto.from_pretrained(
                    name, config=config, use_safetensors=True, trust_remote_code=False,
                    ignore_mismatched_sizes=pretrained is True, **place,
                ),
            )  # fmt: skip
        else:
            network = built(f"hf:{name}", lambda: auto.from_config(config, trust_remote_code=False), given)
    takes = sides(fields.get("image_size"))
    own = None if ready is not None else _own(name, place, takes)
    called = os.path.basename(os.path.normpath(name)) if os.path.isdir(name) else name
    return Brought(network.float(), {"config": fields}, own, bool(pretrained), takes, called)


def class_names_of(architecture: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes that an architecture's config states; None for none, and for LABEL_0, LABEL_1, ..."""
    config = architecture.get("options", {}).get("config", {})
    names = config.get("id2label") if isinstance(config, dict) else None
    if not isinstance(names, dict):
        return None
    ordered = tuple(str(names.get(str(number), "")) for number in range(len(names)))
    return None if all(one == f"LABEL_{number}" or not one for number, one in enumerate(ordered)) else ordered


def _transformers() -> Any:
    with contextlib.suppress(ImportError):
        import_torchvision()  # transformers looks for it, and must not meet it half imported
    try:
        import transformers
    except ImportError as error:
        raise UsageError("transformers is not installed: pip install 'noisyteacher[hf]'") from error
    return transformers


def _config_dict(name: str, place: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import PretrainedConfig

    try:
        found, _ = PretrainedConfig.get_config_dict(name, **place)
    except Exception as error:  # OSError of the hub's client, ValueError of a file that is not JSON, and others
        raise DataError(f"hf:{name}: cannot be had: {_told(error)}") from error
    if not isinstance(found, dict) or not found:
        raise DataError(
            f"hf:{name}: no config.json there: give a folder that save_pretrained wrote, or a name on the hub"
        )
    return found


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _plain_config(found: Any, name: str) -> dict[str, Any]:
    """The config without what could fetch or run something. Raises UsageError for a network that is code."""
    if not isinstance(found, dict) or not isinstance(found.get("model_type"), str):
        raise UsageError(f"hf:{name}: its config names no model_type: it is not a model of transformers")
    fields = _without_dropped(found)
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as KNOWN

    kind = fields["model_type"]
    if kind == "timm_wrapper":
        raise UsageError(f"hf:{name}: a network of timm: name it timm:{fields.get('architecture', 'NAME')}")
    if kind not in KNOWN:
        code = " (it wants to run code of its own, which is never done)" if "auto_map" in found else ""
        raise UsageError(f"hf:{name}: {kind!r} is not an image classifier of transformers{code}")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(fields, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError(f"hf:{name}: its config cannot be written as JSON: {error}") from error
    return plain


def _without_dropped(value: Any, depth: int = 0) -> Any:
    if depth > 16:
        raise UsageError("a config nested deeper than 16 levels: no network's is")
    if isinstance(value, dict):
        kept = {key: one for key, one in value.items() if not str(key).startswith("_") and key not in DROPPED}
        return {key: _without_dropped(one, depth + 1) for key, one in kept.items()}
    return [_without_dropped(one, depth + 1) for one in value] if isinstance(value, list) else value


def _fit(fields: dict[str, Any], name: str, classes: int, shape: Shape, pretrained: bool | str) -> None:
    """Set classes and channels in the config where the network is free to have others, else refuse."""
    names = fields.get("id2label")
    own = len(names) if isinstance(names, dict) and names else int(fields.get("num_labels", 2))
    if own != classes:
        refuse_other_classes(f"hf:{name}", pretrained, own, classes)
        for key in ("id2label", "label2id", "num_labels"):
            fields.pop(key, None)
        fields["id2label"] = {str(number): f"LABEL_{number}" for number in range(classes)}
        fields["label2id"] = {f"LABEL_{number}": number for number in range(classes)}
    channels = fields.get("num_channels", 3)
    if channels != shape[0]:
        if pretrained or "num_channels" not in fields:
            raise MismatchError(
                f"hf:{name} takes images of {channels} channels, the data have {shape[0]}: read them with {channels}, "
                "or build it untrained (pretrained=false)"
            )
        fields["num_channels"] = shape[0]


def _config(transformers: Any, fields: dict[str, Any], name: str) -> Any:
    kind, rest = fields["model_type"], {key: value for key, value in fields.items() if key != "model_type"}
    try:
        return transformers.AutoConfig.for_model(kind, **rest)
    except Exception as error:  # a config class checks its values as it likes
        raise UsageError(f"hf:{name}: its config cannot be used: {_told(error)}") from error


def _own(name: str, place: Mapping[str, Any], size: tuple[int, int] | None) -> Own | None:
    """What the image processor beside the model says of its images, read as data; None when there is none."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(name, **place)
    except Exception:  # none beside the model
        return None
    if not found.get("do_normalize", True):
        found = {**found, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    if abs(float(found.get("rescale_factor", 1 / 255)) - 1 / 255) > 1e-6 or not found.get("do_rescale", True):
        raise UsageError(
            f"hf:{name}: its image processor scales pixels by {found.get('rescale_factor')}, not by 1/255: name a "
            "preprocessing"
        )
    stated = found.get("crop_size") if found.get("do_center_crop") else found.get("size")
    if isinstance(stated, dict):
        stated = [stated["height"], stated["width"]] if "height" in stated else stated.get("shortest_edge")
    mode = RESAMPLE.get(found.get("resample", 2), "bicubic")
    return own_of(found.get("image_mean"), found.get("image_std"), size or sides(stated), mode)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Inside, transformers shows no progress bars and no notes; afterwards as before."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
