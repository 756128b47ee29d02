from pathlib import Path
from xml.etree import ElementTree

from infra.local.clickhouse_config import Limits, config_xml, users_xml


def users(limits: Limits | None = None) -> ElementTree.Element:
    text = users_xml(password="p<&>", read_only_password="q", database="heliograph", limits=limits or Limits())
    return ElementTree.fromstring(text)


def test_paths_with_signs_of_xml_stay_what_they_are() -> None:
    folder = Path("/data/a <b> & 'c'")
    config = ElementTree.fromstring(
        config_xml(folder=folder, log=folder / "x.log", tcp_port=1, http_port=2, limits=Limits())
    )
    assert config.findtext("users_config") == str(folder / "users.xml")
    assert config.findtext("logger/log") == str(folder / "x.log")


def test_no_password_stands_in_the_file_only_its_hash() -> None:
    text = users_xml(password="secret-one", read_only_password="secret-two", database="d", limits=Limits())
    assert "secret" not in text


def test_every_limit_of_the_read_only_user_has_a_least_value_too() -> None:
    constraints = users().find("profiles/read_only/constraints")
    assert constraints is not None
    for constraint in constraints:
        assert constraint.find("const") is not None or constraint.findtext("min") == "1", constraint.tag


def test_the_caches_leave_most_of_the_memory_to_queries() -> None:
    limits = Limits(memory_mib=512)
    config = ElementTree.fromstring(
        config_xml(folder=Path("/d"), log=Path("/d/x"), tcp_port=1, http_port=2, limits=limits)
    )
    caches = sum(int(element.text or 0) for element in config if element.tag.endswith("cache_size"))
    assert caches < 512 * 2**20 / 4
