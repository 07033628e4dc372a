"""The messages of a Chakra file: their classes, their framing, and their attributes.

Classes are made at run time from `descriptor.json`, by whatever protobuf is installed: generated code is tied to the
version that generated it and refuses to be imported by another.

An attribute holds its value in one member of a union, and Chakra's feeder reads each from a fixed one (`MEMBERS`;
src/feeder/et_feeder_node.cpp of MLCommons Chakra). Written to another member a size reads back as 0, silently: an
all-reduce of nothing. Here that is refused.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any

from emulation.io import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MEMBERS = {
    "is_cpu_op": "bool_val",
    "num_ops": "int64_val",
    "tensor_size": "uint64_val",
    "comm_type": "int64_val",
    "comm_size": "int64_val",
    "comm_priority": "int32_val",
    "comm_src": "int32_val",
    "comm_dst": "int32_val",
    "comm_tag": "int32_val",
    "pg_name": "string_val",
}
"""The member of the union in which the feeder looks for each attribute."""
OWN = "harness."
"""How names of our own attributes begin."""
OWN_MEMBERS = {bool: "bool_val", int: "uint64_val", float: "double_val", str: "string_val"}
LARGEST_MESSAGE = 2**31 - 1


@cache
def schema() -> Any:
    """The message classes `AttributeProto`, `GlobalMetadata` and `Node`, and the enums as name -> number.

    Raises:
        FormatError: protobuf is not installed.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
    except ImportError as error:
        raise FormatError("Chakra traces need protobuf: pip install 'harness[formats]'") from error
    text = resources.files(__package__).joinpath("descriptor.json").read_text("utf-8")
    described = json_format.ParseDict(json.loads(text), descriptor_pb2.FileDescriptorProto())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(described)
    found = SimpleNamespace(
        **{
            message.name: message_factory.GetMessageClass(
                pool.FindMessageTypeByName(f"{described.package}.{message.name}")
            )
            for message in described.message_type
        }
    )
    for enum in described.enum_type:
        setattr(found, enum.name, {value.name: value.number for value in enum.value})
    return found


def set_attribute(message: Any, name: str, value: Any) -> None:
    """Append an attribute, in the member the feeder reads it from.

    Raises:
        ValueError: the value does not fit that member.
    """
    member = MEMBERS.get(name) or OWN_MEMBERS.get(type(value))
    if member is None:
        raise ValueError(f"{name}: no attribute holds a {type(value).__name__}")
    setattr(message.attr.add(name=name), member, value)


def attributes(message: Any) -> dict[str, Any]:
    """The attributes of a message that are read here, by name; of two of one name the last, as the feeder takes it.

    Raises:
        ValueError: a value in a member from which the feeder would not read it.
    """
    found: dict[str, Any] = {}
    for attribute in message.attr:
        member = attribute.WhichOneof("value")
        wanted = MEMBERS.get(attribute.name)
        if wanted and member != wanted:
            where = member or "no member that holds one value"
            raise ValueError(f"{attribute.name} is in {where}; it is read from {wanted}, where it would be 0")
        if wanted or attribute.name.startswith(OWN):
            found[attribute.name] = getattr(attribute, member) if member else None
    return found


def write_message(file: IO[bytes], message: Any) -> None:
    """One message after its length."""
    data = message.SerializeToString(deterministic=True)
    length = len(data)
    while length > 0x7F:
        file.write(bytes((length & 0x7F | 0x80,)))
        length >>= 7
    file.write(bytes((length,)))
    file.write(data)


def read_messages(path: Path) -> Iterator[Any]:
    """The GlobalMetadata of a file, then its Nodes.

    Raises:
        FormatError: the file ends in the middle of a message, or holds something else; names the byte.
    """
    types = schema()
    with path.open("rb") as file:
        kind = types.GlobalMetadata
        while (at := file.tell()) >= 0 and (length := _length(file, path)) is not None:
            data = file.read(length)
            if len(data) < length:
                raise FormatError(f"{path}: byte {at}: the file ends within a message of {length} bytes")
            try:
                yield kind.FromString(data)
            except Exception as error:  # protobuf's DecodeError; its class depends on the implementation
                raise FormatError(f"{path}: byte {at}: not a Chakra {kind.DESCRIPTOR.name}: {error}") from error
            kind = types.Node


def _length(file: IO[bytes], path: Path) -> int | None:
    """The varint before a message; None at the end of the file."""
    at, value = file.tell(), 0
    for shift in range(0, 35, 7):
        byte = file.read(1)
        if not byte and shift == 0:
            return None
        if not byte:
            raise FormatError(f"{path}: byte {at}: the file ends within a length")
        value |= (byte[0] & 0x7F) << shift
        if not byte[0] & 0x80:
            break
    else:
        raise FormatError(f"{path}: byte {at}: not a length; is this a Chakra trace?")
    if value > LARGEST_MESSAGE:
        raise FormatError(f"{path}: byte {at}: a message of {value} bytes; is this a Chakra trace?")
    return value
