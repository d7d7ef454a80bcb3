"""The model code that an exported folder carries: the package's own files, flattened.

transformers loads the code of a folder from files beside each other. Every file that `export/hf_model.py` reaches
through imports, also those inside functions, is copied, and `from vesselseg.room.file import x` becomes
`from .file import x`: there is no second copy of the model to keep alike.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

ENTRY = "vesselseg.export.hf_model"
AUTO_MAP = {"AutoConfig": "sa2va_config.Sa2VAConfig", "AutoModel": "hf_model.VesselSegModel"}

_IMPORT = re.compile(r"^(?P<indent> *)from (?P<module>vesselseg(?:\.\w+)+) import", re.MULTILINE)


def write_remote_code(folder: Path, entry: str = ENTRY) -> list[str]:
    """Copy the files that the exported model needs into the folder; returns their names. entry: its model class's."""
    written: dict[str, str] = {}
    modules = reachable_modules(entry)
    for module in modules:
        name = module.rsplit(".", 1)[1] + ".py"
        if name in written:
            raise RuntimeError(f"{module} and {written[name]} would both be written as {name}")
        written[name] = module
        text = _IMPORT.sub(_relative, source(module))
        if module == entry:
            text += _name_all(modules, entry)
        (folder / name).write_text(text, encoding="utf-8")
    return sorted(written)


def _name_all(modules: list[str], entry: str) -> str:
    """transformers copies a local folder's entry file and the files that it names itself, not those behind them."""
    names = sorted(module.rsplit(".", 1)[1] for module in modules if module != entry)
    lines = "\n".join(f"    from .{name} import __name__ as _{name}" for name in names)
    return f"\n\nif False:  # never run: the loader reads here which files belong to this one\n{lines}\n"


def reachable_modules(entry: str) -> list[str]:
    """Every module of the package that this one imports, directly or not, itself first."""
    found = [entry]
    for module in found:
        named = dict.fromkeys(match["module"] for match in _IMPORT.finditer(source(module)))
        found += [name for name in named if name not in found]
    return found


def source(module: str) -> str:
    """The text of one of the package's modules."""
    package, _, rest = module.partition(".")
    return (files(package) / (rest.replace(".", "/") + ".py")).read_text(encoding="utf-8")


def _relative(match: re.Match[str]) -> str:
    return f"{match['indent']}from .{match['module'].rsplit('.', 1)[1]} import"
