"""The recorded exchanges; README.md beside says where they are from."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_RECORDED = Path(__file__).with_name("recorded.jsonl.gz")


def recorded() -> Iterator[dict[str, Any]]:
    """Each exchange as its line has it."""
    with gzip.open(_RECORDED) as lines:
        for line in lines:
            yield json.loads(line)
