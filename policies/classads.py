"""What can be told of a ClassAd expression without a job: where it is wrong, what it reads, what it can give.

HTCondor's library says only whether an expression can be parsed; this names the character that offends, functions that
do not exist, and what a decision must not rest on (chance, clocks, the machine, attributes that no text shows).
Invariant: nothing passes here that the library refuses or reads otherwise; `policies.language` asks both.
Sources: the HTCondor manual, "ClassAd Mechanism"; each function was tried with the library (tests do it again).
"""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

MAX_NESTING = 32


class Kind(enum.IntFlag):
    """What an expression may give. UNDEFINED and ERROR are always possible and not noted."""

    NOTHING = 0
    BOOLEAN = 1
    NUMBER = 2
    STRING = 4
    LIST = 8
    TIME = 16
    ANY = 31


KIND_NAMES: Mapping[Kind, str] = MappingProxyType(
    {
        Kind.BOOLEAN: "true or false",
        Kind.NUMBER: "a number",
        Kind.STRING: "a string",
        Kind.LIST: "a list",
        Kind.TIME: "a time",
    }
)


def in_words(kinds: Kind) -> str:
    """What an expression gives, for a message."""
    names = [name for kind, name in KIND_NAMES.items() if kind & kinds]
    return " or ".join(names) if names else "UNDEFINED or ERROR"


class Fault(ValueError):
    """The expression is not accepted. `offset`: of the offending character in the text, from 0."""

    def __init__(self, offset: int, message: str, fix: str) -> None:
        super().__init__(message)
        self.offset = offset
        self.message = message
        self.fix = fix


@dataclass(frozen=True, slots=True)
class Examined:
    kinds: Kind
    references: frozenset[str]
    """Attributes that are read, in lower case; those of the slot as `target.name`."""
    patterns: tuple[tuple[int, str], ...] = ()
    """Regular expressions that are written out: where, and as the quoted string that they are."""


@dataclass(frozen=True, slots=True)
class _Function:
    least: int
    most: int
    gives: Kind


def _functions() -> dict[str, _Function]:
    boolean, number, string, anything = Kind.BOOLEAN, Kind.NUMBER, Kind.STRING, Kind.ANY
    table = {
        "allCompare": (3, 3, boolean),
        "anyCompare": (3, 3, boolean),
        "absTime": (1, 2, Kind.TIME),
        "argsToList": (1, 2, Kind.LIST),
        "avg": (1, 1, number),
        "bool": (1, 1, boolean),
        "ceil": (1, 1, number),
        "ceiling": (1, 1, number),
        "envV1ToV2": (1, 1, string),
        "floor": (1, 1, number),
        "formatTime": (1, 2, string),
        "getDayOfMonth": (1, 1, number),
        "getDayOfWeek": (1, 1, number),
        "getDayOfYear": (1, 1, number),
        "getDays": (1, 1, number),
        "getHours": (1, 1, number),
        "getMinutes": (1, 1, number),
        "getMonth": (1, 1, number),
        "getSeconds": (1, 1, number),
        "getYear": (1, 1, number),
        "identicalMember": (2, 2, boolean),
        "ifThenElse": (3, 3, anything),
        "int": (1, 1, number),
        "interval": (1, 1, string),
        "isAbsTime": (1, 1, boolean),
        "isBoolean": (1, 1, boolean),
        "isClassAd": (1, 1, boolean),
        "isError": (1, 1, boolean),
        "isInteger": (1, 1, boolean),
        "isList": (1, 1, boolean),
        "isReal": (1, 1, boolean),
        "isRelTime": (1, 1, boolean),
        "isString": (1, 1, boolean),
        "isUndefined": (1, 1, boolean),
        "join": (1, 64, string),
        "listToArgs": (1, 2, string),
        "max": (1, 1, number),
        "member": (2, 2, boolean),
        "mergeEnvironment": (1, 64, string),
        "min": (1, 1, number),
        "pow": (2, 2, number),
        "quantize": (2, 2, anything),
        "real": (1, 1, number),
        "regexp": (2, 3, boolean),
        "regexpMember": (2, 3, boolean),
        "regexps": (3, 4, string),
        "relTime": (1, 1, Kind.TIME | number),
        "replace": (3, 4, string),
        "replaceAll": (3, 4, string),
        "round": (1, 1, number),
        "size": (1, 1, number),
        "split": (1, 2, Kind.LIST),
        "splitSlotName": (1, 1, Kind.LIST),
        "splitUserName": (1, 1, Kind.LIST),
        "strcat": (1, 64, string),
        "strcmp": (2, 2, number),
        "stricmp": (2, 2, number),
        "string": (1, 1, string),
        "stringListAvg": (1, 2, number),
        "stringListIMember": (2, 3, boolean),
        "stringListISubsetMatch": (2, 3, boolean),
        "stringListMax": (1, 2, number),
        "stringListMember": (2, 3, boolean),
        "stringListMin": (1, 2, number),
        "stringListSize": (1, 2, number),
        "stringListSubsetMatch": (2, 3, boolean),
        "stringListSum": (1, 2, number),
        "stringListsIntersect": (2, 3, boolean),
        "stringList_regexpMember": (2, 4, boolean),
        "substr": (2, 3, string),
        "sum": (1, 1, number),
        "toLower": (1, 1, string),
        "toUpper": (1, 1, string),
        "unparse": (1, 1, string),
        "versionEQ": (2, 2, boolean),
        "versionGE": (2, 2, boolean),
        "versionGT": (2, 2, boolean),
        "versionLE": (2, 2, boolean),
        "versionLT": (2, 2, boolean),
        "version_in_range": (3, 3, boolean),
        "versioncmp": (2, 2, number),
    }
    return {name: _Function(*row) for name, row in table.items()}


