"""The repository uses the words of docs/glossary.md, and none of those that they replaced."""

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_THIS_FILE = "tests/architecture/test_glossary.py"
_SUFFIXES = {".py", ".md", ".proto", ".sh", ".toml", ".ini", ".yaml", ""}
_EXCLUDED = re.compile(rf"clients/python/tallystick/\w+/v1/|third_party/|{re.escape(_THIS_FILE)}")


class Scope(Enum):
    """The texts in which a rule applies. The names of other files than Python count as prose."""

    NAMES = "identifiers of Python"
    PROSE = "comments, strings, SQL and documents"
    ALL = "all texts"


@dataclass(frozen=True)
class Rule:
    """A forbidden pattern, in lower case. Its spaces also match an underscore, a change of case and
    a line break. `^` and `$` are the ends of an identifier.
    """

    pattern: str
    replacement: str
    scope: Scope = Scope.ALL


@dataclass(frozen=True)
class Allowed:
    """A phrase that may contain a forbidden word, in the files whose path begins with `path`."""

    path: str
    phrase: str
    reason: str


@dataclass(frozen=True)
class Violation:
    path: str
    line: int
    word: str
    replacement: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: '{self.word}'; use: {self.replacement}"


RULES = [
    # what happens to a resource
    Rule("told", "recorded, reported, booked or published"),
    Rule("tells?|telling", "record, report or publish", Scope.NAMES),
    Rule("tells? (?:of|no|it)", "report, show", Scope.PROSE),
    Rule("says?|said|heard", "outcome_code, received, detail", Scope.NAMES),
    Rule("heard|be it that", "received; whether", Scope.PROSE),
    Rule("happenings?", "trigger"),
    Rule("befalls?|befell", "apply_fault; what happens to"),
    Rule("judge[ds]?|judging", "check, apply_outcome", Scope.NAMES),
    Rule("refus(?:e|es|ed|ing|als?)", "reject, rejection"),
    Rule("(?:come|comes|came) to rest|at rest", "final; with nothing in flight"),
    Rule("(?:come|comes|came|coming|bring|brings) on", "advance, fail to advance"),
    Rule("(?:go|goes|going|went) on", "continue"),
    Rule("on (?:its|their) way", "in progress, in flight"),
    Rule("(?:come|comes|came|coming) to (?:an|its|their) end|came to", "end, complete"),
    Rule("(?:taken|take|takes|taking|took) up", "claim"),
    Rule("(?:comes?|came|coming) back", "retry; is returned"),
    Rule("settle[ds]?|settling|unsettled", "book, booked; settlement is the provider's payment"),
    Rule("stray", "unmatched"),
    Rule("contradict(?:s|ed|ions?)", "conflicting report", Scope.NAMES),
    Rule("as (?:a )?facts?", "allow_owed"),
    Rule("collecting|collects? payouts", "generate"),
    Rule("demand(?:s|ed|ing)?", "operation, request"),
    Rule("resort", "exhausted action"),
    # who works on it, and when
    Rule("in hand", "in flight, leased"),
    Rule("troubled?|troubles", "failure, retry reason"),
    Rule("held back|(?:left|leaves?) alone", "rejected by the open circuit breaker"),
    Rule("sets? aside", "dead-letter; a hold sets money aside"),
    Rule("sweep(?:s|er|ing)?", "scan, expiry job, scheduled release"),
    Rule("postpone[ds]?|postponing", "reschedule"),
    Rule("duty|duties", "leader lease"),
    Rule("turns?", "version, run, leader lease", Scope.NAMES),
    Rule("lanes?", "worker"),
    Rule("stages?", "batcher, step", Scope.NAMES),
    Rule("^letters$", "dead_letters", Scope.NAMES),
    Rule("looks? again|looked at again|looks? first|looking(?! up)", "lookup, poll"),
    Rule("watched", "polled", Scope.NAMES),
    Rule("take over|takes over|let in|let go", "claim, renew; admit; cancel", Scope.NAMES),
    # parts of the platform
    Rule("doors?", "server"),
    Rule("beside", "with, next to, while"),
    Rule("floors?|rooms?", "layer, service module; threshold; capacity"),
    Rule("peers", "service client", Scope.NAMES),
    Rule("grounds", "eligibility"),
    Rule("funding", "wallet reader"),
    Rule("payable", "payout quote", Scope.NAMES),
    Rule("standing|stands?|stood", "is; current state, snapshot"),
    # words of every day, and old ones
    Rule("mend(?:s|ed|ing)?", "fix"),
    Rule("in vain", "without success"),
    Rule("for good|for ever", "permanently, forever"),
    Rule("surely", "certainly"),
    Rule("whoever|whomever", "whichever process, any caller"),
    Rule("so (?:many|much)(?! as)", "up to N; the limit"),
    Rule("somebody|what people do", "another operator, another caller", Scope.ALL),
    Rule("anew", "again"),
    Rule("his|him|hers?|she", "their, them", Scope.PROSE),
    Rule("a fault of ours", "internal error"),
    # names that do not name the thing
    Rule("most|least|longest", "max_, min_", Scope.NAMES),
    Rule("patience|patient|impatient|hasty", "the policy or the limit that it has", Scope.NAMES),
    Rule("insists?", "call_until_success", Scope.NAMES),
    Rule("wish(?:es)?", "request", Scope.NAMES),
    Rule("chance", "seeded_random", Scope.NAMES),
    Rule("planted|caught|torture", "mutant, killed, chaos", Scope.NAMES),
    Rule("^(?:known|wanted|asked|given|made|ones|shown|own)$", "the thing itself", Scope.NAMES),
    # American spelling
    Rule("honour(?:s|ed)?|behaviours?|colours?|favour|grey|centre", "the American spelling"),
    Rule("(?:normal|minim|serial|initial|author|organ|recogn)is(?:e[ds]?|ing|ation)", "-ize"),
]

