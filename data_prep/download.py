"""Fetch files over HTTP and unpack zip archives, safely: what every script of this folder shares."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import ssl
import stat
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from tqdm import tqdm

from medcoarse.inspection import sha256_of

PathLike: TypeAlias = "str | os.PathLike[str]"

USER_AGENT = f"medcoarse-data-prep (Python {sys.version_info.major}.{sys.version_info.minor} urllib)"
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
_RETRY_STATUS = (408, 416, 425, 429)


class DownloadError(RuntimeError):
    """A file could not be fetched, or is not the one expected; the text names the URL and what to do."""


class ArchiveError(RuntimeError):
    """An archive is damaged, or holds something it must not hold."""


# --- fetching ----------------------------------------------------------------------------------------------------


def download(
    url: str,
    path: PathLike,
    sha256: str | None = None,
    *,
    attempts: int = 5,
    backoff_s: float = 1.0,
    timeout_s: float = 60.0,
    max_bytes: int = 1 << 40,
    progress: bool = True,
) -> Path:
    """Fetch a file; go on where an earlier, interrupted call stopped.

    Bytes arrive in ``<path>.part`` and take their final name only when complete and verified. A second small file
    ``<path>.part.json`` keeps what tells whether the file on the server is still the same one (its ETag, date or
    length); if it isn't, or the server ignores ``Range``, the transfer starts again. Proxies are taken from the
    environment (``http_proxy``, ``https_proxy``, ``no_proxy``).

    Args:
        url: an http or https address.
        path: where to put the file. A file there already is kept if no ``sha256`` is given or it matches.
        sha256: expected checksum, or ``None`` to take what comes.
        attempts: tries in a row without a single new byte before giving up.
        backoff_s: pause after the first failure, in seconds; doubled each time, 30 s at most.
        timeout_s: longest silence of the server, in seconds.
        max_bytes: refuse a longer file.
        progress: show a progress bar (in a terminal only).

    Returns:
        ``path``.

    Raises:
        DownloadError: the server refuses, the network stays down, or the file is not the expected one.
    """
    _require_http(url)
    path = Path(path)
    if path.is_file() and sha256 in (None, sha256_of(path)):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    _transfer_with_retries(url, part, attempts, backoff_s, timeout_s, max_bytes, progress)
    _state_file(part).unlink(missing_ok=True)
    if sha256 is not None and (got := sha256_of(part)) != sha256:
        part.unlink()
        raise DownloadError(
            f"{url}: SHA-256 is {got}, expected {sha256}; the file was discarded. Try again, or from another network: "
            "something on the way may have replaced it"
        )
    part.replace(path)
    return path


def _require_http(url: str) -> None:
    if urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{url}: expected an http:// or https:// address")


def _transfer_with_retries(
    url: str, part: Path, attempts: int, backoff_s: float, timeout_s: float, max_bytes: int, progress: bool
) -> None:
    """Transfer until complete; failures count only while no new byte arrives."""
    failures, longest = 0, _size(part)
    while True:
        try:
            _transfer(url, part, timeout_s, max_bytes, progress)
            return
        except _NETWORK_ERRORS as error:
            failures = 1 if _size(part) > longest else failures + 1
            longest = max(longest, _size(part))
            if failures >= attempts or not _is_transient(error):
                raise DownloadError(f"{url}: {_reason(error)}; {_ADVICE}") from error
        time.sleep(min(backoff_s * 2 ** (failures - 1), 30.0))


_ADVICE = "check the address, the network and the proxy settings (http_proxy, https_proxy, no_proxy), then run again"


def _is_transient(error: Exception) -> bool:
    """May another try help?"""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code in _RETRY_STATUS
    return not isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError)


def _reason(error: Exception) -> str:
    """One line about a network error."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    return str(getattr(error, "reason", error)) or type(error).__name__


