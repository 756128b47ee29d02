"""What a run needs on disk: the two C programs, and the peers at their pinned versions, all of it in `build/`.

Each is made once and again when its source or lock file changes.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE / "build"
PEERS = HERE / "peers"
INSTALL_TIMEOUT_S = 900
COMPILE_TIMEOUT_S = 60


class BuildError(Exception):
    """Something cannot be made here. The message says what, and what would help."""


@dataclass(frozen=True)
class Programs:
    mock: Path
    load: Path


def programs() -> Programs:
    """The mock provider and the load generator, compiled.

    Raises:
        BuildError: there is no C compiler, or it refused.
    """
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        raise BuildError("no C compiler (cc, gcc or clang) on the PATH; on Debian: apt-get install gcc libc6-dev")
    return Programs(
        mock=_compiled(compiler, HERE / "mock_provider.c"),
        load=_compiled(compiler, HERE / "load.c"),
    )


def portkey() -> Path:
    """The script that starts Portkey's gateway, installed by npm from `peers/portkey/package-lock.json`.

    Raises:
        BuildError: npm is missing, or could not fetch the packages.
    """
    folder, lock = BUILD / "portkey", PEERS / "portkey" / "package-lock.json"
    if not _is_made(folder, lock):
        npm = _tool("npm")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(PEERS / "portkey" / name, folder)
        # Its one install script (patch-package) has no patches to apply; others' install scripts are not run here.
        _run([npm, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder)
        _mark_made(folder, lock)
    return folder / "node_modules/@portkey-ai/gateway/build/start-server.js"


def litellm() -> Path:
    """LiteLLM's command, in a venv of its own made from `peers/litellm/requirements.txt` (with hashes) and the Python that
    runs the edge.

    Raises:
        BuildError: pip could not fetch the packages.
    """
    folder, lock = BUILD / f"litellm-{platform.python_version()}", PEERS / "litellm" / "requirements.txt"
    if not _is_made(folder, lock):
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)], cwd=HERE)
        pip = [str(folder / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
        # The lock is whole. Older pips refuse a package that another wants with an extra, hash or not.
        _run([*pip, "--no-deps", "--require-hashes", "-r", str(lock)], cwd=HERE)
        _mark_made(folder, lock)
    return folder / "bin/litellm"


def _compiled(compiler: str, source: Path) -> Path:
    program = BUILD / "bin" / source.stem
    if not _is_made(program, source):
        program.parent.mkdir(parents=True, exist_ok=True)
        made = program.with_name(f"{program.name}.{os.getpid()}")  # the old one may be running, or two of us compiling
        _run([compiler, "-O2", "-o", str(made), str(source)], cwd=HERE, timeout_s=COMPILE_TIMEOUT_S)
        made.rename(program)
        _mark_made(program, source)
    return program


def _is_made(made: Path, source: Path) -> bool:
    stamp = _stamp(made)
    return made.exists() and stamp.exists() and stamp.read_text() == _hash(source)


def _mark_made(made: Path, source: Path) -> None:
    _stamp(made).write_text(_hash(source))


def _stamp(made: Path) -> Path:
    return made.with_name(f"{made.name}.made-from")


def _hash(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise BuildError(f"{name} is not on the PATH")
    return found


def _run(command: Sequence[str], *, cwd: Path, timeout_s: float = INSTALL_TIMEOUT_S) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{' '.join(command[:3])}: no end after {timeout_s:.0f} s") from error
    if done.returncode:
        raise BuildError(f"{' '.join(command[:3])} failed:\n{(done.stderr or done.stdout)[-2000:]}")
