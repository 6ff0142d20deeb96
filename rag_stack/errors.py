"""Every expected failure.

    RagStackError                    500  server_error
      InvalidRequestError            400  the request cannot be understood
        ContextLengthError           400  question and prompt do not fit the model's context
        StoreLimitError              400  as many stores are open as a server opens
      AuthenticationError            401  no key, or an unknown one
      PermissionDeniedError          403  the key is known, but not for this
      NotFoundError                  404  unknown route, model, store or file
      MethodNotAllowedError          405  the route exists, for another method
      ConflictError                  409  others change the same thing again and again, or own it
      PayloadTooLargeError           413  the body is over the limit
      UnsupportedMediaTypeError      415  the body is not JSON
      OverloadedError                429  a bounded queue is full: try again after `retry_after_s`
      UnavailableError               503  nothing can serve yet: try again after `retry_after_s`
        NotReachedError              503  nobody listens where requests are passed on to; nothing of one has been sent
      KubernetesError                503  the cluster's API server refuses a call, or cannot be reached
      EngineError                    502  the engine answered something that is not the OpenAI protocol
        EngineLostError              503  the engine died or hangs: its replica is replaced, try again
      ConfigError                         a release file or index spec is wrong
      ArtifactError                       what is stored is not what was published
        ArtifactNotFoundError             no such artifact, or nothing promoted
        ArtifactCorruptError              a size or digest differs from the manifest
        ArtifactOutdatedError             published by an older rag_stack: publish it again
        ArtifactExistsError               a published version is never changed
        ArtifactBusyError            409  another process publishes or deletes the version
        PromotionConflictError       409  another writer moved the promoted pointer first, or deletes the version
        RollbackError                409  there is nothing to go back to, or it is deleted
      IndexVersionError                   an index version cannot be opened or built
        GateFailedError              409  a gate did not pass: promote by force, or build again
        EmbedderMismatchError             the index was built with another embedder
        IndexTooLargeError                it does not fit in memory beside the one that serves
        DocumentError                     a source document cannot be read (names it)
      IncompatibleReleaseError       409  a release does not fit together, or cannot take over from the one that serves
      DeviceMismatchError                 a replica and its engine's first worker do not have the same GPU
      EngineMissingError                  the server's extras are not installed
      NotMeasuredError                    a plan needs a figure that nothing has measured yet
      ReleaseRefusedError                 a replica does not serve a release: a canary failed, or it is to go

HTTP status and OpenAI error code belong to the class. Messages say what was expected, what came and what to do.
"""

from typing import ClassVar


class RagStackError(Exception):
    """The root of every failure that rag_stack raises on purpose."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequestError(RagStackError):
    """The request cannot be understood; the same request will never succeed."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ContextLengthError(InvalidRequestError):
    """The question and the prompt around it leave no room in the model's context."""

    code = "context_length_exceeded"


class StoreLimitError(InvalidRequestError):
    """As many stores are open as a server opens."""

    code = "store_limit_exceeded"


class AuthenticationError(RagStackError):
    """No API key, or one that is not configured."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class PermissionDeniedError(RagStackError):
    """The caller may not do this, whoever it is."""

    status = 403
    type = "permission_error"
    code = "permission_denied"


class NotFoundError(RagStackError):
    """An unknown route, model, store or file."""

    status = 404
    type = "not_found_error"
    code = "not_found"


class MethodNotAllowedError(RagStackError):
    """The route exists, for another method."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class ConflictError(RagStackError):
    """Others change the same thing at the same time, and were faster each time; or it is theirs to change."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class PayloadTooLargeError(RagStackError):
    """The body is over the configured limit."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class UnsupportedMediaTypeError(RagStackError):
    """The body is not what the route takes."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class OverloadedError(RagStackError):
    """A bounded queue is full."""

    status = 429
    type = "rate_limit_error"
    code = "overloaded"


class UnavailableError(RagStackError):
    """Nothing can serve this request yet."""

    status = 503
    type = "server_error"
    code = "unavailable"


class NotReachedError(UnavailableError):
    """Nobody listens where requests are passed on to: nothing of this one has been sent, so it can be sent again."""


class KubernetesError(RagStackError):
    """The cluster's API server refuses a call with the HTTP status `answer`, or cannot be reached (0)."""

    status = 503
    code = "cluster_error"

    def __init__(self, message: str, *, answer: int) -> None:
        super().__init__(message, retry_after_s=5)
        self.answer = answer


class EngineError(RagStackError):
    """The engine answered something that is not the OpenAI protocol."""

    status = 502
    code = "engine_error"


class EngineLostError(EngineError):
    """The engine died, or has work and gives no tokens; its replica is replaced. Another try may reach another one."""

    status = 503
    code = "engine_lost"


class ConfigError(RagStackError):
    """A release file or an index spec is wrong."""

    code = "config_error"


class MemoryBudgetError(ConfigError):
    """What a replica holds does not fit in the memory that it has; the message has the sum, line by line."""

    code = "memory_budget"


class ArtifactError(RagStackError):
    """What is stored is not what was published."""

    code = "artifact_error"


class ArtifactNotFoundError(ArtifactError):
    """No such artifact, or nothing promoted under that name."""

    code = "artifact_not_found"


class ArtifactCorruptError(ArtifactError):
    """A size or digest differs from the manifest."""

    code = "artifact_corrupt"


class ArtifactOutdatedError(ArtifactError):
    """Published by an older rag_stack, in a form that is no longer read: publish it again."""

    code = "artifact_outdated"


class ArtifactExistsError(ArtifactError):
    """A published version is never changed."""

    code = "artifact_exists"


class ArtifactBusyError(ArtifactError):
    """Another process publishes or deletes this version now."""

    status = 409
    type = "conflict_error"
    code = "conflict"


class PromotionConflictError(ArtifactError):
    """Another writer moved the promoted pointer first, or is deleting the version."""

    status = 409
    type = "conflict_error"
    code = "conflict"


class RollbackError(ArtifactError):
    """There is nothing to go back to, or it is deleted."""

    status = 409
    type = "conflict_error"
    code = "no_way_back"


class IndexVersionError(RagStackError):
    """An index version cannot be opened or built."""

    code = "index_error"


class GateFailedError(IndexVersionError):
    """An index version did not pass a gate, and is not promoted unless by force."""

    status = 409
    type = "conflict_error"
    code = "gate_failed"


class EmbedderMismatchError(IndexVersionError):
    """The index was built with another embedder than the one that would query it."""

    code = "embedder_mismatch"


class IndexTooLargeError(IndexVersionError):
    """An index version does not fit in memory beside the one that serves."""


class DocumentError(IndexVersionError):
    """A source document cannot be read; the message names it."""

    code = "document_error"


class DeviceMismatchError(RagStackError):
    """An index would lie on another GPU than the one whose memory the engine leaves room on."""

    code = "device_mismatch"


class IncompatibleReleaseError(RagStackError):
    """What a release pins does not fit together, or one deployment cannot go from the old to the new one."""

    status = 409
    type = "conflict_error"
    code = "incompatible_release"


class EngineMissingError(RagStackError):
    """The server's extras are not installed."""

    code = "engine_missing"


class ReleaseRefusedError(RagStackError):
    """A replica does not serve a release: a canary question was not answered as expected, or the release goes."""

    code = "release_refused"


class NotMeasuredError(RagStackError):
    """A plan needs a figure that nothing has measured yet, and that it does not make up."""
