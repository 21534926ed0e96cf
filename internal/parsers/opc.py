"""What all Open XML files share: the main part and the core properties."""

from internal.parsers.archive import Package, damaged, local
from internal.parsers.outline import Outline

_CORE = {"title": "title", "creator": "author", "language": "language", "subject": "subject", "created": "created"}


def main_part(package: Package) -> str:
    """The member name of the main document part."""
    for kind, target in package.relations("").values():
        if kind == "officeDocument" and target in package:
            return target
    raise damaged()


def core_properties(package: Package, outline: Outline) -> None:
    """Title, author, language and date of creation."""
    for kind, target in package.relations("").values():
        if kind == "core-properties" and target in package:
            for item in package.xml(target):
                if local(item) in _CORE:
                    outline.note(_CORE[local(item)], item.text)
