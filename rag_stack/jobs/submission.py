"""Index builds as jobs of a Ray cluster, through Ray's Jobs API: the spec goes there, and the same command runs it."""

import os
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from rag_stack.errors import AuthenticationError, InvalidRequestError, NotFoundError, UnavailableError
from rag_stack.index.spec import IndexSpec

DEFAULT_ADDRESS: Final = "http://127.0.0.1:8265"
SPEC_FILE: Final = "spec.yaml"
_INDEX: Final = "rag_stack_index"
_POLL_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Job:
    """A build on a cluster. `status` is Ray's: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED; times in seconds."""

    job_id: str
    index: str
    status: str
    message: str
    started_at: float | None
    ended_at: float | None

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


class JobClient:
    """The jobs of one cluster. Every call is blocking and raises UnavailableError when it does not answer."""

    def __init__(self, address: str = DEFAULT_ADDRESS) -> None:
        """By the address of the cluster's dashboard, such as http://head:8265."""
        from ray.job_submission import JobSubmissionClient

        self.address = address
        with self._translated():
            self._client: JobSubmissionClient = JobSubmissionClient(address, headers=_headers())

    def submit(self, spec: IndexSpec, *, options: Sequence[str] = ()) -> str:
        """Start a build of a spec, with options of `rag-stack index build`; the job's id.

        The spec is sent; documents are not. Raises InvalidRequestError for a source that is a relative folder.
        """
        if not spec.source.remote and not Path(spec.source.folder).is_absolute():
            raise InvalidRequestError(
                f"the source folder {spec.source.folder!r} is relative, and the cluster reads it: name a folder that "
                "is mounted on its nodes, or s3://bucket/prefix"
            )
        command = ["rag-stack", "index", "build", SPEC_FILE, *options]
        with tempfile.TemporaryDirectory(prefix="rag-stack-job-") as folder:
            text = yaml.safe_dump(spec.model_dump(mode="json", exclude_defaults=True), allow_unicode=True)
            (Path(folder) / SPEC_FILE).write_text(text, encoding="utf-8")
            with self._translated():
                job_id: str = self._client.submit_job(
                    entrypoint=shlex.join(command),
                    runtime_env={"working_dir": folder},
                    metadata={_INDEX: spec.name},
                )
        return job_id

    def job(self, job_id: str) -> Job:
        """One job. Raises NotFoundError."""
        with self._translated(job_id):
            return _job(self._client.get_job_info(job_id))

    def jobs(self) -> list[Job]:
        """All builds that the cluster remembers, latest first."""
        with self._translated():
            found = [_job(each) for each in self._client.list_jobs() if _INDEX in (each.metadata or {})]
        return sorted(found, key=lambda job: job.started_at or 0.0, reverse=True)

    def logs(self, job_id: str) -> str:
        """What a job has printed so far. Raises NotFoundError."""
        with self._translated(job_id):
            return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str) -> Iterator[str]:
        """What a job prints, piece by piece, until it has ended. Raises NotFoundError."""
        seen = 0
        while True:
            # First the state: what is printed before it ends is in what is read after.
            ended = self.job(job_id).ended
            text = self.logs(job_id)
            if len(text) > seen:
                yield text[seen:]
                seen = len(text)
            if ended:
                return
            time.sleep(_POLL_S)

    def cancel(self, job_id: str) -> bool:
        """Ask a job to end; whether it ran. What it has embedded stays, nothing is half published."""
        with self._translated(job_id):
            return bool(self._client.stop_job(job_id))

    @contextmanager
    def _translated(self, job_id: str | None = None) -> Iterator[None]:
        from ray.exceptions import AuthenticationError as RefusedError

        try:
            yield
        except RefusedError as exc:
            raise AuthenticationError(
                f"the Ray cluster at {self.address} asks for a token: {' '.join(str(exc).split())}; set RAY_AUTH_TOKEN "
                "or RAY_AUTH_TOKEN_PATH"
            ) from exc
        except (RuntimeError, OSError) as exc:
            if job_id is not None and "does not exist" in str(exc):
                raise NotFoundError(f"no job {job_id!r} on {self.address}; see `rag-stack job list`") from exc
            raise UnavailableError(
                f"the Ray cluster at {self.address} does not take jobs: {exc}; give the address of its dashboard with "
                "--address or RAY_API_SERVER_ADDRESS, such as http://HEAD:8265"
            ) from exc


def _headers() -> dict[str, str]:
    """The cluster's token, from where Ray looks for it; Ray itself sends it only where RAY_AUTH_MODE says so."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if not token:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        with suppress(OSError):
            token = path.read_text(encoding="utf-8")
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}


def _job(details: Any) -> Job:  # noqa: ANN401 - Ray's JobDetails
    return Job(
        job_id=details.submission_id or details.job_id or "",
        index=(details.metadata or {}).get(_INDEX, ""),
        status=str(details.status),
        message=details.message or "",
        started_at=None if details.start_time is None else details.start_time / 1e3,
        ended_at=None if not details.end_time else details.end_time / 1e3,
    )
