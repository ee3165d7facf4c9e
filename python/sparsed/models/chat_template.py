"""Renders chat templates with jinja2 in a sandbox and bounds their work, because a folder may come from anywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

# The limit of loop passes and calls in one rendering. A conversation of a thousand messages needs a few thousand.
MAX_PASSES = 250_000
# The largest results of an operator: characters or items of a sequence, and bits of an integer.
_MAX_LENGTH = 10_000_000
_MAX_BITS = 4096

_COUNTED = "_counted"
_WIDE_FORMAT = re.compile(r"%[^a-zA-Z%]*(\*|\d{5})")
# The errors that a template can raise.
_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def render(template: str, variables: Mapping[str, Any]) -> str:
    """Renders `template` with `variables`.

    Loops, calls and operators are bounded. A filter can still build one long string, so a program that renders
    untrusted templates should limit its memory.

    Raises:
        ValueError: The template is damaged, fails, refuses the variables, or runs too long.
    """
    try:
        return _Environment().from_string(template).render(variables)
    except _ERRORS as error:
        raise ValueError(f"apply_chat_template: the chat template failed: {error}") from error


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """A sandbox like the one that transformers uses for chat templates, for one rendering.

    A template cannot reach Python's internal attributes and cannot change the data. Loops and calls are counted.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        self._passes = 0
        self.filters |= {"tojson": _to_json, _COUNTED: self._count_each}
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    @jinja2.pass_context
    def _count_each(self, context: jinja2.runtime.Context, items: Iterable[Any]) -> Iterator[Any]:
        """Counts the passes of a loop. It takes the context so that jinja2 does not call it at compile time."""
        for item in items:
            self._count()
            yield item

    def _count(self) -> None:
        self._passes += 1
        if self._passes > MAX_PASSES:
            raise jinja2.exceptions.SecurityError(f"it takes more than {MAX_PASSES} passes of loops and calls")

    def call(self, context: jinja2.runtime.Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Counts a call in the template: jinja2 sends all of them through this method."""
        self._count()
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Computes an operator of the template, and refuses it if its result would be huge."""
        if _is_large(operator, left, right):
            raise jinja2.exceptions.SecurityError(f"the result of {operator} is too large")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        # Every `for` goes through a filter that counts, since jinja2 calls nothing of ours in a loop.
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(jinja2.nodes.For):
            loop.iter = jinja2.nodes.Filter(
                loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno, environment=self
            )
        return tree


class _Generation(jinja2.ext.Extension):
    """Accepts the tag `{% generation %}` ... `{% endgeneration %}`, which does not change the text.

    Training code uses it to find the assistant's words.
    """

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it per instance)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """Stands for `dict` in templates without exposing the attributes of the Python class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """Stands for `namespace` in templates, and refuses names with a leading underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        for name in dict(*args[1:], **kwargs):
            _check_name(name)
        jinja2.utils.Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot have the name {name!r}")


def _is_large(operator: str, left: Any, right: Any) -> bool:
    """Returns whether the result of an operator would be too large. Sequences are measured by their items."""
    if operator == "%":
        return isinstance(left, str) and _WIDE_FORMAT.search(left) is not None
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        return bits > _MAX_BITS
    sequences = [value for value in (left, right) if isinstance(value, (str, list, tuple))]
    if operator == "+":
        return len(sequences) == 2 and len(left) + len(right) > _MAX_LENGTH
    times = right if isinstance(right, int) else left
    return len(sequences) == 1 and isinstance(times, int) and len(sequences[0]) * times > _MAX_LENGTH


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
