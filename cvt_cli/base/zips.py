"""The names of what lies in a .zip, whatever wrote it."""

import struct
import zipfile
import zlib

_IS_UTF8 = 0x800
"""The flag that says that a member's name is in UTF-8."""

_UNICODE_PATH = 0x7075
"""Info-ZIP's extra field with the name in UTF-8, beside one in another encoding."""


def named(archive: zipfile.ZipFile) -> zipfile.ZipFile:
    """The archive itself, where a member's name that is valid UTF-8 is now taken for this.

    macOS, and Info-ZIP on Linux, write UTF-8 without the flag that says so; Python takes it for
    CP437, and knows `_UNICODE_PATH` from 3.12 only. A member is found and read by its new name.
    """
    for info in archive.infolist():
        if not info.flag_bits & _IS_UTF8:
            info.filename = zipfile.ZipInfo(_name(info)).filename  # which cuts it at a zero byte
    archive.NameToInfo = {info.filename: info for info in archive.infolist()}
    return archive


def is_guessed(info: zipfile.ZipInfo) -> bool:
    """Whether a member that `named` went through may have another name: neither says it that it is
    UTF-8 nor is it, so that it was taken for CP437, as DOS and Windows write it in the West."""
    of_dos = not info.flag_bits & _IS_UTF8 and info.filename == info.orig_filename
    return of_dos and not info.filename.isascii()


def _name(info: zipfile.ZipInfo) -> str:
    written = info.orig_filename.encode("cp437")  # of every byte CP437 makes another character
    try:
        return (_unicode_path(info.extra, zlib.crc32(written)) or written).decode()
    except UnicodeDecodeError:
        return info.orig_filename


def _unicode_path(extra: bytes, checksum: int) -> bytes:
    """The name in the field of `_UNICODE_PATH`, if it was made of a name with this checksum."""
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        content, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == _UNICODE_PATH and content[:5] == struct.pack("<BL", 1, checksum):
            return content[5:]
    return b""
