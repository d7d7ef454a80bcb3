"""The model code in an exported folder: copies of the package's files, flattened.

transformers loads a folder's code from files in one directory. Every file that `export/hf_model.py` imports, directly
or indirectly and also inside functions, is copied, and `from vesselseg.room.file import x` becomes
`from .file import x`. So the model exists only once in the source code.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

ENTRY = "vesselseg.export.hf_model"
AUTO_MAP = {"AutoConfig": "sa2va_config.Sa2VAConfig", "AutoModel": "hf_model.VesselSegModel"}
# Of folders with fixed phrases, which vesselseg distill writes.
PROMPTED_ENTRY = "vesselseg.export.hf_prompted_model"
PROMPTED_AUTO_MAP = {
    "AutoConfig": "prompted_config.PromptedSAM2Config",
    "AutoModel": "hf_prompted_model.VesselSegSAM2Model",
}

_IMPORT = re.compile(r"^(?P<indent> *)from (?P<module>vesselseg(?:\.\w+)+) import", re.MULTILINE)


def write_remote_code(folder: Path, entry: str = ENTRY) -> list[str]:
    """Copy the files that the exported model needs to the folder; returns their names.

    entry: the module of the model class. File names must be unique, since the copies share one directory.
    """
    written: dict[str, str] = {}
    modules = reachable_modules(entry)
    for module in modules:
        name = module.rsplit(".", 1)[1] + ".py"
        if name in written:
            raise RuntimeError(f"{module} and {written[name]} would both be written as {name}")
        written[name] = module
        text = _IMPORT.sub(_relative, module_source(module))
        if module == entry:
            text += _file_references(modules, entry)
        (folder / name).write_text(text, encoding="utf-8")
    return sorted(written)


def _file_references(modules: list[str], entry: str) -> str:
    """Imports of all files, for the entry file: transformers copies only files that the entry file itself imports."""
    names = sorted(module.rsplit(".", 1)[1] for module in modules if module != entry)
    lines = "\n".join(f"    from .{name} import __name__ as _{name}" for name in names)
    return f"\n\nif False:  # never executed: tells transformers which files to copy\n{lines}\n"


def reachable_modules(entry: str) -> list[str]:
    """The entry and every module of the package that it imports, directly or indirectly."""
    modules = [entry]
    for module in modules:
        imported = dict.fromkeys(match["module"] for match in _IMPORT.finditer(module_source(module)))
        modules += [name for name in imported if name not in modules]
    return modules


def module_source(module: str) -> str:
    """The source code of a module of the package."""
    package, _, rest = module.partition(".")
    return (files(package) / (rest.replace(".", "/") + ".py")).read_text(encoding="utf-8")


def _relative(match: re.Match[str]) -> str:
    return f"{match['indent']}from .{match['module'].rsplit('.', 1)[1]} import"
