"""What the libraries behind fsspec raise, told apart: a missing object, a storage that is busy, one that is no use.

Each has classes of its own (botocore, aiohttp, gcsfs, huggingface_hub); all carry a status of HTTP, a code of the
storage, or a class of Python's that says the same.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from typing import Any

from ...errors import StorageError, UserError, brief
from ...places import redacted, shown

logger = logging.getLogger(__name__)

MISSING = (404, 410)
REFUSED = (401, 403)
BUSY = (408, 425, 429)  # and from 500 on
_REFUSES = """AccessDenied AllAccessDisabled InvalidAccessKeyId SignatureDoesNotMatch ExpiredToken InvalidToken
TokenRefreshRequired AccountProblem NotSignedUp InvalidSecurity NoCredentialsError PartialCredentialsError
CredentialRetrievalError TokenRetrievalError DefaultCredentialsError RefreshError UnauthorizedSSOTokenError
SSOTokenLoadError GatedRepoError LocalTokenNotFoundError ProfileNotFound ClientAuthenticationError"""
_BUSY = """SlowDown RequestTimeout RequestTimeTooSkewed ServiceUnavailable InternalError Throttling ThrottlingException
RequestLimitExceeded BandwidthLimitExceeded OperationAborted rateLimitExceeded userRateLimitExceeded"""
_GONE = """NoSuchBucket InvalidBucketName PermanentRedirect RepositoryNotFoundError RevisionNotFoundError
ParamValidationError InvalidRegionError"""
# codes of storages, and names of their libraries' exceptions
_REFUSES, _BUSY, _GONE = (frozenset(words.split()) for words in (_REFUSES, _BUSY, _GONE))
_DRIVERS = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp",
    "hf": "huggingface_hub", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs",
}  # fmt: skip
_SETTINGS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, and AWS_ENDPOINT_URL where it is not Amazon's",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "HF_TOKEN",
}
_AGAIN = "then start again: it goes on where it was, and no clip was left out for it"


def no_driver(url: str, error: Exception) -> UserError:
    """What to say where fsspec has nothing for the URL's scheme."""
    scheme = url.partition("://")[0]
    if (driver := _DRIVERS.get(scheme)) is not None and isinstance(error, ImportError):
        extra = " (or `pip install latentvid[storage]`)" if driver in ("s3fs", "aiohttp") else ""
        return UserError(f"{shown(url)}: {scheme}:// needs the package {driver}: `pip install {driver}`{extra}")
    return UserError(f"{shown(url)}: {scheme}:// is no storage that can be read here ({_said(error)}); correct the URL")


def translated(url: str, error: BaseException, root_is_there: Callable[[], bool]) -> Exception:
    """FileNotFoundError of an object that is not there; StorageError of a storage that may come back, or, with a `fix`,
    of one that will not by itself; an error of ours as it is."""
    if isinstance(error, UserError):
        return error
    status, code, names = _facts(error)
    words = names | {code}
    said = _said(error) if status is None and not code else " ".join(str(part) for part in (status, code) if part)
    if words & _GONE:
        return gone(url, f"is not there ({said})")
    busy = bool(words & _BUSY) or status in BUSY or (status is not None and status >= 500)
    refused = isinstance(error, PermissionError) or status in REFUSED
    if not busy and (refused or words & _REFUSES):
        return gone(url, f"refuses this user ({said})")
    if not busy and (isinstance(error, FileNotFoundError | IsADirectoryError) or status in MISSING):
        if not root_is_there():
            return gone(url, "is not there")
        return FileNotFoundError(errno.ENOENT, "No such object", shown(url))
    if status is not None and 300 <= status < 500 and not busy:
        return gone(url, f"does not take the request ({said})")
    return StorageError(url, said, None)


def gone(url: str, why: str) -> StorageError:
    """Of a bucket (repository, host) that no waiting brings back."""
    scheme = url.partition("://")[0]
    by = _SETTINGS.get({"s3a": "s3", "gcs": "gs"}.get(scheme, scheme))
    by = f" ({by})" if by else ""
    root = root_of(url)
    return StorageError(url, f"{root} {why}", None, f": correct the URL, or set its credentials{by}, {_AGAIN}")


def root_of(url: str) -> str:
    """The bucket, container or host; of hf:// the repository. As it may be shown."""
    scheme, _, rest = shown(url).partition("://")
    parts = rest.split("/")
    if scheme == "hf":
        count = 3 if parts[0] in ("datasets", "spaces", "buckets") else 2
        return f"{scheme}://{'/'.join(parts[:count])}"
    return f"{scheme}://{parts[0]}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _facts(error: BaseException) -> tuple[int | None, str | None, set[str]]:
    """(status of HTTP, the storage's code, names of the classes) as far as they are said."""
    status: int | None = None
    code: str | None = None
    names: set[str] = set()
    for each in _chain(error):
        names |= {cls.__name__ for cls in type(each).__mro__}
        response: Any = getattr(each, "response", None)
        if isinstance(response, dict):  # botocore's
            found = response.get("Error", {}).get("Code")
            number = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = code or (str(found) if found and not str(found).isdigit() else None)
            status = status or (number if isinstance(number, int) else int(found) if str(found).isdigit() else None)
            continue
        for owner, name in ((each, "status"), (each, "status_code"), (each, "code"), (response, "status_code")):
            number = getattr(owner, name, None)
            if status is None and isinstance(number, int) and 100 <= number < 600:
                status = int(number)
    return status, code, names


def _said(error: BaseException) -> str:
    words = redacted(brief(error, 2000))[:200]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
