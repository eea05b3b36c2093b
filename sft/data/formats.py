"""Row shapes: how a decoded row becomes turns.

One small function per shape. To add one: write the function, enter it in :data:`FORMATS`, and add a three-line fixture to the
test. Text is never stripped or changed, roles are never repaired, and what cannot be read is refused with a reason::

    alpaca             {instruction, input?, output, system?, history?}      user (input) assistant
    sharegpt           {conversations: [{from, value}], system?}             as written
    messages           {messages: [{role, content}]}                         as written
    prompt_completion  {prompt, completion}: text, or lists of messages      user assistant
    parallel_lists     {input: [...], output: [...]}                         user assistant user assistant
    history            {prompt, response, history?: [[q, a]], system?}       user assistant ... user assistant
    moss               {chat: {turn_1: {Human, Inner Thoughts, ...}}}        user (assistant tool) assistant
    moss_plugin        the same                                              user assistant assistant tool assistant
    src_tgt            {src, tgt}                                            user assistant
    seed_tasks         {instruction, instances: [{input, output}]}           one conversation per instance
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sft.data.conversation import Role, Turn
from sft.data.fields import Row, RowFault, kind_of
from sft.errors import DataError

Turns = tuple[Turn, ...]

_ROLES_SHAREGPT: Final[Mapping[str, Role]] = {
    "human": "user",
    "user": "user",
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing"), "assistant"),
    "system": "system",
}
_OPENAI: Final[tuple[Role, ...]] = ("system", "user", "assistant", "tool")
_ROLES_OPENAI: Final[Mapping[str, Role]] = {**dict(zip(_OPENAI, _OPENAI, strict=True)), "developer": "system"}
# Who may speak after whom; "" is the start. A system turn opens, an answer follows something to answer, nobody speaks twice.
_FOLLOWS: Final[Mapping[str, frozenset[str]]] = {
    "": frozenset({"system", "user"}),
    "system": frozenset({"user"}),
    "user": frozenset({"input", "tool", "assistant"}),
    "input": frozenset({"tool", "assistant"}),
    "tool": frozenset({"assistant"}),
    "assistant": frozenset({"user", "tool"}),
}
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """What a usable row holds.

    Attributes:
        id: the row's own id (a number as text), or None.
        conversations: one for most formats; ``seed_tasks`` gives one per instance.
    """

    id: str | None
    conversations: tuple[Turns, ...]


def _system(row: Row, field: str = "system") -> Turns:
    """A system column; empty text, as a column filled for every row has it, means none."""
    text = row.optional_text(field)
    return (Turn("system", text),) if text else ()


def _asked(row: Row, instruction: str) -> Turns:
    text = row.optional_text("input")
    return (Turn("user", instruction), Turn("input", text)) if text else (Turn("user", instruction),)


def _exchanges(pairs: Iterable[Sequence[Any]], place: str) -> Turns:
    """User and assistant turns out of (question, answer) pairs."""
    turns: list[Turn] = []
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowFault("wrong_type", f"pair {number} of {place} is not a question and an answer, both text")
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    return tuple(turns)


def _earlier(row: Row) -> Turns:
    return () if row.get("history") is None else _exchanges(row.items("history"), row.called("history"))


def _alpaca(row: Row) -> list[Turns]:
    return [(*_system(row), *_earlier(row), *_asked(row, row.text("instruction")), Turn("assistant", row.text("output")))]


def _sharegpt(row: Row) -> list[Turns]:
    turns = list(_system(row))
    for entry in row.entries("conversations", "items", "messages"):
        role = _role(entry.text("from", "role"), _ROLES_SHAREGPT, entry)
        turns.append(Turn(role, entry.text("value", "content"), _train(entry)))
    return [tuple(turns)]


def _messages(row: Row, field: str = "messages") -> list[Turns]:
    turns: list[Turn] = []
    for entry in row.entries(field):
        for call in ("tool_calls", "function_call"):
            if entry.get(call):
                raise RowFault("unsupported_content", f"{entry.called(call)} is not supported; write the call into 'content'")
        role = _role(entry.text("role"), _ROLES_OPENAI, entry)
        turns.append(Turn(role, _content(entry), _train(entry)))
    return [tuple(turns)]


def _role(said: str, roles: Mapping[str, Role], entry: Row) -> Role:
    if said not in roles:
        raise RowFault("unknown_role", f"the role {said[:40]!r}{entry.place} is not known; use one of {', '.join(roles)}")
    return roles[said]


def _train(entry: Row) -> bool | None:
    """The turn's own ``train`` flag, or OpenAI's ``weight`` of 0 or 1."""
    train, weight = entry.get("train"), entry.get("weight")
    if train is not None and not isinstance(train, bool):
        raise RowFault("wrong_type", f"{entry.called('train')} is {kind_of(train)}; it must be true or false")
    if weight is None:
        return train
    if isinstance(weight, bool) or weight not in (0, 1):
        raise RowFault("wrong_type", f"{entry.called('weight')} is {weight!r}; it must be 0 or 1")
    if train is not None and train != (weight == 1):
        raise RowFault("contradiction", f"'train' and 'weight'{entry.place} disagree; keep one")
    return bool(weight == 1)


def _content(entry: Row) -> str:
    """Text, or a list of text parts, which belong together without anything between them."""
    if not isinstance(entry.get("content"), list):
        return entry.text("content")
    parts = []
    for part in entry.entries("content"):
        kind = part.text("type")
        if kind != "text":
            raise RowFault(
                "unsupported_content", f"{entry.called('content')} has a part of type {kind!r}; only text can be read"
            )
        parts.append(part.text("text"))
    return "".join(parts)


def _prompt_completion(row: Row) -> list[Turns]:
    def side(field: str, role: Role) -> Turns:
        return _messages(row, field)[0] if isinstance(row.get(field), list) else (Turn(role, row.text(field)),)

    # The format's meaning is "learn the completion": answers that are part of the prompt are context unless they say otherwise.
    prompt = (replace(t, train=False) if t.role == "assistant" and t.train is None else t for t in side("prompt", "user"))
    return [(*prompt, *side("completion", "assistant"))]


def _parallel_lists(row: Row) -> list[Turns]:
    asked, answered = row.items("input"), row.items("output")
    if len(asked) != len(answered):
        raise RowFault("length_mismatch", f"{len(asked)} inputs but {len(answered)} outputs; each input needs one output")
    return [(*_system(row), *_exchanges(zip(asked, answered, strict=True), row.called("input", "output")))]


def _history(row: Row) -> list[Turns]:
    return [(*_system(row), *_earlier(row), Turn("user", row.text("prompt")), Turn("assistant", row.text("response")))]


def _src_tgt(row: Row) -> list[Turns]:
    return [(Turn("user", row.text("src")), Turn("assistant", row.text("tgt")))]


def _seed_tasks(row: Row) -> list[Turns]:
    instances = row.entries("instances")
    if not instances:
        raise RowFault("empty_conversation", f"{row.called('instances')} is empty; a seed task needs at least one instance")
    return [(*_asked(entry, row.text("instruction")), Turn("assistant", entry.text("output"))) for entry in instances]


# MOSS field -> its role tag and end tag, which the values carry.
_MOSS_TAGS = {
    "Human": ("Human", "eoh"),
    "Inner Thoughts": ("Inner Thoughts", "eot"),
    "Commands": ("Commands", "eoc"),
    "Tool Responses": ("Results", "eor"),
    "MOSS": ("MOSS", "eom"),
}


def _moss(row: Row) -> list[Turns]:
    """moss-003; a turn with thoughts or commands becomes user, assistant (thoughts, newline, commands), tool, assistant."""
    turns = _meta_instruction(row)
    for entry in _moss_turns(row):
        said = {field: _unmarked(entry, field) for field in _MOSS_TAGS}
        turns.append(Turn("user", said["Human"]))
        calls = [said[field] for field in ("Inner Thoughts", "Commands") if said[field].strip() not in ("", "None")]
        results = said["Tool Responses"]
        if calls:  # a turn that thinks but calls nothing keeps its "None" results, which are what the model then reads
            turns += [Turn("assistant", "\n".join(calls)), Turn("tool", results, train=False)]
        elif results.strip() not in ("", "None"):
            turns.append(Turn("tool", results, train=False))
        turns.append(Turn("assistant", said["MOSS"]))
    return [tuple(turns)]


def _moss_plugin(row: Row) -> list[Turns]:
    """moss-003 as its own trainer reads it: thoughts, commands and results of every turn, ``None`` where there are none."""
    turns = _meta_instruction(row)
    for entry in _moss_turns(row):
        said = {field: _unmarked(entry, field) for field in _MOSS_TAGS}
        thoughts, commands, results = (said[field] or "None" for field in ("Inner Thoughts", "Commands", "Tool Responses"))
        turns += [Turn("user", said["Human"]), Turn("assistant", thoughts), Turn("assistant", commands)]
        turns += [Turn("tool", results, train=False), Turn("assistant", said["MOSS"])]
    return [tuple(turns)]


def _meta_instruction(row: Row) -> list[Turn]:
    """The system turn. Neither it nor results of tools are learnt under ``train_on: all``, as in MOSS's own trainer."""
    return [replace(turn, train=False) for turn in _system(row, "meta_instruction")]


