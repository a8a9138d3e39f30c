"""Which files a task is asked to work on."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from mmray.storage import at, matching


def named_files(source: str | Path, suffixes: Collection[str], kind: str) -> list[Path]:
    """The files that `source` names, sorted; `kind` is what they are, as errors call it: "sound", "image".

    A file is taken whatever its name. Of a folder all files below it are taken, and of a pattern such as `in/*.mp3` or
    `in/**/*.flac` all that match, if their names end in one of `suffixes` (small letters) and do not begin with a dot.
    ValueError where there is none.
    """
    path = at(source)
    if path.is_file():
        return [path]
    candidates = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else matching(str(source))
    files = sorted(p for p in candidates if p.suffix.lower() in suffixes and p.name[0] != "." and p.is_file())
    if not files:
        found = f"{len(candidates)} files, none of them {kind}" if candidates else "nothing"
        example, article = next(iter(suffixes)), "an" if kind[0] in "aeiou" else "a"
        raise ValueError(
            f"{source}: {found}; give {article} {kind} file, a folder with some, or a pattern such as 'in/*{example}' "
            f"({kind} files end in {', '.join(suffixes)})"
        )
    return files
