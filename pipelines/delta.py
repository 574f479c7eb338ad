"""The one module that knows Delta Lake: create a table, commit files once, open a version, read its metadata.

A commit carries its plan's transaction id and, under the key ``boxmill``, JSON of ours. An error from a commit says
nothing about whether it landed, so every attempt begins by looking for the transaction id.
"""

from __future__ import annotations

import json
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import fsspec
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from pipelines.retries import retrying
from pipelines.storage import Store, redact

METADATA_KEY = "boxmill"
_CALLER_KEY = "boxmill_caller"  # beside the metadata, which are the same whoever commits
# Logs are small and hold the categories of old versions: never let a checkpoint clean them away.
_CONFIGURATION = {"delta.enableExpiredLogCleanup": "false"}
_TOLD = ("path", "size_bytes", "num_records", "min.split", "max.split")  # of a file; of other columns there is more
_CONFLICTS = 1000  # lost races before giving up; each one means that somebody else's commit landed
_FAILURES = 5  # other errors in a row

_FORBIDDEN = ("403 Forbidden", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")

_DAMAGE = ("Json error", "found gap", "Parquet", "No protocol", "Invalid table", "UTF-8", "MissingMetadata")


class TableNotFound(ValueError):
    """No Delta table there."""


class DamagedLog(ValueError):
    """The table's log cannot be read."""


class VersionNotFound(ValueError):
    """The table has no such version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFile:
    """A data file: path relative to the table, bytes, rows, and the split of all rows; None: several, or not known."""

    path: str
    size: int
    rows: int
    split: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A table at one version.

    Attributes:
        table: the folder of the table.
        version: Delta's version number.
        files: the data files, sorted by path.
        metadata: of the newest commit of ours at or before this version; empty where there is none.
    """

    table: Store
    version: int
    files: tuple[TableFile, ...]
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a commit does: files that come, files that go, and its JSON."""

    add: tuple[TableFile, ...] = ()
    remove: tuple[TableFile, ...] = ()
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One commit of ours: version, milliseconds since 1970, metadata, and which call made it."""

    version: int
    timestamp: int
    metadata: Mapping[str, Any]
    caller: str | None = None


def exists(table: Store) -> bool:
    return retrying(lambda: DeltaTable.is_deltatable(_uri(table), storage_options=_storage_options(table)))


def open_snapshot(table: Store, version: int | None = None) -> Snapshot:
    """The newest version, or the one asked for.

    Raises:
        TableNotFound: no table.
        VersionNotFound: no such version.
    """
    delta = _open(table)
    newest = delta.version()
    if version is not None and version != newest:
        if not 0 <= version <= newest:
            raise VersionNotFound(f"{redact(table.uri)} has versions 1 to {newest}, not {version}")
        delta.load_as_version(version)
    return _snapshot(table, delta)


def commit_once(
    table: Store,
    files: Sequence[TableFile],
    *,
    schema: pa.Schema,
    transaction_id: str,
    metadata: Callable[[Snapshot], Mapping[str, Any]],
) -> tuple[int, bool]:
    """Add files in one commit, unless a commit with this transaction id is there already.

    Args:
        table: the folder of the table; created where there is none.
        files: data files that exist in it.
        schema: of the files.
        transaction_id: of the plan; of many callers with the same id exactly one commits.
        metadata: makes the commit's JSON from the version that it builds on. Called again after each lost race, so
            that sums over all commits stay right; what it raises refuses the commit.
    Returns:
        As ``commit_change``: the version of the commit, and whether another call made it.
    """
    _create(table, schema)
    return commit_change(
        table, lambda before: Change(add=tuple(files), metadata=metadata(before)), transaction_id=transaction_id
    )


def commit_change(table: Store, change: Callable[[Snapshot], Change], *, transaction_id: str) -> tuple[int, bool]:
    """Add and remove files in one commit, unless a commit with this transaction id is there already.

    Args:
        table: the folder of an existing table.
        change: made from the version that it builds on, and made again after each lost race; what it raises refuses
            the commit.
        transaction_id: of many callers with the same id exactly one commits.
    Returns:
        The version of the commit, and whether another call made it. A call that lost the answer to its own commit
        knows it again: it made it.
    """
    conflicts = failures = 0
    caller = uuid.uuid4().hex
    tried = -1
    delta = _open(table)
    began = time.monotonic()
    while True:
        if delta.version() > tried >= 0:  # somebody else was first, that is no failure
            conflicts, failures = conflicts + 1, 0
        if delta.transaction_version(transaction_id) is not None:
            commit = _commit_of(table, transaction_id, delta.version())
            return commit.version, commit.caller != caller
        snapshot = _snapshot(table, delta)
        wanted = change(snapshot)
        values = {**wanted.metadata, "transaction_id": transaction_id}
        try:
            # No retries inside delta-rs: it would rebase the files but not the metadata.
            delta.create_write_transaction(
                [*map(_add_action, wanted.add), *map(_remove_action, wanted.remove)],
                "append",
                delta.schema(),
                commit_properties=CommitProperties(
                    custom_metadata={METADATA_KEY: json.dumps(values, ensure_ascii=False), _CALLER_KEY: caller},
                    max_commit_retries=0,
                    app_transactions=[Transaction(transaction_id, 1)],
                ),
            )
            return snapshot.version + 1, False
        except (DeltaError, OSError):
            # A lost race, or a commit that landed and only its answer was lost: the next round will tell.
            failures += 1
            if failures > _FAILURES or conflicts > _CONFLICTS:
                raise
        tried = snapshot.version
        # An attempt lasts as long as the store needs for it: where many race, those that wait for several of them
        # leave it free for one that wins, and a slow store is not asked the more, the slower it gets.
        attempt = min(max(time.monotonic() - began, 0.02), 1.0)
        time.sleep(random.uniform(0.005, attempt * 2 ** min(conflicts + failures, 4)))
        began = time.monotonic()
        delta = _refreshed(table, delta)


def _refreshed(table: Store, delta: DeltaTable) -> DeltaTable:
    """The table at its newest version; only commits that came since are read."""
    try:
        delta.update_incremental()
    except (DeltaError, OSError):
        return _open(table)  # which says what is wrong
    return delta


def newest_version(table: Store) -> int:
    """Raises TableNotFound."""
    return int(_open(table).version())


def find_commit(table: Store, transaction_id: str) -> int | None:
    """The version that a transaction made, None if it has not.

    Raises:
        TableNotFound: no table.
    """
    delta = _open(table)
    if delta.transaction_version(transaction_id) is None:
        return None
    return _commit_of(table, transaction_id, delta.version()).version


def history(table: Store, version: int | None = None) -> Iterator[Commit]:
    """Our commits up to a version, newest first."""
    newest = _open(table).version() if version is None else version
    for number in range(newest, -1, -1):
        commit = read_commit(table, number)
        if commit is not None:
            yield commit


def all_files(table: Store) -> set[str]:
    """Paths of the data files of every version. The log is never cleaned, so it tells of all of them."""
    found: set[str] = set()
    for version in range(_open(table).version() + 1):
        for line in table.read_bytes(f"_delta_log/{version:020d}.json").splitlines():
            action = json.loads(line)
            if "add" in action:
                found.add(unquote(action["add"]["path"]))
    return found


def _add_action(file: TableFile) -> AddAction:
    stats: dict[str, Any] = {"numRecords": file.rows}
    if file.split is not None:
        stats |= {"minValues": {"split": file.split}, "maxValues": {"split": file.split}}
    return AddAction(
        path=file.path,
        size=file.size,
        partition_values={},
        modification_time=0,  # not a clock's: the same plan gives the same commit
        data_change=True,
        stats=json.dumps(stats),
    )


def _remove_action(file: TableFile) -> RemoveAction:
    return RemoveAction(path=file.path, data_change=True, deletion_timestamp=0, size=file.size, partition_values={})


def _open(table: Store) -> DeltaTable:
    try:
        return retrying(lambda: DeltaTable(_uri(table), storage_options=_storage_options(table)))
    except TableNotFoundError:
        raise TableNotFound(f"no table at {redact(table.uri)}") from None
    except DeltaError as error:
        # A store that failed for a moment comes the same way and must not be called damage.
        if not any(sign in str(error) for sign in _DAMAGE):
            raise
        first = str(error).splitlines()[0][:160]
        raise DamagedLog(f"{redact(table.uri)}/_delta_log is damaged ({first}); restore it from a copy") from None
    except OSError as error:
        # delta-rs has no classes for these; its text quotes the server's error code.
        if "NoSuchBucket" in str(error):
            raise TableNotFound(f"no bucket for {redact(table.uri)}") from None
        if any(code in str(error) for code in _FORBIDDEN):
            raise PermissionError(f"not allowed to read {redact(table.uri)}; check the keys and their rights") from None
        raise


def _create(table: Store, schema: pa.Schema) -> None:
    def create() -> None:
        if exists(table):
            return
        try:
            DeltaTable.create(
                _uri(table),
                schema=Schema.from_arrow(schema),
                mode="ignore",
                configuration=_CONFIGURATION,
                storage_options=_storage_options(table),
                # A retry after a lost answer would create the table once more, as its version 1.
                commit_properties=CommitProperties(max_commit_retries=0),
            )
        except Exception:
            # Another process may have been faster, or only the answer was lost: the table is there then.
            if not exists(table):
                raise

    retrying(create)


def _snapshot(table: Store, delta: DeltaTable) -> Snapshot:
    version = delta.version()
    # Not by pa.table, which imports pandas to find out that this is no data frame of it.
    told = pa.RecordBatchReader.from_stream(delta.get_add_actions(flatten=True)).read_all()
    actions = told.select([name for name in _TOLD if name in told.column_names]).sort_by("path")
    files = tuple(
        TableFile(path=path, size=size, rows=rows or 0, split=first if first == last else None)
        for path, size, rows, first, last in zip(*(_column(actions, name) for name in _TOLD), strict=True)
    )
    newest = next(history(table, version), None)
    return Snapshot(table=table, version=version, files=files, metadata=newest.metadata if newest else {})


def _column(table: pa.Table, name: str) -> list[Any]:
    return table[name].to_pylist() if name in table.column_names else [None] * table.num_rows


def _commit_of(table: Store, transaction_id: str, newest: int) -> Commit:
    for commit in history(table, newest):
        if commit.metadata.get("transaction_id") == transaction_id:
            return commit
    raise ValueError(
        f"{redact(table.uri)} knows transaction {transaction_id} but its log no longer holds the commit; "
        "restore _delta_log from a copy"
    )


def read_commit(table: Store, version: int) -> Commit | None:
    """One commit; None where it is not ours."""
    # DeltaTable.history() of an old version returns the newest commits under wrong numbers (deltalake 1.6.6).
    name = f"_delta_log/{version:020d}.json"
    try:
        lines = table.read_bytes(name).splitlines()
    except FileNotFoundError:
        return None
    for line in lines:
        if b"commitInfo" not in line:
            continue
        try:
            found = json.loads(line).get("commitInfo")
        except ValueError as error:
            raise DamagedLog(f"{redact(table.join(name))} is damaged ({error}); restore it from a copy") from None
        if found and METADATA_KEY in found:
            return Commit(
                version=version,
                timestamp=int(found.get("timestamp", 0)),
                metadata=json.loads(found[METADATA_KEY]),
                caller=found.get(_CALLER_KEY),
            )
    return None


def _uri(table: Store) -> str:
    return table.uri.replace("s3a://", "s3://", 1)


def _storage_options(table: Store) -> dict[str, str] | None:
    """fsspec's options for S3 in delta-rs's words; what the environment says it reads by itself."""
    if table.scheme not in ("s3", "s3a"):
        return None
    options: dict[str, str] = {"aws_conditional_put": "etag"}
    configured: dict[str, Any] = fsspec.config.conf.get("s3", {})
    client: dict[str, Any] = configured.get("client_kwargs", {})
    endpoint = (
        configured.get("endpoint_url")
        or client.get("endpoint_url")
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
    )
    for name, value in (
        ("aws_access_key_id", configured.get("key")),
        ("aws_secret_access_key", configured.get("secret")),
        ("aws_session_token", configured.get("token")),
        ("aws_endpoint_url", endpoint),
        ("aws_region", client.get("region_name") or _region()),
    ):
        if value:
            options[name] = str(value)
    if endpoint and str(endpoint).startswith("http://"):
        options["aws_allow_http"] = "true"
    return options


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