def _moss_turns(row: Row) -> list[Row]:
    """The entries of ``chat`` in the order of their numbers."""
    chat = row.get("chat")
    if not isinstance(chat, Mapping):
        raise RowFault("wrong_type", f"{row.called('chat')} is {kind_of(chat)}; it must be an object of turn_1, turn_2, ...")
    named = {key: value for key, value in chat.items() if value is not None}  # Arrow fills absent turns with null
    order = [f"turn_{number}" for number in range(1, len(named) + 1)]
    if set(order) != set(named):
        raise RowFault("missing_field", f"{row.called('chat')} has the keys {sorted(named)}; it must have {', '.join(order)}")
    return [row.inner(named[key], key) for key in order]


def _unmarked(entry: Row, field: str) -> str:
    """A MOSS value without its role tag, the one space or newline after it, its end tag, and the newline after that."""
    text = entry.text(field) if field in ("Human", "MOSS") else entry.optional_text(field)
    tag, stop = _MOSS_TAGS[field]
    found = re.fullmatch(rf"(?:<\|{tag}\|>:[ \n]?)?(.*?)(?:<{stop}>\n?)?", text, re.DOTALL)
    return found[1] if found else text


def _checked(turns: Turns, *, thoughts: bool) -> Turns:
    """The rules that every conversation keeps, whatever its format. ``thoughts``: two answers in a row are thoughts and commands."""
    if not turns:
        raise RowFault("empty_conversation", "there are no turns")
    roles = [turn.role for turn in turns]
    if "assistant" not in roles:
        raise RowFault("no_assistant_turn", f"there is no answer to learn; the roles are {', '.join(roles)}")
    if roles.count("system") > 1:
        raise RowFault("two_systems", "there are two system messages; keep one, at the start")
    before = ""
    for number, turn in enumerate(turns, 1):
        if turn.role not in _FOLLOWS[before] and not (thoughts and turn.role == before == "assistant"):
            allowed = " or ".join(sorted(_FOLLOWS[before] - {"input"}))
            raise RowFault("role_order", f"turn {number} ({turn.role}) comes after {before or 'the start'}; {allowed} must")
        _check_text(turn, number)
        before = turn.role
    if before != "assistant":
        raise RowFault("trailing_user", f"the last turn ({before}) has no answer; remove it or add one")
    return turns


