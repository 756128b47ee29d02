"""From windows to figures, from figures to the table with our budgets. Pure."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from load_tests.measure import Window

DIRECT, OURS = "direct", "heliograph"
DISTURBED_SHARE = 0.1
"""Beyond this share of a core taken by others, hypervisor included, a window is disturbed."""
DISTURBED_WINDOWS = 0.1
"""A run with more than this part of its windows disturbed has verdicts with a question mark."""
HEADROOM = 0.7
"""Beyond this share of what client and mock do alone (`direct`), a candidate's calls/s are not trusted."""

Figures = dict[str, float]
"""A candidate's figures by the name of a row; what could not be measured is left out."""


@dataclass(frozen=True)
class Budget:
    sign: str
    limit: float

    def holds(self, value: float) -> bool:
        return value <= self.limit if self.sign == "≤" else value >= self.limit


@dataclass(frozen=True)
class Row:
    name: str
    label: str
    digits: int = 0
    budget: Budget | None = None
    steady: bool = False
    """True when others on the machine hardly change the figure."""


def at_most(limit: float) -> Budget:
    return Budget("≤", limit)


def at_least(limit: float) -> Budget:
    return Budget("≥", limit)


ROWS = (
    Row("calls_per_s", "calls/s, 64 at a time, one core"),
    Row("calls_per_s_best", "calls/s, better of 8 and 64 at a time"),
    Row("over_nginx", "  ÷ nginx", 3, at_least(0.12)),
    Row("over_nginx_by_cpu", "  ÷ nginx, by CPU a call", 3, at_least(0.12)),
    Row("over_portkey", "  ÷ Portkey", 1, at_least(8)),
    Row("over_litellm", "  ÷ LiteLLM", 1, at_least(60)),
    Row("over_gomodel", "  ÷ GoModel", 1, at_least(2)),
    Row("cpu_us", "CPU µs a call, 64 at a time"),
    Row("p50_us", "one at a time: p50, µs"),
    Row("p99_us", "one at a time: p99, µs"),
    Row("added_p50", "  added p50, in p50s of direct", 1, at_most(25)),
    Row("added_p99", "  added p99, in p50s of direct", 1, at_most(45)),
    Row("first_byte_us", "8 streams: first byte p50, µs"),
    Row("added_first_byte", "  added, in p50s of direct", 1, at_most(60)),
    Row("chunk_p50_us", "8 streams: a chunk's way p50, µs"),
    Row("chunk_p99_us", "8 streams: a chunk's way p99, µs", 0, at_most(1000)),
    Row("chunks_per_s", "128 streams: chunks/s (offered: 32,000)", 0, at_least(30_000)),
    Row("client_gone_ms", "client gone → upstream closed, ms (500: never)", 1, at_most(10)),
    Row("rss_mb", "memory (RSS of the tree), MB", 0, at_most(150), steady=True),
)
PEERS = ("nginx", "portkey", "litellm", "gomodel")


def window_figures(windows: Iterable[Window]) -> Figures:
    """One candidate's figures of one round."""
    figures: Figures = {}
    by_phase = {window.phase: window for window in windows}
    if busy := by_phase.get("busy"):
        figures["calls_per_s"] = busy.figures["rps"]
        figures["calls_per_s_best"] = max(busy.figures["rps"], _rps(by_phase.get("eight")))
        if busy.cpu_s and busy.figures["ok"]:
            figures["cpu_us"] = busy.cpu_s / busy.figures["ok"] * 1e6
    if (one := by_phase.get("one")) and (latency := one.figures["latency_us"]):
        figures["p50_us"], figures["p99_us"] = latency["p50"], latency["p99"]
    if streams := by_phase.get("streams"):
        if first_byte := streams.figures["first_byte_us"]:
            figures["first_byte_us"] = first_byte["p50"]
        if chunk := streams.figures["chunk_latency_us"]:
            figures["chunk_p50_us"], figures["chunk_p99_us"] = chunk["p50"], chunk["p99"]
    if many := by_phase.get("many_streams"):
        figures["chunks_per_s"] = many.figures["chunks_per_s"]
    return figures


def medians(rounds: Iterable[Figures]) -> Figures:
    """Each figure's median over the rounds that have it."""
    values: dict[str, list[float]] = {}
    for figures in rounds:
        for name, value in figures.items():
            values.setdefault(name, []).append(value)
    return {name: statistics.median(found) for name, found in values.items()}


def with_comparisons(candidates: Mapping[str, Figures]) -> dict[str, Figures]:
    """Add what is a comparison: to `direct` of the same run for everyone, to the peers for us."""
    compared = {name: dict(figures) for name, figures in candidates.items()}
    direct = candidates.get(DIRECT, {})
    for name, figures in compared.items():
        if name != DIRECT and (unit := direct.get("p50_us")):
            for added, of in (("added_p50", "p50_us"), ("added_p99", "p99_us"), ("added_first_byte", "first_byte_us")):
                if of in figures and of in direct:
                    figures[added] = (figures[of] - direct[of]) / unit
        if name.startswith(OURS) and "calls_per_s_best" in figures:
            for peer in PEERS:
                # Some do better with fewer calls at a time: everyone is taken at their better.
                if theirs := candidates.get(peer, {}).get("calls_per_s_best"):
                    figures[f"over_{peer}"] = figures["calls_per_s_best"] / theirs
            if "cpu_us" in figures and (nginx_us := candidates.get("nginx", {}).get("cpu_us")):
                figures["over_nginx_by_cpu"] = nginx_us / figures["cpu_us"]
    return compared


def disturbed_windows(windows: Iterable[Window]) -> list[Window]:
    """The windows in which others took too much of a core."""
    return [window for window in windows if window.disturbance > DISTURBED_SHARE]


def limited_by_us(candidates: Mapping[str, Figures]) -> list[str]:
    """Whose calls/s came so near to what client and mock can do alone that they may have been the limit."""
    most = HEADROOM * candidates.get(DIRECT, {}).get("calls_per_s", float("inf"))
    return [
        f"{name}: client and mock may have been the limit at {figures['calls_per_s']:,.0f} calls/s"
        for name, figures in candidates.items()
        if name != DIRECT and figures.get("calls_per_s", 0) > most
    ]


def verdicts(ours: Figures, *, disturbed: bool) -> dict[str, str]:
    """`ok`, `miss` or `n/a` for every row with a budget, with a question mark where others may have made it so."""
    return {row.name: _verdict(row, ours.get(row.name), disturbed) for row in ROWS if row.budget}


def render(candidates: Mapping[str, Figures], *, disturbed: bool) -> list[str]:
    """The table: a line a figure, a column a candidate, our budget and how we stand to it."""
    ours = candidates.get(OURS, {})
    lines = [["", *candidates, "budget", ""]]
    for row in ROWS:
        cells = [_number(figures.get(row.name), row.digits) for figures in candidates.values()]
        budget = f"{row.budget.sign} {_number(row.budget.limit, _digits(row.budget.limit))}" if row.budget else ""
        lines.append([row.label, *cells, budget, _verdict(row, ours.get(row.name), disturbed)])
    return aligned(lines)


def _rps(window: Window | None) -> float:
    return float(window.figures["rps"]) if window else 0.0


def _verdict(row: Row, value: float | None, disturbed: bool) -> str:
    if row.budget is None:
        return ""
    if value is None:
        return "n/a"
    return ("ok" if row.budget.holds(value) else "miss") + ("?" if disturbed and not row.steady else "")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _digits(limit: float) -> int:
    return 0 if limit == int(limit) else 2


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells as lines of text: the first and the last column to the left, the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in (0, len(widths) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
