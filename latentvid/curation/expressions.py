"""Filters: expressions over a row's columns, such as `motion > 0.2 and text < 0.05`.

They are read by Python's grammar and computed here: comparisons, `and`, `or`, `not`, + - * /, numbers, texts in quotes,
`in (...)`, and known(column). What is compared with a value that a row has not is unknown, as in SQL: neither true nor
false, and `not` of it is unknown too.
"""

from __future__ import annotations

import ast
import difflib
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .columns import Column

LONGEST = 2000  # characters
HAVE = "there are comparisons, and, or, not, + - * /, numbers, texts in quotes, `in (...)` and known(column)"
_COMPARE: dict[type, Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_SIGNS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Bound:
    """`column sign value`, as it stands in a filter."""

    column: str
    sign: str
    value: float


@dataclass(frozen=True)
class Filter:
    """An expression that was read. names: the columns in it."""

    text: str
    names: frozenset[str]
    tree: ast.expr

    @classmethod
    def of(cls, text: str, columns: Mapping[str, Column]) -> Filter:
        """Raises UserError where it is no expression, has something that is not allowed, or names no column."""
        if len(text) > LONGEST:
            raise UserError(f"filter {text[:40]}...: has {len(text):,} characters, and at most {LONGEST:,} can be")
        try:
            tree = ast.parse(text.strip(), mode="eval").body
            names = _checked(text, tree)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            if isinstance(error, UserError):
                raise
            why = getattr(error, "msg", None) or str(error) or "nested too deep"
            raise UserError(f"filter {text[:100]!r} is no expression ({why}): write such as `motion > 0.2`") from None
        for name in sorted(names):
            if name not in columns:
                near = difflib.get_close_matches(name, columns, 1)
                fix = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(columns))}"
                raise UserError(f"filter {text!r}: there is no column {name}: {fix}")
        if not names:
            raise UserError(f"filter {text!r} names no column: it would keep all, or nothing")
        made = cls(text, frozenset(names), tree)
        made({name: "" if columns[name].kind == "text" else 1.0 for name in names})  # texts against numbers, now
        return made

    def __call__(self, row: Mapping[str, Any]) -> bool:
        """Whether it is true of the row; not where that is unknown. Raises UserError for texts against numbers."""
        try:
            found = _value(self.tree, row)
        except TypeError as error:
            raise UserError(f"filter {self.text!r}: {error}: compare numbers with numbers, texts with texts") from None
        if found is not None and not isinstance(found, bool):
            raise UserError(f"filter {self.text!r} is {found!r}, neither true nor false: compare it with something")
        return found is True

    def bounds(self) -> list[Bound]:
        """The plain comparisons of a column with a number in it: thresholds, for charts."""
        found = []
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.Compare):
                continue
            sides = [node.left, *node.comparators]
            for left, op, right in zip(sides, node.ops, sides[1:], strict=False):
                sign = _SIGNS.get(type(op))
                if sign and isinstance(left, ast.Name) and (value := _number(right)) is not None:
                    found.append(Bound(left.id, sign, value))
                elif sign and isinstance(right, ast.Name) and (value := _number(left)) is not None:
                    found.append(Bound(right.id, _FLIPPED[sign], value))
        return found


def _number(node: ast.expr) -> float | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _number(node.operand)
        return None if value is None else -value
    plain = isinstance(node, ast.Constant) and isinstance(node.value, int | float)
    return float(node.value) if plain and not isinstance(node.value, bool) else None


def _checked(text: str, node: ast.expr) -> set[str]:
    """The columns that it names. Raises UserError for what filters do not have."""
    match node:
        case ast.BoolOp(values=parts):
            return set().union(*(_checked(text, part) for part in parts))
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=part):
            return _checked(text, part)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _checked(text, left) | _checked(text, right)
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARE for op in ops):
            for op, other in zip(ops, others, strict=True):
                if isinstance(op, ast.In | ast.NotIn) and not isinstance(other, ast.Tuple | ast.List):
                    raise UserError(f"filter {text!r}: after `in` write a list: (1, 2) or ('a', 'b')")
            return set().union(_checked(text, left), *(_checked(text, other) for other in others))
        case ast.Tuple(elts=parts) | ast.List(elts=parts) if all(isinstance(p, ast.Constant) for p in parts):
            return set()
        case ast.Call(func=ast.Name(id="known"), args=[ast.Name(id=name)], keywords=[]):
            return {name}
        case ast.Name(id=name):
            return {name}
        case ast.Constant(value=bool() | int() | float() | str()):
            return set()
    raise UserError(f"filter {text!r}: {ast.unparse(node)[:60]!r} is not possible: {HAVE}")


def _value(node: ast.expr, row: Mapping[str, Any]) -> Any:
    """None where it is unknown."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return _cell(row, name)
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            return [part.value for part in parts]
        case ast.Call(args=[ast.Name(id=name)]):
            return _cell(row, name) is not None
        case ast.UnaryOp(op=op, operand=part):
            value = _value(part, row)
            return None if value is None else (not value) if isinstance(op, ast.Not) else -value
        case ast.BoolOp(op=op, values=parts):
            decides = isinstance(op, ast.Or)  # one such value settles it, whatever is unknown
            values = [_value(part, row) for part in parts]
            if any(value is not None and not isinstance(value, bool) for value in values):
                raise TypeError("`and` and `or` join comparisons")
            if any(value is decides for value in values):
                return decides
            return None if None in values else not decides
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _value(left, row), _value(right, row)
            if a is None or b is None or (isinstance(op, ast.Div) and b == 0):
                return None
            if isinstance(a, str) or isinstance(b, str):
                raise TypeError("there is no arithmetic of texts")
            return _ARITHMETIC[type(op)](a, b)
        case ast.Compare(left=left, ops=ops, comparators=others):
            values = [_value(side, row) for side in (left, *others)]
            pairs = zip(values, ops, values[1:], strict=False)
            found = [None if a is None or b is None else _COMPARE[type(op)](a, b) for a, op, b in pairs]
            return False if False in found else None if None in found else True
    raise AssertionError(ast.dump(node))


def _cell(row: Mapping[str, Any], name: str) -> Any:
    value = row.get(name)
    return None if isinstance(value, float) and math.isnan(value) else value
