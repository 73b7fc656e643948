"""The rights to the directories above an embedded server, which its package opens to everybody if we are root."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


def is_root() -> bool:
    """Whether we may do everything, and PostgreSQL therefore has to run as another user."""
    return sys.platform != "win32" and os.geteuid() == 0


@contextlib.contextmanager
def keeping_modes(path: Path, *others: Path) -> Iterator[None]:
    """Limits the rights to all parent directories of the paths: as root, the package lets everybody list them.

    Here, others may only pass through them. Their old modes are saved next to the data directory `path`. The process
    that stops the server restores them: a later one if this one is killed.
    """
    if not is_root():
        yield
        return
    parents = [parent for each in (path, *others) for parent in each.resolve().parents]
    before = {parent: stat.S_IMODE(parent.stat().st_mode) for parent in parents}
    try:
        yield
    finally:
        opened = _opened(path)
        for parent, mode in before.items():
            passable = mode | stat.S_IXGRP | stat.S_IXOTH
            if stat.S_IMODE(parent.stat().st_mode) != mode:
                parent.chmod(passable)
            if passable != mode:
                opened.setdefault(str(parent), mode)
        if opened:
            with contextlib.suppress(OSError):  # a full or read-only disk: they stay open, as after a kill
                _note_opened(path, opened)


def _note_opened(path: Path, opened: dict[str, int]) -> None:
    # The new file replaces an existing one, which may be somebody else's link.
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".pgsched-", delete=False) as stream:
        json.dump(opened, stream)
    Path(stream.name).replace(_modes_file(path))


def _modes_file(path: Path) -> Path:
    """The file is outside the data directory: PostgreSQL's user must not decide which modes root sets."""
    return path.parent / f".{path.name}-modes.json"


def _opened(path: Path) -> dict[str, int]:
    """The parent directories that were opened for the server of this data directory, with their old modes."""
    file = _modes_file(path)
    try:
        found = file.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            return {}
        return {str(parent): int(mode) for parent, mode in json.loads(file.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # no usable file
        return {}


def restore_modes(path: Path) -> None:
    """Restores the old modes of the parents, unless somebody has changed them since."""
    if not is_root() or not (opened := _opened(path)):
        return
    for parent, mode in opened.items():
        with contextlib.suppress(OSError):
            if stat.S_IMODE(Path(parent).stat().st_mode) == mode | stat.S_IXGRP | stat.S_IXOTH:
                Path(parent).chmod(mode)
    _modes_file(path).unlink(missing_ok=True)
