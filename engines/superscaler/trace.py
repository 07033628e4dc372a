"""From an unmodified `torch.nn.Module` to a `Graph`.

`torch.export` records the operators that one forward pass calls, on tensors without data: a model may be built under
``torch.device("meta")`` and be larger than this machine's memory. Each operator becomes one or more entries of the
operator table (`lowering`), with its annotation resolved for the shapes at hand.

What cannot be planned is refused here, with the line of the model that does it: an operator without annotation, control
flow that depends on data, a result that is not one loss.
"""

from __future__ import annotations

import dataclasses
import operator
import os
import re
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.superscaler import lowering
from engines.superscaler.annotation import Annotation, AnnotationError
from engines.superscaler.graph import Graph, Op, Tensor
from engines.superscaler.operators.dtypes import FLOATS, NAMES
from engines.superscaler.operators.table import REPLICATED, Call, OperatorError, find, key, targets
from harness.api import PlanError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

CONSTANT = 4096
"""Elements of a tensor that a forward pass may write out as a literal; larger ones belong into a buffer."""
_ASSERTIONS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range", "_check")
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)\n\s*(?P<code>[^\n]*)')


class TraceError(PlanError):
    """A model that cannot be made a graph of; says where in the model, and what to do."""


def trace(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], name: str = "", *, replicate: Sequence[str] = ()
) -> Graph:
    """The graph of a model whose forward pass returns its loss.

    Args:
        module: called as ``module(*inputs)``; must return one scalar, the mean loss of the micro-batch. In training
            mode dropout is part of the graph, in evaluation mode it is not.
        inputs: one micro-batch; shapes and dtypes matter, values do not. On any device, `meta` included.
        name: of the graph; by default the module's class.
        replicate: operators (as the model calls them: `cumsum`, `mylib::foo`) that may lack an annotation: every
            device computes all of them.

    Raises:
        TraceError: the model cannot be traced, or uses an operator that has no annotation.
    """
    exported = _export(module, inputs)
    builder = _Builder(module, exported, tuple(key(target) for target in replicate))
    return builder.graph(name or type(module).__name__)


