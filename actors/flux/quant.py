"""Weights stored in fewer bits: which convention a file follows, and where the scale of a tensor lies.

Read: fp8, plain or scaled by one number a tensor or one a row, under the old names (`scale_weight`, marked by a root
`scaled_fp8`) and the new (`weight_scale`, marked by `comfy_quant` tensors or `_quantization_metadata`). Other formats
are known by name.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

from actors.flux.headers import NotRendered, TensorInfo, WeightsError
from actors.flux.names import Named
from actors.flux.shapes import Shape, is_block, is_linear

Fp8 = Literal["never", "stored", "always"]
"""Which weights of linears stay in fp8 on the device: none; those that the files have so; and all those of blocks,
which are rounded when they are read where the files have more bits."""
FP8 = "F8_E4M3"
READ_FORMATS = ("float8_e4m3fn", "float8_e4m3fn_rowwise", "float8_e5m2")  # a weight times its scale, each of them
SCALES = ("scale_weight", "weight_scale")  # old name, new name
UNUSED = ("scale_input", "input_scale", "comfy_quant")  # activations stay in the model's precision
ROOTS = ("scaled_fp8",)
FOREIGN = (  # the end of a name that only one kind of file has
    (".weight_scale_2", "nvfp4 weights"),
    (".pre_quant_scale", "nvfp4 weights"),
    (".absmax", "bitsandbytes 4-bit weights"),
    (".quant_map", "bitsandbytes 4-bit weights"),
    (".qweight", "SVDQuant or GPTQ 4-bit weights"),
)
PRECISIONS = {
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
    FP8: "fp8 e4m3",
    "F8_E5M2": "fp8 e5m2",
}
TINY = 4096  # bytes of a comfy_quant document, at most


def refuse_foreign(path: Path, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> None:
    """Raise NotRendered for a file whose weights are stored in a way that is not read here."""
    for name in tensors:
        for end, what in FOREIGN:
            if name.endswith(end):
                raise NotRendered(path, what)
    for declared in (*declared_formats(path, metadata), *marked_formats(tensors)):
        if declared not in READ_FORMATS:
            raise NotRendered(path, f"{declared[:40]!a} weights")
    for name in tensors:
        refuse_scale(path, name, tensors)


def refuse_types(path: Path, tensors: Mapping[str, TensorInfo], ignored: Collection[str]) -> None:
    for name, info in tensors.items():
        if info.dtype not in PRECISIONS and not is_marker(name) and name not in ignored:
            raise NotRendered(path, f"{info.dtype} weights ({name})")


def refuse_scale(path: Path, name: str, tensors: Mapping[str, TensorInfo]) -> None:
    scale, weight = scale_of(name, tensors), tensors[name]
    if scale is None:
        return
    count, rows = (info.shape[0] if info.shape else 1 for info in (scale, weight))
    if scale.dtype in {"U8", "F8_E8M0"}:
        raise NotRendered(path, "mxfp8 weights")
    if weight.dtype not in PRECISIONS:  # a layer left in more bits is multiplied by its scale like the others
        raise NotRendered(path, f"{weight.dtype} weights with scales ({name})")
    by_row = count in {1, rows} and scale.shape[1:] in {(), (1,)}
    if scale.dtype not in {"F32", "BF16", "F16"} or not by_row:
        raise NotRendered(path, f"weights scaled by {scale.dtype} blocks of {list(scale.shape)} ({name})")


def declared_formats(path: Path, metadata: Mapping[str, str]) -> Iterator[str]:
    """Formats that the header's metadata gives to layers."""
    if text := metadata.get("_quantization_metadata"):
        layers = parse(path, text).get("layers", {})
        if not isinstance(layers, dict):
            raise WeightsError(f"{path}: corrupt _quantization_metadata: its layers are no object")
        yield from (str(layer.get("format")) if isinstance(layer, dict) else str(layer) for layer in layers.values())


def marked_formats(tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    """Formats that layers give themselves, in small documents that lie among the data: all that is read of it here."""
    marks = [(name, info) for name, info in tensors.items() if name.endswith(".comfy_quant")]
    for path in {info.path for _, info in marks}:
        try:
            with path.open("rb") as file:
                for name, info in marks:
                    if info.path == path:
                        yield marked_format(file, name, info)
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read: {error}") from error


def marked_format(file: BinaryIO, name: str, info: TensorInfo) -> str:
    if info.dtype != "U8" or info.nbytes > TINY:
        raise WeightsError(f"{info.path}: corrupt: {name} is no comfy_quant document")
    file.seek(info.start)
    return str(parse(info.path, file.read(info.nbytes).decode("utf-8", "replace")).get("format"))


def parse(path: Path, text: str) -> dict[str, object]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: corrupt quantisation document: {error}") from error
    if not isinstance(document, dict):
        raise WeightsError(f"{path}: corrupt quantisation document: not an object")
    return document


def scale_of(name: str, tensors: Mapping[str, TensorInfo]) -> TensorInfo | None:
    """The scale that a stored tensor is to be multiplied by, if the file has one for it."""
    module, _, leaf = name.rpartition(".")
    if leaf != "weight":
        return None
    return next((tensors[key] for scale in SCALES if (key := f"{module}.{scale}") in tensors), None)


def fp8_of(precision: str, device: str) -> Fp8:
    """What the precision of a pool says of fp8. Left open, the files decide on GPUs; CPUs take longer to widen a weight
    than to multiply by it. A type of wider numbers is meant for all weights."""
    if precision == "auto":
        return "stored" if device.startswith("cuda") else "never"
    return "always" if precision == "fp8" else "never"


def stored_in_fp8(named: Mapping[str, Named], tensors: Mapping[str, TensorInfo]) -> frozenset[str]:
    """The weights of linears that are fp8 throughout."""
    linears = {name: one.pieces for name, one in named.items() if is_linear(name, one.shape)}
    return frozenset(n for n, pieces in linears.items() if all(tensors[piece.source].dtype == FP8 for piece in pieces))


def kept_in_fp8(setting: Fp8, stored: frozenset[str], shapes: Mapping[str, Shape]) -> frozenset[str]:
    """The weights that stay in fp8 on the device; `stored` are those that the files have so."""
    match setting:
        case "never":
            return frozenset()
        case "stored":
            return stored
        case "always":
            return stored | {name for name, shape in shapes.items() if is_block(name) and is_linear(name, shape)}


def is_marker(name: str) -> bool:
    """Part of a quantisation rather than of the model."""
    return name in ROOTS or name.rpartition(".")[2] in (*SCALES, *UNUSED)


def precision(tensors: Mapping[str, TensorInfo]) -> str:
    """What most of the bytes are stored as."""
    totals: dict[str, int] = {}
    for info in tensors.values():
        totals[info.dtype] = totals.get(info.dtype, 0) + info.nbytes
    most = max(totals, key=lambda dtype: totals[dtype], default="")
    kind = PRECISIONS.get(most, most)
    endings = {name.rpartition(".")[2] for name in tensors}
    old, new = (scale in endings for scale in SCALES)
    return f"{kind} scaled" + (" (old names)" if old else " (new names)" if new else "") if old or new else kind
