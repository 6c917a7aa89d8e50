"""Write the pages that are made from the code and from the tests' results.

python docs/build.py            write them
python docs/build.py --check    end with 1 if one of them is not what would be written
"""

from __future__ import annotations

import argparse
from pathlib import Path

import formats_page
import hardware_page
import kernels_page
import ops_page


def pages() -> dict[Path, str]:
    """Every generated page, with what it is to say."""
    return {
        path: text
        for page in (kernels_page, hardware_page, ops_page, formats_page)
        for path, text in page.pages().items()
    }


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = 0
    for path, text in pages().items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        print(f"{'out of date' if check else 'written'}: {path.name}")
        if not check:
            path.write_text(text, encoding="utf-8")
    for name in formats_page.untranslated():
        print(f"not translated yet: {name}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
