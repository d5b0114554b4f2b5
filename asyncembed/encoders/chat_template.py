"""A repo's chat template, as the words around a pair: rendered once, with marks in the places of the texts.

A template is a program in Jinja by whoever made the repo. It runs in Jinja's sandbox, and only if it is made of few
kinds of parts: a handful of short loops, and nothing that makes a text grow. So it ends soon, whatever it says. What it
makes of the marks tells what it would make of texts, and where that is not plain the model is refused.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from asyncembed.encoders.pair_prompts import Frame, Slot
from asyncembed.errors import RuntimeMissingError, UnsupportedModelError
from asyncembed.repo_files import read_object

if TYPE_CHECKING:
    import jinja2
    from jinja2 import nodes

TEMPLATE_FILE = "chat_template.jinja"

_LONGEST_TEMPLATE = 2**13  # bytes; one that frames a pair has a tenth of it
_LONGEST_RESULT = 2**16  # characters
_MOST_LOOPS = 8
_MOST_TURNS = 100
_DEEPEST = 30
_TESTS_BY_CONTENT = ("lower", "sequence", "upper")  # that look into a text without asking it
_NODES = (
    "Add", "And", "Assign", "Break", "Call", "Compare", "Concat", "CondExpr", "Const", "Continue", "Filter", "For",
    "Getattr", "Getitem", "If", "Keyword", "NSRef", "Name", "Neg", "Not", "Operand", "Or", "Output", "Slice", "Sub",
    "Template", "TemplateData", "Test",
)  # fmt: skip
_FILTERS = (
    "count", "d", "default", "first", "int", "last", "length", "list", "lower", "map", "reject", "rejectattr", "select",
    "selectattr", "trim", "upper",
)  # fmt: skip
_FUNCTIONS = ("namespace", "raise_exception", "range")
_METHODS = ("endswith", "get", "lower", "lstrip", "rstrip", "startswith", "strip", "upper")

# Letters of both cases, which a template that changes texts would not leave as they are.
_MARKS = {slot: f"\ue000{slot.value.title()}\ue001" for slot in Slot}
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_STRUCTURED = ("content[0]", ".type", "'type'", '"type"', "item.type", "message.content[")

_ADVICE = 'say template="qwen3-reranker" or template="mxbai-rerank-v2" if the model reads pairs as one of these does'


def read_frames(directory: Path) -> tuple[Frame, Frame]:
    """The words around a pair with an instruction, and without.

    Raises:
        UnsupportedModelError: There is no template, or not one that plainly puts the texts among words.
        RuntimeMissingError: The package jinja2 is not installed.
    """
    model = str(directory)
    config = read_object(directory / "tokenizer_config.json")
    source = template_source(directory)
    if source is None:
        raise UnsupportedModelError(f"{directory} has no chat template that could be read; {_ADVICE}", model=model)
    template = _compiled(source, model)
    tokens = {name: _content(config.get(name)) for name in _NAMED_TOKENS}

    def frame(slots: tuple[Slot, ...]) -> Frame:
        def rendered(around: str) -> str:
            texts = {slot: f"{around}{_MARKS[slot]}{around}" for slot in slots}
            return _render(template, _messages(texts, is_structured=_is_structured(directory, source)), tokens, model)

        return _frame(rendered(""), rendered("  "), slots, model)

    return frame(tuple(Slot)), frame((Slot.QUERY, Slot.DOCUMENT))


def template_source(directory: Path) -> str | None:
    """The template in the files of `directory`; None: it has none, or one for each of several purposes."""
    path = directory / TEMPLATE_FILE
    if path.is_file():
        if path.stat().st_size > _LONGEST_TEMPLATE:
            return None
        return path.read_text("utf-8", errors="replace")
    source = read_object(directory / "tokenizer_config.json").get("chat_template")
    return source if isinstance(source, str) and len(source) <= _LONGEST_TEMPLATE else None


def _compiled(source: str, model: str) -> "jinja2.Template":
    try:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise RuntimeMissingError(
            f"{model} says with a chat template what its model reads of a pair; to render it, "
            'install the package jinja2: pip install "asyncembed[chat-templates]"',
            model=model,
        ) from error

    # As the transformers library renders them.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], finalize=_printed
    )
    environment.globals = {
        "raise_exception": _refuse, "namespace": environment.globals["namespace"], "range": _range,
    }  # fmt: skip
    environment.filters = {name: environment.filters[name] for name in _FILTERS} | {"int": _int}
    for name in _TESTS_BY_CONTENT:
        del environment.tests[name]
    try:
        tree = environment.parse(source)
        for objection in _objections(tree):
            raise _unsupported(model, f"is not rendered: {objection}")
        return environment.from_string(tree)
    except UnsupportedModelError:
        raise
    except (jinja2.TemplateError, RecursionError, SyntaxError, MemoryError, ValueError) as error:
        raise _unsupported(model, f"cannot be rendered: {error}") from error


def _objections(tree: "nodes.Template") -> Iterator[str]:
    """What might take long, or make a text grow, in a template: such a thing is no part of those that frame a pair."""
    from jinja2 import nodes

    if _is_deep(tree):
        # What it would take to make a program of it grows much faster than its length.
        yield f"its parts are nested more than {_DEEPEST} deep"
        return
    allowed = {getattr(nodes, name) for name in _NODES}
    # Texts are put together where they are printed only, so that none is twice as long with each line.
    sums = {id(sum_) for output in tree.find_all(nodes.Output) for each in output.nodes for sum_ in _sums(each)}
    for node in tree.find_all(nodes.Node):
        if isinstance(node, nodes.List | nodes.Tuple) and all(isinstance(each, nodes.Const) for each in node.items):
            continue
        if type(node) not in allowed or (isinstance(node, nodes.Add | nodes.Concat) and id(node) not in sums):
            yield f"it has {type(node).__name__} in line {node.lineno}"
        if isinstance(node, nodes.Call):
            called = node.node
            name = called.attr if isinstance(called, nodes.Getattr) else getattr(called, "name", None)
            if name not in (_METHODS if isinstance(called, nodes.Getattr) else _FUNCTIONS):
                yield f"it calls {name} in line {node.lineno}"
    loops = list(tree.find_all(nodes.For))
    if len(loops) > _MOST_LOOPS or any(loop.recursive or next(_inner_loops(loop), None) for loop in loops):
        yield "it has many loops, or loops in loops"


def _is_deep(tree: "nodes.Template") -> bool:
    """Whether its parts are nested deeply; a sum of many is."""
    level: list[nodes.Node] = [tree]
    for _ in range(_DEEPEST):
        level = [child for node in level for child in node.iter_child_nodes()]
    return bool(level)


def _sums(node: "nodes.Node") -> "Iterator[nodes.Node]":
    """The sums that a printed value is, itself among them."""
    from jinja2 import nodes

    if isinstance(node, nodes.Add):
        yield node
        yield from _sums(node.left)
        yield from _sums(node.right)
    elif isinstance(node, nodes.Concat):
        yield node
        for each in node.nodes:
            yield from _sums(each)


def _inner_loops(loop: "nodes.For") -> "Iterator[nodes.For]":
    from jinja2 import nodes

    return (inner for inner in loop.find_all(nodes.For) if inner is not loop)


def _printed(value: object) -> object:
    """What is printed of a value: texts and numbers only, and nothing of what there is not."""
    import jinja2

    if isinstance(value, jinja2.Undefined):
        return ""
    if not isinstance(value, str | int | float):
        _refuse(f"it prints a value of the type {type(value).__name__}")
    return value


class _Text(str):
    """A text in a message, which a template puts somewhere: what it asks of the text is refused.

    Frames are the same for all texts. A template that looks at a text would make something else of others.
    """

    __slots__ = ()

    def _ask(self, *_: object, **__: object) -> NoReturn:
        _refuse("it does not put texts among words as they are, but asks what they say")

    __contains__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _ask
    __getitem__ = __iter__ = __len__ = __hash__ = _ask
    endswith = lower = startswith = upper = _ask

    def __bool__(self) -> bool:
        return True

    def strip(self, *characters: Any) -> str:
        """A text again."""
        return _Text(super().strip(*characters))

    def lstrip(self, *characters: Any) -> str:
        """A text again."""
        return _Text(super().lstrip(*characters))

    def rstrip(self, *characters: Any) -> str:
        """A text again."""
        return _Text(super().rstrip(*characters))


def _int(value: object, default: int = 0, base: int = 10) -> int:
    """Jinja's filter."""
    if isinstance(value, _Text):
        _refuse("it takes a text for a number")
    try:
        return int(value, base) if isinstance(value, str) else int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return default