def _export(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.export.ExportedProgram:
    import torch

    try:
        return torch.export.export(module, inputs, strict=False)
    except Exception as error:
        where = _culprit(error)
        what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "data-dependent" in str(error) or "GuardOnDataDependent" in type(error).__name__:
            advice = (
                "a plan needs the same operators for every batch: compute both branches and choose with torch.where"
            )
            raise TraceError(f"{where}: the model's control flow depends on the data ({what}); {advice}") from error
        raise TraceError(f"{where}: the model cannot be traced: {type(error).__name__}: {what}") from error


def _culprit(error: BaseException) -> str:
    """The innermost line that is the user's, with its code."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    if not frames:
        return "the model"
    return f"{_shown(frames[-1].filename)}:{frames[-1].lineno} ({(frames[-1].line or '').strip()})"


def _is_users(file: str) -> bool:
    import torch

    library = str(Path(torch.__file__).parent)
    return file not in (__file__, "") and not file.startswith((library, "<"))


def _shown(file: str) -> str:
    """A path for people: relative where that is shorter."""
    relative = os.path.relpath(file)
    return file if relative.startswith("..") else relative


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where in the model an operator is called."""

    module: str
    """Qualified name, with `@1` for the second call of the same module."""
    alone: bool
    """Whether the module is one of torch.nn and calls nothing else: the operator then has the module's name."""
    file: str
    line: int
    code: str

    def __str__(self) -> str:
        return f"{_shown(self.file)}:{self.line} ({self.code})" if self.file else f"module {self.module!r}"


class _Builder:
    """Goes through an exported program once, and emits operators."""

    def __init__(
        self, module: torch.nn.Module, exported: torch.export.ExportedProgram, replicate: tuple[str, ...]
    ) -> None:
        self.exported = exported
        self.replicate = replicate
        self.tensors: dict[str, Tensor] = {}
        self.ops: list[Op] = []
        self.values: dict[Any, Any] = {}
        """fx node -> tensor of the graph, tuple of them, or None for what the graph does not need."""
        self.strides: dict[str, tuple[int, ...]] = {}
        self.names: set[str] = set()
        self.counts: dict[str, int] = {}
        self.calls = _count_calls(exported.graph_module)
        self.inputs: list[str] = []
        self._placeholders(module)

    # --- what the model is given ----------------------------------------------------------------------------------

    def _placeholders(self, module: torch.nn.Module) -> None:
        tied: dict[int, str] = {}
        owners: dict[str, Any] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            owners[name] = parameter
            tied.setdefault(id(parameter), name)
        kinds = {spec.arg.name: spec for spec in self.exported.graph_signature.input_specs}
        for node in self.exported.graph.nodes:
            if node.op != "placeholder":
                continue
            kind = kinds[node.name].kind.name
            value = node.meta.get("val")
            target = kinds[node.name].target
            if kind == "PARAMETER":
                self._given(node, tied[id(owners[target])], "parameter", owners[target].requires_grad)
            elif kind == "BUFFER":
                self._given(node, target, "buffer", False)
            elif kind == "CONSTANT_TENSOR":
                self._constant(node, self.exported.constants[target])
            elif hasattr(value, "shape"):
                self._given(node, node.name, "input", False)
                self.inputs.append(node.name)
            else:
                raise TraceError(f"input {node.name!r} is {value!r}: a model is given tensors alone")

    def _given(self, node: Any, name: str, role: Any, trained: bool) -> None:
        value = node.meta["val"]
        self.tensors.setdefault(name, Tensor(name, tuple(value.shape), _dtype(value, name), role, trained))
        self.names.add(name)
        self._bind(node, self.tensors[name], value)

    def _constant(self, node: Any, value: torch.Tensor) -> None:
        if value.device.type == "meta" or value.numel() > CONSTANT:
            raise TraceError(
                f"the forward pass writes out a tensor of {value.numel()} elements on {value.device}: register it as a "
                f"buffer of its module (at most {CONSTANT} are taken as a constant)"
            )
        dtype = _dtype(node.meta["val"], node.name)
        attributes = {"value": lowering.json(value.tolist()), "dtype": dtype}
        place = _Place("", False, "", 0, "")
        made = self._emit(place, "constant", (), attributes, [tuple(value.shape)], [dtype], no_grad=False, piece="")
        self._bind(node, made[0], node.meta["val"])

    def _bind(self, node: Any, tensor: Tensor, value: Any) -> None:
        self.values[node] = tensor
        self.strides.setdefault(tensor.name, tuple(value.stride()))

    # --- going through --------------------------------------------------------------------------------------------

    def graph(self, name: str) -> Graph:
        """Emit everything, and keep what the loss depends on."""
        self._walk(self.exported.graph_module, no_grad=False)
        loss = self._loss()
        needed = {loss.name}
        kept = []
        for op in reversed(self.ops):
            if needed.intersection(op.outputs):
                kept.append(op)
                needed.update(op.inputs)
                needed.update(op.outputs)
        kept.reverse()
        tensors = {tensor: self.tensors[tensor] for tensor in self.tensors if tensor in needed or tensor in self.inputs}
        parameters = tuple(tensor for tensor, what in tensors.items() if what.role == "parameter")
        graph = Graph(name, tensors, tuple(kept), tuple(self.inputs), loss.name, parameters)
        return dataclasses.replace(graph, digest=graph.fingerprint())

    def _loss(self) -> Tensor:
        outputs = [spec for spec in self.exported.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
        output = next(node for node in self.exported.graph.nodes if node.op == "output")
        results = [node for node, spec in zip(output.args[0], self.exported.graph_signature.output_specs, strict=True)
                   if spec in outputs]  # fmt: skip
        advice = "return the mean loss of the micro-batch, a scalar, and nothing else"
        if len(results) != 1 or not isinstance(self.values.get(results[0]), Tensor):
            what = f"{len(results)} results" if len(results) != 1 else f"{results[0]!r}, which is no tensor,"
            raise TraceError(f"the model returns {what}; {advice}")
        loss = self.values[results[0]]
        if loss.shape or not loss.requires_grad:
            what = f"a tensor of shape {loss.shape}" if loss.shape else "a scalar that depends on no parameter"
            raise TraceError(f"the model returns {what} ({loss.name!r}); {advice}")
        return loss

    def _walk(self, module: Any, *, no_grad: bool) -> Any:
        """Emit the operators of a (sub-)graph; returns what it returns."""
        for node in module.graph.nodes:
            if node.op == "output":
                return node.args[0]
            if node.op == "call_function":
                self._call(module, node, no_grad=no_grad)
        return ()

    def _call(self, module: Any, node: Any, *, no_grad: bool) -> None:
        target = node.target
        if target is operator.getitem:
            made = self.values[node.args[0]]
            self.values[node] = made[node.args[1]] if isinstance(made, tuple) else made
            return
        name = getattr(target, "__name__", str(target))
        if name.startswith("wrap_with_set_grad_enabled"):
            self._inline(module, node, no_grad=not node.args[0])
            return
        place = self._place(node)
        if not hasattr(target, "_schema"):
            advice = "a plan is made of aten operators and of those of torch.library"
            raise TraceError(f"{place}: the model calls {name}, which is no operator; {advice}")
        packet = key(target._schema.name)
        if packet in _ASSERTIONS:
            self.values[node] = None
            return
        self._operator(node, packet, place, no_grad=no_grad)

    def _inline(self, module: Any, node: Any, *, no_grad: bool) -> None:
        """A region with gradients off (or on again): its operators, as if they stood here."""
        inner = getattr(module, node.args[1].target)
        given = [inner_node for inner_node in inner.graph.nodes if inner_node.op == "placeholder"]
        for placeholder, argument in zip(given, node.args[2:], strict=True):
            self.values[placeholder] = self.values[argument]
        results = self._walk(inner, no_grad=no_grad)
        self.values[node] = tuple(self.values[result] if result is not None else None for result in results)

    # --- one operator ---------------------------------------------------------------------------------------------

    def _operator(self, node: Any, packet: str, place: _Place, *, no_grad: bool) -> None:
        schema = node.target._schema
        changes = packet.endswith("_") and not packet.startswith("_")
        if changes:
            self._check_in_place(node, packet, place)
            packet = packet.rstrip("_")
        results = node.meta["val"] if isinstance(node.meta["val"], list | tuple) else (node.meta["val"],)
        for result in results:
            if not hasattr(result, "shape") or any(not isinstance(size, int) for size in result.shape):
                advice = "shapes must follow from the inputs' shapes alone"
                raise TraceError(f"{place}: {packet} makes {result!r}, whose size depends on the data; {advice}")
        arguments = self._arguments(node, schema, place)
        given = lowering.Called(
            name=packet,
            overload=node.target._overloadname,
            arguments=arguments,
            shapes=tuple(tuple(result.shape) for result in results),
            dtypes=tuple(_dtype(result, str(place)) for result in results),
            strides=self.strides,
        )

        def emit(
            target: str,
            inputs: Sequence[Tensor],
            attributes: Mapping[str, Any],
            shapes: Sequence[tuple[int, ...]],
            dtypes: Sequence[str],
            *,
            piece: str = "",
            no_grad: bool = no_grad,
        ) -> tuple[Tensor, ...]:
            return self._emit(
                place, target, inputs, attributes, shapes, dtypes, no_grad=no_grad, piece=piece and f"{packet}.{piece}"
            )

        try:
            if packet in lowering.RULES and packet not in self.replicate:
                made = lowering.RULES[packet](given, emit)
            else:
                made = self._registered(given, emit, schema, place)
        except (OperatorError, AnnotationError) as error:
            said = str(error) if packet in str(error) else f"{packet}: {error}"
            raise TraceError(f"{place}: {said}") from error
        for tensor, result in zip(made, results, strict=True):
            self.strides.setdefault(tensor.name, tuple(result.stride()))
        self.values[node] = made[0] if not isinstance(node.meta["val"], list | tuple) else made
        if changes:
            # From here on its name means the changed one.
            self.values[node.args[0]] = self.values[node]

    def _registered(
        self, given: lowering.Called, emit: lowering.Emit, schema: Any, place: _Place
    ) -> tuple[Tensor, ...]:
        """An operator that a user has given an annotation, or said to replicate."""
        if given.name not in targets() and given.name not in self.replicate:
            close = nearest(given.name, [*lowering.RULES, *targets()])
            hint = f" (nearest that has one: {close})" if close else ""
            raise TraceError(
                f"{place}: operator {given.name!r} has no annotation{hint}; give it one with "
                f"operators.register({given.name!r}, '* -> *'), or let every device compute all of it with "
                f"trace(..., replicate=[{given.name!r}])"
            )
        attributes = {}
        for argument in schema.arguments:
            value = given.arguments.get(argument.name)
            kind = str(argument.type)
            if "Tensor" in kind or argument.name in ("device", "layout", "pin_memory", "memory_format"):
                continue
            if argument.has_default_value() and argument.default_value == value:
                continue
            attributes[argument.name] = lowering.json(value)
        if given.overload not in ("default", ""):
            attributes["overload"] = given.overload
        target = f"{REPLICATED}{given.name}" if given.name in self.replicate else given.name
        return emit(target, lowering.tensors(given), attributes, given.shapes, given.dtypes)

    def _check_in_place(self, node: Any, packet: str, place: _Place) -> None:
        """A change in place is taken as a new tensor, where nobody can see the difference."""
        changed = node.args[0]
        tensor = self.values.get(changed)
        advice = f"write it without changing its input ({packet.rstrip('_')})"
        if not isinstance(tensor, Tensor) or tensor.role != "activation":
            what = f"{tensor.role} {tensor.name!r}" if isinstance(tensor, Tensor) else "its input"
            if what.startswith("buffer"):
                advice = (
                    "no plan can order what a forward pass changes for the next one: keep it out of training "
                    "(a batch norm: track_running_stats=False)"
                )
            raise TraceError(f"{place}: {packet} changes {what} in place; {advice}")
        source = changed.target
        view = hasattr(source, "_schema") and any(
            result.alias_info is not None and not result.alias_info.is_write for result in source._schema.returns
        )
        seen = [user for user in changed.users if user is not node and _aliasing(user)]
        if view or source is operator.getitem or seen:
            raise TraceError(
                f"{place}: {packet} changes {tensor.name!r} in place, which shares memory with others; {advice}"
            )

    def _arguments(self, node: Any, schema: Any, place: _Place) -> dict[str, Any]:
        import torch

        def value(item: Any) -> Any:
            if isinstance(item, torch.fx.Node):
                found = self.values.get(item)
                if not isinstance(found, Tensor):
                    raise TraceError(f"{place}: {schema.name} depends on {item.name}, a number that the data decides")
                return found
            if isinstance(item, list | tuple):
                return [value(one) for one in item]
            if isinstance(item, torch.dtype):
                return NAMES.get(str(item).removeprefix("torch."), str(item))
            if isinstance(item, bool | int | float | str | type(None)):
                return item
            return str(item)

        arguments = {}
        for number, argument in enumerate(schema.arguments):
            if number < len(node.args):
                arguments[argument.name] = value(node.args[number])
            elif argument.name in node.kwargs:
                arguments[argument.name] = value(node.kwargs[argument.name])
            else:
                arguments[argument.name] = value(argument.default_value)
        return arguments

    # --- emitting -------------------------------------------------------------------------------------------------

    def _emit(
        self,
        place: _Place,
        target: str,
        inputs: Sequence[Tensor],
        attributes: Mapping[str, Any],
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[str],
        *,
        no_grad: bool,
        piece: str,
    ) -> tuple[Tensor, ...]:
        differentiable = not no_grad and target != "detach" and any(tensor.requires_grad for tensor in inputs)
        differentiable = differentiable and any(dtype in FLOATS for dtype in dtypes)
        name = self._name(place, piece or target.removeprefix(REPLICATED), bool(piece))
        annotation = self._annotation(name, target, inputs, shapes, attributes, differentiable)
        if no_grad and any(tensor.requires_grad for tensor in inputs):
            attributes = {**attributes, "no_grad": True}
        outputs = []
        for number, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True)):
            tensor = Tensor(
                name if len(shapes) == 1 else f"{name}:{number}",
                tuple(shape),
                dtype,
                "activation",
                differentiable and dtype in FLOATS,
            )
            self.tensors[tensor.name] = tensor
            outputs.append(tensor)
        self.ops.append(
            Op(
                name=name,
                target=target,
                inputs=tuple(tensor.name for tensor in inputs),
                outputs=tuple(tensor.name for tensor in outputs),
                attributes=dict(sorted(attributes.items())),
                annotation=annotation,
                module=place.module,
                source=f"{Path(place.file).name}:{place.line}" if place.file else "",
            )
        )
        return tuple(outputs)

    def _annotation(
        self,
        name: str,
        target: str,
        inputs: Sequence[Tensor],
        shapes: Sequence[tuple[int, ...]],
        attributes: Mapping[str, Any],
        differentiable: bool,
    ) -> Annotation:
        call = Call(tuple(tensor.shape for tensor in inputs), tuple(map(tuple, shapes)), attributes, differentiable)
        return find(target).annotation(call, name)

    def _name(self, place: _Place, last: str, piece: bool) -> str:
        if place.alone:
            base = f"{place.module}.{last.rpartition('.')[2]}" if piece else place.module
        else:
            base = f"{place.module}.{last}" if place.module else last
        name = base
        while name in self.names:
            self.counts[base] = self.counts.get(base, 0) + 1
            name = f"{base}_{self.counts[base]}"
        self.names.add(name)
        return name

    def _place(self, node: Any) -> _Place:
        stack = node.meta.get("nn_module_stack") or {}
        module, alone = "", False
        if stack:
            where, (path, kind) = list(stack.items())[-1]
            call = where.rpartition("@")[2] if "@" in where else ""
            kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
            module = f"{path.partition('@')[0]}@{call}" if call else path
            alone = kind.startswith("torch.nn.modules.") and self.calls.get(where, 0) == 1 and bool(module)
        file, line, code = "", 0, ""
        for match in _FRAME.finditer(node.meta.get("stack_trace") or ""):
            if _is_users(match["file"]):
                file, line, code = match["file"], int(match["line"]), match["code"].strip()
        return _Place(module, alone, file, line, code)


def _count_calls(module: Any) -> dict[str, int]:
    """How many operators each call of a module makes by itself."""
    counts: dict[str, int] = {}
    for inner in module.modules():
        for node in getattr(inner, "graph", None).nodes if hasattr(inner, "graph") else ():
            stack = node.meta.get("nn_module_stack")
            operator_ = node.op == "call_function" and hasattr(node.target, "_schema")
            if stack and operator_ and key(node.target._schema.name) not in _ASSERTIONS:
                where = next(reversed(stack))
                counts[where] = counts.get(where, 0) + 1
    return counts


def _aliasing(node: Any) -> bool:
    """Whether what an fx node makes shares memory with what it is given."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)


def _dtype(value: Any, where: str) -> str:
    name = str(value.dtype).removeprefix("torch.")
    if name not in NAMES:
        raise TraceError(f"{where}: dtype {name} is not known; choose one of {', '.join(NAMES)}")
    return NAMES[name]
