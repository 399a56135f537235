"""What another domain wrote into the store: numbers out of it, and how it is shown."""

from __future__ import annotations


def quote(text: object, limit: int = 64) -> str:
    """An untrusted value as one line for a person: quoted, escaped and cut after `limit` characters."""
    whole = str(text)
    return ascii(whole) if len(whole) <= limit else ascii(whole[:limit]) + "..."


def parse_u32(text: str, maximum: int = 0xFFFFFFFF, minimum: int = 0) -> int:
    """An untrusted decimal number, digits only. Raises ValueError, which quotes the value, outside minimum..maximum."""
    if 0 < len(text) <= 10 and text.isascii() and text.isdigit():
        number = int(text)
        if minimum <= number <= maximum:
            return number
    raise ValueError(f"not a number from {minimum} to {maximum}: {quote(text)}")


def parse_u32_list(text: str, maximum: int = 0xFFFFFFFF, max_count: int = 16) -> list[int]:
    """Untrusted decimal numbers separated by single spaces. Raises ValueError; so do more than `max_count` of them."""
    if len(text) > 11 * max_count:
        raise ValueError(f"more than {max_count} numbers: {quote(text)}")
    words = text.split(" ")
    if len(words) > max_count:
        raise ValueError(f"more than {max_count} numbers: {quote(text)}")
    return [parse_u32(word, maximum) for word in words]
