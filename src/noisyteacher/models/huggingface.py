"""Image classifiers of Hugging Face transformers, from a folder or the hub; code that comes with them is never run."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from noisyteacher.errors import DataError, MismatchError, UsageError
from noisyteacher.models.external import (
    WHOLE,
    ExternalModel,
    TrainedOn,
    check_classes,
    create,
    import_torchvision,
    pretrained_option,
    sides,
    trained_on_of,
)
from noisyteacher.models.preprocess import Shape

RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers in an image processor's `resample`."""
DROPPED = {
    "architectures", "attn_implementation", "auto_map", "dtype", "experts_implementation", "name_or_path",
    "quantization_config", "torch_dtype", "trust_remote_code", "transformers_version", "use_kernels",
    "use_pretrained_backbone", "custom_pipelines",
}  # fmt: skip
"""Keys of a config that could download or run something, or do not describe the network."""


def hf_network(name: str, classes: int, shape: Shape, options: dict[str, Any]) -> ExternalModel:
    """An image classifier of transformers: `name` is a folder that `save_pretrained` wrote, or a name on the hub.

    It comes with its weights and head and must have as many classes as the data (`pretrained="whole"`);
    `pretrained=True` gives it a new head for other classes, `pretrained=False` builds it untrained, for the data's
    image size. `revision` and `local_files_only` are passed on; any other option replaces a value of its config.
    `config={...}` is a whole config, and then nothing is looked up. Raises UsageError without transformers, for code
    of its own and for unknown options; DataError when it cannot be loaded; MismatchError for other classes or channels.
    """
    with contextlib.suppress(ImportError):
        import_torchvision()  # transformers looks for it, and must not find it half imported
    try:
        import transformers
    except ImportError as error:
        raise UsageError("transformers is not installed: pip install 'noisyteacher[hf]'") from error
    changes = dict(options)
    stated_config = changes.pop("config", None)
    pretrained = pretrained_option(changes, f"hf:{name}", WHOLE) if stated_config is None else False
    changes.pop("pretrained", None)
    lookup: dict[str, Any] = {key: changes.pop(key) for key in ("revision", "local_files_only") if key in changes}
    fields = _check_config(_load_config(name, lookup) if stated_config is None else stated_config, name)
    unknown = sorted(changes.keys() - fields.keys())
    if unknown:
        raise UsageError(f"hf:{name}: its config has no {unknown[0]!r}; it has {', '.join(sorted(fields))}")
    fields |= changes
    _set_classes_and_channels(fields, name, classes, shape, pretrained)
    if not pretrained and stated_config is None and "image_size" in fields:
        fields["image_size"] = shape[1] if shape[1] == shape[2] else [shape[1], shape[2]]
    try:
        config = transformers.AutoConfig.for_model(**fields)
    except Exception as error:  # a config class checks its values as it likes
        raise UsageError(f"hf:{name}: its config cannot be used: {_one_line(error)}") from error
    auto: Any = transformers.AutoModelForImageClassification

    def make() -> Any:
        if not pretrained:
            return auto.from_config(config, trust_remote_code=False)
        return auto.from_pretrained(
            name,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=pretrained is True,
            **lookup,
        )

    with _quiet(transformers):
        network = create(f"hf:{name}", make, changes, bool(pretrained))
    size = sides(fields.get("image_size"))
    trained_on = None if stated_config is not None else _load_trained_on(name, lookup, size)
    model_name = os.path.basename(os.path.normpath(name)) if os.path.isdir(name) else name
    return ExternalModel(network.float(), {"config": fields}, trained_on, bool(pretrained), size, model_name)


def class_names_of(architecture: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes in an architecture's config; None without, and for LABEL_0, LABEL_1, ..."""
    config = architecture.get("options", {}).get("config", {})
    labels = config.get("id2label") if isinstance(config, dict) else None
    if not isinstance(labels, dict):
        return None
    names = tuple(str(labels.get(str(number), "")) for number in range(len(labels)))
    return None if all(name in ("", f"LABEL_{number}") for number, name in enumerate(names)) else names


def _load_config(name: str, lookup: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(name, **lookup)
    except Exception as error:  # OSError of the hub's client, ValueError of a file that is not JSON, and others
        raise DataError(f"hf:{name}: cannot be loaded: {_one_line(error)}") from error
    if not isinstance(config, dict) or not config:
        raise DataError(
            f"hf:{name}: no config.json there: give a folder that save_pretrained wrote, or a name on the hub"
        )
    return config


def _check_config(config: Any, name: str) -> dict[str, Any]:
    """The config without what could download or run something. Raises UsageError for a network that needs code."""
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UsageError(f"hf:{name}: its config has no model_type: it is not a model of transformers")
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

    kind = config["model_type"]
    if kind == "timm_wrapper":
        raise UsageError(f"hf:{name}: a network of timm: name it timm:{config.get('architecture', 'NAME')}")
    if kind not in CLASSIFIERS:
        code = " (it needs code of its own, which is never run)" if "auto_map" in config else ""
        raise UsageError(f"hf:{name}: {kind!r} is not an image classifier of transformers{code}")
    try:
        fields: dict[str, Any] = json.loads(json.dumps(_drop_keys(config), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"hf:{name}: its config cannot be written as JSON: {error}") from error
    return fields


def _drop_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _drop_keys(item) for key, item in value.items() if not str(key).startswith("_") and key not in DROPPED
        }
    return [_drop_keys(item) for item in value] if isinstance(value, list) else value


def _set_classes_and_channels(
    fields: dict[str, Any], name: str, classes: int, shape: Shape, pretrained: bool | str
) -> None:
    """Set classes and channels in the config where the network may have others, else raise MismatchError."""
    labels = fields.get("id2label")
    config_classes = len(labels) if isinstance(labels, dict) and labels else int(fields.get("num_labels", 2))
    if config_classes != classes:
        check_classes(f"hf:{name}", pretrained, config_classes, classes)
        fields.pop("num_labels", None)
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


def _load_trained_on(name: str, lookup: Mapping[str, Any], size: tuple[int, int] | None) -> TrainedOn | None:
    """What the image processor beside the model says of its images, read as data; None when there is none."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        processor, _ = ImageProcessingMixin.get_image_processor_dict(name, **lookup)
    except Exception:  # none beside the model
        return None
    if abs(float(processor.get("rescale_factor", 1 / 255)) - 1 / 255) > 1e-6 or not processor.get("do_rescale", True):
        raise UsageError(
            f"hf:{name}: its image processor scales pixels by {processor.get('rescale_factor')}, not by 1/255: name a "
            "preprocessing"
        )
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if not processor.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    stated = processor.get("crop_size") if processor.get("do_center_crop") else processor.get("size")
    if isinstance(stated, dict):
        stated = [stated["height"], stated["width"]] if "height" in stated else stated.get("shortest_edge")
    return trained_on_of(mean, std, size or sides(stated), RESAMPLE.get(processor.get("resample", 2), "bicubic"))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


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
