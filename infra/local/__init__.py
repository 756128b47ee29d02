"""Embedded real servers for one machine, as child processes: ClickHouse and Valkey out of Python wheels, no Docker."""
