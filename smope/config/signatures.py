"""What a config group accepts: the keyword arguments behind its `_target_`, read without importing
it.

A constructor's signature is the schema of its YAML file. Reading it with `ast` costs milliseconds,
so a typo or a wrong type is answered before torch is imported.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

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
# Sizes that follow from the stream: build.py passes them, nobody configures them.
COMPUTED = {"num_classes", "total_tasks"}


class NotPlain(Exception):
    """An annotation that no YAML value can satisfy: the parameter is an object that build.py
    passes.
    """


@dataclass(frozen=True)
class Key:
    """One keyword argument: its plain type and, where it has one, its default.

    `default` counts where `has_default` is set; one that is not a literal is left to the
    constructor.
    """

    kind: Any
    required: bool
    has_default: bool = False
    default: Any = None


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
    """Parse a module; None where there is no Python source of that name."""
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


def plain_type(node: ast.expr, module: Module) -> Any:
    """The type that an annotation stands for, in the terms of value_types.py; NotPlain for any
    other.
    """
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=str() as text):
            return plain_type(ast.parse(text, mode="eval").body, module)
        case ast.Name(id=name) if name in PLAIN:
            return PLAIN[name]
        case ast.Name(id=name):
            return _aliased_type(name, module)
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            first, second = plain_type(left, module), plain_type(right, module)
            return second | first if first is None else first | second
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            value = ast.literal_eval(choices)
            return Literal[value]
        case ast.Subscript(value=ast.Name(id=name), slice=inner) if PLAIN.get(name) in (list, dict):
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            parts = [
                part for part in parts if not (isinstance(part, ast.Constant) and part.value is ...)
            ]
            if PLAIN[name] is list:
                return list[plain_type(parts[0], module)]
            return dict[plain_type(parts[0], module), plain_type(parts[1], module)]
    raise NotPlain(ast.unparse(node))


def _aliased_type(name: str, module: Module) -> Any:
    if name in module.aliases:
        return plain_type(module.aliases[name], module)
    if name in module.imports:
        source, original = module.imports[name]
        other = read_module(source) if source.split(".")[0] == module.name.split(".")[0] else None
        if other and original in other.aliases:
            return plain_type(other.aliases[original], other)
    raise NotPlain(name)


def keys_of(target: str, key: str) -> dict[str, Key]:
    """The configurable keyword arguments of a dotted class or function name; `key` names it in
    errors.
    """
    module_name, _, name = target.rpartition(".")
    module = read_module(module_name) if module_name else None
    found = module.find(name) if module else None
    if found is None:
        raise UserError(
            f"{key}={target!r} names no class or function in a Python file; write "
            f"package.module.Name"
        )
    module, node = found
    if isinstance(node, ast.ClassDef):
        return dict(_class_keys(node, module))
    return dict(_argument_keys(node.args, module))


def takes(target: str, argument: str) -> bool:
    """Whether the constructor of a dotted class name has an argument of that name; False where
    there is no class.
    """
    module_name, _, name = target.rpartition(".")
    module = read_module(module_name) if module_name else None
    found = module.find(name) if module else None
    if found is None or not isinstance(found[1], ast.ClassDef):
        return False
    starts = [
        item
        for item in found[1].body
        if isinstance(item, ast.FunctionDef) and item.name == "__init__"
    ]
    return any(
        argument in (a.arg for a in (*start.args.args, *start.args.kwonlyargs)) for start in starts
    )


def _class_keys(node: ast.ClassDef, module: Module) -> Iterator[tuple[str, Key]]:
    """Arguments of the class's own __init__, the fields of a dataclass, or what its base class
    has.
    """
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            yield from _argument_keys(member.args, module)
            return
    for base in node.bases:
        found = module.find(base.id) if isinstance(base, ast.Name) else None
        if found and isinstance(found[1], ast.ClassDef):
            yield from _class_keys(found[1], found[0])
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
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
    if name in COMPUTED:
        return
    try:
        kind = plain_type(annotation, module)
    except NotPlain:
        return
    if default is None:
        yield name, Key(kind, required=True)
        return
    try:
        value = ast.literal_eval(default)
    except ValueError:
        yield name, Key(kind, required=False)
    else:
        yield name, Key(kind, False, True, list(value) if isinstance(value, tuple) else value)
