"""Text of config files, which is UTF-8 without a byte order mark."""

from __future__ import annotations

from pathlib import Path

from vesselseg.errors import ConfigError

_MARKS = (
    (b"\xef\xbb\xbf", "UTF-8 with a byte order mark (BOM)"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def check_text(path: Path) -> None:
    """Raise ConfigError that names the encoding of a config file that is not plain UTF-8."""
    content = path.read_bytes()
    for mark, name in _MARKS:
        if content.startswith(mark):
            raise ConfigError(f"{path}: the file is {name}; save it as UTF-8 without BOM")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        try:
            content.decode("gb18030")
        except UnicodeDecodeError:
            found = "neither UTF-8 nor GBK"
        else:
            found = "not UTF-8, probably GBK (GB 18030)"
        raise ConfigError(f"{path}: the text is {found}, at line {line}; save it as UTF-8") from None
