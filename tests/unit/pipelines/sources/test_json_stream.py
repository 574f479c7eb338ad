from __future__ import annotations

import io
import json
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.sources import json_stream
from pipelines.sources.json_stream import BadJson, stream_object

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)


def _collect(text: bytes, **options) -> list[tuple]:
    return list(stream_object(io.BytesIO(text), "x.json", **options))


@settings(max_examples=150, deadline=None)
@given(
    st.fixed_dictionaries({}, optional={"a": st.lists(_values, max_size=5), "b": st.lists(_values), "c": _values}),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from([None, 2]),
)
@example({"c": 0.5, "a": [1e-07, -1.5]}, 1, False, None)  # cut behind "0", "0.", "1e" and "1e-"
def test_elements_equal_those_of_json_load(document: dict, chunk: int, ascii: bool, indent: int | None) -> None:
    text = json.dumps(document, ensure_ascii=ascii, indent=indent).encode("utf-8", "surrogatepass")
    try:
        document = json.loads(text.decode())
    except UnicodeDecodeError:
        return
    old, json_stream._CHUNK = json_stream._CHUNK, chunk
    try:
        found = _collect(text, arrays=["a"], skip=["b"])
    finally:
        json_stream._CHUNK = old
    expected = [("a", v) for v in document.get("a", [])]
    expected += [("c", document["c"])] if "c" in document else []
    found.sort(key=lambda entry: entry[0])
    assert [(k, v) for k, v, _ in found] == expected
    assert [json.loads(t) for _, _, t in found] == [v for _, v in expected]


def test_nan_and_byte_order_mark_are_read() -> None:
    ((_, value, text),) = _collect(b'\xef\xbb\xbf{"a": [NaN]}', arrays=["a"])
    assert math.isnan(value) and text == "NaN"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b'{"a"',
        b'{"a": [1, 2',
        b'{"a": [1 2]}',
        b'{"a": tru}',
        b'{"a": [{"b": 1]}',
        b"{1: 2}",
        b"\xff\xfe{",
        b'{"a": ' + b"[" * 200_000,
    ],
)
def test_what_is_not_a_json_object_is_refused_by_name(text: bytes) -> None:
    with pytest.raises(BadJson, match=r"x\.json"):
        _collect(text, arrays=["a"])


def test_malformed_text_is_noticed_before_the_whole_file_is_read() -> None:
    class Counting(io.BytesIO):
        read_so_far = 0

        def read(self, size: int | None = -1) -> bytes:
            content = super().read(size)
            self.read_so_far += len(content)
            return content

    stream = Counting(b'{"a": [{"b": x}' + b"1" * (20 << 20))
    with pytest.raises(BadJson):
        list(stream_object(stream, "x.json", arrays=["a"]))
    assert stream.read_so_far <= 2 << 20