ALLOWED = [
    Allowed("", r"connections? (?:[\w]+ )*?refused|refused connections?", "the error of TCP"),
    Allowed("", "(?:worker )?sweep interval", "the name of a setting"),
    Allowed("docs/glossary.md", "set aside", "the definition of a hold"),
    Allowed("tests/", "^given$", "the decorator of Hypothesis"),
    Allowed("benchmarks/seed/source_tables.py", r"floor\(", "the function of SQL"),
    Allowed("", '["`]settled(?: bulk| installment)?["`]', "a type of lines in a report of Adyen"),
    Allowed("benchmarks/reconcile/", "planted", "mismatches that the benchmark makes"),
    Allowed(
        "tests/services/reconciliation/test_planted_breaks.py",
        "planted",
        "mismatches that the benchmark makes",
    ),
    Allowed("", "card funding", "a column of a report of Stripe"),
    Allowed("tests/mutation/KILLED.md", r"door\.py", "a line of a log, as it was recorded"),
    Allowed(
        "CHANGELOG.md",
        "`(?:refused(?: count)?|refuse|postpone|tallystick.events.refused|"
        "event refused|card number refused|stray transfer|"
        "settling (?:failed|refused))`",
        "an old name in the list of renamed ones",
    ),
]


def _pattern(scope: Scope) -> re.Pattern[str]:
    """All rules of a scope. The number of the group that matched is the number of the rule."""
    patterns = [
        f"({rule.pattern})" if rule.scope in (scope, Scope.ALL) else "(?!)()" for rule in RULES
    ]
    joined = "|".join(patterns).replace(" ", r"[\s#/*\"'|-]+")
    return re.compile(rf"(?<![a-z])(?:{joined})(?![a-z])")


_PATTERNS = {scope: _pattern(scope) for scope in (Scope.NAMES, Scope.PROSE)}


