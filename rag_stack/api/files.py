"""/v1/files: bytes that are uploaded once and then put into stores."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive

from rag_stack.api.http import ClientDisconnectedError, header
from rag_stack.api.listing import choice, listing
from rag_stack.errors import InvalidRequestError, PayloadTooLargeError, UnavailableError, UnsupportedMediaTypeError
from rag_stack.protocol import FileObject
from rag_stack.stores.files import Files, UploadedFile

PURPOSES: Final = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")
_MAX_FIELDS: Final = 16
# What stands around the file in a form.
_FORM_BYTES: Final = 64 * 1024
_MAX_NAME_CHARS: Final = 255
_PIECE_BYTES: Final = 1 << 20
_MAX_LISTED: Final = 10_000


@dataclass(frozen=True, slots=True)
class FilesEndpoint:
    """The handlers. `detach` takes a file out of all stores and says whether no search finds it any more."""

    files: Files
    detach: Callable[[str], Awaitable[bool]]
    max_file_bytes: int

    def routes(self) -> list[Route]:
        """What this owns."""
        return [
            Route("/v1/files", self.list_files, methods=["GET"]),
            Route("/v1/files", self.upload, methods=["POST"]),
            Route("/v1/files/{file}", self.get_file, methods=["GET"]),
            Route("/v1/files/{file}", self.delete, methods=["DELETE"]),
            Route("/v1/files/{file}/content", self.content, methods=["GET"]),
        ]

    async def upload(self, request: Request) -> JSONResponse:
        """Keep a file: acknowledged when it is on the object store."""
        async with self._form(request) as form:
            given, purpose = form.get("file"), form.get("purpose")
            if not isinstance(given, UploadFile):
                raise InvalidRequestError("the form has no `file`; send one, with a file name", param="file")
            if purpose not in PURPOSES:
                raise InvalidRequestError(f"`purpose` must be one of {list(PURPOSES)}", param="purpose")
            if any(name.startswith("expires_after") for name in form):
                raise InvalidRequestError(
                    "`expires_after` is not supported: files stay until they are deleted; leave it out",
                    param="expires_after",
                )
            file = await asyncio.to_thread(self._keep, given, str(purpose))
        return _response(file)

    async def list_files(self, request: Request) -> JSONResponse:
        """A page of files, newest first."""
        purpose = choice(request, "purpose", PURPOSES)
        found = await asyncio.to_thread(lambda: self.files.all(purpose=purpose))
        return listing(
            found,
            request,
            id_of=lambda file: file.file_id,
            to_wire=_to_wire,
            default_limit=_MAX_LISTED,
            max_limit=_MAX_LISTED,
        )

    async def get_file(self, request: Request) -> JSONResponse:
        """What is known of a file."""
        return _response(await asyncio.to_thread(self.files.get, _file_id(request)))

    async def content(self, request: Request) -> Response:
        """A file's bytes, as they came."""
        file = await asyncio.to_thread(self.files.get, _file_id(request))
        pieces = await asyncio.to_thread(self._pieces, file.file_id)
        headers = {"content-length": str(file.size_bytes), "content-disposition": "attachment"}
        return StreamingResponse(pieces, media_type="application/octet-stream", headers=headers)

    async def delete(self, request: Request) -> JSONResponse:
        """Remove a file, from all stores first."""
        file = await asyncio.to_thread(self.files.get, _file_id(request))
        if not await self.detach(file.file_id):
            raise UnavailableError(
                f"the file {file.file_id!r} is being taken out of its stores, but not every server has that yet; ask "
                "again",
                retry_after_s=5,
            )
        await asyncio.to_thread(self.files.delete, file.file_id)
        return JSONResponse({"id": file.file_id, "object": "file", "deleted": True})

    @asynccontextmanager
    async def _form(self, request: Request) -> AsyncIterator[FormData]:
        """The form of a request, with its file on this machine's disk where it is large."""
        content_type = header(request.scope, b"content-type").partition(";")[0].strip().lower()
        if content_type != "multipart/form-data":
            raise UnsupportedMediaTypeError(f"expected Content-Type multipart/form-data, got {content_type or 'none'}")
        most = self.max_file_bytes + _FORM_BYTES
        declared = header(request.scope, b"content-length")
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > most):
            raise self._too_large()
        limited = Request(request.scope, _limited(request.receive, most, self._too_large))
        try:
            async with limited.form(max_files=1, max_fields=_MAX_FIELDS) as form:
                yield form
        except HTTPException as exc:
            raise InvalidRequestError(f"the form cannot be read: {exc.detail}") from exc

    def _keep(self, given: UploadFile, purpose: str) -> UploadedFile:
        """Blocking."""
        with NamedTemporaryFile(prefix="rag-stack-upload-") as copy:
            shutil.copyfileobj(given.file, copy, _PIECE_BYTES)
            copy.flush()
            if copy.tell() > self.max_file_bytes:
                raise self._too_large()
            return self.files.add(Path(copy.name), filename=_filename(given.filename), purpose=purpose)

    def _pieces(self, file_id: str) -> Iterator[bytes]:
        stream = self.files.open(file_id)

        def pieces() -> Iterator[bytes]:
            with stream:
                while piece := stream.read(_PIECE_BYTES):
                    yield piece

        return pieces()

    def _too_large(self) -> PayloadTooLargeError:
        return PayloadTooLargeError(
            f"a file has at most {self.max_file_bytes} bytes; split it, or raise `server.max_file_bytes`",
            param="file",
        )


def _limited(receive: Receive, most: int, error: Callable[[], PayloadTooLargeError]) -> Receive:
    """`receive`, until there is too much of the body, or the client is gone."""
    taken = 0

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError
        taken += len(message.get("body", b""))
        if taken > most:
            raise error()
        return message

    return limited


def _filename(given: str | None) -> str:
    """The last part of what the client calls the file, without what a terminal or a path could stumble over."""
    name = re.split(r"[/\\]", given or "")[-1]
    return re.sub(r"[\x00-\x1f\x7f]", "", name)[:_MAX_NAME_CHARS].strip() or "file"


def _to_wire(file: UploadedFile) -> FileObject:
    return FileObject(
        id=file.file_id,
        bytes=file.size_bytes,
        created_at=file.created_at,
        filename=file.filename,
        purpose=file.purpose,
    )


def _response(file: UploadedFile) -> JSONResponse:
    return JSONResponse(_to_wire(file).model_dump())


def _file_id(request: Request) -> str:
    return str(request.path_params["file"])