FUNCTIONS: Mapping[str, _Function] = MappingProxyType(_functions())
_BY_LOWER = {name.lower(): name for name in FUNCTIONS}
_SCALAR = Kind.BOOLEAN | Kind.NUMBER | Kind.STRING | Kind.TIME
_LISTED = (Kind.STRING, Kind.STRING)
_WANTED: Mapping[str, tuple[Kind, ...]] = MappingProxyType(
    {
        "member": (_SCALAR, Kind.LIST),
        "identicalMember": (_SCALAR, Kind.LIST),
        "regexp": (Kind.STRING, Kind.STRING),
        "stringListMember": _LISTED,
        "stringListIMember": _LISTED,
        "stringListSubsetMatch": _LISTED,
        "stringListISubsetMatch": _LISTED,
        "stringListsIntersect": _LISTED,
    }
)
"""What arguments must be able to be: with any other the function is an ERROR for every job."""
_FORMS: Mapping[str, str] = MappingProxyType(
    {
        "member": 'member(Name, {"a", "b"})',
        "identicalMember": 'identicalMember(Name, {"a", "b"})',
        "regexp": 'regexp("^pattern$", Name)',
        **{name: f'{name}("a", Name), where Name is a list in a string: "a,b"' for name in _WANTED if "List" in name},
    }
)
_CLOCK = "changes from one evaluation to the next, which a decision must not"
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "random": _CLOCK,
        "time": _CLOCK,
        "currenttime": _CLOCK,
        "daytime": _CLOCK,
        "timezoneoffset": "depends on the machine that decides",
        "userhome": "depends on the machine that decides",
        "usermap": "depends on the machine that decides",
        "eval": "reads attributes that the policy does not show",
        "evalineachcontext": "reads attributes that the policy does not show",
        "countmatches": "reads attributes that the policy does not show",
        "debug": "writes to a log",
        "splittime": "gives a record, which no rule can use",
        "unresolved": "is HTCondor's own",
    }
)
"""Functions of HTCondor that a policy may not use, and why. Names in lower case."""

