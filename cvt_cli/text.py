"""Text for people: sizes, times, counts, names that cannot break a line."""


def printable(text: str) -> str:
    """The text with control characters escaped, so that a file name cannot break a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def human_bytes(size: float) -> str:
    """A size as "80.1 MB" (1 MB is 1,000,000 bytes, as downloads are counted)."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def duration(seconds: float) -> str:
    """A time as "0:42" or "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def human_count(value: int | None) -> str:
    """A large count with its metric prefix, "4.566 G"; empty for None."""
    if value is None:
        return ""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3f} {prefix}"
    return f"{value} "
