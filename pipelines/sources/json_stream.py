"""Reading a JSON object too large for memory, element by element.

The standard library's decoder is kept, so numbers and NaN mean what ``json.load`` makes of them. Half a surrogate pair,
which JSON can escape but no text can hold, is written out as ``\\ud800``.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Collection, Iterator
from typing import IO, Any

_CHUNK = 1 << 20
_MAX_ELEMENT = 1 << 28
_SPACE = " \t\n\r"


class BadJson(ValueError):
    """Not the JSON that was expected; the message has the position."""


def stream_object(
    stream: IO[bytes], name: str, *, arrays: Collection[str], skip: Collection[str] = ()
) -> Iterator[tuple[str, Any, str]]:
    """Walk the top level of a JSON object.

    Args:
        stream: UTF-8, with or without a byte order mark.
        name: of the file, for messages.
        arrays: keys whose arrays are handed out element by element.
        skip: keys whose arrays are passed over, element by element.
    Yields:
        (key, value, JSON text of the value): once an element for ``arrays``, once for any other key.
    Raises:
        BadJson: malformed, cut off, not an object, or no array where one must be.
    """
    reader = _Reader(stream, name)
    reader.expect("{", "a JSON object")
    if reader.peek() == "}":
        return
    while True:
        key, _ = reader.value()
        if not isinstance(key, str):
            raise reader.error("a key in quotes")
        reader.expect(":", "':' after a key")
        if key in arrays or key in skip:
            for value, text in reader.elements():
                if key in arrays:
                    yield key, value, text
        else:
            value, text = reader.value()
            yield key, value, text
        if reader.expect(",}", "',' or '}'") == "}":
            return


def stream_array(stream: IO[bytes], name: str) -> Iterator[Any]:
    """The elements of a JSON array, one at a time; see ``stream_object``.

    Raises:
        BadJson: malformed, cut off or not an array.
    """
    for value, _ in _Reader(stream, name).elements():
        yield value


def readable(value: Any) -> Any:
    """A JSON value with every half of a surrogate pair written out: Arrow and files hold only text."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case list():
            return [readable(v) for v in value]
        case dict():
            return {readable(k): readable(v) for k, v in value.items()}
        case _:
            return value


class _Reader:
    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream = stream
        self._name = name
        self._decode_bytes = codecs.getincrementaldecoder("utf-8-sig")()
        self._decode_json = json.JSONDecoder().raw_decode
        self._buffer = ""
        self._position = 0
        self._passed = 0  # characters dropped from the buffer's front
        self._ended = False

    def peek(self) -> str:
        """The next character that is not space, without consuming it."""
        while True:
            while self._position < len(self._buffer) and self._buffer[self._position] in _SPACE:
                self._position += 1
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._fill(_CHUNK):
                raise BadJson(f"{self._name} ends in the middle of the JSON; the file was cut off")

    def expect(self, characters: str, what: str) -> str:
        found = self.peek()
        if found not in characters:
            raise self.error(what)
        self._position += 1
        return found

    def elements(self) -> Iterator[tuple[Any, str]]:
        self.expect("[", "an array")
        if self.peek() == "]":
            self._position += 1
            return
        while True:
            yield self.value()
            if self.expect(",]", "',' or ']'") == "]":
                return

    def value(self) -> tuple[Any, str]:
        self.peek()
        size = _CHUNK
        while True:
            try:
                value, end = self._decode_json(self._buffer, self._position)
                # A number near the end of the buffer may go on in the next chunk: "0." and "1e-" begin as 0 and 1.
                if end + 2 < len(self._buffer) or self._ended:
                    text = self._buffer[self._position : end]
                    self._position = end
                    if "\\ud" in text or "\\uD" in text:  # a surrogate, or half of one
                        value = readable(value)
                        text = json.dumps(value)
                    return value, text
            except RecursionError:
                raise BadJson(f"{self._name} is nested too deeply") from None
            except json.JSONDecodeError as error:
                # Whatever more text could mend is reported at the end of the buffer, or is a string not yet closed.
                final = error.pos < len(self._buffer) - 16 and not error.msg.startswith("Unterminated")
                if final or self._ended or len(self._buffer) - self._position > _MAX_ELEMENT:
                    at = self._passed + error.pos
                    raise BadJson(f"{self._name} is not valid JSON: {error.msg} at character {at}") from None
            self._fill(size)
            size *= 2

    def error(self, what: str) -> BadJson:
        near = self._buffer[self._position : self._position + 20]
        at = self._passed + self._position
        return BadJson(f"{self._name} is not the JSON it should be: expected {what} at character {at}, found {near!r}")

    def _fill(self, size: int) -> bool:
        if self._ended:
            return False
        self._passed += self._position
        content = self._stream.read(size)
        self._ended = not content
        try:
            added = self._decode_bytes.decode(content, final=self._ended)
        except UnicodeDecodeError as error:
            raise BadJson(f"{self._name} is not UTF-8 text: {error.reason}") from None
        self._buffer = self._buffer[self._position :] + added
        self._position = 0
        return not self._ended
