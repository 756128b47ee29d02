import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.local import secrets
from infra.local.errors import CannotStart


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_secret_is_made_once_and_kept(tmp_path: Path) -> None:
    first = secrets.make_once(tmp_path / "secrets" / "one")
    assert len(first) >= 40
    assert secrets.make_once(tmp_path / "secrets" / "one") == first
    assert secrets.make_once(tmp_path / "secrets" / "two") != first


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    secrets.make_once(tmp_path / "secrets" / "one")
    assert mode(tmp_path / "secrets") == 0o700
    assert mode(tmp_path / "secrets" / "one") == 0o600


def test_rights_that_a_restore_gave_to_others_are_taken_back(tmp_path: Path) -> None:
    kept = secrets.make_once(tmp_path / "one")
    (tmp_path / "one").chmod(0o644)
    assert secrets.read(tmp_path / "one") == kept
    assert mode(tmp_path / "one") == 0o600


def test_makers_at_the_same_time_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        made = set(pool.map(lambda _: secrets.make_once(tmp_path / "one"), range(64)))
    assert len(made) == 1


def test_an_empty_file_stops_the_start_rather_than_changing_the_password(tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    with pytest.raises(CannotStart, match="is empty"):
        secrets.make_once(tmp_path / "one")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    secrets.write_private(tmp_path / "one", "before")
    with pytest.raises(UnicodeEncodeError):
        secrets.write_private(tmp_path / "one", "\ud800")
    assert (tmp_path / "one").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
