"""A planner's plan as Kafka keeps it: the committed offset, and in its metadata the later cuts. Pure.

The metadata is text of at most 4,096 bytes, the broker's own bound: `1;2000,2000,137;why it is paused;1763719200000`,
the last of which says when. Cuts are written as what each adds to the one before, so the 256 a plan may hold take at
most 1,800 bytes.
"""

from itertools import pairwise

from ingest.log import LogGap, Plan

METADATA_BYTES_MAX = 4096

_VERSION = "1"
_REASON_CHARS_MAX = 500


def to_metadata(plan: Plan) -> str:
    steps = (end - start for start, end in pairwise((plan.committed, *plan.cuts)))
    reason = "".join(" " if c in ";\n" else c for c in plan.paused or "")[:_REASON_CHARS_MAX]
    pause = f"{reason};{plan.paused_ms}" if plan.paused else ""
    metadata = f"{_VERSION};{','.join(map(str, steps))};{pause}"
    assert len(metadata.encode()) <= METADATA_BYTES_MAX
    return metadata


def from_metadata(committed: int, metadata: str) -> Plan:
    """
    Args:
        metadata: empty where somebody set the offset by Kafka's own tools, which is how a plan is reset.

    Raises:
        LogGap: it is not ours. Starting afresh would count events twice.
    """
    if not metadata:
        return Plan(committed=committed)
    try:
        version, steps, pause = metadata.split(";", 2)
        if version != _VERSION:
            raise ValueError(version)
        cuts: list[int] = []
        for step in steps.split(",") if steps else ():
            cuts.append((cuts[-1] if cuts else committed) + int(step))
        reason, _, paused_ms = pause.partition(";")
        plan = Plan(
            committed=committed, cuts=tuple(cuts), paused=reason or None, paused_ms=int(paused_ms) if paused_ms else 0
        )
    except ValueError as error:
        raise LogGap(f"the plan at offset {committed} cannot be read: {metadata[:80]!r}") from error
    return plan


def mark_of(plan: Plan) -> str:
    """What a resume names, so that it lifts this pause, whatever else of the plan has changed, and not the next one."""
    return f"{_VERSION};{plan.paused_ms}"


def resumed_by(mark: str) -> int | None:
    """The pause that a mark names, by its `paused_ms`; None: it is not of this form."""
    version, _, paused_ms = mark.partition(";")
    return int(paused_ms) if version == _VERSION and paused_ms.isdecimal() else None
