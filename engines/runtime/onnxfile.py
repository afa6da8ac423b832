"""Look into an ONNX file without an ONNX parser: is it self-contained, deterministic, of plain operators?

ONNX Runtime follows ``external_data`` to other files by path, and what it does with custom domains, loops
or random operators is not ours to promise. So the file is read here first, in the wire format of Protocol
Buffers (field numbers of onnx.proto3, onnx 1.17), with bounds on depth and count. Nothing is executed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from engines.errors import CardInvalid

MAX_DEPTH = 16
MAX_FIELDS = 2_000_000

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

PLAIN_DOMAINS = frozenset({"", "ai.onnx"})

FORBIDDEN_OPERATORS = frozenset(
    {
        *("If", "Loop", "Scan", "SequenceMap"),
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        *("Bernoulli", "Multinomial"),
    }
)
"""Control flow (unbounded work) and chance (other bytes each time)."""


@dataclass(slots=True)
class _Found:
    operators: set[str] = field(default_factory=set)
    domains: set[str] = field(default_factory=set)
    opsets: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    external: bool = False
    graphs: int = 0
    fields: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """What a file holds: its operators, opset of the default domain, and its metadata."""

    operators: frozenset[str]
    opset: int
    metadata: dict[str, str]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise CardInvalid("the model file is not ONNX, or is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: memoryview, found: _Found) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yield (field number, wire type, value) of one message."""
    at = 0
    while at < len(data):
        found.fields += 1
        if found.fields > MAX_FIELDS:
            raise CardInvalid("the model file has more fields than a network of ours may have")
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            length, at = _varint(data, at)
        elif wire == _FIXED64:
            length = 8
        elif wire == _FIXED32:
            length = 4
        else:
            raise CardInvalid("the model file is not ONNX")
        if number == 0 or at + length > len(data):
            raise CardInvalid("the model file is not ONNX, or is cut off")
        yield number, wire, data[at : at + length]
        at += length


def _text(value: int | memoryview) -> str:
    if isinstance(value, int) or len(value) > 1 << 16:
        raise CardInvalid("the model file is not ONNX")
    return bytes(value).decode("utf-8", "replace")


def _nested(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise CardInvalid("the model file is not ONNX")
    return value


def _tensor(data: memoryview, found: _Found) -> None:
    """TensorProto: 13 external_data, 14 data_location (1 = EXTERNAL)."""
    for number, _, value in _fields(data, found):
        if number == 13 or (number == 14 and value != 0):
            found.external = True


def _sparse(data: memoryview, found: _Found) -> None:
    """SparseTensorProto: 1 values, 2 indices."""
    for number, _, value in _fields(data, found):
        if number in (1, 2):
            _tensor(_nested(value), found)


def _attribute(data: memoryview, found: _Found, depth: int) -> None:
    """AttributeProto: 5 t, 6 g, 10 tensors, 11 graphs, 22 sparse_tensor, 23 sparse_tensors."""
    for number, _, value in _fields(data, found):
        if number in (5, 10):
            _tensor(_nested(value), found)
        elif number in (6, 11):
            _graph(_nested(value), found, depth + 1)
        elif number in (22, 23):
            _sparse(_nested(value), found)


def _node(data: memoryview, found: _Found, depth: int) -> None:
    """NodeProto: 4 op_type, 5 attribute, 7 domain."""
    for number, _, value in _fields(data, found):
        if number == 4:
            found.operators.add(_text(value))
        elif number == 5:
            _attribute(_nested(value), found, depth)
        elif number == 7:
            found.domains.add(_text(value))


def _graph(data: memoryview, found: _Found, depth: int) -> None:
    """GraphProto: 1 node, 5 initializer, 15 sparse_initializer."""
    if depth > MAX_DEPTH:
        raise CardInvalid("the model file nests deeper than a network of ours may")
    found.graphs += 1
    for number, _, value in _fields(data, found):
        if number == 1:
            _node(_nested(value), found, depth)
        elif number == 5:
            _tensor(_nested(value), found)
        elif number == 15:
            _sparse(_nested(value), found)


def _pair(data: memoryview, found: _Found) -> tuple[str, str | int]:
    first: str = ""
    second: str | int = ""
    for number, wire, value in _fields(data, found):
        if number == 1:
            first = _text(value)
        elif number == 2:
            second = value if wire == _VARINT and isinstance(value, int) else _text(value)
    return first, second


def inspect(content: bytes) -> OnnxFile:
    """Read a model file and refuse what this node does not run.

    Raises
    ------
    CardInvalid
        Not ONNX, weights in other files, custom or forbidden operators, training graphs.
    """
    found = _Found()
    # ModelProto: 7 graph, 8 opset_import, 14 metadata_props, 20 training_info, 25 functions.
    for number, _, value in _fields(memoryview(content), found):
        if number == 7:
            _graph(_nested(value), found, 0)
        elif number == 8:
            domain, version = _pair(_nested(value), found)
            found.opsets[domain] = int(version) if isinstance(version, int) else 0
        elif number == 14:
            key, text = _pair(_nested(value), found)
            found.metadata[key] = str(text)
        elif number == 20:
            raise CardInvalid("the model file holds a training graph")
        elif number == 25:
            raise CardInvalid("the model file holds local functions", hint="inline them at export")
    if not found.graphs or not found.operators:
        raise CardInvalid("the model file is not ONNX, or holds no graph")
    if found.external:
        raise CardInvalid(
            "the model file keeps its weights in other files",
            hint="save it as one file: external data is refused",
        )
    strange = (found.domains | set(found.opsets)) - PLAIN_DOMAINS
    if strange:
        raise CardInvalid(f"the model file needs operators of other domains: {', '.join(sorted(strange))}")
    forbidden = found.operators & FORBIDDEN_OPERATORS
    if forbidden:
        raise CardInvalid(
            f"the model file uses {', '.join(sorted(forbidden))}: not deterministic or unbounded"
        )
    opset = max(found.opsets.get("", 0), found.opsets.get("ai.onnx", 0))
    return OnnxFile(operators=frozenset(found.operators), opset=opset, metadata=found.metadata)
