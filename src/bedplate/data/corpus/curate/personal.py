"""Personal data: e-mail and IP addresses are replaced, documents are kept. Patterns and replacements are datatrove's;
here each document begins with the first replacement, so that none depends on its neighbours.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from itertools import cycle

from bedplate.core.config import Strict
from bedplate.data.corpus.curate.draft import DraftDocument, Rule, Tools

_BYTE = r"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)"
_WORD = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_MAIL = re.compile(
    rf"\b{_WORD}(?:\.{_WORD})*@(?:(?:{_HOST}\.)+{_HOST}|\[(?:{_BYTE}\.){{3}}"
    r"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?|[A-Za-z0-9-]*[A-Za-z0-9]:)])"
)
_ADDRESS = re.compile(rf"(?:{_BYTE}\.){{3}}{_BYTE}")
_INNER_OCTET = re.compile(r"\.[0-9]{1,3}\.[0-9]")
"""What every address has, and what is found faster."""


class PersonalSettings(Strict):
    """What is replaced, and by what, in turn."""

    mail: bool = True
    addresses: bool = True
    public_only: bool = True
    mail_replacements: tuple[str, ...] = ("email@example.com", "firstname.lastname@example.org")
    address_replacements: tuple[str, ...] = (
        "22.214.171.124",
        "126.96.36.199",
        "188.8.131.52",
        "184.108.40.206",
        "220.127.116.11",
        "18.104.22.168",
    )


def personal(settings: PersonalSettings, tools: Tools) -> Rule:
    """Replaces; never drops."""

    def rule(draft: DraftDocument) -> str | None:
        text = draft.text
        if settings.mail and "@" in text:
            text = _MAIL.sub(_in_turn(settings.mail_replacements), text)
        if settings.addresses and _INNER_OCTET.search(text):
            turn = _in_turn(settings.address_replacements)
            text = _ADDRESS.sub(lambda m: turn(m) if _is_meant(m[0], settings.public_only) else m[0], text)
        draft.text = text
        return None

    return rule


def _in_turn(replacements: tuple[str, ...]) -> Callable[[re.Match[str]], str]:
    turn = cycle(replacements)
    return lambda _: next(turn)


def _is_meant(text: str, public_only: bool) -> bool:
    try:
        return not public_only or ipaddress.ip_address(text).is_global
    except ValueError:
        return False
