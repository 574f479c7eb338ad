"""Which request gets which fault, and what was done to it. No sockets here."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Fault = Literal["error_503", "stall", "cut", "reset", "flip", "lose_answer"]
FAULTS: tuple[Fault, ...] = get_args(Fault)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A fault for some of the requests.

    Attributes:
        fault:
            ``error_503`` answers 503 SlowDown, the server never sees the request;
            ``stall`` stops for ``seconds`` in the middle of the answer's body, then goes on;
            ``cut`` ends the connection in the middle of the answer's body;
            ``reset`` resets the connection, the server never sees the request;
            ``flip`` turns one bit in the middle of the answer's body;
            ``lose_answer`` lets the server do its work and ends the connection without a word.
        method: regular expression of the whole method; empty for any.
        path: regular expression found anywhere in the path with its query, as sent (percent-encoded).
        skip: so many matching requests pass first.
        count: so many get the fault; 0 for all.
        seconds: of a stall.
        name: for the log, where several rules of one kind must be told apart.
    """

    fault: Fault
    method: str = ""
    path: str = ""
    skip: int = 0
    count: int = 1
    seconds: float = 1.0
    name: str = ""

    def __post_init__(self) -> None:
        if self.fault not in FAULTS:
            raise ValueError(f"fault {self.fault!r} is none of {', '.join(FAULTS)}")
        re.compile(self.method), re.compile(self.path)

    def matches(self, method: str, path: str) -> bool:
        return bool(re.fullmatch(self.method or ".*", method) and re.search(self.path, path))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Rule:
        unknown = set(values) - set(cls.__slots__)
        if unknown:
            raise ValueError(f"a rule has no {', '.join(sorted(unknown))}; it has {', '.join(cls.__slots__)}")
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One request as the proxy saw it.

    Attributes:
        method, path: as sent.
        fault: what was done to it, or None.
        status: what the server answered, also where the client never learned of it; None if it was not asked.
        time: seconds since 1970 when the server had answered, or the fault fell.
        rule: name of the rule that the fault came from.
    """

    method: str
    path: str
    fault: Fault | None
    status: int | None
    time: float = field(default_factory=time.time)
    rule: str = ""

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Script:
    """The rules in force and the log of what came of them. Safe to use from many threads."""

    _rules: list[Rule] = field(default_factory=list)
    _seen: list[int] = field(default_factory=list)
    _log: list[Entry] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def set_rules(self, rules: Iterable[Rule]) -> None:
        """Replace all rules; counting begins anew."""
        with self._lock:
            self._rules = list(rules)
            self._seen = [0] * len(self._rules)

    def choose(self, method: str, path: str) -> Rule | None:
        """The first rule whose turn it is with this request. Every rule that matches counts the request."""
        chosen = None
        with self._lock:
            for i, rule in enumerate(self._rules):
                if not rule.matches(method, path):
                    continue
                number = self._seen[i] - rule.skip
                self._seen[i] += 1
                if chosen is None and number >= 0 and (rule.count == 0 or number < rule.count):
                    chosen = rule
        return chosen

    def record(self, entry: Entry) -> None:
        with self._lock:
            self._log.append(entry)

    @property
    def log(self) -> list[Entry]:
        with self._lock:
            return list(self._log)

    def faults(self) -> list[Entry]:
        """Entries of requests that something was done to."""
        return [entry for entry in self.log if entry.fault is not None]

    def clear(self) -> None:
        """No rules, no log."""
        self.set_rules(())
        with self._lock:
            self._log.clear()
