"""Finds the time zone rules that this process reads: their source, and their release of the IANA's tzdata."""

import importlib
import importlib.resources
import re
import zoneinfo
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pgsched.expression.zones import Rules, digest, digest_of, newer

PACKAGE = "the package tzdata"
REMEDY = "update the host's files, or set PYTHONTZPATH to an empty value to read the package's"
_VERSION = re.compile(r"^(?:# version )?(\d{4}[a-z]{1,3})\b")
# The file in a folder of zones that names its release: on the BSDs and macOS, and on Linux distributions.
_NAMED_IN = ("+VERSION", "tzdata.zi")


class Source(NamedTuple):
    """The source of rules, and their release such as 2026a; None if it is unknown."""

    place: str
    release: str | None


def rules(name: str) -> Rules:
    """The rules of a zone, as this process knows them. Raises InvalidExpression for an unknown zone."""
    return Rules(source_of(name).release, digest(name))


@lru_cache(maxsize=2048)
def source_of(name: str = "Europe/London") -> Source:
    """The source of the rules that zoneinfo reads for a zone; by default, one that every collection has."""
    for folder in zoneinfo.TZPATH:
        if Path(folder, name).is_file():
            return Source(folder, _release(folder))
    return Source(PACKAGE, package_release())


@lru_cache(maxsize=16)
def _release(folder: str) -> str | None:
    for name in _NAMED_IN:
        try:
            with Path(folder, name).open(encoding="utf-8", errors="replace") as stream:
                if found := _VERSION.match(stream.readline(100)):
                    return found[1]
        except OSError:
            continue
    return None


@lru_cache(maxsize=1)
def package_release() -> str | None:
    """The release of the installed package tzdata."""
    try:
        release = importlib.import_module("tzdata").IANA_VERSION
    except (ImportError, AttributeError):
        return None
    return str(release)


def outdated(name: str) -> str | None:
    """A warning if the host's file of this zone is older than the package's and has other rules, else None."""
    place, release = source_of(name)
    package = package_release()
    if place == PACKAGE or not newer(package, release):
        return None
    try:
        with importlib.resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as stream:
            theirs = digest_of(zoneinfo.ZoneInfo.from_file(stream, key=name))
    except (OSError, ValueError, ModuleNotFoundError):
        return None
    if theirs == digest(name):
        return None
    return f"the rules of {name} come from {place}, tzdata {release}, and {package} has others: {REMEDY}"


def outdated_host() -> str | None:
    """A warning if the host's time zone files are older than the package's, else None."""
    place, release = source_of()
    package = package_release()
    if place == PACKAGE or not newer(package, release):
        return None
    return f"the time zone files in {place} are of tzdata {release}, older than the package's {package}: {REMEDY}"
