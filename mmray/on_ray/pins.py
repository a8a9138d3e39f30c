"""Which versions of packages a job runs with: those that requirements.txt pins.

`python -m mmray.on_ray.pins FILE` runs in the cluster before the job itself, and refuses where versions differ.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version


def pins_of(requirements: Path) -> list[str]:
    """The lines `name==version ; condition` of a requirements file for what mmray itself imports, without hashes."""
    needed = {_plain(Requirement(line).name) for line in metadata.requires("mmray") or () if "extra ==" not in line}
    text = requirements.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (line.split(" --hash", 1)[0].strip() for line in text.splitlines() if re.match(r"[A-Za-z0-9]", line))
    return [line for line in lines if _plain(Requirement(line).name) in needed]


def differences(pins: list[str]) -> list[str]:
    """What this machine has instead of what is pinned, a line a package."""
    found = []
    for pin in pins:
        requirement = Requirement(pin)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        (wanted,) = (specifier.version for specifier in requirement.specifier)
        try:
            there = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(f"{requirement.name} is missing, pinned is {wanted}")
            continue
        if Version(there).public != Version(wanted).public:  # 2.11.0+cu130 is a build of 2.11.0
            found.append(f"{requirement.name} is {there}, pinned is {wanted}")
    return found


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Status 1, and what differs, where this machine's packages are not those of the file."""
    found = differences(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines())
    if found:
        listed = "\n".join(f"  {line}" for line in found)
        print(
            f"error: this cluster's packages are not those of requirements.txt\n{listed}\ninstall requirements.txt on "
            f"every node, or submit with --packages install (for this job), or --packages any (as they are)",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
