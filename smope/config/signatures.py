"""The keys of a group of the configuration: the arguments of the class or function behind its
`_target_`.

A signature is the schema of its YAML file: it says which keys there are, their types, defaults and
constraints. It is read from the source with `ast`, which takes milliseconds, so that a typing error
is answered before torch is imported.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from smope.config.value_types import fits, shown
from smope.declare.constraint import Constraint
from smope.declare.texts import PathObject, PathTo
from smope.errors import UserError

PLAIN: dict[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "list": list,
    "dict": dict,
    "Any": Any,
}
# Containers that a YAML list or mapping fills as well.
PLAIN |= {"Sequence": list, "tuple": list, "Mapping": dict}
# Sizes that follow from the stream: run/build.py passes them, nobody configures them.
COMPUTED = {"num_classes", "total_tasks"}
VOCABULARY = "smope.declare."  # the modules that constraints come from


class NotPlain(Exception):
    """An annotation that no YAML value can satisfy: run/build.py passes the argument."""


class Annotation(NamedTuple):
    """What an annotation says: a type in the terms of value_types.py, and constraints."""

    kind: Any
    constraints: tuple[Constraint, ...] = ()


@dataclass(frozen=True)
class Key:
    """One argument that can be configured.

    `default` counts if `has_default`; a default that is not a literal is left to the constructor.
    """

    kind: Any
    required: bool
    has_default: bool = False
    default: Any = None
    constraints: tuple[Constraint, ...] = ()

    @property
    def path(self) -> PathTo | None:
        """The constraint that makes the value a path, if there is one."""
        return next((item for item in self.constraints if isinstance(item, PathTo)), None)

    @property
    def is_path_object(self) -> bool:
        """Whether the argument is passed as a pathlib.Path."""
        return any(isinstance(item, PathObject) for item in self.constraints)

    @property
    def free_text(self) -> bool:
        """Whether a value on the command line is taken as it stands, without quotes."""
        return any(item.free_text for item in self.constraints) and not fits([], self.kind)

    @property
    def noun(self) -> str:
        """What the value is, in words; "" if only its type is known."""
        return next((item.noun for item in reversed(self.constraints) if item.noun), "")

    @property
    def example(self) -> str:
        """A value that would be accepted, as it is typed on the command line."""
        if self.has_default and self.default is not None:
            return shown(self.default)
        if self.constraints:
            return self.constraints[-1].example
        return shown(self.default) if self.has_default else "..."

    def check(self, name: str, value: Any) -> None:
        """UserError if a value of the right type breaks a constraint; null keeps all of them."""
        words = [constraint.word for constraint in self.constraints]
        if value is None or value in words:
            return
        for constraint in self.constraints:
            if constraint.holds(value):
                continue
            null = ", or null" if constraint.names_null and fits(None, self.kind) else ""
            raise UserError(
                f"{name} must be {constraint.text}{null}, got {shown(value)}; write for example "
                f"{name}={self.example}"
            )


@dataclass
class Module:
    """The parsed source of one module: definitions, aliases and imports by name."""

    name: str
    definitions: dict[str, ast.ClassDef | ast.FunctionDef] = field(default_factory=dict)
    aliases: dict[str, ast.expr] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)

    def find(self, name: str) -> tuple[Module, ast.ClassDef | ast.FunctionDef] | None:
        """The class or function called `name` here, followed through `from ... import`."""
        if name in self.definitions:
            return self, self.definitions[name]
        if name in self.imports:
            module_name, original = self.imports[name]
            module = read_module(module_name)
            return module.find(original) if module else None
        return None


def find_source(name: str) -> Path | None:
    """The source file of a dotted module name; no package is imported on the way."""
    head, *rest = name.split(".")
    spec = importlib.util.find_spec(head)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for root in spec.submodule_search_locations or ():
        path = Path(root, *rest)
        for candidate in (path.with_name(path.name + ".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


@lru_cache
def read_module(name: str) -> Module | None:
    """Parse a module; None if there is no Python source of that name."""
    path = find_source(name)
    if path is None:
        return None
    module = Module(name)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.ClassDef() | ast.FunctionDef():
                module.definitions[node.name] = node
            case ast.Assign(targets=[ast.Name(id=alias)], value=value):
                module.aliases[alias] = value
            case ast.AnnAssign(target=ast.Name(id=alias), value=ast.expr() as value):
                module.aliases[alias] = value
            case ast.ImportFrom(module=str() as source, level=0):
                module.imports |= {n.asname or n.name: (source, n.name) for n in node.names}
            case _:
                pass
    return module


def read_annotation(node: ast.expr, module: Module) -> Annotation:
    """What an annotation says, aliases followed. NotPlain if no YAML value has its type."""
    match node:
        case ast.Constant(value=None):
            return Annotation(None)
        case ast.Constant(value=str() as text):
            return read_annotation(ast.parse(text, mode="eval").body, module)
        case ast.Name(id=name):
            return _named_type(name, module)
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            first, second = read_annotation(left, module), read_annotation(right, module)
            return Annotation(
                _union(first.kind, second.kind), first.constraints + second.constraints
            )
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            value = ast.literal_eval(choices)
            return Annotation(Literal[value])
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[inner, *rest])):
            kind, constraints = read_annotation(inner, module)
            declared = tuple(
                _constraint(item, module) for item in rest if not isinstance(item, ast.Constant)
            )
            words = tuple(item.word for item in declared if item.word)
            return Annotation(kind | Literal[words] if words else kind, constraints + declared)
        case ast.Subscript(value=ast.Name(id=name), slice=inner) if PLAIN.get(name) in (list, dict):
            return Annotation(_container(PLAIN[name], inner, module))
    raise NotPlain(ast.unparse(node))


def _union(first: Any, second: Any) -> Any:
    return second | first if first is None else first | second


def _container(container: type, inner: ast.expr, module: Module) -> Any:
    """The type of a list or a mapping with typed items."""
    items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    parts = [
        read_annotation(item, module)
        for item in items
        if not (isinstance(item, ast.Constant) and item.value is ...)
    ]
    if any(part.constraints for part in parts):
        raise UserError(
            f"{module.name}: {ast.unparse(inner)} has a constraint inside of a container, where "
            f"it is not checked; write Annotated[{container.__name__}[...], ...]"
        )
    kinds = tuple(part.kind for part in parts)
    return list[kinds[0]] if container is list else dict[kinds[0], kinds[1]]


def _named_type(name: str, module: Module) -> Annotation:
    """A type by its name: a plain one, a path, or an alias here or in the module it is from."""
    if name in PLAIN:
        return Annotation(PLAIN[name])
    if module.imports.get(name) == ("pathlib", "Path"):
        return Annotation(str, (PathObject(),))
    if name in module.aliases:
        return read_annotation(module.aliases[name], module)
    if name in module.imports:
        source, original = module.imports[name]
        # other packages are not looked into: they may be large, and their types are not plain
        is_ours = source.partition(".")[0] in (module.name.partition(".")[0], "smope")
        other = read_module(source) if is_ours else None
        if other and original in other.aliases:
            return read_annotation(other.aliases[original], other)
    raise NotPlain(name)


def _constraint(node: ast.expr, module: Module) -> Constraint:
    """The constraint that a call in Annotated[...] stands for, made without running the module."""
    match node:
        case ast.Call(func=ast.Name(id=name)) if name in module.definitions:
            source, original = module.name, name
        case ast.Call(func=ast.Name(id=name)):
            source, original = module.imports.get(name, ("", ""))
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=original)):
            source = ".".join(module.imports.get(name, ()))
        case _:
            source = original = ""
    made = None
    if source.startswith(VOCABULARY):
        made = getattr(importlib.import_module(source), original, None)
    if not (isinstance(node, ast.Call) and isinstance(made, type) and issubclass(made, Constraint)):
        raise UserError(
            f"{module.name}: {ast.unparse(node)} is no constraint of smope.declare; import one "
            f"from there at the top of the file and call it, as in Positive()"
        )
    try:
        arguments = [ast.literal_eval(item) for item in node.args]
        keywords = {str(item.arg): ast.literal_eval(item.value) for item in node.keywords}
        return made(*arguments, **keywords)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{module.name}: {ast.unparse(node)} cannot be read from the source ({error}); its "
            f"arguments must be literals"
        ) from error


@lru_cache
def keys_of(target: str, key: str) -> dict[str, Key]:
    """The arguments of a class or function that can be configured, in their order.

    Args:
        target: The dotted name.
        key: The key that holds the name, for errors.

    Raises:
        UserError: if there is no such class or function.
    """
    definition = _find(target)
    if definition is None:
        raise UserError(
            f"{key}={target!r} names no class or function in a Python file; write "
            f"package.module.Name"
        )
    module, node = definition
    if isinstance(node, ast.ClassDef):
        return dict(_class_keys(node, module))
    return dict(_argument_keys(node.args, module))


def takes(target: str, argument: str) -> bool:
    """Whether the constructor of a class has an argument of that name.

    Args:
        target: The dotted name of the class; False if there is none.
        argument: The name of the argument, configured or not.
    """
    definition = _find(target)
    if definition is None or not isinstance(definition[1], ast.ClassDef):
        return False
    constructor = _constructor(definition[1], definition[0])
    if constructor is None:
        return False
    arguments = constructor[0].args
    return argument in {item.arg for item in (*arguments.args, *arguments.kwonlyargs)}


def chosen_name(target: str) -> str:
    """The choice that a `_target_` belongs to: coda for smope.methods.coda.CODAPrompt."""
    return target.rpartition(".")[0].rpartition(".")[2]


def class_attribute(target: str, name: str) -> Any:
    """The literal that a class assigns to an attribute, its own or the first inherited one.

    Args:
        target: The dotted name of the class.
        name: The attribute.

    Returns:
        The value; None if there is none, or it is no literal.
    """
    definition = _find(target)
    if definition is None or not isinstance(definition[1], ast.ClassDef):
        return None
    return _class_attribute(name, definition[1], definition[0])


def _class_attribute(name: str, node: ast.ClassDef, module: Module) -> Any:
    for member in node.body:
        match member:
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                return _literal(value)
            case ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as value) if (
                found == name
            ):
                return _literal(value)
            case _:
                pass
    inherited = (_class_attribute(name, base, other) for base, other in _bases(node, module))
    return next((value for value in inherited if value is not None), None)


def _literal(value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None


def _find(target: str) -> tuple[Module, ast.ClassDef | ast.FunctionDef] | None:
    module_name, _, name = target.rpartition(".")
    module = read_module(module_name) if module_name else None
    return module.find(name) if module else None


def _bases(node: ast.ClassDef, module: Module) -> Iterator[tuple[ast.ClassDef, Module]]:
    """The base classes whose source can be found."""
    for base in node.bases:
        base_class = module.find(base.id) if isinstance(base, ast.Name) else None
        if base_class and isinstance(base_class[1], ast.ClassDef):
            yield base_class[1], base_class[0]


def _constructor(node: ast.ClassDef, module: Module) -> tuple[ast.FunctionDef, Module] | None:
    """The __init__ of a class, its own or the first inherited one, and the module it stands in."""
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return member, module
    inherited = (_constructor(base, other) for base, other in _bases(node, module))
    return next((item for item in inherited if item is not None), None)


def _class_keys(node: ast.ClassDef, module: Module) -> Iterator[tuple[str, Key]]:
    """Arguments of the class's own __init__, the fields of a dataclass, or what its base has.

    An __init__ that ends in **keywords passes them on to its base class, whose keys follow.
    """
    constructor = next(
        (
            item
            for item in node.body
            if isinstance(item, ast.FunctionDef) and item.name == "__init__"
        ),
        None,
    )
    seen: set[str] = set()
    if constructor is not None:
        for name, key in _argument_keys(constructor.args, module):
            seen.add(name)
            yield name, key
        if constructor.args.kwarg is None:
            return
    for base, other in _bases(node, module):
        yield from ((name, key) for name, key in _class_keys(base, other) if name not in seen)
    if constructor is None and any(
        "dataclass" in ast.unparse(item) for item in node.decorator_list
    ):
        for member in node.body:
            if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                yield from _key(member.target.id, member.annotation, member.value, module)


def _argument_keys(arguments: ast.arguments, module: Module) -> Iterator[tuple[str, Key]]:
    positional = arguments.posonlyargs + arguments.args
    missing: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = list(zip(positional, missing + list(arguments.defaults), strict=True))
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    for argument, default in pairs:
        if argument.annotation is not None:
            yield from _key(argument.arg, argument.annotation, default, module)


def _key(
    name: str, annotation: ast.expr, default: ast.expr | None, module: Module
) -> Iterator[tuple[str, Key]]:
    """The key of one argument; none for what run/build.py computes or passes as an object."""
    if name in COMPUTED:
        return
    try:
        kind, constraints = read_annotation(annotation, module)
    except NotPlain:
        return
    if default is None:
        yield name, Key(kind, required=True, constraints=constraints)
        return
    try:
        value = ast.literal_eval(default)
    except ValueError:
        yield name, Key(kind, required=False, constraints=constraints)
        return
    value = list(value) if isinstance(value, tuple) else value
    yield name, Key(kind, False, True, value, constraints)