def _words(text: str) -> str:
    """Lower case words instead of snake case and camel case; the lines stay the same."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text.replace("_", " ")).lower()


def _texts_of_python(source: str) -> Iterator[tuple[Scope, int, str]]:
    """Each identifier, string and block of comments, with the number of its first line."""
    comment_line, comments = 0, ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comment_line = comment_line or token.start[0]
            comments += token.string + "\n"
        elif token.type != tokenize.NL and comments:
            yield Scope.PROSE, comment_line, comments
            comment_line, comments = 0, ""
        if token.type == tokenize.NAME:
            yield Scope.NAMES, token.start[0], token.string.strip("_")
        elif token.type == tokenize.STRING:
            yield Scope.PROSE, token.start[0], token.string


def _texts(path: str, source: str) -> Iterator[tuple[Scope, int, str]]:
    if path.endswith(".py"):
        yield from _texts_of_python(source)
    else:
        # the names of tests are judged where the tests are
        yield Scope.PROSE, 1, re.sub(r"\btest_\w+", "", source)


def find_violations(path: str, source: str) -> list[Violation]:
    """The forbidden words of a file, in the order of its lines."""
    allowed = [
        re.compile(entry.phrase.replace(" ", r"\s+"))
        for entry in ALLOWED
        if path.startswith(entry.path)
    ]
    violations = []
    for scope, first_line, text in _texts(path, source):
        words = _words(text)
        for phrase in allowed:
            words = phrase.sub(lambda match: "\n" * match[0].count("\n"), words)
        for match in _PATTERNS[scope].finditer(words):
            line = first_line + words.count("\n", 0, match.start())
            replacement = RULES[(match.lastindex or 1) - 1].replacement
            violations.append(Violation(path, line, " ".join(match[0].split()), replacement))
    return violations


def test_everything_uses_the_words_of_the_glossary() -> None:
    """Code, SQL, protos, documents, scripts and tests have none of the words in the rules."""
    files = subprocess.run(
        ["git", "ls-files"], cwd=_ROOT, check=True, capture_output=True, text=True, timeout=60
    )
    violations = [
        str(violation)
        for path in files.stdout.splitlines()
        if Path(path).suffix in _SUFFIXES and not _EXCLUDED.match(path)
        for violation in find_violations(path, (_ROOT / path).read_text())
    ]
    assert not violations, "\n" + "\n".join(violations)


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("a.py", "def _told(order):\n    pass\n", "a.py:1: 'told'"),
        ("a.py", "x = 1\nlongest_rest = x\n", "a.py:2: 'longest'"),
        ("a.py", "# The order as\n# it stands.\n", "a.py:2: 'stands'"),
        ("a.py", 'raise ValueError("It is\\n"\n    "in hand.")\n', "a.py:2: 'in hand'"),
        ("a.py", '"""Does it.\n\nIn\nvain.\n"""\n', "a.py:3: 'in vain'"),
        ("a.proto", "message X {\n  int64 refused_count = 1;\n}\n", "a.proto:2: 'refused'"),
        ("docs/a.md", "It waits for the\nnext sweep.\n", "docs/a.md:2: 'sweep'"),
        ("scripts/a", "# told again\n", "scripts/a:1: 'told'"),
    ],
)
def test_a_forbidden_word_is_found_in_each_kind_of_text(
    path: str, source: str, expected: str
) -> None:
    (violation,) = find_violations(path, source)
    assert str(violation).startswith(f"{expected}; use: ")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("a.py", "known_postings = 1\n"),
        ("a.py", '"the connection was refused"\n'),
        ("docs/a.md", "`test_a_sweep_ends` looks up the operation.\n"),
        ("docs/glossary.md", "held: set aside by a hold\n"),
    ],
)
def test_names_of_tests_and_allowed_phrases_are_no_violations(path: str, source: str) -> None:
    assert find_violations(path, source) == []
