"""The documents of this repository as tests read them: fenced blocks, prose, headings and links.

The rule of this file: it reads Markdown as it is written here (fences of three backticks, inline links), no more.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Document:
    """One Markdown file."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        """Its path from the root."""
        return self.path.relative_to(ROOT).as_posix()

    def blocks(self, language: str) -> list[str]:
        """The fenced blocks of a language, in order."""
        return [body for tag, body in _FENCE.findall(self.text) if tag == language]

    @property
    def prose(self) -> str:
        """The text without its fenced blocks."""
        return _FENCE.sub("", self.text)

    def links(self) -> list[str]:
        """The targets of all links and images outside fenced blocks."""
        return _LINK.findall(self.prose)

    def anchors(self) -> set[str]:
        """What a link may name behind a #."""
        headings = re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    def commands(self) -> list[str]:
        """Every shell command shown in a block: continued lines joined, comments and pipes cut off."""
        lines = "".join(self.blocks("sh")).replace("\\\n", " ").splitlines()
        commands = (re.sub(r"\s+(#|\|).*", "", line).strip() for line in lines)
        return [command for command in commands if command]


def document(name: str) -> Document:
    """Read one document by its path from the root."""
    return Document(ROOT / name, (ROOT / name).read_text(encoding="utf-8"))


def documents() -> list[Document]:
    """All documents: those in the root and everything below docs/."""
    paths = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    return [document(path.relative_to(ROOT).as_posix()) for path in paths]
