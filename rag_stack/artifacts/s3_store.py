"""The object store on S3: fast ranged reads, and writes that happen only if nobody else wrote first.

What is published, and so never changes, is read through pyarrow's client, the fastest of those measured (`python -m
loadtests.fetch` prints the table); it looks at an object's size before it reads, so all else goes through s3fs, whose
reads are one request. Endpoint, region and credentials come from the usual AWS environment for both. Each is opened by
the first call that needs it: a replica whose artifacts are all cached needs neither, and one that fetches by digest is
spared s3fs, whose import and first request take half a second.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from rag_stack.artifacts.chunk import Buffer
from rag_stack.artifacts.object_store import ObjectReader, ObjectStore
from rag_stack.errors import ArtifactError, ArtifactNotFoundError, PromotionConflictError

if TYPE_CHECKING:
    from pyarrow.fs import S3FileSystem as BulkReader
    from s3fs import S3FileSystem

_CONNECT_TIMEOUT_S: Final = 5
# Without a byte for so long, a request counts as failed and is tried again.
_STALL_TIMEOUT_S: Final = 20
_ATTEMPTS: Final = 8
# s3fs holds this many parts of 50 MB and more in memory while it uploads a file.
_PARTS_IN_FLIGHT: Final = 4
_LOST_RACE: Final = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_ABSENT: Final = frozenset({"NoSuchKey", "NotFound", "404"})
# pyarrow's client loses the error in a read's answer and keeps the status; an expired token is a 400.
_REFUSALS: Final = ("denied", "credential", "expired", "invalidaccesskey", "signature", "permission", "http status 40")
_PROBE: Final = ".conditional-write-probe"


class S3Store(ObjectStore):
    """Keys are objects below `s3://bucket/prefix`."""

    def __init__(self, url: str, *, stall_timeout_s: int = _STALL_TIMEOUT_S, attempts: int = _ATTEMPTS) -> None:
        root = url.removeprefix("s3://").strip("/")
        if not root:
            raise ArtifactError(f"{url!r} names no bucket; expected s3://bucket/prefix")
        super().__init__(f"s3://{root}", root, open_fs=lambda: _file_system(stall_timeout_s, attempts))
        self._stall_timeout_s = stall_timeout_s
        self._attempts = attempts

    @cached_property
    def _bulk(self) -> "BulkReader":
        return bulk_reader(self._stall_timeout_s, self._attempts)

    def reader(self, key: str) -> ObjectReader:
        """Open an object for reads of its pieces. Raises ArtifactNotFoundError."""
        with self._reading(key):
            return _S3Reader(self, self._bulk.open_input_file(self._path(key)), key)

    def create(self, key: str, data: bytes) -> bool:
        """Store bytes under a key that must be free; whether it was. A server without conditions overwrites."""
        with self._translated("write", key):
            if self._put(key, data, IfNoneMatch="*"):
                return True
            try:
                # A write whose answer was lost is tried again by the client and then finds itself.
                return self.read_bytes(key) == data
            except ArtifactNotFoundError:
                # Whoever had it has deleted it meanwhile.
                return False

    def compare_and_set(self, key: str, data: bytes, *, expected: bytes | None) -> None:
        """Replace an object only if it still holds `expected` (None: only if there is none).

        Of several writers, in any processes, exactly one wins. Raises PromotionConflictError for the others, and
        ArtifactError when the server ignores conditions.
        """
        with self._translated("write", key):
            self._require_conditions()
            conditions = [{"IfNoneMatch": "*"}]
            if expected is not None:
                # The tag first: if the object moves before it is read, the write on the old tag fails.
                tag = self._tag(key)
                if tag is None or self.read_bytes(key) != expected:
                    raise PromotionConflictError(f"{self._url(key)!r} was moved by another writer")
                # Ceph compares the tag without the quotes that the standard, and every server's answer, puts around it.
                conditions = [{"IfMatch": tag}, {"IfMatch": tag.strip('"')}]
            won = any(self._put(key, data, **condition) for condition in conditions)
            # A write whose answer was lost is tried again by the client and then finds itself.
            if not won and self.read_bytes(key) != data:
                raise PromotionConflictError(f"{self._url(key)!r} was moved by another writer")

    def _require_conditions(self) -> None:
        """A server that ignores If-None-Match would let two writers win; it shows on a key of no meaning."""
        self.put_bytes(_PROBE, b"")
        if self._put(_PROBE, b"", IfNoneMatch="*"):
            raise ArtifactError(
                f"the server behind {self.url!r} ignores conditional writes, so that of two promotions at once both "
                "would seem to win; use one that knows If-Match and If-None-Match, or name every version in the "
                "release and promote nothing"
            )

    def _put_file(self, path: Path, key: str) -> None:
        self._fs.put_file(str(path), self._path(key), max_concurrency=_PARTS_IN_FLIGHT)

    def _put(self, key: str, data: bytes, **condition: str) -> bool:
        bucket, path, _ = self._fs.split_path(self._path(key))
        try:
            self._fs.call_s3("put_object", Bucket=bucket, Key=path, Body=data, **condition)
        except _failures() as exc:
            if _code(exc) in _LOST_RACE:
                return False
            raise
        return True

    def _tag(self, key: str) -> str | None:
        bucket, path, _ = self._fs.split_path(self._path(key))
        try:
            reply: dict[str, Any] = self._fs.call_s3("head_object", Bucket=bucket, Key=path)
        except _failures() as exc:
            if isinstance(exc, FileNotFoundError) or _code(exc) in _ABSENT:
                return None
            raise
        return str(reply["ETag"])

    @contextmanager
    def _translated(self, action: str, key: str) -> Iterator[None]:
        """Failures of both clients, with what to check."""
        try:
            yield
        except _failures() as exc:
            raise ArtifactError(f"cannot {action} {self._url(key)!r}: {exc}; {advice(exc)}") from exc


class _S3Reader:
    def __init__(self, store: S3Store, file: Any, key: str) -> None:  # noqa: ANN401 - pyarrow's stubs lack it
        self._store = store
        self._file = file
        self._key = key
        self.size_bytes = int(file.size())

    def read_at(self, offset: int, size_bytes: int) -> Buffer:
        with self._store._reading(self._key):
            return memoryview(self._file.read_at(size_bytes, offset))

    def close(self) -> None:
        self._file.close()


def _file_system(stall_timeout_s: int, attempts: int) -> "S3FileSystem":
    from s3fs import S3FileSystem

    return S3FileSystem(
        use_listings_cache=False,
        # Another one of this process may have been opened with other credentials, or for another endpoint.
        skip_instance_cache=True,
        config_kwargs={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "read_timeout": stall_timeout_s,
            "retries": {"max_attempts": attempts, "mode": "standard"},
            # Newer checksums that many S3 servers do not know; ours are in the manifest.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        },
    )


def bulk_reader(stall_timeout_s: int = _STALL_TIMEOUT_S, attempts: int = _ATTEMPTS) -> "BulkReader":
    """The client for bulk reads. Raises OSError."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return S3FileSystem(
        endpoint_override=f"{endpoint.netloc}{endpoint.path}".rstrip("/") or None,
        scheme=endpoint.scheme or "https",
        # Another server than Amazon's has no regions to ask for.
        region=region or ("us-east-1" if endpoint.netloc else None),
        connect_timeout=_CONNECT_TIMEOUT_S,
        request_timeout=stall_timeout_s,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=attempts),
    )


def _failures() -> tuple[type[Exception], ...]:
    """What the two clients raise when a request fails."""
    from botocore.exceptions import BotoCoreError, ClientError

    return BotoCoreError, ClientError, OSError


def advice(exc: Exception) -> str:
    """What to check after a request failed."""
    text = f"{type(exc).__name__} {_code(exc)} {exc}".lower()
    if any(word in text for word in _REFUSALS):
        return "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and what they may do"
    return "check AWS_ENDPOINT_URL, AWS_REGION and whether the server answers, then try again"


def _code(exc: BaseException | None) -> str:
    """S3's name of an error; s3fs wraps the client's own exception."""
    from botocore.exceptions import ClientError

    while exc is not None and not isinstance(exc, ClientError):
        exc = exc.__cause__
    return "" if exc is None else str(exc.response.get("Error", {}).get("Code", ""))
