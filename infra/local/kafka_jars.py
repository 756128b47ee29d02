"""The Kafka broker's jars, fetched from Maven Central once; from then on nothing is asked of the network.

`kafka_pom.xml` says which. They are kept in a folder named by what that file holds, so that a change of it fetches anew.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from infra.local.errors import CannotStart
from infra.local.lock import exclusive

POM = Path(__file__).with_name("kafka_pom.xml")
CACHE = Path(__file__).parents[2] / "build" / "kafka"
"""In a checkout; shared by every data folder."""

_FETCH_S = 600
_TOLD_LINES = 12


def java() -> str:
    """
    Raises:
        CannotStart: there is none.
    """
    found = shutil.which("java")
    if found is None:
        raise CannotStart(
            "the Kafka broker needs Java 11 or newer and there is no 'java' on the PATH: "
            "apt-get install openjdk-17-jre-headless"
        )
    return found


def jars(cache: Path = CACHE) -> Path:
    """The folder of jars, fetched first where it is not there yet (46 MB, about 15 s). Safe from several processes.

    Raises:
        CannotStart: Maven is missing, or could not fetch them.
    """
    pom = POM.read_bytes()
    folder = cache.absolute() / hashlib.sha256(pom).hexdigest()[:12]
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with exclusive(cache / ".lock"):
        if not folder.exists():
            _fetch(folder)
    return folder


def _fetch(folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise CannotStart(
            f"the Kafka broker's jars are not in {folder} yet and there is no 'mvn' on the PATH to fetch them: "
            "apt-get install maven"
        )
    print(f"fetching the Kafka broker with Maven into {folder} (46 MB, once)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        shutil.copy(POM, Path(work) / "pom.xml")
        command = [
            maven, "--batch-mode", "--no-transfer-progress", "dependency:copy-dependencies",
            "-DincludeScope=runtime", "-DoutputDirectory=lib",
        ]  # fmt: skip
        try:
            done = subprocess.run(  # noqa: S603 - Maven, found above
                command, cwd=work, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_FETCH_S
            )
        except subprocess.TimeoutExpired:
            raise CannotStart(f"Maven did not fetch the Kafka broker within {_FETCH_S} s") from None
        if done.returncode != 0:
            told = "\n".join((done.stdout + done.stderr).strip().splitlines()[-_TOLD_LINES:])
            raise CannotStart(f"Maven could not fetch the Kafka broker:\n{told}")
        os.replace(Path(work) / "lib", folder)
