"""After a `kill -9` of ClickHouse: tokens of inserts whose parts were not written any more.

An insert's token goes into its table's log, and 0.1 to 0.3 ms later the finished part gets its name. A kill between the two
leaves a token without rows, and the repeat of that insert would be dropped. Only files are looked at, before the engine
starts: then nothing is being written, and every part is on disk by its own name or within a merged one.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

_RECORD_MAX = 1000
"""How many of a log's last records are looked at. An insert has one without its part at a time."""

_ADD, _DROP = b"1", b"2"
_PART = re.compile(r"([^_]+)_(\d+)_(\d+)_\d+(?:_\d+)?")
"""Partition, first and last block, level, mutation."""


def forget_unwritten(data: Path) -> list[Path]:
    """Drop each token whose part is missing from its log, as ClickHouse itself drops one.

    Args:
        data: the engine's folder. Nobody else may have it open.

    Returns:
        Where the missing parts would be.
    """
    return [part for logs in sorted(data.glob("store/*/*/deduplication_logs")) for part in _forget(logs)]


def _forget(logs: Path) -> Iterator[Path]:
    files = sorted(logs.glob("deduplication_log_*.txt"), key=_number)[-2:]
    if not files:
        return
    last = files[-1]
    _cut_half_record(last)
    records = b"".join(file.read_bytes() for file in files).splitlines()[-_RECORD_MAX:]
    blocks = _blocks(entry.name for entry in logs.parent.iterdir())
    for token, part in _added(records).items():
        if not _is_there(part, blocks):
            with last.open("ab") as log:
                log.write(b"\t".join((_DROP, part.encode(), token)) + b"\n")
                log.flush()
                os.fsync(log.fileno())
            yield logs.parent / part


def _number(file: Path) -> int:
    return int(file.stem.rpartition("_")[2])


def _cut_half_record(log: Path) -> None:
    """The next record would go on in its line. Its part was never written."""
    written = log.read_bytes()
    if not written.endswith(b"\n"):
        os.truncate(log, written.rfind(b"\n") + 1)


def _added(records: Iterable[bytes]) -> dict[bytes, str]:
    """Parts by their tokens, but for those dropped since."""
    added: dict[bytes, str] = {}
    for record in records:
        operation, _, rest = record.partition(b"\t")
        part, _, token = rest.partition(b"\t")
        if operation == _ADD:
            added[token] = part.decode(errors="replace")
        else:
            added.pop(token, None)
    return added


def _blocks(names: Iterable[str]) -> dict[str, list[tuple[int, int]]]:
    """What the parts of a table hold, by partition."""
    blocks: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for name in names:
        if found := _PART.fullmatch(name):
            blocks[found[1]].append((int(found[2]), int(found[3])))
    return blocks


def _is_there(part: str, blocks: dict[str, list[tuple[int, int]]]) -> bool:
    found = _PART.fullmatch(part)
    if found is None:
        return True  # a name from another version: leave it alone
    return any(first <= int(found[2]) and int(found[3]) <= last for first, last in blocks.get(found[1], ()))