def _check_text(turn: Turn, number: int) -> None:
    text = turn.content
    if turn.role in ("assistant", "user") and not text.strip():
        reason = "empty_answer" if turn.role == "assistant" else "empty_prompt"
        raise RowFault(reason, f"turn {number} ({turn.role}) is empty or white space only; fill it or remove the row")
    if "\0" in text:
        raise RowFault("nul_character", f"turn {number} ({turn.role}) holds a NUL character; remove it")
    if not text.isascii() and (found := _SURROGATE.search(text)):
        raise RowFault("unpaired_surrogate", f"turn {number} ({turn.role}) holds half a character, U+{ord(found[0]):04X}")


def own_id(row: Row) -> str | None:
    """The row's id as text; None if it has none, or one that cannot be written to a report."""
    own = row.get("id", "conversation_id")
    if isinstance(own, int) and not isinstance(own, bool):
        return str(own)
    return own if isinstance(own, str) and own and not _SURROGATE.search(own) else None


@dataclass(frozen=True, slots=True)
class Format:
    """A row shape; calling it turns one row into its conversations.

    Attributes:
        read: the function of the shape; raises :class:`RowFault`.
        fits: whether a row has the keys of the shape, for ``auto``.
        fields: the names that ``columns`` may map, besides ``id``.
        thoughts: whether it has answers in two parts, one behind the other.
    """

    read: Callable[[Row], list[Turns]]
    fits: Callable[[Row], bool]
    fields: tuple[str, ...]
    thoughts: bool = False

    def __call__(self, value: Any, columns: Mapping[str, str]) -> ParsedRow:
        """Read one decoded row, with ``columns`` from field to the user's name for it; raises :class:`RowFault`."""
        row = Row(value, columns)
        return ParsedRow(own_id(row), tuple(_checked(turns, thoughts=self.thoughts) for turns in self.read(row)))


