import pytest

from cli.generated import files, settings_page
from schemas.settings import ALL, EdgeSettings, SettingsError, SharedSettings
from schemas.variables import check_names, load, prefix_of, settings_list


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    return monkeypatch


def test_a_group_is_read_from_the_environment(env: pytest.MonkeyPatch) -> None:
    env.setenv("EDGE_UPSTREAM__CONNECT_TIMEOUT_S", "2.5")
    env.setenv("EDGE_PROVIDERS__OLLAMA__BASE_URL", "http://127.0.0.1:11434/v1/")
    settings = load(EdgeSettings)
    assert settings.upstream.connect_timeout_s == 2.5
    assert settings.providers["ollama"].base_url == "http://127.0.0.1:11434/v1"


@pytest.mark.parametrize(
    ("variable", "near"),
    [
        ("EDGE_PROT", "EDGE_PORT"),
        ("EDGE_UPSTREAM__CONECT_TIMEOUT_S", "EDGE_UPSTREAM__CONNECT_TIMEOUT_S"),
        ("HELIOGRAPH_DATADIR", "HELIOGRAPH_DATA_DIR"),
    ],
)
def test_an_unknown_name_under_our_prefixes_stops_with_the_nearest_right_one(variable: str, near: str) -> None:
    with pytest.raises(SettingsError, match=f"{variable}: there is no such setting; did you mean {near}"):
        check_names({variable: "1"})


def test_other_peoples_variables_are_none_of_ours() -> None:
    check_names({"PATH": "x", "REDIS_URL": "x", "CLICKHOUSE_HOST": "x"})


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("EDGE_PORT", "70000", "EDGE_PORT = '70000'"),
        ("EDGE_AUTH", "maybe", "'required' or 'optional'"),
        ("EDGE_BOUNDS__BODY_BYTES", "-5", "greater than or equal to 1024"),
        ("EDGE_PROVIDERS__X__BASE_URL", "ftp://x", "http:// or https://"),
        ("EDGE_ALLOWED_NETWORKS", '["x"]', "must be networks, like 10.1.0.0/16"),
        ("EDGE_ALLOWED_NETWORKS", "10.1.2.3/8", "must be networks, like 10.1.0.0/16"),
        ("EDGE_ALLOWED_TARGETS", '"llm.example.com"', "must be a list, like a, b"),
        ("EDGE_ALLOWED_NETWORKS", "[1]", "must be networks"),
    ],
)
def test_a_bad_value_is_named_with_what_would_be_right(
    env: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    env.setenv(variable, value)
    with pytest.raises(SettingsError, match=variable) as error:
        load(EdgeSettings)
    assert told in str(error.value)


def test_an_address_of_ipv6_is_no_json(env: pytest.MonkeyPatch) -> None:
    env.setenv("EDGE_ALLOWED_TARGETS", "[::1]:8080")
    assert load(EdgeSettings).allowed_targets == ["[::1]:8080"]


@pytest.mark.parametrize("hosts", ["a.example, b.example:9", '["a.example", "b.example:9"]', "a.example,b.example:9,"])
def test_a_list_is_read_as_people_write_it_and_as_json(env: pytest.MonkeyPatch, hosts: str) -> None:
    env.setenv("EDGE_ALLOWED_TARGETS", hosts)
    env.setenv("EDGE_ALLOWED_NETWORKS", "10.1.0.0/16, fd00::/8")
    settings = load(EdgeSettings)
    assert settings.allowed_targets == ["a.example", "b.example:9"]
    assert [str(network) for network in settings.allowed_networks] == ["10.1.0.0/16", "fd00::/8"]


@pytest.mark.parametrize(("requests_days", "rollup_days"), [("90", "30"), ("1000", None)])
def test_rollups_are_kept_as_long_as_requests(
    env: pytest.MonkeyPatch, requests_days: str, rollup_days: str | None
) -> None:
    env.setenv("HELIOGRAPH_RETENTION__REQUESTS_DAYS", requests_days)
    if rollup_days is not None:
        env.setenv("HELIOGRAPH_RETENTION__ROLLUP_DAYS", rollup_days)
    with pytest.raises(
        SettingsError, match=f"HELIOGRAPH_RETENTION__ROLLUP_DAYS.*at least requests_days, which is {requests_days}"
    ):
        load(SharedSettings)


def test_a_secret_is_not_repeated_in_an_error(env: pytest.MonkeyPatch) -> None:
    env.setenv("HELIOGRAPH_CLICKHOUSE__PASSWORD", "hunter2")
    env.setenv("HELIOGRAPH_CLICKHOUSE__PORT", "0")
    with pytest.raises(SettingsError) as error:
        load(SharedSettings)
    assert "hunter2" not in str(error.value)


def test_every_setting_says_what_it_means() -> None:
    for group in ALL:
        for setting in settings_list(group, prefix_of(group)):
            assert setting.meaning, setting.variable


def test_the_settings_page_is_the_codes() -> None:
    for path, text in files().items():
        assert path.read_text() == text, f"{path.name} is not up to date; run: make format"


def test_what_a_command_reads_for_itself_stops_nothing_and_is_on_the_settings_page(env: pytest.MonkeyPatch) -> None:
    env.setenv("HELIOGRAPH_KEY", "sk-helio-1")
    env.setenv("HELIOGRAPH_CONTROL_URL", "http://control.example.com")
    assert load(SharedSettings).log_level == "info"
    page = settings_page()
    assert "`HELIOGRAPH_KEY`" in page
    assert "`HELIOGRAPH_CONTROL_URL`" in page


def test_a_mistyped_variable_of_a_command_stops_with_the_right_one() -> None:
    with pytest.raises(SettingsError, match="HELIOGRAPH_KEYS: there is no such setting; did you mean HELIOGRAPH_KEY"):
        check_names({"HELIOGRAPH_KEYS": "1"})
