"""`heliograph demo`: believable traffic through the running edge, for somebody without a provider key."""

import asyncio
import os
import random
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import typer

from cli.demo_provider import DemoProvider
from cli.environment import console, data_dir, errors, read_env_file, settings_errors
from infra.local.ports import remembered
from schemas.settings import ControlSettings, EdgeSettings
from schemas.variables import load

if TYPE_CHECKING:
    import httpx

_USERS = [
    "ada@example.com",
    "grace@example.com",
    "alan@example.com",
    "edsger@example.com",
    "barbara@example.com",
    "u-1042",
]
_QUESTIONS = [
    "Where is my parcel?",
    "Please summarise this thread in three points.",
    "Why does this loop never run?",
    "Compare the two offers and name the cheaper one.",
    "Write a polite reminder for an unpaid invoice.",
    "Which of these reviews are complaints?",
]
_MODELS = [  # model, API, weight
    ("gpt-4o-mini", "openai", 9),
    ("gpt-4o", "openai", 4),
    ("gpt-4.1", "openai", 2),
    ("o4-mini", "openai", 2),
    ("text-embedding-3-small", "embeddings", 4),
    ("claude-sonnet-4-5", "anthropic", 5),
    ("claude-haiku-4-5", "anthropic", 3),
]
_FEATURES = ["support-chat", "search", "code-review", "billing"]
_IN_FLIGHT_MAX = 64


def demo(
    minutes: float = typer.Option(3, "--minutes", "-m", min=0.05, max=60, help="How long to send."),
    rate: float = typer.Option(4, "--rate", min=0.1, max=200, help="Calls a second, on average."),
    key: str = typer.Option(
        "", "--key", envvar="HELIOGRAPH_KEY", help="A Heliograph key, where the edge requires one."
    ),
    seed: int = typer.Option(1, "--seed", help="The same seed sends the same calls."),
) -> None:
    """Send a few minutes of traffic: users, sessions, streams, errors, several models. No provider key is needed."""
    read_env_file()
    key = key or os.environ.get("HELIOGRAPH_KEY", "")  # the .env file is read after the options are
    with settings_errors():
        edge, control = load(EdgeSettings), load(ControlSettings)
    port = remembered(data_dir()).get("demo")
    if port is None:
        errors.print(f"[red]{data_dir()} belongs to no running Heliograph; start it with 'heliograph up'.[/]")
        raise typer.Exit(1)
    base = f"http://127.0.0.1:{edge.port}"
    console.print(f"Sending about {rate:g} calls a second to {base} for {minutes:g} minutes; Ctrl-C ends it earlier.")
    counts = asyncio.run(_run(base, port, minutes * 60, rate, key, seed))
    told = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.most_common())
    if not counts["answered"]:
        errors.print(f"[red]Of {counts.total():,} calls ({told}) none was answered.[/]")
        if counts["status 401"]:
            errors.print("This gateway needs a key: [cyan]heliograph keys create --name demo[/], then --key KEY.")
        else:
            errors.print(f"Is 'heliograph up' running on {base}?")
        raise typer.Exit(1)
    console.print(f"Sent {counts.total():,} calls ({told}); their rows carry demo=true.")
    console.print(f"See them: [cyan]heliograph tail[/], or http://127.0.0.1:{control.port}/v1/requests")


async def _run(base: str, port: int, seconds: float, rate: float, key: str, seed: int) -> Counter[str]:
    import httpx
    import uvicorn
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    provider = uvicorn.Server(
        uvicorn.Config(DemoProvider(seed=seed), port=port, ws="none", lifespan="off", log_config=None, access_log=False)
    )
    serving = threading.Thread(target=provider.run, daemon=True)  # in a thread it leaves Ctrl-C to us
    serving.start()
    for _ in range(200):
        if provider.started:
            break
        await asyncio.sleep(0.05)
    chance = random.Random(seed)  # noqa: S311 - for show
    counts: Counter[str] = Counter()
    limit = asyncio.Semaphore(_IN_FLIGHT_MAX)
    headers = {"Helicone-Auth": f"Bearer {key}"} if key else {}
    headers |= {"Helicone-Property-Demo": "true", "Authorization": "Bearer demo", "x-api-key": "demo"}
    try:
        async with (
            httpx.AsyncClient(base_url=base, headers=headers, timeout=120) as client,
            asyncio.TaskGroup() as calls,
        ):
            began = time.monotonic()
            with Progress(
                TextColumn("sending"), BarColumn(), TextColumn("{task.fields[sent]} calls"), TimeRemainingColumn(),
                console=console, transient=True,
            ) as progress:  # fmt: skip
                task = progress.add_task("demo", total=seconds, sent=0)
                while (gone := time.monotonic() - began) < seconds:
                    await limit.acquire()
                    sending = calls.create_task(_send(client, chance, counts))
                    sending.add_done_callback(lambda _: limit.release())
                    progress.update(task, completed=gone, sent=counts.total())
                    await asyncio.sleep(min(chance.expovariate(rate), 2))
    finally:
        provider.should_exit = True
        await asyncio.to_thread(serving.join)
    return counts


async def _send(client: "httpx.AsyncClient", chance: random.Random, counts: Counter[str]) -> None:
    import httpx

    path, body, headers = _call(chance)
    gives_up = chance.random() < 0.02
    try:
        async with client.stream("POST", path, json=body, headers=headers) as answer:
            async for _ in answer.aiter_raw():
                if gives_up:
                    break
        counts[
            "left early" if gives_up else "answered" if answer.status_code < 400 else f"status {answer.status_code}"
        ] += 1
    except httpx.HTTPError as error:
        counts[type(error).__name__] += 1


def _call(chance: random.Random) -> tuple[str, dict[str, Any], dict[str, str]]:
    model, api, _ = chance.choices(_MODELS, weights=[weight for *_, weight in _MODELS])[0]
    question = chance.choice(_QUESTIONS)
    feature = chance.choice(_FEATURES)
    headers = {
        "Helicone-Property-Environment": chance.choices(["production", "staging"], weights=[5, 1])[0],
        "Helicone-Property-Feature": feature,
    }
    if chance.random() < 0.9:
        headers["Helicone-User-Id"] = chance.choice(_USERS)
    if chance.random() < 0.5:
        headers |= {
            "Helicone-Session-Id": f"session-{chance.randrange(40)}",
            "Helicone-Session-Name": feature,
            "Helicone-Session-Path": chance.choice(["/plan", "/plan/search", "/plan/answer", "/answer"]),
        }
    if api == "embeddings":
        return "/demo-openai/v1/embeddings", {"model": model, "input": question * chance.randrange(1, 20)}, headers
    turns = [{"role": "user", "content": question * chance.randrange(1, 8)}]
    body: dict[str, Any] = {"model": model, "messages": turns}
    if api == "anthropic":
        body["max_tokens"] = 1024
        headers["anthropic-version"] = "2023-06-01"
    if chance.random() < 0.45:
        body["stream"] = True
        if api == "openai" and chance.random() < 0.7:
            body["stream_options"] = {"include_usage": True}
    return ("/demo-anthropic/v1/messages" if api == "anthropic" else "/demo-openai/v1/chat/completions"), body, headers
