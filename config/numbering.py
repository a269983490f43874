"""Telephone numbers as people dial them, and as the world knows them (ITU-T E.164).

Numbers of emergency services and other short ones are left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

import phonenumbers

from config.trunks import NumberFormat

_SEPARATORS = re.compile(r"[ ().\-/]")
_DIGITS = re.compile(r"\+?[0-9]{2,20}")


class Numbering:
    """The numbers of a system.

    Args:
        country: where numbers without a country code belong (ISO 3166); None: unknown.
        short_numbers: dialled as they are, beside the short numbers of the country.
    """

    def __init__(self, country: str | None = None, short_numbers: Iterable[str] = ()) -> None:
        self._country = country
        self._short = frozenset(short_numbers)

    def forms(self, dialled: str, country: str | None = None) -> tuple[str, ...]:
        """A number in its forms: international if it has one, then as dialled (without separators).

        Args:
            dialled: whatever was dialled; nothing is raised. What follows a semicolon is no part of the
                number (RFC 3966): a carrier might follow it elsewhere (RFC 4694: rn).
            country: of who dialled, if it is not that of the system.
        """
        plain = _SEPARATORS.sub("", dialled.partition(";")[0])
        if plain in self._short or not _DIGITS.fullmatch(plain):
            return (plain,)
        full = international(plain, country or self._country)
        return (plain,) if full is None or full == plain else (full, plain)

    def written(self, number: str, style: NumberFormat, country: str | None = None) -> str:
        """A caller's number as a carrier wants to see it; what is no telephone number stays as it is."""
        if style is NumberFormat.AS_IS:
            return number
        forms = self.forms(number, country)
        if not forms[0].startswith("+"):
            return number
        return forms[0] if style is NumberFormat.E164 else national(forms[0], country or self._country)


@lru_cache(maxsize=4096)
def international(number: str, country: str | None) -> str | None:
    """The E.164 form of a number; None for one that has none, such as an emergency number.

    Args:
        number: digits, perhaps after `+`.
        country: where it was dialled; None: only numbers with `+` have a form.
    """
    if country is not None and (phonenumbers.is_emergency_number(number, country) or _is_short(number, country)):
        return None
    try:
        parsed = phonenumbers.parse(number, country)
    except phonenumbers.NumberParseException:
        return None
    if not phonenumbers.is_possible_number(parsed):
        return None
    return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)


def _is_short(number: str, country: str) -> bool:
    if number.startswith("+") or len(number) > 8:
        return False
    try:
        parsed = phonenumbers.parse(number, country)
    except phonenumbers.NumberParseException:
        return True  # too short to be anything else
    return phonenumbers.is_valid_short_number_for_region(parsed, country)


@lru_cache(maxsize=4096)
def national(number: str, country: str | None) -> str:
    """An E.164 number as it is dialled within its country; in international form where that is another one."""
    try:
        parsed = phonenumbers.parse(number, country)
    except phonenumbers.NumberParseException:
        return number
    if country is None or phonenumbers.country_code_for_region(country) != parsed.country_code:
        return number
    text = phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.NATIONAL)
    return _SEPARATORS.sub("", text)
