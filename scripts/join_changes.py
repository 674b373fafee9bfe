"""Join the files of `changes/` into CHANGELOG.md, and remove them (see changes/README.md).

python scripts/join_changes.py [--release VERSION]
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNRELEASED = "## Unreleased\n"


def fragments(folder: Path) -> list[Path]:
    """Files of changes, by name."""
    return sorted(path for path in folder.glob("*.md") if path.name != "README.md")


def joined(changelog: str, changes: Sequence[str], *, release: str | None = None, date: str = "") -> str:
    """The changelog with changes at the end of what is unreleased.

    Args:
        changelog: Its text.
        changes: Texts of lines that begin with "- ", or go on from one that does.
        release: Version that all that is unreleased becomes.
        date: Of the release.

    Raises:
        SystemExit: If a change is no list, or the changelog has no such section.
    """
    for text in changes:
        if not text.startswith("- ") or any(line[:2] not in ("- ", "  ", "") for line in text.splitlines()):
            raise SystemExit(f"this is no list of changes, each beginning with '- ': {text[:80]!r}")
    before, heading, after = changelog.partition(UNRELEASED)
    if not heading:
        raise SystemExit("CHANGELOG.md has no section '## Unreleased'.")
    section, older_heading, older = after.partition("\n## ")
    lines = [section.strip("\n"), *(text.strip("\n") for text in changes)]
    whole = "\n".join(line for line in lines if line)
    title = f"{UNRELEASED}\n## {release} ({date})\n" if release else UNRELEASED
    return f"{before}{title}\n{whole}\n{older_heading}{older}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", metavar="VERSION")
    version = parser.parse_args().release
    files, changelog = fragments(ROOT / "changes"), ROOT / "CHANGELOG.md"
    changes = [path.read_text(encoding="utf-8") for path in files]
    today = datetime.date.today().isoformat()
    changelog.write_text(
        joined(changelog.read_text(encoding="utf-8"), changes, release=version, date=today), encoding="utf-8"
    )
    for path in files:
        path.unlink()
    print(f"joined {len(files)} files")


if __name__ == "__main__":
    main()
