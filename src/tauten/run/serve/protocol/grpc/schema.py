"""Protocol buffer messages that are said in code: nothing is generated, and nothing is shared with other packages.

A message is text, one field a line, in protocol buffers' own words::

    string name = 1
    repeated int64 shape = 3
    map<string, InferParameter> parameters = 4
    bool bool_param = 1 in parameter_choice

where ``in`` names a field's ``oneof``. A message's name may hold a dot: ``Outer.Inner`` lies in ``Outer``. An enum is
its names, separated by blanks, counted from 0; a method is ``Request -> Response``, either of which may follow
``stream``.

The messages live in a pool of their own: protobuf's common pool takes each name once, and client libraries of the same
protocol, which may be in the same process, are there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELD: Final = re.compile(r"(repeated )?([\w.]+|map<string, [\w.]+>) (\w+) = (\d+)(?: in (\w+))?")
_Field: Final = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final = {
    name: _Field.Type.Value(f"TYPE_{name.upper()}")
    for name in ("double", "float", "int64", "uint64", "int32", "uint32", "bool", "string", "bytes")
}


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service: its path, the classes of its messages, and which of them come in streams."""

    path: str
    request: Any
    response: Any
    request_streaming: bool
    response_streaming: bool


@dataclass(frozen=True, slots=True)
class Schema:
    """One file of protocol buffers: a package with its messages, enums and at most one service."""

    file: str
    package: str
    messages: Mapping[str, str]
    enums: Mapping[str, str] = field(default_factory=dict)
    service: str = ""
    methods: Mapping[str, str] = field(default_factory=dict)

    def descriptor(self) -> Any:
        """The file's ``FileDescriptorProto``. Raises ``ValueError`` for a line that is no field."""
        proto = descriptor_pb2.FileDescriptorProto(name=self.file, package=self.package, syntax="proto3")
        found: dict[str, Any] = {}
        for name, text in self.messages.items():
            outer, _, inner = name.rpartition(".")
            found[name] = (found[outer].nested_type if outer else proto.message_type).add(name=inner)
            for line in text.strip().splitlines():
                self._add_field(found[name], name, line.strip())
        for name, text in self.enums.items():
            outer, _, inner = name.rpartition(".")
            enum = (found[outer] if outer else proto).enum_type.add(name=inner)
            for number, value in enumerate(text.split()):
                enum.value.add(name=value, number=number)
        if self.service:
            service = proto.service.add(name=self.service)
            for name, text in self.methods.items():
                request, response = text.split(" -> ")
                service.method.add(
                    name=name,
                    input_type=self._full(request.removeprefix("stream ")),
                    output_type=self._full(response.removeprefix("stream ")),
                    client_streaming=request.startswith("stream "),
                    server_streaming=response.startswith("stream "),
                )
        return proto

    @property
    def service_name(self) -> str:
        return f"{self.package}.{self.service}"

    def _full(self, name: str) -> str:
        return f".{self.package}.{name}"

    def _add_field(self, owner: Any, owner_name: str, line: str) -> None:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise ValueError(f"{self.package}.{owner_name}: expected TYPE NAME = NUMBER, got {line!r}")
        repeated, kind, name, number, group = match.groups()
        entry = owner.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
        if kind.startswith("map<"):
            # A map is a list of pairs, whose message carries the mark.
            pair = "".join(part.capitalize() for part in name.split("_")) + "Entry"
            nested = owner.nested_type.add(name=pair)
            nested.options.map_entry = True
            self._add_field(nested, pair, "string key = 1")
            self._add_field(nested, pair, f"{kind.removeprefix('map<string, ').removesuffix('>')} value = 2")
            repeated, kind = "repeated", f"{owner_name}.{pair}"
        if repeated:
            entry.label = _Field.LABEL_REPEATED
        if kind in _SCALARS:
            entry.type = _SCALARS[kind]
        else:
            entry.type = _Field.TYPE_ENUM if kind in self.enums else _Field.TYPE_MESSAGE
            entry.type_name = self._full(kind)
        if group:
            names = [one.name for one in owner.oneof_decl]
            if group not in names:
                owner.oneof_decl.add(name=group)
                names.append(group)
            entry.oneof_index = names.index(group)


class Messages:
    """The classes of several schemas' messages, in one pool."""

    def __init__(self, *schemas: Schema) -> None:
        self.schemas = schemas
        self.pool = descriptor_pool.DescriptorPool()
        for schema in schemas:
            self.pool.AddSerializedFile(schema.descriptor().SerializeToString())

    def of(self, name: str) -> Any:
        """The class of the message of that full name, such as ``inference.ModelInferRequest``."""
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName(name))

    def methods(self, schema: Schema) -> dict[str, Method]:
        """The methods of a schema's service, by name."""
        found: dict[str, Method] = {}
        for name, text in schema.methods.items():
            request, response = text.split(" -> ")
            found[name] = Method(
                f"/{schema.service_name}/{name}",
                self.of(f"{schema.package}.{request.removeprefix('stream ')}"),
                self.of(f"{schema.package}.{response.removeprefix('stream ')}"),
                request.startswith("stream "),
                response.startswith("stream "),
            )
        return found