def _has(**types: type | tuple[type, ...]) -> Callable[[Row], bool]:
    return lambda row: all(isinstance(row.get(field), kind) for field, kind in types.items())


def _talks(row: Row, role: str, field: str) -> bool:
    """Whether a field is a list of objects whose first names its speaker under ``role``."""
    turns = row.get(field)
    return isinstance(turns, list) and isinstance((turns or [None])[0], Mapping) and row.name(role) in turns[0]


_TURN_FIELDS = ("role", "content", "train", "weight")
FORMATS: dict[str, Format] = {
    "alpaca": Format(_alpaca, _has(instruction=str, output=str), ("instruction", "input", "output", "system", "history")),
    "sharegpt": Format(
        _sharegpt,
        lambda row: isinstance(row.get("conversations", "items"), list) or _talks(row, "from", "messages"),
        ("conversations", "items", "messages", "system", "from", "value", *_TURN_FIELDS),
    ),
    "messages": Format(_messages, lambda row: _talks(row, "role", "messages"), ("messages", *_TURN_FIELDS)),
    "prompt_completion": Format(
        _prompt_completion, _has(prompt=(str, list), completion=(str, list)), ("prompt", "completion", *_TURN_FIELDS)
    ),
    "parallel_lists": Format(_parallel_lists, _has(input=list, output=list), ("input", "output", "system")),
    "history": Format(_history, _has(prompt=str, response=str), ("prompt", "response", "history", "system")),
    "moss": Format(_moss, _has(chat=dict), ("chat", "meta_instruction", *_MOSS_TAGS)),
    # never told by itself: its rows are those of moss
    "moss_plugin": Format(_moss_plugin, lambda row: False, ("chat", "meta_instruction", *_MOSS_TAGS), thoughts=True),
    "src_tgt": Format(_src_tgt, _has(src=str, tgt=str), ("src", "tgt")),
    "seed_tasks": Format(_seed_tasks, _has(instruction=str, instances=list), ("instruction", "instances", "input", "output")),
}
"""Every row shape by the name that a recipe gives it."""


def detect_format(value: Any, columns: Mapping[str, str] | None = None) -> str | None:
    """Tell the format of a row by its keys and their types; None if no format fits.

    Raises:
        DataError: several formats fit (they are named).
    """
    if not isinstance(value, Mapping):
        return None
    names = [name for name, known in FORMATS.items() if known.fits(Row(value, columns or {}))]
    if len(names) > 1:
        raise DataError(f"the keys {', '.join(value)} fit several formats ({', '.join(names)}); set 'format' to one of them")
    return names[0] if names else None


def check_columns(name: str, columns: Mapping[str, str]) -> None:
    """Refuse a column mapping that the format would pass over.

    Raises:
        DataError: a field that the format does not have.
    """
    known = (*FORMATS[name].fields, "id")
    if unknown := [field for field in columns if field not in known]:
        raise DataError(f"'columns' maps {unknown[0]!r}, but the fields of format {name} are {', '.join(known)}")