def _refuse(message: object) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(str(message)[:200])


def _range(*ends: int) -> range:
    numbers = range(*ends)
    if len(numbers) > _MOST_TURNS:
        _refuse("a loop of too many turns")
    return numbers


def _render(template: "jinja2.Template", messages: list[dict[str, object]], tokens: dict[str, str], model: str) -> str:
    try:
        parts = []
        size = 0
        for part in template.generate(messages=messages, add_generation_prompt=False, **tokens):
            size += len(part)
            if size > _LONGEST_RESULT:
                raise _unsupported(model, "makes a text of too many characters")
            parts.append(part)
        return "".join(parts)
    except UnsupportedModelError:
        raise
    except Exception as error:  # whatever a stranger's program does wrong
        raise _unsupported(model, f"fails: {type(error).__name__}: {str(error)[:200]}") from error


def _messages(texts: dict[Slot, str], *, is_structured: bool) -> list[dict[str, object]]:
    """The roles and texts that sentence-transformers gives a template: its prompt is the system's message."""
    roles = {Slot.INSTRUCTION: "system", Slot.QUERY: "query", Slot.DOCUMENT: "document"}
    return [
        {"role": roles[slot], "content": [{"type": "text", "text": _Text(text)}] if is_structured else _Text(text)}
        for slot, text in texts.items()
    ]


def _is_structured(directory: Path, source: str) -> bool:
    said = read_object(directory / "sentence_bert_config.json").get("modality_config")
    message = said.get("message") if isinstance(said, dict) else None
    form = message.get("format") if isinstance(message, dict) else None
    return form == "structured" if form in ("flat", "structured") else any(sign in source for sign in _STRUCTURED)


def _frame(tight: str, loose: str, slots: tuple[Slot, ...], model: str) -> Frame:
    """The words around the marks; `loose` is the same text from marks in spaces, which a template may strip."""
    marks = {_MARKS[slot]: slot for slot in slots}
    spaced = tight
    for mark in marks:
        spaced = spaced.replace(mark, f"  {mark}  ")
    pieces = re.split("(\ue000[^\ue001]*\ue001)", tight)
    parts = tuple(marks.get(piece, piece) for piece in pieces if piece)
    found = [part for part in parts if isinstance(part, Slot)]
    has_rest = any("\ue000" in part or "\ue001" in part for part in parts if isinstance(part, str))
    if has_rest or not {Slot.QUERY, Slot.DOCUMENT}.issubset(found) or loose not in (tight, spaced):
        raise _unsupported(model, f"does not put a query and a document among words as they are; {_ADVICE}")
    return Frame(parts, strips=loose == tight)


def _unsupported(model: str, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"the chat template of {model} {reason}", model=model)


def _content(token: object) -> str:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""