_SCOPES = ("my", "target")
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+|/\*.*?\*/)
      | (?P<number>(?:[0-9]+\.[0-9]+|\.[0-9]+|[0-9]+)(?:[eE][+-]?[0-9]+)?(?![A-Za-z0-9_.]))
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<quoted>'(?:[^'\\]|\\.)*')
      | (?P<operator>=\?=|=!=|>>>|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%<>!~&|^?:()\[\]{},.])""",
    re.VERBOSE | re.DOTALL,
)
_ZERO = re.compile(r"(?<!\\)(?:\\\\)*\\0+(?![0-7])")
_WORDS = {"and": "&&", "or": "||", "not": "!", "eq": "=?=", "ne": "=!="}
_BINARY: Mapping[str, int] = MappingProxyType(
    {
        "||": 1,
        "&&": 2,
        "|": 3,
        "^": 4,
        "&": 5,
        **dict.fromkeys(("==", "!=", "=?=", "=!=", "is", "isnt"), 6),
        **dict.fromkeys(("<", "<=", ">", ">="), 7),
        **dict.fromkeys(("<<", ">>", ">>>"), 8),
        "+": 9,
        "-": 9,
        **dict.fromkeys("*/%", 10),
    }
)
_LOGICAL, _BITWISE, _COMPARISONS = (1, 2, 6, 7), (3, 4, 5, 8), (6, 7)
_BEFORE = frozenset({"(", ",", "&&", "||", "?", ":"})
_AFTER = frozenset({"", ")", ",", "&&", "||", "?", ":"})
_CONSTANTS = frozenset({"true", "false", "undefined", "error"})


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    offset: int


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _stray(text, at)
        kind = match.lastgroup or ""
        if kind == "name" and match.group().lower() in ("is", "isnt"):
            kind = "operator"
        if kind == "quoted":
            word = match.group()[1:-1]
            message = f"'{word}' in single quotes is the name of an attribute, not a string"
            raise Fault(at, message, f'write "{word}"')
        if kind != "space":
            found.append(_Token(kind, match.group(), at))
        at = match.end()
    found.append(_Token("end", "", len(text)))
    return found


def _stray(text: str, at: int) -> Fault:
    character = text[at]
    if character == '"':
        return Fault(at, 'this " is never closed', 'end the string with "')
    if character == "'":
        return Fault(at, "this ' is never closed", 'a string is written "text"')
    if character == "=":
        return Fault(at, "= is no comparison", "write =?= (exactly this) or == (ignores case)")
    if character.isdigit() or character == ".":
        return Fault(at, "a number is not written like this", "write 10, 1.5 or 1e9, without a unit")
    return Fault(at, f"{character!r} has no meaning here", "strings are written in double quotes")


def _must_be_true_or_false(kinds: Kind, at: _Token, operator: _Token) -> None:
    """Of an operand: a number counts as true or false in ClassAds; a string, a list or a time is an ERROR."""
    if kinds and not kinds & (Kind.BOOLEAN | Kind.NUMBER):
        message = f"{in_words(kinds)} where `{operator.text}` needs true or false, an ERROR that holds jobs"
        raise Fault(at.offset, message, 'write a whole comparison, as in User =?= "a@site" || User =?= "b@site"')


@dataclass(frozen=True, slots=True)
class Comparison:
    """An attribute of the job compared with a value that is written out."""

    name: str
    operator: str
    kind: Kind
    value: str


def comparisons(text: str) -> list[Comparison]:
    """Those of an accepted expression in which each side is one word, whichever stands first."""
    words: list[_Token] = []
    for token in _tokens(text):
        if len(words) > 1 and words[-1].text == "." and token.kind == "name":
            own = words[-2].text.lower() == "my"
            words[-2:] = [replace(token, kind="name" if own else "slot")]
        else:
            words.append(token)
    found: list[Comparison] = []
    for at, token in enumerate(words):
        operator = token.text.lower()
        if token.kind != "operator" or _BINARY.get(operator) not in _COMPARISONS or at == 0:
            continue
        alone = words[at + 2].text in _AFTER and (at < 2 or words[at - 2].text in _BEFORE)
        for name, value in ((words[at - 1], words[at + 1]), (words[at + 1], words[at - 1])):
            kind = {"string": Kind.STRING, "number": Kind.NUMBER}.get(value.kind, Kind.NOTHING)
            if value.text.lower() in ("true", "false"):
                kind = Kind.BOOLEAN
            if alone and kind and name.kind == "name" and name.text.lower() not in _CONSTANTS:
                found.append(Comparison(name.text, operator, kind, value.text))
    return found


def examine(text: str) -> Examined:
    """What the expression gives and reads. Raises Fault."""
    if not text.strip():
        raise Fault(0, "an empty expression", "write a ClassAd expression in quotes")
    parser = _Parser(_tokens(text))
    kinds = parser.expression(0)
    last = parser.token
    if last.kind != "end":
        raise parser.unexpected(last)
    return Examined(kinds, frozenset(parser.references), tuple(parser.patterns))


class _Parser:
    """Recursive descent over the tokens; each method gives what its part of the expression may give."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._position = 0
        self.references: set[str] = set()
        self.patterns: list[tuple[int, str]] = []

    @property
    def token(self) -> _Token:
        return self._tokens[self._position]

    def _take(self) -> _Token:
        token = self.token
        self._position += token.kind != "end"
        return token

    def _accept(self, *operators: str) -> _Token | None:
        token = self.token
        return self._take() if token.kind == "operator" and token.text.lower() in operators else None

    def _close(self, opened: _Token, closing: str) -> None:
        if self._accept(closing) is None:
            if self.token.kind == "end":
                raise Fault(opened.offset, f"this {opened.text} is never closed", f"add the missing {closing}")
            raise self.unexpected(self.token)

    def unexpected(self, token: _Token) -> Fault:
        if token.kind == "end":
            return Fault(token.offset, "the expression ends too early", "write the missing operand")
        before = self._tokens[max(0, self._position - 1)]
        for word in (token, before):
            if word.kind == "name" and word.text.lower() in _WORDS:
                right = _WORDS[word.text.lower()]
                return Fault(word.offset, f"`{word.text}` is no operator of ClassAds", f"write {right}")
        if token.text == ")":
            return Fault(token.offset, "this ) closes nothing", "drop it, or add the ( that is missing")
        return Fault(
            token.offset, f"`{token.text}` does not belong here", "is an operator, a comma or a quote missing?"
        )

    def expression(self, depth: int) -> Kind:
        if depth > MAX_NESTING:
            message = f"nested deeper than {MAX_NESTING} levels"
            raise Fault(self.token.offset, message, "split it into several groups")
        condition = self._binary(1, depth)
        question = self._accept("?")
        if question is None:
            return condition
        if self._accept(":"):
            return condition | self.expression(depth + 1)
        yes = self.expression(depth + 1)
        if self._accept(":") is None:
            raise Fault(question.offset, "this ? has no `:`", "write CONDITION ? VALUE : OTHER")
        return yes | self.expression(depth + 1)

    def _binary(self, lowest: int, depth: int) -> Kind:
        """Operators of rank `lowest` and above, all of which take their left operand first."""
        first = self.token
        left = self._unary(depth)
        while self.token.kind == "operator":
            rank = _BINARY.get(self.token.text.lower(), 0)
            if rank < lowest:
                break
            operator = self._take()
            second = self.token
            right = self._binary(rank + 1, depth)
            if operator.text in ("&&", "||"):
                for operand, at in ((left, first), (right, second)):
                    _must_be_true_or_false(operand, at, operator)
            if rank in _LOGICAL:
                left = Kind.BOOLEAN
            elif rank in _BITWISE:
                left = Kind.NUMBER | Kind.BOOLEAN
            else:
                numeric = Kind.NUMBER if Kind.BOOLEAN & (left | right) else Kind.NOTHING
                left = (left | right) & (Kind.NUMBER | Kind.TIME) | numeric
        return left

    def _unary(self, depth: int) -> Kind:
        operator = self._accept("!", "-", "+", "~")
        if operator is None:
            return self._postfix(depth)
        if depth > MAX_NESTING:
            message = f"nested deeper than {MAX_NESTING} levels"
            raise Fault(operator.offset, message, "split it into several groups")
        operand = self.token
        inner = self._unary(depth + 1)
        if operator.text == "!":
            _must_be_true_or_false(inner, operand, operator)
            return Kind.BOOLEAN
        return inner & (Kind.NUMBER | Kind.TIME | Kind.BOOLEAN)

    def _postfix(self, depth: int) -> Kind:
        kinds = self._primary(depth)
        while (opened := self._accept("[", ".")) is not None:
            if opened.text == ".":
                message = "only MY and TARGET have attributes: those of a job hold plain values"
                raise Fault(opened.offset, message, "write MY.Name or TARGET.Name")
            self.expression(depth + 1)
            self._close(opened, "]")
            kinds = Kind.ANY
        return kinds

    def _primary(self, depth: int) -> Kind:
        token = self._take()
        match token.kind:
            case "number":
                if re.fullmatch(r"0[0-9]+", token.text):
                    raise Fault(token.offset, f"{token.text} has a leading zero", f"write {int(token.text)}")
                return Kind.NUMBER
            case "string":
                if _ZERO.search(token.text):
                    raise Fault(token.offset, "a string cannot hold the character 0", "leave it out")
                while self.token.kind == "string":  # neighbours are one string
                    self._take()
                return Kind.STRING
            case "name":
                return self._name(token, depth)
        if token.text == "(":
            kinds = self.expression(depth + 1)
            self._close(token, ")")
            return kinds
        if token.text == "{":
            self._list(token, "}", depth)
            return Kind.LIST
        if token.text == "[":
            raise Fault(token.offset, "a record has no use in a policy", "a list is written {a, b}")
        raise self._misplaced(token)

    def _misplaced(self, token: _Token) -> Fault:
        """An operand is expected where `token`, taken already, is."""
        if token.kind == "end":
            return self.unexpected(token)
        if token.text == ")":
            return Fault(token.offset, "a value is missing before this )", "write the missing operand")
        return Fault(token.offset, f"a value is missing before `{token.text}`", "write the missing operand")

    def _text_alone_before_end(self) -> bool:
        """Whether what was read last is `, "text")`."""
        last, before = self._tokens[self._position - 2], self._tokens[self._position - 3]
        return last.kind == "string" and before.text == ","

    def _list(self, opened: _Token, closing: str, depth: int) -> list[Kind]:
        if self._accept(closing):
            return []
        items = [self.expression(depth + 1)]
        while self._accept(","):
            items.append(self.expression(depth + 1))
        self._close(opened, closing)
        return items

    def _name(self, token: _Token, depth: int) -> Kind:
        lowered = token.text.lower()
        opened = self._accept("(")
        if opened is not None:
            return self._call(token, opened, depth)
        if lowered in ("true", "false"):
            return Kind.BOOLEAN
        if lowered in ("undefined", "error"):
            return Kind.NOTHING
        if lowered in _SCOPES:
            if self._accept(".") is None:
                fix = f"write {token.text.upper()}.Name"
                raise Fault(token.offset, f"{token.text} stands alone, so nobody sees which attribute it reads", fix)
            attribute = self._take()
            if attribute.kind != "name":
                raise Fault(attribute.offset, f"no attribute after {token.text}.", f"write {token.text}.Name")
            token = attribute
        name = token.text.lower()
        if name == "currenttime":
            raise Fault(token.offset, f"{token.text} {_CLOCK}", "use an attribute that does not change, such as QDate")
        if name in ("parent", "true", "false", "undefined", "error", *_SCOPES):
            raise Fault(token.offset, f"`{token.text}` is a word of the ClassAd language", "use another attribute")
        if token.text.lower() in _WORDS and self.token.kind in ("name", "number", "string"):
            right = _WORDS[token.text.lower()]
            raise Fault(token.offset, f"`{token.text}` is no operator of ClassAds", f"write {right}")
        self.references.add(f"target.{name}" if lowered == "target" else name)
        return Kind.ANY

    def _call(self, token: _Token, opened: _Token, depth: int) -> Kind:
        lowered = token.text.lower()
        if lowered in REFUSED:
            fix = "use attributes that do not change while the job waits, such as QDate"
            if REFUSED[lowered] != _CLOCK:
                fix = "use the attributes themselves"
            raise Fault(token.offset, f"{token.text}() {REFUSED[lowered]}", fix)
        spelt = _BY_LOWER.get(lowered)
        if spelt is None:
            if lowered in _WORDS:
                raise Fault(token.offset, f"`{token.text}` is no operator of ClassAds", f"write {_WORDS[lowered]}")
            close = difflib.get_close_matches(lowered, _BY_LOWER, n=1)
            fix = f"did you mean {_BY_LOWER[close[0]]}()?" if close else "docs/policy.md lists the functions"
            raise Fault(token.offset, f"there is no ClassAd function {token.text}()", fix)
        function = FUNCTIONS[spelt]
        first, second = self.token, self._tokens[min(self._position + 1, len(self._tokens) - 1)]
        if lowered in ("regexp", "regexps", "regexpmember") and first.kind == "string" and second.text == ",":
            self.patterns.append((first.offset, first.text))
        given = self._list(opened, ")", depth)
        if not function.least <= len(given) <= function.most:
            count = f"{function.least}" if function.least == function.most else f"{function.least} to {function.most}"
            message = f"{spelt}() takes {count} argument{'s' if count != '1' else ''}, not {len(given)}"
            raise Fault(token.offset, message, "see the HTCondor manual, ClassAd functions")
        wanted = _WANTED.get(spelt, ())
        for at, (kind, want) in enumerate(zip(given, wanted, strict=False), 1):
            if kind and not kind & want:
                right = "one value" if want is _SCALAR else in_words(want)
                message = f"argument {at} of {spelt}() is {in_words(kind)}, where {right} belongs"
                raise Fault(token.offset, message, f"write {_FORMS[spelt]}")
        if spelt == "regexp" and second.text == "," and first.kind != "string" and self._text_alone_before_end():
            raise Fault(token.offset, "the pattern comes first in regexp()", f"write {_FORMS[spelt]}")
        if spelt == "ifThenElse":
            return given[1] | given[2]
        return function.gives
