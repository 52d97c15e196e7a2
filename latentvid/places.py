"""Where files lie: paths of this machine, and URLs (s3://, gs://, hf://, https://, ...). Nothing is opened here.

A URL in a `pathlib.Path` has lost one slash ("s3:/bucket/key"); `place` gives it back. What is shown of a URL (in
messages, logs, records and pages) has no credentials: neither its user and password nor its query, which presigned URLs
carry them in.
"""

from __future__ import annotations

import os
import posixpath
import re
from hashlib import blake2b

_KNOWN = (  # schemes that are known by one slash too
    "s3|s3a|gs|gcs|hf|http|https|memory|az|abfs|abfss|adl|oci|oss|r2|b2|ftp|sftp|ssh|webhdfs|hdfs|github|git|dropbox|"
    "gdrive|box|webdav|smb|file|local"
)
_URL = re.compile(rf"([a-z][a-z0-9+.-]+)://|({_KNOWN}):/(?!/)", re.IGNORECASE)
_HERE = ("file", "local")
MAY_BE_URLS = ("manifest",)  # options of paths, by the last part of their names

_IN_TEXT = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]+://)(?:[^\s/?#'\"<>]*@)?([^\s?'\"<>]*)(\?[^\s'\"<>]*)?")
_NAMED = re.compile(
    r"(?i)((?:secret|token|signature|password|passwd|credential|authorization|access_?key|api_?key|x-amz-\w+|\bsig)\w*"
    r"[\"']?\s*[=:]\s*[\"']?(?:bearer\s+|basic\s+|aws4\S*\s+)?)[^\s\"',;&}\)]+"
)
_SECRET_NAMES = ("SECRET", "TOKEN", "PASSWORD", "ACCESS_KEY", "API_KEY", "CONNECTION_STRING", "ACCOUNT_KEY")
_SHORTEST_SECRET = 8  # letters; shorter values of variables may be words of any message


def is_url(path: str | os.PathLike) -> bool:
    """Whether it lies on another storage than this machine's files. `file://` is no URL here: it names such a file."""
    text = os.fspath(path)
    found = ":/" in text and _URL.match(text)
    return bool(found) and (found[1] or found[2]).lower() not in _HERE


def place(path: str | os.PathLike) -> str:
    """The URL with both its slashes, or the path; of `file:///x` the path /x."""
    text = os.fspath(path)
    found = _URL.match(text) if ":/" in text else None
    if found is None:
        return text
    scheme, rest = (found[1] or found[2]).lower(), text[found.end() :]
    if scheme in _HERE:
        return "/" + rest.lstrip("/")
    return f"{scheme}://{rest}"


def absolute(path: str | os.PathLike) -> str:
    """A whole path, or the URL as `place` has it."""
    text = place(path)
    return text if is_url(text) else os.path.abspath(text)


def parent(path: str | os.PathLike) -> str:
    """The folder of a file; a URL's query is not the folder's."""
    text = place(path)
    if not is_url(text):
        return os.path.dirname(text)
    scheme, _, rest = text.partition("://")
    rest = rest.partition("?")[0] if scheme in ("http", "https") else rest
    return f"{scheme}://{posixpath.dirname(rest)}"


def join(folder: str, path: str | os.PathLike) -> str:
    """`path` as it lies in `folder`; a URL or an absolute path is that itself."""
    text = os.fspath(path)
    if ":/" in text and _URL.match(text):
        return place(text)
    if not is_url(folder):
        return os.path.join(folder, text)
    if text.startswith("/"):
        return text
    scheme, _, rest = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(rest, text))}"


def relative(path: str | os.PathLike, folder: str) -> str:
    """A whole path as a table in `folder` names it: relative where both lie on this machine, or in one bucket."""
    text = place(path)
    if is_url(text) and is_url(folder):
        parts = [each.partition("://")[::2] for each in (text, folder)]
        (scheme, rest), (other, base) = parts
        if scheme == other and rest.partition("/")[0] == base.partition("/")[0] and not has_credentials(text):
            return posixpath.relpath(rest, base)
    if is_url(text) or is_url(folder):
        return text
    return os.path.relpath(text, folder).replace(os.sep, "/")


def name_of(path: str | os.PathLike) -> str:
    """The last part, without a URL's query."""
    text = place(path)
    text = text.partition("?")[0] if is_url(text) and text.startswith("http") else text
    return text.rsplit("/", 1)[-1] if is_url(text) else os.path.basename(text)


def has_credentials(path: str | os.PathLike) -> bool:
    """Whether a URL carries a user, a password or a query, which are not to be kept in records."""
    text = place(path)
    return is_url(text) and shown(text) != text


def shown(path: str | os.PathLike) -> str:
    """What may be said of a path anywhere: of a URL no credentials. A query becomes 8 digits of its digest, so that
    two files told apart by it alone still are."""
    text = place(path)
    if "://" not in text or not is_url(text):
        return text
    found = _IN_TEXT.match(text)
    if found is None:
        return text
    query, rest = found[3], text[found.end() :]
    digest = f"?{blake2b(query.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()}" if query else ""
    return f"{found[1]}{found[2]}{digest}{rest}"


def redacted(text: str) -> str:
    """A library's words without the credentials that they may hold: in URLs, after names such as `token=`, and the
    values of environment variables of such names."""
    text = _IN_TEXT.sub(lambda found: found[1] + found[2] + ("?..." if found[3] else ""), text)
    text = _NAMED.sub(r"\1***", text)
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and any(part in name.upper() for part in _SECRET_NAMES):
            text = text.replace(value, "***")
    return text
