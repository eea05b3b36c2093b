"""Where a server is, and the key to it, from the environment only."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from sft.errors import InputError

KEY = "VICUGNA_API_KEY"
"""Environment variable with the key of ``sft serve``, which ``sft web`` sends."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def address_fault(base_url: str) -> str | None:
    """What is wrong with the address of a server; None for a sound one."""
    try:
        parts = urlsplit(base_url)
        _ = parts.port  # read only to be proven
    except ValueError as error:
        return f"is no address: {error}"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "must start with http:// or https:// and name a host"
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        return "must not hold credentials, a query or a fragment; name the key's variable in key_variable"
    return None


def is_variable(name: str) -> bool:
    """Whether this is the name of an environment variable, and not, by mistake, the key itself."""
    return _VARIABLE.fullmatch(name) is not None


def key_in(variable: str, label: str, without: str, environment: Mapping[str, str] = os.environ) -> str:
    """The key that an environment variable holds.

    Args:
        variable: its name.
        label: of the server, for the message.
        without: how to say that a server wants no key, for the message.
        environment: where to look.

    Raises:
        InputError: the variable is not set, or empty, or holds what no header can carry.
    """
    key = own_key(variable, environment)
    if key is None:
        raise InputError(f"the key of {label} is missing: set the environment variable {variable}, or {without}")
    return key


def own_key(variable: str = KEY, environment: Mapping[str, str] = os.environ) -> str | None:
    """The key that an environment variable holds; None if it is not set, or empty.

    Raises:
        InputError: it holds what no header can carry.
    """
    key = environment.get(variable, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(
            f"the environment variable {variable} does not hold a key (blanks or odd characters in it); "
            f"{variable} must be printable ASCII without blanks"
        )
    return key or None