def _transfer(url: str, part: Path, timeout_s: float, max_bytes: int, progress: bool) -> None:
    """One request; appends to ``part`` if the server goes on where it ends, else writes it anew."""
    state = _resumable(url, part)
    offset = _size(part) if state else 0
    if state and offset == state["length"]:
        return
    try:
        response = urllib.request.build_opener().open(_request(url, offset, state), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # our range lies beyond the file: it has changed, so begin anew
            part.unlink(missing_ok=True)
        raise
    with response:
        offset = _accepted_offset(url, response, part, offset, state)
        length = _full_length(response)
        if length is not None and length > max_bytes:
            raise DownloadError(f"{url}: {length} bytes long, at most {max_bytes} expected; check the address")
        validator = _validator(response)
        _state_file(part).write_text(json.dumps({"url": url, "validator": validator, "length": length}))
        _copy(response, part, offset, length, max_bytes, progress)
    if length is not None and _size(part) != length:
        raise ConnectionError(f"the connection closed after {_size(part)} of {length} bytes")


def _request(url: str, offset: int, state: dict[str, Any]) -> urllib.request.Request:
    """The rest of the file if it is still the same file, or all of it."""
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT, "Accept": "*/*"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        if state["validator"]:
            request.add_header("If-Range", state["validator"])
    return request


def _accepted_offset(url: str, response: Any, part: Path, offset: int, state: dict[str, Any]) -> int:
    """Where the bytes of this response belong: at ``offset`` or, if the server sends everything, at 0."""
    if response.status == 200:
        return 0
    if response.status != 206:
        raise DownloadError(
            f"{url}: the server answered {response.status} {response.reason} without the file, as sites do that "
            "want to see a browser; open the address in one and pass the saved file to this script"
        )
    start, length = _content_range(response)
    known, seen = (state.get("length"), state.get("validator")), (length, _validator(response))
    same_file = all(None in pair or pair[0] == pair[1] for pair in zip(known, seen, strict=True))
    if start != offset or not same_file:
        part.unlink(missing_ok=True)
        raise ConnectionError("the file on the server has changed")
    return offset


def _content_range(response: Any) -> tuple[int, int | None]:
    """Start and full length from ``Content-Range``; (-1, None) where it cannot be read."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    return (int(match[1]), None if match[2] == "*" else int(match[2])) if match else (-1, None)


def _full_length(response: Any) -> int | None:
    """Length of the whole file, if the server says."""
    if response.status == 206:
        return _content_range(response)[1]
    length = response.headers.get("Content-Length")
    return int(length) if length is not None and length.isdigit() else None


def _validator(response: Any) -> str | None:
    """What ``If-Range`` may be given: a strong ETag, else the date of the last change."""
    etag: str | None = response.headers.get("ETag")
    changed: str | None = response.headers.get("Last-Modified")
    return etag if etag and not etag.startswith("W/") else changed


def _copy(response: Any, part: Path, offset: int, length: int | None, max_bytes: int, progress: bool) -> None:
    """Write the body of a response to ``part`` from ``offset`` on."""
    bar = tqdm(
        total=length, initial=offset, unit="B", unit_scale=True, desc=part.stem, disable=None if progress else True
    )
    with bar, part.open("ab" if offset else "wb") as stream:
        while block := response.read(1 << 16):
            stream.write(block)
            bar.update(len(block))
            if stream.tell() > max_bytes:
                raise DownloadError(f"{response.url}: longer than {max_bytes} bytes; check the address")


def _state_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _resumable(url: str, part: Path) -> dict[str, Any]:
    """What is known about the beginning that lies in ``part``; empty if it cannot be continued."""
    try:
        state = json.loads(_state_file(part).read_text())
    except (OSError, ValueError):
        return {}
    known = isinstance(state, dict) and state.get("url") == url and (state.get("validator") or state.get("length"))
    return state if known and _size(part) else {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def read_json(url: str, *, timeout_s: float = 10.0, max_bytes: int = 1 << 20) -> Any:
    """The JSON document at an address, asked for once.

    Args:
        url: an http or https address.
        timeout_s: longest silence of the server, in seconds.
        max_bytes: refuse a longer document.

    Raises:
        DownloadError: no answer, a refusal, or something else than JSON.
    """
    _require_http(url)
    try:
        with urllib.request.build_opener().open(_request(url, 0, {}), timeout=timeout_s) as response:
            content: bytes = response.read(max_bytes + 1)
    except _NETWORK_ERRORS as error:
        raise DownloadError(f"{url}: {_reason(error)}") from error
    if len(content) > max_bytes:
        raise DownloadError(f"{url}: longer than {max_bytes} bytes")
    try:
        return json.loads(content)
    except ValueError as error:
        raise DownloadError(f"{url}: no JSON ({error})") from error


# --- unpacking ---------------------------------------------------------------------------------------------------


def extract_zip(
    archive: PathLike,
    directory: PathLike,
    select: Callable[[str], str | None] = str,
    *,
    max_bytes: int = 4 << 30,
    max_members: int = 200_000,
) -> list[Path]:
    """Unpack the wanted members of a zip archive; nothing is written if any member is hostile.

    Args:
        archive: the zip file.
        directory: where to unpack; made if needed.
        select: member name -> name below ``directory``, or ``None`` to leave the member out.
        max_bytes: upper limit of the unpacked size (an archive of a few kB can unpack to petabytes).
        max_members: upper limit of the number of members.

    Returns:
        The files written, in archive order.

    Raises:
        ArchiveError: not there, no zip file, damaged, encrypted or too large; or a member that would land outside
            ``directory``, is a link or a device, or would be written twice.
    """
    if not Path(archive).is_file():
        raise ArchiveError(f"{archive}: no such file; pass the path of a zip archive")
    try:
        with zipfile.ZipFile(archive) as opened:
            plan = _plan(opened, archive, select, max_bytes, max_members)
            return [_extract(opened, member, Path(directory, *target.parts)) for target, member in plan.items()]
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ArchiveError(f"{archive}: no zip archive, or a damaged one ({error}); fetch it again") from error


def _plan(
    opened: zipfile.ZipFile, archive: PathLike, select: Callable[[str], str | None], max_bytes: int, max_members: int
) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Which member goes where; every member is looked at before any is written."""
    members = opened.infolist()
    if len(members) > max_members:
        raise ArchiveError(f"{archive}: {len(members)} members, at most {max_members} expected; not unpacked")
    plan: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for member in members:
        _refuse_hostile(member.filename, member, archive)
        name = None if member.is_dir() else select(member.filename.replace("\\", "/"))
        if name is None:
            continue
        _refuse_hostile(name, member, archive)
        if PurePosixPath(name) in plan:
            raise ArchiveError(f"{archive}: two members for {name!r}; not unpacked")
        plan[PurePosixPath(name)] = member
    total = sum(member.file_size for member in plan.values())  # zipfile never writes more than it says here
    if total > max_bytes:
        raise ArchiveError(f"{archive}: would unpack to {total} bytes, at most {max_bytes} allowed; not unpacked")
    return plan


def _refuse_hostile(name: str, member: zipfile.ZipInfo, archive: PathLike) -> None:
    """Raise for a member that would leave the folder, is not a plain file, or is locked."""
    path = PureWindowsPath(name)  # splits at both kinds of slash
    if not path.parts or path.drive or path.root or ".." in path.parts:
        raise ArchiveError(f"{archive}: member {name!r} points outside the folder; not unpacked")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveError(f"{archive}: member {name!r} is a link or a device, not a file; not unpacked")
    if member.flag_bits & 0x1:
        raise ArchiveError(f"{archive}: member {name!r} is encrypted; unpack the archive by hand")


def _extract(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> Path:
    """Write one member under a temporary name, then give it its own."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        with opened.open(member) as source, part.open("wb") as stream:
            shutil.copyfileobj(source, stream, 1 << 20)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


# --- copying -----------------------------------------------------------------------------------------------------


def copy_atomically(source: PathLike, target: PathLike) -> Path:
    """Copy a file so that the target is complete or not there."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    shutil.copyfile(source, part)
    part.replace(target)
    return target
